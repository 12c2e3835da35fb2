//! API keys: how programs get in, with the scopes that somebody gave them.

use chrono::{DateTime, TimeDelta, Utc};
use ipnet::IpNet;
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::{Example, MaybeUndefined},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::{
    accounts::security_events::{self, About, SecurityEventType},
    api::Tag,
    audit::{Actor, Changes},
    auth::{
        Can, KeyHolder, Member, Permission, Public,
        api_keys::{self, Environment},
        permissions::{ApiKeysManage, known},
        standing,
    },
    db::{Row, Select, TenantTx, Tx},
    error::{Error, Result},
    events::{self, EventType},
    http::{Body, Created, IfMatch, Json, NoContent, Single, Versioned},
    mail::{self, Letter},
    page::{ListCursor, Order, Page, Paging},
    tenancy::fleet,
    types::{EXAMPLE_ID, Email, Name, Prose, change, change_optional, example, example_time, text_enum},
};

text_enum! {
    /// Whether a key works.
    ApiKeyState { Active = "active", Expired = "expired", Revoked = "revoked" }
}

/// A key; the key itself is shown once, when it is made.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct ApiKey {
    pub id: Uuid,
    pub name: Name,
    pub description: Option<Prose>,
    pub environment: Environment,
    /// How the key begins.
    pub hint: String,
    pub scopes: Vec<Permission>,
    /// Requests that it may send in an hour.
    pub rate_per_hour: i32,
    /// Networks that it may be used from; empty is everywhere.
    pub allowed_ips: Vec<String>,
    pub state: ApiKeyState,
    pub expires_at: Option<DateTime<Utc>>,
    /// To within some seconds.
    pub last_used_at: Option<DateTime<Utc>>,
    pub last_used_address: Option<String>,
    /// The key that takes its place, if it was rotated.
    pub successor_id: Option<Uuid>,
    /// It may do no more than this member.
    pub created_by: Uuid,
    pub created_at: DateTime<Utc>,
    pub revoked_at: Option<DateTime<Utc>>,
    pub revoked_because: Option<String>,
    #[serde(skip)]
    #[oai(skip)]
    pub version: i64,
}

impl Versioned for ApiKey {
    fn version(&self) -> i64 {
        self.version
    }
}

impl Example for ApiKey {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            name: example("Import from the shop"),
            description: None,
            environment: Environment::Live,
            hint: "rh_live_4fQz".into(),
            scopes: vec![Permission::ProjectsRead, Permission::TasksWrite],
            rate_per_hour: 1000,
            allowed_ips: vec!["203.0.113.0/24".into()],
            state: ApiKeyState::Active,
            expires_at: None,
            last_used_at: Some(example_time()),
            last_used_address: Some("203.0.113.7".into()),
            successor_id: None,
            created_by: EXAMPLE_ID,
            created_at: example_time(),
            revoked_at: None,
            revoked_because: None,
            version: 1,
        }
    }
}

/// A new key, with the key itself: it is not shown again.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct NewlyMadeApiKey {
    pub key: String,
    #[serde(flatten)]
    #[oai(flatten)]
    pub about: ApiKey,
}

impl Versioned for NewlyMadeApiKey {
    fn version(&self) -> i64 {
        self.about.version
    }
}

impl Example for NewlyMadeApiKey {
    fn example() -> Self {
        Self { key: "rh_live_4fQzExampleExampleExampleEx0a1b2c3".into(), about: ApiKey::example() }
    }
}

/// A key to be made.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct NewApiKey {
    pub name: Name,
    pub description: Option<Prose>,
    /// `live` where it is absent.
    pub environment: Option<Environment>,
    /// What it may do; nothing that its maker may not.
    pub scopes: Vec<Permission>,
    /// 1 to 1000000; 1000 where it is absent.
    pub rate_per_hour: Option<i32>,
    pub expires_at: Option<DateTime<Utc>>,
    /// Addresses or networks that it may be used from, at most 50.
    pub allowed_ips: Option<Vec<String>>,
}

impl Example for NewApiKey {
    fn example() -> Self {
        Self {
            name: example("Import from the shop"),
            description: None,
            environment: Some(Environment::Live),
            scopes: vec![Permission::ProjectsRead],
            rate_per_hour: None,
            expires_at: None,
            allowed_ips: None,
        }
    }
}

/// What changes; what is absent stays, null empties.
#[derive(Debug, Default, Deserialize, Object)]
#[serde(deny_unknown_fields, default)]
#[oai(deny_unknown_fields, example)]
pub struct ApiKeyChange {
    pub name: MaybeUndefined<Name>,
    pub description: MaybeUndefined<Prose>,
    pub scopes: MaybeUndefined<Vec<Permission>>,
    pub rate_per_hour: MaybeUndefined<i32>,
    pub expires_at: MaybeUndefined<DateTime<Utc>>,
    pub allowed_ips: MaybeUndefined<Vec<String>>,
}

impl Example for ApiKeyChange {
    fn example() -> Self {
        Self { name: MaybeUndefined::Value(example("Import from both shops")), ..Self::default() }
    }
}

/// How a key is replaced.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct ApiKeyRotation {
    /// Hours for which both keys work, 0 to 168; 24 where it is absent.
    pub overlap_hours: Option<u32>,
}

impl Example for ApiKeyRotation {
    fn example() -> Self {
        Self { overlap_hours: Some(24) }
    }
}

/// What a key is and may do.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct WhoAmI {
    pub key_id: Uuid,
    pub organization_id: Uuid,
    pub name: Name,
    pub environment: Environment,
    /// The scopes of the key, as far as its maker may still do them.
    pub permissions: Vec<Permission>,
    pub rate_per_hour: i32,
    pub expires_at: Option<DateTime<Utc>>,
}

impl Example for WhoAmI {
    fn example() -> Self {
        let key = ApiKey::example();
        Self {
            key_id: key.id,
            organization_id: EXAMPLE_ID,
            name: key.name,
            environment: key.environment,
            permissions: key.scopes,
            rate_per_hour: key.rate_per_hour,
            expires_at: key.expires_at,
        }
    }
}

/// A key that was found where it should not be.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct LeakedKey {
    pub key: String,
    /// Where it was found.
    pub source: Option<Name>,
}

impl Example for LeakedKey {
    fn example() -> Self {
        Self {
            key: "rh_live_4fQzExampleExampleExampleEx0a1b2c3".into(),
            source: Some(example("https://code.example.com/shop/config.py")),
        }
    }
}

pub struct ApiKeysApi;

#[OpenApi(tag = "Tag::ApiKeys")]
impl ApiKeysApi {
    /// List API keys, the newest first.
    #[oai(path = "/api-keys", method = "get", operation_id = "list_api_keys")]
    async fn list(
        &self,
        who: Can<ApiKeysManage>,
        page: Query<Option<u32>>,
        page_size: Query<Option<u32>>,
        cursor: Query<Option<ListCursor>>,
        /// Keys that do not work any more, instead of those that do.
        ended: Query<Option<bool>>,
    ) -> Result<Json<Page<ApiKey>>> {
        let paging = Paging::new(page.0, page_size.0, cursor.0)?;
        let now = who.app.clock.now();
        let organization = who.tenant.id();
        let tx = who.begin().await?;
        let select = Select::new(COLUMNS, "platform.api_keys").and("organization_id = ?", &organization);
        let select = match ended.0 {
            Some(true) => select.and("(revoked_at is not null or expires_at <= ?)", &now),
            _ => select.and("revoked_at is null and (expires_at is null or expires_at > ?)", &now),
        };
        let page = select
            .page(&tx, &Order::down("created_at", "timestamptz", "id"), &paging, |row| from_row(row, now))
            .await?;
        Ok(Json(page))
    }

    /// Make an API key.
    ///
    /// The key is in the answer and nowhere else. It can do what its scopes say and its maker may,
    /// and ends with its maker's membership.
    #[oai(path = "/api-keys", method = "post", operation_id = "create_api_key")]
    async fn create(
        &self,
        who: Can<ApiKeysManage>,
        new: Body<NewApiKey>,
    ) -> Result<Created<NewlyMadeApiKey>> {
        let new = new.0;
        let now = who.app.clock.now();
        let about = ApiKey {
            id: Uuid::now_v7(),
            name: new.name,
            description: new.description,
            environment: new.environment.unwrap_or(Environment::Live),
            hint: String::new(),
            scopes: new.scopes,
            rate_per_hour: new.rate_per_hour.unwrap_or(1000),
            allowed_ips: new.allowed_ips.unwrap_or_default(),
            state: ApiKeyState::Active,
            expires_at: new.expires_at,
            last_used_at: None,
            last_used_address: None,
            successor_id: None,
            created_by: who.user_id,
            created_at: now,
            revoked_at: None,
            revoked_because: None,
            version: 1,
        };
        let tx = who.begin().await?;
        let made = insert(&tx, &who, about).await?;
        tx.commit().await?;
        Ok(Created { location: format!("/api/v1/api-keys/{}", made.about.id), value: made })
    }

    /// See what the key of this request is and may do.
    #[oai(path = "/api-keys/whoami", method = "get", operation_id = "api_key_whoami")]
    async fn whoami(&self, who: KeyHolder) -> Result<Json<WhoAmI>> {
        let who = who.0;
        let key = who.key.ok_or_else(|| Error::internal("a key holder without a key"))?;
        let tx = who.begin().await?;
        let about = find(&tx, key.id, who.app.clock.now()).await?;
        Ok(Json(WhoAmI {
            key_id: about.id,
            organization_id: who.tenant.id(),
            name: about.name,
            environment: about.environment,
            permissions: who.permissions.iter().collect(),
            rate_per_hour: about.rate_per_hour,
            expires_at: about.expires_at,
        }))
    }

    /// See an API key.
    #[oai(path = "/api-keys/:key_id", method = "get", operation_id = "get_api_key")]
    async fn get(&self, who: Can<ApiKeysManage>, key_id: Path<Uuid>) -> Result<Single<ApiKey>> {
        let tx = who.begin().await?;
        Ok(Single(find(&tx, key_id.0, who.app.clock.now()).await?))
    }

    /// Change an API key.
    #[oai(path = "/api-keys/:key_id", method = "patch", operation_id = "update_api_key")]
    async fn update(
        &self,
        who: Can<ApiKeysManage>,
        key_id: Path<Uuid>,
        expected: IfMatch,
        to: Body<ApiKeyChange>,
    ) -> Result<Single<ApiKey>> {
        let now = who.app.clock.now();
        let tx = who.begin().await?;
        let mut key = find_to_change(&tx, key_id.0, now).await?;
        expected.check(key.version)?;
        let before = key.clone();
        change(&mut key.name, "name", to.0.name)?;
        change(&mut key.scopes, "scopes", to.0.scopes)?;
        change(&mut key.rate_per_hour, "rate_per_hour", to.0.rate_per_hour)?;
        change(&mut key.allowed_ips, "allowed_ips", to.0.allowed_ips)?;
        change_optional(&mut key.description, to.0.description);
        change_optional(&mut key.expires_at, to.0.expires_at);
        if before.successor_id.is_some() && key.expires_at != before.expires_at {
            return Err(Error::conflict("This key was rotated; its successor is the one to keep."));
        }
        check(&who, &mut key, Some(&before), now)?;
        key.version += 1;
        store(&tx, &key, now).await?;
        events::record(
            &tx,
            &who.app,
            &*who,
            EventType::ApiKeyUpdated,
            key.id,
            Changes::between(&before, &key),
        )
        .await?;
        tx.commit().await?;
        Ok(Single(key))
    }

    /// Revoke an API key; it is worth nothing from now on.
    #[oai(path = "/api-keys/:key_id", method = "delete", operation_id = "revoke_api_key")]
    async fn revoke(
        &self,
        who: Can<ApiKeysManage>,
        key_id: Path<Uuid>,
        expected: IfMatch,
    ) -> Result<NoContent> {
        let tx = who.begin().await?;
        let key = find_to_change(&tx, key_id.0, who.app.clock.now()).await?;
        expected.check(key.version)?;
        end(&tx, &who.app, key.id, "revoked").await?;
        events::record(&tx, &who.app, &*who, EventType::ApiKeyRevoked, key.id, Changes::none(&key)).await?;
        tell(&tx, &who, SecurityEventType::ApiKeyRevoked, key.created_by, key.id).await?;
        tx.commit().await?;
        Ok(NoContent)
    }

    /// Replace an API key by a new one.
    ///
    /// The new key does what the old one does; the old one works for as long as the overlap.
    #[oai(path = "/api-keys/:key_id/rotate", method = "post", operation_id = "rotate_api_key")]
    async fn rotate(
        &self,
        who: Can<ApiKeysManage>,
        key_id: Path<Uuid>,
        how: Body<ApiKeyRotation>,
    ) -> Result<Created<NewlyMadeApiKey>> {
        let hours = how.0.overlap_hours.unwrap_or(24);
        if hours > 168 {
            return Err(Error::invalid("overlap_hours", "must be from 0 to 168"));
        }
        let now = who.app.clock.now();
        let tx = who.begin().await?;
        let old = find_to_change(&tx, key_id.0, now).await?;
        if old.successor_id.is_some() {
            return Err(Error::conflict("This key was rotated already; rotate its successor."));
        }
        let about = ApiKey {
            id: Uuid::now_v7(),
            created_by: who.user_id,
            created_at: now,
            last_used_at: None,
            last_used_address: None,
            version: 1,
            ..old.clone()
        };
        let made = insert(&tx, &who, about).await?;
        standing::changed(&tx, old.id).await?;
        let until = now + TimeDelta::hours(hours.into());
        let until = old.expires_at.map_or(until, |expires| expires.min(until));
        tx.execute(
            "update platform.api_keys set successor_id = $2, expires_at = $3, version = version + 1, updated_at = $4 \
             where id = $1",
            &[&old.id, &made.about.id, &until, &now],
        )
        .await?;
        let after = ApiKey { successor_id: Some(made.about.id), expires_at: Some(until), ..old.clone() };
        events::record(
            &tx,
            &who.app,
            &*who,
            EventType::ApiKeyRotated,
            old.id,
            Changes::between(&old, &after),
        )
        .await?;
        tx.commit().await?;
        Ok(Created { location: format!("/api/v1/api-keys/{}", made.about.id), value: made })
    }

    /// Report a key that was found in public.
    ///
    /// A key that works is revoked and its owner told. The answer is the same for one that does not.
    #[oai(path = "/leaked-keys", method = "post", operation_id = "report_leaked_key")]
    async fn leaked(&self, anybody: Public, given: Body<LeakedKey>) -> Result<NoContent> {
        let app = &*anybody.app;
        let hash = api_keys::hash(given.0.key.trim()).ok_or_else(|| {
            Error::invalid("key", "This is not one of our keys: its checksum does not fit.")
        })?;
        let tx = app.db.begin().await?;
        let found = tx
            .query_opt(
                "select k.id, k.organization_id, k.created_by, k.hint, o.name as organization, u.email, u.first_name \
                 from platform.api_keys k join platform.organizations o on o.id = k.organization_id \
                 join platform.users u on u.id = k.created_by where k.hash = $1 and k.revoked_at is null",
                &[&hash],
            )
            .await?;
        drop(tx);
        let Some(row) = found else { return Ok(NoContent) };
        let Some(tenant) = fleet::tenant_by_id(&app.directory, row.try_get("organization_id")?).await? else {
            return Ok(NoContent);
        };
        let (id, owner): (Uuid, Uuid) = (row.try_get("id")?, row.try_get("created_by")?);
        let (email, name): (Email, String) = (row.try_get("email")?, row.try_get("first_name")?);
        let (organization, hint): (String, String) = (row.try_get("organization")?, row.try_get("hint")?);
        let tx = tenant.begin().await?;
        if end(&tx, app, id, "leaked").await? == 0 {
            return Ok(NoContent);
        }
        let source =
            given.0.source.map_or_else(|| "an unnamed place".to_owned(), |source| source.to_string());
        let about = About { user: Some(owner), organization: Some(tenant.id()) };
        let details = json!({"api_key_id": id, "because": "leaked", "source": source});
        let kind = SecurityEventType::ApiKeyRevoked;
        security_events::record(&tx, app, kind, about, &anybody.origin, details).await?;
        let reporter = Actor { origin: anybody.origin.clone(), ..Actor::system() };
        let key = find(&tx, id, app.clock.now()).await?;
        let found = Changes::none(&key).about("found_at", &source);
        events::record(&tx, app, reporter, EventType::ApiKeyLeaked, id, found).await?;
        let fields =
            [("name", name.as_str()), ("organization", &organization), ("key", &hint), ("address", &source)];
        mail::post(&tx, app, Letter::new(&email, "key_leaked", &fields)).await?;
        tx.commit().await?;
        Ok(NoContent)
    }
}

const COLUMNS: &str = "id, name, description, environment, hint, scopes, rate_per_hour, allowed_ips, expires_at, \
     last_used_at, last_used_address, successor_id, created_by, created_at, revoked_at, revoked_because, version";

fn from_row(row: &Row, now: DateTime<Utc>) -> Result<ApiKey> {
    let scopes: Vec<String> = row.try_get("scopes")?;
    let (expires_at, revoked_at): (Option<DateTime<Utc>>, Option<DateTime<Utc>>) =
        (row.try_get("expires_at")?, row.try_get("revoked_at")?);
    let state = match (revoked_at, expires_at) {
        (Some(_), _) => ApiKeyState::Revoked,
        (None, Some(expires)) if expires <= now => ApiKeyState::Expired,
        _ => ApiKeyState::Active,
    };
    Ok(ApiKey {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        description: row.try_get("description")?,
        environment: row.try_get("environment")?,
        hint: row.try_get("hint")?,
        scopes: known(&scopes),
        rate_per_hour: row.try_get("rate_per_hour")?,
        allowed_ips: row.try_get("allowed_ips")?,
        state,
        expires_at,
        last_used_at: row.try_get("last_used_at")?,
        last_used_address: row.try_get("last_used_address")?,
        successor_id: row.try_get("successor_id")?,
        created_by: row.try_get("created_by")?,
        created_at: row.try_get("created_at")?,
        revoked_at,
        revoked_because: row.try_get("revoked_because")?,
        version: row.try_get("version")?,
    })
}

pub async fn find(tx: &TenantTx, id: Uuid, now: DateTime<Utc>) -> Result<ApiKey> {
    let sql = format!("select {COLUMNS} from platform.api_keys where id = $1 and organization_id = $2");
    let row = tx.query_opt(&sql, &[&id, &tx.organization()]).await?;
    from_row(&row.ok_or_else(|| Error::not_found("API key"))?, now)
}

/// A key that works, with its row locked.
async fn find_to_change(tx: &TenantTx, id: Uuid, now: DateTime<Utc>) -> Result<ApiKey> {
    let sql = "select id from platform.api_keys where id = $1 and organization_id = $2 for update";
    tx.query(sql, &[&id, &tx.organization()]).await?;
    let key = find(tx, id, now).await?;
    if key.state != ApiKeyState::Active {
        return Err(Error::conflict(format!("This key is {}; make a new one.", key.state)));
    }
    Ok(key)
}

/// What must hold of a key, whoever writes it; scopes that it has already may stay.
fn check(who: &Member, key: &mut ApiKey, before: Option<&ApiKey>, now: DateTime<Utc>) -> Result<()> {
    key.scopes.sort();
    key.scopes.dedup();
    if key.scopes.is_empty() {
        return Err(Error::invalid("scopes", "must name at least one"));
    }
    for scope in &key.scopes {
        let had = before.is_some_and(|before| before.scopes.contains(scope));
        if !scope.is_scope() {
            return Err(Error::invalid("scopes", format!("{scope} takes a person; a key cannot have it")));
        }
        if !had && !who.may(*scope) {
            return Err(Error::denied(format!("You cannot give the scope {scope}, which you do not have.")));
        }
    }
    if !(1..=1_000_000).contains(&key.rate_per_hour) {
        return Err(Error::invalid("rate_per_hour", "must be from 1 to 1000000"));
    }
    let expired = key.expires_at.is_some_and(|expires| expires <= now);
    if expired && before.is_none_or(|before| before.expires_at != key.expires_at) {
        return Err(Error::invalid("expires_at", "must be in the future"));
    }
    if key.allowed_ips.len() > 50 {
        return Err(Error::invalid("allowed_ips", "may name at most 50 networks"));
    }
    for net in &mut key.allowed_ips {
        let parsed = net.parse::<IpNet>().or_else(|_| net.parse::<std::net::IpAddr>().map(IpNet::from));
        let parsed = parsed.map_err(|_| {
            Error::invalid("allowed_ips", format!("{net:?} is no address or network such as 203.0.113.0/24"))
        })?;
        *net = parsed.trunc().to_string();
    }
    Ok(())
}

async fn insert(tx: &TenantTx, who: &Member, mut about: ApiKey) -> Result<NewlyMadeApiKey> {
    check(who, &mut about, None, who.app.clock.now())?;
    // A removal that is under way is waited for, or waits: it must see this key.
    let member = tx
        .query_opt(
            "select 1 from platform.organization_members where organization_id = $1 and user_id = $2 and is_active \
             for share",
            &[&tx.organization(), &who.user_id],
        )
        .await?;
    member.ok_or_else(|| Error::denied("You are not a member any more."))?;
    let (key, hash) = api_keys::generate(about.environment)?;
    about.hint = api_keys::hint(&key);
    let scopes: Vec<&str> = about.scopes.iter().map(|scope| scope.name()).collect();
    tx.execute(
        "insert into platform.api_keys (id, organization_id, created_by, name, description, environment, hint, hash, \
         scopes, rate_per_hour, allowed_ips, expires_at, created_at, updated_at) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $13)",
        &[
            &about.id,
            &tx.organization(),
            &about.created_by,
            &about.name,
            &about.description,
            &about.environment,
            &about.hint,
            &hash,
            &scopes,
            &about.rate_per_hour,
            &about.allowed_ips,
            &about.expires_at,
            &about.created_at,
        ],
    )
    .await?;
    events::record(tx, &who.app, who, EventType::ApiKeyCreated, about.id, Changes::created(&about)).await?;
    tell(tx, who, SecurityEventType::ApiKeyCreated, who.user_id, about.id).await?;
    Ok(NewlyMadeApiKey { key, about })
}

async fn store(tx: &TenantTx, key: &ApiKey, now: DateTime<Utc>) -> Result<()> {
    standing::changed(tx, key.id).await?;
    let scopes: Vec<&str> = key.scopes.iter().map(|scope| scope.name()).collect();
    tx.execute(
        "update platform.api_keys set name = $2, description = $3, scopes = $4, rate_per_hour = $5, allowed_ips = $6, \
         expires_at = $7, version = $8, updated_at = $9 where id = $1",
        &[
            &key.id,
            &key.name,
            &key.description,
            &scopes,
            &key.rate_per_hour,
            &key.allowed_ips,
            &key.expires_at,
            &key.version,
            &now,
        ],
    )
    .await?;
    Ok(())
}

/// Revokes a key; says whether it worked until now.
pub async fn end(tx: &Tx, app: &crate::app::App, id: Uuid, because: &str) -> Result<u64> {
    standing::changed(tx, id).await?;
    tx.execute(
        "update platform.api_keys set revoked_at = $2, revoked_because = $3, version = version + 1 \
         where id = $1 and revoked_at is null",
        &[&id, &app.clock.now(), &because],
    )
    .await
}

async fn tell(tx: &TenantTx, who: &Member, kind: SecurityEventType, owner: Uuid, key: Uuid) -> Result<()> {
    let about = About { user: Some(owner), organization: Some(tx.organization()) };
    security_events::record(tx, &who.app, kind, about, &who.origin, json!({"api_key_id": key})).await
}
