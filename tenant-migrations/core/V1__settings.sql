-- One row: how this organization wants things.
create table settings (
    id smallint primary key,
    default_currency text not null,
    week_starts_on text not null,
    date_format text not null,
    version bigint not null,
    updated_at timestamptz not null,
    constraint settings_one_row check (id = 1),
    constraint settings_week_starts_on check (week_starts_on in ('monday', 'saturday', 'sunday')),
    constraint settings_date_format check (date_format in ('iso', 'dmy', 'mdy'))
);

insert into settings (id, default_currency, week_starts_on, date_format, version, updated_at)
values (1, 'SGD', 'monday', 'iso', 1, now());
