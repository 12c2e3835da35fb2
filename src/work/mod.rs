//! Work: what a team works towards, and what there is to do for it.

pub mod activity;
pub mod attachments;
pub mod board;
pub mod bulk;
pub mod comments;
pub mod dependencies;
mod discussion;
pub mod exchange;
pub mod figures;
pub mod members;
pub mod mentions;
pub mod messages;
pub mod my_work;
pub mod notices;
pub mod projects;
pub mod reading;
pub mod search;
pub mod summary;
pub mod tasks;
mod tree;

use uuid::Uuid;

use crate::{
    app::App,
    audit::Actor,
    auth::{Member, Permission, PermissionSet},
    types::{Text, text_enum},
};

text_enum! {
    /// How much something presses.
    Priority { Low = "low", Medium = "medium", High = "high", Urgent = "urgent" }
}

/// What something is called in the system that it came from; unique among its kind.
pub type ExternalId = Text<1, 200>;

/// Who writes: a member with a request, or a job for a member.
pub struct By<'a> {
    pub app: &'a App,
    pub actor: Actor,
    pub user: Uuid,
    pub permissions: PermissionSet,
}

impl By<'_> {
    pub fn may(&self, permission: Permission) -> bool {
        self.permissions.contains(permission)
    }
}

impl<'a> From<&'a Member> for By<'a> {
    fn from(who: &'a Member) -> Self {
        Self { app: &who.app, actor: who.into(), user: who.user_id, permissions: who.permissions }
    }
}
