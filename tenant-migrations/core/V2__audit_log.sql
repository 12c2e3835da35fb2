-- Who did what. Written in the transaction of the change; a job adds sequence and seal.
create table audit_log (
    id uuid primary key,
    occurred_at timestamptz not null,
    actor_id uuid,
    actor_kind text not null,
    api_key_id uuid,
    action text not null,
    resource_id uuid,
    changes jsonb not null,
    request_id text,
    address text,
    user_agent text,
    sequence bigint,
    seal bytea,
    constraint audit_log_actor_kind check (actor_kind in ('user', 'api_key', 'superuser', 'system')),
    constraint audit_log_sequence_key unique (sequence)
);
