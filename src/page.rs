//! Lists: which page, in which order, and how a page looks.
//!
//! `types::Type` is not imported: it has an `is_empty` of its own that would win over that of `str`.

use std::str::FromStr;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use poem_openapi::{
    Object,
    registry::MetaSchema,
    types::{self, Example, ParseFromJSON, ToJSON},
};
use serde::Serialize;
use uuid::Uuid;

use crate::{
    error::{Error, Result},
    types::{text, text_serialize},
};

/// Which part of a list the caller wants.
#[derive(Clone, Copy, Debug)]
pub struct Paging {
    page: u32,
    page_size: u32,
}

impl Paging {
    /// From the parameters `page` (from 1) and `page_size` (1 to 100, 20 by default).
    pub fn new(page: Option<u32>, page_size: Option<u32>) -> Result<Self> {
        let (page, page_size) = (page.unwrap_or(1), page_size.unwrap_or(20));
        if !(1..=1_000_000).contains(&page) {
            return Err(Error::invalid("page", "must be from 1 to 1000000"));
        }
        if !(1..=100).contains(&page_size) {
            return Err(Error::invalid("page_size", "must be from 1 to 100"));
        }
        Ok(Self { page, page_size })
    }

    pub fn limit(self) -> i64 {
        self.page_size.into()
    }

    pub fn offset(self) -> i64 {
        i64::from(self.page - 1) * i64::from(self.page_size)
    }

    /// The answer for these rows of `total`.
    pub fn answer<T: ParseFromJSON + ToJSON + types::Type + Example>(
        self,
        data: Vec<T>,
        total: i64,
    ) -> Page<T> {
        Page { data, page: self.page, page_size: self.page_size, total }
    }
}

/// One page of a list.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct Page<T: ParseFromJSON + ToJSON + types::Type + Example> {
    pub data: Vec<T>,
    /// From 1.
    pub page: u32,
    pub page_size: u32,
    /// How many there are on all pages.
    pub total: i64,
}

impl<T: ParseFromJSON + ToJSON + types::Type + Example> Example for Page<T> {
    fn example() -> Self {
        Self { data: vec![T::example()], page: 1, page_size: 20, total: 1 }
    }
}

/// Where the next stretch of a growing list begins: opaque to callers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    text: String,
    id: Uuid,
}

impl From<Uuid> for Cursor {
    fn from(id: Uuid) -> Self {
        Self { text: URL_SAFE_NO_PAD.encode(id), id }
    }
}

impl FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        URL_SAFE_NO_PAD
            .decode(text)
            .ok()
            .and_then(|bytes| Uuid::from_slice(&bytes).ok())
            .map(Self::from)
            .ok_or_else(|| "is not a cursor that this list gave".into())
    }
}

impl AsRef<str> for Cursor {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

text!([] Cursor, MetaSchema::new("string"));
text_serialize!([] Cursor);

/// Which stretch of a growing list the caller wants.
#[derive(Clone, Copy, Debug)]
pub struct Stretch {
    after: Option<Uuid>,
    limit: u32,
}

impl Stretch {
    /// From the parameters `cursor` and `limit` (1 to 100, 20 by default).
    pub fn new(cursor: Option<Cursor>, limit: Option<u32>) -> Result<Self> {
        let limit = limit.unwrap_or(20);
        if !(1..=100).contains(&limit) {
            return Err(Error::invalid("limit", "must be from 1 to 100"));
        }
        Ok(Self { after: cursor.map(|cursor| cursor.id), limit })
    }

    /// The newest, any number of them.
    pub fn first(limit: u32) -> Self {
        Self { after: None, limit }
    }

    pub fn after(cursor: Cursor, limit: u32) -> Self {
        Self { after: Some(cursor.id), limit }
    }

    /// The id that the stretch begins below.
    pub fn below(&self) -> Option<Uuid> {
        self.after
    }

    /// One row more than is shown tells whether there is more.
    pub fn rows(&self) -> i64 {
        i64::from(self.limit) + 1
    }

    /// The answer for the rows that were read; `id` is what the list is ordered by.
    pub fn answer<T: ParseFromJSON + ToJSON + types::Type + Example>(
        &self,
        mut data: Vec<T>,
        id: impl Fn(&T) -> Uuid,
    ) -> CursorPage<T> {
        let more = data.len() > self.limit as usize;
        data.truncate(self.limit as usize);
        let next_cursor = data.last().filter(|_| more).map(|last| Cursor::from(id(last)));
        CursorPage { data, next_cursor }
    }
}

/// A stretch of a growing list, newest first.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct CursorPage<T: ParseFromJSON + ToJSON + types::Type + Example> {
    pub data: Vec<T>,
    /// For `cursor`; null at the end.
    pub next_cursor: Option<Cursor>,
}

impl<T: ParseFromJSON + ToJSON + types::Type + Example> Example for CursorPage<T> {
    fn example() -> Self {
        Self { data: vec![T::example()], next_cursor: None }
    }
}

/// One thing that a list can be sorted by.
pub struct SortKey {
    /// The word of the API, which is also the column.
    pub name: &'static str,
    /// Rows without a value come last in both directions. An index is of no use for those, so only
    /// columns that can be null say so.
    pub nullable: bool,
}

/// What a list can be sorted by.
pub trait SortKeys: std::fmt::Debug + Send + Sync + 'static {
    const KEYS: &[SortKey];
}

/// A column that always has a value.
pub const fn key(name: &'static str) -> SortKey {
    SortKey { name, nullable: false }
}

/// A column that may be null.
pub const fn nullable_key(name: &'static str) -> SortKey {
    SortKey { name, nullable: true }
}

/// A `sort` parameter: one of the keys, with `-` before it for descending.
#[derive(Clone, Debug)]
pub struct Sort<K: SortKeys> {
    text: String,
    order: String,
    _keys: std::marker::PhantomData<K>,
}

impl<K: SortKeys> Sort<K> {
    /// The `order by` text; ids break ties, so that pages do not overlap.
    pub fn order(&self) -> &str {
        &self.order
    }
}

impl<K: SortKeys> std::str::FromStr for Sort<K> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, direction) = match text.strip_prefix('-') {
            Some(key) => (key, "desc"),
            None => (text, "asc"),
        };
        let Some(found) = K::KEYS.iter().find(|known| known.name == key) else {
            let known: Vec<&str> = K::KEYS.iter().map(|known| known.name).collect();
            return Err(format!("must be one of: {}; with - before it for descending", known.join(", ")));
        };
        let nulls = if found.nullable { " nulls last" } else { "" };
        Ok(Self {
            text: text.into(),
            order: format!("{key} {direction}{nulls}, id {direction}"),
            _keys: std::marker::PhantomData,
        })
    }
}

impl<K: SortKeys> AsRef<str> for Sort<K> {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

text!([K: SortKeys] Sort<K>, MetaSchema {
    enum_items: K::KEYS
        .iter()
        .flat_map(|key| [key.name.into(), format!("-{}", key.name).into()])
        .collect(),
    ..MetaSchema::new("string")
});

/// What somebody typed into a search field, as a `tsquery`: every word, each as a beginning.
pub fn search_query(typed: &str) -> Result<String> {
    if typed.chars().count() > 200 {
        return Err(Error::invalid("search", "must have at most 200 characters"));
    }
    let words: Vec<String> = typed
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(|word| format!("{word}:*"))
        .collect();
    if words.is_empty() {
        return Err(Error::invalid("search", "must hold at least one letter or digit"));
    }
    Ok(words.join(" & "))
}

#[cfg(test)]
mod tests {
    use super::search_query;

    #[test]
    fn a_search_is_its_words() {
        assert_eq!(search_query(" Jurong  plant's ").unwrap(), "Jurong:* & plant:* & s:*");
        assert_eq!(search_query("a&b|!c:*'").unwrap(), "a:* & b:* & c:*");
        assert!(search_query(" !! ").is_err());
        assert!(search_query("").is_err());
    }
}
