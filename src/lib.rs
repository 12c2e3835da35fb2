//! Rowhouse: many organizations in one service, each in a Postgres schema of its own.
//!
//! The rooms, from the ground up: `config`, `error`, `types`, `page`, `clock`, `http` and `db` use
//! only each other; `tenancy`, `auth`, `accounts` and `organizations` are the platform; `work` is a
//! module on top of it; `api` and `cli` are the doors.

pub mod accounts;
pub mod api;
pub mod app;
pub mod auth;
pub mod cli;
pub mod clock;
pub mod config;
pub mod db;
pub mod error;
pub mod http;
pub mod organizations;
pub mod page;
pub mod tenancy;
pub mod types;
pub mod work;
