//! Getting in and out: register, log in, refresh, log out.

use chrono::TimeDelta;
use poem_openapi::{Object, OpenApi, types::Example};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::{
    emails,
    lockout::{self, Subject},
    mfa,
    profile::{self, Profile},
    security_events::{self, About, SecurityEventType},
    sessions::{self, Tokens},
};
use crate::{
    api::Tag,
    app::App,
    audit,
    auth::{
        Origin, Public, User,
        keys::opaque_token,
        passwords::{Password, check_policy},
        sealing::sha256,
    },
    db::Tx,
    error::{Code, Error, OnConstraint, Result},
    http::{Body, Created, Json, NoContent, Versioned},
    limits::Ask,
    organizations::{self, NewOrganization, Organization, invitations},
    tenancy::fleet,
    types::{Email, Name, Text, Username, example},
};

/// A new account, with or without a new organization.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct Registration {
    pub email: Email,
    /// At least 12 characters with upper and lower case, a digit and a special character; not a
    /// common password and not like the user's own data.
    pub password: Password,
    /// To log in with instead of the address.
    pub username: Option<Username>,
    #[serde(default)]
    pub first_name: Option<Text<0, 150>>,
    #[serde(default)]
    pub last_name: Option<Text<0, 150>>,
    /// Also makes an organization of this name, its schema, and the user its owner.
    pub organization_name: Option<Name>,
    /// Also accepts an invitation that was mailed to this address.
    pub invitation_token: Option<String>,
}

impl Example for Registration {
    fn example() -> Self {
        Self {
            email: example("ana@example.com"),
            password: example("Correct-Horse-7-Battery"),
            username: None,
            first_name: Some(example("Ana")),
            last_name: Some(example("Tan")),
            organization_name: Some(example("Acme Pte. Ltd.")),
            invitation_token: None,
        }
    }
}

/// Credentials: the address or the user name, and the password.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct Credentials {
    pub email: Option<Email>,
    pub username: Option<Username>,
    pub password: Password,
    /// A code from the authenticator or a recovery code, where the account has a second factor.
    pub mfa_code: Option<String>,
}

impl Example for Credentials {
    fn example() -> Self {
        Self {
            email: Some(example("ana@example.com")),
            username: None,
            password: example("Correct-Horse-7-Battery"),
            mfa_code: None,
        }
    }
}

/// The second step of a login.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct LoginCode {
    /// From the answer to the first step; good for five minutes.
    pub challenge: String,
    /// A code from the authenticator or a recovery code.
    pub code: String,
}

impl Example for LoginCode {
    fn example() -> Self {
        Self { challenge: "rhc_c29tZXRoaW5nIHRoYXQgbm9ib2R5IGNhbiBndWVzcyE".into(), code: "123456".into() }
    }
}

/// The token to exchange.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct RefreshRequest {
    pub refresh_token: String,
}

impl Example for RefreshRequest {
    fn example() -> Self {
        Self { refresh_token: Tokens::example().refresh_token }
    }
}

/// Somebody who is in: the account, its tokens, and the organization if one was made.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct LoggedIn {
    pub user: Profile,
    /// Only where the registration made one.
    pub organization: Option<Organization>,
    #[serde(flatten)]
    #[oai(flatten)]
    pub tokens: Tokens,
}

impl Example for LoggedIn {
    fn example() -> Self {
        Self {
            user: Profile::example(),
            organization: Some(Organization::example()),
            tokens: Tokens::example(),
        }
    }
}

impl Versioned for LoggedIn {
    fn version(&self) -> i64 {
        self.user.version
    }
}

pub struct AuthApi;

#[OpenApi(tag = "Tag::Accounts")]
impl AuthApi {
    /// Register.
    ///
    /// Makes an account and logs it in; with `organization_name` it also makes an organization with
    /// a schema of its own and the user as its owner.
    #[oai(path = "/auth/register", method = "post", operation_id = "register")]
    async fn register(&self, anybody: Public, new: Body<Registration>) -> Result<Created<LoggedIn>> {
        let app = &*anybody.app;
        anybody.limit("register", app.config.limits.register).await?;
        let origin = &anybody.origin;
        let Registration {
            email,
            password,
            username,
            first_name,
            last_name,
            organization_name,
            invitation_token,
        } = new.0;
        if organization_name.is_some() && invitation_token.is_some() {
            return Err(Error::invalid(
                "organization_name",
                "Accept the invitation or make an organization, not both.",
            ));
        }
        let own = [
            Some(email.as_ref()),
            username.as_ref().map(AsRef::as_ref),
            first_name.as_ref().map(AsRef::as_ref),
            last_name.as_ref().map(AsRef::as_ref),
            organization_name.as_ref().map(AsRef::as_ref),
        ];
        check_policy(&password, &own.into_iter().flatten().collect::<Vec<_>>())?;
        let hash = app.passwords.hash(&password).await?;
        let person = NewUser { email: &email, username: username.as_ref(), hash, first_name, last_name };
        let value = match organization_name {
            None => {
                let Some(token) = invitation_token else {
                    let tx = app.db.begin().await?;
                    let user = insert(&tx, app, person).await?;
                    let value = welcome(&tx, app, user, origin).await?;
                    tx.commit().await?;
                    return Ok(Created { location: "/api/v1/auth/user".into(), value });
                };
                let tenant = invitations::destination(app, &token).await?;
                let tx = app.db.begin().await?;
                let user = insert(&tx, app, person).await?;
                let who = audit::Actor::user(user, origin.clone());
                let (tx, organization) = invitations::accept(tx, app, &who, &token, &tenant).await?;
                let value = welcome(&tx, app, user, origin).await?;
                tx.commit().await?;
                LoggedIn { organization: Some(organization), ..value }
            }
            Some(name) => {
                let (tx, tenant) = fleet::begin_new_tenant(&app.db, &app.directory).await?;
                let user = insert(&tx, app, person).await?;
                let who = audit::Actor::user(user, origin.clone());
                let organization =
                    organizations::insert(&tx, app, &who, NewOrganization::named(name)).await?;
                let value = welcome(&tx, app, user, origin).await?;
                tx.commit().await?;
                app.directory.forget(tenant.id());
                LoggedIn { organization: Some(organization), ..value }
            }
        };
        Ok(Created { location: "/api/v1/auth/user".into(), value })
    }

    /// Log in.
    ///
    /// The answer does not tell whether the account exists, and takes as long either way. Where the
    /// account has a second factor and no `mfa_code` is sent, the answer is `MFA_REQUIRED` with a
    /// challenge for the second step.
    #[oai(path = "/auth/login", method = "post", operation_id = "login")]
    async fn login(&self, anybody: Public, given: Body<Credentials>) -> Result<Json<LoggedIn>> {
        let app = &*anybody.app;
        let origin = &anybody.origin;
        let Credentials { email, username, password, mfa_code } = given.0;
        let typed = match (&email, &username) {
            (Some(email), None) => email.to_string(),
            (None, Some(username)) => username.to_string(),
            _ => return Err(Error::invalid("email", "Send either email or username.")),
        };
        let tx = app.db.begin().await?;
        let row = tx
            .query_opt(
                "select id, password_hash, mfa_enabled_at is not null as mfa from platform.users \
                 where (email = $1 or lower(username) = lower($2)) and is_active",
                &[&email, &username],
            )
            .await?;
        let (mut known, mut hash, mut has_mfa) = (None, None, false);
        if let Some(row) = row {
            (known, hash, has_mfa) =
                (Some(row.try_get("id")?), Some(row.try_get("password_hash")?), row.try_get("mfa")?);
        }
        let compared: Option<String> = hash.clone();
        let subject = Subject::new(known, &typed);
        lockout::attempt(&tx, app, &subject).await?;
        // No connection is held while the password is hashed.
        tx.commit_aside().await?;
        let rate = app.config.limits.login;
        // Without headers: they would tell which names are one account's.
        if let Err(refused) =
            origin.limit_quietly(app, &[Ask { policy: "login", key: subject.key(), rate }]).await
        {
            let tx = app.db.begin().await?;
            lockout::undo(&tx, &subject).await?;
            let (kind, about) = (SecurityEventType::RateLimit, About { user: known, organization: None });
            security_events::record(&tx, app, kind, about, origin, json!({"limit": "login"})).await?;
            tx.commit_aside().await?;
            return Err(refused);
        }
        let fits = app.passwords.verify(&password, hash).await?;
        let Some(user) = known.filter(|_| fits) else {
            return Err(refused(app, &subject, origin).await?);
        };
        let tx = app.db.begin().await?;
        // While the password was compared it may have been replaced, or a second factor been set up;
        // with the row locked, neither happens before this session is there to be ended.
        let row = tx
            .query_opt(
                "select 1 from platform.users where id = $1 and is_active and password_hash = $2 \
                 and (mfa_enabled_at is not null) = $3 for no key update",
                &[&user, &compared, &has_mfa],
            )
            .await?;
        if row.is_none() {
            drop(tx);
            return Err(refused(app, &subject, origin).await?);
        }
        if has_mfa {
            let Some(code) = mfa_code else {
                lockout::undo(&tx, &subject).await?;
                let challenge = challenge(&tx, app, user).await?;
                tx.commit_aside().await?;
                return Err(mfa::code_wanted(&challenge, CHALLENGE_LIFETIME.num_seconds()));
            };
            if !mfa::check(&tx, app, user, &code).await? {
                drop(tx);
                return Err(refused(app, &subject, origin).await?);
            }
        }
        let value = enter(&tx, app, user, origin).await?;
        tx.commit().await?;
        Ok(Json(value))
    }

    /// Log in, second step.
    ///
    /// With the challenge from the first step, and a code.
    #[oai(path = "/auth/login/mfa", method = "post", operation_id = "login_mfa")]
    async fn login_mfa(&self, anybody: Public, given: Body<LoginCode>) -> Result<Json<LoggedIn>> {
        let app = &*anybody.app;
        let hash = sha256(given.0.challenge.as_bytes());
        let tx = app.db.begin().await?;
        let row = tx
            .query_opt(
                "select c.user_id from platform.login_challenges c join platform.users u on u.id = c.user_id \
                 where c.hash = $1 and c.expires_at > $2 and u.is_active and u.mfa_enabled_at is not null",
                &[&hash, &app.clock.now()],
            )
            .await?;
        let begin_again = || Error::new(Code::AuthFailed, "The challenge has expired. Log in again.");
        let user: Uuid = row.ok_or_else(begin_again)?.try_get("user_id")?;
        let subject = Subject::new(Some(user), "");
        lockout::attempt(&tx, app, &subject).await?;
        tx.commit_aside().await?;
        let tx = app.db.begin().await?;
        // Whoever ends sessions locks this row first, and takes the challenge away.
        profile::lock(&tx, user).await?;
        if !mfa::check(&tx, app, user, &given.0.code).await? {
            drop(tx);
            return Err(refused(app, &subject, &anybody.origin).await?);
        }
        let used = tx.execute("delete from platform.login_challenges where hash = $1", &[&hash]).await?;
        if used == 0 {
            return Err(begin_again());
        }
        let value = enter(&tx, app, user, &anybody.origin).await?;
        tx.commit().await?;
        Ok(Json(value))
    }

    /// Exchange a refresh token.
    ///
    /// A refresh token is good once. One that comes back a second time ends its whole session.
    #[oai(path = "/auth/refresh", method = "post", operation_id = "refresh")]
    async fn refresh(&self, anybody: Public<false>, given: Body<RefreshRequest>) -> Result<Json<Tokens>> {
        let token = &given.0.refresh_token;
        Ok(Json(sessions::refresh(&anybody.app, token, &anybody.origin).await?))
    }

    /// Log out.
    ///
    /// Ends the session of the access token at once, on every instance.
    #[oai(path = "/auth/logout", method = "post", operation_id = "logout")]
    async fn logout(&self, who: User) -> Result<NoContent> {
        let tx = who.app.db.begin().await?;
        sessions::revoke(&tx, &who.app, who.session, "logout").await?;
        let about = About::user(who.id);
        security_events::record(&tx, &who.app, SecurityEventType::Logout, about, &who.origin, json!({}))
            .await?;
        tx.commit().await?;
        Ok(NoContent)
    }
}

/// How long somebody may look for their authenticator.
const CHALLENGE_LIFETIME: TimeDelta = TimeDelta::minutes(5);

/// Notes that the password was right, and gives what the second step is made with.
async fn challenge(tx: &Tx, app: &App, user: Uuid) -> Result<String> {
    let now = app.clock.now();
    let (token, hash) = opaque_token("rhc")?;
    tx.execute("delete from platform.login_challenges where expires_at < $1", &[&now]).await?;
    tx.execute(
        "insert into platform.login_challenges (hash, user_id, expires_at) values ($1, $2, $3)",
        &[&hash, &user, &(now + CHALLENGE_LIFETIME)],
    )
    .await?;
    Ok(token)
}

/// Records a failed attempt; one answer for everything that can be wrong.
async fn refused(app: &App, subject: &Subject, origin: &Origin) -> Result<Error> {
    let tx = app.db.begin().await?;
    lockout::failed(&tx, app, subject, origin).await?;
    tx.commit_aside().await?;
    Ok(Error::new(Code::AuthFailed, "The account, the password or the code is wrong."))
}

/// What follows from a registration, and the first session.
async fn welcome(tx: &Tx, app: &App, user: Uuid, origin: &Origin) -> Result<LoggedIn> {
    let about = About::user(user);
    security_events::record(tx, app, SecurityEventType::Registration, about, origin, json!({})).await?;
    let value = enter(tx, app, user, origin).await?;
    if !value.user.email_verified {
        emails::post_verification(tx, app, &value.user).await?;
    }
    Ok(value)
}

/// Begins a session for somebody who has proved to be that user.
async fn enter(tx: &Tx, app: &App, user: Uuid, origin: &Origin) -> Result<LoggedIn> {
    tx.execute("update platform.users set last_login_at = $2 where id = $1", &[&user, &app.clock.now()])
        .await?;
    lockout::forget(tx, user).await?;
    let profile = profile::find(tx, user).await?;
    let details = json!({"mfa": profile.mfa_enabled});
    let about = About::user(user);
    security_events::record(tx, app, SecurityEventType::LoginSuccess, about, origin, details).await?;
    let tokens = sessions::begin(tx, app, user, origin).await?;
    Ok(LoggedIn { user: profile, organization: None, tokens })
}

/// An account to be made, its password hashed.
pub struct NewUser<'a> {
    pub email: &'a Email,
    pub username: Option<&'a Username>,
    pub hash: String,
    pub first_name: Option<Text<0, 150>>,
    pub last_name: Option<Text<0, 150>>,
}

/// Makes an account.
pub async fn insert(tx: &Tx, app: &App, new: NewUser<'_>) -> Result<Uuid> {
    let id = Uuid::now_v7();
    let (first_name, last_name) = (new.first_name.unwrap_or_default(), new.last_name.unwrap_or_default());
    tx.execute(
        "insert into platform.users (id, email, username, password_hash, first_name, last_name, created_at, \
         updated_at) values ($1, $2, $3, $4, $5, $6, $7, $7)",
        &[&id, &new.email, &new.username, &new.hash, &first_name, &last_name, &app.clock.now()],
    )
    .await
    .on_constraint("users_email_key", || {
        Error::taken("email", "There is already an account with this address.")
    })
    .on_constraint("users_username_key", || Error::taken("username", "This user name is taken."))?;
    Ok(id)
}
