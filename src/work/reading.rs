//! Who has read which messages, and what there is to read.

use chrono::{DateTime, Utc};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::Example,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::messages::{self, Message};
use crate::{
    api::Tag,
    auth::{Can, permissions::MessagesRead},
    db::{Row, TenantTx},
    error::{Error, Result},
    http::{Body, IfMatch, Json, Single, Versioned},
    types::{EXAMPLE_ID, Name, example, example_time},
};

/// Up to which message of a project one has read.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct ReadMarker {
    pub project_id: Uuid,
    /// The number of the last message that is read; 0 before the first.
    pub number: i64,
    /// When it got there.
    pub read_at: Option<DateTime<Utc>>,
}

impl Versioned for ReadMarker {
    fn version(&self) -> i64 {
        self.number
    }
}

impl Example for ReadMarker {
    fn example() -> Self {
        Self { project_id: EXAMPLE_ID, number: 17, read_at: Some(example_time()) }
    }
}

/// What has been read.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct ReadUpTo {
    /// The last message that is read, a reply or not. One before the marker changes nothing.
    pub up_to: Uuid,
}

impl Example for ReadUpTo {
    fn example() -> Self {
        Self { up_to: EXAMPLE_ID }
    }
}

/// Somebody who has read a message.
#[derive(Debug, Serialize, Object)]
pub struct MessageReader {
    pub user_id: Uuid,
    /// When they last marked something in the project as read: this message, or a later one.
    pub read_at: DateTime<Utc>,
}

/// Who has read a message.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct MessageReaders {
    /// At most 1,000, those who read last first; without the author.
    pub data: Vec<MessageReader>,
}

impl Example for MessageReaders {
    fn example() -> Self {
        Self { data: vec![MessageReader { user_id: EXAMPLE_ID, read_at: example_time() }] }
    }
}

/// What there is to read in a project.
#[derive(Debug, Serialize, Object)]
pub struct UnreadProject {
    pub project_id: Uuid,
    pub project_name: Name,
    /// Messages of others after one's marker, among the last 1,000 of the project.
    pub unread: i64,
    /// How many messages mention one and are not read.
    pub mentions: i64,
    pub last_message_at: DateTime<Utc>,
}

/// What there is to read.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct UnreadMessages {
    /// Projects with unread messages, of the 100 with the newest after one's marker; those with the newest first.
    pub data: Vec<UnreadProject>,
    /// All of `unread` added up.
    pub unread: i64,
}

impl Example for UnreadMessages {
    fn example() -> Self {
        let project = UnreadProject {
            project_id: EXAMPLE_ID,
            project_name: example("Website relaunch"),
            unread: 4,
            mentions: 1,
            last_message_at: example_time(),
        };
        Self { data: vec![project], unread: 4 }
    }
}

pub struct ReadingApi;

#[OpenApi(tag = "Tag::Messages")]
impl ReadingApi {
    /// See up to where one has read the messages of a project.
    #[oai(path = "/projects/:project_id/messages/read", method = "get", operation_id = "get_read_marker")]
    async fn marker(&self, who: Can<MessagesRead>, project_id: Path<Uuid>) -> Result<Single<ReadMarker>> {
        let tx = who.begin().await?;
        must_be_there(&tx, project_id.0).await?;
        Ok(Single(marker(&tx, project_id.0, who.user_id, "").await?))
    }

    /// Mark the messages of a project as read up to one of them.
    ///
    /// The marker never goes back.
    #[oai(path = "/projects/:project_id/messages/read", method = "put", operation_id = "read_messages")]
    async fn read(
        &self,
        who: Can<MessagesRead>,
        project_id: Path<Uuid>,
        expected: IfMatch,
        to: Body<ReadUpTo>,
    ) -> Result<Single<ReadMarker>> {
        let (project, user) = (project_id.0, who.user_id);
        let tx = who.begin().await?;
        // Against its deletion, which then waits.
        let sql = "select id from projects where id = $1 for key share";
        tx.query_opt(sql, &[&project]).await?.ok_or_else(|| Error::not_found("project"))?;
        let now = who.app.clock.now();
        // So that there is a row to lock: of two who begin with the same version, the later sees the other.
        tx.execute(
            "insert into message_reads (project_id, user_id, number, read_at) values ($1, $2, 0, $3) \
             on conflict (project_id, user_id) do nothing",
            &[&project, &user, &now],
        )
        .await?;
        let sql = "select number from messages where id = $1 and project_id = $2";
        let found = tx.query_opt(sql, &[&to.0.up_to, &project]).await?;
        let before = marker(&tx, project, user, "for update").await?;
        expected.check(before.number)?;
        let told = "There is no such message in this project.";
        let number: i64 = found.ok_or_else(|| Error::invalid("up_to", told))?.try_get("number")?;
        if number <= before.number {
            return Ok(Single(before));
        }
        tx.execute(
            "update message_reads set number = $3, read_at = $4 where project_id = $1 and user_id = $2",
            &[&project, &user, &number, &now],
        )
        .await?;
        tx.execute(
            "update mentions set read_at = $4 where id in ( \
               select n.id from mentions n join messages m on m.id = n.message_id where n.user_id = $1 \
               and n.read_at is null and not n.withdrawn and m.project_id = $2 and m.number <= $3 \
               order by n.id for update of n)",
            &[&user, &project, &number, &now],
        )
        .await?;
        let after = marker(&tx, project, user, "").await?;
        tx.commit().await?;
        Ok(Single(after))
    }

    /// See who has read a message.
    #[oai(path = "/messages/:message_id/reads", method = "get", operation_id = "list_message_readers")]
    async fn readers(&self, who: Can<MessagesRead>, message_id: Path<Uuid>) -> Result<Json<MessageReaders>> {
        let tx = who.begin().await?;
        let message = messages::row(&tx, message_id.0).await?;
        let rows = tx
            .query(
                "select user_id, read_at from message_reads where project_id = $1 and number >= $2 \
                 and user_id <> $3 order by read_at desc, user_id limit 1000",
                &[&message.project_id, &message.number, &message.author_id],
            )
            .await?;
        let reader = |row: &Row| -> Result<MessageReader> {
            Ok(MessageReader { user_id: row.try_get("user_id")?, read_at: row.try_get("read_at")? })
        };
        Ok(Json(MessageReaders { data: rows.iter().map(reader).collect::<Result<_>>()? }))
    }

    /// See in which projects there are messages to read.
    #[oai(path = "/me/unread", method = "get", operation_id = "list_unread_messages")]
    async fn unread(
        &self,
        who: Can<MessagesRead>,
        /// Whether all projects count; where it is absent, those that one owns or is a member of.
        all: Query<Option<bool>>,
    ) -> Result<Json<UnreadMessages>> {
        let tx = who.begin().await?;
        let rows = tx.query(UNREAD, &[&who.user_id, &all.0.unwrap_or(false)]).await?;
        let project = |row: &Row| -> Result<UnreadProject> {
            Ok(UnreadProject {
                project_id: row.try_get("id")?,
                project_name: row.try_get("name")?,
                unread: row.try_get("unread")?,
                mentions: row.try_get("mentions")?,
                last_message_at: row.try_get("last_message_at")?,
            })
        };
        let data = rows.iter().map(project).collect::<Result<Vec<_>>>()?;
        let unread = data.iter().map(|project| project.unread).sum();
        Ok(Json(UnreadMessages { data, unread }))
    }
}

/// `$1` is the reader, `$2` whether all projects count. Of the projects the newest are looked at, and of their
/// messages the newest: whoever never looks would have ever more counted.
const UNREAD: &str = "with mine as ( \
       select p.id, p.name, c.last_message_at, coalesce(r.number, 0) as number \
       from project_channels c join projects p on p.id = c.project_id \
       left join message_reads r on r.project_id = c.project_id and r.user_id = $1 \
       where c.last_number > coalesce(r.number, 0) and ($2 or p.owner_id = $1 or exists ( \
         select 1 from project_members m where m.project_id = p.id and m.user_id = $1)) \
       order by c.last_message_at desc, p.id limit 100), \
     named as ( \
       select m.project_id, count(*) as many from mentions n join messages m on m.id = n.message_id \
       where n.user_id = $1 and n.read_at is null and not n.withdrawn group by m.project_id) \
     select mine.id, mine.name, mine.last_message_at, counted.many as unread, coalesce(named.many, 0) as mentions \
     from mine cross join lateral ( \
       select count(*) filter (where found.author_id <> $1 and found.deleted_at is null) as many from ( \
         select m.author_id, m.deleted_at from messages m where m.project_id = mine.id \
         and m.number > mine.number order by m.number desc limit 1000) as found) as counted \
     left join named on named.project_id = mine.id \
     where counted.many > 0 order by mine.last_message_at desc, mine.id";

/// Refuses a project that is not there.
pub(super) async fn must_be_there(tx: &TenantTx, project: Uuid) -> Result<()> {
    let found = tx.query_opt("select id from projects where id = $1", &[&project]).await?;
    found.map(|_| ()).ok_or_else(|| Error::not_found("project"))
}

/// How far somebody has read; `lock` is text from code.
async fn marker(tx: &TenantTx, project: Uuid, user: Uuid, lock: &str) -> Result<ReadMarker> {
    let sql =
        format!("select number, read_at from message_reads where project_id = $1 and user_id = $2 {lock}");
    let row = tx.query_opt(&sql, &[&project, &user]).await?;
    let (number, read_at) = match row {
        Some(row) => (row.try_get("number")?, Some(row.try_get("read_at")?)),
        None => (0, None),
    };
    Ok(ReadMarker { project_id: project, number, read_at })
}

/// Whoever had read everything before a message of their own has read that one too.
pub(super) async fn read_own(tx: &TenantTx, message: &Message, now: DateTime<Utc>) -> Result<()> {
    let (project, user, number) = (&message.project_id, &message.author_id, &message.number);
    let sql = match number {
        1 => {
            "insert into message_reads (project_id, user_id, number, read_at) values ($1, $2, $3, $4) \
             on conflict (project_id, user_id) do nothing"
        }
        _ => {
            "update message_reads set number = $3, read_at = $4 \
             where project_id = $1 and user_id = $2 and number + 1 = $3"
        }
    };
    tx.execute(sql, &[project, user, number, &now]).await?;
    Ok(())
}
