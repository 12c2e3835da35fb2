//! One's own account.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use poem_openapi::{
    Object, OpenApi,
    types::{Example, MaybeUndefined},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_postgres::types::Json as Jsonb;
use uuid::Uuid;

use super::avatar;
use crate::{
    api::Tag,
    auth::User,
    db::{Row, Tx},
    error::{Code, Error, Result},
    http::{Body, IfMatch, Single, Versioned},
    types::{
        EXAMPLE_ID, Email, Locale, Prose, Text, Timezone, Username, WebUrl, change, change_optional, example,
        example_time,
    },
};

/// A person's account, as the person sees it.
#[derive(Debug, Serialize, Object)]
#[oai(rename = "User", example)]
pub struct Profile {
    pub id: Uuid,
    pub email: Email,
    pub username: Option<Username>,
    pub first_name: Text<0, 150>,
    pub last_name: Text<0, 150>,
    pub display_name: Option<Text<1, 255>>,
    pub bio: Option<Prose>,
    pub location: Option<Text<1, 100>>,
    pub phone: Option<Text<3, 32>>,
    pub company: Option<Text<1, 200>>,
    /// Where the person's picture is: any address, or that of the one that was uploaded.
    pub avatar_url: Option<WebUrl>,
    pub locale: Locale,
    pub timezone: Timezone,
    /// Whatever a client wants to remember for its user, at most 16 KiB.
    pub preferences: HashMap<String, Value>,
    /// Whether the address is proved.
    pub email_verified: bool,
    /// Whether logging in takes a code.
    pub mfa_enabled: bool,
    /// Staff of the platform.
    pub is_superuser: bool,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    #[serde(skip)]
    #[oai(skip)]
    pub version: i64,
}

impl Versioned for Profile {
    fn version(&self) -> i64 {
        self.version
    }
}

impl Example for Profile {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            email: example("ana@example.com"),
            username: Some(example("ana")),
            first_name: example("Ana"),
            last_name: example("Tan"),
            display_name: None,
            bio: None,
            location: Some(example("Singapore")),
            phone: None,
            company: None,
            avatar_url: None,
            locale: Locale::En,
            timezone: example("Asia/Singapore"),
            preferences: HashMap::from([("theme".into(), "dark".into())]),
            email_verified: true,
            mfa_enabled: false,
            is_superuser: false,
            created_at: example_time(),
            updated_at: example_time(),
            version: 1,
        }
    }
}

/// What changes; what is absent stays, null empties.
#[derive(Debug, Default, Deserialize, Object)]
#[serde(deny_unknown_fields, default)]
#[oai(deny_unknown_fields, example)]
pub struct ProfileChange {
    pub first_name: MaybeUndefined<Text<0, 150>>,
    pub last_name: MaybeUndefined<Text<0, 150>>,
    pub display_name: MaybeUndefined<Text<1, 255>>,
    pub bio: MaybeUndefined<Prose>,
    pub location: MaybeUndefined<Text<1, 100>>,
    pub phone: MaybeUndefined<Text<3, 32>>,
    pub company: MaybeUndefined<Text<1, 200>>,
    pub avatar_url: MaybeUndefined<WebUrl>,
    pub locale: MaybeUndefined<Locale>,
    pub timezone: MaybeUndefined<Timezone>,
    pub preferences: MaybeUndefined<HashMap<String, Value>>,
}

impl Example for ProfileChange {
    fn example() -> Self {
        Self {
            display_name: MaybeUndefined::Value(example("Ana T.")),
            timezone: MaybeUndefined::Value(example("Asia/Kuala_Lumpur")),
            ..Self::default()
        }
    }
}

pub struct ProfileApi;

#[OpenApi(tag = "Tag::Accounts")]
impl ProfileApi {
    /// See one's own account.
    #[oai(path = "/auth/user", method = "get", operation_id = "get_user")]
    async fn get(&self, who: User) -> Result<Single<Profile>> {
        let tx = who.app.db.begin().await?;
        Ok(Single(find(&tx, who.id).await?))
    }

    /// Change one's own account.
    #[oai(path = "/auth/user", method = "patch", operation_id = "update_user")]
    async fn update(
        &self,
        who: User,
        expected: IfMatch,
        change: Body<ProfileChange>,
    ) -> Result<Single<Profile>> {
        let tx = who.app.db.begin().await?;
        tx.query("select id from platform.users where id = $1 for update", &[&who.id]).await?;
        let mut profile = find(&tx, who.id).await?;
        expected.check(profile.version)?;
        let shown = profile.avatar_url.clone();
        apply(&mut profile, change.0)?;
        if profile.avatar_url != shown {
            avatar::give_up(&tx, &who.app, who.id).await?;
        }
        profile.updated_at = who.app.clock.now();
        profile.version += 1;
        store(&tx, &profile).await?;
        tx.commit().await?;
        Ok(Single(profile))
    }
}

/// Locks an account's row: changes of what proves who somebody is come one after the other.
pub async fn lock(tx: &Tx, id: Uuid) -> Result<()> {
    tx.query("select id from platform.users where id = $1 for no key update", &[&id]).await?;
    Ok(())
}

/// An account that must be there.
pub async fn find(tx: &Tx, id: Uuid) -> Result<Profile> {
    let row = tx
        .query_opt(
            "select id, email, username, first_name, last_name, display_name, bio, location, phone, company, \
             avatar_url, locale, timezone, preferences, is_superuser, \
             email_verified_at is not null as email_verified, mfa_enabled_at is not null as mfa_enabled, version, \
             created_at, updated_at \
             from platform.users where id = $1",
            &[&id],
        )
        .await?;
    from_row(&row.ok_or_else(|| Error::new(Code::NotFound, "There is no such user."))?)
}

fn from_row(row: &Row) -> Result<Profile> {
    Ok(Profile {
        id: row.try_get("id")?,
        email: row.try_get("email")?,
        username: row.try_get("username")?,
        first_name: row.try_get("first_name")?,
        last_name: row.try_get("last_name")?,
        display_name: row.try_get("display_name")?,
        bio: row.try_get("bio")?,
        location: row.try_get("location")?,
        phone: row.try_get("phone")?,
        company: row.try_get("company")?,
        avatar_url: row.try_get("avatar_url")?,
        locale: row.try_get("locale")?,
        timezone: row.try_get("timezone")?,
        preferences: row.try_get::<_, Jsonb<_>>("preferences")?.0,
        email_verified: row.try_get("email_verified")?,
        mfa_enabled: row.try_get("mfa_enabled")?,
        is_superuser: row.try_get("is_superuser")?,
        version: row.try_get("version")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}

fn apply(profile: &mut Profile, to: ProfileChange) -> Result<()> {
    change(&mut profile.first_name, "first_name", to.first_name)?;
    change(&mut profile.last_name, "last_name", to.last_name)?;
    change(&mut profile.locale, "locale", to.locale)?;
    change(&mut profile.timezone, "timezone", to.timezone)?;
    change(&mut profile.preferences, "preferences", to.preferences)?;
    change_optional(&mut profile.display_name, to.display_name);
    change_optional(&mut profile.bio, to.bio);
    change_optional(&mut profile.location, to.location);
    change_optional(&mut profile.phone, to.phone);
    change_optional(&mut profile.company, to.company);
    change_optional(&mut profile.avatar_url, to.avatar_url);
    let size = serde_json::to_vec(&profile.preferences).map_err(Error::internal)?.len();
    if size > 16 * 1024 {
        return Err(Error::invalid("preferences", format!("may have 16 KiB, has {size} bytes")));
    }
    Ok(())
}

async fn store(tx: &Tx, profile: &Profile) -> Result<()> {
    tx.execute(
        "update platform.users set first_name = $2, last_name = $3, display_name = $4, bio = $5, location = $6, \
         phone = $7, company = $8, avatar_url = $9, locale = $10, timezone = $11, preferences = $12, \
         version = $13, updated_at = $14 where id = $1",
        &[
            &profile.id,
            &profile.first_name,
            &profile.last_name,
            &profile.display_name,
            &profile.bio,
            &profile.location,
            &profile.phone,
            &profile.company,
            &profile.avatar_url,
            &profile.locale,
            &profile.timezone,
            &Jsonb(&profile.preferences),
            &profile.version,
            &profile.updated_at,
        ],
    )
    .await?;
    Ok(())
}
