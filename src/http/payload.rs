//! What bodies look like: read with serde, so that an error names the field, and documented by
//! poem-openapi.

use std::{
    io,
    marker::PhantomData,
    ops::Range,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    Stream, StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use poem::{
    Endpoint, FromRequest, IntoResponse, Request, RequestBody, Response,
    http::{HeaderValue, StatusCode, header},
    web::Multipart,
};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ApiResponse, ExtractParamOptions,
    registry::{
        MetaHeader, MetaMediaType, MetaRequest, MetaResponse, MetaResponses, MetaSchema, MetaSchemaRef,
        Registry,
    },
    types::{ParseFromJSON, ToJSON, Type},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

use super::{etag::etag, front::is_upload};
use crate::{
    app::App,
    error::{Code, Error},
};

const JSON: &str = "application/json; charset=utf-8";

/// A JSON request body.
pub struct Body<T>(pub T);

impl<'a, T: DeserializeOwned + ParseFromJSON> ApiExtractor<'a> for Body<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        let content = vec![MetaMediaType { content_type: JSON, schema: T::schema_ref() }];
        Some(MetaRequest { description: None, content, required: true })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        if !is_json(request) {
            Err(Error::new(
                Code::UnsupportedMediaType,
                "Send the body with Content-Type: application/json.",
            ))?;
        }
        let app = request.data::<Arc<App>>().ok_or_else(|| Error::internal("the service carries no App"))?;
        let bytes = read(body.take()?, app.config.http.body_limit).await?;
        Ok(Self(parse(&bytes)?))
    }
}

fn is_json(request: &Request) -> bool {
    let named = media_type(request);
    named == "application/json" || (named.starts_with("application/") && named.ends_with("+json"))
}

/// What a request calls its body, without parameters.
fn media_type(request: &Request) -> String {
    let named = request.content_type().unwrap_or_default();
    named.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Reads a JSON body to its end before anything is decided: who may do what is then asked right
/// before it is done, however slowly the body came.
pub struct Buffered<E> {
    pub inner: E,
    pub app: Arc<App>,
}

impl<E: Endpoint> Endpoint for Buffered<E> {
    type Output = E::Output;

    async fn call(&self, mut request: Request) -> poem::Result<E::Output> {
        if is_json(&request) && !is_upload(&request) {
            let body = read(request.take_body(), self.app.config.http.body_limit).await?;
            request.set_body(body);
        }
        self.inner.call(request).await
    }
}

/// All bytes of a body that may have at most `limit`.
pub async fn read(body: poem::Body, limit: usize) -> Result<Vec<u8>, Error> {
    let mut stream = body.into_bytes_stream();
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|error| {
            Error::new(Code::Validation, "The body could not be read to its end.").caused_by(error)
        })?;
        if bytes.len() + piece.len() > limit {
            discard(stream, limit).await;
            return Err(too_large(limit as u64));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

pub fn too_large(limit: u64) -> Error {
    Error::new(Code::PayloadTooLarge, format!("The body may have at most {limit} bytes."))
}

/// Reads on without keeping anything, within bounds: a client that is still sending would not see
/// the answer if the connection were closed on it.
pub(super) async fn discard(mut stream: impl Stream<Item = std::io::Result<Bytes>> + Unpin, limit: usize) {
    let mut left = 16 * limit;
    let reading = async {
        while let Some(Ok(piece)) = stream.next().await {
            left = left.saturating_sub(piece.len());
            if left == 0 {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(5), reading).await;
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| Error::new(Code::Validation, format!("The body is not UTF-8: {error}.")))?;
    // serde would take a list for an object, field by field.
    if text.trim_start().starts_with('[') {
        return Err(Error::invalid("body", "expected an object, found a list"));
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        let told = without_position(&inner.to_string());
        if !inner.is_data() {
            return Error::new(Code::Validation, format!("The body is not JSON: {inner}."));
        }
        // serde names the object that misses or exceeds; callers look for the field.
        let quoted = told.split('`').nth(1).unwrap_or_default();
        let within = |field: &str| if path == "." { field.to_owned() } else { format!("{path}.{field}") };
        if told.starts_with("missing field") {
            Error::field(
                Code::Validation,
                within(quoted),
                "required",
                format!("The field {quoted} is required."),
            )
        } else if told.starts_with("unknown field") {
            let field = if path == "." || path.is_empty() { quoted.to_owned() } else { path };
            Error::field(Code::Validation, field, "unknown", format!("There is no field {quoted}."))
        } else {
            let field = if path == "." { "body".to_owned() } else { path };
            Error::invalid(field, told)
        }
    })?;
    reader.end().map_err(|error| Error::new(Code::Validation, format!("The body is not JSON: {error}.")))?;
    Ok(value)
}

fn without_position(message: &str) -> String {
    match message.rsplit_once(" at line ") {
        Some((told, _)) => told.to_owned(),
        None => message.to_owned(),
    }
}

/// What of a form is read ahead of the file in it, at most: the heads of its parts are kept in memory.
const READ_AHEAD: u64 = 4 * 1024 * 1024;
/// Pieces in which the file in a form is read.
const PIECE: usize = 64 * 1024;

/// A file on its way in, as it comes: the one part `file` of a form, or a whole body of any other type.
pub struct Upload {
    name: Option<String>,
    announced: Option<u64>,
    bytes: BoxStream<'static, Result<Bytes, Error>>,
}

impl Upload {
    /// What the sender calls the file, where it is in a form.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// How many bytes the file has at least, where the sender says how long the body is.
    pub fn announced(&self) -> Option<u64> {
        self.announced
    }

    /// The bytes. Where the form is not as it should be, the last item is an error.
    pub fn into_bytes(self) -> BoxStream<'static, Result<Bytes, Error>> {
        self.bytes
    }

    async fn of_form(request: &Request, body: poem::Body, length: Option<u64>) -> poem::Result<Self> {
        // What was handed to the reader of the form, and did not come out yet.
        let ahead = Arc::new(AtomicU64::new(0));
        let counted = {
            let ahead = ahead.clone();
            body.into_bytes_stream().map(move |piece| {
                let piece = piece?;
                let more = piece.len() as u64;
                match ahead.fetch_add(more, Ordering::Relaxed) + more > READ_AHEAD {
                    true => Err(io::Error::other("the head of a part does not end")),
                    false => Ok(piece),
                }
            })
        };
        let mut counted = RequestBody::new(poem::Body::from_bytes_stream(counted));
        let form = <Multipart as FromRequest>::from_request(request, &mut counted).await;
        let mut form = form.map_err(|_| unreadable_form())?;
        let part = form.next_field().await.map_err(broken)?.ok_or_else(no_file)?;
        if part.name() != Some("file") {
            Err(match part.name() {
                Some(other) => Error::field(
                    Code::Validation,
                    other,
                    "unknown",
                    format!("There is no part {other}. Send one part `file`."),
                ),
                None => no_file(),
            })?;
        }
        let name = part.file_name().map(str::to_owned);
        let reader: Pin<Box<dyn AsyncRead + Send>> = Box::pin(part.into_async_read());
        let state = (Some(ReaderStream::with_capacity(reader, PIECE)), form, ahead);
        let bytes = stream::try_unfold(state, |(mut reader, mut form, ahead)| async move {
            if let Some(open) = &mut reader
                && let Some(piece) = open.try_next().await.map_err(broken)?
            {
                let read = piece.len() as u64;
                let _ = ahead.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |before| {
                    Some(before.saturating_sub(read))
                });
                return Ok(Some((piece, (reader, form, ahead))));
            }
            // The form goes on once nobody holds the part any more.
            drop(reader);
            match form.next_field().await.map_err(broken)? {
                None => Ok(None),
                Some(_) => Err(Error::invalid("file", "must be the only part; send a request for each file")),
            }
        });
        // The heads and the ends of a form take some of its length.
        Ok(Self {
            name,
            announced: length.map(|length| length.saturating_sub(16 * 1024)),
            bytes: bytes.boxed(),
        })
    }
}

fn no_file() -> Error {
    Error::field(Code::Validation, "file", "required", "Send the file as the part `file`.")
}

fn unreadable_form() -> Error {
    Error::new(Code::UnsupportedMediaType, "Send a form as multipart/form-data, with its boundary.")
}

fn broken(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(Code::Validation, format!("The upload could not be read to its end: {error}."))
        .caused_by(error)
}

impl<'a> ApiExtractor<'a> for Upload {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn request_meta() -> Option<MetaRequest> {
        let form = MetaSchema {
            required: vec!["file"],
            properties: vec![("file", MetaSchemaRef::Inline(Box::new(bytes_schema())))],
            example: Some(serde_json::json!({"file": "(the bytes of the file)"})),
            ..MetaSchema::new("object")
        };
        let content = vec![
            MetaMediaType {
                content_type: "multipart/form-data",
                schema: MetaSchemaRef::Inline(Box::new(form)),
            },
            MetaMediaType { content_type: OCTETS, schema: MetaSchemaRef::Inline(Box::new(bytes_schema())) },
        ];
        let description =
            Some("A form with the one part `file`, or the bytes of the file as any other type.");
        Some(MetaRequest { description, content, required: true })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let (named, body) = (media_type(request), body.take()?);
        if named == "multipart/form-data" {
            return Self::of_form(request, body, length).await;
        }
        if named.starts_with("multipart/") {
            Err(unreadable_form())?;
        }
        if named == "application/x-www-form-urlencoded" {
            Err(Error::new(
                Code::UnsupportedMediaType,
                "Send the file as multipart/form-data, or as it is with its own Content-Type.",
            ))?;
        }
        let bytes = body.into_bytes_stream().map_err(broken).boxed();
        Ok(Self { name: None, announced: length, bytes })
    }
}

const OCTETS: &str = "application/octet-stream";

fn bytes_schema() -> MetaSchema {
    MetaSchema {
        format: Some("binary"),
        example: Some("(the bytes of the file)".into()),
        ..MetaSchema::new("string")
    }
}

/// What is told of a file on its way out.
pub struct Outgoing<'a> {
    pub name: &'a str,
    pub content_type: &'a str,
    /// Bytes of the whole.
    pub size: u64,
    /// With its quotes.
    pub etag: String,
    /// Whether a browser may show it: for pictures only.
    pub inline: bool,
}

/// Which part of a file is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    Bytes(Range<u64>),
    /// There is no such part.
    Nowhere,
}

impl Part {
    /// By the headers `Range` and `If-Range`. What is no range of bytes, or several, asks for the whole.
    pub fn of(range: Option<&str>, if_range: Option<&str>, size: u64, etag: &str) -> Self {
        if if_range.is_some_and(|tag| tag != etag) {
            return Self::Whole;
        }
        let Some(asked) = range.and_then(|range| range.trim().strip_prefix("bytes=")) else {
            return Self::Whole;
        };
        let Some((first, last)) = asked.trim().split_once('-') else { return Self::Whole };
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        if !digits(first) || !digits(last) || (first.is_empty() && last.is_empty()) {
            return Self::Whole;
        }
        // Numbers that are too large for the type are beyond every end.
        let number = |text: &str| text.parse().unwrap_or(u64::MAX);
        if first.is_empty() {
            let from_end = number(last).min(size);
            return if from_end == 0 { Self::Nowhere } else { Self::Bytes(size - from_end..size) };
        }
        let (from, last) = (number(first), if last.is_empty() { u64::MAX } else { number(last) });
        if last < from {
            Self::Whole
        } else if from >= size {
            Self::Nowhere
        } else {
            Self::Bytes(from..last.saturating_add(1).min(size))
        }
    }
}

/// 200 with a file, or 206 with a part of it. No browser runs what is in it.
pub struct Download(Response);

impl Download {
    pub fn new(
        told: &Outgoing<'_>,
        part: &Part,
        bytes: impl Stream<Item = Result<Bytes, Error>> + Send + 'static,
    ) -> Self {
        let (status, length) = match part {
            Part::Bytes(range) => (StatusCode::PARTIAL_CONTENT, range.end - range.start),
            _ => (StatusCode::OK, told.size),
        };
        let body = poem::Body::from_bytes_stream(bytes.map_err(io::Error::other));
        let mut response = Response::builder()
            .status(status)
            .header(header::CONTENT_TYPE, told.content_type)
            .header(header::CONTENT_LENGTH, length)
            .header(header::CONTENT_DISPOSITION, disposition(told.name, told.inline))
            .header(header::ACCEPT_RANGES, "bytes")
            .header(header::ETAG, &told.etag)
            .body(body);
        if let Part::Bytes(range) = part {
            let named = format!("bytes {}-{}/{}", range.start, range.end - 1, told.size);
            response = with_header(response, header::CONTENT_RANGE, &named);
        }
        Self(response)
    }

    /// 416: the file has no such part.
    pub fn nowhere(size: u64, request_id: &str) -> Self {
        let error = Error::new(
            Code::RangeNotSatisfiable,
            format!("The file has {size} bytes; ask for a part of those."),
        );
        let response = error.to_response(request_id);
        Self(with_header(response, header::CONTENT_RANGE, &format!("bytes */{size}")))
    }
}

/// How a browser is told to save a file, and under which name.
fn disposition(name: &str, inline: bool) -> String {
    let plain: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "._- ".contains(c) { c } else { '_' }).collect();
    let mut encoded = String::new();
    for byte in name.bytes() {
        match byte.is_ascii_alphanumeric() || b"._-".contains(&byte) {
            true => encoded.push(byte.into()),
            false => encoded += &format!("%{byte:02X}"),
        }
    }
    let how = if inline { "inline" } else { "attachment" };
    format!("{how}; filename=\"{plain}\"; filename*=UTF-8''{encoded}")
}

impl IntoResponse for Download {
    fn into_response(self) -> Response {
        self.0
    }
}

impl ApiResponse for Download {
    fn meta() -> MetaResponses {
        let headers = [
            ("Content-Disposition", "How to save it, and its name"),
            ("ETag", "Its digest, for If-None-Match and If-Range"),
        ];
        let mut whole = meta::<String>(200, "The file", &headers);
        let part =
            meta::<String>(206, "The part that was asked for", &[("Content-Range", "Which part it is")]);
        whole.responses.extend(part.responses);
        for response in &mut whole.responses {
            let content = &mut response.content[0];
            content.content_type = OCTETS;
            content.schema = MetaSchemaRef::Inline(Box::new(bytes_schema()));
        }
        whole
    }

    fn register(_registry: &mut Registry) {}
}

/// An object with a version, which is its `ETag`.
pub trait Versioned {
    fn version(&self) -> i64;
}

/// 200 with a JSON body.
pub struct Json<T>(pub T);

/// 200 with one object and its `ETag`.
pub struct Single<T>(pub T);

/// 201 with the new object, its `Location` and its `ETag`.
pub struct Created<T> {
    pub location: String,
    pub value: T,
}

/// 202: it will be done.
pub struct Accepted;

/// 202 with what will be done, and the `Location` where it tells how it stands.
pub struct Queued<T> {
    pub location: String,
    pub value: T,
}

/// 200 with a line of JSON for each object, sent as they are read.
pub struct JsonLines<T>(poem::Body, PhantomData<T>);

impl<T: Serialize + Send + 'static> JsonLines<T> {
    pub fn new(stretches: impl Stream<Item = Result<Vec<T>, Error>> + Send + 'static) -> Self {
        let lines = stretches.map(|stretch| {
            let mut bytes = Vec::new();
            for object in stretch.map_err(std::io::Error::other)? {
                serde_json::to_writer(&mut bytes, &object)?;
                bytes.push(b'\n');
            }
            std::io::Result::Ok(Bytes::from(bytes))
        });
        Self(poem::Body::from_bytes_stream(lines), PhantomData)
    }
}

/// 200 with server-sent events for as long as the stream goes on.
pub struct EventStream(poem::Body);

impl EventStream {
    pub fn new(events: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static) -> Self {
        Self(poem::Body::from_bytes_stream(events))
    }
}

impl IntoResponse for EventStream {
    fn into_response(self) -> Response {
        Response::builder()
            .header(header::CONTENT_TYPE, EVENT_STREAM)
            .header(header::CACHE_CONTROL, "no-store")
            // Proxies that collect an answer before they pass it on are told not to.
            .header("x-accel-buffering", "no")
            .body(self.0)
    }
}

impl ApiResponse for EventStream {
    fn meta() -> MetaResponses {
        let mut meta = meta::<String>(200, "Events, as they happen", &[]);
        let example = "id: 1042\ndata: {\"type\":\"project.created\",\"id\":\"1042\",\"payload\":{}}\n\n";
        let schema = MetaSchema { example: Some(example.into()), ..MetaSchema::new("string") };
        let content = &mut meta.responses[0].content[0];
        (content.content_type, content.schema) = (EVENT_STREAM, MetaSchemaRef::Inline(Box::new(schema)));
        meta
    }

    fn register(_registry: &mut Registry) {}
}

const EVENT_STREAM: &str = "text/event-stream";

/// 204.
pub struct NoContent;

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => written(status, body),
        Err(error) => Error::internal(error).into_response(),
    }
}

fn versioned(status: StatusCode, value: &(impl Serialize + Versioned)) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => {
            let tag = etag(value.version(), &body);
            with_header(written(status, body), header::ETAG, &tag)
        }
        Err(error) => Error::internal(error).into_response(),
    }
}

fn written(status: StatusCode, body: Vec<u8>) -> Response {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, JSON)
        .header(header::CONTENT_LENGTH, body.len())
        .body(body)
}

fn with_header(mut response: Response, name: header::HeaderName, value: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
    response
}

fn meta<T: Type>(status: u16, description: &'static str, headers: &[(&str, &str)]) -> MetaResponses {
    let headers = headers
        .iter()
        .map(|(name, about)| MetaHeader {
            name: (*name).to_owned(),
            description: Some((*about).to_owned()),
            required: true,
            deprecated: false,
            schema: String::schema_ref(),
        })
        .collect();
    MetaResponses {
        responses: vec![MetaResponse {
            description,
            status: Some(status),
            status_range: None,
            content: vec![MetaMediaType { content_type: JSON, schema: T::schema_ref() }],
            headers,
        }],
    }
}

const ETAG: (&str, &str) = ("ETag", "Version of the object, for If-Match and If-None-Match");

impl<T: Serialize + Send> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        json(StatusCode::OK, &self.0)
    }
}

impl<T: Serialize + ToJSON> ApiResponse for Json<T> {
    fn meta() -> MetaResponses {
        meta::<T>(200, "Done", &[])
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

impl<T: Serialize + Versioned + Send> IntoResponse for Single<T> {
    fn into_response(self) -> Response {
        versioned(StatusCode::OK, &self.0)
    }
}

impl<T: Serialize + Versioned + ToJSON> ApiResponse for Single<T> {
    fn meta() -> MetaResponses {
        meta::<T>(200, "The object", &[ETAG])
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

impl<T: Serialize + Versioned + Send> IntoResponse for Created<T> {
    fn into_response(self) -> Response {
        with_header(versioned(StatusCode::CREATED, &self.value), header::LOCATION, &self.location)
    }
}

impl<T: Serialize + Versioned + ToJSON> ApiResponse for Created<T> {
    fn meta() -> MetaResponses {
        meta::<T>(201, "Created", &[("Location", "Path of the new object"), ETAG])
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

impl<T: Serialize + Send> IntoResponse for Queued<T> {
    fn into_response(self) -> Response {
        with_header(json(StatusCode::ACCEPTED, &self.value), header::LOCATION, &self.location)
    }
}

impl<T: Serialize + ToJSON> ApiResponse for Queued<T> {
    fn meta() -> MetaResponses {
        meta::<T>(202, "It will be done", &[("Location", "Path where it tells how it stands")])
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

impl IntoResponse for Accepted {
    fn into_response(self) -> Response {
        StatusCode::ACCEPTED.into()
    }
}

impl ApiResponse for Accepted {
    fn meta() -> MetaResponses {
        without_body(202, "It will be done")
    }

    fn register(_registry: &mut Registry) {}
}

const JSON_LINES: &str = "application/x-ndjson";

impl<T: Send> IntoResponse for JsonLines<T> {
    fn into_response(self) -> Response {
        Response::builder().header(header::CONTENT_TYPE, JSON_LINES).body(self.0)
    }
}

impl<T: ToJSON> ApiResponse for JsonLines<T> {
    fn meta() -> MetaResponses {
        let mut meta = meta::<T>(200, "A line for each object", &[]);
        meta.responses[0].content[0].content_type = JSON_LINES;
        meta
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

fn without_body(status: u16, description: &'static str) -> MetaResponses {
    MetaResponses {
        responses: vec![MetaResponse {
            description,
            status: Some(status),
            status_range: None,
            content: Vec::new(),
            headers: Vec::new(),
        }],
    }
}

impl IntoResponse for NoContent {
    fn into_response(self) -> Response {
        StatusCode::NO_CONTENT.into()
    }
}

impl ApiResponse for NoContent {
    fn meta() -> MetaResponses {
        without_body(204, "Done")
    }

    fn register(_registry: &mut Registry) {}
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[allow(dead_code)]
        inner: Inner,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[allow(dead_code)]
        n: u32,
    }

    fn field(body: &str) -> serde_json::Value {
        let error = parse::<Outer>(body.as_bytes()).unwrap_err();
        let Ok(body) =
            futures_util::FutureExt::now_or_never(error.to_response("").into_body().into_string()).unwrap()
        else {
            panic!("the body is text")
        };
        serde_json::from_str::<serde_json::Value>(&body).unwrap()["error"]["fields"].clone()
    }

    #[test]
    fn parts_of_files_are_those_that_are_there() {
        let part = |range| Part::of(Some(range), None, 100, "\"x\"");
        assert_eq!(part("bytes=0-0"), Part::Bytes(0..1));
        assert_eq!(part("bytes=10-"), Part::Bytes(10..100));
        assert_eq!(part("bytes=-10"), Part::Bytes(90..100));
        assert_eq!(part("bytes=-1000"), Part::Bytes(0..100));
        assert_eq!(part("bytes=90-99999999999999999999"), Part::Bytes(90..100));
        for nowhere in ["bytes=100-", "bytes=100-200", "bytes=-0"] {
            assert_eq!(part(nowhere), Part::Nowhere, "{nowhere}");
        }
        for whole in ["bytes=5-1", "bytes=-", "bytes=a-b", "lines=1-2", "bytes=0-1,5-6", "bytes=+1-2", ""] {
            assert_eq!(part(whole), Part::Whole, "{whole}");
        }
        assert_eq!(Part::of(Some("bytes=0-0"), Some("\"y\""), 100, "\"x\""), Part::Whole);
        assert_eq!(Part::of(Some("bytes=0-0"), Some("\"x\""), 100, "\"x\""), Part::Bytes(0..1));
        assert_eq!(Part::of(None, None, 100, "\"x\""), Part::Whole);
    }

    #[test]
    fn a_name_does_not_break_out_of_its_header() {
        assert_eq!(
            disposition("a\"; x=ä\r\n.html", false),
            "attachment; filename=\"a__ x____.html\"; filename*=UTF-8''a%22%3B%20x%3D%C3%A4%0D%0A.html"
        );
    }

    #[test]
    fn an_error_names_the_field() {
        assert_eq!(field(r#"{"inner": {"n": "x"}}"#)[0]["field"], "inner.n");
        assert_eq!(field(r#"{"inner": {}}"#)[0]["field"], "inner.n");
        assert_eq!(field(r#"{"inner": {}}"#)[0]["code"], "required");
        assert_eq!(field(r#"{"inner": {"n": 1, "m": 2}}"#)[0]["field"], "inner.m");
        assert_eq!(field(r#"{"inner": {"n": 1, "m": 2}}"#)[0]["code"], "unknown");
        assert_eq!(field("[]")[0]["field"], "body");
        assert_eq!(field("{"), serde_json::json!([]));
    }
}
