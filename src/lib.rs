//! Rowhouse: many organizations in one service, each in a Postgres schema of its own.
//!
//! The rooms, from the ground up: `config`, `error`, `types`, `page`, `clock`, `limits`,
//! `observability`, `outbound` and `db` use only each other; `tenancy`, `http`, `auth`, `accounts`,
//! `organizations`, `billing`, `jobs`, `mail`, `audit`, `events`, `webhooks`, `notifications`,
//! `realtime`, `flags` and `admin` are the platform; `work` and `operations` are modules on top of it; `app` puts them
//! together, `api` and `cli` are the doors.

pub mod accounts;
pub mod admin;
pub mod api;
pub mod app;
pub mod audit;
pub mod auth;
pub mod billing;
pub mod cli;
pub mod clock;
pub mod config;
pub mod db;
pub mod error;
pub mod events;
pub mod exchange;
pub mod files;
pub mod flags;
pub mod http;
pub mod jobs;
pub mod limits;
pub mod mail;
pub mod notifications;
pub mod observability;
pub mod operations;
pub mod organizations;
pub mod outbound;
pub mod page;
pub mod realtime;
pub mod search;
pub mod tenancy;
pub mod types;
pub mod usage;
pub mod webhooks;
pub mod work;
