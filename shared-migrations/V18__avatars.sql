-- A person's own picture, in the store of files; `avatar_url` leads to it then.
alter table platform.users add column avatar_id uuid;

create unique index users_avatar_key on platform.users (avatar_id) where avatar_id is not null;

-- The file that is the organization's logo; `logo_url` leads to its small picture then.
alter table platform.organizations add column logo_file_id uuid;
