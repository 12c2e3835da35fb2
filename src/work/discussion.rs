//! What comments and messages have in common: who is mentioned in them, and what they said before.

use chrono::{DateTime, Utc};
use poem_openapi::{Object, types::Example};
use serde::Serialize;
use uuid::Uuid;

use crate::{
    auth::Member,
    db::{Row, Select, TenantTx},
    error::{Error, Result},
    organizations::members,
    page::{CursorPage, Stretch},
    types::{EXAMPLE_ID, Text, example, example_time},
};

/// What somebody says.
pub type Words = Text<1, 20_000>;

/// How many members one comment or message may mention.
const MOST_MENTIONS: usize = 50;
/// How many files may hang on one comment or message.
const MOST_FILES: usize = 10;

/// What an edit replaced.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct EarlierWords {
    pub id: Uuid,
    pub body: Words,
    pub author_id: Uuid,
    /// Since when it said so.
    pub written_at: DateTime<Utc>,
    /// When the edit was made.
    pub replaced_at: DateTime<Utc>,
}

impl Example for EarlierWords {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            body: example("The retort comes on Tuesday"),
            author_id: EXAMPLE_ID,
            written_at: example_time(),
            replaced_at: example_time(),
        }
    }
}

/// Something that was said.
#[derive(Clone, Copy, Debug)]
pub(super) enum Said {
    Comment(Uuid),
    Message(Uuid),
}

impl Said {
    /// The values of the columns `comment_id` and `message_id`.
    fn columns(self) -> (Option<Uuid>, Option<Uuid>) {
        match self {
            Self::Comment(id) => (Some(id), None),
            Self::Message(id) => (None, Some(id)),
        }
    }

    /// The column that names it, and its id.
    fn column(self) -> (&'static str, Uuid) {
        match self {
            Self::Comment(id) => ("comment_id", id),
            Self::Message(id) => ("message_id", id),
        }
    }
}

/// Nobody puts words into another's mouth, whatever they may do otherwise.
pub(super) fn must_be_author(who: &Member, author: Uuid) -> Result<()> {
    match author == who.user_id {
        true => Ok(()),
        false => Err(Error::denied("Only its author can edit this. Answer it, or ask its author to.")),
    }
}

/// What must hold of those who are mentioned; also puts them into their order. Who was mentioned `before`
/// may stay, also after leaving the organization.
pub(super) async fn check_mentions(tx: &TenantTx, users: &mut Vec<Uuid>, before: &[Uuid]) -> Result<()> {
    users.sort();
    users.dedup();
    if users.len() > MOST_MENTIONS {
        return Err(Error::invalid("mention_ids", format!("may name at most {MOST_MENTIONS} members")));
    }
    let new: Vec<Uuid> = users.iter().filter(|id| !before.contains(id)).copied().collect();
    members::must_be_active(tx, tx.organization(), &new, "mention_ids").await
}

/// What must hold of the files that come with it.
pub(super) fn check_files(files: &[Uuid]) -> Result<()> {
    match files.len() > MOST_FILES {
        true => Err(Error::invalid("file_ids", format!("may name at most {MOST_FILES} files"))),
        false => Ok(()),
    }
}

/// Writes down who is mentioned now. Answers those who never were before in this: who is mentioned again
/// after an edit took them out was told already.
pub(super) async fn mention(
    tx: &TenantTx,
    said: Said,
    users: &[Uuid],
    before: &[Uuid],
    now: DateTime<Utc>,
) -> Result<Vec<Uuid>> {
    if users == before {
        return Ok(Vec::new());
    }
    let (column, id) = said.column();
    if !before.is_empty() {
        let sql = format!("update mentions set withdrawn = true where {column} = $1 and user_id <> all ($2)");
        tx.execute(&sql, &[&id, &users]).await?;
    }
    let sql = format!("update mentions set withdrawn = false where {column} = $1 and user_id = any ($2)");
    tx.execute(&sql, &[&id, &users]).await?;
    let ids: Vec<Uuid> = users.iter().map(|_| Uuid::now_v7()).collect();
    let (comment, message) = said.columns();
    let rows = tx
        .query(
            "insert into mentions (id, user_id, comment_id, message_id, withdrawn, created_at) \
             select new.id, new.user_id, $3::uuid, $4::uuid, false, $5::timestamptz \
             from unnest($1::uuid[], $2::uuid[]) as new (id, user_id) on conflict do nothing returning user_id",
            &[&ids, &users, &comment, &message, &now],
        )
        .await?;
    rows.iter().map(|row| Ok(row.try_get("user_id")?)).collect()
}

/// Keeps what an edit replaces.
pub(super) async fn keep(
    tx: &TenantTx,
    said: Said,
    (body, author): (&Words, Uuid),
    written_at: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<()> {
    let (comment, message) = said.columns();
    tx.execute(
        "insert into edits (id, comment_id, message_id, body, written_by, written_at, replaced_at) \
         values ($1, $2, $3, $4, $5, $6, $7)",
        &[&Uuid::now_v7(), &comment, &message, body, &author, &written_at, &now],
    )
    .await?;
    Ok(())
}

/// What it said before, the newest first.
pub(super) async fn earlier(
    tx: &TenantTx,
    said: Said,
    stretch: &Stretch,
) -> Result<CursorPage<EarlierWords>> {
    let (column, id) = said.column();
    let condition = format!("{column} = ?");
    let rows = Select::new("id, body, written_by, written_at, replaced_at", "edits")
        .and(&condition, &id)
        .newest(tx, stretch)
        .await?;
    let words = rows.iter().map(from_row).collect::<Result<_>>()?;
    Ok(stretch.answer(words, |words: &EarlierWords| words.id))
}

fn from_row(row: &Row) -> Result<EarlierWords> {
    Ok(EarlierWords {
        id: row.try_get("id")?,
        body: row.try_get("body")?,
        author_id: row.try_get("written_by")?,
        written_at: row.try_get("written_at")?,
        replaced_at: row.try_get("replaced_at")?,
    })
}
