//! Who is calling, and what they may do.
//!
//! A handler says in its signature what it needs: [`Can`]`<ProjectsWrite>`, [`User`] (logged in,
//! no organization), [`KeyHolder`], [`Superuser`], [`Watching`] (a stream) or [`Public`]. The same
//! declaration puts the permission into the API document and into the test that probes every operation.

mod access;
pub mod activity;
pub mod api_keys;
pub mod crowd;
mod gate;
pub mod keys;
pub mod known;
pub mod passwords;
pub mod permissions;
pub mod sealing;
pub mod standing;
pub mod tickets;

pub use access::{Access, withdraw};
pub use gate::{Can, Counting, Key, KeyHolder, Member, Origin, Public, Superuser, User, Watching};
pub use permissions::{Permission, PermissionSet, Role};
