//! Comments: what is said about a task.

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
    projects,
};
use crate::{
    api::Tag,
    audit::Changes,
    auth::{
        Can, Member, Permission,
        permissions::{CommentsRead, CommentsWriteOwn},
    },
    db::{Row, Select, TenantTx},
    error::{Error, Result},
    events::{self, EventType},
    http::{Body, Created, IfMatch, Json, NoContent, Single, Versioned},
    page::{Cursor, CursorPage, Stretch},
    types::{EXAMPLE_ID, change, example, example_time},
};

/// What somebody said about a task.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct Comment {
    pub id: Uuid,
    pub task_id: Uuid,
    pub project_id: Uuid,
    pub author_id: Uuid,
    pub body: Words,
    pub mention_ids: Vec<Uuid>,
    pub attachments: Vec<Attachment>,
    /// When the words were changed last; null where they never were.
    pub edited_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    #[serde(skip)]
    #[oai(skip)]
    pub version: i64,
}

impl Versioned for Comment {
    fn version(&self) -> i64 {
        self.version
    }
}

impl Example for Comment {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            task_id: EXAMPLE_ID,
            project_id: EXAMPLE_ID,
            author_id: EXAMPLE_ID,
            body: example("The lab wants the samples by Friday"),
            mention_ids: vec![EXAMPLE_ID],
            attachments: Vec::new(),
            edited_at: None,
            created_at: example_time(),
            updated_at: example_time(),
            version: 1,
        }
    }
}

/// A comment to be made.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct NewComment {
    pub body: Words,
    /// At most 50 active members of the organization, who are told.
    pub mention_ids: Option<Vec<Uuid>>,
    /// At most 10 files that the caller uploaded, to hang on the comment.
    pub file_ids: Option<Vec<Uuid>>,
}

impl Example for NewComment {
    fn example() -> Self {
        Self { body: example("The lab wants the samples by Friday"), mention_ids: None, file_ids: None }
    }
}

/// What changes; what is absent stays.
#[derive(Debug, Default, Deserialize, Object)]
#[serde(deny_unknown_fields, default)]
#[oai(deny_unknown_fields, example)]
pub struct CommentChange {
    pub body: MaybeUndefined<Words>,
    /// All who are mentioned from now on; those who were not before are told.
    pub mention_ids: MaybeUndefined<Vec<Uuid>>,
}

impl Example for CommentChange {
    fn example() -> Self {
        Self {
            body: MaybeUndefined::Value(example("The lab wants the samples by Thursday")),
            ..Self::default()
        }
    }
}

pub struct CommentsApi;

#[OpenApi(tag = "Tag::Comments")]
impl CommentsApi {
    /// List the comments of a task, newest first.
    #[oai(path = "/tasks/:task_id/comments", method = "get", operation_id = "list_comments")]
    async fn list(
        &self,
        who: Can<CommentsRead>,
        task_id: Path<Uuid>,
        cursor: Query<Option<Cursor>>,
        limit: Query<Option<u32>>,
        /// Those of one member.
        author_id: Query<Option<Uuid>>,
    ) -> Result<Json<CursorPage<Comment>>> {
        let stretch = Stretch::new(cursor.0, limit.0)?;
        let tx = who.begin().await?;
        Task::find(&tx, task_id.0, "").await?;
        let rows = Select::new(COLUMNS, "comments")
            .and("task_id = ?", &task_id.0)
            .and_if("author_id = ?", &author_id.0)
            .newest(&tx, &stretch)
            .await?;
        let mut comments = rows.iter().map(from_row).collect::<Result<Vec<_>>>()?;
        attach_all(&tx, &mut comments).await?;
        Ok(Json(stretch.answer(comments, |comment: &Comment| comment.id)))
    }

    /// Comment on a task.
    ///
    /// A member may comment on the tasks of the projects they own or are a member of, and on those they made
    /// or are assigned to. Whoever made the task, is assigned to it or is mentioned is told.
    #[oai(path = "/tasks/:task_id/comments", method = "post", operation_id = "create_comment")]
    async fn create(
        &self,
        who: Can<CommentsWriteOwn>,
        task_id: Path<Uuid>,
        new: Body<NewComment>,
    ) -> Result<Created<Comment>> {
        let tx = who.begin().await?;
        let comment = insert(&tx, &who, task_id.0, new.0).await?;
        tx.commit().await?;
        Ok(Created { location: format!("/api/v1/comments/{}", comment.id), value: comment })
    }

    /// See a comment.
    #[oai(path = "/comments/:comment_id", method = "get", operation_id = "get_comment")]
    async fn get(&self, who: Can<CommentsRead>, comment_id: Path<Uuid>) -> Result<Single<Comment>> {
        let tx = who.begin().await?;
        Ok(Single(find(&tx, comment_id.0).await?))
    }

    /// Edit a comment.
    ///
    /// Only its author may, and not in an archived project. What it said before can be seen at
    /// `/comments/{comment_id}/edits`.
    #[oai(path = "/comments/:comment_id", method = "patch", operation_id = "update_comment")]
    async fn update(
        &self,
        who: Can<CommentsWriteOwn>,
        comment_id: Path<Uuid>,
        expected: IfMatch,
        to: Body<CommentChange>,
    ) -> Result<Single<Comment>> {
        let tx = who.begin().await?;
        // Task and project before what is said there, as in a deletion.
        let sql = "select t.project_id from comments c join tasks t on t.id = c.task_id where c.id = $1 \
             for key share of t";
        let home = tx.query_opt(sql, &[&comment_id.0]).await?;
        let home = home.ok_or_else(|| Error::not_found("comment"))?.try_get("project_id")?;
        let standing = projects::hold_one_open(&tx, &By::from(&*who), home).await?;
        let mut comment = find_to_change(&tx, comment_id.0).await?;
        discussion::must_be_author(&who, comment.author_id)?;
        standing.must_be_open()?;
        expected.check(comment.version)?;
        let before = comment.clone();
        change(&mut comment.body, "body", to.0.body)?;
        change(&mut comment.mention_ids, "mention_ids", to.0.mention_ids)?;
        discussion::check_mentions(&tx, &mut comment.mention_ids, &before.mention_ids).await?;
        let (said, now) = (Said::Comment(comment.id), who.app.clock.now());
        let reworded = comment.body != before.body;
        if !reworded && comment.mention_ids == before.mention_ids {
            return Ok(Single(comment));
        }
        if reworded {
            let since = before.edited_at.unwrap_or(before.created_at);
            discussion::keep(&tx, said, (&before.body, before.author_id), since, now).await?;
            comment.edited_at = Some(now);
        }
        comment.updated_at = now;
        comment.version += 1;
        store(&tx, &comment).await?;
        let new = discussion::mention(&tx, said, &comment.mention_ids, &before.mention_ids, now).await?;
        let task = Task::find(&tx, comment.task_id, "").await?;
        let changes = Changes::between(&task.told(&before, &[]), &task.told(&comment, &new));
        events::record(&tx, &who.app, &*who, EventType::CommentUpdated, comment.id, changes).await?;
        tx.commit().await?;
        Ok(Single(comment))
    }

    /// Delete a comment, with what hangs on it.
    ///
    /// Its author may, and who may remove what others said.
    #[oai(path = "/comments/:comment_id", method = "delete", operation_id = "delete_comment")]
    async fn delete(
        &self,
        who: Can<CommentsWriteOwn>,
        comment_id: Path<Uuid>,
        expected: IfMatch,
    ) -> Result<NoContent> {
        let tx = who.begin().await?;
        // The task before what hangs on it, as whoever deletes that takes them.
        tx.query(
            "select t.id from comments c join tasks t on t.id = c.task_id where c.id = $1 for key share of t",
            &[&comment_id.0],
        )
        .await?;
        let comment = find_to_change(&tx, comment_id.0).await?;
        if comment.author_id != who.user_id && !who.may(Permission::CommentsWrite) {
            return Err(Error::denied("This is not your comment. Its author or a manager can delete it."));
        }
        expected.check(comment.version)?;
        attachments::remove_of(&tx, &who.app, Place::Comment(comment.id)).await?;
        tx.execute("delete from comments where id = $1", &[&comment.id]).await?;
        let task = Task::find(&tx, comment.task_id, "").await?;
        let changes = Changes::deleted(&task.told(&comment, &[]));
        events::record(&tx, &who.app, &*who, EventType::CommentDeleted, comment.id, changes).await?;
        tx.commit().await?;
        Ok(NoContent)
    }

    /// List what a comment said before its edits, newest first.
    #[oai(path = "/comments/:comment_id/edits", method = "get", operation_id = "list_comment_edits")]
    async fn edits(
        &self,
        who: Can<CommentsRead>,
        comment_id: Path<Uuid>,
        cursor: Query<Option<Cursor>>,
        limit: Query<Option<u32>>,
    ) -> Result<Json<CursorPage<EarlierWords>>> {
        let stretch = Stretch::new(cursor.0, limit.0)?;
        let tx = who.begin().await?;
        row(&tx, comment_id.0).await?;
        Ok(Json(discussion::earlier(&tx, Said::Comment(comment_id.0), &stretch).await?))
    }
}

/// What is told of a comment.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    comment: &'a Comment,
    task_title: &'a str,
    /// Who made the task, and who is assigned to it.
    concerned_ids: &'a [Uuid],
    /// Who was never mentioned before in this comment.
    newly_mentioned_ids: &'a [Uuid],
}

/// What is said something about.
struct Task {
    project_id: Uuid,
    title: String,
    concerned_ids: Vec<Uuid>,
}

impl Task {
    /// A task that must be there; `lock` is text from code.
    async fn find(tx: &TenantTx, id: Uuid, lock: &str) -> Result<Self> {
        let sql = format!(
            "select t.project_id, t.title, array( \
               select a.user_id from task_assignees a where a.task_id = t.id \
               union select t.created_by order by 1) as concerned_ids from tasks t where t.id = $1 {lock}"
        );
        let row = tx.query_opt(&sql, &[&id]).await?.ok_or_else(|| Error::not_found("task"))?;
        Ok(Self {
            project_id: row.try_get("project_id")?,
            title: row.try_get("title")?,
            concerned_ids: row.try_get("concerned_ids")?,
        })
    }

    fn told<'a>(&'a self, comment: &'a Comment, newly_mentioned_ids: &'a [Uuid]) -> Told<'a> {
        let (task_title, concerned_ids) = (&*self.title, &*self.concerned_ids);
        Told { comment, task_title, concerned_ids, newly_mentioned_ids }
    }
}

const COLUMNS: &str = "id, task_id, author_id, body, edited_at, version, created_at, updated_at, \
     (select t.project_id from tasks t where t.id = comments.task_id) as project_id, \
     array(select n.user_id from mentions n where n.comment_id = comments.id and not n.withdrawn \
       order by n.user_id) as mention_ids";

/// A comment without what hangs on it.
fn from_row(row: &Row) -> Result<Comment> {
    Ok(Comment {
        id: row.try_get("id")?,
        task_id: row.try_get("task_id")?,
        project_id: row.try_get("project_id")?,
        author_id: row.try_get("author_id")?,
        body: row.try_get("body")?,
        mention_ids: row.try_get("mention_ids")?,
        attachments: Vec::new(),
        edited_at: row.try_get("edited_at")?,
        version: row.try_get("version")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}

/// Hangs on comments what belongs there.
async fn attach_all(tx: &TenantTx, comments: &mut [Comment]) -> Result<()> {
    let ids: Vec<Uuid> = comments.iter().map(|comment| comment.id).collect();
    let mut found = attachments::of(tx, Places::Comments(&ids)).await?;
    for comment in comments {
        comment.attachments = found.remove(&comment.id).unwrap_or_default();
    }
    Ok(())
}

async fn row(tx: &TenantTx, id: Uuid) -> Result<Comment> {
    let sql = format!("select {COLUMNS} from comments where id = $1");
    from_row(&tx.query_opt(&sql, &[&id]).await?.ok_or_else(|| Error::not_found("comment"))?)
}

async fn find(tx: &TenantTx, id: Uuid) -> Result<Comment> {
    let mut comment = row(tx, id).await?;
    attach_all(tx, std::slice::from_mut(&mut comment)).await?;
    Ok(comment)
}

/// A comment with its row locked.
async fn find_to_change(tx: &TenantTx, id: Uuid) -> Result<Comment> {
    tx.query("select id from comments where id = $1 for update", &[&id]).await?;
    find(tx, id).await
}

/// Makes a comment for a caller who may.
pub async fn insert(tx: &TenantTx, who: &Member, task_id: Uuid, new: NewComment) -> Result<Comment> {
    let task = Task::find(tx, task_id, "for key share of t").await?;
    let now = who.app.clock.now();
    may_comment(tx, who, &task).await?;
    let mut comment = Comment {
        id: Uuid::now_v7(),
        task_id,
        project_id: task.project_id,
        author_id: who.user_id,
        body: new.body,
        mention_ids: new.mention_ids.unwrap_or_default(),
        attachments: Vec::new(),
        edited_at: None,
        created_at: now,
        updated_at: now,
        version: 1,
    };
    let files = new.file_ids.unwrap_or_default();
    discussion::check_files(&files)?;
    discussion::check_mentions(tx, &mut comment.mention_ids, &[]).await?;
    tx.execute(
        "insert into comments (id, task_id, author_id, body, created_at, updated_at) \
         values ($1, $2, $3, $4, $5, $5)",
        &[&comment.id, &task_id, &comment.author_id, &comment.body, &now],
    )
    .await?;
    comment.attachments = attachments::attach(tx, who, Place::Comment(comment.id), &files).await?;
    let said = Said::Comment(comment.id);
    let mentioned = discussion::mention(tx, said, &comment.mention_ids, &[], now).await?;
    let changes = Changes::created(&task.told(&comment, &mentioned));
    events::record(tx, &who.app, who, EventType::CommentCreated, comment.id, changes).await?;
    Ok(comment)
}

/// Whom a task concerns may speak about it, also without being in its project.
async fn may_comment(tx: &TenantTx, who: &Member, task: &Task) -> Result<()> {
    let by = By::from(who);
    let standing = projects::hold_one_open(tx, &by, task.project_id).await?;
    if !task.concerned_ids.contains(&who.user_id) {
        standing.must_take_from(&by)?;
    }
    standing.must_be_open()
}

async fn store(tx: &TenantTx, comment: &Comment) -> Result<()> {
    tx.execute(
        "update comments set body = $2, edited_at = $3, version = $4, updated_at = $5 where id = $1",
        &[&comment.id, &comment.body, &comment.edited_at, &comment.version, &comment.updated_at],
    )
    .await?;
    Ok(())
}
