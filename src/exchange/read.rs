//! Reads a file line by line, as a stream that is parsed on a thread of its own.
//!
//! A few stretches of lines wait for whoever takes them, and never more: of a file of a gigabyte no more is held
//! than of one of a megabyte.

use std::{
    cell::Cell as StdCell,
    collections::HashMap,
    fmt,
    io::{self, BufRead, BufReader, Cursor, Read},
    rc::Rc,
};

use futures_util::TryStreamExt;
use serde::de::{Deserializer as _, SeqAccess, Visitor};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::io::{StreamReader, SyncIoBridge};
use uuid::Uuid;

use super::{
    Cell, Field, Format, Kind, Line, LineError,
    delimited::{Broken, Delimited, MOST, unguarded},
};
use crate::{
    app::App,
    error::{Error, Result},
    files,
};

/// How many objects a file may have.
pub const MOST_LINES: i64 = 1_000_000;
/// Lines that are handed on together, unless they are large.
pub const TOGETHER: usize = 500;
const BYTES_TOGETHER: usize = 1024 * 1024;

/// What was read, in the order of the file.
#[derive(Debug)]
pub enum Found {
    Line(Line),
    /// A line that could not be read, or what stands in the way of reading any.
    Broken(LineError),
}

enum Piece {
    Lines(Vec<Found>),
    /// The store did not give what it has.
    Failed(io::Error),
    End,
}

/// The lines of a file, as they come.
pub struct Lines(mpsc::Receiver<Piece>);

/// How a file is to be read.
pub struct Layout {
    pub kind: &'static Kind,
    pub format: Format,
    /// Which field a column stands for; none with an empty text.
    pub columns: HashMap<String, String>,
}

impl Lines {
    /// Begins to read.
    pub async fn of(app: &App, organization: Uuid, file: Uuid, layout: Layout) -> Result<Self> {
        let bytes = files::read(app, organization, file).await?.map_err(io::Error::other);
        let (sender, receiver) = mpsc::channel(2);
        let input = SyncIoBridge::new(StreamReader::new(bytes));
        tokio::task::spawn_blocking(move || {
            let mut sink = Sink { sender, found: Vec::new(), bytes: 0 };
            let outcome = read(BufReader::with_capacity(64 * 1024, input), &layout, &mut sink);
            // Nobody may be there any more, which is fine.
            let _ = match outcome {
                Ok(()) => sink.hand_on().and_then(|()| sink.send(Piece::End)),
                Err(error) => sink.send(Piece::Failed(error)),
            };
        });
        Ok(Self(receiver))
    }

    /// The next few; `None` at the end of the file.
    pub async fn next(&mut self) -> Result<Option<Vec<Found>>> {
        match self.0.recv().await {
            Some(Piece::Lines(found)) => Ok(Some(found)),
            Some(Piece::End) => Ok(None),
            Some(Piece::Failed(error)) => {
                Err(Error::unavailable("The file could not be read to its end.", 5).caused_by(error))
            }
            None => Err(Error::internal("whatever reads the file has gone")),
        }
    }
}

/// Where lines go.
struct Sink {
    sender: mpsc::Sender<Piece>,
    found: Vec<Found>,
    bytes: usize,
}

impl Sink {
    fn push(&mut self, found: Found, bytes: usize) -> io::Result<()> {
        self.found.push(found);
        self.bytes += bytes;
        match self.found.len() == TOGETHER || self.bytes > BYTES_TOGETHER {
            true => self.hand_on(),
            false => Ok(()),
        }
    }

    fn hand_on(&mut self) -> io::Result<()> {
        self.bytes = 0;
        match std::mem::take(&mut self.found) {
            none if none.is_empty() => Ok(()),
            found => self.send(Piece::Lines(found)),
        }
    }

    fn send(&self, piece: Piece) -> io::Result<()> {
        self.sender.blocking_send(piece).map_err(|_| io::Error::other("nobody takes the lines any more"))
    }

    fn broken(&mut self, line: i64, told: impl Into<String>) -> io::Result<()> {
        self.push(Found::Broken(LineError::malformed(line, told)), 200)
    }
}

fn read(mut input: impl BufRead, layout: &Layout, sink: &mut Sink) -> io::Result<()> {
    let mut head = Vec::new();
    input.by_ref().take(3).read_to_end(&mut head)?;
    if head.starts_with(&[0xff, 0xfe]) || head.starts_with(&[0xfe, 0xff]) {
        return sink.broken(1, "The file is UTF-16. Save it as UTF-8.");
    }
    if head == [0xef, 0xbb, 0xbf] {
        head.clear();
    }
    let input = Cursor::new(head).chain(input);
    match layout.format {
        Format::Csv => delimited(input, layout, sink),
        Format::Json => objects(input, layout, sink),
    }
}

fn too_many(sink: &mut Sink, line: i64) -> io::Result<()> {
    sink.broken(line, format!("The file has more than {MOST_LINES} objects. Import it in several files."))
}

// --- CSV

fn delimited(input: impl BufRead, layout: &Layout, sink: &mut Sink) -> io::Result<()> {
    let mut records = Delimited::new(input);
    let header = match records.next()? {
        Some((_, Ok(header))) => header,
        Some((line, Err(Broken { told, .. }))) => return sink.broken(line, told),
        None => return sink.broken(1, "The file is empty. Its first line names the columns."),
    };
    let mut names = Names::new(layout);
    let (mut places, mut sound) = (Vec::with_capacity(header.len()), true);
    for (n, name) in header.iter().enumerate() {
        match names.place(name) {
            Ok(place) => {
                if let Some(place) = place
                    && let Some(before) = places.iter().position(|other| *other == Some(place))
                {
                    let told = format!(
                        "The columns {} and {} are both the field {}.",
                        before + 1,
                        n + 1,
                        layout.kind.fields[place].name
                    );
                    sink.push(Found::Broken(LineError::of(1, name, "taken", told)), 200)?;
                    sound = false;
                }
                places.push(place);
            }
            Err(told) => {
                sink.push(Found::Broken(LineError::of(1, name, "unknown", told)), 200)?;
                places.push(None);
                sound = false;
            }
        }
    }
    if !sound {
        return Ok(());
    }
    let mut many = 0;
    while let Some((number, record)) = records.next()? {
        many += 1;
        if many > MOST_LINES {
            return too_many(sink, number);
        }
        match record {
            Err(Broken { told, is_end }) => {
                sink.broken(number, told)?;
                if is_end {
                    return Ok(());
                }
            }
            Ok(record) if record.len() != places.len() => {
                sink.broken(
                    number,
                    format!("The line has {} fields, the header {}.", record.len(), places.len()),
                )?;
            }
            Ok(record) => {
                let mut cells = vec![Cell::Absent; layout.kind.fields.len()];
                let bytes = record.iter().map(String::len).sum::<usize>() + 64;
                for (place, text) in places.iter().zip(record) {
                    let Some(place) = place else { continue };
                    cells[*place] = match text.trim().is_empty() {
                        true => Cell::Empty,
                        false => Cell::Text(unguarded(text)),
                    };
                }
                sink.push(Found::Line(Line { number, cells }), bytes)?;
            }
        }
    }
    Ok(())
}

/// How many names, and how long ones, are kept in mind.
const MOST_NAMES: usize = 1_000;
const LONGEST_NAME: usize = 200;

/// Finds the fields that columns stand for.
struct Names<'a> {
    layout: &'a Layout,
    known: HashMap<String, Option<usize>>,
}

impl<'a> Names<'a> {
    fn new(layout: &'a Layout) -> Self {
        Self { layout, known: HashMap::new() }
    }

    /// Which field a column stands for; `None` for one that is passed over.
    fn place(&mut self, column: &str) -> Result<Option<usize>, String> {
        let column = column.trim();
        if let Some(place) = self.known.get(column) {
            return Ok(*place);
        }
        let fields = self.layout.kind.fields;
        let place = match self.layout.columns.get(column) {
            Some(none) if none.is_empty() => None,
            Some(field) => Some(find(fields, field).ok_or_else(|| unknown(fields, field))?),
            None => Some(find(fields, &plain(column)).ok_or_else(|| unknown(fields, column))?),
        };
        let place = place.filter(|place| fields[*place].taken);
        // Each object may spell its keys in another way.
        if self.known.len() < MOST_NAMES && column.len() <= LONGEST_NAME {
            self.known.insert(column.to_owned(), place);
        }
        Ok(place)
    }
}

fn find(fields: &[Field], name: &str) -> Option<usize> {
    fields.iter().position(|field| field.name == name)
}

/// `Due date` is what people make of `due_date`.
fn plain(column: &str) -> String {
    column.trim().to_lowercase().replace([' ', '-'], "_")
}

pub fn unknown(fields: &[Field], column: &str) -> String {
    let known: Vec<&str> = fields.iter().filter(|field| field.taken).map(|field| field.name).collect();
    let column: String = column.chars().take(100).collect();
    format!(
        "There is no field {column:?}. There are: {}. With `columns` a column can stand for one of them, or for \
         none.",
        known.join(", ")
    )
}

// --- JSON

/// Why reading came to an end.
enum Stop {
    /// Nobody takes the lines, or the store fails.
    Io(io::Error),
    /// Enough was said.
    Said,
}

fn objects(mut input: impl BufRead, layout: &Layout, sink: &mut Sink) -> io::Result<()> {
    let array = loop {
        match input.fill_buf()?.first() {
            None => {
                return sink
                    .broken(1, "The file is empty. It holds an array of objects, or one on each line.");
            }
            Some(byte) if byte.is_ascii_whitespace() => input.consume(1),
            Some(byte) => break *byte == b'[',
        }
    };
    let left = Rc::new(StdCell::new(MOST));
    let bounded = Bounded { input, left: left.clone() };
    let mut seen = Objects { layout, names: Names::new(layout), sink, left, many: 0, stop: None };
    let mut parser = serde_json::Deserializer::from_reader(bounded);
    let parsed = match array {
        true => parser.deserialize_seq(&mut seen).and_then(|()| parser.end()),
        false => loop {
            match seen.next(&mut parser) {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        },
    };
    let Objects { many, stop, sink, .. } = seen;
    match (stop, parsed) {
        (Some(Stop::Io(error)), _) => Err(error),
        (Some(Stop::Said), _) | (None, Ok(())) => Ok(()),
        (None, Err(error)) if error.is_io() => {
            let error = io::Error::from(error);
            match error.kind() {
                io::ErrorKind::FileTooLarge => {
                    let told = format!("The object has more than {MOST} bytes. What follows was not read.");
                    sink.broken(many + 1, told)
                }
                _ => Err(error),
            }
        }
        (None, Err(error)) => {
            let told = format!("Object {} is no JSON: {error}. What follows was not read.", many + 1);
            sink.broken(many + 1, told)
        }
    }
}

/// Reads so much and no more, until it is told that an object is complete.
struct Bounded<R> {
    input: R,
    left: Rc<StdCell<usize>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(into)?;
        match self.left.get().checked_sub(read) {
            Some(left) => self.left.set(left),
            None => return Err(io::ErrorKind::FileTooLarge.into()),
        }
        Ok(read)
    }
}

/// Takes the objects of a file one by one.
struct Objects<'a> {
    layout: &'a Layout,
    names: Names<'a>,
    sink: &'a mut Sink,
    left: Rc<StdCell<usize>>,
    many: i64,
    stop: Option<Stop>,
}

impl Objects<'_> {
    /// Says whether to go on.
    fn take(&mut self, object: Value) -> bool {
        let bytes = MOST - self.left.replace(MOST);
        self.many += 1;
        let said = match self.many > MOST_LINES {
            true => too_many(self.sink, self.many).map(|()| false),
            false => {
                let found = self.found(object);
                self.sink.push(found, bytes + 64).map(|()| true)
            }
        };
        match said {
            Ok(true) => true,
            Ok(false) => {
                self.stop = Some(Stop::Said);
                false
            }
            Err(error) => {
                self.stop = Some(Stop::Io(error));
                false
            }
        }
    }

    fn found(&mut self, object: Value) -> Found {
        let number = self.many;
        let Value::Object(object) = object else {
            return Found::Broken(LineError::malformed(number, "This is no object."));
        };
        let mut cells = vec![Cell::Absent; self.layout.kind.fields.len()];
        for (key, value) in object {
            let place = match self.names.place(&key) {
                Ok(Some(place)) => place,
                Ok(None) => continue,
                Err(told) => return Found::Broken(LineError::of(number, &key, "unknown", told)),
            };
            if cells[place] != Cell::Absent {
                let told = format!("Two keys are the field {}.", self.layout.kind.fields[place].name);
                return Found::Broken(LineError::of(number, &key, "taken", told));
            }
            cells[place] = cell(value);
        }
        Found::Line(Line { number, cells })
    }

    /// Takes the next of objects that follow one another; says whether there was one.
    fn next<R: Read>(
        &mut self,
        parser: &mut serde_json::Deserializer<serde_json::de::IoRead<R>>,
    ) -> serde_json::Result<bool> {
        // Only at the end there is nothing but white space left.
        match parser.end() {
            Ok(()) => return Ok(false),
            Err(error) if error.is_io() => return Err(error),
            Err(_) => {}
        }
        let object = serde::Deserialize::deserialize(parser)?;
        Ok(self.take(object))
    }
}

impl<'de> Visitor<'de> for &mut Objects<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<(), A::Error> {
        while let Some(object) = all.next_element::<Value>()? {
            if !self.take(object) {
                return Err(serde::de::Error::custom("enough"));
            }
        }
        Ok(())
    }
}

fn cell(value: Value) -> Cell {
    match value {
        Value::Null => Cell::Empty,
        Value::String(text) if text.trim().is_empty() => Cell::Empty,
        Value::String(text) if text.contains('\0') => Cell::Wrong("must not contain the character U+0000"),
        Value::String(text) => Cell::Text(text),
        Value::Number(number) => Cell::Text(number.to_string()),
        Value::Bool(value) => Cell::Text(value.to_string()),
        Value::Array(values) => {
            let texts = values.into_iter().map(|value| match value {
                Value::String(text) if !text.contains('\0') => Some(text.trim().to_owned()),
                Value::Number(number) => Some(number.to_string()),
                _ => None,
            });
            match texts.collect() {
                Some(texts) => Cell::Many(texts),
                None => Cell::Wrong("must be a list of texts"),
            }
        }
        Value::Object(_) => Cell::Wrong("must be text, a number or a list of texts"),
    }
}
