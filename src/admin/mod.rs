//! What platform staff may do across organizations. Each act is in the platform's audit log, and in
//! that of the organization that it is about.

mod fleet;
mod organizations;
mod users;

pub use fleet::AdminFleetApi;
pub use organizations::AdminOrganizationsApi;
pub use users::AdminUsersApi;
