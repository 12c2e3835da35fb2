//! Accounts: people, before and beside any organization.

pub mod avatar;
pub mod emails;
pub mod lockout;
mod login;
pub mod mfa;
pub mod profile;
pub mod security_events;
pub mod sessions;

pub use avatar::AvatarApi;
pub use login::{AuthApi, NewUser, insert};
pub use profile::ProfileApi;
