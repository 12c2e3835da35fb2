//! The tests talk HTTP to a real server over a real database, both started here and gone with the
//! process. A missing Postgres or Redis is a failure, not a skip.

mod api_keys;
mod audit;
mod auth;
mod bad_input;
mod billing;
mod commands;
mod crash;
mod domains;
mod emails;
mod events;
mod guards;
mod http_ground;
mod invitations;
mod isolation;
mod jobs;
mod limits;
mod members;
mod mfa;
mod notifications;
mod organizations;
mod plan_limits;
mod probe;
mod projects;
mod readme;
mod realtime;
mod sessions;
mod staff;
mod support;
mod tasks;
mod tenancy;
mod usage;
mod webhooks;
