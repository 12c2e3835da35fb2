//! What a file is: its name made harmless, its type by what it holds, and by its extension only where that
//! cannot tell.

use infer::MatcherType;

use super::Kind;
use crate::error::{Error, Result};

/// What nobody knows anything about, and what a browser must not take for a page.
pub const UNKNOWN: &str = "application/octet-stream";

/// Images that are shown in browsers and made small.
pub const PICTURES: [&str; 5] = ["image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp"];

/// Text that looks like any other.
const TEXTS: [(&str, &str); 9] = [
    ("csv", "text/csv"),
    ("tsv", "text/tab-separated-values"),
    ("txt", "text/plain"),
    ("log", "text/plain"),
    ("md", "text/markdown"),
    ("markdown", "text/markdown"),
    ("json", "application/json"),
    ("jsonl", "application/x-ndjson"),
    ("ndjson", "application/x-ndjson"),
];

/// Documents that are archives; some writers order them so that they look like any other.
const ARCHIVED: [(&str, &str); 7] = [
    ("docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
    ("xlsx", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
    ("pptx", "application/vnd.openxmlformats-officedocument.presentationml.presentation"),
    ("odt", "application/vnd.oasis.opendocument.text"),
    ("ods", "application/vnd.oasis.opendocument.spreadsheet"),
    ("odp", "application/vnd.oasis.opendocument.presentation"),
    ("epub", "application/epub+zip"),
];

/// The type of a file by its first bytes, and where they say nothing by its name.
pub fn type_of(name: &str, head: &[u8]) -> (&'static str, Kind) {
    let extension = name.rsplit_once('.').map(|(_, end)| end.to_ascii_lowercase()).unwrap_or_default();
    let listed = |list: &[(&'static str, &'static str)]| {
        list.iter().find(|(known, _)| *known == extension).map(|(_, told)| *told)
    };
    let text = listed(&TEXTS).filter(|_| is_text(head));
    // Two letters make a picture or a program, and begin many a line.
    let is_lettered = head.starts_with(b"BM") || head.starts_with(b"MZ");
    let Some(found) = infer::get(head).filter(|_| text.is_none() || !is_lettered) else {
        return text.map_or((UNKNOWN, Kind::Other), |told| (told, Kind::Document));
    };
    match (found.matcher_type(), found.mime_type()) {
        (_, "application/zip") => match listed(&ARCHIVED) {
            Some(told) => (told, Kind::Document),
            None => ("application/zip", Kind::Other),
        },
        // Programs, pages and scripts are bytes to us.
        (MatcherType::App | MatcherType::Text | MatcherType::Custom, _) => (UNKNOWN, Kind::Other),
        (_, told) => (told, kind_of(told)),
    }
}

/// The kind that a type belongs to.
pub fn kind_of(content_type: &str) -> Kind {
    let document = ["application/pdf", "application/rtf", "application/msword", "application/json"];
    let office = ["officedocument", "opendocument", "ms-excel", "ms-powerpoint", "epub", "ndjson"];
    match content_type.split('/').next() {
        Some("image") => Kind::Image,
        Some("video") => Kind::Video,
        Some("text") => Kind::Document,
        _ if document.contains(&content_type) || office.iter().any(|part| content_type.contains(part)) => {
            Kind::Document
        }
        _ => Kind::Other,
    }
}

/// Whether it may be lines that somebody wrote, and no markup.
fn is_text(head: &[u8]) -> bool {
    let body = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    !head.is_empty() && !body.starts_with(b"<") && !head.iter().any(|byte| *byte < 0x09)
}

/// A name without folders, control characters and marks that turn the reading direction.
pub fn clean_name(given: &str) -> Result<String> {
    let last = given.rsplit(['/', '\\']).next().unwrap_or_default();
    let harmless: String = last.chars().filter(|c| !c.is_control() && !is_deceptive(*c)).collect();
    let name = harmless.trim();
    if name.is_empty() {
        return Err(Error::invalid("name", "must say how the file is called: report.pdf"));
    }
    if name == "." || name == ".." {
        return Err(Error::invalid("name", format!("{name} is a folder, not a file")));
    }
    if name.len() > 255 {
        return Err(Error::invalid("name", format!("must have at most 255 bytes, has {}", name.len())));
    }
    Ok(name.to_owned())
}

/// Marks that are not seen, or that make a name read otherwise than it is.
fn is_deceptive(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{61c}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_says_what_a_file_is() {
        let png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR";
        assert_eq!(type_of("a.png", png), ("image/png", Kind::Image));
        assert_eq!(type_of("a.html", png), ("image/png", Kind::Image));
        for (name, head) in [
            ("a.jpg", &b"<html><script>alert(1)</script>"[..]),
            ("a.svg", &b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"[..]),
            ("a.txt", &b"  <svg onload='alert(1)'/>"[..]),
            ("a.csv", &b"\xef\xbb\xbf<!DOCTYPE html><p>"[..]),
            ("a.jpg", &b"MZ\x90\0\x03\0\0\0\x04\0\0\0\xff\xff"[..]),
            ("a.html", &b"plain"[..]),
            ("a", &b"plain"[..]),
            ("a.csv", &b"a\0b"[..]),
        ] {
            assert_eq!(type_of(name, head), (UNKNOWN, Kind::Other), "{name}");
        }
        assert_eq!(type_of("a.CSV", b"id;name\n1;x\n"), ("text/csv", Kind::Document));
        assert_eq!(type_of("a.csv", b"name\nM\xfcller\n"), ("text/csv", Kind::Document), "Latin-1");
        for lettered in [&b"BMI;weight\n21;70\n"[..], b"MZ;name\n1;x\n"] {
            assert_eq!(type_of("a.csv", lettered), ("text/csv", Kind::Document));
        }
        assert_eq!(type_of("a.json", b"[1]"), ("application/json", Kind::Document));
        assert_eq!(type_of("a.pdf", b"%PDF-1.7\n"), ("application/pdf", Kind::Document));
        assert_eq!(type_of("a.zip", b"PK\x03\x04rest").1, Kind::Other);
    }

    #[test]
    fn names_are_made_harmless() {
        let clean = |name: &str| clean_name(name).ok();
        assert_eq!(clean(" report.pdf ").as_deref(), Some("report.pdf"));
        assert_eq!(clean("../../etc/passwd").as_deref(), Some("passwd"));
        assert_eq!(clean(r"C:\temp\..\report.pdf").as_deref(), Some("report.pdf"));
        assert_eq!(clean("a\u{202e}fdp.exe\0\r\n").as_deref(), Some("afdp.exe"));
        assert_eq!(clean("Größe 第一.pdf").as_deref(), Some("Größe 第一.pdf"));
        for bad in ["", "  ", ".", "..", "a/", "a/..", "\u{200b}", "ä".repeat(128).as_str()] {
            assert_eq!(clean(bad), None, "{bad:?}");
        }
    }
}
