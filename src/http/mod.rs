//! The HTTP ground: what every request passes on its way in, and every answer on its way out.

mod etag;
mod front;
mod idempotency;
mod payload;
mod server;

pub use etag::IfMatch;
pub use payload::{Body, Created, Json, NoContent, Single, Versioned};
pub use server::{endpoint, serve};

use poem::{Request, http::header};

/// The name of the host that a request was sent to, in lower case and without the port.
pub fn host_name(request: &Request) -> Option<String> {
    let named = request.header(header::HOST).or_else(|| request.original_uri().host())?;
    let name = match named.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => named,
    };
    Some(name.trim_end_matches('.').to_lowercase())
}
