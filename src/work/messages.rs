//! Messages: what the people of a project talk about, in threads, and who has read it.

use chrono::{DateTime, Utc};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::{Example, MaybeUndefined},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    By,
    attachments::{self, Attachment, Place, Places},
    discussion::{self, EarlierWords, Said, Words},
    projects, reading,
};
use crate::{
    api::Tag,
    audit::Changes,
    auth::{
        Can, Member, Permission,
        permissions::{MessagesRead, MessagesWriteOwn},
    },
    db::{Row, Select, TenantTx},
    error::{Error, Result},
    events::{self, EventType},
    http::{Body, Created, IfMatch, Json, NoContent, Single, Versioned},
    page::{Cursor, CursorPage, Stretch},
    types::{EXAMPLE_ID, change, example, example_time},
};

/// Something said in a project.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct Message {
    pub id: Uuid,
    pub project_id: Uuid,
    /// The first message of the thread that this one is in; null in that message itself.
    pub parent_id: Option<Uuid>,
    /// Messages of a project are numbered from 1 in the order in which they were sent.
    pub number: i64,
    pub author_id: Uuid,
    /// Null once it is deleted: the first message of a thread stays for as long as it has replies.
    pub body: Option<Words>,
    pub mention_ids: Vec<Uuid>,
    pub attachments: Vec<Attachment>,
    pub reply_count: i64,
    pub last_reply_at: Option<DateTime<Utc>>,
    /// When the words were changed last; null where they never were.
    pub edited_at: Option<DateTime<Utc>>,
    pub deleted_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    #[serde(skip)]
    #[oai(skip)]
    pub version: i64,
}

impl Versioned for Message {
    fn version(&self) -> i64 {
        self.version
    }
}

impl Example for Message {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            project_id: EXAMPLE_ID,
            parent_id: None,
            number: 17,
            author_id: EXAMPLE_ID,
            body: Some(example("The retort comes on Tuesday")),
            mention_ids: vec![EXAMPLE_ID],
            attachments: Vec::new(),
            reply_count: 0,
            last_reply_at: None,
            edited_at: None,
            deleted_at: None,
            created_at: example_time(),
            updated_at: example_time(),
            version: 1,
        }
    }
}

/// A message to be sent.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct NewMessage {
    pub body: Words,
    /// The first message of the thread to reply in.
    pub parent_id: Option<Uuid>,
    /// At most 50 active members of the organization, who are told.
    pub mention_ids: Option<Vec<Uuid>>,
    /// At most 10 files that the caller uploaded, to hang on the message.
    pub file_ids: Option<Vec<Uuid>>,
}

impl Example for NewMessage {
    fn example() -> Self {
        Self {
            body: example("The retort comes on Tuesday"),
            parent_id: None,
            mention_ids: None,
            file_ids: None,
        }
    }
}

/// What changes; what is absent stays.
#[derive(Debug, Default, Deserialize, Object)]
#[serde(deny_unknown_fields, default)]
#[oai(deny_unknown_fields, example)]
pub struct MessageChange {
    pub body: MaybeUndefined<Words>,
    /// All who are mentioned from now on; those who were not before are told.
    pub mention_ids: MaybeUndefined<Vec<Uuid>>,
}

impl Example for MessageChange {
    fn example() -> Self {
        Self { body: MaybeUndefined::Value(example("The retort comes on Wednesday")), ..Self::default() }
    }
}

pub struct MessagesApi;

#[OpenApi(tag = "Tag::Messages")]
impl MessagesApi {
    /// List the messages of a project, newest first.
    ///
    /// The first messages of all threads, or every message with `replies=true`.
    #[oai(path = "/projects/:project_id/messages", method = "get", operation_id = "list_messages")]
    async fn list(
        &self,
        who: Can<MessagesRead>,
        project_id: Path<Uuid>,
        cursor: Query<Option<Cursor>>,
        limit: Query<Option<u32>>,
        /// Whether replies are among them; they are not where it is absent.
        replies: Query<Option<bool>>,
        /// Those of one member.
        author_id: Query<Option<Uuid>>,
    ) -> Result<Json<CursorPage<Message>>> {
        let stretch = Stretch::new(cursor.0, limit.0)?;
        let tx = who.begin().await?;
        reading::must_be_there(&tx, project_id.0).await?;
        let select = Select::new(COLUMNS, "messages")
            .and("project_id = ?", &project_id.0)
            .and_if("author_id = ?", &author_id.0);
        let select = match replies.0 {
            Some(true) => select,
            _ => select.only("parent_id is null"),
        };
        Ok(Json(newest(&tx, select, &stretch).await?))
    }

    /// Send a message to a project.
    ///
    /// A member may write in the projects they own or are a member of. Whoever is mentioned is told, and so
    /// is whoever began the thread of a reply.
    #[oai(path = "/projects/:project_id/messages", method = "post", operation_id = "create_message")]
    async fn create(
        &self,
        who: Can<MessagesWriteOwn>,
        project_id: Path<Uuid>,
        new: Body<NewMessage>,
    ) -> Result<Created<Message>> {
        let tx = who.begin().await?;
        let message = insert(&tx, &who, project_id.0, new.0).await?;
        tx.commit().await?;
        Ok(Created { location: format!("/api/v1/messages/{}", message.id), value: message })
    }

    /// See a message.
    #[oai(path = "/messages/:message_id", method = "get", operation_id = "get_message")]
    async fn get(&self, who: Can<MessagesRead>, message_id: Path<Uuid>) -> Result<Single<Message>> {
        let tx = who.begin().await?;
        Ok(Single(find(&tx, message_id.0).await?))
    }

    /// Edit a message.
    ///
    /// Only its author may, and not in an archived project. What it said before can be seen at
    /// `/messages/{message_id}/edits`.
    #[oai(path = "/messages/:message_id", method = "patch", operation_id = "update_message")]
    async fn update(
        &self,
        who: Can<MessagesWriteOwn>,
        message_id: Path<Uuid>,
        expected: IfMatch,
        to: Body<MessageChange>,
    ) -> Result<Single<Message>> {
        let tx = who.begin().await?;
        // The project before what is in it, as in a deletion.
        let project = row(&tx, message_id.0).await?.project_id;
        let standing = projects::hold_one_open(&tx, &By::from(&*who), project).await?;
        tx.query("select id from messages where id = $1 for no key update", &[&message_id.0]).await?;
        let mut message = find(&tx, message_id.0).await?;
        discussion::must_be_author(&who, message.author_id)?;
        standing.must_be_open()?;
        expected.check(message.version)?;
        let before = message.clone();
        let Some(earlier) = &before.body else { return Err(is_deleted()) };
        let mut body = earlier.clone();
        change(&mut body, "body", to.0.body)?;
        change(&mut message.mention_ids, "mention_ids", to.0.mention_ids)?;
        discussion::check_mentions(&tx, &mut message.mention_ids, &before.mention_ids).await?;
        let (said, now) = (Said::Message(message.id), who.app.clock.now());
        let reworded = body != *earlier;
        if !reworded && message.mention_ids == before.mention_ids {
            return Ok(Single(message));
        }
        if reworded {
            let since = before.edited_at.unwrap_or(before.created_at);
            discussion::keep(&tx, said, (earlier, before.author_id), since, now).await?;
            (message.body, message.edited_at) = (Some(body), Some(now));
        }
        message.updated_at = now;
        message.version += 1;
        tx.execute(
            "update messages set body = $2, edited_at = $3, version = $4, updated_at = $5 where id = $1",
            &[&message.id, &message.body, &message.edited_at, &message.version, &message.updated_at],
        )
        .await?;
        let new = discussion::mention(&tx, said, &message.mention_ids, &before.mention_ids, now).await?;
        let about = About::find(&tx, &message).await?;
        let changes = Changes::between(&about.told(&before, &[]), &about.told(&message, &new));
        events::record(&tx, &who.app, &*who, EventType::MessageUpdated, message.id, changes).await?;
        tx.commit().await?;
        Ok(Single(message))
    }

    /// Delete a message, with what hangs on it.
    ///
    /// Its author may, and who may remove what others said. The first message of a thread stays without its
    /// words for as long as it has replies.
    #[oai(path = "/messages/:message_id", method = "delete", operation_id = "delete_message")]
    async fn delete(
        &self,
        who: Can<MessagesWriteOwn>,
        message_id: Path<Uuid>,
        expected: IfMatch,
    ) -> Result<NoContent> {
        let tx = who.begin().await?;
        // The project before what is in it, as whoever deletes that takes them; and the beginning of the
        // thread: of two who delete its last replies, one must see that.
        tx.query(
            "select p.id from messages m join projects p on p.id = m.project_id where m.id = $1 \
             for key share of p",
            &[&message_id.0],
        )
        .await?;
        tx.query(
            "select m.id from messages m where m.id = $1 \
             or m.id = (select r.parent_id from messages r where r.id = $1) order by m.number for update of m",
            &[&message_id.0],
        )
        .await?;
        let message = find(&tx, message_id.0).await?;
        if message.author_id != who.user_id && !who.may(Permission::MessagesWrite) {
            return Err(Error::denied("This is not your message. Its author or a manager can delete it."));
        }
        if message.deleted_at.is_some() {
            return Err(is_deleted());
        }
        expected.check(message.version)?;
        let about = About::find(&tx, &message).await?;
        attachments::remove_of(&tx, &who.app, Place::Message(message.id)).await?;
        remove(&tx, &message, who.app.clock.now()).await?;
        let changes = Changes::deleted(&about.told(&message, &[]));
        events::record(&tx, &who.app, &*who, EventType::MessageDeleted, message.id, changes).await?;
        tx.commit().await?;
        Ok(NoContent)
    }

    /// List the replies to a message, newest first.
    #[oai(path = "/messages/:message_id/replies", method = "get", operation_id = "list_replies")]
    async fn replies(
        &self,
        who: Can<MessagesRead>,
        message_id: Path<Uuid>,
        cursor: Query<Option<Cursor>>,
        limit: Query<Option<u32>>,
    ) -> Result<Json<CursorPage<Message>>> {
        let stretch = Stretch::new(cursor.0, limit.0)?;
        let tx = who.begin().await?;
        row(&tx, message_id.0).await?;
        let select = Select::new(COLUMNS, "messages").and("parent_id = ?", &message_id.0);
        Ok(Json(newest(&tx, select, &stretch).await?))
    }

    /// List what a message said before its edits, newest first.
    #[oai(path = "/messages/:message_id/edits", method = "get", operation_id = "list_message_edits")]
    async fn edits(
        &self,
        who: Can<MessagesRead>,
        message_id: Path<Uuid>,
        cursor: Query<Option<Cursor>>,
        limit: Query<Option<u32>>,
    ) -> Result<Json<CursorPage<EarlierWords>>> {
        let stretch = Stretch::new(cursor.0, limit.0)?;
        let tx = who.begin().await?;
        row(&tx, message_id.0).await?;
        Ok(Json(discussion::earlier(&tx, Said::Message(message_id.0), &stretch).await?))
    }
}

fn is_deleted() -> Error {
    Error::conflict("This message was deleted; what is left of it holds its replies together.")
}

/// What is told of a message.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    message: &'a Message,
    project_name: &'a str,
    /// Who began the thread of a reply.
    parent_author_id: Option<Uuid>,
    /// Who was never mentioned before in this message.
    newly_mentioned_ids: &'a [Uuid],
}

/// Where a message was said.
struct About {
    project_name: String,
    parent_author_id: Option<Uuid>,
}

impl About {
    async fn find(tx: &TenantTx, message: &Message) -> Result<Self> {
        let sql = "select p.name, (select m.author_id from messages m where m.id = $2) as parent_author_id \
             from projects p where p.id = $1";
        let row = tx.query_one(sql, &[&message.project_id, &message.parent_id]).await?;
        Ok(Self { project_name: row.try_get("name")?, parent_author_id: row.try_get("parent_author_id")? })
    }

    fn told<'a>(&'a self, message: &'a Message, newly_mentioned_ids: &'a [Uuid]) -> Told<'a> {
        let (project_name, parent_author_id) = (&*self.project_name, self.parent_author_id);
        Told { message, project_name, parent_author_id, newly_mentioned_ids }
    }
}

const COLUMNS: &str = "id, project_id, parent_id, number, author_id, body, edited_at, deleted_at, version, \
     created_at, updated_at, \
     array(select n.user_id from mentions n where n.message_id = messages.id and not n.withdrawn \
       order by n.user_id) as mention_ids, \
     (select count(*) from messages r where r.parent_id = messages.id) as reply_count, \
     (select r.created_at from messages r where r.parent_id = messages.id order by r.number desc limit 1) \
       as last_reply_at";

/// A message without what hangs on it.
fn from_row(row: &Row) -> Result<Message> {
    Ok(Message {
        id: row.try_get("id")?,
        project_id: row.try_get("project_id")?,
        parent_id: row.try_get("parent_id")?,
        number: row.try_get("number")?,
        author_id: row.try_get("author_id")?,
        body: row.try_get("body")?,
        mention_ids: row.try_get("mention_ids")?,
        attachments: Vec::new(),
        reply_count: row.try_get("reply_count")?,
        last_reply_at: row.try_get("last_reply_at")?,
        edited_at: row.try_get("edited_at")?,
        deleted_at: row.try_get("deleted_at")?,
        version: row.try_get("version")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}

/// A stretch of messages by their numbers. Ids do not do: those of two instances may be committed in
/// another order than their numbers are given.
async fn newest(tx: &TenantTx, select: Select<'_>, stretch: &Stretch) -> Result<CursorPage<Message>> {
    let below = stretch.below().map(number_of).transpose()?;
    let select = select.and_if("number < ?", &below);
    let rows = select.first(tx, "number desc", stretch.rows()).await?;
    let mut messages = rows.iter().map(from_row).collect::<Result<Vec<_>>>()?;
    attach_all(tx, &mut messages).await?;
    Ok(stretch.answer(messages, |message: &Message| Uuid::from_u128(message.number as u128)))
}

/// The number that a cursor holds.
fn number_of(cursor: Uuid) -> Result<i64> {
    i64::try_from(cursor.as_u128())
        .map_err(|_| Error::invalid("cursor", "is not a cursor that this list gave"))
}

/// Hangs on messages what belongs there.
async fn attach_all(tx: &TenantTx, messages: &mut [Message]) -> Result<()> {
    let ids: Vec<Uuid> = messages.iter().map(|message| message.id).collect();
    let mut found = attachments::of(tx, Places::Messages(&ids)).await?;
    for message in messages {
        message.attachments = found.remove(&message.id).unwrap_or_default();
    }
    Ok(())
}

pub(super) async fn row(tx: &TenantTx, id: Uuid) -> Result<Message> {
    let sql = format!("select {COLUMNS} from messages where id = $1");
    from_row(&tx.query_opt(&sql, &[&id]).await?.ok_or_else(|| Error::not_found("message"))?)
}

async fn find(tx: &TenantTx, id: Uuid) -> Result<Message> {
    let mut message = row(tx, id).await?;
    attach_all(tx, std::slice::from_mut(&mut message)).await?;
    Ok(message)
}

/// Sends a message for a caller who may.
pub async fn insert(tx: &TenantTx, who: &Member, project_id: Uuid, new: NewMessage) -> Result<Message> {
    // The project before its channel: in this order a deletion takes them.
    projects::may_contribute(tx, who, project_id).await?;
    let now = who.app.clock.now();
    let mut message = Message {
        id: Uuid::now_v7(),
        project_id,
        parent_id: new.parent_id,
        number: 0,
        author_id: who.user_id,
        body: Some(new.body),
        mention_ids: new.mention_ids.unwrap_or_default(),
        attachments: Vec::new(),
        reply_count: 0,
        last_reply_at: None,
        edited_at: None,
        deleted_at: None,
        created_at: now,
        updated_at: now,
        version: 1,
    };
    let files = new.file_ids.unwrap_or_default();
    discussion::check_files(&files)?;
    discussion::check_mentions(tx, &mut message.mention_ids, &[]).await?;
    if let Some(parent) = message.parent_id {
        let sql = "select id from messages where id = $1 and project_id = $2 and parent_id is null \
             and deleted_at is null for key share";
        let found = tx.query_opt(sql, &[&parent, &project_id]).await?;
        let told =
            "There is no such thread in this project. Name the first message of one that is not deleted.";
        found.ok_or_else(|| Error::invalid("parent_id", told))?;
    }
    message.number = next_number(tx, project_id, now).await?;
    tx.execute(
        "insert into messages (id, project_id, parent_id, number, author_id, body, created_at, updated_at) \
         values ($1, $2, $3, $4, $5, $6, $7, $7)",
        &[
            &message.id,
            &project_id,
            &message.parent_id,
            &message.number,
            &message.author_id,
            &message.body,
            &now,
        ],
    )
    .await?;
    message.attachments = attachments::attach(tx, who, Place::Message(message.id), &files).await?;
    let said = Said::Message(message.id);
    let mentioned = discussion::mention(tx, said, &message.mention_ids, &[], now).await?;
    reading::read_own(tx, &message, now).await?;
    let about = About::find(tx, &message).await?;
    let changes = Changes::created(&about.told(&message, &mentioned));
    events::record(tx, &who.app, who, EventType::MessageCreated, message.id, changes).await?;
    Ok(message)
}

/// The next number of a project. Whoever gets one holds the row until the commit, so a number is seen only
/// after all those below it.
async fn next_number(tx: &TenantTx, project: Uuid, now: DateTime<Utc>) -> Result<i64> {
    let row = tx
        .query_one(
            "insert into project_channels (project_id, last_number, last_message_at) values ($1, 1, $2) \
             on conflict (project_id) do update set last_number = project_channels.last_number + 1, \
             last_message_at = excluded.last_message_at returning last_number",
            &[&project, &now],
        )
        .await?;
    Ok(row.try_get("last_number")?)
}

/// Takes a message away; of one with replies only its words. The rest of a thread that nothing is left of
/// goes too.
async fn remove(tx: &TenantTx, message: &Message, now: DateTime<Utc>) -> Result<()> {
    if message.reply_count > 0 {
        tx.execute("delete from mentions where message_id = $1", &[&message.id]).await?;
        tx.execute("delete from edits where message_id = $1", &[&message.id]).await?;
        tx.execute(
            "update messages set body = null, deleted_at = $2, version = $3, updated_at = $2 where id = $1",
            &[&message.id, &now, &(message.version + 1)],
        )
        .await?;
        return Ok(());
    }
    tx.execute("delete from messages where id = $1", &[&message.id]).await?;
    if let Some(parent) = message.parent_id {
        tx.execute(
            "delete from messages m where m.id = $1 and m.deleted_at is not null \
             and not exists (select 1 from messages r where r.parent_id = $1)",
            &[&parent],
        )
        .await?;
    }
    Ok(())
}
