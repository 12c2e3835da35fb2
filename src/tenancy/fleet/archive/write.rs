//! Writing archives: parts are made here, and compressed and written on a thread of their own.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use flate2::{Compression, write::GzEncoder};
use futures_util::{Stream, TryStreamExt};
use ring::digest::{Context, SHA256};
use serde::Serialize;
use tokio::{sync::mpsc, task::JoinHandle};
use uuid::Uuid;

use super::super::{
    copy::{self, Table},
    operation::{Progress, Step},
};
use super::{
    Entry, Exported, FORMAT, Hashing, MANIFEST, MOST_ENTRIES, Manifest, PURPOSE, SEAL, Target, files::Object,
};
use crate::{
    app::App,
    auth::sealing::{hex, sha256},
    db::TenantTx,
    error::{Error, Result},
};

/// About so many bytes are in a part.
const PART: usize = 8 << 20;
/// About so many bytes of a file are handed on at a time.
const PIECE: usize = 1 << 20;

/// An archive that is being written; compressing is done on a thread of its own. One that is dropped
/// before it is finished leaves nothing.
pub(super) struct Writer {
    target: Target,
    taken_at: DateTime<Utc>,
    entries: Vec<Entry>,
    parts: mpsc::Sender<Part>,
    thread: JoinHandle<io::Result<Option<(String, u64)>>>,
}

/// What is handed to the thread that writes.
enum Part {
    Entry(String, Vec<u8>),
    /// An entry of so many bytes that come in pieces.
    File(String, u64),
    Piece(Vec<u8>),
    End,
}

impl Writer {
    pub(super) fn begin(target: Target, taken_at: DateTime<Utc>) -> Self {
        let (parts, received) = mpsc::channel(1);
        let to = target.clone();
        let thread = tokio::task::spawn_blocking(move || write(&to, taken_at, received));
        Self { target, taken_at, entries: Vec::new(), parts, thread }
    }

    pub(super) fn manifest(&self, organization: Uuid) -> Manifest {
        Manifest {
            format: FORMAT,
            program: env!("CARGO_PKG_VERSION").into(),
            organization,
            taken_at: self.taken_at,
            only_module: None,
            modules: Vec::new(),
            entries: self.entries.clone(),
            audit_problems: Vec::new(),
            left_out: Vec::new(),
        }
    }

    pub(super) async fn add_table(
        &mut self,
        tx: &TenantTx,
        module: &str,
        table: &Table,
        progress: Progress<'_>,
    ) -> Result<()> {
        let mut rows = copy::read(tx, table, None).await?;
        let (mut part, mut lines, mut number, mut done) = (Vec::new(), 0, 1, 0);
        let path = |number| format!("data/{module}/{}/{number}.jsonl", table.name);
        while let Some(batch) = rows.next().await? {
            for row in &batch {
                part.extend_from_slice(row.as_bytes());
                part.push(b'\n');
                lines += 1;
                if part.len() >= PART {
                    self.add(path(number), std::mem::take(&mut lines), std::mem::take(&mut part)).await?;
                    number += 1;
                }
            }
            done += batch.len() as u64;
            progress(Step { what: &table.name, done, of: None });
        }
        if lines > 0 {
            self.add(path(number), lines, part).await?;
        }
        Ok(())
    }

    pub(super) async fn add_json(&mut self, path: &str, value: &impl Serialize) -> Result<()> {
        self.add(path.to_owned(), 0, serde_json::to_vec_pretty(value).map_err(Error::internal)?).await
    }

    /// Adds a file of so many bytes, and answers its digest.
    pub(super) async fn add_file(
        &mut self,
        path: String,
        size: u64,
        mut content: impl Stream<Item = Result<Bytes>> + Unpin,
    ) -> Result<String> {
        self.send(Part::File(path.clone(), size)).await?;
        let (mut digest, mut left, mut piece) = (Context::new(&SHA256), size, Vec::new());
        let other = || Error::conflict(format!("{path} had {size} bytes a moment ago. Try again."));
        while let Some(bytes) = content.try_next().await? {
            digest.update(&bytes);
            left = left.checked_sub(bytes.len() as u64).ok_or_else(other)?;
            piece.extend_from_slice(&bytes);
            if piece.len() >= PIECE {
                self.send(Part::Piece(std::mem::take(&mut piece))).await?;
            }
        }
        if left > 0 {
            return Err(other());
        }
        if !piece.is_empty() {
            self.send(Part::Piece(piece)).await?;
        }
        let sha256 = hex(digest.finish().as_ref());
        self.list(Entry { path, rows: 0, bytes: size, sha256: sha256.clone() })?;
        Ok(sha256)
    }

    /// Whether so many more parts fit; the manifest and its seal come as well.
    pub(super) fn has_room_for(&self, parts: usize) -> bool {
        self.entries.len() + parts + 2 <= MOST_ENTRIES
    }

    fn list(&mut self, entry: Entry) -> Result<()> {
        if !self.has_room_for(1) {
            return Err(Error::conflict(format!(
                "An archive holds at most {MOST_ENTRIES} parts, and these are more. Export it with --without-files."
            )));
        }
        self.entries.push(entry);
        Ok(())
    }

    async fn add(&mut self, path: String, rows: u64, bytes: Vec<u8>) -> Result<()> {
        let sha256 = hex(&sha256(&bytes));
        self.list(Entry { path: path.clone(), rows, bytes: bytes.len() as u64, sha256 })?;
        self.send(Part::Entry(path, bytes)).await
    }

    async fn send(&mut self, part: Part) -> Result<()> {
        if self.parts.send(part).await.is_ok() {
            return Ok(());
        }
        // The thread has ended before its time, and says why.
        match (&mut self.thread).await.map_err(Error::internal)? {
            Ok(_) => Err(Error::internal("the archive ended before its end")),
            Err(error) => Err(unwritable(&self.target, &error)),
        }
    }

    pub(super) async fn finish(mut self, app: &App, manifest: Manifest) -> Result<Exported> {
        let text = serde_json::to_vec_pretty(&manifest).map_err(Error::internal)?;
        let seal = hex(&app.sealer.mac(PURPOSE, &text)).into_bytes();
        for part in [Part::Entry(MANIFEST.into(), text), Part::Entry(SEAL.into(), seal), Part::End] {
            self.send(part).await?;
        }
        let written = self.thread.await.map_err(Error::internal)?;
        let (sha256, bytes) = written
            .map_err(|error| unwritable(&self.target, &error))?
            .ok_or_else(|| Error::internal("the archive ended before its end"))?;
        let file = match self.target {
            Target::File(path) => Some(path),
            Target::Stdout => None,
        };
        let rows = manifest.entries.iter().map(|entry| entry.rows).sum();
        let objects = manifest.entries.iter().filter_map(|entry| Object::at(&entry.path));
        let files = objects.filter(|object| !object.is_thumbnail).count() as u64;
        let (missing, audit_problems) = (Vec::new(), manifest.audit_problems);
        Ok(Exported { file, sha256, rows, files, missing, bytes, audit_problems })
    }
}

fn unwritable(target: &Target, error: &io::Error) -> Error {
    let place = match target {
        Target::File(path) => path.display().to_string(),
        Target::Stdout => "standard output".into(),
    };
    Error::conflict(format!("The archive could not be written to {place}: {error}"))
}

/// Writes parts as they come. Answers the digest and the size of the file, or nothing if the end did not
/// come, and then leaves no file.
fn write(
    target: &Target,
    taken_at: DateTime<Utc>,
    mut parts: mpsc::Receiver<Part>,
) -> io::Result<Option<(String, u64)>> {
    let Target::File(path) = target else {
        return Ok(pack(io::stdout(), taken_at, &mut parts)?.map(Hashing::told));
    };
    // Of a name that nobody can have prepared.
    let part = with_ending(path, &format!(".{}.part", Uuid::now_v7().simple()));
    let file = File::options().create_new(true).write(true).mode(0o600).open(&part)?;
    let unfinished = Unfinished(part);
    let Some(packed) = pack(&file, taken_at, &mut parts)? else { return Ok(None) };
    let told = packed.told();
    file.sync_all()?;
    fs::rename(&unfinished.0, path)?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        File::open(folder)?.sync_all()?;
    }
    Ok(Some(told))
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// A file that is removed unless it was given its name.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn pack<W: Write>(
    to: W,
    taken_at: DateTime<Utc>,
    parts: &mut mpsc::Receiver<Part>,
) -> io::Result<Option<Hashing<W>>> {
    let mut tar = tar::Builder::new(GzEncoder::new(Hashing::new(to), Compression::default()));
    let header = |size| {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o600);
        header.set_mtime(taken_at.timestamp().max(0) as u64);
        header
    };
    loop {
        match parts.blocking_recv() {
            Some(Part::Entry(path, bytes)) => {
                tar.append_data(&mut header(bytes.len() as u64), path, bytes.as_slice())?;
            }
            Some(Part::File(path, size)) => {
                let pieces = Pieces { parts: &mut *parts, piece: io::Cursor::default(), left: size };
                tar.append_data(&mut header(size), path, pieces)?;
            }
            Some(Part::Piece(_)) => return Err(io::Error::other("a piece of no file")),
            Some(Part::End) => {
                let mut packed = tar.into_inner()?.finish()?;
                packed.flush()?;
                return Ok(Some(packed));
            }
            None => return Ok(None),
        }
    }
}

/// A file whose pieces come from elsewhere.
struct Pieces<'a> {
    parts: &'a mut mpsc::Receiver<Part>,
    piece: io::Cursor<Vec<u8>>,
    left: u64,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let mut read = self.piece.read(buffer)?;
        while read == 0 {
            match self.parts.blocking_recv() {
                Some(Part::Piece(piece)) => self.piece = io::Cursor::new(piece),
                // Whoever sends them gave up.
                _ => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
            read = self.piece.read(buffer)?;
        }
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| io::Error::other("a file is longer than it was said to be"))?;
        Ok(read)
    }
}
