//! What bodies look like: read with serde, so that an error names the field, and documented by
//! poem-openapi.

use std::{marker::PhantomData, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use poem::{
    Endpoint, IntoResponse, Request, RequestBody, Response,
    http::{HeaderValue, StatusCode, header},
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

use super::etag::etag;
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
    request.content_type().is_some_and(|named| {
        let media_type = named.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        media_type == "application/json"
            || (media_type.starts_with("application/") && media_type.ends_with("+json"))
    })
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
        if is_json(&request) {
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
            return Err(too_large(limit));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

pub(super) fn too_large(limit: usize) -> Error {
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
