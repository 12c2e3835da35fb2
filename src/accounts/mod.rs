//! Accounts: people, before and beside any organization.

mod login;
pub mod profile;
pub mod sessions;

pub use login::{AuthApi, NewUser, insert};
pub use profile::ProfileApi;
