//! Updates: announcements to everybody in an organization.

use chrono::{DateTime, Utc};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::{Example, MaybeUndefined},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    api::Tag,
    audit::Changes,
    auth::{
        Can, Member,
        permissions::{UpdatesRead, UpdatesWrite},
    },
    db::{Row, Select, TenantTx},
    error::{Error, Result},
    events::{self, EventType},
    http::{Body, Created, IfMatch, Json, NoContent, Single, Versioned},
    page::{ListCursor, Page, Paging, Sort, SortKey, SortKeys, key, nullable_key},
    types::{EXAMPLE_ID, Text, change, change_optional, check_year, example, example_time, text_enum},
};

text_enum! {
    /// What kind of news an update is.
    UpdateKind { Info = "info", Success = "success", Warning = "warning", Urgent = "urgent" }
}

text_enum! {
    /// How much an update presses.
    UpdatePriority { Low = "low", Medium = "medium", High = "high", Urgent = "urgent" }
}

text_enum! {
    /// Whether an update is of the future, of now or of the past.
    UpdateState {
        /// Its `published_at` is still to come.
        Scheduled = "scheduled",
        /// Published, and not expired.
        Current = "current",
        /// Its `expires_at` is over.
        Expired = "expired",
    }
}

type Title = Text<1, 200>;
type Content = Text<1, 20_000>;

/// An announcement.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct Update {
    pub id: Uuid,
    pub title: Title,
    pub body: Content,
    #[serde(rename = "type")]
    #[oai(rename = "type")]
    pub kind: UpdateKind,
    pub priority: UpdatePriority,
    pub author_id: Uuid,
    /// From when on it is current. No secret before: whoever reads updates finds it in the list.
    pub published_at: DateTime<Utc>,
    /// Until when it is current; null is for good.
    pub expires_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    #[serde(skip)]
    #[oai(skip)]
    pub version: i64,
}

impl Versioned for Update {
    fn version(&self) -> i64 {
        self.version
    }
}

impl Example for Update {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            title: example("Line 3 stands still on Friday"),
            body: example("The press is serviced from 08:00 to 12:00."),
            kind: UpdateKind::Warning,
            priority: UpdatePriority::High,
            author_id: EXAMPLE_ID,
            published_at: example_time(),
            expires_at: None,
            created_at: example_time(),
            updated_at: example_time(),
            version: 1,
        }
    }
}

/// An announcement to be made.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct NewUpdate {
    pub title: Title,
    pub body: Content,
    /// `info` where it is absent.
    #[serde(rename = "type")]
    #[oai(rename = "type")]
    pub kind: Option<UpdateKind>,
    /// `medium` where it is absent.
    pub priority: Option<UpdatePriority>,
    /// Now where it is absent.
    pub published_at: Option<DateTime<Utc>>,
    /// After `published_at`.
    pub expires_at: Option<DateTime<Utc>>,
}

impl Example for NewUpdate {
    fn example() -> Self {
        Self {
            title: example("Line 3 stands still on Friday"),
            body: example("The press is serviced from 08:00 to 12:00."),
            kind: Some(UpdateKind::Warning),
            priority: Some(UpdatePriority::High),
            published_at: None,
            expires_at: None,
        }
    }
}

/// What changes; what is absent stays, null empties.
#[derive(Debug, Default, Deserialize, Object)]
#[serde(deny_unknown_fields, default)]
#[oai(deny_unknown_fields, example)]
pub struct UpdateChange {
    pub title: MaybeUndefined<Title>,
    pub body: MaybeUndefined<Content>,
    #[serde(rename = "type")]
    #[oai(rename = "type")]
    pub kind: MaybeUndefined<UpdateKind>,
    pub priority: MaybeUndefined<UpdatePriority>,
    pub published_at: MaybeUndefined<DateTime<Utc>>,
    pub expires_at: MaybeUndefined<DateTime<Utc>>,
}

impl Example for UpdateChange {
    fn example() -> Self {
        Self { priority: MaybeUndefined::Value(UpdatePriority::Urgent), ..Self::default() }
    }
}

/// What updates can be sorted by.
#[derive(Clone, Debug)]
pub struct UpdateKeys;

impl SortKeys for UpdateKeys {
    const KEYS: &[SortKey] = &[
        key("published_at", "timestamptz"),
        key("created_at", "timestamptz"),
        key("updated_at", "timestamptz"),
        key("title", "text"),
        nullable_key("expires_at", "timestamptz"),
    ];
}

pub struct UpdatesApi;

#[OpenApi(tag = "Tag::Updates")]
impl UpdatesApi {
    /// List updates.
    #[oai(path = "/updates", method = "get", operation_id = "list_updates")]
    #[allow(clippy::too_many_arguments)]
    async fn list(
        &self,
        who: Can<UpdatesRead>,
        page: Query<Option<u32>>,
        page_size: Query<Option<u32>>,
        cursor: Query<Option<ListCursor>>,
        #[oai(name = "type")] kind: Query<Option<UpdateKind>>,
        priority: Query<Option<UpdatePriority>>,
        /// All of them where it is absent.
        state: Query<Option<UpdateState>>,
        /// `-published_at` by default.
        sort: Query<Option<Sort<UpdateKeys>>>,
    ) -> Result<Json<Page<Update>>> {
        let paging = Paging::new(page.0, page_size.0, cursor.0)?;
        let order = Sort::or(sort.0, "-published_at");
        let now = who.app.clock.now();
        let tx = who.begin().await?;
        let select =
            Select::new(COLUMNS, "updates").and_if("type = ?", &kind.0).and_if("priority = ?", &priority.0);
        let select = match state.0 {
            None => select,
            Some(UpdateState::Scheduled) => select.and("published_at > ?", &now),
            Some(UpdateState::Current) => {
                select.and("published_at <= ? and (expires_at is null or expires_at > ?)", &now)
            }
            Some(UpdateState::Expired) => select.and("expires_at <= ?", &now),
        };
        let page = select.page(&tx, &order, &paging, from_row).await?;
        Ok(Json(page))
    }

    /// Create an update.
    #[oai(path = "/updates", method = "post", operation_id = "create_update")]
    async fn create(&self, who: Can<UpdatesWrite>, new: Body<NewUpdate>) -> Result<Created<Update>> {
        let tx = who.begin().await?;
        let update = insert(&tx, &who, new.0).await?;
        tx.commit().await?;
        Ok(Created { location: format!("/api/v1/updates/{}", update.id), value: update })
    }

    /// See an update.
    #[oai(path = "/updates/:update_id", method = "get", operation_id = "get_update")]
    async fn get(&self, who: Can<UpdatesRead>, update_id: Path<Uuid>) -> Result<Single<Update>> {
        let tx = who.begin().await?;
        Ok(Single(find(&tx, update_id.0).await?))
    }

    /// Change an update.
    #[oai(path = "/updates/:update_id", method = "patch", operation_id = "update_update")]
    async fn update(
        &self,
        who: Can<UpdatesWrite>,
        update_id: Path<Uuid>,
        expected: IfMatch,
        to: Body<UpdateChange>,
    ) -> Result<Single<Update>> {
        let tx = who.begin().await?;
        let mut update = find_to_change(&tx, update_id.0).await?;
        expected.check(update.version)?;
        let before = update.clone();
        apply(&mut update, to.0)?;
        check(&mut update)?;
        update.updated_at = who.app.clock.now();
        update.version += 1;
        store(&tx, &update).await?;
        let changes = Changes::between(&before, &update);
        events::record(&tx, &who.app, &*who, EventType::UpdateUpdated, update.id, changes).await?;
        tx.commit().await?;
        Ok(Single(update))
    }

    /// Delete an update.
    #[oai(path = "/updates/:update_id", method = "delete", operation_id = "delete_update")]
    async fn delete(
        &self,
        who: Can<UpdatesWrite>,
        update_id: Path<Uuid>,
        expected: IfMatch,
    ) -> Result<NoContent> {
        let tx = who.begin().await?;
        let update = find_to_change(&tx, update_id.0).await?;
        expected.check(update.version)?;
        tx.execute("delete from updates where id = $1", &[&update.id]).await?;
        let changes = Changes::deleted(&update);
        events::record(&tx, &who.app, &*who, EventType::UpdateDeleted, update.id, changes).await?;
        tx.commit().await?;
        Ok(NoContent)
    }
}

const COLUMNS: &str =
    "id, title, body, type, priority, author_id, published_at, expires_at, version, created_at, updated_at";

fn from_row(row: &Row) -> Result<Update> {
    Ok(Update {
        id: row.try_get("id")?,
        title: row.try_get("title")?,
        body: row.try_get("body")?,
        kind: row.try_get("type")?,
        priority: row.try_get("priority")?,
        author_id: row.try_get("author_id")?,
        published_at: row.try_get("published_at")?,
        expires_at: row.try_get("expires_at")?,
        version: row.try_get("version")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}

async fn find(tx: &TenantTx, id: Uuid) -> Result<Update> {
    let sql = format!("select {COLUMNS} from updates where id = $1");
    from_row(&tx.query_opt(&sql, &[&id]).await?.ok_or_else(|| Error::not_found("update"))?)
}

/// An update with its row locked.
async fn find_to_change(tx: &TenantTx, id: Uuid) -> Result<Update> {
    tx.query("select id from updates where id = $1 for update", &[&id]).await?;
    find(tx, id).await
}

/// Makes an update for a caller who may.
async fn insert(tx: &TenantTx, who: &Member, new: NewUpdate) -> Result<Update> {
    let now = who.app.clock.now();
    let mut update = Update {
        id: Uuid::now_v7(),
        title: new.title,
        body: new.body,
        kind: new.kind.unwrap_or(UpdateKind::Info),
        priority: new.priority.unwrap_or(UpdatePriority::Medium),
        author_id: who.user_id,
        published_at: new.published_at.unwrap_or(now),
        expires_at: new.expires_at,
        created_at: now,
        updated_at: now,
        version: 1,
    };
    check(&mut update)?;
    tx.execute(
        "insert into updates (id, title, body, type, priority, author_id, published_at, expires_at, created_at, \
         updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)",
        &[
            &update.id,
            &update.title,
            &update.body,
            &update.kind,
            &update.priority,
            &update.author_id,
            &update.published_at,
            &update.expires_at,
            &now,
        ],
    )
    .await?;
    events::record(tx, &who.app, who, EventType::UpdateCreated, update.id, Changes::created(&update)).await?;
    Ok(update)
}

fn apply(update: &mut Update, to: UpdateChange) -> Result<()> {
    change(&mut update.title, "title", to.title)?;
    change(&mut update.body, "body", to.body)?;
    change(&mut update.kind, "type", to.kind)?;
    change(&mut update.priority, "priority", to.priority)?;
    change(&mut update.published_at, "published_at", to.published_at)?;
    change_optional(&mut update.expires_at, to.expires_at);
    Ok(())
}

/// What must hold whoever writes; also cuts times to the microseconds that are kept.
fn check(update: &mut Update) -> Result<()> {
    let kept = |time: DateTime<Utc>| DateTime::from_timestamp_micros(time.timestamp_micros()).unwrap_or(time);
    check_year("published_at", Some(update.published_at.date_naive()))?;
    check_year("expires_at", update.expires_at.map(|time| time.date_naive()))?;
    update.published_at = kept(update.published_at);
    update.expires_at = update.expires_at.map(kept);
    if update.expires_at.is_some_and(|expires| expires <= update.published_at) {
        return Err(Error::invalid("expires_at", "must be after published_at"));
    }
    Ok(())
}

async fn store(tx: &TenantTx, update: &Update) -> Result<()> {
    tx.execute(
        "update updates set title = $2, body = $3, type = $4, priority = $5, published_at = $6, expires_at = $7, \
         version = $8, updated_at = $9 where id = $1",
        &[
            &update.id,
            &update.title,
            &update.body,
            &update.kind,
            &update.priority,
            &update.published_at,
            &update.expires_at,
            &update.version,
            &update.updated_at,
        ],
    )
    .await?;
    Ok(())
}
