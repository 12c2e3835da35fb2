//! The fleet: all tenant schemas together, and what operators do with them.
//!
//! [`stock`] builds them ahead of time, [`migrate`](migrate()) brings them up to date, [`verify`](verify())
//! compares them with what they should be, [`standing`](standing()) tells how they are. What is done to one
//! organization as a whole is an [`operation`]: [`transfer`] (export, import, restore, clone), [`relocate`]
//! (move), [`erase`].

pub mod archive;
pub mod backups;
mod bring;
mod copy;
pub mod erase;
pub mod migrate;
pub mod operation;
pub mod relocate;
pub mod standing;
pub mod stock;
pub mod transfer;
pub mod verify;

use uuid::Uuid;

pub use migrate::{Options, Progress, Report, behind, migrate};
pub use operation::Step;
pub use standing::{FleetStanding, failing, keep_gauges, standing};
pub use stock::{begin_new_tenant, clear_away, keep_settled, keep_stock, stock_up};
pub use verify::{SchemaName, Verification, verify};

use super::{Directory, Tenant, directory::Key};
use crate::error::Result;

/// The organization of this id, for work that is not done for a request.
pub async fn tenant_by_id(directory: &Directory, id: Uuid) -> Result<Option<Tenant>> {
    let tenant = directory.find(&Key::Id(id)).await?;
    Ok(tenant.map(|tenant| Tenant { in_background: true, ..tenant }))
}

/// An organization by slug or id, for commands.
pub async fn tenant(directory: &Directory, name: &str) -> Result<Option<Tenant>> {
    let key = match name.parse() {
        Ok(id) => Key::Id(id),
        Err(_) => Key::Slug(name.to_owned()),
    };
    directory.find(&key).await
}
