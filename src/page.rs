//! Lists: which page, in which order, and how a page looks.
//!
//! `types::Type` is not imported: it has an `is_empty` of its own that would win over that of `str`.

use std::{borrow::Cow, ops::Deref, str::FromStr};

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

/// How far `total` is counted, and how far `page` goes: beyond it there is `cursor`.
pub const COUNTED: i64 = 10_000;

/// Which part of a list the caller wants.
#[derive(Clone, Debug)]
pub struct Paging {
    start: Start,
    page_size: u32,
}

#[derive(Clone, Debug)]
enum Start {
    Page(u32),
    After(ListCursor),
}

impl Paging {
    /// From the parameters `page` (from 1), `page_size` (1 to 100, 20 by default) and, in place of `page`,
    /// `cursor`.
    pub fn new(page: Option<u32>, page_size: Option<u32>, cursor: Option<ListCursor>) -> Result<Self> {
        let page_size = page_size.unwrap_or(20);
        if !(1..=100).contains(&page_size) {
            return Err(Error::invalid("page_size", "must be from 1 to 100"));
        }
        let start = match (page, cursor) {
            (Some(_), Some(_)) => {
                return Err(Error::invalid("cursor", "says where to go on; leave out `page` with it"));
            }
            (None, Some(cursor)) => Start::After(cursor),
            (page, None) => Start::Page(page.unwrap_or(1)),
        };
        let paging = Self { start, page_size };
        match paging.start {
            Start::Page(0) => Err(Error::invalid("page", "must be at least 1")),
            Start::Page(_) if paging.offset() >= COUNTED => Err(Error::invalid(
                "page",
                format!("reaches to row {COUNTED}; beyond it, go on with `next_cursor` as `cursor`"),
            )),
            _ => Ok(paging),
        }
    }

    pub fn page_size(&self) -> usize {
        self.page_size as usize
    }

    /// Rows before the page; 0 by cursor.
    pub fn offset(&self) -> i64 {
        match self.start {
            Start::Page(page) => (i64::from(page) - 1) * i64::from(self.page_size),
            Start::After(_) => 0,
        }
    }

    pub fn cursor(&self) -> Option<&ListCursor> {
        match &self.start {
            Start::Page(_) => None,
            Start::After(cursor) => Some(cursor),
        }
    }

    /// The answer for these rows. `counted` are the rows of all pages, as far as they were counted.
    pub fn answer<T: ParseFromJSON + ToJSON + types::Type + Example>(
        &self,
        data: Vec<T>,
        counted: i64,
        next_cursor: Option<ListCursor>,
    ) -> Page<T> {
        let page = match self.start {
            Start::Page(page) => Some(page),
            Start::After(_) => None,
        };
        Page {
            data,
            page,
            page_size: self.page_size,
            total: counted.min(COUNTED),
            total_is_exact: counted <= COUNTED,
            next_cursor,
        }
    }

    /// The page of a short list that is in memory.
    pub fn of<T: ParseFromJSON + ToJSON + types::Type + Example>(&self, all: Vec<T>) -> Page<T> {
        let total = all.len() as i64;
        let shown = all.into_iter().skip(self.offset() as usize).take(self.page_size()).collect();
        self.answer(shown, total, None)
    }
}

/// One page of a list.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct Page<T: ParseFromJSON + ToJSON + types::Type + Example> {
    pub data: Vec<T>,
    /// From 1; null where the page was asked for by `cursor`.
    pub page: Option<u32>,
    pub page_size: u32,
    /// How many there are on all pages, counted up to 10000.
    pub total: i64,
    /// Whether there are not more than `total`.
    pub total_is_exact: bool,
    /// For `cursor`, with the same filters and `sort`: what follows. Null at the end.
    pub next_cursor: Option<ListCursor>,
}

impl<T: ParseFromJSON + ToJSON + types::Type + Example> Example for Page<T> {
    fn example() -> Self {
        let (page, page_size) = (Some(1), 20);
        Self { data: vec![T::example()], page, page_size, total: 1, total_is_exact: true, next_cursor: None }
    }
}

/// The last row of a page, which the next one begins behind: opaque to callers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListCursor {
    text: String,
    /// The order that it was made for.
    order: String,
    /// The row's value of what the list is ordered by.
    value: Option<String>,
    id: String,
}

impl ListCursor {
    /// Behind the row with this value (as text of the database) and id, in an order such as `-created_at`.
    pub fn new(order: &str, value: Option<&str>, id: &str) -> Self {
        let text = URL_SAFE_NO_PAD.encode(serde_json::json!([order, value, id]).to_string());
        Self { text, order: order.into(), value: value.map(str::to_owned), id: id.into() }
    }

    /// The value and id to go on behind, where the cursor is one of lists in this order.
    pub fn behind(&self, order: &Order) -> Result<(Option<&str>, &str)> {
        let fits = if order.by_id { self.value.is_none() } else { self.value.is_some() || order.nullable };
        if self.order != order.name || !fits {
            return Err(Error::invalid("cursor", "is for another `sort`; begin anew without `cursor`"));
        }
        Ok((self.value.as_deref(), self.id.as_str()))
    }

    /// What to answer where the value or id is not one that the list could have given.
    pub fn forged() -> Error {
        Error::invalid("cursor", "is not a cursor that this list gave")
    }
}

impl FromStr for ListCursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        URL_SAFE_NO_PAD
            .decode(text)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<(String, Option<String>, String)>(&bytes).ok())
            .filter(|(_, value, id)| !value.iter().chain([id]).any(|text| text.contains('\0')))
            .map(|(order, value, id)| Self { text: text.into(), order, value, id })
            .ok_or_else(|| "is not a cursor that this list gave".into())
    }
}

impl AsRef<str> for ListCursor {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

text!([] ListCursor, MetaSchema::new("string"));
text_serialize!([] ListCursor);

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

/// The order of a list: by one column and then, so that pages do not overlap, by id in the same direction.
/// Rows without a value come last in both directions. All of it is text from code.
#[derive(Clone, Debug)]
pub struct Order {
    /// By which cursors know it.
    name: Cow<'static, str>,
    pub column: &'static str,
    /// The column's type in the database.
    pub of: &'static str,
    pub nullable: bool,
    /// The column grows with the ids, and the order is theirs.
    pub by_id: bool,
    pub id: &'static str,
    pub id_of: &'static str,
    pub descending: bool,
}

impl Order {
    /// For a list that has one order: smallest first. `column` always has a value.
    pub const fn up(column: &'static str, of: &'static str, id: &'static str) -> Self {
        let name = Cow::Borrowed(column);
        Self { name, column, of, nullable: false, by_id: false, id, id_of: "uuid", descending: false }
    }

    /// The same with the greatest first.
    pub const fn down(column: &'static str, of: &'static str, id: &'static str) -> Self {
        let name = Cow::Borrowed(column);
        Self { name, column, of, nullable: false, by_id: false, id, id_of: "uuid", descending: true }
    }

    /// The same for a table whose ids are not ours.
    pub const fn with_text_id(mut self) -> Self {
        self.id_of = "text";
        self
    }

    /// The word for the direction, and the comparison that is true of what comes later.
    pub fn direction(&self) -> (&'static str, &'static str) {
        if self.descending { ("desc", "<") } else { ("asc", ">") }
    }

    /// Where to go on behind a row with this value and id.
    pub fn cursor(&self, value: Option<&str>, id: &str) -> ListCursor {
        ListCursor::new(&self.name, value, id)
    }
}

/// One thing that a list can be sorted by.
pub struct SortKey {
    /// The word of the API, which is also the column.
    pub name: &'static str,
    /// The column's type in the database.
    pub of: &'static str,
    /// Only columns that can be null say so: such a list is read in two parts.
    pub nullable: bool,
    /// The column grows with the ids.
    pub by_id: bool,
}

/// What a list can be sorted by.
pub trait SortKeys: std::fmt::Debug + Send + Sync + 'static {
    const KEYS: &[SortKey];
}

/// A column of this type that always has a value.
pub const fn key(name: &'static str, of: &'static str) -> SortKey {
    SortKey { name, of, nullable: false, by_id: false }
}

/// The time that a row's id was made of: such a list is read by id, which the indexes of filters end with.
pub const fn id_key(name: &'static str) -> SortKey {
    SortKey { name, of: "timestamptz", nullable: false, by_id: true }
}

/// A column of this type that may be null.
pub const fn nullable_key(name: &'static str, of: &'static str) -> SortKey {
    SortKey { name, of, nullable: true, by_id: false }
}

/// A `sort` parameter: one of the keys, with `-` before it for descending.
#[derive(Clone, Debug)]
pub struct Sort<K: SortKeys> {
    order: Order,
    _keys: std::marker::PhantomData<K>,
}

impl<K: SortKeys> Sort<K> {
    /// What was asked for, or else this, which must be one of the keys.
    pub fn or(asked: Option<Self>, usual: &str) -> Self {
        asked.unwrap_or_else(|| usual.parse().expect("the usual order is one of the keys"))
    }
}

impl<K: SortKeys> Deref for Sort<K> {
    type Target = Order;

    fn deref(&self) -> &Order {
        &self.order
    }
}

impl<K: SortKeys> FromStr for Sort<K> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.strip_prefix('-').unwrap_or(text);
        let Some(&SortKey { name, of, nullable, by_id }) = K::KEYS.iter().find(|known| known.name == name)
        else {
            let known: Vec<&str> = K::KEYS.iter().map(|known| known.name).collect();
            return Err(format!("must be one of: {}; with - before it for descending", known.join(", ")));
        };
        let descending = text.starts_with('-');
        let name_of = text.to_owned().into();
        let order = Order { name: name_of, nullable, by_id, descending, ..Order::up(name, of, "id") };
        Ok(Self { order, _keys: std::marker::PhantomData })
    }
}

impl<K: SortKeys> AsRef<str> for Sort<K> {
    fn as_ref(&self) -> &str {
        &self.order.name
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
        // As the index cuts texts: at signs of ASCII only, since words of other scripts hold signs.
        .split(|c: char| c.is_whitespace() || c.is_control() || (c.is_ascii() && !c.is_ascii_alphanumeric()))
        .filter(|word| word.chars().any(char::is_alphanumeric))
        .map(|word| format!("'{word}':*"))
        .collect();
    if words.is_empty() {
        return Err(Error::invalid("search", "must hold at least one letter or digit"));
    }
    if words.len() > 10 {
        return Err(Error::invalid("search", "may have at most 10 words"));
    }
    Ok(words.join(" & "))
}

#[cfg(test)]
mod tests {
    use super::{ListCursor, Sort, SortKey, SortKeys, id_key, key, nullable_key, search_query};

    #[test]
    fn a_search_is_its_words() {
        assert_eq!(search_query(" Jurong  plant's ").unwrap(), "'Jurong':* & 'plant':* & 's':*");
        assert_eq!(search_query("a&b|!c:*'").unwrap(), "'a':* & 'b':* & 'c':*");
        assert!(search_query(" !! ").is_err());
        assert!(search_query("").is_err());
    }
    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        for value in [Some("2026-01-02 03:04:05.000006+00"), Some("größer \"als\""), None] {
            let cursor = ListCursor::new("-title", value, "a");
            assert_eq!(cursor.as_ref().parse::<ListCursor>().unwrap(), cursor);
        }
        for text in ["", "x", "e30", "WyJ0aXRsZSJd", ListCursor::new("title", Some("\0"), "a").as_ref()] {
            assert!(text.parse::<ListCursor>().is_err(), "{text}");
        }
    }

    #[derive(Debug)]
    enum Keys {}

    impl SortKeys for Keys {
        const KEYS: &[SortKey] = &[id_key("created_at"), key("title", "text"), nullable_key("due", "date")];
    }

    #[test]
    fn a_cursor_has_a_value_where_the_order_has_one() {
        for (sort, with, without) in
            [("-created_at", false, true), ("title", true, false), ("due", true, true)]
        {
            let order: Sort<Keys> = sort.parse().unwrap();
            assert_eq!(order.cursor(Some("a"), "b").behind(&order).is_ok(), with, "{sort}");
            assert_eq!(order.cursor(None, "b").behind(&order).is_ok(), without, "{sort}");
        }
    }
}
