//! The HTTP ground: what every request passes on its way in, and every answer on its way out.

mod etag;
mod front;
mod idempotency;
mod payload;
mod server;

pub use etag::IfMatch;
pub use payload::{Body, Created, Json, NoContent, Single, Versioned};
pub use server::{endpoint, serve};
