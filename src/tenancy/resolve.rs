//! From a request to its organization: header, subdomain, custom domain, and the path where the
//! endpoint is about an organization. All that are given must agree.

use poem::Request;
use uuid::Uuid;

use super::{Tenant, directory::Key, unknown};
use crate::{
    app::App,
    error::{Code, Error, Result},
    http::host_name,
    types::Slug,
};

/// Subdomains of the base domain that are the service's own, and slugs that nobody may take.
pub const RESERVED: &[&str] = &[
    "about",
    "account",
    "accounts",
    "admin",
    "api",
    "app",
    "assets",
    "auth",
    "billing",
    "blog",
    "cdn",
    "dashboard",
    "demo",
    "dev",
    "docs",
    "email",
    "files",
    "ftp",
    "graphql",
    "health",
    "help",
    "imap",
    "internal",
    "localhost",
    "login",
    "logout",
    "mail",
    "mcp",
    "metrics",
    "ns1",
    "ns2",
    "oauth",
    "openapi",
    "platform",
    "pop",
    "postgres",
    "public",
    "ready",
    "register",
    "root",
    "rowhouse",
    "signup",
    "smtp",
    "sso",
    "staging",
    "static",
    "status",
    "support",
    "system",
    "tenant",
    "test",
    "webhook",
    "webhooks",
    "well-known",
    "ws",
    "www",
];

/// The organization that a request is for. An API key names one too: its `own`.
pub async fn resolve(request: &Request, app: &App, own: Option<Uuid>) -> Result<Tenant> {
    let mut named: Vec<Option<Tenant>> = Vec::new();
    let own = own.map(|id| Some(Key::Id(id)));
    for key in keys(request, &app.config.http.base_domain)?.into_iter().chain(own) {
        let found = match &key {
            Some(key) => app.directory.find(key).await?,
            None => None,
        };
        // A host that is nobody's domain may be an address of the service itself.
        if found.is_some() || !matches!(key, Some(Key::Domain(_))) {
            named.push(found);
        }
    }
    let Some(first) = named.pop() else {
        return Err(Error::new(
            Code::TenantRequired,
            "Name the organization: use its subdomain, or send its id or slug as X-Organization-Id.",
        ));
    };
    // The same answer whether or not the other name is somebody's.
    if named.iter().any(|other| other.as_ref().map(Tenant::id) != first.as_ref().map(Tenant::id)) {
        return Err(Error::new(
            Code::TenantMismatch,
            "The request names two organizations: header, host and path must agree.",
        ));
    }
    first.ok_or_else(unknown)
}

/// Whether a host is some organization's own, proved domain. Before the database is asked, `may_ask`
/// decides: anybody can make hosts up.
pub async fn is_domain(app: &App, host: &str, may_ask: impl Future<Output = bool>) -> Result<bool> {
    let Some(key @ Key::Domain(_)) = host_key(host, &app.config.http.base_domain) else { return Ok(false) };
    match app.directory.remembered(&key) {
        Some(known) => Ok(known),
        None => Ok(may_ask.await && app.directory.find(&key).await?.is_some()),
    }
}

/// Every name that the request gives for its organization; `None` is one that nobody can have.
fn keys(request: &Request, base_domain: &str) -> Result<Vec<Option<Key>>> {
    let mut keys = Vec::new();
    for name in ["x-organization-id", "x-tenant-id"] {
        for value in request.headers().get_all(name) {
            keys.push(id_or_slug(value.to_str().unwrap_or_default()));
        }
    }
    if let Some(host) = host_name(request) {
        keys.extend(host_key(&host, base_domain).map(Some));
    }
    // `/api/v1/organizations/{id}/…` and `/ws/dashboard/{id}` are about the organization in their path.
    let before = ["organizations", "dashboard"];
    let mut path = request.original_uri().path().split('/').skip_while(|part| !before.contains(part)).skip(1);
    if let Some(id) = path.next() {
        let id = id.parse().map_err(|_| Error::invalid("organization_id", "must be a UUID"))?;
        keys.push(Some(Key::Id(id)));
    }
    Ok(keys)
}

fn id_or_slug(text: &str) -> Option<Key> {
    let text = text.trim();
    match text.parse() {
        Ok(id) => Some(Key::Id(id)),
        Err(_) => text.to_lowercase().parse::<Slug>().ok().map(|slug| Key::Slug(slug.to_string())),
    }
}

fn host_key(host: &str, base_domain: &str) -> Option<Key> {
    if host == base_domain
        || host.is_empty()
        || host.parse::<std::net::IpAddr>().is_ok()
        || host.len() > 253
        || !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
    {
        return None;
    }
    match host.strip_suffix(base_domain).and_then(|rest| rest.strip_suffix('.')) {
        Some(slug) if RESERVED.contains(&slug) => None,
        Some(slug) => Some(Key::Slug(slug.to_owned())),
        None => Some(Key::Domain(host.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_name_organizations() {
        let key = |host| host_key(host, "example.com");
        assert_eq!(key("acme.example.com"), Some(Key::Slug("acme".into())));
        assert_eq!(key("a.b.example.com"), Some(Key::Slug("a.b".into())));
        assert_eq!(key("tasks.acme.test"), Some(Key::Domain("tasks.acme.test".into())));
        assert_eq!(key("notexample.com"), Some(Key::Domain("notexample.com".into())));
        for own in ["example.com", "www.example.com", "api.example.com", "127.0.0.1", "[::1]", ""] {
            assert_eq!(key(own), None, "{own}");
        }
    }

    #[test]
    fn reserved_names_are_sorted_and_unique() {
        assert!(RESERVED.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
