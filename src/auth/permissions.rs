//! Roles and permissions: one table.

use crate::types::text_enum;

text_enum! {
    /// What a member is in an organization.
    Role {
        /// Everything, billing and deletion included.
        Owner = "owner",
        /// Members, settings, integrations, keys, webhooks, analytics, all data.
        Admin = "admin",
        /// All data; invites members and viewers.
        Manager = "manager",
        /// Reads all data, writes what it owns or is assigned to.
        Member = "member",
        /// Reads.
        Viewer = "viewer",
    }
}

/// Makes the vocabulary: an enum, a type for each permission that a handler can ask for, and the
/// table of roles.
macro_rules! permissions {
    ($($(#[$about:meta])* $name:ident = $text:literal: $($role:ident)+;)+) => {
        text_enum! {
            /// `resource:action`, the one vocabulary of permissions and scopes.
            Permission { $($(#[$about])* $name = $text),+ }
        }

        $(
            $(#[$about])*
            #[derive(Clone, Copy, Debug)]
            pub struct $name;

            impl Asks for $name {
                const PERMISSION: Permission = Permission::$name;
            }
        )+

        /// Which roles hold a permission.
        fn holders(permission: Permission) -> &'static [Role] {
            match permission { $(Permission::$name => &[$(Role::$role),+]),+ }
        }
    };
}

/// A permission as a type, for signatures.
pub trait Asks: Send + Sync + 'static {
    const PERMISSION: Permission;
}

permissions! {
    /// See the organization and its settings.
    OrganizationRead = "organization:read": Owner Admin Manager Member Viewer;
    /// Delete and restore the organization.
    OrganizationDelete = "organization:delete": Owner;
    /// Make somebody else its owner.
    OrganizationTransfer = "organization:transfer": Owner;
    /// Stop being a member.
    OrganizationLeave = "organization:leave": Owner Admin Manager Member Viewer;
    /// One's own notifications.
    NotificationsRead = "notifications:read": Owner Admin Manager Member Viewer;
    /// Change the organization, its settings and its domains.
    SettingsManage = "settings:manage": Owner Admin;
    /// See who is a member.
    MembersRead = "members:read": Owner Admin Manager Member Viewer;
    /// Invite members and viewers.
    MembersInvite = "members:invite": Owner Admin Manager;
    /// Change roles, deactivate and remove.
    MembersManage = "members:manage": Owner Admin;
    /// See the plan, what is used of it, and invoices.
    BillingRead = "billing:read": Owner Admin;
    /// Plans, payment and invoices.
    BillingManage = "billing:manage": Owner;
    /// Connections to other systems.
    IntegrationsManage = "integrations:manage": Owner Admin;
    /// API keys of the organization.
    ApiKeysManage = "api_keys:manage": Owner Admin;
    /// Outgoing webhooks.
    WebhooksManage = "webhooks:manage": Owner Admin;
    /// The audit log.
    AuditRead = "audit:read": Owner Admin;
    /// Usage and key figures.
    AnalyticsRead = "analytics:read": Owner Admin Manager Member;
    /// See all projects.
    ProjectsRead = "projects:read": Owner Admin Manager Member Viewer;
    /// Write any project.
    ProjectsWrite = "projects:write": Owner Admin Manager;
    /// Write the projects one owns.
    ProjectsWriteOwn = "projects:write_own": Owner Admin Manager Member;
    /// See all tasks.
    TasksRead = "tasks:read": Owner Admin Manager Member Viewer;
    /// Write any task.
    TasksWrite = "tasks:write": Owner Admin Manager;
    /// Write tasks that one made or is assigned to, and those of one's projects.
    TasksWriteOwn = "tasks:write_own": Owner Admin Manager Member;
    /// See what is said about tasks.
    CommentsRead = "comments:read": Owner Admin Manager Member Viewer;
    /// Remove what others said about tasks.
    CommentsWrite = "comments:write": Owner Admin Manager;
    /// Comment on tasks of one's projects.
    CommentsWriteOwn = "comments:write_own": Owner Admin Manager Member;
    /// See what is talked about in projects.
    MessagesRead = "messages:read": Owner Admin Manager Member Viewer;
    /// Remove others' messages.
    MessagesWrite = "messages:write": Owner Admin Manager;
    /// Talk in one's projects.
    MessagesWriteOwn = "messages:write_own": Owner Admin Manager Member;
    /// See and download files.
    FilesRead = "files:read": Owner Admin Manager Member Viewer;
    /// Use and remove files that others uploaded.
    FilesWrite = "files:write": Owner Admin Manager;
    /// Upload files.
    FilesWriteOwn = "files:write_own": Owner Admin Manager Member;
    /// See announcements.
    UpdatesRead = "updates:read": Owner Admin Manager Member Viewer;
    /// Write announcements.
    UpdatesWrite = "updates:write": Owner Admin Manager;
}

impl Permission {
    /// The module that an organization must have for it to be worth something; `None` for what all of them
    /// have.
    pub fn module(self) -> Option<&'static str> {
        match self {
            Permission::UpdatesRead | Permission::UpdatesWrite => Some("operations"),
            _ => None,
        }
    }

    /// `x:write` includes `x:write_own`, and who pays sees what.
    fn includes(self) -> Option<Permission> {
        if self == Permission::BillingManage {
            return Some(Permission::BillingRead);
        }
        self.as_ref().strip_suffix(":write").and_then(|resource| format!("{resource}:write_own").parse().ok())
    }
}

/// What takes a person: an API key cannot be given these.
const NOT_FOR_KEYS: [Permission; 5] = [
    Permission::NotificationsRead,
    Permission::OrganizationDelete,
    Permission::OrganizationTransfer,
    Permission::OrganizationLeave,
    Permission::ApiKeysManage,
];

impl Permission {
    /// Whether it can be a scope of an API key.
    pub fn is_scope(self) -> bool {
        !NOT_FOR_KEYS.contains(&self)
    }
}

/// The permissions of these names; those that this version does not know (any more) give nothing.
pub fn known(names: &[String]) -> Vec<Permission> {
    names.iter().filter_map(|name| name.parse().ok()).collect()
}

impl Role {
    /// What the role may do, before grants and denials.
    pub fn permissions(self) -> PermissionSet {
        Permission::ALL.iter().copied().filter(|permission| holders(*permission).contains(&self)).collect()
    }

    /// Whether somebody with this role may give or change that one: nobody rules over a higher role,
    /// and only owners make and unmake owners. Roles are ordered from the highest down.
    pub fn rules(self, other: Role) -> bool {
        self == Role::Owner || (other != Role::Owner && self <= other)
    }
}

/// A set of permissions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PermissionSet(u64);

impl PermissionSet {
    pub fn contains(self, permission: Permission) -> bool {
        self.0 & (1 << permission as u64) != 0
    }

    /// The permissions of a role with a member's own grants added and denials taken away. A grant of
    /// `x:write` brings `x:write_own`; a denial of one takes the other with it.
    pub fn effective(role: Role, grants: &[Permission], denials: &[Permission]) -> Self {
        let with_included = |set: &[Permission]| -> PermissionSet {
            set.iter().flat_map(|permission| [Some(*permission), permission.includes()]).flatten().collect()
        };
        if grants.is_empty() && denials.is_empty() {
            return role.permissions();
        }
        let denied = with_included(denials);
        let all = Self(role.permissions().0 | with_included(grants).0);
        all.iter()
            .filter(|p| !denied.contains(*p) && !p.includes().is_some_and(|own| denied.contains(own)))
            .collect()
    }

    /// What a key with these scopes may do at most.
    pub fn of_key(scopes: &[Permission]) -> Self {
        let included = scopes.iter().filter_map(|scope| scope.includes());
        scopes.iter().copied().chain(included).filter(|permission| permission.is_scope()).collect()
    }

    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub fn iter(self) -> impl Iterator<Item = Permission> {
        Permission::ALL.iter().copied().filter(move |permission| self.contains(*permission))
    }
}

impl FromIterator<Permission> for PermissionSet {
    fn from_iter<I: IntoIterator<Item = Permission>>(permissions: I) -> Self {
        Self(permissions.into_iter().fold(0, |set, permission| set | 1 << permission as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_may_everything_and_a_viewer_only_reads() {
        assert_eq!(Role::Owner.permissions(), Permission::ALL.iter().copied().collect());
        assert!(Role::Viewer.permissions().iter().all(|permission| {
            permission.as_ref().ends_with(":read") || permission == Permission::OrganizationLeave
        }));
        assert!(!Role::Admin.permissions().contains(Permission::BillingManage));
        assert!(!Role::Manager.permissions().contains(Permission::SettingsManage));
    }

    #[test]
    fn grants_and_denials_stand_beside_the_role() {
        let granted = PermissionSet::effective(Role::Viewer, &[Permission::TasksWrite], &[]);
        assert!(granted.contains(Permission::TasksWrite) && granted.contains(Permission::TasksWriteOwn));
        let denied = PermissionSet::effective(Role::Manager, &[], &[Permission::TasksWrite]);
        assert!(!denied.contains(Permission::TasksWrite) && !denied.contains(Permission::TasksWriteOwn));
        assert!(denied.contains(Permission::ProjectsWrite));
    }
}
