//! Second factors: codes from an authenticator (TOTP, RFC 6238), and recovery codes for when it is lost.

use std::fmt::Write;

use chrono::{DateTime, Utc};
use poem_openapi::{Object, OpenApi, types::Example};
use qrcode::{QrCode, render::svg};
use serde::{Deserialize, Serialize};
use serde_json::json;
use totp_rs::{Builder, Secret, Totp};
use uuid::Uuid;

use super::{
    emails::prove_password,
    lockout::{self, Subject},
    profile,
    security_events::{self, About, SecurityEventType},
};
use crate::{
    api::Tag,
    app::App,
    auth::{
        Access, User,
        passwords::Password,
        sealing::{random, sha256},
        standing, withdraw,
    },
    db::Tx,
    error::{Code, Error, Result},
    http::{Body, Json, NoContent},
    mail::{self, Letter},
    types::{example, example_time},
};

const RECOVERY_CODES: usize = 10;

/// What guards one's account beside the password.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct MfaState {
    pub enabled: bool,
    pub enabled_at: Option<DateTime<Utc>>,
    /// Recovery codes that are not used up.
    pub recovery_codes_left: i64,
}

impl Example for MfaState {
    fn example() -> Self {
        Self { enabled: true, enabled_at: Some(example_time()), recovery_codes_left: 9 }
    }
}

/// What an authenticator needs; it counts once a code is confirmed.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct TotpEnrolment {
    /// For typing in, in base 32.
    pub secret: String,
    pub otpauth_uri: String,
    /// The same as a picture.
    pub qr_svg: String,
}

impl Example for TotpEnrolment {
    fn example() -> Self {
        Self {
            secret: "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP".into(),
            otpauth_uri: "otpauth://totp/Rowhouse:ana%40example.com?secret=JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP&issuer=Rowhouse"
                .into(),
            qr_svg: "<svg xmlns=\"http://www.w3.org/2000/svg\"></svg>".into(),
        }
    }
}

/// A code from the authenticator.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct MfaCode {
    pub code: String,
}

impl Example for MfaCode {
    fn example() -> Self {
        Self { code: "123456".into() }
    }
}

/// The password.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct CurrentPassword {
    pub password: Password,
}

impl Example for CurrentPassword {
    fn example() -> Self {
        Self { password: example("Correct-Horse-7-Battery") }
    }
}

/// The password, and a code from the authenticator or a recovery code.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct MfaProof {
    pub password: Password,
    pub code: String,
}

impl Example for MfaProof {
    fn example() -> Self {
        Self { password: example("Correct-Horse-7-Battery"), code: "123456".into() }
    }
}

/// Codes to keep in a safe place: each opens the account once, and they are shown once.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct RecoveryCodes {
    pub recovery_codes: Vec<String>,
}

impl Example for RecoveryCodes {
    fn example() -> Self {
        Self { recovery_codes: vec!["k7qm-2xvd-9twr-4hnc".into()] }
    }
}

pub struct MfaApi;

#[OpenApi(tag = "Tag::Accounts")]
impl MfaApi {
    /// See what guards one's account.
    #[oai(path = "/auth/mfa", method = "get", operation_id = "get_mfa")]
    async fn get(&self, who: User) -> Result<Json<MfaState>> {
        let tx = who.app.db.begin().await?;
        let row = tx
            .query_one(
                "select u.mfa_enabled_at, (select count(*) from platform.recovery_codes c \
                 where c.user_id = u.id and c.used_at is null) as codes from platform.users u where u.id = $1",
                &[&who.id],
            )
            .await?;
        let enabled_at: Option<DateTime<Utc>> = row.try_get("mfa_enabled_at")?;
        Ok(Json(MfaState {
            enabled: enabled_at.is_some(),
            enabled_at,
            recovery_codes_left: row.try_get("codes")?,
        }))
    }

    /// Begin to set up an authenticator.
    #[oai(path = "/auth/mfa/totp", method = "post", operation_id = "enrol_totp")]
    async fn enrol(&self, who: User, given: Body<CurrentPassword>) -> Result<Json<TotpEnrolment>> {
        let app = &*who.app;
        // With a stolen session alone, somebody could shut the owner out with an authenticator of theirs.
        prove_password(&who, "password", &given.0.password).await?;
        let secret: [u8; 20] = random()?;
        let sealed = app.sealer.seal(&purpose(who.id), &secret)?;
        let tx = app.db.begin().await?;
        let email = profile::find(&tx, who.id).await?.email;
        let stored = tx
            .execute(
                "update platform.users set sealed_totp_secret = $2, totp_last_step = 0 \
                 where id = $1 and mfa_enabled_at is null",
                &[&who.id, &sealed],
            )
            .await?;
        if stored == 0 {
            return Err(Error::conflict("A second factor is set up already. Disable it first."));
        }
        let begun = json!({"what": "mfa_enrolment_begun"});
        let about = About::user(who.id);
        security_events::record(&tx, app, SecurityEventType::Other, about, &who.origin, begun).await?;
        tx.commit().await?;
        let totp = totp(&secret, email.as_ref())?;
        let otpauth_uri = totp.to_url().map_err(|error| Error::internal(error.to_string()))?;
        let code = QrCode::new(&otpauth_uri).map_err(Error::internal)?;
        let qr_svg = code.render::<svg::Color>().min_dimensions(200, 200).build();
        Ok(Json(TotpEnrolment { secret: Secret::new_stack(secret).to_base32(), otpauth_uri, qr_svg }))
    }

    /// Confirm the authenticator with a code from it.
    ///
    /// From now on logging in takes a code. Every other session ends.
    #[oai(path = "/auth/mfa/totp/confirm", method = "post", operation_id = "confirm_totp")]
    async fn confirm(&self, who: User, given: Body<MfaCode>) -> Result<Json<RecoveryCodes>> {
        let app = &*who.app;
        let tx = app.db.begin().await?;
        let row = tx
            .query_one(
                "select sealed_totp_secret, mfa_enabled_at is not null as enabled from platform.users \
                 where id = $1 for no key update",
                &[&who.id],
            )
            .await?;
        if row.try_get("enabled")? {
            return Err(Error::conflict("A second factor is set up already."));
        }
        let sealed: Option<Vec<u8>> = row.try_get("sealed_totp_secret")?;
        let sealed = sealed.ok_or_else(|| Error::conflict("Begin at POST /api/v1/auth/mfa/totp."))?;
        let step = step_of(app, who.id, &sealed, &given.0.code)?.ok_or_else(|| {
            Error::invalid("code", "This is not the code that the authenticator shows now.")
        })?;
        tx.execute(
            "update platform.users set mfa_enabled_at = $2, totp_last_step = $3, version = version + 1 where id = $1",
            &[&who.id, &app.clock.now(), &step],
        )
        .await?;
        let codes = new_recovery_codes(&tx, who.id).await?;
        withdraw(&tx, app, Access::Sessions { user: who.id, but: Some(who.session) }, "mfa_enabled").await?;
        let about = About::user(who.id);
        security_events::record(&tx, app, SecurityEventType::MfaEnabled, about, &who.origin, json!({}))
            .await?;
        tell(&tx, app, who.id, "A second factor was set up").await?;
        tx.commit().await?;
        Ok(Json(codes))
    }

    /// Remove the second factor.
    #[oai(path = "/auth/mfa/disable", method = "post", operation_id = "disable_mfa")]
    async fn disable(&self, who: User, given: Body<MfaProof>) -> Result<NoContent> {
        let app = &*who.app;
        prove(&who, &given.0).await?;
        let tx = app.db.begin().await?;
        remove(&tx, who.id).await?;
        tell(&tx, app, who.id, "The second factor was removed").await?;
        let about = About::user(who.id);
        security_events::record(&tx, app, SecurityEventType::MfaDisabled, about, &who.origin, json!({}))
            .await?;
        tx.commit().await?;
        Ok(NoContent)
    }

    /// Make new recovery codes; the old ones are worth nothing any more.
    #[oai(path = "/auth/mfa/recovery-codes", method = "post", operation_id = "renew_recovery_codes")]
    async fn renew(&self, who: User, given: Body<MfaProof>) -> Result<Json<RecoveryCodes>> {
        prove(&who, &given.0).await?;
        let tx = who.app.db.begin().await?;
        let codes = new_recovery_codes(&tx, who.id).await?;
        let (kind, details) = (SecurityEventType::Other, json!({"what": "recovery_codes_renewed"}));
        security_events::record(&tx, &who.app, kind, About::user(who.id), &who.origin, details).await?;
        tx.commit().await?;
        Ok(Json(codes))
    }
}

async fn tell(tx: &Tx, app: &App, user: Uuid, what: &str) -> Result<()> {
    let profile = profile::find(tx, user).await?;
    let fields = [("name", profile.first_name.as_ref()), ("what", what)];
    mail::post(tx, app, Letter::new(&profile.email, "account_changed", &fields)).await
}

/// Takes the second factor from an account.
pub async fn remove(tx: &Tx, user: Uuid) -> Result<()> {
    standing::changed(tx, user).await?;
    tx.execute(
        "update platform.users set mfa_enabled_at = null, sealed_totp_secret = null, version = version + 1 \
         where id = $1",
        &[&user],
    )
    .await?;
    tx.execute("delete from platform.recovery_codes where user_id = $1", &[&user]).await?;
    Ok(())
}

/// Password and code, with failures counted like those of a login.
async fn prove(who: &User, given: &MfaProof) -> Result<()> {
    let app = &*who.app;
    prove_password(who, "password", &given.password).await?;
    let tx = app.db.begin().await?;
    if !profile::find(&tx, who.id).await?.mfa_enabled {
        return Err(Error::conflict("There is no second factor. Set one up at POST /api/v1/auth/mfa/totp."));
    }
    drop(tx);
    let subject = Subject::new(Some(who.id), "");
    let tx = app.db.begin().await?;
    lockout::attempt(&tx, app, &subject).await?;
    tx.commit_aside().await?;
    let tx = app.db.begin().await?;
    let fits = check(&tx, app, who.id, &given.code).await?;
    match fits {
        true => lockout::undo(&tx, &subject).await?,
        false => lockout::failed(&tx, app, &subject, &who.origin).await?,
    }
    tx.commit_aside().await?;
    if fits { Ok(()) } else { Err(Error::invalid("code", "This code is wrong or was used already.")) }
}

/// Whether a code is good for this user now, and uses it up: a code from the authenticator that is
/// newer than the last one, or a recovery code.
pub async fn check(tx: &Tx, app: &App, user: Uuid, code: &str) -> Result<bool> {
    let row = tx
        .query_opt(
            "select sealed_totp_secret from platform.users where id = $1 and mfa_enabled_at is not null",
            &[&user],
        )
        .await?;
    let Some(row) = row else { return Ok(false) };
    let sealed: Vec<u8> = row.try_get("sealed_totp_secret")?;
    if let Some(step) = step_of(app, user, &sealed, code)? {
        let newer = tx
            .execute(
                "update platform.users set totp_last_step = $2 where id = $1 and totp_last_step < $2",
                &[&user, &step],
            )
            .await?;
        return Ok(newer == 1);
    }
    let used = tx
        .execute(
            "update platform.recovery_codes set used_at = $3 where user_id = $1 and hash = $2 and used_at is null",
            &[&user, &recovery_hash(user, code), &app.clock.now()],
        )
        .await?;
    Ok(used == 1)
}

fn purpose(user: Uuid) -> String {
    format!("totp secret of {user}")
}

fn totp(secret: &[u8; 20], account: &str) -> Result<Totp> {
    // One step before and after now is good: clocks differ, and people are slow.
    Builder::new()
        .with_secret(Secret::new_stack(*secret))
        .with_skew(1)
        .with_issuer(Some("Rowhouse"))
        .with_account_name(account)
        .build()
        .map_err(|error| Error::internal(error.to_string()))
}

/// The 30-second step that a code belongs to, if it is one of the authenticator's about now.
fn step_of(app: &App, user: Uuid, sealed: &[u8], code: &str) -> Result<Option<i64>> {
    let opened = app.sealer.open(&purpose(user), sealed)?;
    let secret: [u8; 20] =
        opened.try_into().map_err(|_| Error::internal("a TOTP secret has another length than 20"))?;
    let digits: String = code.chars().filter(|c| !c.is_whitespace()).collect();
    if digits.len() != 6 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    let now = app.clock.now().timestamp().max(0) as u64;
    Ok(totp(&secret, "")?.check(&digits, now).map(|step| step as i64))
}

/// 80 random bits each, in letters and digits that are not mistaken for one another.
async fn new_recovery_codes(tx: &Tx, user: Uuid) -> Result<RecoveryCodes> {
    const ALPHABET: &[u8; 32] = b"abcdefghjkmnpqrstuvwxyz234567890";
    let mut codes = Vec::with_capacity(RECOVERY_CODES);
    for _ in 0..RECOVERY_CODES {
        let bytes: [u8; 16] = random()?;
        let mut code = String::new();
        for (place, byte) in bytes.iter().enumerate() {
            let dash = if place > 0 && place.is_multiple_of(4) { "-" } else { "" };
            let _ = write!(code, "{dash}{}", ALPHABET[usize::from(byte % 32)] as char);
        }
        codes.push(code);
    }
    // Of two renewals at once, the second replaces the first's.
    profile::lock(tx, user).await?;
    tx.execute("delete from platform.recovery_codes where user_id = $1", &[&user]).await?;
    let hashes: Vec<Vec<u8>> = codes.iter().map(|code| recovery_hash(user, code)).collect();
    tx.execute(
        "insert into platform.recovery_codes (user_id, hash) select $1, unnest($2::bytea[])",
        &[&user, &hashes],
    )
    .await?;
    Ok(RecoveryCodes { recovery_codes: codes })
}

fn recovery_hash(user: Uuid, code: &str) -> Vec<u8> {
    let plain: String = code.chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    sha256(format!("recovery {user} {}", plain.to_ascii_lowercase()).as_bytes())
}

/// The answer to a right password without its code.
pub fn code_wanted(challenge: &str, seconds: i64) -> Error {
    Error::new(
        Code::MfaRequired,
        "A code is needed: send it with the challenge to POST /api/v1/auth/login/mfa, or as mfa_code.",
    )
    .with_details(json!({"challenge": challenge, "expires_in": seconds}))
}
