//! The server: the endpoint with everything around it, and its life from first to last request.

use std::{future::Future, sync::Arc, time::Duration};

use poem::{
    Endpoint, EndpointExt, Request, Response, Server,
    http::{Method, header},
    listener::TcpAcceptor,
    middleware::Cors,
};

use super::{
    front::{Front, Guarded},
    idempotency::Idempotent,
    payload::Buffered,
};
use crate::{
    api,
    app::App,
    auth::Origin,
    error::{Error, Result},
    tenancy,
};

/// Everything that answers requests.
pub fn endpoint(app: Arc<App>) -> impl Endpoint<Output = Response> + 'static {
    let routes = Idempotent { inner: api::routes(), app: app.clone() }.data(app.clone());
    let guarded = Guarded { inner: Buffered { inner: routes, app: app.clone() }, app: app.clone() };
    // Outside the guard, so that a browser may read every error.
    Front(CrossOrigin { inner: guarded.with(cors()).map_to_response(), app })
}

/// Refuses calls from pages of other origins.
struct CrossOrigin<E> {
    inner: E,
    app: Arc<App>,
}

impl<E: Endpoint<Output = Response>> Endpoint for CrossOrigin<E> {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        if let Some(origin) = request.headers().get(header::ORIGIN) {
            let origin = origin.to_str().unwrap_or_default();
            if !self.may_call(origin, &request).await? {
                Err(Error::denied("This origin may not call the API; add it to http.cors_origins."))?;
            }
        }
        self.inner.call(request).await
    }
}

impl<E> CrossOrigin<E> {
    async fn may_call(&self, origin: &str, request: &Request) -> Result<bool> {
        let config = &self.app.config.http;
        if config.cors_origins.iter().any(|known| known == origin) || within(origin, &config.base_domain) {
            return Ok(true);
        }
        // A page of the very host that it calls: browsers say so with every write.
        let Some((_, authority)) = origin.split_once("://") else { return Ok(false) };
        if request.header(header::HOST).is_some_and(|host| host.eq_ignore_ascii_case(authority)) {
            return Ok(true);
        }
        // A page of an organization's own domain.
        let may_ask = async { Origin::of(request, &self.app).limit_stranger(&self.app).await.is_ok() };
        Ok(origin.starts_with("https://") && tenancy::is_domain(&self.app, authority, may_ask).await?)
    }
}

/// The headers of answers to pages; who may call is decided by [`CrossOrigin`].
fn cors() -> Cors {
    Cors::new()
        .allow_credentials(false)
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .expose_headers([
            "x-request-id",
            "etag",
            "location",
            "retry-after",
            "idempotent-replayed",
            "ratelimit",
            "ratelimit-policy",
            "content-disposition",
            "content-range",
            "accept-ranges",
        ])
        .max_age(600)
        .allow_origins_fn(|_| true)
}

/// Whether an origin is the base domain or one below it, on any port.
fn within(origin: &str, base: &str) -> bool {
    let Some((scheme, rest)) = origin.split_once("://") else { return false };
    let host = rest.rsplit_once(':').map_or(rest, |(host, _)| host);
    // Without TLS only on the machine itself: anybody on the way could be the origin.
    let scheme_ok = scheme == "https" || (scheme == "http" && base == "localhost");
    scheme_ok && (host == base || host.strip_suffix(base).is_some_and(|rest| rest.ends_with('.')))
}

/// Serves until `stop` is ready, then finishes what is under way, up to the configured time.
pub async fn serve(
    app: Arc<App>,
    listener: tokio::net::TcpListener,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let patience = Duration::from_secs(app.config.http.shutdown_seconds);
    let acceptor = TcpAcceptor::from_tokio(listener)?;
    let stop = {
        let app = app.clone();
        async move {
            stop.await;
            // Streams never end by themselves.
            app.request_stop();
        }
    };
    Server::new_with_acceptor(acceptor)
        .idle_timeout(Duration::from_secs(75))
        .run_with_graceful_shutdown(endpoint(app), stop, Some(patience))
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::within;

    #[test]
    fn origins_are_matched_by_whole_names() {
        assert!(within("https://acme.example.com", "example.com"));
        assert!(within("https://example.com:8443", "example.com"));
        assert!(within("http://acme.localhost:3000", "localhost"));
        for foreign in
            ["https://notexample.com", "https://example.com.evil.test", "http://acme.example.com", "null"]
        {
            assert!(!within(foreign, "example.com"), "{foreign}");
        }
    }
}
