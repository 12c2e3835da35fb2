//! Requests to other servers.
//!
//! Addresses that customers give lead wherever they like, also back inside. So [`Outbound::client`]
//! resolves names itself, refuses every address that is not public, and connects to exactly the
//! address that it checked: a name that means something else a moment later gains nothing. It follows
//! no redirects and uses no proxy.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, LazyLock},
    time::Duration,
};

use anyhow::Context;
use futures_util::StreamExt;
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
};
use ipnet::IpNet;
use reqwest::{Client, RequestBuilder, dns, redirect};
use rustls::pki_types::CertificateDer;
use tokio::sync::OnceCell;
use url::{Host, Url};

/// What one request to a stranger may take, in all.
const LIMIT: Duration = Duration::from_secs(30);
/// So much of an answer is read.
pub const MOST_READ: usize = 16 * 1024;

/// The clients of this process.
pub struct Outbound {
    strangers: Client,
    trusted: Client,
    allow_loopback: bool,
}

/// What a stranger answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// The beginning of the body, as text.
    pub body: String,
    /// The header `Retry-After`, as it came.
    pub retry_after: Option<String>,
}

impl Outbound {
    /// `allow_loopback` lets strangers be on this machine, and without TLS: for development.
    pub fn new(dns_server: Option<SocketAddr>, allow_loopback: bool) -> anyhow::Result<Self> {
        let plain = || -> anyhow::Result<reqwest::ClientBuilder> {
            Ok(Client::builder()
                .tls_backend_preconfigured(tls(Vec::new())?)
                .redirect(redirect::Policy::none())
                .user_agent(concat!("Rowhouse/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(Duration::from_secs(10))
                .timeout(LIMIT)
                .pool_idle_timeout(Duration::from_secs(20))
                .pool_max_idle_per_host(2))
        };
        let names = Names { server: dns_server, resolver: OnceCell::new(), allow_loopback };
        Ok(Self {
            strangers: plain()?.no_proxy().dns_resolver(Resolver(Arc::new(names))).build()?,
            trusted: plain()?.build()?,
            allow_loopback,
        })
    }

    /// For addresses that customers give, after [`Outbound::check`].
    pub fn client(&self) -> &Client {
        &self.strangers
    }

    /// For addresses from the configuration.
    pub fn trusted(&self) -> &Client {
        &self.trusted
    }

    /// What is wrong with an address that a customer gives, as far as it can be seen without asking
    /// for the name. A literal address never reaches the resolver, so it is refused here.
    pub fn check(&self, url: &Url) -> Result<(), String> {
        if url.scheme() != "https" && !(self.allow_loopback && url.scheme() == "http") {
            return Err("must begin with https://".into());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not hold a user or a password".into());
        }
        let literal: IpAddr = match url.host() {
            None => return Err("must name a host".into()),
            Some(Host::Domain(_)) => return Ok(()),
            Some(Host::Ipv4(address)) => address.into(),
            Some(Host::Ipv6(address)) => address.into(),
        };
        match permitted(literal, self.allow_loopback) {
            true => Ok(()),
            false => Err(format!("leads to {literal}, which is not a public address")),
        }
    }

    /// Sends a request and reads the beginning of the answer; the error says why there is none.
    pub async fn send(&self, request: RequestBuilder) -> Result<Answer, String> {
        let work = async {
            let response = request.send().await.map_err(told)?;
            let retry_after = response
                .headers()
                .get("retry-after")
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned);
            let status = response.status().as_u16();
            let mut body = Vec::new();
            let mut pieces = response.bytes_stream();
            while let Some(piece) = pieces.next().await {
                let piece = piece.map_err(|error| format!("the answer broke off: {}", told(error)))?;
                body.extend_from_slice(&piece[..piece.len().min(MOST_READ - body.len())]);
                if body.len() == MOST_READ {
                    break;
                }
            }
            // Postgres keeps no text with a zero in it, and what is no text grows as one.
            let mut body = String::from_utf8_lossy(&body).replace('\0', "");
            body.truncate(body.floor_char_boundary(MOST_READ));
            Ok(Answer { status, body, retry_after })
        };
        tokio::time::timeout(LIMIT, work)
            .await
            .unwrap_or_else(|_| Err(format!("no complete answer within {} s", LIMIT.as_secs())))
    }
}

/// An error with its causes, which reqwest's own text hides, and without the address, which may be a
/// secret.
fn told(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut told = if error.is_timeout() { "no answer in time".to_owned() } else { error.to_string() };
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        told += &format!(": {cause}");
        source = cause.source();
    }
    told.chars().filter(|c| *c != '\0').take(1000).collect()
}

/// What every client of ours trusts: the public authorities, and these certificates.
pub fn tls(more: Vec<CertificateDer<'static>>) -> anyhow::Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    for certificate in more {
        roots.add(certificate)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// A resolver that asks this server, or the system's, and remembers nothing.
pub fn resolver(server: Option<SocketAddr>) -> anyhow::Result<TokioResolver> {
    let mut builder = match server {
        Some(server) => {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = server.port();
                connection
            });
            let server = NameServerConfig::new(server.ip(), true, connections.into());
            let config = ResolverConfig::from_name_servers(vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
        None => TokioResolver::builder_tokio().context("the system's DNS settings cannot be read")?,
    };
    builder.options_mut().cache_size = 0;
    builder.build().context("the resolver cannot be made")
}

/// Names of strangers: only those all of whose addresses are public.
struct Names {
    server: Option<SocketAddr>,
    resolver: OnceCell<TokioResolver>,
    allow_loopback: bool,
}

impl Names {
    async fn look_up(&self, name: &str) -> anyhow::Result<Vec<SocketAddr>> {
        let resolver = self.resolver.get_or_try_init(|| async { resolver(self.server) }).await?;
        let found =
            resolver.lookup_ip(name).await.with_context(|| format!("{name} is not found in the DNS"))?;
        let addresses: Vec<IpAddr> = found.iter().collect();
        anyhow::ensure!(!addresses.is_empty(), "{name} has no address");
        for address in &addresses {
            let public = permitted(*address, self.allow_loopback);
            anyhow::ensure!(public, "{name} leads to {address}, which is not a public address");
        }
        Ok(addresses.into_iter().map(|address| SocketAddr::new(address, 0)).collect())
    }
}

/// The client connects to what it is told here.
#[derive(Clone)]
struct Resolver(Arc<Names>);

impl dns::Resolve for Resolver {
    fn resolve(&self, name: dns::Name) -> dns::Resolving {
        let names = self.0.clone();
        Box::pin(async move {
            let found = names.look_up(name.as_str()).await?;
            Ok(Box::new(found.into_iter()) as dns::Addrs)
        })
    }
}

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|net| net.parse().expect("the tests read this list")).collect()
}

/// Private, shared, loopback, link-local with the metadata services, test, multicast and reserved
/// networks (IANA special-purpose registries), and the one metadata address that is public.
static NOT_PUBLIC: LazyLock<Vec<IpNet>> = LazyLock::new(|| {
    nets(&[
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        // Tunnels and translations, behind which any IPv4 address may be; documentation.
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "3fff::/20",
    ])
});
/// Everything public in IPv6 is in here.
static GLOBAL_UNICAST: LazyLock<IpNet> =
    LazyLock::new(|| "2000::/3".parse().expect("the tests read this net"));

fn permitted(address: IpAddr, allow_loopback: bool) -> bool {
    // ::ffff:127.0.0.1 is 127.0.0.1.
    let address = address.to_canonical();
    if address.is_loopback() {
        return allow_loopback;
    }
    let global = address.is_ipv4() || GLOBAL_UNICAST.contains(&address);
    global && !NOT_PUBLIC.iter().any(|net| net.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_permitted() {
        for inside in [
            "127.0.0.1",
            "10.1.2.3",
            "172.31.0.1",
            "192.168.0.1",
            "169.254.169.254",
            "100.100.100.200",
            "168.63.129.16",
            "0.0.0.0",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "::10.0.0.1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "2001:0:1::1",
            "fe80::1",
            "fd00:ec2::254",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!permitted(inside.parse().unwrap(), false), "{inside}");
        }
        for public in ["1.1.1.1", "203.0.114.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"] {
            assert!(permitted(public.parse().unwrap(), false), "{public}");
        }
        assert!(
            permitted("127.0.0.1".parse().unwrap(), true) && !permitted("10.0.0.1".parse().unwrap(), true)
        );
    }

    #[test]
    fn addresses_are_checked_in_every_spelling() {
        let outbound = Outbound::new(None, false).unwrap();
        let check = |url: &str| {
            Url::parse(url).map_err(|error| error.to_string()).and_then(|url| outbound.check(&url))
        };
        for refused in [
            "http://example.com/",
            "ftp://example.com/",
            "https://user:pw@example.com/",
            "https://127.0.0.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://[::1]/",
            "https://[::ffff:169.254.169.254]/",
            "https://169.254.169.254/latest/meta-data",
        ] {
            assert!(check(refused).is_err(), "{refused}");
        }
        assert!(check("https://hooks.example.com/in?x=1").is_ok());
    }
}
