//! Attachments: files at tasks, comments and messages.
//!
//! A file is uploaded first and then named where it belongs. From then on it is the attachment's: it goes
//! with it, and with the task, comment or message that it hangs on.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::{Example, MaybeUndefined},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::projects;
use crate::{
    api::Tag,
    app::App,
    audit::Changes,
    auth::{
        Can, Member, Permission,
        permissions::{TasksRead, TasksWriteOwn},
    },
    db::{Row, Select, TenantTx},
    error::{Error, Result},
    events::{self, EventType},
    files::{self, File, Purpose},
    http::{Body, Created, IfMatch, Json, NoContent, Single, Versioned},
    page::{Cursor, CursorPage, Stretch},
    types::{EXAMPLE_ID, Text, change, change_optional, example, example_time},
};

/// How many attachments a task may have of its own.
const MOST_OF_A_TASK: i64 = 100;
/// How many files are given up in one go.
const REMOVED_AT_ONCE: usize = 1_000;

type Description = Text<1, 1_000>;

/// A file, and what it hangs on.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct Attachment {
    pub id: Uuid,
    /// The project that all this belongs to.
    pub project_id: Uuid,
    /// The task that it hangs on, unless it is a comment or a message.
    pub task_id: Option<Uuid>,
    pub comment_id: Option<Uuid>,
    pub message_id: Option<Uuid>,
    pub file: File,
    pub description: Option<Description>,
    /// Whether it shows that the task is done.
    pub is_proof_of_completion: bool,
    pub created_by: Uuid,
    pub created_at: DateTime<Utc>,
    #[serde(skip)]
    #[oai(skip)]
    pub version: i64,
}

impl Versioned for Attachment {
    fn version(&self) -> i64 {
        self.version
    }
}

impl Example for Attachment {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            project_id: EXAMPLE_ID,
            task_id: Some(EXAMPLE_ID),
            comment_id: None,
            message_id: None,
            file: File::example(),
            description: Some(example("The page as it is now")),
            is_proof_of_completion: true,
            created_by: EXAMPLE_ID,
            created_at: example_time(),
            version: 1,
        }
    }
}

/// An attachment to be made of a file that was uploaded.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct NewAttachment {
    /// Of `POST /files`; not used anywhere yet.
    pub file_id: Uuid,
    pub description: Option<Description>,
    /// False where it is absent.
    pub is_proof_of_completion: Option<bool>,
}

impl Example for NewAttachment {
    fn example() -> Self {
        Self {
            file_id: EXAMPLE_ID,
            description: Some(example("The page as it is now")),
            is_proof_of_completion: Some(true),
        }
    }
}

/// What changes; what is absent stays, null empties.
#[derive(Debug, Default, Deserialize, Object)]
#[serde(deny_unknown_fields, default)]
#[oai(deny_unknown_fields, example)]
pub struct AttachmentChange {
    pub description: MaybeUndefined<Description>,
    pub is_proof_of_completion: MaybeUndefined<bool>,
}

impl Example for AttachmentChange {
    fn example() -> Self {
        Self { is_proof_of_completion: MaybeUndefined::Value(true), ..Self::default() }
    }
}

/// What an attachment hangs on.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    Task(Uuid),
    Comment(Uuid),
    Message(Uuid),
}

/// Things of one kind that attachments hang on.
#[derive(Clone, Copy, Debug)]
pub enum Places<'a> {
    Tasks(&'a [Uuid]),
    Comments(&'a [Uuid]),
    Messages(&'a [Uuid]),
}

/// What is about to go with everything that belongs to it.
#[derive(Clone, Copy, Debug)]
pub enum Under<'a> {
    /// Tasks, with their comments.
    Tasks(&'a [Uuid]),
    /// A project with its tasks, their comments, and its messages.
    Project(Uuid),
}

pub struct AttachmentsApi;

#[OpenApi(tag = "Tag::Tasks")]
impl AttachmentsApi {
    /// List the attachments of a task.
    ///
    /// Those of its comments are with the comments.
    #[oai(path = "/tasks/:task_id/attachments", method = "get", operation_id = "list_attachments")]
    async fn list(
        &self,
        who: Can<TasksRead>,
        task_id: Path<Uuid>,
        cursor: Query<Option<Cursor>>,
        limit: Query<Option<u32>>,
    ) -> Result<Json<CursorPage<Attachment>>> {
        let stretch = Stretch::new(cursor.0, limit.0)?;
        let tx = who.begin().await?;
        let task = tx.query_opt("select id from tasks where id = $1", &[&task_id.0]).await?;
        task.ok_or_else(|| Error::not_found("task"))?;
        let rows =
            Select::new(COLUMNS, "attachments").and("task_id = ?", &task_id.0).newest(&tx, &stretch).await?;
        Ok(Json(stretch.answer(with_files(&tx, &rows).await?, |attachment| attachment.id)))
    }

    /// Attach a file to a task.
    ///
    /// Upload it first (`POST /files`). Whoever made the task, is assigned to it or is in its project may do this.
    /// A task has at most 100 attachments.
    #[oai(path = "/tasks/:task_id/attachments", method = "post", operation_id = "create_attachment")]
    async fn create(
        &self,
        who: Can<TasksWriteOwn>,
        task_id: Path<Uuid>,
        new: Body<NewAttachment>,
    ) -> Result<Created<Attachment>> {
        let tx = who.begin().await?;
        let place = Place::Task(task_id.0);
        let project = lock(&tx, place).await?;
        may_attach(&tx, &who, task_id.0, project).await?;
        let count = "select count(*) from attachments where task_id = $1";
        if tx.query_one(count, &[&task_id.0]).await?.try_get::<_, i64>(0)? >= MOST_OF_A_TASK {
            return Err(Error::conflict(format!(
                "A task has at most {MOST_OF_A_TASK} attachments. Remove one, or attach this to a comment."
            )));
        }
        let attachment = insert(&tx, &who, (place, project), "file_id", new.0).await?;
        tx.commit().await?;
        Ok(Created { location: format!("/api/v1/attachments/{}", attachment.id), value: attachment })
    }

    /// See an attachment.
    #[oai(path = "/attachments/:attachment_id", method = "get", operation_id = "get_attachment")]
    async fn get(&self, who: Can<TasksRead>, attachment_id: Path<Uuid>) -> Result<Single<Attachment>> {
        let tx = who.begin().await?;
        let attachment = find(&tx, attachment_id.0).await?;
        let needed = match (attachment.comment_id, attachment.message_id) {
            (Some(_), _) => Permission::CommentsRead,
            (_, Some(_)) => Permission::MessagesRead,
            _ => Permission::TasksRead,
        };
        match who.may(needed) {
            true => Ok(Single(attachment)),
            false => {
                Err(Error::denied(format!("What it hangs on takes the permission {}.", needed.as_ref())))
            }
        }
    }

    /// Change what is said of an attachment.
    ///
    /// Whoever attached it, may change the task, or may remove others' comments or messages may do this.
    #[oai(path = "/attachments/:attachment_id", method = "patch", operation_id = "update_attachment")]
    async fn update(
        &self,
        who: Can<TasksWriteOwn>,
        attachment_id: Path<Uuid>,
        expected: IfMatch,
        to: Body<AttachmentChange>,
    ) -> Result<Single<Attachment>> {
        let tx = who.begin().await?;
        let mut attachment = find_to_change(&tx, &who, attachment_id.0).await?;
        expected.check(attachment.version)?;
        let before = attachment.clone();
        change_optional(&mut attachment.description, to.0.description);
        change(
            &mut attachment.is_proof_of_completion,
            "is_proof_of_completion",
            to.0.is_proof_of_completion,
        )?;
        attachment.version += 1;
        tx.execute(
            "update attachments set description = $2, is_proof_of_completion = $3, version = $4 where id = $1",
            &[
                &attachment.id,
                &attachment.description,
                &attachment.is_proof_of_completion,
                &attachment.version,
            ],
        )
        .await?;
        let changes = Changes::between(&before, &attachment);
        events::record(&tx, &who.app, &*who, EventType::AttachmentUpdated, attachment.id, changes).await?;
        tx.commit().await?;
        Ok(Single(attachment))
    }

    /// Delete an attachment and its file.
    ///
    /// Whoever attached it, may change the task, or may remove others' comments or messages may do this.
    #[oai(path = "/attachments/:attachment_id", method = "delete", operation_id = "delete_attachment")]
    async fn delete(
        &self,
        who: Can<TasksWriteOwn>,
        attachment_id: Path<Uuid>,
        expected: IfMatch,
    ) -> Result<NoContent> {
        let tx = who.begin().await?;
        let attachment = find_to_change(&tx, &who, attachment_id.0).await?;
        expected.check(attachment.version)?;
        tx.execute("delete from attachments where id = $1", &[&attachment.id]).await?;
        files::remove(&tx, &who.app, &[attachment.file.id]).await?;
        let changes = Changes::deleted(&attachment);
        events::record(&tx, &who.app, &*who, EventType::AttachmentDeleted, attachment.id, changes).await?;
        tx.commit().await?;
        Ok(NoContent)
    }
}

/// Without the file, which is read beside it.
const COLUMNS: &str = "id, task_id, comment_id, message_id, file_id, description, is_proof_of_completion, \
     created_by, version, created_at, \
     coalesce((select t.project_id from tasks t where t.id = coalesce(attachments.task_id, \
       (select c.task_id from comments c where c.id = attachments.comment_id))), \
       (select m.project_id from messages m where m.id = attachments.message_id)) as project_id";

fn from_row(row: &Row, file: File) -> Result<Attachment> {
    Ok(Attachment {
        id: row.try_get("id")?,
        project_id: row.try_get("project_id")?,
        task_id: row.try_get("task_id")?,
        comment_id: row.try_get("comment_id")?,
        message_id: row.try_get("message_id")?,
        file,
        description: row.try_get("description")?,
        is_proof_of_completion: row.try_get("is_proof_of_completion")?,
        created_by: row.try_get("created_by")?,
        created_at: row.try_get("created_at")?,
        version: row.try_get("version")?,
    })
}

/// The attachments of these rows, in their order, with their files.
async fn with_files(tx: &TenantTx, rows: &[Row]) -> Result<Vec<Attachment>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let ids = rows.iter().map(|row| Ok(row.try_get("file_id")?)).collect::<Result<Vec<Uuid>>>()?;
    let mut files = files::several(tx, &ids).await?;
    let mut attachments = Vec::with_capacity(rows.len());
    for (row, id) in rows.iter().zip(&ids) {
        // One that was removed between the two statements is not there any more.
        if let Some(file) = files.remove(id) {
            attachments.push(from_row(row, file)?);
        }
    }
    Ok(attachments)
}

async fn find(tx: &TenantTx, id: Uuid) -> Result<Attachment> {
    let sql = format!("select {COLUMNS} from attachments where id = $1");
    let rows = tx.query(&sql, &[&id]).await?;
    with_files(tx, &rows).await?.pop().ok_or_else(|| Error::not_found("attachment"))
}

/// An attachment that the caller may write, with its row locked.
async fn find_to_change(tx: &TenantTx, who: &Member, id: Uuid) -> Result<Attachment> {
    tx.query("select id from attachments where id = $1 for update", &[&id]).await?;
    let attachment = find(tx, id).await?;
    if attachment.created_by == who.user_id || may_write_others(tx, who, &attachment).await? {
        return Ok(attachment);
    }
    Err(Error::denied("You did not attach this, and what it hangs on is not yours either."))
}

async fn may_write_others(tx: &TenantTx, who: &Member, attachment: &Attachment) -> Result<bool> {
    let Some(task) = attachment.task_id else {
        let comment = attachment.comment_id.is_some();
        return Ok(who.may(if comment { Permission::CommentsWrite } else { Permission::MessagesWrite }));
    };
    if who.may(Permission::TasksWrite) {
        return Ok(true);
    }
    let row = tx
        .query_one(
            "select t.created_by = $2 or p.owner_id = $2 or exists (select 1 from task_assignees a \
             where a.task_id = t.id and a.user_id = $2) as own \
             from tasks t join projects p on p.id = t.project_id where t.id = $1",
            &[&task, &who.user_id],
        )
        .await?;
    Ok(row.try_get("own")?)
}

/// Whoever works on a task may attach what shows it, also from outside the project.
async fn may_attach(tx: &TenantTx, who: &Member, task: Uuid, project: Uuid) -> Result<()> {
    let row = tx
        .query_one(
            "select p.status <> 'archived' and (t.created_by = $2 or exists (select 1 from task_assignees a \
             where a.task_id = t.id and a.user_id = $2)) as own \
             from tasks t join projects p on p.id = t.project_id where t.id = $1",
            &[&task, &who.user_id],
        )
        .await?;
    match row.try_get("own")? {
        true => projects::hold_one_open(tx, &who.into(), project).await?.must_be_open(),
        false => projects::may_contribute(tx, who, project).await,
    }
}

/// Keeps what something is attached to from being removed meanwhile, and answers its project. Whoever
/// removes it sees what was attached, or is waited for.
async fn lock(tx: &TenantTx, place: Place) -> Result<Uuid> {
    let (sql, id, what) = match place {
        // One at a time: they are counted.
        Place::Task(id) => ("select project_id from tasks where id = $1 for no key update", id, "task"),
        Place::Comment(id) => (
            "select t.project_id from comments c join tasks t on t.id = c.task_id where c.id = $1 for key share of t",
            id,
            "comment",
        ),
        Place::Message(id) => (
            "select p.id as project_id from messages m join projects p on p.id = m.project_id where m.id = $1 \
             for key share of p",
            id,
            "message",
        ),
    };
    Ok(tx.query_opt(sql, &[&id]).await?.ok_or_else(|| Error::not_found(what))?.try_get("project_id")?)
}

/// Attaches a file; `field` is the one that names it.
async fn insert(
    tx: &TenantTx,
    who: &Member,
    (place, project_id): (Place, Uuid),
    field: &str,
    new: NewAttachment,
) -> Result<Attachment> {
    let file = files::take(tx, who, field, new.file_id, Purpose::Upload).await?;
    let (mut task_id, mut comment_id, mut message_id) = (None, None, None);
    match place {
        Place::Task(id) => task_id = Some(id),
        Place::Comment(id) => comment_id = Some(id),
        Place::Message(id) => message_id = Some(id),
    }
    let attachment = Attachment {
        id: Uuid::now_v7(),
        project_id,
        task_id,
        comment_id,
        message_id,
        file,
        description: new.description,
        is_proof_of_completion: new.is_proof_of_completion.unwrap_or_default(),
        created_by: who.user_id,
        created_at: who.app.clock.now(),
        version: 1,
    };
    tx.execute(
        "insert into attachments (id, task_id, comment_id, message_id, file_id, description, is_proof_of_completion, \
         created_by, created_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        &[
            &attachment.id,
            &attachment.task_id,
            &attachment.comment_id,
            &attachment.message_id,
            &attachment.file.id,
            &attachment.description,
            &attachment.is_proof_of_completion,
            &attachment.created_by,
            &attachment.created_at,
        ],
    )
    .await?;
    let changes = Changes::created(&attachment);
    events::record(tx, &who.app, who, EventType::AttachmentCreated, attachment.id, changes).await?;
    Ok(attachment)
}

/// Attaches files to something that the caller may add to. They are named in `file_ids`.
pub async fn attach(tx: &TenantTx, who: &Member, place: Place, files: &[Uuid]) -> Result<Vec<Attachment>> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let project = lock(tx, place).await?;
    // In one order, whatever order they are named in: others may name some of them too.
    tx.query("select id from files where id = any ($1) order by id for update", &[&files]).await?;
    let mut attached = Vec::new();
    for (n, file_id) in files.iter().enumerate() {
        let new = NewAttachment { file_id: *file_id, description: None, is_proof_of_completion: None };
        attached.push(insert(tx, who, (place, project), &format!("file_ids[{n}]"), new).await?);
    }
    Ok(attached)
}

/// What hangs on each of these, in the order in which it was attached; those without anything are absent.
pub async fn of(tx: &TenantTx, places: Places<'_>) -> Result<HashMap<Uuid, Vec<Attachment>>> {
    let (column, ids) = match places {
        Places::Tasks(ids) => ("task_id", ids),
        Places::Comments(ids) => ("comment_id", ids),
        Places::Messages(ids) => ("message_id", ids),
    };
    let mut found: HashMap<Uuid, Vec<Attachment>> = HashMap::new();
    if ids.is_empty() {
        return Ok(found);
    }
    let sql = format!("select {COLUMNS} from attachments where {column} = any ($1) order by id");
    for attachment in with_files(tx, &tx.query(&sql, &[&ids]).await?).await? {
        let place = attachment.task_id.or(attachment.comment_id).or(attachment.message_id);
        found.entry(place.unwrap_or_default()).or_default().push(attachment);
    }
    Ok(found)
}

/// Removes what hangs on something that is removed.
pub async fn remove_of(tx: &TenantTx, app: &App, place: Place) -> Result<()> {
    let (column, id) = match place {
        Place::Task(id) => ("task_id", id),
        Place::Comment(id) => ("comment_id", id),
        Place::Message(id) => ("message_id", id),
    };
    let sql = format!("delete from attachments where {column} = $1 returning file_id");
    give_up(tx, app, tx.query(&sql, &[&id]).await?).await
}

/// Removes what hangs on anything that is about to go. To be called with the rows of the tasks, or of the
/// project, locked for update, and before they are deleted.
pub async fn remove_under(tx: &TenantTx, app: &App, under: Under<'_>) -> Result<()> {
    let removed = match under {
        Under::Tasks(ids) => {
            tx.query(
                "delete from attachments where id in (select a.id from attachments a where a.task_id = any ($1) \
                 union all select a.id from comments c join attachments a on a.comment_id = c.id \
                 where c.task_id = any ($1)) returning file_id",
                &[&ids],
            )
            .await?
        }
        Under::Project(id) => {
            tx.query(
                "delete from attachments where id in ( \
                 select a.id from tasks t join attachments a on a.task_id = t.id where t.project_id = $1 \
                 union all select a.id from tasks t join comments c on c.task_id = t.id \
                 join attachments a on a.comment_id = c.id where t.project_id = $1 \
                 union all select a.id from messages m join attachments a on a.message_id = m.id \
                 where m.project_id = $1) returning file_id",
                &[&id],
            )
            .await?
        }
    };
    give_up(tx, app, removed).await
}

/// Removes the files of attachments that are gone.
async fn give_up(tx: &TenantTx, app: &App, removed: Vec<Row>) -> Result<()> {
    let files = removed.iter().map(|row| Ok(row.try_get("file_id")?)).collect::<Result<Vec<Uuid>>>()?;
    for files in files.chunks(REMOVED_AT_ONCE) {
        files::remove(tx, app, files).await?;
    }
    Ok(())
}
