//! Ids that are others here.

use std::collections::HashMap;

use uuid::Uuid;

/// Ids that are others here than where rows come from.
#[derive(Default)]
pub(in crate::tenancy::fleet) struct Ids(HashMap<String, String>);

impl Ids {
    pub(in crate::tenancy::fleet) fn add(&mut self, there: Uuid, here: Uuid) {
        if there != here {
            self.0.insert(there.to_string(), here.to_string());
        }
    }

    /// The text with every id replaced that is another one here.
    pub(in crate::tenancy::fleet) fn replace(&self, text: String) -> String {
        const LENGTH: usize = 36;
        if self.0.is_empty() {
            return text;
        }
        let mut replaced = String::with_capacity(text.len());
        let (bytes, mut copied, mut at) = (text.as_bytes(), 0, 0);
        while at + LENGTH <= bytes.len() {
            let dashes = [8, 13, 18, 23].iter().all(|dash| bytes[at + dash] == b'-');
            let id = if dashes { text.get(at..at + LENGTH) } else { None };
            match id.and_then(|id| self.0.get(id)) {
                Some(here) => {
                    replaced.push_str(&text[copied..at]);
                    replaced.push_str(here);
                    at += LENGTH;
                    copied = at;
                }
                None => at += 1,
            }
        }
        replaced.push_str(&text[copied..]);
        replaced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_replaced_wherever_they_stand() {
        let (there, here) = (Uuid::now_v7(), Uuid::now_v7());
        let mut ids = Ids::default();
        ids.add(there, here);
        ids.add(here, here);
        let text = format!("{{\"a\":\"{there}\",\"ü\":\"€{there}{there}-\",\"b\":\"{here}\"}}");
        let expected = format!("{{\"a\":\"{here}\",\"ü\":\"€{here}{here}-\",\"b\":\"{here}\"}}");
        assert_eq!(ids.replace(text), expected);
        assert_eq!(Ids::default().replace("as it is".into()), "as it is");
        for short in ["", "-", &"é-".repeat(40), &there.to_string()[1..]] {
            assert_eq!(ids.replace(short.into()), short);
        }
    }
}
