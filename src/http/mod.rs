//! The HTTP ground: what every request passes on its way in, and every answer on its way out.

mod etag;
mod front;
mod idempotency;
pub mod payload;
mod server;

pub use etag::IfMatch;
pub use front::{RequestId, Verdicts};
pub use payload::{
    Accepted, Body, Created, Download, EventStream, Json, JsonLines, NoContent, Outgoing, Part, Queued,
    Single, Upload, Versioned,
};
pub use server::{endpoint, serve};

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use poem::{Request, http::header};

/// Where a request was sent from.
pub fn client_address(request: &Request, trusted: &[IpNet]) -> Option<IpAddr> {
    let peer = request.remote_addr().as_socket_addr()?.ip();
    let lines = request.headers().get_all("x-forwarded-for");
    let said = lines.iter().flat_map(|line| line.to_str().unwrap_or("?").split(',')).collect::<Vec<_>>();
    Some(behind_proxies(peer, &said, trusted))
}

/// What `X-Forwarded-For` says counts only as far as it was written by trusted proxies: from the
/// right, past every one of them, to the first address that is none.
fn behind_proxies(peer: IpAddr, said: &[&str], trusted: &[IpNet]) -> IpAddr {
    let mut address = peer.to_canonical();
    for hop in said.iter().rev() {
        if !trusted.iter().any(|net| net.contains(&address)) {
            break;
        }
        // A proxy that writes nonsense is the last one that is known.
        let Some(before) = address_of(hop.trim()) else { break };
        address = before;
    }
    address
}

fn address_of(text: &str) -> Option<IpAddr> {
    let parsed = text.parse().ok().or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()));
    parsed.map(|address: IpAddr| address.to_canonical())
}

/// The name of the host that a request was sent to, in lower case and without the port.
pub fn host_name(request: &Request) -> Option<String> {
    let named = request.header(header::HOST).or_else(|| request.original_uri().host())?;
    let name = match named.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => named,
    };
    Some(name.trim_end_matches('.').to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trusted_proxies_say_where_a_request_is_from() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let from =
            |peer: &str, said: &[&str]| behind_proxies(peer.parse().unwrap(), said, &trusted).to_string();
        assert_eq!(from("192.0.2.1", &["198.51.100.7"]), "192.0.2.1", "nobody trusts this peer");
        assert_eq!(from("10.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(from("10.0.0.1", &["1.1.1.1", " 198.51.100.7"]), "198.51.100.7", "the left is made up");
        assert_eq!(from("10.0.0.1", &["198.51.100.7", " 10.9.9.9"]), "198.51.100.7");
        assert_eq!(from("10.0.0.1", &["198.51.100.7", "10.9.9.9"]), "198.51.100.7");
        assert_eq!(from("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(from("10.0.0.1", &["unknown"]), "10.0.0.1");
        assert_eq!(from("::ffff:10.0.0.1", &["[2001:db8::1]:443"]), "2001:db8::1");
    }
}
