//! Links: whoever has one can download one file until its time is over, without logging in.
//!
//! A link is sealed, says nothing to whoever reads it, and is stored nowhere. It is good for as long as the
//! file is there and the organization is open.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use poem_openapi::{Object, types::Example};
use serde::Serialize;
use uuid::Uuid;

use crate::{
    app::App,
    error::{Error, Result},
    http::Versioned,
    types::example_time,
};

const PURPOSE: &str = "link to a file";
/// How long a link is good at most.
pub const LONGEST: TimeDelta = TimeDelta::days(7);

/// A link to download a file by.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct FileLink {
    /// A path at the address of the API. Who knows it can download the file.
    pub url: String,
    pub expires_at: DateTime<Utc>,
}

impl Example for FileLink {
    fn example() -> Self {
        Self { url: "/api/v1/downloads/4fQzExampleExampleExampleEx".into(), expires_at: example_time() }
    }
}

impl Versioned for FileLink {
    fn version(&self) -> i64 {
        1
    }
}

/// What a link says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linked {
    pub organization: Uuid,
    pub file: Uuid,
    pub expires_at: DateTime<Utc>,
    /// Whether a browser may show it instead of saving it, where it is a picture.
    pub inline: bool,
}

/// Makes a link that is good for so long; for as long as is configured where that is absent.
pub fn link(
    app: &App,
    organization: Uuid,
    file: Uuid,
    lasts: Option<TimeDelta>,
    inline: bool,
) -> Result<FileLink> {
    let usual = TimeDelta::minutes(app.config.files.link_minutes.into());
    let until = app.clock.now() + lasts.unwrap_or(usual).min(LONGEST);
    let linked = Linked { organization, file, expires_at: until, inline };
    let sealed = app.sealer.seal(PURPOSE, &linked.to_bytes())?;
    Ok(FileLink { url: format!("/api/v1/downloads/{}", URL_SAFE_NO_PAD.encode(sealed)), expires_at: until })
}

/// What a link says that this service made; `None` for any other text.
pub fn open(app: &App, token: &str) -> Option<Linked> {
    let sealed = URL_SAFE_NO_PAD.decode(token).ok()?;
    Linked::from_bytes(&app.sealer.open(PURPOSE, &sealed).ok()?)
}

/// The answer to a link whose time is over.
pub fn expired() -> Error {
    Error::denied("This link has expired. Ask whoever gave it to you for a new one.")
}

impl Linked {
    fn to_bytes(self) -> Vec<u8> {
        let until = self.expires_at.timestamp_micros().to_be_bytes();
        let inline = [u8::from(self.inline)];
        [&self.organization.as_bytes()[..], self.file.as_bytes(), &until, &inline].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (organization, rest) = bytes.split_at_checked(16)?;
        let (file, rest) = rest.split_at_checked(16)?;
        let (until, inline) = rest.split_at_checked(8)?;
        Some(Self {
            organization: Uuid::from_slice(organization).ok()?,
            file: Uuid::from_slice(file).ok()?,
            expires_at: DateTime::from_timestamp_micros(i64::from_be_bytes(until.try_into().ok()?))?,
            inline: inline == [1],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_says_what_was_put_into_it() {
        for inline in [true, false] {
            let linked = Linked {
                organization: Uuid::now_v7(),
                file: Uuid::now_v7(),
                expires_at: example_time(),
                inline,
            };
            assert_eq!(Linked::from_bytes(&linked.to_bytes()), Some(linked));
        }
        assert_eq!(Linked::from_bytes(&[0; 39]), None);
    }
}
