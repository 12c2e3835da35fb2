//! Passwords: what they must be like, and Argon2id off the request threads.

use std::{fmt, str::FromStr, sync::Arc};

use argon2::{
    Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version, password_hash::phc::PasswordHash,
};
use tokio::sync::{OnceCell, Semaphore};

use crate::{
    error::{Error, Result},
    types::{string_schema, text},
};

/// A password as somebody typed it; never shown, never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl FromStr for Password {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        // The upper limit keeps a login from hashing a megabyte.
        if text.len() > 1024 { Err("must have at most 1024 bytes".into()) } else { Ok(Self(text.into())) }
    }
}

impl AsRef<str> for Password {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("********")
    }
}

text!([] Password, string_schema(Some("password"), None, 0, 1024));

/// Words that turn up in most lists of stolen passwords; with digits and signs around them they are
/// still the first that is tried.
const COMMON: &str = "password passwort passw0rd pass welcome letmein qwerty qwertz qwertyuiop asdfgh asdfghjkl \
    zxcvbnm iloveyou admin administrator root login master monkey dragon football baseball basketball superman \
    batman sunshine princess shadow michael jordan charlie summer winter autumn spring changeme secret trustno \
    starwars hello freedom whatever computer internet default guest user test testtest abc abcdef abcdefgh \
    january february march april may june july august september october november december monday tuesday \
    wednesday thursday friday saturday sunday singapore rowhouse company qazwsxedc zaqwsxcde qwertyasdfgh";

/// Checks a new password. `own` are things that belong to its user: address, names, organization.
pub fn check_policy(password: &Password, own: &[&str]) -> Result<()> {
    let text = password.as_ref();
    let mut missing = Vec::new();
    if text.chars().count() < 12 {
        missing.push("at least 12 characters");
    }
    if !text.chars().any(char::is_uppercase) {
        missing.push("an upper-case letter");
    }
    if !text.chars().any(char::is_lowercase) {
        missing.push("a lower-case letter");
    }
    if !text.chars().any(|c| c.is_ascii_digit()) {
        missing.push("a digit");
    }
    if !text.chars().any(|c| !c.is_alphanumeric() && !c.is_whitespace()) {
        missing.push("a special character");
    }
    if !missing.is_empty() {
        return Err(Error::invalid("password", format!("The password needs {}.", missing.join(", "))));
    }
    let letters = plain_letters(text);
    // A common word with a few letters around it is as easy to guess as the word.
    let decorated = |word: &str| letters.chars().count() < letters.matches(word).count() * word.len() + 4;
    if letters.is_empty()
        || COMMON.split_ascii_whitespace().any(|word| letters.contains(word) && decorated(word))
    {
        return Err(Error::invalid(
            "password",
            "The password is a common one with decoration. Take unrelated words.",
        ));
    }
    let own_words = own
        .iter()
        .flat_map(|text| text.split(|c: char| !c.is_alphanumeric()))
        .map(plain_letters)
        .filter(|word| word.chars().count() >= 3);
    // What is left when all of them are taken out must still be a password.
    let mut own_words: Vec<String> = own_words.filter(|word| letters.contains(word)).collect();
    own_words.sort_by_key(|word| std::cmp::Reverse(word.len()));
    let left = own_words.iter().fold(letters.clone(), |left, word| left.replace(word, ""));
    if left.len() < letters.len() && left.chars().count() < 6 {
        return Err(Error::invalid("password", "The password is too much like your own data."));
    }
    Ok(())
}

/// The letters of a text in lower case, with the usual disguises undone and what is put in front or
/// behind left away.
fn plain_letters(text: &str) -> String {
    text.trim_matches(|c: char| !c.is_alphabetic())
        .to_lowercase()
        .chars()
        .map(|c| match c {
            '0' => 'o',
            '1' | '!' => 'i',
            '3' => 'e',
            '4' | '@' => 'a',
            '5' | '$' => 's',
            '7' => 't',
            other => other,
        })
        .filter(|c| c.is_alphabetic())
        .collect()
}

/// Hashes and verifies, a bounded number at a time, on threads that serve no requests.
pub struct Passwords {
    at_once: Arc<Semaphore>,
    decoy: OnceCell<String>,
}

impl Passwords {
    pub fn new(at_once: usize) -> Self {
        Self { at_once: Arc::new(Semaphore::new(at_once)), decoy: OnceCell::new() }
    }

    pub async fn hash(&self, password: &Password) -> Result<String> {
        let text = password.0.clone();
        self.off_thread(move || {
            argon2().hash_password(text.as_bytes()).map(|hash| hash.to_string()).map_err(|e| e.to_string())
        })
        .await?
        .map_err(Error::internal)
    }

    /// Whether the password fits the hash. Without a hash (no such account) it takes as long and
    /// says no.
    pub async fn verify(&self, password: &Password, hash: Option<String>) -> Result<bool> {
        let known = hash.is_some();
        let hash = match hash {
            Some(hash) => hash,
            None => {
                let decoy = || async { self.hash(&Password("decoy".into())).await };
                self.decoy.get_or_try_init(decoy).await?.clone()
            }
        };
        let text = password.0.clone();
        let fits = self
            .off_thread(move || {
                PasswordHash::new(&hash)
                    .map(|hash| argon2().verify_password(text.as_bytes(), &hash).is_ok())
                    .map_err(|e| e.to_string())
            })
            .await?
            .map_err(Error::internal)?;
        Ok(fits && known)
    }

    async fn off_thread<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let permit = self.at_once.clone().acquire_owned().await.map_err(Error::internal)?;
        tokio::task::spawn_blocking(move || {
            // Held by the work itself: a dropped request does not make room before it is done.
            let _permit = permit;
            work()
        })
        .await
        .map_err(Error::internal)
    }
}

/// Argon2id as OWASP recommends it: 19 MiB, two passes, one lane.
fn argon2() -> Argon2<'static> {
    let params = Params::new(19_456, 2, 1, None).expect("constants within the limits");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(password: &str, own: &[&str]) -> bool {
        check_policy(&Password(password.into()), own).is_err()
    }

    #[test]
    fn weak_passwords_are_refused() {
        for weak in ["Short1!aaaa", "alllower123!", "ALLUPPER123!", "NoDigitsHere!", "NoSpecial1234"] {
            assert!(refused(weak, &[]), "{weak}");
        }
        for common in [
            "Password123!",
            "P@ssw0rd1234!",
            "Welcome2024!!",
            "Qwertyuiop1!",
            "1234567Aa!Admin1!",
            "MyPassword123!",
        ] {
            assert!(refused(common, &[]), "{common}");
        }
        assert!(refused("Ana.Tan2024!", &["ana.tan@example.com", "Ana", "Tan"]));
        assert!(refused("Anatan-2024!", &["anatan"]));
        assert!(refused("Globex-2024!!", &["Globex"]));
    }

    #[test]
    fn good_passwords_pass() {
        for good in ["Correct-Horse-7-Battery", "SecurePass123!", "Str0ng&Stable#Row", "Tr0ub4dor&3xyz"] {
            assert!(!refused(good, &["ana@example.com", "Ana", "Tan"]), "{good}");
        }
    }
}
