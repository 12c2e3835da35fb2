-- Work to do after a commit, shared out fairly. Nothing was released with the table before.
drop table platform.jobs;

create table platform.jobs (
    id uuid primary key,
    kind text not null,
    -- Whose it is; null: the platform's own.
    organization_id uuid,
    -- Jobs of a kind are shared out among lanes: organizations, or what a kind chooses within them.
    lane uuid not null,
    -- Of two jobs of a kind with the same key that both wait, there is one.
    unique_key text,
    -- Sealed: it may hold tokens that are stored nowhere else.
    sealed_payload bytea not null,
    state text not null,
    attempts integer not null default 0,
    -- Ready since then, or not before then.
    run_at timestamptz not null,
    worker_id uuid,
    last_error text,
    created_at timestamptz not null,
    failed_at timestamptz,
    constraint jobs_state check (state in ('waiting', 'ready', 'running', 'dead'))
);

create index jobs_ready on platform.jobs (kind, lane, run_at, id) where state = 'ready';
create index jobs_waiting on platform.jobs (run_at) where state = 'waiting';
create index jobs_running on platform.jobs (kind, lane) where state = 'running';
create index jobs_dead on platform.jobs (failed_at) where failed_at is not null;
create unique index jobs_unique on platform.jobs (kind, unique_key)
    where unique_key is not null and state in ('waiting', 'ready');

-- Processes that do jobs. One that is not seen for a while is dead, and others do its jobs.
create table platform.workers (
    id uuid primary key,
    seen_at timestamptz not null
);

-- What is done by the clock. Each tick is claimed by whoever moves next_run_at on.
create table platform.schedules (
    name text primary key,
    cron text not null,
    next_run_at timestamptz not null,
    last_run_at timestamptz,
    last_finished_at timestamptz,
    last_result text,
    last_error text,
    constraint schedules_last_result check (last_result in ('ok', 'failed'))
);
