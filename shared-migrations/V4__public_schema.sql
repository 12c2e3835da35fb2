-- Nothing lives in schema public; a name that is not found must be an error.
revoke all on schema public from public;
