-- What each plan allows; null is no limit. Staff edit the rows, the service reads them.
create table platform.plans (
    name text primary key,
    -- From the smallest to the largest.
    rank integer not null unique,
    title text not null,
    users bigint,
    projects bigint,
    api_calls bigint,
    storage_bytes bigint,
    workflows bigint,
    -- A month; null: agreed with each customer.
    price_amount numeric(19, 4),
    price_currency text not null default 'SGD',
    features text[] not null default '{}',
    version bigint not null default 1,
    updated_at timestamptz not null default now(),
    constraint plans_limits check (
        least(users, projects, api_calls, storage_bytes, workflows, 0) >= 0 and price_amount >= 0
    )
);

insert into platform.plans
    (name, rank, title, users, projects, api_calls, storage_bytes, workflows, price_amount, features)
values
    ('free', 0, 'Free', 5, 1, 1000, 1000000000, 10, 0, '{}'),
    ('starter', 1, 'Starter', 10, 5, 10000, 10000000000, 50, 49, '{custom-domains}'),
    ('professional', 2, 'Professional', 50, 20, 100000, 100000000000, 200, 199,
        '{custom-domains,audit-export,sms}'),
    ('enterprise', 3, 'Enterprise', null, null, null, 1000000000000, null, null,
        '{custom-domains,audit-export,sms}');

alter table platform.organizations
    add constraint organizations_plan_fkey foreign key (plan) references platform.plans (name);

-- What an organization has bound itself to. No row: free, and never anything else.
create table platform.subscriptions (
    organization_id uuid primary key references platform.organizations (id) on delete cascade,
    state text not null default 'free',
    plan text not null default 'free' references platform.plans (name),
    -- Given by staff; wins over what is paid for.
    plan_override text references platform.plans (name),
    stripe_customer_id text,
    stripe_subscription_id text,
    amount numeric(19, 4),
    currency text,
    period_start timestamptz,
    period_end timestamptz,
    trial_started_at timestamptz,
    trial_ends_at timestamptz,
    trial_reminded_at timestamptz,
    cancel_at_period_end boolean not null default false,
    past_due_since timestamptz,
    -- From then on writes are refused.
    read_only_from timestamptz,
    -- The page on which somebody may be paying now, and for what.
    checkout_session_id text,
    checkout_plan text,
    -- Who is changing it at Stripe now, until when at most.
    claim uuid,
    claimed_until timestamptz,
    -- Looks at Stripe are numbered when they begin; an older one does not overwrite what a newer one found.
    looks bigint not null default 0,
    look_applied bigint not null default 0,
    version bigint not null default 1,
    updated_at timestamptz not null,
    constraint subscriptions_customer_key unique (stripe_customer_id),
    constraint subscriptions_subscription_key unique (stripe_subscription_id),
    constraint subscriptions_state check (state in ('free', 'trialing', 'active', 'past_due', 'paused'))
);

create index subscriptions_trials on platform.subscriptions (trial_ends_at) where state = 'trialing';

-- Staff gave plans before there were subscriptions: those stay.
insert into platform.subscriptions (organization_id, plan_override, updated_at)
    select id, plan, now() from platform.organizations where plan <> 'free';

-- What Stripe told, as it came. Written before it is answered, handled by a job.
create table platform.stripe_events (
    id text primary key,
    type text not null,
    created_at timestamptz not null,
    livemode boolean not null,
    account text,
    payload jsonb not null,
    state text not null default 'received',
    note text,
    organization_id uuid,
    received_at timestamptz not null,
    handled_at timestamptz,
    constraint stripe_events_state check (state in ('received', 'handled', 'ignored'))
);

create index stripe_events_open on platform.stripe_events (received_at) where state = 'received';
create index stripe_events_handled on platform.stripe_events (handled_at);
create index stripe_events_received on platform.stripe_events (received_at);

-- What was billed, as Stripe had it when it was last looked at.
create table platform.invoices (
    id text primary key,
    organization_id uuid not null references platform.organizations (id) on delete cascade,
    number text,
    status text not null,
    total numeric(19, 4) not null,
    amount_paid numeric(19, 4) not null,
    amount_due numeric(19, 4) not null,
    currency text not null,
    period_start timestamptz not null,
    period_end timestamptz not null,
    -- How often its payment was tried, and at which attempt a failure was told last.
    attempts bigint not null,
    failures_told bigint not null,
    paid_at timestamptz,
    hosted_url text,
    pdf_url text,
    created_at timestamptz not null,
    updated_at timestamptz not null
);

create index invoices_organization on platform.invoices (organization_id, created_at desc, id);

-- Money that went back, or is contested.
create table platform.billing_adjustments (
    id text primary key,
    organization_id uuid not null references platform.organizations (id) on delete cascade,
    kind text not null,
    charge_id text not null,
    amount numeric(19, 4) not null,
    currency text not null,
    reason text,
    status text not null,
    occurred_at timestamptz not null,
    updated_at timestamptz not null,
    constraint billing_adjustments_kind check (kind in ('refund', 'dispute'))
);

create index billing_adjustments_organization
    on platform.billing_adjustments (organization_id, occurred_at desc, id);

-- What the hourly comparison with Stripe found and repaired.
create table platform.reconciliations (
    id uuid primary key,
    started_at timestamptz not null,
    finished_at timestamptz,
    checked bigint not null default 0,
    repaired bigint not null default 0,
    findings jsonb not null default '[]',
    error text
);

create index reconciliations_started on platform.reconciliations (started_at desc, id);
