//! Mentions: where one was spoken to by name.

use chrono::{DateTime, Utc};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::Example,
};
use serde::Serialize;
use uuid::Uuid;

use crate::{
    api::Tag,
    auth::{Can, Member, Permission, permissions::NotificationsRead},
    db::{Row, Select, TenantTx},
    error::{Error, Result},
    http::{Json, NoContent, Single, Versioned},
    page::{Cursor, CursorPage, Stretch},
    types::{EXAMPLE_ID, Name, Text, example, example_time, text_enum},
};

text_enum! {
    /// In what somebody is mentioned.
    MentionKind { Comment = "comment", Message = "message" }
}

/// A comment or message that names one.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct Mention {
    pub id: Uuid,
    pub kind: MentionKind,
    pub author_id: Uuid,
    /// The first 300 characters of what was said.
    pub excerpt: String,
    pub project_id: Uuid,
    pub project_name: Name,
    /// Of a comment.
    pub task_id: Option<Uuid>,
    pub task_title: Option<Text<1, 200>>,
    pub comment_id: Option<Uuid>,
    pub message_id: Option<Uuid>,
    pub created_at: DateTime<Utc>,
    /// One in a message is read with the message.
    pub read_at: Option<DateTime<Utc>>,
}

impl Versioned for Mention {
    fn version(&self) -> i64 {
        1 + i64::from(self.read_at.is_some())
    }
}

impl Example for Mention {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            kind: MentionKind::Comment,
            author_id: EXAMPLE_ID,
            excerpt: "The lab wants the samples by Friday".into(),
            project_id: EXAMPLE_ID,
            project_name: example("Website relaunch"),
            task_id: Some(EXAMPLE_ID),
            task_title: Some(example("Write the landing page")),
            comment_id: Some(EXAMPLE_ID),
            message_id: None,
            created_at: example_time(),
            read_at: None,
        }
    }
}

pub struct MentionsApi;

#[OpenApi(tag = "Tag::MyWork")]
impl MentionsApi {
    /// List where one is mentioned, newest first.
    #[oai(path = "/me/mentions", method = "get", operation_id = "list_my_mentions")]
    async fn list(
        &self,
        who: Can<NotificationsRead>,
        cursor: Query<Option<Cursor>>,
        limit: Query<Option<u32>>,
        /// True: those that are not read; false: the others.
        unread: Query<Option<bool>>,
        project_id: Query<Option<Uuid>>,
    ) -> Result<Json<CursorPage<Mention>>> {
        let stretch = Stretch::new(cursor.0, limit.0)?;
        let tx = who.begin().await?;
        let rows = of(&who)
            .and_if("(read_at is null) = ?", &unread.0)
            .and_if("project_id = ?", &project_id.0)
            .newest(&tx, &stretch)
            .await?;
        let mentions = rows.iter().map(from_row).collect::<Result<_>>()?;
        Ok(Json(stretch.answer(mentions, |mention: &Mention| mention.id)))
    }

    /// Mark a mention as read.
    #[oai(path = "/me/mentions/:mention_id/read", method = "post", operation_id = "read_mention")]
    async fn read(&self, who: Can<NotificationsRead>, mention_id: Path<Uuid>) -> Result<Single<Mention>> {
        let tx = who.begin().await?;
        let mut mention = find(&tx, &who, mention_id.0).await?;
        if mention.read_at.is_none() {
            let now = who.app.clock.now();
            let sql = "update mentions set read_at = $2 where id = $1 and read_at is null";
            tx.execute(sql, &[&mention.id, &now]).await?;
            mention.read_at = Some(now);
            tx.commit().await?;
        }
        Ok(Single(mention))
    }

    /// Mark all of one's mentions, of those that one may see, as read.
    #[oai(path = "/me/mentions/read-all", method = "post", operation_id = "read_all_mentions")]
    async fn read_all(&self, who: Can<NotificationsRead>) -> Result<NoContent> {
        let tx = who.begin().await?;
        // In the order of their ids, as everybody who marks several does.
        tx.execute(
            "update mentions set read_at = $2 where id in ( \
               select n.id from mentions n where n.user_id = $1 and n.read_at is null and not n.withdrawn \
               and (n.comment_id is null or $3) and (n.message_id is null or $4) order by n.id for update)",
            &[
                &who.user_id,
                &who.app.clock.now(),
                &who.may(Permission::CommentsRead),
                &who.may(Permission::MessagesRead),
            ],
        )
        .await?;
        tx.commit().await?;
        Ok(NoContent)
    }
}

const COLUMNS: &str = "id, author_id, excerpt, project_id, project_name, task_id, task_title, comment_id, \
     message_id, created_at, read_at";

/// Every mention with where it stands.
const MENTIONS: &str = "(select n.id, n.user_id, n.comment_id, n.message_id, n.created_at, n.read_at, \
     coalesce(c.author_id, m.author_id) as author_id, left(coalesce(c.body, m.body), 300) as excerpt, \
     t.id as task_id, t.title as task_title, p.id as project_id, p.name as project_name \
     from mentions n left join comments c on c.id = n.comment_id left join tasks t on t.id = c.task_id \
     left join messages m on m.id = n.message_id join projects p on p.id = coalesce(t.project_id, m.project_id) \
     where not n.withdrawn) as mine";

/// Somebody's mentions, of what they may read.
fn of(who: &Member) -> Select<'_> {
    let mut select = Select::new(COLUMNS, MENTIONS).and("user_id = ?", &who.user_id);
    if !who.may(Permission::CommentsRead) {
        select = select.only("comment_id is null");
    }
    if !who.may(Permission::MessagesRead) {
        select = select.only("message_id is null");
    }
    select
}

fn from_row(row: &Row) -> Result<Mention> {
    let comment_id: Option<Uuid> = row.try_get("comment_id")?;
    Ok(Mention {
        id: row.try_get("id")?,
        kind: if comment_id.is_some() { MentionKind::Comment } else { MentionKind::Message },
        author_id: row.try_get("author_id")?,
        excerpt: row.try_get("excerpt")?,
        project_id: row.try_get("project_id")?,
        project_name: row.try_get("project_name")?,
        task_id: row.try_get("task_id")?,
        task_title: row.try_get("task_title")?,
        comment_id,
        message_id: row.try_get("message_id")?,
        created_at: row.try_get("created_at")?,
        read_at: row.try_get("read_at")?,
    })
}

/// A mention of the caller's.
async fn find(tx: &TenantTx, who: &Member, id: Uuid) -> Result<Mention> {
    let rows = of(who).and("id = ?", &id).first(tx, "id", 1).await?;
    from_row(rows.first().ok_or_else(|| Error::not_found("mention"))?)
}
