//! The server: the endpoint with everything around it, and its life from first to last request.

use std::{future::Future, sync::Arc, time::Duration};

use poem::{
    Endpoint, EndpointExt, IntoResponse, Request, Response, Server, http::Method, listener::TcpAcceptor,
    middleware::Cors,
};

use super::{
    front::{Front, RequestId, shaped},
    idempotency::Idempotent,
};
use crate::{api, app::App};

/// Everything that answers requests.
pub fn endpoint(app: Arc<App>) -> impl Endpoint<Output = Response> + 'static {
    let routes = Idempotent { inner: api::routes(), app: app.clone() }.data(app.clone());
    // Inside CORS, so that a browser may read errors too.
    let shaped = Shaped(routes).with(cors(&app));
    Front { inner: shaped, app }
}

/// Turns errors into answers, and answers of any kind into responses.
struct Shaped<E>(E);

impl<E: Endpoint> Endpoint for Shaped<E> {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        let id = request.data::<RequestId>().map_or_else(String::new, |id| id.0.clone());
        Ok(match self.0.call(request).await {
            Ok(output) => output.into_response(),
            Err(error) => shaped(error, &id),
        })
    }
}

fn cors(app: &App) -> Cors {
    let config = &app.config.http;
    let (origins, base) = (config.cors_origins.clone(), config.base_domain.clone());
    Cors::new()
        .allow_credentials(false)
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .expose_headers(["x-request-id", "etag", "location", "retry-after", "idempotent-replayed"])
        .max_age(600)
        .allow_origins_fn(move |origin| origins.iter().any(|known| known == origin) || within(origin, &base))
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
