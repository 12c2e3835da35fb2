//! The tests talk HTTP to a real server over a real database, both started here and gone with the
//! process. A missing Postgres is a failure, not a skip.

mod auth;
mod bad_input;
mod commands;
mod guards;
mod http_ground;
mod isolation;
mod members;
mod organizations;
mod probe;
mod projects;
mod readme;
mod support;
mod tasks;
mod tenancy;
