//! `ETag` and `If-Match`: an object's version, and the promise to change only that one.

use poem::{FromRequest, Request, RequestBody, http::header};

use crate::{
    auth::sealing::{hex, sha256},
    error::{Code, Error, Result},
};

/// The `ETag` of an answer: the object's version, and a digest of what this caller sees of it. One
/// path may show different things to different people, and a cache must not mix them up.
pub fn etag(version: i64, body: &[u8]) -> String {
    format!("\"v{version}-{}\"", hex(&sha256(body)[..6]))
}

/// Whether one of the tags in a header's value is this one; `*` is any.
pub fn names(header: &str, tag: &str) -> bool {
    header.split(',').map(str::trim).any(|given| given == "*" || given == tag)
}

/// What the caller believes the object's version to be. Every PUT, PATCH and DELETE of one object
/// takes it and calls [`IfMatch::check`] with the object's row locked.
pub struct IfMatch(Option<String>);

impl IfMatch {
    /// 412 where the caller named versions and this is none of them. What the caller saw beside the
    /// object itself does not count: `"v3"` is as good as `"v3-0190b6a1"`.
    pub fn check(&self, version: i64) -> Result<()> {
        let Some(expected) = &self.0 else { return Ok(()) };
        let fits = |tag: &str| {
            let named = tag.trim_matches('"').split('-').next().unwrap_or_default();
            tag == "*" || named == format!("v{version}")
        };
        if expected.split(',').map(str::trim).any(fits) {
            return Ok(());
        }
        Err(Error::new(
            Code::PreconditionFailed,
            "The object has changed since you read it. Read it again and repeat the change.",
        ))
    }
}

impl<'a> FromRequest<'a> for IfMatch {
    async fn from_request(request: &'a Request, _body: &mut RequestBody) -> poem::Result<Self> {
        // What cannot be read names no version, which is not the same as naming none.
        let given = request.headers().get(header::IF_MATCH);
        Ok(Self(given.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())))
    }
}
