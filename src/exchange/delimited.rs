//! CSV, read strictly: what is broken is told with its line instead of being guessed at.
//!
//! Lines end with LF or CRLF. A field in quotes may hold delimiters, line ends and doubled quotes; a field
//! without quotes holds none. An object is held at a time, and none may be longer than [`MOST`]: a quote that
//! is never closed must not take the rest of the file into memory.

use std::io::{self, BufRead, Read};

/// The most bytes that one object may have.
pub const MOST: usize = 256 * 1024;

/// Why an object cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub struct Broken {
    pub told: String,
    /// Where the next object begins is not known.
    pub is_end: bool,
}

impl Broken {
    fn here(told: impl Into<String>) -> Self {
        Self { told: told.into(), is_end: false }
    }

    fn for_good(told: impl Into<String>) -> Self {
        Self { told: told.into(), is_end: true }
    }
}

/// The next bytes of the file.
enum More {
    Line,
    TooMany,
    End,
}

/// Reads records one after another.
pub struct Delimited<R> {
    input: R,
    delimiter: u8,
    /// Lines that were read, those within quotes included.
    line: i64,
    record: Vec<u8>,
    width: usize,
}

type Record = (i64, Result<Vec<String>, Broken>);

impl<R: BufRead> Delimited<R> {
    /// The separator is found out from the first record.
    pub fn new(input: R) -> Self {
        Self { input, delimiter: 0, line: 0, record: Vec::new(), width: 0 }
    }

    /// The next record and the line that it begins in; `None` at the end. Empty lines are passed over.
    pub fn next(&mut self) -> io::Result<Option<Record>> {
        loop {
            self.record.clear();
            let first = self.line + 1;
            match self.more()? {
                More::End => return Ok(None),
                More::TooMany => return Ok(Some((first, Err(too_long())))),
                More::Line if self.is_blank() => continue,
                More::Line => {}
            }
            if self.delimiter == 0 {
                self.delimiter = separator(&self.record);
            }
            let fields = self.split()?;
            if let Ok(fields) = &fields {
                self.width = fields.len();
            }
            return Ok(Some((first, fields)));
        }
    }

    /// Whether there is nothing but white space. Where that separates, it makes empty fields.
    fn is_blank(&self) -> bool {
        self.record.iter().all(|byte| byte.is_ascii_whitespace() && *byte != self.delimiter)
    }

    /// Adds a line of the file to the record.
    fn more(&mut self) -> io::Result<More> {
        let room = (MOST - self.record.len().min(MOST)) as u64 + 1;
        if self.input.by_ref().take(room).read_until(b'\n', &mut self.record)? == 0 {
            return Ok(More::End);
        }
        if self.record.len() > MOST {
            return Ok(More::TooMany);
        }
        self.line += 1;
        Ok(More::Line)
    }

    fn split(&mut self) -> io::Result<Result<Vec<String>, Broken>> {
        let mut fields = Vec::with_capacity(self.width);
        let mut at = 0;
        loop {
            let quoted = self.record.get(at) == Some(&b'"');
            let bytes = match quoted {
                true => match self.quoted(&mut at)? {
                    Ok(bytes) => bytes,
                    Err(broken) => return Ok(Err(broken)),
                },
                false => {
                    let rest = &self.record[at..];
                    let end = rest.iter().position(|b| *b == self.delimiter || *b == b'\n');
                    let mut bytes = &rest[..end.unwrap_or(rest.len())];
                    at += bytes.len();
                    if self.record.get(at) != Some(&self.delimiter) {
                        bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
                    }
                    if bytes.contains(&b'"') {
                        return Ok(Err(Broken::here(format!(
                            "Column {}: a field that holds a quote must be in quotes, and the quote be doubled.",
                            fields.len() + 1
                        ))));
                    }
                    bytes.to_vec()
                }
            };
            let Ok(text) = String::from_utf8(bytes) else {
                return Ok(Err(Broken::here(format!("Column {} is not UTF-8.", fields.len() + 1))));
            };
            if text.contains('\0') {
                return Ok(Err(Broken::here(format!(
                    "Column {} holds the character U+0000.",
                    fields.len() + 1
                ))));
            }
            fields.push(text);
            match &self.record[at..] {
                [] | [b'\n'] | [b'\r', b'\n'] | [b'\r'] => return Ok(Ok(fields)),
                [next, ..] if *next == self.delimiter => at += 1,
                _ => {
                    return Ok(Err(Broken::here(format!(
                        "Column {}: something follows the quote that ends the field. A quote within a field is \
                         doubled.",
                        fields.len()
                    ))));
                }
            }
        }
    }

    /// The content of a field in quotes; `at` moves behind it.
    fn quoted(&mut self, at: &mut usize) -> io::Result<Result<Vec<u8>, Broken>> {
        let mut bytes = Vec::new();
        *at += 1;
        loop {
            let rest = &self.record[*at..];
            match rest.iter().position(|b| *b == b'"') {
                Some(n) => {
                    bytes.extend_from_slice(&rest[..n]);
                    *at += n + 1;
                    if self.record.get(*at) != Some(&b'"') {
                        return Ok(Ok(bytes));
                    }
                    bytes.push(b'"');
                    *at += 1;
                }
                None => {
                    bytes.extend_from_slice(rest);
                    *at = self.record.len();
                    match self.more()? {
                        More::Line => {}
                        More::TooMany => return Ok(Err(too_long())),
                        More::End => {
                            let told =
                                "A quote is opened here and never closed; what follows could not be read.";
                            return Ok(Err(Broken::for_good(told)));
                        }
                    }
                }
            }
        }
    }
}

fn too_long() -> Broken {
    Broken::for_good(format!(
        "What begins here has more than {MOST} bytes; perhaps a quote is never closed. What follows was not read."
    ))
}

/// Whichever of the usual separators there is most of in the line of headers, outside of quotes.
fn separator(line: &[u8]) -> u8 {
    let mut quoted = false;
    let mut seen = [(b',', 0), (b';', 0), (b'\t', 0)];
    for byte in line {
        quoted ^= *byte == b'"';
        seen.iter_mut().filter(|(known, _)| !quoted && known == byte).for_each(|(_, count)| *count += 1);
    }
    // Of equals the first.
    seen.iter().rev().max_by_key(|(_, count)| *count).map_or(b',', |(known, _)| *known)
}

/// What a spreadsheet would take for a formula is shown to it as text, by a `'` before it. One that was there
/// already is told from it by one more.
pub fn guarded(text: &str) -> std::borrow::Cow<'_, str> {
    match begins_formula(text) && text.parse::<f64>().is_err() {
        true => format!("'{text}").into(),
        false => text.into(),
    }
}

/// Takes away what [`guarded`] adds.
pub fn unguarded(mut text: String) -> String {
    if text.starts_with('\'') && begins_formula(&text) {
        text.remove(0);
    }
    text
}

fn begins_formula(text: &str) -> bool {
    text.trim_start_matches('\'').starts_with(['=', '+', '-', '@', '\t', '\r'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(text: &str) -> Vec<Record> {
        let mut reader = Delimited::new(text.as_bytes());
        std::iter::from_fn(|| reader.next().unwrap()).collect()
    }

    fn fields(all: &[&str]) -> Result<Vec<String>, Broken> {
        Ok(all.iter().map(|field| (*field).to_owned()).collect())
    }

    #[test]
    fn fields_are_what_stands_between_separators() {
        assert_eq!(
            records("a,b\r\n1,\"2, \"\"two\"\"\nlines\"\n\n3,\n"),
            [(1, fields(&["a", "b"])), (2, fields(&["1", "2, \"two\"\nlines"])), (5, fields(&["3", ""])),]
        );
        assert_eq!(
            records("a;\"b,c,d\";e\n1;2;3"),
            [(1, fields(&["a", "b,c,d", "e"])), (2, fields(&["1", "2", "3"])),]
        );
        assert_eq!(records("a\tb\n1\t2\n")[1], (2, fields(&["1", "2"])));
        assert!(records("\n\r\n").is_empty());
        assert_eq!(records("a\tb\n\t\n\n")[1..], [(2, fields(&["", ""]))]);
    }

    #[test]
    fn broken_quotes_are_told_with_their_line() {
        let found = records("a,b\n1,2\"3\n\"4\"5,6\n7,8\n9,\"ten\n11,12\n");
        let lines: Vec<(i64, bool)> = found.iter().map(|(line, read)| (*line, read.is_ok())).collect();
        assert_eq!(lines, [(1, true), (2, false), (3, false), (4, true), (5, false)]);
        assert!(found[4].1.as_ref().unwrap_err().is_end);
        let long = format!("a\n\"{}", "x".repeat(MOST));
        assert!(records(&long)[1].1.as_ref().unwrap_err().is_end);
    }

    #[test]
    fn formulas_leave_as_text_and_come_back_as_they_were() {
        for text in
            ["=1+1", "+6591234567 x", "-a", "@sum", "'=x", "''-5", "-5", "1e3", "plain", "", "'quoted'"]
        {
            assert_eq!(unguarded(guarded(text).into_owned()), text);
        }
        assert_eq!(guarded("=cmd|' /C calc'!A0"), "'=cmd|' /C calc'!A0");
        assert_eq!((guarded("-5"), guarded("O'Neill")), ("-5".into(), "O'Neill".into()));
    }
}
