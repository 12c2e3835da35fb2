-- The text that the owner of a domain puts into its DNS.
alter table platform.organization_domains add column challenge text not null default '';
alter table platform.organization_domains add column checked_at timestamptz;
create unique index organization_domains_own_key on platform.organization_domains (organization_id, domain);
