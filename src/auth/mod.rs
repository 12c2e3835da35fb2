//! Who is calling, and what they may do.
//!
//! A handler says in its signature what it needs: [`Can`]`<ProjectsWrite>`, [`User`] (logged in,
//! no organization) or [`Public`]. The same declaration puts the permission into the API document
//! and into the test that probes every operation.

mod gate;
pub mod keys;
pub mod passwords;
pub mod permissions;
pub mod sealing;

pub use gate::{Can, Member, Origin, Public, User};
pub use permissions::{Permission, PermissionSet, Role};
