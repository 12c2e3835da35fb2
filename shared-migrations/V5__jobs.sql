-- Work to do after a commit. The payload is sealed: it may hold tokens that are stored nowhere else.
create table platform.jobs (
    id uuid primary key,
    kind text not null,
    sealed_payload bytea not null,
    attempts integer not null default 0,
    run_at timestamptz not null,
    locked_until timestamptz,
    failed_at timestamptz,
    last_error text,
    created_at timestamptz not null
);

create index jobs_due on platform.jobs (run_at) where failed_at is null;
