//! Reading archives: nothing in them is trusted.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use flate2::bufread::GzDecoder;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::mpsc;

use super::super::{
    copy::{self, Table},
    operation::{Progress, Step},
};
use super::{
    Entry, FORMAT, Hashing, Ids, MANIFEST, MEMBERS, MOST_ENTRIES, Manifest, MemberPart, Module, ORGANIZATION,
    OrganizationPart, PURPOSE, SEAL, files::Object,
};
use crate::{
    app::App,
    auth::sealing::hex,
    db::{
        TenantTx,
        migrations::{Set, all_sets, base_sets},
    },
    error::{Code, Error, Result},
};

/// What is read into memory at once is at most so large: a row, what is said of members...
const MOST_AT_ONCE: u64 = 256 << 20;
/// ... the manifest, and its seal.
const MOST_OF_MANIFEST: u64 = 128 << 20;
const MOST_OF_SEAL: u64 = 1 << 10;
/// Rows that are handed on together: so many, and about so many bytes.
const BATCH_ROWS: usize = 500;
const BATCH_BYTES: usize = 1_000_000;

/// An archive that was read to its end and found whole.
pub(in crate::tenancy::fleet) struct Checked {
    pub(in crate::tenancy::fleet) manifest: Manifest,
    pub(in crate::tenancy::fleet) organization: OrganizationPart,
    pub(in crate::tenancy::fleet) members: Vec<MemberPart>,
    /// Whether this installation wrote it, or one with the same key.
    pub(in crate::tenancy::fleet) is_own: bool,
    pub(super) path: PathBuf,
}

/// Reads an archive to its end and judges it. One with a seal that is not ours is only good if
/// `unsealed` ones are.
pub(in crate::tenancy::fleet) async fn check(app: &App, path: &Path, unsealed: bool) -> Result<Checked> {
    let file = path.to_owned();
    let read = tokio::task::spawn_blocking(move || inspect(&file)).await.map_err(Error::internal)??;
    let seal = hex(&app.sealer.mac(PURPOSE, &read.manifest)).into_bytes();
    let is_own = seal == read.seal;
    if !is_own && !unsealed {
        return Err(refused(
            "The archive was not sealed by this installation, or it was changed since. If it is from another one \
             and you trust where it comes from, repeat with --unsealed.",
        ));
    }
    let manifest = judge(&read.manifest, &read.entries)?;
    if let Some(module) = &manifest.only_module {
        return Err(refused(format!(
            "The archive holds no more than the module {module} of an organization."
        )));
    }
    Ok(Checked {
        organization: part(&read.kept, ORGANIZATION)?,
        members: part(&read.kept, MEMBERS)?,
        manifest,
        is_own,
        path: path.to_owned(),
    })
}

fn part<T: DeserializeOwned>(kept: &HashMap<String, Vec<u8>>, path: &str) -> Result<T> {
    let bytes = kept.get(path).ok_or_else(|| refused(format!("The archive lacks {path}.")))?;
    serde_json::from_slice(bytes).map_err(|error| refused(format!("{path} in the archive: {error}")))
}

pub(super) fn refused(why: impl Into<String>) -> Error {
    Error::new(Code::Validation, why)
}

/// What was found in a file.
#[derive(Debug)]
struct Inspected {
    entries: Vec<Entry>,
    kept: HashMap<String, Vec<u8>>,
    manifest: Vec<u8>,
    seal: Vec<u8>,
}

pub(super) type Unpacked = tar::Archive<GzDecoder<BufReader<File>>>;

pub(super) fn open(path: &Path) -> Result<Unpacked> {
    let unreadable = |error: io::Error| refused(format!("{} cannot be read: {error}", path.display()));
    let mut file = BufReader::new(File::open(path).map_err(unreadable)?);
    if !file.fill_buf().map_err(unreadable)?.starts_with(&[0x1f, 0x8b]) {
        return Err(refused(format!("{} is no archive of an organization.", path.display())));
    }
    Ok(tar::Archive::new(GzDecoder::new(file)))
}

pub(super) fn damaged(error: io::Error) -> Error {
    refused(format!("The archive is damaged or was cut off: {error}."))
}

/// What is read again must be what was checked.
pub(super) fn changed() -> Error {
    refused("The archive was changed while it was read.")
}

/// Reads everything once.
fn inspect(path: &Path) -> Result<Inspected> {
    let mut archive = open(path)?;
    let (mut entries, mut kept): (Vec<Entry>, HashMap<String, Vec<u8>>) = Default::default();
    // Raw: what tar does for long names and links has no place here, and would be read as a whole.
    for entry in archive.entries().map_err(damaged)?.raw(true) {
        let entry = entry.map_err(damaged)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if !entry.header().entry_type().is_file() {
            return Err(refused(format!("The archive holds {name:?}, which is no file.")));
        }
        if kept.contains_key(SEAL) {
            return Err(refused(format!("The archive goes on behind its seal, with {name:?}.")));
        }
        if kept.contains_key(MANIFEST) && name != SEAL {
            return Err(refused(format!("The archive holds {name:?} behind its manifest.")));
        }
        let (is_data, is_file) = (name.starts_with("data/"), Object::at(&name).is_some());
        let most = match name.as_str() {
            MANIFEST => MOST_OF_MANIFEST,
            SEAL => MOST_OF_SEAL,
            ORGANIZATION | MEMBERS => MOST_AT_ONCE,
            _ if is_data || is_file => u64::MAX,
            _ => return Err(refused(format!("The archive holds {name:?}, which archives do not."))),
        };
        if entry.size() > most || entries.len() == MOST_ENTRIES {
            return Err(refused(format!("The archive holds more than archives do, with {name:?}.")));
        }
        let mut content = Hashing::new(entry);
        let rows = match (is_data, is_file) {
            (true, _) => count_lines(&mut content).map_err(damaged)?,
            (_, true) => io::copy(&mut content, &mut io::sink()).map(|_| 0).map_err(damaged)?,
            _ => {
                let mut bytes = Vec::new();
                content.read_to_end(&mut bytes).map_err(damaged)?;
                if kept.insert(name.clone(), bytes).is_some() {
                    return Err(refused(format!("The archive holds {name:?} twice.")));
                }
                0
            }
        };
        let (sha256, bytes) = content.told();
        entries.push(Entry { path: name, rows, bytes, sha256 });
    }
    ends_here(archive)?;
    let cut_off = || refused("The archive was cut off: its manifest is missing.");
    let manifest = kept.remove(MANIFEST).ok_or_else(cut_off)?;
    let seal = kept.remove(SEAL).ok_or_else(cut_off)?;
    entries.retain(|entry| ![MANIFEST, SEAL].contains(&entry.path.as_str()));
    Ok(Inspected { entries, kept, manifest, seal })
}

fn count_lines(content: &mut impl Read) -> io::Result<u64> {
    let (mut buffer, mut lines) = (vec![0; 64 << 10], 0);
    loop {
        let read = content.read(&mut buffer)?;
        if read == 0 {
            return Ok(lines);
        }
        lines += buffer[..read].iter().filter(|byte| **byte == b'\n').count() as u64;
    }
}

/// Reads what follows the last entry: nothing but filling. The checksum of the compression is
/// compared at its end.
fn ends_here(archive: Unpacked) -> Result<()> {
    let mut rest = archive.into_inner();
    let mut filling = Vec::new();
    rest.by_ref().take(1 << 20).read_to_end(&mut filling).map_err(damaged)?;
    let more = rest.into_inner().fill_buf().map_err(damaged)?.len();
    if more > 0 || filling.iter().any(|byte| *byte != 0) {
        return Err(refused("The archive goes on behind its end."));
    }
    Ok(())
}

/// Whether the manifest is one that this program can use, and fits what was found.
fn judge(text: &[u8], found: &[Entry]) -> Result<Manifest> {
    let unreadable = |error: serde_json::Error| refused(format!("The archive's manifest: {error}."));
    let value: Value = serde_json::from_slice(text).map_err(unreadable)?;
    let format = value["format"].as_u64().unwrap_or_default();
    if format != FORMAT {
        return Err(refused(format!(
            "The archive has format {format}, this program reads {FORMAT}; it was written by version {}.",
            value["program"].as_str().unwrap_or("?")
        )));
    }
    let manifest: Manifest = serde_json::from_value(value).map_err(unreadable)?;
    let sets = sets(&manifest)?;
    for (listed, found) in manifest.entries.iter().zip(found) {
        if listed != found {
            return Err(refused(match listed.path == found.path {
                true => format!("{} in the archive is not what its manifest says.", listed.path),
                false => format!("The archive has {:?} where {:?} should be.", found.path, listed.path),
            }));
        }
    }
    if let Some(missing) = manifest.entries.get(found.len()) {
        return Err(refused(format!("The archive lacks {:?}.", missing.path)));
    }
    if let Some(extra) = found.get(manifest.entries.len()) {
        return Err(refused(format!(
            "The archive holds {:?}, which its manifest does not list.",
            extra.path
        )));
    }
    for entry in
        manifest.entries.iter().filter(|entry| ![ORGANIZATION, MEMBERS].contains(&entry.path.as_str()))
    {
        let known = |(module, table): (&str, &str)| {
            sets.iter().any(|(set, tables)| set.module == module && tables.iter().any(|known| known == table))
        };
        let is_file = manifest.only_module.is_none() && Object::at(&entry.path).is_some();
        if !is_file && !table_of(&entry.path).is_some_and(known) {
            return Err(refused(format!("The archive holds {:?}, which belongs to no module.", entry.path)));
        }
    }
    Ok(manifest)
}

/// The sets as they were when the archive was written, with their tables.
fn sets(manifest: &Manifest) -> Result<Vec<(Set, Vec<String>)>> {
    let mut sets = Vec::new();
    for Module { name, version, checksum } in &manifest.modules {
        let set = all_sets().into_iter().find(|set| set.module == name);
        let set = set.ok_or_else(|| refused(format!("The archive has a module {name:?}, unknown here.")))?;
        if *version > set.latest() || *version < 1 {
            return Err(refused(format!(
                "The archive has module {name} at version {version}, this program goes to {}: use a newer one.",
                set.latest()
            )));
        }
        if set.checksum(*version) != *checksum {
            return Err(refused(format!(
                "The migrations of module {name} up to version {version} were others where the archive was written."
            )));
        }
        let set = set.upto(*version);
        let tables = set.tables();
        sets.push((set, tables));
    }
    let has = |module: &str| sets.iter().filter(|(set, _)| set.module == module).count() == 1;
    if manifest.only_module.is_none()
        && let Some(missing) = base_sets().iter().find(|set| !has(set.module))
    {
        return Err(refused(format!("The archive lacks module {}.", missing.module)));
    }
    Ok(sets)
}

/// The module and the table of `data/<module>/<table>/<n>.jsonl`.
fn table_of(path: &str) -> Option<(&str, &str)> {
    let (module, rest) = path.strip_prefix("data/")?.split_once('/')?;
    let (table, number) = rest.split_once('/')?;
    let number = number.strip_suffix(".jsonl")?;
    number.bytes().all(|digit| digit.is_ascii_digit()).then_some((module, table))
}

impl Checked {
    /// The modules as they were when the archive was written.
    pub(in crate::tenancy::fleet) fn sets(&self) -> Result<Vec<Set>> {
        Ok(sets(&self.manifest)?.into_iter().map(|(set, _)| set).collect())
    }

    pub(in crate::tenancy::fleet) fn rows(&self) -> u64 {
        self.manifest.entries.iter().map(|entry| entry.rows).sum()
    }
}

/// Puts the rows of an archive into a schema that was built for them, and nothing else. In every row the
/// ids that are others here are replaced.
pub(in crate::tenancy::fleet) async fn load(
    tx: &TenantTx,
    from: &Checked,
    ids: &Ids,
    progress: Progress<'_>,
) -> Result<()> {
    copy::prepare(tx).await?;
    let tables: BTreeMap<String, Table> =
        copy::tables(tx).await?.into_iter().map(|table| (table.name.clone(), table)).collect();
    let foreign_keys = copy::without_foreign_keys(tx).await?;
    copy::clear(tx, tables.values()).await?;
    let (mut done, of) = (0, from.rows());
    let mut batches = batches(from);
    while let Some(batch) = batches.recv().await {
        let (table, rows) = batch?;
        let rows: Vec<String> = rows.into_iter().map(|row| ids.replace(row)).collect();
        let known =
            tables.get(&table).ok_or_else(|| refused(format!("There is no table {table} any more.")))?;
        let added = copy::insert(tx, known, &rows).await.map_err(|error| unfit(&table, error))?;
        if added != rows.len() as u64 {
            return Err(refused(format!("What the archive holds for {table} are not rows.")));
        }
        done += added;
        progress(Step { what: &table, done, of: Some(of) });
    }
    if done != of {
        return Err(refused("The archive has other rows than it had a moment ago."));
    }
    for statement in &foreign_keys {
        tx.command(statement).await.map_err(|error| unfit("references", error))?;
    }
    Ok(())
}

/// An archive that is sealed can hold no such rows; one that is not, any.
fn unfit(what: &str, error: Error) -> Error {
    match error.code() {
        Code::Unavailable => error,
        _ => {
            let cause = error.cause().unwrap_or_else(|| error.to_string());
            refused(format!("The rows of the archive do not fit ({what}): {cause}"))
        }
    }
}

type Batch = Result<(String, Vec<String>)>;

/// The rows, table by table, as they come from the file; it is compared with the manifest once more.
fn batches(from: &Checked) -> mpsc::Receiver<Batch> {
    let (to, batches) = mpsc::channel(2);
    let (path, listed) = (from.path.clone(), from.manifest.entries.clone());
    tokio::task::spawn_blocking(move || {
        if let Err(error) = unpack(&path, &listed, &to) {
            let _ = to.blocking_send(Err(error));
        }
    });
    batches
}

fn unpack(path: &Path, listed: &[Entry], to: &mpsc::Sender<Batch>) -> Result<()> {
    let mut archive = open(path)?;
    let mut listed = listed.iter();
    for entry in archive.entries().map_err(damaged)?.raw(true) {
        let entry = entry.map_err(damaged)?;
        let Some(expected) = listed.next() else { return Ok(()) };
        if *entry.path_bytes() != *expected.path.as_bytes() {
            return Err(changed());
        }
        // Files come behind all rows, and are put into the store without a transaction.
        if Object::at(&expected.path).is_some() {
            return Ok(());
        }
        let mut content = BufReader::with_capacity(64 << 10, Hashing::new(entry));
        match table_of(&expected.path) {
            Some((_, table)) => {
                if !send_lines(&mut content, table, to)? {
                    return Ok(());
                }
            }
            None => {
                io::copy(&mut content, &mut io::sink()).map_err(damaged)?;
            }
        }
        if content.into_inner().told() != (expected.sha256.clone(), expected.bytes) {
            return Err(changed());
        }
    }
    match listed.next() {
        None => Ok(()),
        Some(_) => Err(changed()),
    }
}

/// Hands lines on, some at a time; false if nobody wants them any more.
fn send_lines(content: &mut impl BufRead, table: &str, to: &mpsc::Sender<Batch>) -> Result<bool> {
    let (mut rows, mut bytes) = (Vec::new(), 0);
    loop {
        let mut line = Vec::new();
        content.by_ref().take(MOST_AT_ONCE).read_until(b'\n', &mut line).map_err(damaged)?;
        let over = line.is_empty();
        if !over {
            if line.pop() != Some(b'\n') {
                return Err(refused(format!("A row of {table} in the archive has no end.")));
            }
            let row = String::from_utf8(line)
                .map_err(|_| refused(format!("A row of {table} in the archive is not text.")))?;
            bytes += row.len();
            rows.push(row);
        }
        let full = rows.len() >= BATCH_ROWS || bytes >= BATCH_BYTES;
        if (over || full) && !rows.is_empty() {
            bytes = 0;
            if to.blocking_send(Ok((table.to_owned(), std::mem::take(&mut rows)))).is_err() {
                return Ok(false);
            }
        }
        if over {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn only_tables_have_rows() {
        assert_eq!(table_of("data/work/tasks/12.jsonl"), Some(("work", "tasks")));
        for other in [
            "data/work/tasks/../x.jsonl",
            "data/work/tasks.jsonl",
            "/data/work/tasks/1.jsonl",
            "data/work/tasks/1.sql",
        ] {
            assert_eq!(table_of(other), None, "{other}");
        }
    }

    fn manifest(change: impl FnOnce(&mut Value)) -> Vec<u8> {
        let modules = base_sets();
        let modules = modules.iter().map(|set| Module {
            name: set.module.into(),
            version: set.latest(),
            checksum: set.checksum(set.latest()),
        });
        let mut manifest = serde_json::to_value(Manifest {
            format: FORMAT,
            program: "0".into(),
            organization: Uuid::nil(),
            taken_at: DateTime::UNIX_EPOCH,
            only_module: None,
            modules: modules.collect(),
            entries: vec![entry("data/work/tasks/1.jsonl")],
            audit_problems: Vec::new(),
            left_out: Vec::new(),
        })
        .unwrap();
        change(&mut manifest);
        serde_json::to_vec(&manifest).unwrap()
    }

    fn entry(path: &str) -> Entry {
        Entry { path: path.into(), rows: 1, bytes: 1, sha256: "00".into() }
    }

    #[test]
    fn a_manifest_must_be_of_this_program_and_fit() {
        let found = [entry("data/work/tasks/1.jsonl")];
        judge(&manifest(|_| {}), &found).unwrap();
        let objection = |change: fn(&mut Value), found: &[Entry]| {
            judge(&manifest(change), found).map(|_| ()).unwrap_err().to_string()
        };
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 10] = [
            (|m| m["format"] = 2.into(), "format 2"),
            (|m| m["extra"] = 1.into(), "unknown field"),
            (|m| m["modules"][0]["name"] = "magic".into(), "magic"),
            (|m| m["modules"][1]["version"] = 99.into(), "newer"),
            (|m| m["modules"][1]["version"] = 0.into(), "version 0"),
            (|m| m["modules"][1]["checksum"] = "00".into(), "others"),
            (|m| drop(m["modules"].as_array_mut().unwrap().pop()), "lacks module"),
            (|m| m["entries"][0]["sha256"] = "11".into(), "is not what"),
            (|m| m["entries"][0]["path"] = "../etc/passwd".into(), "should be"),
            (|m| m["entries"] = serde_json::json!([]), "does not list"),
        ];
        for (change, said) in cases {
            let told = objection(change, &found);
            assert!(told.contains(said), "{said}: {told}");
        }
        assert!(objection(|_| {}, &[]).contains("lacks"));
        let outside = [entry("data/work/pg_class/1.jsonl")];
        let list = |m: &mut Value| m["entries"][0]["path"] = "data/work/pg_class/1.jsonl".into();
        assert!(objection(list, &outside).contains("no module"));
    }
}
