//! What somebody typed: its words, how they are asked for, how they are misspelled and how they are shown.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::error::{Error, Result};

/// Characters and words that a search may have.
const LONGEST: usize = 200;
const MOST: usize = 10;
/// Shorter words are not taken for misspelled ones: too many others are near.
const CORRECTED_FROM: usize = 4;
/// Longer ones would have more neighbours than are worth looking up.
const CORRECTED_TO: usize = 20;
/// Words of one search that are corrected at most, and words near to them that are looked up at most.
const CORRECTED: usize = 5;
const LOOKED_UP: usize = 2_500;
/// Shorter ones are not beginnings of what may have been meant: too much begins so.
const BEGINS_FROM: usize = 5;
/// Words with two slips are at least so long, and these of their letters right; so many in one search.
const LONG_FROM: usize = 8;
const RIGHT: usize = 3;
const LONG: usize = 2;
/// Characters that are shown of a text.
const SHOWN: usize = 200;
/// How many of them come before the first word that was found.
const BEFORE: usize = 60;

/// The words of a search, in lower case.
#[derive(Debug)]
pub struct Words(Vec<String>);

/// Whether words end here, as they do in the index: at spaces and signs, but not at the vowel signs that are part
/// of words in many scripts.
fn ends_word(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_alphanumeric();
    }
    let sign = matches!(u32::from(c),
        0x80..=0xBF | 0x2000..=0x206F | 0x2190..=0x2BFF | 0x3000..=0x303F
        | 0xFF00..=0xFF0F | 0xFF1A..=0xFF20 | 0xFF3B..=0xFF40 | 0xFF5B..=0xFF65 | 0x1F000..=0x1FAFF);
    c.is_whitespace() || c.is_control() || (sign && !c.is_alphanumeric())
}

/// Whether this is of a script that is written without spaces between words.
fn is_unspaced(c: char) -> bool {
    matches!(u32::from(c),
        0x0E00..=0x0EFF | 0x1000..=0x109F | 0x1780..=0x17FF | 0x3040..=0x30FF | 0x3400..=0x9FFF
        | 0xF900..=0xFAFF | 0x20000..=0x3FFFF)
}

impl Words {
    /// Parses `q`: at most 200 characters and 10 words, at least one letter or digit.
    pub fn parse(typed: &str) -> Result<Self> {
        if typed.chars().count() > LONGEST {
            return Err(Error::invalid("q", format!("must have at most {LONGEST} characters")));
        }
        let words: Vec<String> = typed
            .split(ends_word)
            .filter(|word| word.chars().any(char::is_alphanumeric))
            .map(str::to_lowercase)
            .collect();
        if words.is_empty() {
            return Err(Error::invalid("q", "must hold at least one letter or digit"));
        }
        if words.len() > MOST {
            return Err(Error::invalid("q", format!("may have at most {MOST} words")));
        }
        Ok(Self(words))
    }

    /// All of the words, as they are.
    pub fn exactly(&self) -> String {
        let words: Vec<String> = self.0.iter().map(|word| format!("'{word}'")).collect();
        words.join(" & ")
    }

    /// All of the words, each as a beginning.
    pub fn beginnings(&self) -> String {
        let words: Vec<String> = self.0.iter().map(|word| format!("'{word}':*")).collect();
        words.join(" & ")
    }

    /// The words, where all of them are of a script that is written without spaces: the index knows only how
    /// whole runs of those begin.
    pub fn inside(&self) -> Option<&[String]> {
        let unspaced = |word: &String| word.chars().all(is_unspaced);
        self.0.iter().all(unspaced).then_some(self.0.as_slice())
    }

    /// Every word by itself, as it is and as a beginning; nothing where none of them could be corrected.
    pub fn each(&self) -> (Vec<String>, Vec<String>) {
        match self.0.iter().any(|word| is_correctable(word)) {
            true => self.0.iter().map(|word| (format!("'{word}'"), format!("'{word}':*"))).unzip(),
            false => (Vec::new(), Vec::new()),
        }
    }

    fn corrected(&self, unknown: &[usize]) -> impl Iterator<Item = (usize, &String)> {
        let unknown: HashSet<usize> = unknown.iter().copied().collect();
        let words = self.0.iter().enumerate();
        words.filter(move |(n, word)| unknown.contains(n) && is_correctable(word)).take(CORRECTED)
    }

    /// What may have been meant by the unknown words, if in each there was one slip: a letter that is wrong,
    /// missing, too much, or changed places with the next one.
    pub fn one_slip(&self, unknown: &[usize]) -> Near {
        let mut all = BTreeMap::new();
        let mut many = 0;
        for (n, word) in self.corrected(unknown) {
            let near: BTreeSet<Meant> = near(word)
                .into_iter()
                // What begins with the word was found by it.
                .filter(|near| !near.starts_with(word.as_str()))
                .map(|near| Meant {
                    begins: near.chars().count() >= BEGINS_FROM && !word.starts_with(near.as_str()),
                    word: near,
                })
                .collect();
            many += near.len();
            if many > LOOKED_UP {
                break;
            }
            all.insert(n, near);
        }
        Near(all)
    }

    fn long(&self, unknown: &[usize]) -> impl Iterator<Item = (usize, &String)> {
        self.corrected(unknown).filter(|(_, word)| word.chars().count() >= LONG_FROM).take(LONG)
    }

    /// How the long ones of the unknown words begin.
    pub fn long_beginnings(&self, unknown: &[usize]) -> Vec<String> {
        self.long(unknown).map(|(_, word)| word.chars().take(RIGHT).collect()).collect()
    }

    /// What may have been meant by the long ones of the unknown words, of these words that begin like them, if
    /// there were two slips.
    pub fn two_slips(&self, unknown: &[usize], alike: &HashSet<String>) -> Near {
        let near = |word: &String| -> BTreeSet<Meant> {
            alike
                .iter()
                .filter(|other| strsim::osa_distance(word, other) <= 2)
                .map(|other| Meant { word: other.clone(), begins: false })
                .collect()
        };
        Near(
            self.long(unknown)
                .map(|(n, word)| (n, near(word)))
                .filter(|(_, near)| !near.is_empty())
                .collect(),
        )
    }

    /// The search with what may have been meant beside what was typed.
    pub fn corrected_by(&self, near: &Near) -> String {
        let parts: Vec<String> = self
            .0
            .iter()
            .enumerate()
            .map(|(n, word)| {
                let meant = near.0.get(&n).into_iter().flatten().map(Meant::query);
                let all: Vec<String> = std::iter::once(format!("'{word}':*")).chain(meant).collect();
                format!("({})", all.join(" | "))
            })
            .collect();
        parts.join(" & ")
    }

    /// Text as HTML in which nothing but `<mark>` is a tag, with the words that were searched for, or that may have
    /// been meant, marked.
    pub fn mark(&self, text: &str, near: &Near) -> String {
        let mut html = String::with_capacity(text.len() + 32);
        let mut at = 0;
        for (from, to) in self.places(text, near) {
            escape(&text[at..from], &mut html);
            html.push_str("<mark>");
            escape(&text[from..to], &mut html);
            html.push_str("</mark>");
            at = to;
        }
        escape(&text[at..], &mut html);
        html
    }

    /// The part of a long text where the first of the words is, marked.
    pub fn excerpt(&self, text: &str, near: &Near) -> String {
        let first = self.places(text, near).first().map_or(0, |place| place.0);
        let back = text[..first].char_indices().rev().nth(BEFORE - 1).map_or(0, |(at, _)| at);
        // Not in the middle of a word, if one ends near.
        let from = match back {
            0 => 0,
            _ => text[back..first].find(char::is_whitespace).map_or(back, |space| back + space),
        };
        let to = text[from..].char_indices().nth(SHOWN).map_or(text.len(), |(at, _)| from + at);
        let marked = self.mark(text[from..to].trim(), near);
        let (left, right) = (if from > 0 { "…" } else { "" }, if to < text.len() { "…" } else { "" });
        format!("{left}{marked}{right}")
    }

    /// Where the words are, from byte to byte.
    fn places(&self, text: &str, near: &Near) -> Vec<(usize, usize)> {
        let mut places = Vec::new();
        let mut at = 0;
        for piece in text.split_inclusive(ends_word) {
            let word = piece.trim_end_matches(ends_word);
            let lower = word.to_lowercase();
            if near.has(&lower) {
                places.push((at, at + word.len()));
            } else if let Some(begun) =
                self.0.iter().filter(|begun| lower.starts_with(*begun)).max_by_key(|b| b.len())
            {
                let part = word.char_indices().nth(begun.chars().count()).map_or(word.len(), |(at, _)| at);
                places.push((at, at + part));
            } else if let Some(inside) =
                self.0.iter().find(|w| w.chars().all(is_unspaced) && word.contains(*w))
            {
                let from = at + word.find(inside).unwrap_or_default();
                places.push((from, from + inside.len()));
            }
            at += piece.len();
        }
        places
    }
}

/// A word that may have been meant, or the beginning of one.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Meant {
    word: String,
    begins: bool,
}

impl Meant {
    fn query(&self) -> String {
        match self.begins {
            true => format!("'{}':*", self.word),
            false => format!("'{}'", self.word),
        }
    }
}

/// What may have been meant, by the number of the word that was typed.
#[derive(Debug, Default)]
pub struct Near(BTreeMap<usize, BTreeSet<Meant>>);

impl Near {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each of them as it is asked for.
    pub fn queries(&self) -> Vec<String> {
        self.0.values().flatten().map(Meant::query).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Leaves what there is, of [`Near::queries`].
    pub fn retain_only(&mut self, existing: &HashSet<String>) {
        for near in self.0.values_mut() {
            near.retain(|meant| existing.contains(&meant.query()));
        }
        self.0.retain(|_, near| !near.is_empty());
    }

    /// Whether a word in lower case may be what was meant.
    fn has(&self, word: &str) -> bool {
        self.0.values().flatten().any(|meant| match meant.begins {
            true => word.starts_with(&meant.word),
            false => word == meant.word,
        })
    }

    /// Adds the words of a text that may be what was meant.
    pub fn note(&self, text: &str, noted: &mut BTreeSet<String>) {
        if !self.is_empty() {
            noted.extend(text.split(ends_word).map(str::to_lowercase).filter(|word| self.has(word)));
        }
    }
}

fn is_correctable(word: &str) -> bool {
    (CORRECTED_FROM..=CORRECTED_TO).contains(&word.chars().count())
        && word.chars().any(char::is_alphabetic)
        && !word.chars().all(is_unspaced)
}

/// Letters with signs that are written without them.
const SIGNED: [(char, &str); 8] = [
    ('a', "àáâãäå"),
    ('c', "ç"),
    ('e', "èéêë"),
    ('i', "ìíîï"),
    ('n', "ñ"),
    ('o', "òóôõöø"),
    ('u', "ùúûü"),
    ('y', "ýÿ"),
];

/// Small letters of the alphabets that a word is written in, and its own.
fn letters_of(word: &str) -> BTreeSet<char> {
    let mut letters: BTreeSet<char> = word.chars().collect();
    for c in word.chars() {
        if c.is_ascii_alphabetic() {
            letters.extend('a'..='z');
        } else if c.is_alphabetic() && !is_unspaced(c) {
            // Blocks of 128 hold an alphabet each, or half of one.
            let from = u32::from(c) & !0x7F;
            let block = (from..from + 0x80).filter_map(char::from_u32);
            letters.extend(block.filter(|c| c.is_alphabetic() && !c.is_uppercase()));
        }
    }
    letters
}

/// Words at one slip's distance.
fn near(word: &str) -> HashSet<String> {
    let letters: Vec<char> = word.chars().collect();
    let others = letters_of(word);
    let mut near = HashSet::new();
    let mut add = |letters: &[&[char]]| {
        near.insert(letters.concat().into_iter().collect::<String>());
    };
    for at in 0..=letters.len() {
        let (before, after) = letters.split_at(at);
        for other in &others {
            add(&[before, &[*other], after]);
            if let [_, rest @ ..] = after {
                add(&[before, &[*other], rest]);
            }
        }
        if let [one, rest @ ..] = after {
            add(&[before, rest]);
            for (_, signed) in SIGNED.iter().filter(|(letter, _)| letter == one) {
                signed.chars().for_each(|signed| add(&[before, &[signed], rest]));
            }
        }
        if let [one, two, rest @ ..] = after {
            add(&[before, &[*two, *one], rest]);
        }
    }
    near.remove(word);
    near
}

fn escape(text: &str, html: &mut String) {
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            c => html.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(typed: &str) -> Words {
        Words::parse(typed).unwrap()
    }

    #[test]
    fn a_search_is_its_words() {
        assert_eq!(words(" Jurong  plant's ").beginnings(), "'jurong':* & 'plant':* & 's':*");
        assert_eq!(words("a&b|!c:*'\\").exactly(), "'a' & 'b' & 'c'");
        assert_eq!(words("பக்கம், 着陆页。").exactly(), "'பக்கம்' & '着陆页'");
        assert!(Words::parse(" !! ").is_err());
        assert!(Words::parse("").is_err());
        assert!(Words::parse("a b c d e f g h i j k").is_err());
        assert!(Words::parse(&"a".repeat(201)).is_err());
    }

    fn known(of: &[&str]) -> HashSet<String> {
        of.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_slip_is_forgiven_in_words_that_are_not_short() {
        for (typed, meant) in [
            ("lanidng", "'landing':*"),
            ("lading", "'landing':*"),
            ("landding", "'landing':*"),
            ("landimg", "'landing':*"),
            ("lanidn", "'landin':*"),
        ] {
            assert!(words(typed).one_slip(&[0]).queries().contains(&meant.to_owned()), "{typed}");
        }
        assert!(words("cat 1234").one_slip(&[0, 1]).is_empty());
        assert!(words("lanidng").one_slip(&[]).is_empty());
        let typed = words("write the new pgae");
        let mut near = typed.one_slip(&[3]);
        near.retain_only(&known(&["'page'"]));
        assert_eq!(typed.corrected_by(&near), "('write':*) & ('the':*) & ('new':*) & ('pgae':* | 'page')");
        near.retain_only(&HashSet::new());
        assert!(near.is_empty());
        // A letter that is too much at the end makes no beginning of what there was before.
        let queries = words("harbours").one_slip(&[0]).queries();
        assert!(queries.contains(&"'harbour'".to_owned()) && !queries.contains(&"'harbour':*".to_owned()));
    }

    #[test]
    fn a_slip_is_forgiven_in_every_alphabet() {
        for (typed, meant) in [
            ("decorer", "décorer"),
            ("décorer", "decorer"),
            ("пирвет", "привет"),
            ("பக்கம", "பக்கம்"),
            ("q3reprot", "q3report"),
        ] {
            let near = near(typed);
            assert!(near.contains(meant) && near.len() < 2_500, "{typed}");
            assert!(is_correctable(typed), "{typed}");
        }
    }

    #[test]
    fn two_slips_are_forgiven_in_long_words() {
        let there = known(&["maintenance", "mainland", "accommodation"]);
        let two = |typed: &str| words(typed).two_slips(&[0], &there).queries();
        assert_eq!(two("maintainance"), ["'maintenance'"]);
        assert_eq!(two("accomodaton"), ["'accommodation'"]);
        assert!(two("mainlnd").is_empty() && two("maintained").is_empty());
        assert_eq!(words("maintainance").long_beginnings(&[0]), ["mai"]);
    }

    #[test]
    fn marks_are_the_only_tags() {
        let none = Near::default();
        assert_eq!(
            words("script").mark("<script>alert('Scripts')</script>", &none),
            "&lt;<mark>script</mark>&gt;alert(&#39;<mark>Script</mark>s&#39;)&lt;/<mark>script</mark>&gt;"
        );
        assert_eq!(words("页面").mark("新的页面设计", &none), "新的<mark>页面</mark>设计");
        assert_eq!(words("amp").mark("&amp;", &none), "&amp;<mark>amp</mark>;");
        let mut near = words("lanidng").one_slip(&[0]);
        near.retain_only(&known(&["'landing':*"]));
        assert_eq!(words("lanidng").mark("Landing page", &near), "<mark>Landing</mark> page");
        let mut noted = BTreeSet::new();
        near.note("Landings, by land", &mut noted);
        assert_eq!(noted, BTreeSet::from(["landings".to_owned()]));
        // Lower case may be longer than what it is of.
        assert_eq!(words("i").mark("İi", &none), "<mark>İ</mark>i");
    }

    #[test]
    fn an_excerpt_is_around_the_first_word() {
        let text = format!("{}needle {}", "hay ".repeat(100), "stack ".repeat(100));
        let excerpt = words("needle").excerpt(&text, &Near::default());
        assert!(excerpt.starts_with("…hay") && excerpt.ends_with('…'), "{excerpt}");
        assert!(excerpt.contains("<mark>needle</mark>") && excerpt.chars().count() < 230, "{excerpt}");
        assert_eq!(words("x").excerpt("short", &Near::default()), "short");
    }
}
