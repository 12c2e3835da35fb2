//! Getting in and out: register, log in, refresh, log out.

use poem_openapi::{Object, OpenApi, types::Example};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    profile::{self, Profile},
    sessions::{self, Tokens},
};
use crate::{
    api::Tag,
    app::App,
    auth::{
        Origin, Public, User,
        passwords::{Password, check_policy},
    },
    db::Tx,
    error::{Code, Error, OnConstraint, Result},
    http::{Body, Created, Json, NoContent, Versioned},
    organizations::{self, NewOrganization, Organization},
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
}

impl Example for Credentials {
    fn example() -> Self {
        Self {
            email: Some(example("ana@example.com")),
            username: None,
            password: example("Correct-Horse-7-Battery"),
        }
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
    async fn register(
        &self,
        anybody: Public,
        origin: Origin,
        new: Body<Registration>,
    ) -> Result<Created<LoggedIn>> {
        let app = &*anybody.app;
        let Registration { email, password, username, first_name, last_name, organization_name } = new.0;
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
                let tx = app.db.begin().await?;
                let user = insert(&tx, app, person).await?;
                let value = enter(&tx, app, user, origin).await?;
                tx.commit().await?;
                value
            }
            Some(name) => {
                let (tx, tenant) = fleet::begin_new_tenant(&app.db, &app.directory).await?;
                let user = insert(&tx, app, person).await?;
                let organization =
                    organizations::insert(&tx, app, user, NewOrganization::named(name)).await?;
                let value = enter(&tx, app, user, origin).await?;
                tx.commit().await?;
                app.directory.forget(tenant.id());
                LoggedIn { organization: Some(organization), ..value }
            }
        };
        Ok(Created { location: "/api/v1/auth/user".into(), value })
    }

    /// Log in.
    ///
    /// The answer does not tell whether the account exists, and takes as long either way.
    #[oai(path = "/auth/login", method = "post", operation_id = "login")]
    async fn login(
        &self,
        anybody: Public,
        origin: Origin,
        given: Body<Credentials>,
    ) -> Result<Json<LoggedIn>> {
        let app = &*anybody.app;
        let Credentials { email, username, password } = given.0;
        if email.is_some() == username.is_some() {
            return Err(Error::invalid("email", "Send either email or username."));
        }
        let tx = app.db.begin().await?;
        let row = tx
            .query_opt(
                "select id, password_hash from platform.users \
                 where (email = $1 or lower(username) = lower($2)) and is_active",
                &[&email, &username],
            )
            .await?;
        // No connection is held while the password is hashed.
        drop(tx);
        let known: Option<(Uuid, String)> =
            row.map(|row| Ok::<_, Error>((row.try_get("id")?, row.try_get("password_hash")?))).transpose()?;
        let (user, hash) = known.unzip();
        let fits = app.passwords.verify(&password, hash).await?;
        let user = user
            .filter(|_| fits)
            .ok_or_else(|| Error::new(Code::AuthFailed, "The account or the password is wrong."))?;
        let tx = app.db.begin().await?;
        tx.execute("update platform.users set last_login_at = $2 where id = $1", &[&user, &app.clock.now()])
            .await?;
        let value = enter(&tx, app, user, origin).await?;
        tx.commit().await?;
        Ok(Json(value))
    }

    /// Exchange a refresh token.
    ///
    /// A refresh token is good once. One that comes back a second time ends its whole session.
    #[oai(path = "/auth/refresh", method = "post", operation_id = "refresh")]
    async fn refresh(&self, anybody: Public, given: Body<RefreshRequest>) -> Result<Json<Tokens>> {
        Ok(Json(sessions::refresh(&anybody.app, &given.0.refresh_token).await?))
    }

    /// Log out.
    ///
    /// Ends the session of the access token at once, on every instance.
    #[oai(path = "/auth/logout", method = "post", operation_id = "logout")]
    async fn logout(&self, who: User) -> Result<NoContent> {
        let tx = who.app.db.begin().await?;
        sessions::revoke(&tx, &who.app, who.session, "logout").await?;
        tx.commit().await?;
        Ok(NoContent)
    }
}

/// Begins a session for somebody who has proved to be that user.
async fn enter(tx: &Tx, app: &App, user: Uuid, origin: Origin) -> Result<LoggedIn> {
    let profile = profile::find(tx, user).await?;
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
