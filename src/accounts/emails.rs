//! What is proved by mail: an address, and who may set a new password.
//!
//! A token is random, stored as a hash, good for one purpose, once, and for a while. Whether an
//! address is somebody's is decided in a job, so that neither answer nor time tells.

use chrono::TimeDelta;
use poem_openapi::{Object, OpenApi, types::Example};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::{
    lockout,
    profile::{self, Profile},
    security_events::{self, About, SecurityEventType},
};
use crate::{
    api::Tag,
    app::App,
    auth::{
        Access, Origin, Public, User,
        keys::opaque_token,
        passwords::{Password, check_policy},
        sealing::sha256,
        withdraw,
    },
    db::Tx,
    error::{Code, Error, OnConstraint, Result},
    http::{Accepted, Body, Json, NoContent},
    jobs::{self, Running, Work},
    limits::Ask,
    mail::{self, Letter},
    types::{Email, example, text_enum},
};

text_enum! {
    /// What a mailed token is good for.
    Purpose {
        VerifyEmail = "verify_email",
        ResetPassword = "reset_password",
        ChangeEmailOld = "change_email_old",
        ChangeEmailNew = "change_email_new",
    }
}

impl Purpose {
    fn lifetime(self) -> TimeDelta {
        match self {
            Purpose::VerifyEmail => TimeDelta::hours(24),
            _ => TimeDelta::hours(1),
        }
    }
}

const TOKEN_EXAMPLE: &str = "rht_c29tZXRoaW5nIHRoYXQgbm9ib2R5IGNhbiBndWVzcyE";

/// A token from a mail.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct MailedToken {
    pub token: String,
}

impl Example for MailedToken {
    fn example() -> Self {
        Self { token: TOKEN_EXAMPLE.into() }
    }
}

/// Whose password is forgotten.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct ForgottenPassword {
    pub email: Email,
}

impl Example for ForgottenPassword {
    fn example() -> Self {
        Self { email: example("ana@example.com") }
    }
}

/// A new password and the proof that one may set it.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct PasswordReset {
    pub token: String,
    pub password: Password,
}

impl Example for PasswordReset {
    fn example() -> Self {
        Self { token: TOKEN_EXAMPLE.into(), password: example("Correct-Horse-7-Battery") }
    }
}

/// The password now and the one to be.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct PasswordChange {
    pub current_password: Password,
    pub new_password: Password,
}

impl Example for PasswordChange {
    fn example() -> Self {
        Self {
            current_password: example("Correct-Horse-7-Battery"),
            new_password: example("Purple-Kettle-42-Rain"),
        }
    }
}

/// The address to be, and the password.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct EmailChange {
    pub new_email: Email,
    pub password: Password,
}

impl Example for EmailChange {
    fn example() -> Self {
        Self { new_email: example("ana.tan@example.com"), password: example("Correct-Horse-7-Battery") }
    }
}

text_enum! {
    /// Whether a change of address is done.
    EmailChangeState {
        /// The other address has not confirmed yet.
        Waiting = "waiting",
        Changed = "changed",
    }
}

/// How far a change of address is.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct EmailChangeProgress {
    pub state: EmailChangeState,
}

impl Example for EmailChangeProgress {
    fn example() -> Self {
        Self { state: EmailChangeState::Waiting }
    }
}

pub struct EmailsApi;

#[OpenApi(tag = "Tag::Accounts")]
impl EmailsApi {
    /// Verify one's address.
    ///
    /// With the token that was mailed at registration.
    #[oai(path = "/auth/verify-email", method = "post", operation_id = "verify_email")]
    async fn verify(&self, anybody: Public, given: Body<MailedToken>) -> Result<NoContent> {
        let app = &*anybody.app;
        let tx = app.db.begin().await?;
        let user = find(&tx, app, &[Purpose::VerifyEmail], &given.0.token).await?;
        profile::lock(&tx, user).await?;
        let token = redeem(&tx, app, &[Purpose::VerifyEmail], &given.0.token).await?;
        let verified = tx
            .execute(
                "update platform.users set email_verified_at = coalesce(email_verified_at, $3), \
                 version = version + 1 where id = $1 and email = $2 and is_active",
                &[&token.user, &token.email, &app.clock.now()],
            )
            .await?;
        if verified == 0 {
            return Err(worthless());
        }
        tx.commit().await?;
        Ok(NoContent)
    }

    /// Have the mail to verify one's address sent again.
    #[oai(path = "/auth/verify-email/resend", method = "post", operation_id = "resend_verification")]
    async fn resend(&self, who: User) -> Result<Accepted> {
        let app = &*who.app;
        let limit = Ask { policy: "mail", key: who.id.to_string(), rate: app.config.limits.password_reset };
        who.origin.limit(app, &[limit]).await?;
        let tx = app.db.begin().await?;
        let profile = profile::find(&tx, who.id).await?;
        if !profile.email_verified {
            post_verification(&tx, app, &profile).await?;
        }
        tx.commit().await?;
        Ok(Accepted)
    }

    /// Ask for a new password.
    ///
    /// The answer is the same whether or not the address is an account's.
    #[oai(path = "/auth/password/reset", method = "post", operation_id = "request_password_reset")]
    async fn request_reset(&self, anybody: Public, given: Body<ForgottenPassword>) -> Result<Accepted> {
        let app = &*anybody.app;
        anybody.limit("password_reset", app.config.limits.password_reset).await?;
        let Origin { agent, request_id, .. } = anybody.origin.clone();
        let address = anybody.origin.address;
        let request = ResetRequest { email: given.0.email.to_string(), address, agent, request_id };
        let tx = app.db.begin().await?;
        jobs::enqueue(&tx, app, &request).await?;
        tx.commit().await?;
        Ok(Accepted)
    }

    /// Set a new password with the token from a mail.
    ///
    /// Ends every session of the account, and a lock on it.
    #[oai(path = "/auth/password/reset/confirm", method = "post", operation_id = "reset_password")]
    async fn reset(&self, anybody: Public, given: Body<PasswordReset>) -> Result<NoContent> {
        let app = &*anybody.app;
        let PasswordReset { token, password } = given.0;
        let tx = app.db.begin().await?;
        let user = find(&tx, app, &[Purpose::ResetPassword], &token).await?;
        check_new(&tx, user, "password", &password).await?;
        // Neither a connection nor the token is held while the password is hashed.
        drop(tx);
        let hash = app.passwords.hash(&password).await?;
        let tx = app.db.begin().await?;
        profile::lock(&tx, user).await?;
        let token = redeem(&tx, app, &[Purpose::ResetPassword], &token).await?;
        if profile::find(&tx, user).await?.email != token.email {
            return Err(worthless());
        }
        set_password(&tx, app, token.user, &hash, None, &anybody.origin).await?;
        // Who reads the mail owns the address.
        tx.execute(
            "update platform.users set email_verified_at = coalesce(email_verified_at, $3) where id = $1 and email = $2",
            &[&token.user, &token.email, &app.clock.now()],
        )
        .await?;
        tx.commit().await?;
        Ok(NoContent)
    }

    /// Change one's password.
    ///
    /// Ends every other session.
    #[oai(path = "/auth/password/change", method = "post", operation_id = "change_password")]
    async fn change_password(&self, who: User, given: Body<PasswordChange>) -> Result<NoContent> {
        let app = &*who.app;
        let PasswordChange { current_password, new_password } = given.0;
        prove_password(&who, "current_password", &current_password).await?;
        let tx = app.db.begin().await?;
        check_new(&tx, who.id, "new_password", &new_password).await?;
        drop(tx);
        if current_password == new_password {
            return Err(Error::invalid("new_password", "This is your password already."));
        }
        let hash = app.passwords.hash(&new_password).await?;
        let tx = app.db.begin().await?;
        set_password(&tx, app, who.id, &hash, Some(who.session), &who.origin).await?;
        tx.commit().await?;
        Ok(NoContent)
    }

    /// Ask for a change of one's address.
    ///
    /// Both addresses get a mail, and both must confirm.
    #[oai(path = "/auth/email/change", method = "post", operation_id = "request_email_change")]
    async fn request_change(&self, who: User, given: Body<EmailChange>) -> Result<Accepted> {
        let app = &*who.app;
        let EmailChange { new_email, password } = given.0;
        prove_password(&who, "password", &password).await?;
        let tx = app.db.begin().await?;
        profile::lock(&tx, who.id).await?;
        let profile = profile::find(&tx, who.id).await?;
        if profile.email == new_email {
            return Err(Error::invalid("new_email", "This is your address already."));
        }
        let taken =
            tx.query_opt("select 1 from platform.users where email = $1", &[&new_email]).await?.is_some();
        let change = Uuid::now_v7();
        let name = profile.first_name.as_ref();
        for (to, purpose) in
            [(&profile.email, Purpose::ChangeEmailOld), (&new_email, Purpose::ChangeEmailNew)]
        {
            let token = issue(&tx, app, purpose, who.id, &new_email, Some(change)).await?;
            let fields = [("name", name), ("new_email", new_email.as_ref()), ("token", &token)];
            // The caller does not learn whose address it is; its owner does.
            let kind =
                if taken && purpose == Purpose::ChangeEmailNew { "address_in_use" } else { purpose.name() };
            mail::post(&tx, app, Letter::new(to, kind, &fields)).await?;
        }
        tx.commit().await?;
        Ok(Accepted)
    }

    /// Confirm a change of address with the token from one of the two mails.
    #[oai(path = "/auth/email/confirm", method = "post", operation_id = "confirm_email_change")]
    async fn confirm_change(
        &self,
        anybody: Public,
        given: Body<MailedToken>,
    ) -> Result<Json<EmailChangeProgress>> {
        let app = &*anybody.app;
        let now = app.clock.now();
        let tx = app.db.begin().await?;
        let purposes = [Purpose::ChangeEmailOld, Purpose::ChangeEmailNew];
        let user = find(&tx, app, &purposes, &given.0.token).await?;
        // Of both halves at once, the second waits here and then sees the first.
        profile::lock(&tx, user).await?;
        let token = redeem(&tx, app, &purposes, &given.0.token).await?;
        let confirmed = tx
            .query_one(
                "select count(*) from platform.email_tokens where change_id = $1 and used_at is not null",
                &[&token.change],
            )
            .await?
            .try_get::<_, i64>(0)?;
        let state = if confirmed < 2 { EmailChangeState::Waiting } else { EmailChangeState::Changed };
        if state == EmailChangeState::Changed {
            let old = profile::find(&tx, user).await?;
            // Links that were mailed to the old address are not for whoever reads it from now on.
            void(&tx, user).await?;
            let fields = [("name", old.first_name.as_ref()), ("what", "The address was changed")];
            mail::post(&tx, app, Letter::new(&old.email, "account_changed", &fields)).await?;
            tx.execute(
                "update platform.users set email = $2, email_verified_at = $3, updated_at = $3, version = version + 1 \
                 where id = $1 and is_active",
                &[&token.user, &token.email, &now],
            )
            .await
            .on_constraint("users_email_key", || Error::conflict("This address belongs to another account by now."))?;
            let details = json!({"what": "email_changed"});
            let about = About::user(token.user);
            security_events::record(&tx, app, SecurityEventType::Other, about, &anybody.origin, details)
                .await?;
        }
        tx.commit().await?;
        Ok(Json(EmailChangeProgress { state }))
    }
}

/// Refuses unless the caller knows their password; a stolen session is not enough for what changes
/// who owns the account.
pub async fn prove_password(who: &User, field: &str, password: &Password) -> Result<()> {
    let app = &*who.app;
    let rate = app.config.limits.change_password;
    who.origin.limit(app, &[Ask { policy: "change_password", key: who.id.to_string(), rate }]).await?;
    let tx = app.db.begin().await?;
    let row = tx.query_one("select password_hash from platform.users where id = $1", &[&who.id]).await?;
    drop(tx);
    match app.passwords.verify(password, Some(row.try_get("password_hash")?)).await? {
        true => Ok(()),
        false => Err(Error::invalid(field, "This is not your password.")),
    }
}

/// Checks a new password against the rules and the user's own data.
async fn check_new(tx: &Tx, user: Uuid, field: &str, password: &Password) -> Result<()> {
    let profile = profile::find(tx, user).await?;
    let mut own = vec![profile.email.as_ref(), profile.first_name.as_ref(), profile.last_name.as_ref()];
    own.extend(profile.username.as_ref().map(AsRef::<str>::as_ref));
    own.extend(profile.company.as_ref().map(AsRef::<str>::as_ref));
    check_policy(password, &own).map_err(|error| error.in_field(field))
}

async fn set_password(
    tx: &Tx,
    app: &App,
    user: Uuid,
    hash: &str,
    keep: Option<Uuid>,
    origin: &Origin,
) -> Result<()> {
    tx.execute(
        "update platform.users set password_hash = $2, password_changed_at = $3 where id = $1",
        &[&user, &hash, &app.clock.now()],
    )
    .await?;
    // Links that were mailed before are for somebody who did not know the password.
    tx.execute(
        "delete from platform.email_tokens where user_id = $1 and used_at is null and purpose <> 'verify_email'",
        &[&user],
    )
    .await?;
    let (kind, because) = match keep {
        Some(_) => (SecurityEventType::PasswordChange, "password_change"),
        None => (SecurityEventType::PasswordReset, "password_reset"),
    };
    withdraw(tx, app, Access::Sessions { user, but: keep }, because).await?;
    lockout::forget(tx, user).await?;
    security_events::record(tx, app, kind, About::user(user), origin, json!({})).await?;
    let profile = profile::find(tx, user).await?;
    let fields = [("name", profile.first_name.as_ref())];
    mail::post(tx, app, Letter::new(&profile.email, "password_changed", &fields)).await
}

/// Makes every token that was mailed to a user worth nothing.
async fn void(tx: &Tx, user: Uuid) -> Result<()> {
    tx.execute("delete from platform.email_tokens where user_id = $1 and used_at is null", &[&user]).await?;
    Ok(())
}

/// A password was forgotten; what there is to do about it is not for the caller to know.
#[derive(Debug, Serialize, Deserialize)]
pub struct ResetRequest {
    email: String,
    address: Option<std::net::IpAddr>,
    agent: Option<String>,
    request_id: Option<String>,
}

impl Work for ResetRequest {
    const KIND: &'static str = "reset_password";

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let app = &*job.app;
        let tx = app.db.begin().await?;
        let row = tx
            .query_opt("select id from platform.users where email = $1 and is_active", &[&self.email])
            .await?;
        let Some(row) = row else { return Ok(()) };
        // Nobody's mailbox is filled from many addresses at once.
        let ask = Ask { policy: "mail", key: self.email.clone(), rate: app.config.limits.mail };
        if app.limits.take(&[ask]).await.iter().any(|verdict| verdict.retry_after.is_some()) {
            return Ok(());
        }
        let profile = profile::find(&tx, row.try_get("id")?).await?;
        let token = issue(&tx, app, Purpose::ResetPassword, profile.id, &profile.email, None).await?;
        let fields = [("name", profile.first_name.as_ref()), ("token", token.as_str())];
        mail::post(&tx, app, Letter::new(&profile.email, "reset_password", &fields)).await?;
        let mut origin = Origin::default();
        (origin.address, origin.agent, origin.request_id) = (self.address, self.agent, self.request_id);
        let kind = SecurityEventType::PasswordResetRequest;
        security_events::record(&tx, app, kind, About::user(profile.id), &origin, json!({})).await?;
        Ok(tx.commit().await?)
    }
}

/// Mails a new user what proves the address.
pub async fn post_verification(tx: &Tx, app: &App, profile: &Profile) -> Result<()> {
    let token = issue(tx, app, Purpose::VerifyEmail, profile.id, &profile.email, None).await?;
    let fields = [("name", profile.first_name.as_ref()), ("token", token.as_str())];
    mail::post(tx, app, Letter::new(&profile.email, "verify_email", &fields)).await
}

/// Makes a token; earlier ones for the same purpose are worth nothing from now on.
async fn issue(
    tx: &Tx,
    app: &App,
    purpose: Purpose,
    user: Uuid,
    email: &Email,
    change: Option<Uuid>,
) -> Result<String> {
    let now = app.clock.now();
    let (token, hash) = opaque_token("rht")?;
    tx.execute(
        "delete from platform.email_tokens where user_id = $1 and purpose = $2 and used_at is null",
        &[&user, &purpose],
    )
    .await?;
    tx.execute(
        "insert into platform.email_tokens (hash, purpose, user_id, email, change_id, created_at, expires_at) \
         values ($1, $2, $3, $4, $5, $6, $7)",
        &[&hash, &purpose, &user, &email, &change, &now, &(now + purpose.lifetime())],
    )
    .await?;
    Ok(token)
}

/// What a token proved.
struct Redeemed {
    user: Uuid,
    email: Email,
    change: Option<Uuid>,
}

fn worthless() -> Error {
    Error::new(
        Code::AuthFailed,
        "This link was used already, has expired or is not valid. Ask for a new one.",
    )
}

/// Uses a token up. Of two uses at once, one gets it.
async fn redeem(tx: &Tx, app: &App, purposes: &[Purpose], token: &str) -> Result<Redeemed> {
    let names: Vec<&str> = purposes.iter().map(|purpose| purpose.name()).collect();
    let row = tx
        .query_opt(
            "update platform.email_tokens set used_at = $3 where hash = $1 and purpose = any ($2) \
             and used_at is null and expires_at > $3 returning user_id, email, change_id",
            &[&sha256(token.as_bytes()), &names, &app.clock.now()],
        )
        .await?
        .ok_or_else(worthless)?;
    Ok(Redeemed {
        user: row.try_get("user_id")?,
        email: row.try_get("email")?,
        change: row.try_get("change_id")?,
    })
}

/// Whose a token is, without using it up.
async fn find(tx: &Tx, app: &App, purposes: &[Purpose], token: &str) -> Result<Uuid> {
    let names: Vec<&str> = purposes.iter().map(|purpose| purpose.name()).collect();
    let row = tx
        .query_opt(
            "select user_id from platform.email_tokens \
             where hash = $1 and purpose = any ($2) and used_at is null and expires_at > $3",
            &[&sha256(token.as_bytes()), &names, &app.clock.now()],
        )
        .await?;
    Ok(row.ok_or_else(worthless)?.try_get("user_id")?)
}
