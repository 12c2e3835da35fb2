create table projects (
    id uuid primary key,
    name text not null,
    slug text not null,
    description text,
    status text not null,
    priority text not null,
    owner_id uuid not null,
    created_by uuid not null,
    start_date date,
    end_date date,
    budget_amount numeric(19, 4),
    budget_currency text,
    -- The impact of the done tasks, at most 100; written with the row locked.
    progress numeric(5, 2) not null default 0,
    version bigint not null default 1,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    -- Without signs, which would make one word of `04-12` or `acme.com`: words are searched for.
    search tsvector generated always as
        (to_tsvector('simple'::regconfig, translate(name || ' ' || coalesce(description, ''),
            '!"#$%&''()*+,-./:;<=>?@[\]^_`{|}~', repeat(' ', 32)))) stored,
    constraint projects_slug_key unique (slug),
    constraint projects_status check (status in ('planning', 'active', 'completed', 'archived')),
    constraint projects_priority check (priority in ('low', 'medium', 'high', 'urgent')),
    constraint projects_dates check (end_date >= start_date),
    constraint projects_budget check (budget_amount >= 0 and (budget_amount is null) = (budget_currency is null))
);

create index projects_newest on projects (created_at desc, id desc);
create index projects_search on projects using gin (search);

create table project_members (
    project_id uuid not null references projects (id) on delete cascade,
    user_id uuid not null,
    added_at timestamptz not null,
    primary key (project_id, user_id)
);
