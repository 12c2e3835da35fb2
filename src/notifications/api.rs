//! The list of one's notifications.

use chrono::{DateTime, Utc};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::Example,
};
use serde::Serialize;
use uuid::Uuid;

use super::{changed, notices::NoticeKind};
use crate::{
    api::Tag,
    auth::{Can, permissions::NotificationsRead},
    db::{Row, Select, TenantTx},
    error::{Error, Result},
    http::{IfMatch, Json, NoContent, Single, Versioned},
    page::{Cursor, CursorPage, Stretch},
    types::{EXAMPLE_ID, example_time},
};

/// Something that somebody is told.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct Notification {
    pub id: Uuid,
    /// One of those in the settings.
    pub kind: String,
    pub title: String,
    pub body: String,
    /// Where in the web application there is more.
    pub path: String,
    pub created_at: DateTime<Utc>,
    pub read_at: Option<DateTime<Utc>>,
}

impl Versioned for Notification {
    fn version(&self) -> i64 {
        1 + i64::from(self.read_at.is_some())
    }
}

impl Example for Notification {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            kind: NoticeKind::TaskAssigned.name().into(),
            title: "New task: Write the landing page".into(),
            body: "Ana Tan assigned this task to you in Acme.".into(),
            path: format!("/tasks/{EXAMPLE_ID}"),
            created_at: example_time(),
            read_at: None,
        }
    }
}

/// How many notifications are not read.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct UnreadCount {
    pub unread: i64,
}

impl Example for UnreadCount {
    fn example() -> Self {
        Self { unread: 3 }
    }
}

pub struct NotificationsApi;

#[OpenApi(tag = "Tag::Notifications")]
impl NotificationsApi {
    /// List one's notifications, newest first.
    #[oai(path = "/notifications", method = "get", operation_id = "list_notifications")]
    async fn list(
        &self,
        who: Can<NotificationsRead>,
        cursor: Query<Option<Cursor>>,
        limit: Query<Option<u32>>,
        /// True: those that are not read; false: the others.
        unread: Query<Option<bool>>,
        kind: Query<Option<NoticeKind>>,
    ) -> Result<Json<CursorPage<Notification>>> {
        let stretch = Stretch::new(cursor.0, limit.0)?;
        let tx = who.begin().await?;
        let select = Select::new(COLUMNS, "notifications")
            .and("user_id = ?", &who.user_id)
            .and_if("(read_at is null) = ?", &unread.0)
            .and_if("kind = ?", &kind.0);
        let rows = select.newest(&tx, &stretch).await?;
        let notifications = rows.iter().map(from_row).collect::<Result<_>>()?;
        Ok(Json(stretch.answer(notifications, |notification: &Notification| notification.id)))
    }

    /// Count one's unread notifications.
    #[oai(path = "/notifications/unread-count", method = "get", operation_id = "count_unread_notifications")]
    async fn unread_count(&self, who: Can<NotificationsRead>) -> Result<Json<UnreadCount>> {
        let tx = who.begin().await?;
        Ok(Json(UnreadCount { unread: unread(&tx, who.user_id).await? }))
    }

    /// Mark a notification as read.
    #[oai(path = "/notifications/:notification_id/read", method = "post", operation_id = "read_notification")]
    async fn read(
        &self,
        who: Can<NotificationsRead>,
        notification_id: Path<Uuid>,
    ) -> Result<Single<Notification>> {
        let tx = who.begin().await?;
        let mut notification = find(&tx, who.user_id, notification_id.0).await?;
        if notification.read_at.is_none() {
            let now = who.app.clock.now();
            tx.execute("update notifications set read_at = $2 where id = $1", &[&notification.id, &now])
                .await?;
            notification.read_at = Some(now);
            changed(&tx, &[who.user_id]).await?;
            tx.commit().await?;
        }
        Ok(Single(notification))
    }

    /// Mark all of one's notifications as read.
    #[oai(path = "/notifications/read-all", method = "post", operation_id = "read_all_notifications")]
    async fn read_all(&self, who: Can<NotificationsRead>) -> Result<NoContent> {
        let tx = who.begin().await?;
        let read = tx
            .execute(
                "update notifications set read_at = $2 where user_id = $1 and read_at is null",
                &[&who.user_id, &who.app.clock.now()],
            )
            .await?;
        if read > 0 {
            changed(&tx, &[who.user_id]).await?;
            tx.commit().await?;
        }
        Ok(NoContent)
    }

    /// Delete a notification.
    #[oai(path = "/notifications/:notification_id", method = "delete", operation_id = "delete_notification")]
    async fn delete(
        &self,
        who: Can<NotificationsRead>,
        notification_id: Path<Uuid>,
        expected: IfMatch,
    ) -> Result<NoContent> {
        let tx = who.begin().await?;
        let notification = find(&tx, who.user_id, notification_id.0).await?;
        expected.check(notification.version())?;
        tx.execute("delete from notifications where id = $1", &[&notification.id]).await?;
        changed(&tx, &[who.user_id]).await?;
        tx.commit().await?;
        Ok(NoContent)
    }
}

const COLUMNS: &str = "id, kind, title, body, path, created_at, read_at";

fn from_row(row: &Row) -> Result<Notification> {
    Ok(Notification {
        id: row.try_get("id")?,
        kind: row.try_get("kind")?,
        title: row.try_get("title")?,
        body: row.try_get("body")?,
        path: row.try_get("path")?,
        created_at: row.try_get("created_at")?,
        read_at: row.try_get("read_at")?,
    })
}

/// How many of somebody's notifications are not read.
pub async fn unread(tx: &TenantTx, user: Uuid) -> Result<i64> {
    let sql = "select count(*) from notifications where user_id = $1 and read_at is null";
    Ok(tx.query_one(sql, &[&user]).await?.try_get(0)?)
}

/// Somebody's notifications after an id, the oldest first.
pub async fn after(tx: &TenantTx, user: Uuid, id: Uuid, most: i64) -> Result<Vec<Notification>> {
    let rows = Select::new(COLUMNS, "notifications")
        .and("user_id = ?", &user)
        .and("id > ?", &id)
        .first(tx, "id", most)
        .await?;
    rows.iter().map(from_row).collect()
}

/// Somebody's newest notifications, the newest first.
pub async fn newest(tx: &TenantTx, user: Uuid, most: i64) -> Result<Vec<Notification>> {
    let rows =
        Select::new(COLUMNS, "notifications").and("user_id = ?", &user).first(tx, "id desc", most).await?;
    rows.iter().map(from_row).collect()
}

/// A notification of one's own, with its row locked.
async fn find(tx: &TenantTx, user: Uuid, id: Uuid) -> Result<Notification> {
    let sql = format!("select {COLUMNS} from notifications where id = $1 and user_id = $2 for update");
    from_row(&tx.query_opt(&sql, &[&id, &user]).await?.ok_or_else(|| Error::not_found("notification"))?)
}
