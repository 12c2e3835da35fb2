-- Words of comments and messages.
create index comments_search on comments using gin (search) with (gin_pending_list_limit = 64);
create index messages_search on messages using gin (search) with (gin_pending_list_limit = 64);

-- What waits to be put into an index is read by every search, and for each word that may have been meant: 64 kB of
-- it, not 4 MB.
alter index projects_search set (gin_pending_list_limit = 64);
alter index tasks_search set (gin_pending_list_limit = 64);
