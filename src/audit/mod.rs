//! The audit log: who did what, written in the transaction of the change, and sealed into a chain.
//!
//! An entry is written with the change that it tells of, and nobody waits for anybody to do it. A job
//! that follows gives each entry its place in the organization's chain and a seal: a MAC over the
//! seal before it and the entry. Whoever changes or removes a sealed entry, also with full rights on
//! the database, cannot make the seals fit without the service's key.

mod api;
mod reseal;
mod seal;

use futures_util::join;
use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

pub use api::{AuditApi, PlatformAuditEntry};
pub use reseal::reseal;
pub use seal::{Verdict, keep_sealing, seal_pending, verify};

use crate::{
    app::App,
    auth::{Member, Origin, Superuser, User},
    db::{TenantTx, ToSql, Tx},
    error::Result,
    events::EventType,
    types::text_enum,
};

text_enum! {
    /// Who acted.
    ActorKind {
        User = "user",
        /// A program with a key; `actor_id` is whoever made the key.
        ApiKey = "api_key",
        /// Staff of the platform.
        Superuser = "superuser",
        /// The service itself, or an operator at its command line.
        System = "system",
    }
}

/// Who acts, and from where.
#[derive(Clone, Debug)]
pub struct Actor {
    pub id: Option<Uuid>,
    pub kind: ActorKind,
    pub key: Option<Uuid>,
    pub origin: Origin,
}

impl Actor {
    pub fn user(id: Uuid, origin: Origin) -> Self {
        Self { id: Some(id), kind: ActorKind::User, key: None, origin }
    }

    /// The command line.
    pub fn system() -> Self {
        Self { id: None, kind: ActorKind::System, key: None, origin: Origin::default() }
    }
}

impl From<&Member> for Actor {
    fn from(who: &Member) -> Self {
        let kind = if who.key.is_some() { ActorKind::ApiKey } else { ActorKind::User };
        Self { id: Some(who.user_id), kind, key: who.key.map(|key| key.id), origin: who.origin.clone() }
    }
}

impl From<&User> for Actor {
    fn from(who: &User) -> Self {
        Self::user(who.id, who.origin.clone())
    }
}

impl From<&Superuser> for Actor {
    fn from(who: &Superuser) -> Self {
        Self { kind: ActorKind::Superuser, ..Self::from(&who.0) }
    }
}

/// What an act changed, field by field: `{"name": {"before": …, "after": …}}`, and the object that it
/// changed as it is after it, or was last.
pub struct Changes {
    fields: Value,
    object: Value,
}

impl Changes {
    /// Nothing changed about the object that this is about.
    pub fn none(object: &impl Serialize) -> Self {
        Self { fields: json!({}), object: masked(object).into() }
    }

    pub fn fields(&self) -> &Value {
        &self.fields
    }

    pub fn object(&self) -> &Value {
        &self.object
    }

    /// The same, with a field that did not change but says what it is about.
    pub fn about(mut self, field: &str, value: &str) -> Self {
        if let Value::Object(changes) = &mut self.fields {
            changes.entry(field).or_insert_with(|| json!({"before": value, "after": value}));
        }
        self
    }

    pub fn created(after: &impl Serialize) -> Self {
        Self::between(&Value::Null, after)
    }

    pub fn deleted(before: &impl Serialize) -> Self {
        Self::between(before, &Value::Null)
    }

    pub fn between(before: &impl Serialize, after: &impl Serialize) -> Self {
        let (before, after) = (fields_of(before), fields_of(after));
        let names: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        let mut changes = Map::new();
        for name in names.into_iter().filter(|name| *name != "updated_at") {
            let (old, new) = (before.get(name), after.get(name));
            if old.unwrap_or(&Value::Null) != new.unwrap_or(&Value::Null) {
                let show = |value: Option<&Value>| match value {
                    Some(value) if is_secret(name) && !value.is_null() => json!("********"),
                    other => other.cloned().unwrap_or_default(),
                };
                changes.insert(name.clone(), json!({"before": show(old), "after": show(new)}));
            }
        }
        let object = if after.is_empty() { before } else { after };
        Self { fields: Value::Object(changes), object: masked(&object).into() }
    }
}

fn fields_of(object: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(object) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

/// An object without its secrets.
fn masked(object: &impl Serialize) -> Map<String, Value> {
    let mut fields = fields_of(object);
    for (_, value) in fields.iter_mut().filter(|(name, value)| is_secret(name) && !value.is_null()) {
        *value = json!("********");
    }
    fields
}

fn is_secret(field: &str) -> bool {
    ["password", "secret", "token", "hash", "credential"].iter().any(|word| field.contains(word))
}

/// Writes an entry into the organization's log. `action` is `resource.what_happened`. What changes an
/// organization is recorded with `events::record`, which calls this.
pub async fn record(
    tx: &TenantTx,
    app: &App,
    who: &Actor,
    action: &str,
    resource: Uuid,
    changes: &Changes,
) -> Result<()> {
    let (id, organization) = (Uuid::now_v7(), tx.organization());
    let (now, address) = (app.clock.now(), who.origin.address_text());
    let entry: [&(dyn ToSql + Sync); 11] = [
        &id,
        &now,
        &who.id,
        &who.kind,
        &who.key,
        &action,
        &resource,
        &changes.fields,
        &who.origin.request_id,
        &address,
        &who.origin.agent,
    ];
    let unsealed: [&(dyn ToSql + Sync); 2] = [&id, &organization];
    let (entry, unsealed) = join!(
        tx.execute(
            "insert into audit_log (id, occurred_at, actor_id, actor_kind, api_key_id, action, resource_id, changes, \
             request_id, address, user_agent) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
            &entry,
        ),
        tx.execute(
            "insert into platform.audit_unsealed (entry_id, organization_id) values ($1, $2)",
            &unsealed,
        ),
    );
    entry.and(unsealed)?;
    Ok(())
}

/// The same for many changes at once.
pub async fn record_many(
    tx: &TenantTx,
    app: &App,
    who: &Actor,
    what: &[(EventType, Uuid, Changes)],
) -> Result<()> {
    if what.is_empty() {
        return Ok(());
    }
    let (organization, now, address) = (tx.organization(), app.clock.now(), who.origin.address_text());
    let ids: Vec<Uuid> = what.iter().map(|_| Uuid::now_v7()).collect();
    let actions: Vec<&str> = what.iter().map(|(kind, _, _)| kind.name()).collect();
    let resources: Vec<Uuid> = what.iter().map(|(_, resource, _)| *resource).collect();
    let fields: Vec<&Value> = what.iter().map(|(_, _, changes)| changes.fields()).collect();
    let entries: [&(dyn ToSql + Sync); 11] = [
        &ids,
        &now,
        &who.id,
        &who.kind,
        &who.key,
        &actions,
        &resources,
        &fields,
        &who.origin.request_id,
        &address,
        &who.origin.agent,
    ];
    let unsealed: [&(dyn ToSql + Sync); 2] = [&ids, &organization];
    let (entries, unsealed) = join!(
        tx.execute(
            "insert into audit_log (id, occurred_at, actor_id, actor_kind, api_key_id, action, resource_id, changes, \
             request_id, address, user_agent) select e.id, $2::timestamptz, $3::uuid, $4::text, $5::uuid, e.action, \
             e.resource, e.changes, $9::text, $10::text, $11::text from unnest($1::uuid[], $6::text[], $7::uuid[], \
             $8::jsonb[]) as e (id, action, resource, changes)",
            &entries,
        ),
        tx.execute(
            "insert into platform.audit_unsealed (entry_id, organization_id) select unnest($1::uuid[]), $2::uuid",
            &unsealed,
        ),
    );
    entries.and(unsealed)?;
    Ok(())
}

/// Writes an entry into the platform's own log, for what staff and operators do.
pub async fn record_platform(
    tx: &Tx,
    app: &App,
    who: impl Into<Actor>,
    action: &str,
    resource: Option<Uuid>,
    organization: Option<Uuid>,
    changes: &Changes,
) -> Result<()> {
    let who = who.into();
    tx.execute(
        "insert into platform.platform_audit (id, occurred_at, actor_id, action, resource_id, organization_id, \
         changes, request_id, address, user_agent) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        &[
            &Uuid::now_v7(),
            &app.clock.now(),
            &who.id,
            &action,
            &resource,
            &organization,
            &changes.fields,
            &who.origin.request_id,
            &who.origin.address_text(),
            &who.origin.agent,
        ],
    )
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_field_by_field_without_secrets() {
        let before = json!({"name": "Old", "same": 1, "token_hash": "abc", "gone": true, "updated_at": 1});
        let after = json!({"name": "New", "same": 1, "token_hash": "def", "password": "x", "updated_at": 2});
        let Changes { fields: told, .. } = Changes::between(&before, &after);
        assert_eq!(
            told,
            json!({
                "name": {"before": "Old", "after": "New"},
                "token_hash": {"before": "********", "after": "********"},
                "gone": {"before": true, "after": null},
                "password": {"before": null, "after": "********"},
            })
        );
        let Changes { fields: told, object } = Changes::created(&json!({"name": "New", "about": null}));
        assert_eq!(told, json!({"name": {"before": null, "after": "New"}}));
        assert_eq!(object, json!({"name": "New", "about": null}));
    }
}
