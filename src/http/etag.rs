//! `ETag` and `If-Match`: an object's version, and the promise to change only that one.

use poem::{FromRequest, Request, RequestBody, http::header};

use crate::error::{Code, Error, Result};

/// The `ETag` of a version.
pub fn etag(version: i64) -> String {
    format!("\"v{version}\"")
}

/// Whether one of the tags in a header's value is this one; `*` is any.
pub fn names(header: &str, tag: &str) -> bool {
    header.split(',').map(str::trim).any(|given| given == "*" || given == tag)
}

/// What the caller believes the object's version to be. Every PUT, PATCH and DELETE of one object
/// takes it and calls [`IfMatch::check`] with the object's row locked.
pub struct IfMatch(Option<String>);

impl IfMatch {
    /// 412 where the caller named versions and this is none of them.
    pub fn check(&self, version: i64) -> Result<()> {
        match &self.0 {
            Some(expected) if !names(expected, &etag(version)) => Err(Error::new(
                Code::PreconditionFailed,
                "The object has changed since you read it. Read it again and repeat the change.",
            )),
            _ => Ok(()),
        }
    }
}

impl<'a> FromRequest<'a> for IfMatch {
    async fn from_request(request: &'a Request, _body: &mut RequestBody) -> poem::Result<Self> {
        Ok(Self(request.header(header::IF_MATCH).map(str::to_owned)))
    }
}
