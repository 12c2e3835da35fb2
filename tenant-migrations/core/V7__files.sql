-- What is uploaded and made. The bytes are in the store of files, under the organization's id and this one.
create table files (
    id uuid primary key,
    name text not null,
    size bigint not null,
    sha256 text not null,
    content_type text not null,
    kind text not null,
    purpose text not null,
    uploaded_by uuid not null,
    thumbnail text not null,
    expires_at timestamptz,
    created_at timestamptz not null,
    constraint files_size check (size >= 0),
    constraint files_kind check (kind in ('image', 'video', 'document', 'other')),
    constraint files_purpose check (purpose in ('upload', 'logo', 'import', 'export', 'report')),
    constraint files_thumbnail check (thumbnail in ('none', 'pending', 'ready', 'refused'))
);

-- What has had its time is looked for every night.
create index files_expires_at on files (expires_at) where expires_at is not null;
-- Lists of one kind, and of one's own.
create index files_kind on files (kind, id desc);
create index files_uploaded_by on files (uploaded_by, id desc);
