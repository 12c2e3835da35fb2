//! Files in archives: what the rows of `files` tell of, from the store and back into it.
//!
//! They are `files/<id>` and `files/<id>.thumbnail`, behind all rows, and are read and written in pieces. Where an
//! archive is without them, or the store without one of them, the rows are there all the same.

use std::{
    collections::{HashMap, HashSet},
    io::Read,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::super::operation::{Progress, Step};
use super::{
    Checked, Entry, Hashing, MOST_ENTRIES, Writer,
    read::{changed, damaged, open, refused},
};
use crate::{
    app::App,
    db::TenantTx,
    error::{Code, Error, Result},
    files,
};

/// A small picture is at most so large.
const MOST_OF_A_THUMBNAIL: u64 = 2 << 20;
/// How many rows are read at a time.
const ROWS: i64 = 5_000;
/// How much is handed on at a time.
const PIECE: usize = 1 << 20;
/// Objects that are copied at the same time.
const COPIED_AT_ONCE: usize = 8;
/// How many are named of those that are not as they should be.
const NAMED: usize = 20;

/// An object of an organization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Object {
    file: Uuid,
    pub(super) is_thumbnail: bool,
}

impl Object {
    /// By its name in the store.
    fn named(name: &str) -> Option<Self> {
        let (id, is_thumbnail) = match name.strip_suffix(".thumbnail") {
            Some(id) => (id, true),
            None => (name, false),
        };
        let file: Uuid = id.parse().ok()?;
        // As it is written, and in no other way.
        (file.to_string() == id).then_some(Self { file, is_thumbnail })
    }

    /// By its place in an archive.
    pub(super) fn at(path: &str) -> Option<Self> {
        Self::named(path.strip_prefix("files/")?)
    }

    fn path(self) -> String {
        format!("files/{}{}", self.file, if self.is_thumbnail { ".thumbnail" } else { "" })
    }

    fn key(self, organization: Uuid) -> String {
        match self.is_thumbnail {
            true => files::thumbnail_key(organization, self.file),
            false => files::key(organization, self.file),
        }
    }
}

/// What a row says of a file.
pub(in crate::tenancy::fleet) struct Recorded {
    id: Uuid,
    size: u64,
    sha256: String,
    has_thumbnail: bool,
}

impl Recorded {
    fn content(&self) -> Object {
        Object { file: self.id, is_thumbnail: false }
    }

    fn thumbnail(&self) -> Option<Object> {
        self.has_thumbnail.then_some(Object { file: self.id, is_thumbnail: true })
    }
}

/// The files that a schema tells of.
pub(in crate::tenancy::fleet) async fn recorded(tx: &TenantTx) -> Result<Vec<Recorded>> {
    // A schema may be of a version that had none.
    let there = "select 1 from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
         where n.nspname = $1 and c.relname = 'files'";
    let mut all = Vec::new();
    if tx.query_once(there, &[&tx.schema().to_string()]).await?.is_empty() {
        return Ok(all);
    }
    let sql = "select id, size, sha256, thumbnail = 'ready' as has_thumbnail from files where id > $1 order by id limit $2";
    let mut after = Uuid::nil();
    loop {
        let rows = tx.query_once(sql, &[&after, &ROWS]).await?;
        for row in &rows {
            after = row.try_get("id")?;
            all.push(Recorded {
                id: after,
                size: row.try_get::<_, i64>("size")?.unsigned_abs(),
                sha256: row.try_get("sha256")?,
                has_thumbnail: row.try_get("has_thumbnail")?,
            });
        }
        if rows.len() < ROWS as usize {
            return Ok(all);
        }
    }
}

/// Whether what an archive says of files is what is known of them here: a file never becomes another.
pub(in crate::tenancy::fleet) fn agree(here: &[Recorded], archived: &[Recorded]) -> Result<()> {
    let here: HashMap<Uuid, &Recorded> = here.iter().map(|file| (file.id, file)).collect();
    let other = archived.iter().find(|file| {
        here.get(&file.id).is_some_and(|known| (known.size, &known.sha256) != (file.size, &file.sha256))
    });
    match other {
        Some(file) => Err(refused(format!("The file {} is another one here than in the archive.", file.id))),
        None => Ok(()),
    }
}

/// The objects that are there of an organization, with their sizes.
async fn stored(app: &App, organization: Uuid) -> Result<HashMap<Object, u64>> {
    let mut found = HashMap::new();
    let mut objects = app.files.list(&files::folder(organization))?;
    while let Some(object) = objects.try_next().await? {
        let name = object.path.rsplit('/').next().unwrap_or_default();
        if let Some(known) = Object::named(name) {
            found.insert(known, object.size);
        }
    }
    Ok(found)
}

/// Files that are not as they should be, for people.
#[derive(Default)]
struct Amiss {
    many: usize,
    told: Vec<String>,
}

impl Amiss {
    fn add(&mut self, file: Uuid, how: &str) {
        self.many += 1;
        if self.told.len() < NAMED {
            self.told.push(format!("the file {file}, {how}"));
        }
    }

    fn told(mut self) -> Vec<String> {
        if self.many > self.told.len() {
            self.told.push(format!("{} more files, for the same reasons", self.many - self.told.len()));
        }
        self.told
    }
}

/// Adds the files that rows tell of to an archive. Answers which are not in it, and why.
pub(super) async fn add(
    app: &App,
    organization: Uuid,
    writer: &mut Writer,
    recorded: &[Recorded],
    progress: Progress<'_>,
) -> Result<Vec<String>> {
    if recorded.is_empty() {
        return Ok(Vec::new());
    }
    if !app.files.is_there() {
        return Ok(vec![format!("{} files: no place for files is configured here", recorded.len())]);
    }
    let small = recorded.iter().filter(|file| file.has_thumbnail).count();
    if !writer.has_room_for(recorded.len() + small) {
        // Before hours are spent on it.
        return Ok(vec![format!(
            "{} files: with them the archive would have more than {MOST_ENTRIES} parts",
            recorded.len()
        )]);
    }
    let there = stored(app, organization).await?;
    let mut amiss = Amiss::default();
    for (n, file) in recorded.iter().enumerate() {
        match there.get(&file.content()) {
            None => amiss.add(file.id, "which is not in the store"),
            Some(size) if *size != file.size => amiss.add(file.id, "of which the store has another size"),
            Some(_) => match app.files.get(&file.content().key(organization)).await {
                Ok(pieces) => {
                    let sha256 = writer.add_file(file.content().path(), file.size, pieces).await?;
                    if sha256 != file.sha256 {
                        amiss.add(file.id, "which is not what was uploaded any more");
                    }
                }
                // Deleted since.
                Err(error) if error.code() == Code::NotFound => {
                    amiss.add(file.id, "which was deleted meanwhile")
                }
                Err(error) => return Err(error),
            },
        }
        let small = file.thumbnail().and_then(|object| Some((object, *there.get(&object)?)));
        if let Some((object, size)) = small.filter(|(_, size)| *size <= MOST_OF_A_THUMBNAIL) {
            match app.files.get(&object.key(organization)).await {
                Ok(pieces) => drop(writer.add_file(object.path(), size, pieces).await?),
                Err(error) if error.code() == Code::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        progress(Step { what: "files", done: n as u64 + 1, of: Some(recorded.len() as u64) });
    }
    Ok(amiss.told())
}

/// Copies the files that rows tell of from one organization to another, within the store. Answers which
/// could not be, and why.
pub(in crate::tenancy::fleet) async fn copy(
    app: &App,
    recorded: &[Recorded],
    (from, to): (Uuid, Uuid),
    progress: Progress<'_>,
) -> Result<Vec<String>> {
    if recorded.is_empty() || !app.files.is_there() {
        return Ok(Vec::new());
    }
    let (mut amiss, mut done, of) = (Amiss::default(), 0, recorded.len() as u64);
    let objects: Vec<_> = recorded.iter().map(|file| (file.content(), file.thumbnail())).collect();
    let store = app.files.clone();
    let copies = stream::iter(objects).map(move |(content, small)| {
        let store = store.clone();
        async move {
            let is_there = found(store.copy(&content.key(from), &content.key(to)).await)?;
            if let Some(small) = small.filter(|_| is_there) {
                found(store.copy(&small.key(from), &small.key(to)).await)?;
            }
            Ok::<_, Error>((content.file, is_there))
        }
    });
    let mut copies = pin!(copies.buffer_unordered(COPIED_AT_ONCE));
    while let Some((file, is_there)) = copies.try_next().await? {
        if !is_there {
            amiss.add(file, "which is not in the store");
        }
        done += 1;
        progress(Step { what: "files", done, of: Some(of) });
    }
    Ok(amiss.told())
}

/// Whether there was something to copy.
fn found(copied: Result<()>) -> Result<bool> {
    match copied {
        Ok(()) => Ok(true),
        Err(error) if error.code() == Code::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// What became of the files of an archive.
#[derive(Debug, Default)]
pub(in crate::tenancy::fleet) struct Put {
    /// Files that were put into the store.
    pub(in crate::tenancy::fleet) files: u64,
    /// What is not there, for people.
    pub(in crate::tenancy::fleet) missing: Vec<String>,
}

/// Puts the files of an archive into the store that are not there, of those that the rows tell of. Nothing
/// that is there is written over.
pub(in crate::tenancy::fleet) async fn put(
    app: &App,
    from: &Checked,
    organization: Uuid,
    recorded: &[Recorded],
    progress: Progress<'_>,
) -> Result<Put> {
    let has_files = from.manifest.entries.iter().any(|entry| Object::at(&entry.path).is_some());
    if !app.files.is_there() {
        return match (has_files, recorded.len()) {
            (true, _) => Err(Error::conflict(
                "The archive has files, and there is no place for them here. Set files.folder (FILES_FOLDER) or \
                 files.s3_bucket (FILES_S3_BUCKET).",
            )),
            (false, 0) => Ok(Put::default()),
            (false, many) => Ok(Put {
                files: 0,
                missing: vec![format!("{many} files: no place for files is configured here")],
            }),
        };
    }
    let mut there = match has_files || !recorded.is_empty() {
        true => stored(app, organization).await?,
        false => HashMap::new(),
    };
    let known: HashMap<Uuid, &Recorded> = recorded.iter().map(|file| (file.id, file)).collect();
    let mut wanted = HashSet::new();
    for entry in &from.manifest.entries {
        let Some(object) = Object::at(&entry.path) else { continue };
        let Some(file) = known.get(&object.file) else {
            return Err(refused(format!("The archive holds {}, which no row of it tells of.", entry.path)));
        };
        let fits = match object.is_thumbnail {
            true => file.has_thumbnail && entry.bytes <= MOST_OF_A_THUMBNAIL,
            false => entry.bytes == file.size && entry.sha256 == file.sha256,
        };
        if fits && !there.contains_key(&object) {
            wanted.insert(object);
        }
    }
    let (mut put, of) = (0, wanted.len() as u64);
    let mut pieces = pieces(from, wanted);
    while let Some(piece) = pieces.recv().await {
        let Piece::Begin(object, size) = piece? else { return Err(changed()) };
        app.files.put(&object.key(organization), Content(&mut pieces)).await?;
        there.insert(object, size);
        put += u64::from(!object.is_thumbnail);
        progress(Step { what: "files", done: put, of: Some(of) });
    }
    let mut amiss = Amiss::default();
    for file in recorded {
        match there.get(&file.content()) {
            None => amiss.add(file.id, "which is neither in the archive nor in the store"),
            Some(size) if *size != file.size => amiss.add(file.id, "of which the store has another size"),
            Some(_) => {}
        }
    }
    Ok(Put { files: put, missing: amiss.told() })
}

/// What is handed from the thread that reads an archive.
enum Piece {
    Begin(Object, u64),
    Bytes(Bytes),
    /// It was read to its end and is what the manifest says.
    End,
}

/// An object of an archive, as it is handed on.
struct Content<'a>(&'a mut mpsc::Receiver<Result<Piece>>);

impl Stream for Content<'_> {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|piece| match piece {
            Some(Ok(Piece::Bytes(bytes))) => Some(Ok(bytes)),
            Some(Ok(Piece::End)) => None,
            Some(Err(error)) => Some(Err(error)),
            Some(Ok(Piece::Begin(..))) | None => Some(Err(changed())),
        })
    }
}

fn pieces(from: &Checked, wanted: HashSet<Object>) -> mpsc::Receiver<Result<Piece>> {
    let (to, pieces) = mpsc::channel(2);
    if wanted.is_empty() {
        return pieces;
    }
    let (path, listed) = (from.path.clone(), from.manifest.entries.clone());
    tokio::task::spawn_blocking(move || {
        let read = || -> Result<()> {
            let mut archive = open(&path)?;
            let mut listed = listed.iter();
            for entry in archive.entries().map_err(damaged)?.raw(true) {
                let entry = entry.map_err(damaged)?;
                let Some(expected) = listed.next() else { return Ok(()) };
                if *entry.path_bytes() != *expected.path.as_bytes() {
                    return Err(changed());
                }
                let object = Object::at(&expected.path).filter(|object| wanted.contains(object));
                let Some(object) = object else { continue };
                if !hand_on(entry, object, expected, &to)? {
                    return Ok(());
                }
            }
            match listed.next() {
                None => Ok(()),
                Some(_) => Err(changed()),
            }
        };
        if let Err(error) = read() {
            let _ = to.blocking_send(Err(error));
        }
    });
    pieces
}

/// Hands an object on in pieces; false if nobody wants it any more.
fn hand_on(
    entry: impl Read,
    object: Object,
    expected: &Entry,
    to: &mpsc::Sender<Result<Piece>>,
) -> Result<bool> {
    if to.blocking_send(Ok(Piece::Begin(object, expected.bytes))).is_err() {
        return Ok(false);
    }
    let mut content = Hashing::new(entry);
    loop {
        let mut bytes = Vec::new();
        content.by_ref().take(PIECE as u64).read_to_end(&mut bytes).map_err(damaged)?;
        if bytes.is_empty() {
            break;
        }
        if to.blocking_send(Ok(Piece::Bytes(bytes.into()))).is_err() {
            return Ok(false);
        }
    }
    if content.told() != (expected.sha256.clone(), expected.bytes) {
        return Err(changed());
    }
    Ok(to.blocking_send(Ok(Piece::End)).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_objects_are_files_in_archives() {
        let id = Uuid::now_v7();
        for is_thumbnail in [false, true] {
            let object = Object { file: id, is_thumbnail };
            assert_eq!(Object::at(&object.path()), Some(object));
        }
        for other in [
            format!("files/../{id}"),
            format!("files/{}", id.simple()),
            format!("files/{id}.thumbnail.thumbnail"),
            format!("files/{id}/"),
            format!("/files/{id}"),
            id.to_string(),
            "files/".into(),
        ] {
            assert_eq!(Object::at(&other), None, "{other}");
        }
    }
}
