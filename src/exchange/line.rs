//! One line of a file, and what is wrong with it.

use std::{fmt::Display, str::FromStr};

use chrono::NaiveDate;
use poem_openapi::{Object, types::MaybeUndefined};
use serde::{Deserialize, Serialize};

use super::Field;
use crate::error::Error;

/// Something that is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Object)]
pub struct LineError {
    /// The line of the file, from 1, where the object begins; of JSON the number of the object.
    pub line: i64,
    /// The column; null where it is the line as a whole.
    pub field: Option<String>,
    /// `invalid`, `required`, `unknown`, `taken`, `limit`, `malformed`.
    pub code: String,
    /// What would do.
    pub message: String,
}

impl LineError {
    fn new(line: i64, field: Option<&str>, code: &str, message: &str) -> Self {
        let field = field.map(|field| tidy(field, MOST_OF_A_FIELD));
        Self { line, field, code: code.into(), message: tidy(message, MOST_OF_A_MESSAGE) }
    }

    /// The line could not be read at all.
    pub fn malformed(line: i64, message: impl Into<String>) -> Self {
        Self::new(line, None, "malformed", &message.into())
    }

    pub fn of(line: i64, field: &str, code: &str, message: impl Into<String>) -> Self {
        Self::new(line, Some(field), code, &message.into())
    }

    /// What a rule of the resource says of a line.
    pub fn from_error(line: i64, error: &Error) -> Self {
        match error.fields().first() {
            Some(told) => Self::of(line, &column(&told.field), &told.code, told.message.clone()),
            None => Self::new(line, None, "invalid", error.message()),
        }
    }
}

/// What is told may quote what a file says, which is as long as an object may be.
const MOST_OF_A_FIELD: usize = 100;
const MOST_OF_A_MESSAGE: usize = 1_000;

/// The beginning of a text, without characters that JSON in the database or a screen does not take.
fn tidy(text: &str, most: usize) -> String {
    text.chars().take(most).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The column for a field of a request: people and other objects are not named by ids alone.
fn column(field: &str) -> String {
    let field = field.replace('.', "_");
    match (field.strip_suffix("_ids"), field.strip_suffix("_id")) {
        (Some(one), _) => format!("{one}s"),
        (_, Some(one)) if one != "external" => one.to_owned(),
        _ => field,
    }
}

/// What a line says of a field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cell {
    /// Nothing: the file has no such column.
    #[default]
    Absent,
    /// That it has no value.
    Empty,
    Text(String),
    Many(Vec<String>),
    /// Something that is no value.
    Wrong(&'static str),
}

/// One object of a file.
#[derive(Clone, Debug)]
pub struct Line {
    /// Where it begins in the file, from 1.
    pub number: i64,
    /// What it says of each field of its kind.
    pub cells: Vec<Cell>,
}

/// Reads the cells of a line, and collects what is wrong with them.
pub struct Reading<'a, 'e> {
    line: &'a Line,
    fields: &'static [Field],
    errors: &'e mut Vec<LineError>,
    found: usize,
}

impl<'a, 'e> Reading<'a, 'e> {
    pub fn new(line: &'a Line, fields: &'static [Field], errors: &'e mut Vec<LineError>) -> Self {
        Self { line, fields, errors, found: 0 }
    }

    /// Whether nothing is wrong so far.
    pub fn is_sound(&self) -> bool {
        self.found == 0
    }

    pub fn fail(&mut self, field: &str, code: &str, message: impl Into<String>) {
        self.found += 1;
        self.errors.push(LineError::of(self.line.number, field, code, message));
    }

    /// What a rule of the resource says.
    pub fn refuse(&mut self, error: &Error) {
        self.found += 1;
        self.errors.push(LineError::from_error(self.line.number, error));
    }

    /// The text of a field.
    pub fn text(&mut self, at: usize) -> MaybeUndefined<&'a str> {
        match &self.line.cells[at] {
            Cell::Absent => MaybeUndefined::Undefined,
            Cell::Empty => MaybeUndefined::Null,
            Cell::Text(text) => MaybeUndefined::Value(text),
            Cell::Many(_) => self.wrong(at, "must be one value, not a list"),
            Cell::Wrong(told) => self.wrong(at, told),
        }
    }

    fn wrong<T>(&mut self, at: usize, told: &str) -> MaybeUndefined<T> {
        self.fail(self.fields[at].name, "invalid", told);
        MaybeUndefined::Undefined
    }

    fn parsed<T>(&mut self, at: usize, parse: impl FnOnce(&str) -> Result<T, String>) -> MaybeUndefined<T> {
        match self.text(at) {
            MaybeUndefined::Undefined => MaybeUndefined::Undefined,
            MaybeUndefined::Null => MaybeUndefined::Null,
            MaybeUndefined::Value(text) => match parse(text.trim()) {
                Ok(value) => MaybeUndefined::Value(value),
                Err(told) => self.wrong(at, &told),
            },
        }
    }

    /// The value of a field, of a type that says itself what would do.
    pub fn value<T: FromStr>(&mut self, at: usize) -> MaybeUndefined<T>
    where
        T::Err: Display,
    {
        self.parsed(at, |text| text.parse().map_err(|told: T::Err| told.to_string()))
    }

    /// One of a few words, in whichever case and with spaces as people write them.
    pub fn word<T: FromStr<Err = String>>(&mut self, at: usize) -> MaybeUndefined<T> {
        self.parsed(at, |text| text.to_lowercase().replace([' ', '-'], "_").parse())
    }

    pub fn date(&mut self, at: usize) -> MaybeUndefined<NaiveDate> {
        self.parsed(at, |text| {
            NaiveDate::parse_from_str(text, "%Y-%m-%d")
                .map_err(|_| "must be a date such as 2026-03-31".into())
        })
    }

    pub fn number(&mut self, at: usize) -> MaybeUndefined<f64> {
        self.parsed(at, |text| match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number),
            _ => Err("must be a number such as 6.5".into()),
        })
    }

    /// The values of a field that holds several, and not more than `most`; none where it is empty.
    pub fn many(&mut self, at: usize, most: usize) -> Option<Vec<String>> {
        let values: Vec<String> = match &self.line.cells[at] {
            Cell::Absent => return None,
            Cell::Empty => Vec::new(),
            Cell::Text(text) => text
                .split([',', ';'])
                .map(|part| part.trim().to_owned())
                .filter(|part| !part.is_empty())
                .take(most + 1)
                .collect(),
            Cell::Many(values) => values.iter().take(most + 1).cloned().collect(),
            Cell::Wrong(told) => {
                self.fail(self.fields[at].name, "invalid", *told);
                return None;
            }
        };
        if values.len() > most {
            self.fail(self.fields[at].name, "limit", format!("may have at most {most} values"));
            return None;
        }
        Some(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_short_and_can_be_kept() {
        let key = format!("a\0{}", "k".repeat(10_000));
        let told = LineError::of(1, &key, "unknown", "m\n".repeat(10_000));
        let field = told.field.unwrap();
        assert_eq!((field.chars().count(), told.message.chars().count()), (100, 1_000));
        assert!(field.starts_with("a\u{fffd}k") && !told.message.contains('\n'));
    }

    #[test]
    fn a_list_that_is_too_long_is_one_error() {
        const FIELDS: &[Field] = &[Field::many("people")];
        let line = Line { number: 2, cells: vec![Cell::Text("a,".repeat(100_000))] };
        let mut errors = Vec::new();
        assert_eq!(Reading::new(&line, FIELDS, &mut errors).many(0, 50), None);
        assert_eq!((errors.len(), errors[0].code.as_str()), (1, "limit"));
        let line = Line { number: 2, cells: vec![Cell::Text(" a ; b,".into())] };
        let found = Reading::new(&line, FIELDS, &mut errors).many(0, 2);
        assert_eq!(found, Some(vec!["a".to_owned(), "b".to_owned()]));
    }
}
