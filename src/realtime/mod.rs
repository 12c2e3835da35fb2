//! Realtime: what happens, told at once to whoever is connected, by WebSocket or as server-sent events.

mod api;
mod hub;

pub use api::RealtimeApi;
pub use hub::{Hub, keep};
