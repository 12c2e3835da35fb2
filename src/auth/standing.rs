//! Whether somebody who was let in may still be: for connections that outlive a request.

use std::net::IpAddr;

use uuid::Uuid;

use super::{
    api_keys,
    gate::membership,
    permissions::{PermissionSet, Role, known},
};
use crate::{app::App, db::Tx, error::Result, tenancy::fleet};

/// Who was let in, and by what.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    pub user: Uuid,
    pub organization: Uuid,
    /// One of the two is there.
    pub session: Option<Uuid>,
    pub key: Option<Uuid>,
    /// Where the connection comes from; a key may be good from some places only.
    pub address: Option<IpAddr>,
}

impl Standing {
    /// Whether a change of access that names this id concerns it.
    pub fn concerns(&self, id: Uuid) -> bool {
        self.user == id || self.organization == id || self.session == Some(id) || self.key == Some(id)
    }
}

/// Says, once this is committed, that a user, session or key may do less or more than before.
pub async fn changed(tx: &Tx, id: Uuid) -> Result<()> {
    tx.access_changed(id).await
}

/// What each of them may do now; `None` for those who are not let in any more. The same rules as the
/// gates', for many at once.
pub async fn now(app: &App, asked: &[Standing]) -> Result<Vec<Option<PermissionSet>>> {
    let numbers: Vec<i32> = (0..asked.len() as i32).collect();
    let users: Vec<Uuid> = asked.iter().map(|one| one.user).collect();
    let organizations: Vec<Uuid> = asked.iter().map(|one| one.organization).collect();
    let sessions: Vec<Option<Uuid>> = asked.iter().map(|one| one.session).collect();
    let keys: Vec<Option<Uuid>> = asked.iter().map(|one| one.key).collect();
    let tx = app.db.begin().await?;
    let rows = tx
        .query(
            "select w.n, m.role, m.grants, m.denials, k.scopes, k.allowed_ips, u.mfa_enabled_at is not null as mfa \
             from unnest($1::int[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[]) \
               as w (n, user_id, organization_id, session_id, key_id) \
             join platform.users u on u.id = w.user_id and u.is_active \
             join platform.organization_members m on m.organization_id = w.organization_id \
               and m.user_id = w.user_id and m.is_active \
             left join platform.sessions s on s.id = w.session_id and s.user_id = w.user_id and s.revoked_at is null \
               and s.expires_at > $6 \
             left join platform.api_keys k on k.id = w.key_id and k.created_by = w.user_id and k.revoked_at is null \
               and (k.expires_at is null or k.expires_at > $6) \
             where s.id is not null or k.id is not null",
            &[&numbers, &users, &organizations, &sessions, &keys, &app.clock.now()],
        )
        .await?;
    drop(tx);
    let mut answers = vec![None; asked.len()];
    for row in &rows {
        let n = row.try_get::<_, i32>("n")? as usize;
        let role: Role = row.try_get("role")?;
        let own = membership(row, role)?;
        let scopes: Option<Vec<String>> = row.try_get("scopes")?;
        let permissions =
            scopes.map_or(own, |scopes| own.intersection(PermissionSet::of_key(&known(&scopes))));
        let allowed: Option<Vec<String>> = row.try_get("allowed_ips")?;
        if !api_keys::may_come_from(&allowed.unwrap_or_default(), asked[n].address) {
            continue;
        }
        let tenant = fleet::tenant_by_id(&app.directory, asked[n].organization).await?;
        let open = tenant.is_some_and(|tenant| {
            !tenant.is_deleted()
                && !tenant.is_suspended()
                && (!tenant.requires_mfa() || row.try_get("mfa").unwrap_or(false))
        });
        answers[n] = open.then_some(permissions);
    }
    Ok(answers)
}
