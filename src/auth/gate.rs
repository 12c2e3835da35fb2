//! The gates: parameters of handlers that let a request through or answer it.

use std::{marker::PhantomData, net::IpAddr, ops::Deref, sync::Arc};

use chrono::{DateTime, Utc};
use ipnet::IpNet;
use poem::{
    FromRequest, Request, RequestBody,
    http::{Method, header},
};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaSecurityScheme, Registry},
};
use serde_json::json;
use uuid::Uuid;

use super::{
    activity::Seen,
    api_keys,
    crowd::Inside,
    known::{By, Facts, KeyFacts},
    permissions::{Asks, Permission, PermissionSet, Role, known},
    sealing::hex,
    tickets::{self, Holder},
};
use crate::{
    api::{API_KEY, BEARER, PUBLIC, SUPERUSER},
    app::App,
    audit::{self, Changes},
    billing::{Plan, Resource, Use, check_writable, limits},
    db::{Row, TenantTx},
    error::{Code, Error, Result},
    http::{RequestId, Verdicts, client_address},
    limits::{Ask, Rate, Verdict},
    tenancy::{self, Tenant},
};

/// Somebody who is logged in, in no particular organization.
pub struct User {
    pub app: Arc<App>,
    pub id: Uuid,
    pub session: Uuid,
    pub origin: Origin,
}

/// A member of the organization that the request names, in person or by an API key.
pub struct Member {
    pub app: Arc<App>,
    /// With a key: whoever made it.
    pub user_id: Uuid,
    /// `None` with a key.
    pub session: Option<Uuid>,
    pub key: Option<Key>,
    pub role: Role,
    pub permissions: PermissionSet,
    pub tenant: Tenant,
    pub origin: Origin,
    /// The request's part in what is under way.
    pub inside: Option<Arc<Inside>>,
}

/// The API key that a request came with.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    pub id: Uuid,
}

impl Member {
    /// Opens a transaction in the organization's schema.
    pub async fn begin(&self) -> Result<TenantTx> {
        self.tenant.begin().await
    }

    pub fn may(&self, permission: Permission) -> bool {
        self.permissions.contains(permission)
    }
}

/// A member who holds the permission `P`.
///
/// With `INCLUDING_DELETED` the gate also opens for an organization that was deleted and can still
/// be restored.
pub struct Can<P, const INCLUDING_DELETED: bool = false>(Member, PhantomData<P>);

impl<P, const INCLUDING_DELETED: bool> Deref for Can<P, INCLUDING_DELETED> {
    type Target = Member;

    fn deref(&self) -> &Member {
        &self.0
    }
}

/// The same for a connection that stays: opened by a token, a key or a ticket.
pub struct Watching<P>(Member, PhantomData<P>);

impl<P> Deref for Watching<P> {
    type Target = Member;

    fn deref(&self) -> &Member {
        &self.0
    }
}

/// An API key, whatever it may do.
pub struct KeyHolder(pub Member);

/// Staff of the platform, who act across organizations, with a second factor.
pub struct Superuser(pub User);

/// Anybody. Written out so that a handler without a gate is seen to be wrong.
///
/// Counted against the address that asks, unless the handler counts otherwise.
pub struct Public<const COUNTED: bool = true> {
    pub app: Arc<App>,
    pub origin: Origin,
}

/// Where a request comes from, for limits and for the records.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    pub address: Option<IpAddr>,
    pub agent: Option<String>,
    pub request_id: Option<String>,
    /// Tells the caller how their limits stand.
    verdicts: Verdicts,
}

impl Origin {
    pub fn of(request: &Request, app: &App) -> Self {
        let cut = |text: &str| text.chars().filter(|c| !c.is_control()).take(300).collect();
        Self {
            address: client_address(request, &app.config.http.trusted_proxies),
            agent: request.header(header::USER_AGENT).map(cut),
            request_id: request.data::<RequestId>().map(|id| id.0.clone()),
            verdicts: request.data::<Verdicts>().cloned().unwrap_or_default(),
        }
    }

    /// Takes one from each limit, tells the caller how they stand, and refuses with 429 if one is
    /// used up.
    pub async fn limit(&self, app: &App, asks: &[Ask]) -> Result<()> {
        let verdicts = app.limits.take(asks).await;
        let judged = Self::judge(&verdicts);
        self.verdicts.add(verdicts);
        judged
    }

    /// The same without telling how the limits stand.
    pub async fn limit_quietly(&self, app: &App, asks: &[Ask]) -> Result<()> {
        Self::judge(&app.limits.take(asks).await)
    }

    /// Counts somebody without credentials, or with wrong ones, by address.
    pub async fn limit_stranger(&self, app: &App) -> Result<()> {
        let rate = app.config.limits.anonymous;
        self.limit(app, &[Ask { policy: "anonymous", key: self.subscriber(), rate }]).await
    }

    fn judge(verdicts: &[Verdict]) -> Result<()> {
        let refused = verdicts.iter().filter_map(|v| Some((v.policy, v.retry_after?))).max_by_key(|r| r.1);
        let Some((policy, seconds)) = refused else { return Ok(()) };
        metrics::counter!("rowhouse_rate_limited_total", "policy" => policy).increment(1);
        let told = format!("Too many requests ({policy}). Try again in {seconds} s.");
        Err(Error::new(Code::RateLimit, told).retry_after(seconds))
    }

    /// As it is stored.
    pub fn address_text(&self) -> Option<String> {
        self.address.map(|address| address.to_string())
    }

    /// Whom limits by address count: one host, or the network that one subscriber gets with IPv6.
    pub fn subscriber(&self) -> String {
        match self.address {
            Some(IpAddr::V6(address)) => IpNet::new(address.into(), 64)
                .map_or_else(|_| address.to_string(), |net| net.trunc().to_string()),
            Some(address) => address.to_string(),
            None => "unknown".into(),
        }
    }
}

/// The application that serves this request.
fn app(request: &Request) -> Result<Arc<App>> {
    request.data::<Arc<App>>().cloned().ok_or_else(|| Error::internal("the service carries no App"))
}

impl<const COUNTED: bool> Public<COUNTED> {
    /// Takes one from a limit of this operation's own, counted by address.
    pub async fn limit(&self, policy: &'static str, rate: Rate) -> Result<()> {
        self.origin.limit(&self.app, &[Ask { policy, key: self.origin.subscriber(), rate }]).await
    }
}

/// What a request brings to prove who sends it.
enum Credentials {
    Session { user: Uuid, session: Uuid, organization: Option<Uuid> },
    Key { hash: Vec<u8> },
}

impl Credentials {
    async fn of(request: &Request, app: &App) -> Result<Self> {
        let key = request.headers().get("x-api-key");
        let bearer = request.headers().get(header::AUTHORIZATION);
        if key.is_some() && bearer.is_some() {
            return Err(Error::new(Code::AuthFailed, "Send either Authorization or X-API-Key, not both."));
        }
        if let Some(key) = key {
            let hash = key.to_str().ok().and_then(|text| api_keys::hash(text.trim())).ok_or_else(bad_key)?;
            return Ok(Self::Key { hash });
        }
        let token = bearer
            .and_then(|value| value.to_str().ok()?.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .ok_or_else(|| {
                Error::new(
                    Code::AuthFailed,
                    "Log in first: send `Authorization: Bearer <access token>` or `X-API-Key: <key>`.",
                )
            })?;
        let claims = app.keys.verify(token, app.clock.now()).await?;
        Ok(Self::Session { user: claims.sub, session: claims.sid, organization: None })
    }

    /// The same where a ticket in the query will do as well.
    async fn of_watcher(request: &Request, app: &App) -> Result<Self> {
        let ticket = request.uri().query().into_iter().flat_map(|query| query.split('&'));
        let Some(ticket) = ticket.filter_map(|pair| pair.strip_prefix("ticket=")).next() else {
            return Self::of(request, app).await;
        };
        let Holder { user, session, organization } = tickets::redeem(app, ticket).await?;
        Ok(Self::Session { user, session, organization: Some(organization) })
    }

    /// Whom to count a request against that came to nothing.
    fn culprit(&self, app: &App) -> Ask {
        let rate = app.config.limits.user;
        match self {
            Self::Session { user, .. } => Ask { policy: "user", key: user.to_string(), rate },
            Self::Key { hash } => Ask { policy: "api_key", key: hex(&hash[..16]), rate },
        }
    }
}

/// Counts a request that failed: wrong credentials against the address that they come from, anything
/// else against whoever was recognised.
async fn count_failure(app: &App, origin: &Origin, known: Option<&Credentials>, error: &Error) -> Result<()> {
    match known {
        Some(credentials) if !matches!(error.code(), Code::AuthFailed | Code::TokenExpired) => {
            origin.limit(app, &[credentials.culprit(app)]).await
        }
        _ => origin.limit_stranger(app).await,
    }
}

fn bad_key() -> Error {
    Error::new(Code::AuthFailed, "This API key is not valid, was revoked or has expired.")
}

fn logged_out() -> Error {
    Error::new(Code::AuthFailed, "The session has ended. Log in again.")
}

/// Whether a gate counts the request against rate limits; `Idempotent` asks a gate a second time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Counting {
    Yes,
    No,
}

impl User {
    pub async fn enter(request: &Request, counting: Counting) -> Result<Self> {
        let app = app(request)?;
        let origin = Origin::of(request, &app);
        let outcome = Self::authenticate(request, &app, &origin).await;
        if counting == Counting::No {
            let (id, session) = outcome?;
            return Ok(Self { app, id, session, origin });
        }
        match outcome {
            Ok((id, session)) => {
                let rate = app.config.limits.user;
                origin.limit(&app, &[Ask { policy: "user", key: id.to_string(), rate }]).await?;
                Ok(Self { app, id, session, origin })
            }
            Err(error) => {
                count_failure(&app, &origin, None, &error).await?;
                Err(error)
            }
        }
    }

    async fn authenticate(request: &Request, app: &App, origin: &Origin) -> Result<(Uuid, Uuid)> {
        let Credentials::Session { user, session, .. } = Credentials::of(request, app).await? else {
            return Err(Error::new(Code::AuthFailed, "This needs a person: log in, an API key will not do."));
        };
        let by = By::Session { session, user, organization: Uuid::nil() };
        facts(app, by, async {
            let tx = app.db.begin().await?;
            let live = tx
                .query_opt(
                    "select u.mfa_enabled_at is not null as mfa \
                     from platform.sessions s join platform.users u on u.id = s.user_id \
                     where s.id = $1 and s.user_id = $2 and s.revoked_at is null and u.is_active",
                    &[&session, &user],
                )
                .await?
                .ok_or_else(logged_out)?;
            Ok(Facts {
                user,
                session: Some(session),
                key: None,
                role: None,
                is_active: false,
                has_mfa: live.try_get("mfa")?,
                permissions: PermissionSet::default(),
            })
        })
        .await?;
        app.activity.saw(Seen::Session(session), origin, app.clock.now());
        Ok((user, session))
    }
}

impl Superuser {
    pub async fn enter(request: &Request, counting: Counting) -> Result<Self> {
        let user = User::enter(request, counting).await?;
        let tx = user.app.db.begin().await?;
        let sql = "select is_superuser, mfa_enabled_at is not null as mfa from platform.users where id = $1";
        let row = tx.query_one(sql, &[&user.id]).await?;
        drop(tx);
        if !row.try_get::<_, bool>("is_superuser")? {
            return Err(Error::denied("This is for the platform's staff."));
        }
        if !row.try_get::<_, bool>("mfa")? {
            return Err(mfa_required("Staff need a second factor."));
        }
        let staff = Self(user);
        // What staff change is recorded with the change; what they look at, here.
        if counting == Counting::Yes && request.method() == Method::GET {
            let app = &*staff.0.app;
            let looked = Changes::created(&json!({"at": request.original_uri().to_string()}));
            let tx = app.db.begin().await?;
            audit::record_platform(&tx, app, &staff, "staff.looked", None, None, &looked).await?;
            tx.commit().await?;
        }
        Ok(staff)
    }
}

fn mfa_required(why: &str) -> Error {
    Error::new(Code::MfaRequired, format!("{why} Set one up at POST /api/v1/auth/mfa/totp."))
        .with_details(json!({"enroll": "/api/v1/auth/mfa/totp"}))
}

/// What is known of somebody, or what the database says.
async fn facts(app: &App, by: By, read: impl Future<Output = Result<Facts>>) -> Result<Arc<Facts>> {
    let access = app.db.access();
    if let Some(facts) = app.known.get(&by, access) {
        return Ok(facts);
    }
    let changes = access.changes();
    let facts = Arc::new(read.await?);
    app.known.put(by, &facts, access, changes);
    Ok(facts)
}

/// Somebody who asks, and the organization they ask about, before it is decided what they may do.
struct Found {
    facts: Arc<Facts>,
    tenant: Tenant,
}

impl Found {
    async fn of(request: &Request, app: &App, origin: &Origin, credentials: &Credentials) -> Result<Self> {
        match credentials {
            Credentials::Session { user, session, organization } => {
                let tenant = tenancy::resolve(request, app, *organization).await?;
                let by = By::Session { session: *session, user: *user, organization: tenant.id() };
                let facts = facts(app, by, Self::by_session(app, *user, *session, tenant.id())).await?;
                app.activity.saw(Seen::Session(*session), origin, app.clock.now());
                Ok(Self { facts, tenant })
            }
            Credentials::Key { hash } => {
                let now = app.clock.now();
                let facts = facts(app, By::Key(hash.clone()), Self::by_key(app, hash, now)).await?;
                let key = facts.key.as_ref().ok_or_else(bad_key)?;
                if key.expires_at.is_some_and(|end| end <= now) {
                    return Err(bad_key());
                }
                let tenant = tenancy::resolve(request, app, Some(key.organization)).await?;
                if !api_keys::may_come_from(&key.allowed_ips, origin.address) {
                    return Err(Error::denied("This API key may not be used from your address."));
                }
                app.activity.saw(Seen::Key(key.key.id), origin, now);
                Ok(Self { facts, tenant })
            }
        }
    }

    async fn by_session(app: &App, user: Uuid, session: Uuid, organization: Uuid) -> Result<Facts> {
        let tx = app.db.begin().await?;
        let row = tx
            .query_opt(
                "select m.role, m.grants, m.denials, m.is_active, u.mfa_enabled_at is not null as mfa \
                 from platform.sessions s join platform.users u on u.id = s.user_id \
                 left join platform.organization_members m on m.user_id = u.id and m.organization_id = $3 \
                 where s.id = $1 and s.user_id = $2 and s.revoked_at is null and u.is_active",
                &[&session, &user, &organization],
            )
            .await?
            .ok_or_else(logged_out)?;
        let role: Option<Role> = row.try_get("role")?;
        let (is_active, permissions) = match role {
            Some(role) => (row.try_get("is_active")?, membership(&row, role)?),
            None => (false, PermissionSet::default()),
        };
        let has_mfa = row.try_get("mfa")?;
        Ok(Facts { user, session: Some(session), key: None, role, is_active, has_mfa, permissions })
    }

    /// A key is worth nothing without its maker's active membership, whatever its own row says.
    async fn by_key(app: &App, hash: &[u8], now: DateTime<Utc>) -> Result<Facts> {
        let tx = app.db.begin().await?;
        let row = tx
            .query_opt(
                "select k.id, k.organization_id, k.created_by, k.scopes, k.rate_per_hour, k.allowed_ips, \
                 k.expires_at, m.role, m.grants, m.denials, u.mfa_enabled_at is not null as mfa \
                 from platform.api_keys k join platform.users u on u.id = k.created_by and u.is_active \
                 join platform.organization_members m \
                 on m.organization_id = k.organization_id and m.user_id = k.created_by and m.is_active \
                 where k.hash = $1 and k.revoked_at is null and (k.expires_at is null or k.expires_at > $2)",
                &[&hash, &now],
            )
            .await?
            .ok_or_else(bad_key)?;
        let role: Role = row.try_get("role")?;
        let key = KeyFacts {
            key: Key { id: row.try_get("id")? },
            rate: Rate::per_hour(row.try_get::<_, i32>("rate_per_hour")?.unsigned_abs()),
            organization: row.try_get("organization_id")?,
            scopes: PermissionSet::of_key(&known(&row.try_get::<_, Vec<String>>("scopes")?)),
            allowed_ips: row.try_get("allowed_ips")?,
            expires_at: row.try_get("expires_at")?,
        };
        Ok(Facts {
            user: row.try_get("created_by")?,
            session: None,
            key: Some(key),
            role: Some(role),
            is_active: true,
            has_mfa: row.try_get("mfa")?,
            permissions: membership(&row, role)?,
        })
    }

    fn limits(&self, app: &App) -> [Ask; 2] {
        let caller = match &self.facts.key {
            Some(key) => Ask { policy: "api_key", key: key.key.id.to_string(), rate: key.rate },
            None => Ask { policy: "user", key: self.facts.user.to_string(), rate: app.config.limits.user },
        };
        let rate = self.tenant.plan().rate(&app.config.limits);
        [caller, Ask { policy: "organization", key: self.tenant.id().to_string(), rate }]
    }
}

/// What a membership brings.
pub(super) fn membership(row: &Row, role: Role) -> Result<PermissionSet> {
    let listed = |column: &str| Ok::<_, Error>(known(&row.try_get::<_, Vec<String>>(column)?));
    Ok(PermissionSet::effective(role, &listed("grants")?, &listed("denials")?))
}

impl Member {
    /// Lets a member through who holds the permission that is `asked`, if any is.
    pub async fn enter(
        request: &Request,
        asked: Option<Permission>,
        including_deleted: bool,
        counting: Counting,
    ) -> Result<Self> {
        let app = app(request)?;
        let credentials = Credentials::of(request, &app).await;
        Self::enter_with(request, &app, credentials, asked, including_deleted, counting).await
    }

    async fn enter_with(
        request: &Request,
        app: &Arc<App>,
        credentials: Result<Credentials>,
        asked: Option<Permission>,
        including_deleted: bool,
        counting: Counting,
    ) -> Result<Self> {
        let origin = Origin::of(request, app);
        let (known, outcome) = match credentials {
            Ok(credentials) => {
                let outcome =
                    Self::admit(request, app, &origin, &credentials, asked, including_deleted).await;
                (Some(credentials), outcome)
            }
            Err(error) => (None, Err(error)),
        };
        match outcome {
            Ok((mut member, limits)) => {
                if counting == Counting::Yes {
                    // What programs have used up must not use up what people have together.
                    let used_up = member.used_up();
                    let limits = if used_up.is_some() { &limits[..1] } else { &limits[..] };
                    origin.limit(app, limits).await?;
                    if let Some(refusal) = used_up {
                        return Err(refusal);
                    }
                    member.make_way()?;
                    member.count(request);
                }
                Ok(member)
            }
            Err(error) => {
                if counting == Counting::Yes {
                    count_failure(app, &origin, known.as_ref(), &error).await?;
                }
                Err(error)
            }
        }
    }

    /// Keeps one organization from taking up the service: so many requests at a time, and so much of the
    /// database's time.
    fn make_way(&mut self) -> Result<()> {
        let crowded = |policy: &'static str, told: String, seconds: u32| {
            metrics::counter!("rowhouse_rate_limited_total", "policy" => policy).increment(1);
            Error::new(Code::RateLimit, told).retry_after(seconds)
        };
        if let Some(wait) = self.tenant.overdrawn() {
            let seconds = wait.as_secs_f64().ceil().min(60.0) as u32;
            let told =
                format!("This organization takes too much of the database's time. Try again in {seconds} s.");
            return Err(crowded("database_time", told, seconds));
        }
        // Those who wait for it to change places pile up, which is nobody's fault.
        let most = if self.tenant.is_paused() { 0 } else { self.app.config.limits.concurrent };
        self.inside = self.app.crowd.enter(self.tenant.id(), most).map(Arc::new);
        match self.inside {
            Some(_) => Ok(()),
            None => {
                let told = format!(
                    "More than {most} requests of this organization are under way. Try again in 1 s."
                );
                Err(crowded("concurrent", told, 1))
            }
        }
    }

    /// The refusal where a program asks for more than the plan allows it in a month. What is known of that
    /// is as old as the last flush of the meter.
    fn used_up(&self) -> Option<Error> {
        let (limit, now) = (self.tenant.api_calls().filter(|_| self.key.is_some())?, self.app.clock.now());
        let used = self.app.meter.calls(self.tenant.id(), now).filter(|used| *used >= limit)?;
        let there = Use { resource: Resource::ApiCalls, used, limit: Some(limit) };
        let plan = self.tenant.plan();
        let larger = Plan::ALL.iter().copied().find(|larger| *larger > plan);
        Some(limits::reached(&self.app, &there, limit, plan, larger))
    }

    /// Counts the request.
    fn count(&self, request: &Request) {
        let path = request.original_uri().path();
        let path = path.strip_prefix("/api/v1").unwrap_or(path).trim_start_matches('/');
        let group = path.split('/').next().unwrap_or_default();
        let (key, now) = (self.key.map(|key| key.id), self.app.clock.now());
        self.app.meter.count(self.tenant.id(), key, group, now);
    }

    /// The member behind the credentials, and the limits that they come under.
    async fn admit(
        request: &Request,
        app: &Arc<App>,
        origin: &Origin,
        credentials: &Credentials,
        asked: Option<Permission>,
        including_deleted: bool,
    ) -> Result<(Self, [Ask; 2])> {
        let found = Found::of(request, app, origin, credentials).await?;
        // To somebody outside it, an organization does not exist.
        let (facts, tenant) = (&*found.facts, &found.tenant);
        let Some(role) = facts.role else {
            return Err(tenancy::unknown());
        };
        if tenant.is_deleted() && !including_deleted {
            return Err(tenancy::unknown());
        }
        if !facts.is_active {
            return Err(Error::denied("Your membership of this organization is deactivated."));
        }
        if tenant.is_suspended() {
            return Err(Error::new(
                Code::TenantSuspended,
                "This organization is suspended. Contact support.",
            ));
        }
        if tenant.requires_mfa() && !facts.has_mfa {
            return Err(mfa_required("This organization requires a second factor of its members."));
        }
        let own = facts.permissions;
        let permissions = facts.key.as_ref().map_or(own, |key| own.intersection(key.scopes));
        if let Some(asked) = asked
            && !permissions.contains(asked)
        {
            return Err(Error::denied(match facts.key {
                Some(_) => format!("This needs the permission {asked}, which this API key does not have."),
                None => format!("This needs the permission {asked}, which your role {role} does not have."),
            }));
        }
        if let Some(module) = asked.and_then(Permission::module)
            && !tenant.has_module(module)
        {
            return Err(not_enabled(tenant, module));
        }
        if !goes_on_unpaid(request.method(), asked) {
            check_writable(app, tenant)?;
        }
        let limits = found.limits(app);
        let Facts { user: user_id, session, .. } = *found.facts;
        let key = facts.key.as_ref().map(|key| key.key);
        let (app, origin, tenant) = (app.clone(), origin.clone(), found.tenant.clone());
        Ok((Self { app, user_id, session, key, role, permissions, tenant, origin, inside: None }, limits))
    }
}

fn not_enabled(tenant: &Tenant, module: &str) -> Error {
    let enable = format!("/api/v1/organizations/{}/modules/{module}", tenant.id());
    Error::new(
        Code::ModuleNotEnabled,
        format!("This organization does not have the module {module}. Whoever manages its settings can PUT {enable}."),
    )
    .with_details(json!({"module": module, "enable": enable}))
}

/// What goes on in an organization that owes a payment: to read, to pay or make somebody else who can, to
/// go, and to shut out.
fn goes_on_unpaid(method: &Method, asked: Option<Permission>) -> bool {
    use Permission as P;
    let shuts_out = *method == Method::DELETE;
    let reads = matches!(*method, Method::GET | Method::HEAD);
    reads
        || asked.is_some_and(|asked| match asked {
            P::BillingManage | P::MembersManage => true,
            P::OrganizationDelete | P::OrganizationLeave | P::OrganizationTransfer => true,
            P::ApiKeysManage | P::MembersInvite | P::WebhooksManage | P::SettingsManage => shuts_out,
            other => other.as_ref().ends_with(":read"),
        })
}

fn register_key(registry: &mut Registry) {
    registry.create_security_scheme(
        API_KEY,
        MetaSecurityScheme {
            ty: "apiKey",
            description: Some("An API key of the organization."),
            name: Some("X-API-Key"),
            key_in: Some("header"),
            scheme: None,
            bearer_format: None,
            flows: None,
            openid_connect_url: None,
        },
    );
}

fn register_bearer(registry: &mut Registry) {
    registry.create_security_scheme(
        BEARER,
        MetaSecurityScheme {
            ty: "http",
            description: Some("The access token from register, login or refresh."),
            name: None,
            key_in: None,
            scheme: Some("bearer"),
            bearer_format: Some("JWT"),
            flows: None,
            openid_connect_url: None,
        },
    );
}

/// Makes a gate out of a type: how it enters, and what it asks for in the document, where the mark
/// beside the credentials becomes `x-permission`.
macro_rules! gate {
    ([$($generics:tt)*] $type:ty, $schemes:expr, |$request:ident| $enter:expr) => {
        impl<'a, $($generics)*> ApiExtractor<'a> for $type {
            const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
            type ParamType = ();
            type ParamRawType = ();

            fn register(registry: &mut Registry) {
                register_bearer(registry);
                register_key(registry);
            }

            fn security_schemes() -> Vec<&'static str> {
                $schemes
            }

            async fn from_request(
                $request: &'a Request,
                _body: &mut RequestBody,
                _options: ExtractParamOptions<()>,
            ) -> poem::Result<Self> {
                Ok($enter)
            }
        }
    };
}

gate!([P: Asks, const INCLUDING_DELETED: bool] Can<P, INCLUDING_DELETED>,
vec![BEARER, P::PERMISSION.name()],
|request| Self(
    Member::enter(request, Some(P::PERMISSION), INCLUDING_DELETED, Counting::Yes).await?,
    PhantomData
));
gate!([P: Asks] Watching<P>, vec![BEARER, P::PERMISSION.name()], |request| {
    let app = app(request)?;
    let credentials = Credentials::of_watcher(request, &app).await;
    let asked = Some(P::PERMISSION);
    let mut member = Member::enter_with(request, &app, credentials, asked, false, Counting::Yes).await?;
    // It stays; other limits hold for those.
    member.inside = None;
    Self(member, PhantomData)
});
gate!([] User, vec![BEARER], |request| Self::enter(request, Counting::Yes).await?);
gate!([] Superuser, vec![BEARER, SUPERUSER], |request| Self::enter(request, Counting::Yes).await?);
gate!([] KeyHolder, vec![API_KEY], |request| {
    let member = Member::enter(request, None, false, Counting::Yes).await?;
    match member.key {
        Some(_) => Self(member),
        None => Err(Error::new(Code::AuthFailed, "Send an API key as X-API-Key."))?,
    }
});
gate!([const COUNTED: bool] Public<COUNTED>, vec![PUBLIC], |request| {
    let app = app(request)?;
    let origin = Origin::of(request, &app);
    if COUNTED {
        origin.limit_stranger(&app).await?;
    }
    Self { app, origin }
});

impl<'a> FromRequest<'a> for Origin {
    async fn from_request(request: &'a Request, _body: &mut RequestBody) -> poem::Result<Self> {
        Ok(Self::of(request, &*app(request)?))
    }
}
