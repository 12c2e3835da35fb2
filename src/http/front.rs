//! The front: request id, log line, security headers, conditional reads and compression; inside
//! them time limit, panics and the one error shape. Everything else runs inside these.

use std::{
    io,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{FutureExt, Stream, stream::BoxStream};
use poem::{
    Body, Endpoint, IntoResponse, Request, Response,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    web::{Compress, CompressionAlgo},
};
use tokio::time::{Sleep, sleep};
use tracing::Instrument;
use uuid::Uuid;

use super::{etag, payload};
use crate::{
    app::App,
    error::{Code, Error},
    limits::Verdict,
};

/// Answers shorter than this are sent as they are.
const WORTH_COMPRESSING: usize = 1024;
/// An upload may take as long as it takes, but is waited for so long at most...
const SILENCE: Duration = Duration::from_secs(30);
/// ... for each so many bytes of it.
const LEAST: usize = 64 * 1024;
/// What a form adds to the file in it.
const FORM: u64 = 64 * 1024;
/// What comes after this in a path opens something, and is nobody's to read in a log.
const SECRET_BEHIND: &str = "/downloads/";

/// The id by which a request is found in the log.
#[derive(Clone)]
pub struct RequestId(pub String);

/// What rate limits said to a request; the gates write it, the front tells the caller.
#[derive(Clone, Debug, Default)]
pub struct Verdicts(Arc<Mutex<Vec<Verdict>>>);

impl Verdicts {
    pub fn add(&self, verdicts: Vec<Verdict>) {
        self.0.lock().expect("nothing panics with the lock held").extend(verdicts);
    }

    /// The headers of draft-ietf-httpapi-ratelimit-headers.
    fn tell(&self, headers: &mut HeaderMap) {
        let verdicts = self.0.lock().expect("nothing panics with the lock held");
        if verdicts.is_empty() {
            return;
        }
        let list = |entry: fn(&Verdict) -> String| verdicts.iter().map(entry).collect::<Vec<_>>().join(", ");
        for (name, value) in
            [("ratelimit-policy", list(Verdict::policy_entry)), ("ratelimit", list(Verdict::limit_entry))]
        {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
    }
}

/// The outermost endpoint.
pub struct Front<E>(pub E);

/// Refuses what is too large, ends what takes too long, catches panics, and answers every error in
/// the one shape.
pub struct Guarded<E> {
    pub inner: E,
    pub app: Arc<App>,
}

impl<E: Endpoint<Output = Response>> Endpoint for Front<E> {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        let started = Instant::now();
        let id = request_id(&request);
        request.extensions_mut().insert(RequestId(id.clone()));
        let verdicts = Verdicts::default();
        request.extensions_mut().insert(verdicts.clone());
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let wanted = Wanted::of(&request);
        let span = tracing::info_span!("request", request_id = %id, %method, path = loggable(&path));
        let work = self.0.call(request).instrument(span.clone());
        let mut response = work.await.unwrap_or_else(|error| shaped(error, &id));
        let headers = response.headers_mut();
        if let Ok(value) = HeaderValue::from_str(&id) {
            headers.insert("x-request-id", value);
        }
        verdicts.tell(headers);
        secure(headers, &path);
        let response = wanted.apply(response);
        span.in_scope(|| {
            tracing::info!(
                status = response.status().as_u16(),
                ms = started.elapsed().as_millis() as u64,
                "answered"
            )
        });
        Ok(response)
    }
}

impl<E: Endpoint> Endpoint for Guarded<E> {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        let id = request.data::<RequestId>().map_or_else(String::new, |id| id.0.clone());
        let config = &self.app.config.http;
        let uploads = is_upload(&request);
        let most = if uploads { self.app.config.files.max_bytes + FORM } else { config.body_limit as u64 };
        if let Err(error) = acceptable(request.headers(), most) {
            payload::discard(Box::pin(request.take_body().into_bytes_stream()), config.body_limit).await;
            return Ok(error.to_response(&id));
        }
        if uploads {
            return Ok(self.upload(request, &id).await);
        }
        let limit = Duration::from_secs(config.request_timeout_seconds);
        let work = AssertUnwindSafe(self.inner.call(request)).catch_unwind();
        Ok(match tokio::time::timeout(limit, work).await {
            Ok(Ok(Ok(response))) => response.into_response(),
            Ok(Ok(Err(error))) => shaped(error, &id),
            // The panic's own text and place are already on standard error.
            Ok(Err(_)) => shaped(Error::internal("a handler panicked").into(), &id),
            Err(_) => shaped(Error::unavailable("This took too long and was stopped.", 5).into(), &id),
        })
    }
}

impl<E: Endpoint> Guarded<E> {
    /// Lets a body through as it comes, for as long as it comes. A picture is no more than any other body, and
    /// has the time of one.
    async fn upload(&self, mut request: Request, id: &str) -> Response {
        let config = &self.app.config.http;
        let limit =
            (request.method() == Method::PUT).then(|| Duration::from_secs(config.request_timeout_seconds));
        let waits_for_word = request.headers().contains_key(header::EXPECT);
        let body = Incoming::new(request.take_body(), SILENCE);
        request.set_body(Body::from_bytes_stream(body.clone()));
        let work = async {
            // Given back before the rest of a body is read for nothing.
            let _place = self.app.files.uploads().begin().await?;
            self.inner.call(request).await
        };
        let work = AssertUnwindSafe(work).catch_unwind();
        let done = match limit {
            Some(limit) => tokio::time::timeout(limit, work).await,
            None => Ok(work.await),
        };
        let response = match done {
            Ok(Ok(Ok(response))) => response.into_response(),
            Ok(Ok(Err(error))) => shaped(error, id),
            Ok(Err(_)) => shaped(Error::internal("a handler panicked").into(), id),
            Err(_) => shaped(Error::unavailable("This took too long and was stopped.", 5).into(), id),
        };
        // Who waits to be told to go on has sent nothing yet, and will not.
        if !response.status().is_success() && (body.has_begun() || !waits_for_word) {
            payload::discard(body, config.body_limit).await;
        }
        response
    }
}

/// The body of an upload: it ends with an error where too little comes for a while. Clones read the same body.
#[derive(Clone)]
struct Incoming(Arc<Mutex<Flow>>);

struct Flow {
    bytes: BoxStream<'static, io::Result<Bytes>>,
    silence: Duration,
    /// Runs while the sender is waited for.
    patience: Pin<Box<Sleep>>,
    waits_since: Option<tokio::time::Instant>,
    /// How long the sender was waited for, and what came of it, since it was last enough.
    waited: Duration,
    came: usize,
    has_begun: bool,
}

impl Incoming {
    fn new(body: Body, silence: Duration) -> Self {
        let (bytes, patience) = (Box::pin(body.into_bytes_stream()), Box::pin(sleep(silence)));
        Self(Arc::new(Mutex::new(Flow {
            bytes,
            silence,
            patience,
            waits_since: None,
            waited: Duration::ZERO,
            came: 0,
            has_begun: false,
        })))
    }

    fn flow(&self) -> MutexGuard<'_, Flow> {
        self.0.lock().expect("nothing panics with the lock held")
    }

    fn has_begun(&self) -> bool {
        self.flow().has_begun
    }
}

impl Stream for Incoming {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut flow = self.flow();
        flow.has_begun = true;
        if let Poll::Ready(piece) = flow.bytes.as_mut().poll_next(context) {
            // Time in which nobody wanted to read is not the sender's.
            let waited = flow.waits_since.take().map_or(Duration::ZERO, |since| since.elapsed());
            flow.waited += waited;
            flow.came += piece.as_ref().and_then(|piece| piece.as_ref().ok()).map_or(0, Bytes::len);
            if flow.came >= LEAST {
                (flow.waited, flow.came) = (Duration::ZERO, 0);
            }
            return Poll::Ready(piece);
        }
        if flow.waits_since.is_none() {
            let now = tokio::time::Instant::now();
            flow.waits_since = Some(now);
            let until = now + flow.silence.saturating_sub(flow.waited);
            flow.patience.as_mut().reset(until);
        }
        let silence = flow.silence;
        flow.patience.as_mut().poll(context).map(|()| {
            let told = format!("less than {LEAST} bytes came in {} s", silence.as_secs());
            Some(Err(io::Error::new(io::ErrorKind::TimedOut, told)))
        })
    }
}

/// Whether a request brings a file, which nothing may hold in memory on its way.
pub(super) fn is_upload(request: &Request) -> bool {
    let path = request.original_uri().path();
    match *request.method() {
        Method::POST => path == "/api/v1/files",
        Method::PUT => path.starts_with("/api/v1/") && path.ends_with("/avatar"),
        _ => false,
    }
}

/// A path without what it opens.
fn loggable(path: &str) -> &str {
    path.find(SECRET_BEHIND).map_or(path, |at| &path[..at + SECRET_BEHIND.len()])
}

/// Any error in the one shape; what is our fault goes to the log with its cause.
pub fn shaped(error: poem::Error, id: &str) -> Response {
    let error = Error::from_poem(error);
    match error.code() {
        Code::Server => tracing::error!(%error, "request failed"),
        Code::Unavailable => tracing::warn!(%error, "request turned away"),
        code => tracing::debug!(%error, code = code.name(), "request refused"),
    }
    error.to_response(id)
}

fn request_id(request: &Request) -> String {
    let usable = |id: &&str| {
        (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    match request.header("x-request-id").filter(usable) {
        Some(id) => id.to_owned(),
        None => Uuid::now_v7().to_string(),
    }
}

fn acceptable(headers: &HeaderMap, most: u64) -> Result<(), Error> {
    if headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(Error::new(Code::UnsupportedMediaType, "Send the body without Content-Encoding."));
    }
    let length =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > most) {
        return Err(payload::too_large(most));
    }
    Ok(())
}

fn secure(headers: &mut HeaderMap, path: &str) {
    // The documentation page carries its script and style in itself.
    let policy = if path.starts_with("/docs") {
        "default-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
    } else if headers.contains_key(header::CONTENT_DISPOSITION) {
        // What somebody uploaded is nobody's page.
        "default-src 'none'; frame-ancestors 'none'; sandbox"
    } else {
        "default-src 'none'; frame-ancestors 'none'"
    };
    let fixed = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::STRICT_TRANSPORT_SECURITY, "max-age=31536000; includeSubDomains"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    if path.starts_with("/api/") && !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        let whose = HeaderValue::from_static("Authorization, X-API-Key, X-Organization-Id, X-Tenant-Id");
        headers.append(header::VARY, whose);
    }
}

/// What the caller said about the form of the answer.
struct Wanted {
    conditional: Option<String>,
    encoding: Option<CompressionAlgo>,
}

impl Wanted {
    fn of(request: &Request) -> Self {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        Self {
            conditional: request.header(header::IF_NONE_MATCH).filter(|_| reads).map(str::to_owned),
            encoding: request.header(header::ACCEPT_ENCODING).and_then(encoding),
        }
    }

    fn apply(self, mut response: Response) -> Response {
        let tag = response.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok());
        if let (Some(known), Some(tag)) = (self.conditional, tag)
            && response.status() == StatusCode::OK
            && etag::names(&known.replace("W/", ""), tag)
        {
            response.set_status(StatusCode::NOT_MODIFIED);
            response.headers_mut().remove(header::CONTENT_TYPE);
            response.headers_mut().remove(header::CONTENT_LENGTH);
            response.set_body(());
            return response;
        }
        if !compressible(&response) {
            return response;
        }
        response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        match self.encoding {
            Some(algorithm) => Compress::new(response, algorithm).into_response(),
            None => response,
        }
    }
}

/// The best encoding that both sides know; `q=0` forbids one.
fn encoding(accepted: &str) -> Option<CompressionAlgo> {
    let said_of = |wanted: &str| {
        accepted.split(',').find_map(|entry| {
            let mut parts = entry.split(';').map(str::trim);
            let named = parts.next().unwrap_or_default().eq_ignore_ascii_case(wanted);
            let refused = parts.any(|part| {
                part.strip_prefix("q=").and_then(|q| q.parse::<f32>().ok()).is_some_and(|q| q <= 0.0)
            });
            named.then_some(!refused)
        })
    };
    said_of("gzip").or_else(|| said_of("*")).unwrap_or(false).then_some(CompressionAlgo::GZIP)
}

fn compressible(response: &Response) -> bool {
    let kind = response.content_type().unwrap_or_default();
    let text = kind.starts_with("application/json")
        || kind.starts_with("text/html")
        || kind.starts_with("application/x-yaml")
        || kind.starts_with("application/yaml");
    // Unknown for the documentation pages, which are long.
    let length = response.header(header::CONTENT_LENGTH).and_then(|length| length.parse::<usize>().ok());
    // Files are sent as they are: their length and their parts are those of the file.
    text && response.header(header::CONTENT_DISPOSITION).is_none()
        && response.header(header::CONTENT_ENCODING).is_none()
        && length.is_none_or(|length| length >= WORTH_COMPRESSING)
}

#[cfg(test)]
mod tests {
    use poem::endpoint::make;

    use confique::Config as _;

    use super::*;
    use crate::{clock::Clock, config::Config};

    #[tokio::test]
    async fn a_panic_is_answered_in_the_one_shape_and_tells_nothing() {
        let given = "database.url = 'postgres://nobody@127.0.0.1:1/none'
            auth.secret_key = 'AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8='";
        let config = Config::builder().preloaded(toml::from_str(given).unwrap()).load().unwrap();
        let app = App::new(config, Clock::default()).unwrap();
        let panics = make(|_| async { panic!("the inside story") as poem::Result<Response> });
        let request = Request::builder().uri_str("/api/v1/anything").finish();
        let response = Front(Guarded { inner: panics, app }).call(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let id = response.header("x-request-id").unwrap().to_owned();
        let body = response.into_body().into_string().await.unwrap();
        let told: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (&told["error"]["code"], &told["error"]["request_id"]),
            (&"SERVER_ERROR".into(), &id.into())
        );
        assert!(!body.contains("inside story"));
    }

    #[test]
    fn what_opens_something_is_not_logged() {
        assert_eq!(loggable("/api/v1/downloads/4fQz"), "/api/v1/downloads/");
        assert_eq!(loggable("/api/v1/files"), "/api/v1/files");
    }

    #[tokio::test]
    async fn a_body_may_be_slow_but_not_silent() {
        use futures_util::StreamExt;
        let piece = |milliseconds| async move {
            sleep(Duration::from_millis(milliseconds)).await;
            io::Result::Ok(Bytes::from_static(b"x"))
        };
        let slow = futures_util::stream::iter([100, 150, 5_000]).then(piece);
        let mut body = Incoming::new(Body::from_bytes_stream(slow), Duration::from_millis(600));
        for _ in 0..2 {
            assert!(body.next().await.unwrap().is_ok());
            // Who reads slowly is not the sender's fault.
            sleep(Duration::from_millis(700)).await;
        }
        assert_eq!(body.next().await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        // Nor does it help to send a byte now and then.
        let trickle = futures_util::stream::iter([200; 20]).then(piece);
        let body = Incoming::new(Body::from_bytes_stream(trickle), Duration::from_millis(600));
        let came = body.take_while(|piece| std::future::ready(piece.is_ok())).count().await;
        assert!(came < 4, "{came}");
    }

    #[test]
    fn encodings_are_chosen_by_what_the_caller_allows() {
        assert!(
            encoding("gzip, br").is_some() && encoding("*").is_some() && encoding("gzip;q=0.5").is_some()
        );
        assert!(
            encoding("gzip;q=0, *").is_none()
                && encoding("identity").is_none()
                && encoding("gzip;q=0").is_none()
                && encoding("").is_none()
        );
    }
}
