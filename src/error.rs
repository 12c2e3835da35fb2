//! The one error type, and the one shape in which every error leaves the service.
//!
//! Handlers return [`Error`]; `http::front` turns it, and everything the framework itself raises,
//! into `{"success": false, "error": {code, message, details, fields, request_id}}`. What went
//! wrong inside is kept as the source: it goes to the log, never to the client.

use std::{collections::HashMap, fmt};

use poem::{
    IntoResponse, Response,
    error::ResponseError,
    http::{HeaderValue, StatusCode, header},
};
use poem_openapi::{
    ApiResponse, Object,
    registry::{MetaResponses, Registry},
    types::Type,
};
use serde::Serialize;
use serde_json::{Value, json};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Declares the codes of the API, each with its status and what it tells a reader of the document.
macro_rules! codes {
    ($($variant:ident = $status:literal $name:literal, $meaning:literal;)*) => {
        /// What went wrong, as programs read it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code { $($variant),* }

        impl Code {
            pub const ALL: &[Code] = &[$(Code::$variant),*];

            /// The text in the `code` member of an answer.
            pub fn name(self) -> &'static str {
                match self { $(Code::$variant => $name),* }
            }

            /// The HTTP status that goes with it.
            pub fn status(self) -> StatusCode {
                let status = match self { $(Code::$variant => $status),* };
                StatusCode::from_u16(status).expect("the table holds valid statuses")
            }

            /// One sentence for the API document.
            pub fn meaning(self) -> &'static str {
                match self { $(Code::$variant => $meaning),* }
            }
        }
    };
}

codes! {
    Validation = 400 "VALIDATION_ERROR", "The request is malformed; `fields` says where.";
    TenantMismatch = 400 "TENANT_MISMATCH", "Header, host and path name different organizations.";
    TenantRequired = 400 "TENANT_REQUIRED", "The request names no organization.";
    AuthFailed = 401 "AUTH_FAILED", "No credentials, or wrong ones.";
    MfaRequired = 401 "MFA_REQUIRED", "A second factor is needed; `details` says how to give or to set up one.";
    TokenExpired = 401 "TOKEN_EXPIRED", "The access token is past its time; refresh it.";
    PlanLimit = 402 "PLAN_LIMIT_REACHED", "The plan allows no more of this; `details` has limit, used, plan and upgrade path.";
    PaymentRequired = 402 "PAYMENT_REQUIRED", "A payment is owed or failed; `details` says where to make it.";
    PermissionDenied = 403 "PERMISSION_DENIED", "The caller may not do this.";
    TenantSuspended = 403 "TENANT_SUSPENDED", "The organization is suspended.";
    EmailNotVerified = 403 "EMAIL_NOT_VERIFIED", "The caller's address is not verified yet.";
    ModuleNotEnabled = 403 "MODULE_NOT_ENABLED", "The organization does not have the module; `details` says how to enable it.";
    NotFound = 404 "NOT_FOUND", "No such object, or not one of this organization.";
    TenantNotFound = 404 "TENANT_NOT_FOUND", "No such organization, or the caller is not in it.";
    MethodNotAllowed = 405 "METHOD_NOT_ALLOWED", "The path exists, the method does not.";
    Conflict = 409 "CONFLICT", "It collides with what is there.";
    Integrity = 409 "INTEGRITY_ERROR", "It would break a rule of the data.";
    IdempotencyConflict = 409 "IDEMPOTENCY_CONFLICT", "The Idempotency-Key was used for another request, or its first request is still running.";
    PreconditionFailed = 412 "PRECONDITION_FAILED", "The object has changed since `If-Match` was read.";
    PayloadTooLarge = 413 "PAYLOAD_TOO_LARGE", "The body is over the limit.";
    UnsupportedMediaType = 415 "UNSUPPORTED_MEDIA_TYPE", "The body is not `application/json`.";
    RangeNotSatisfiable = 416 "RANGE_NOT_SATISFIABLE", "The file has no such part; `Content-Range` says how long it is.";
    AccountLocked = 423 "ACCOUNT_LOCKED", "Too many failed attempts; see `Retry-After`.";
    RateLimit = 429 "RATE_LIMIT", "Too many requests; see `Retry-After`, `RateLimit` and `RateLimit-Policy`.";
    Server = 500 "SERVER_ERROR", "Our fault; the request id finds it in the log.";
    Unavailable = 503 "SERVICE_UNAVAILABLE", "A dependency is down or too busy; see `Retry-After`.";
}

/// One field of a request that is not as it should be.
#[derive(Clone, Debug, Serialize, Object)]
pub struct FieldError {
    /// Where, as a path into the body or the name of a parameter: `budget.amount`.
    pub field: String,
    /// `invalid`, `required`, `unknown`, `taken`.
    pub code: String,
    /// What would do.
    pub message: String,
}

/// An error on its way to the client. Boxed: results are moved far more often than errors are made.
#[derive(Debug)]
pub struct Error(Box<Story>);

#[derive(Debug)]
struct Story {
    code: Code,
    message: String,
    details: Option<Value>,
    fields: Vec<FieldError>,
    retry_after: Option<u32>,
    allow: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self(Box::new(Story {
            code,
            message: message.into(),
            details: None,
            fields: Vec::new(),
            retry_after: None,
            allow: None,
            source: None,
        }))
    }

    /// A 400 that points at one field.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::field(Code::Validation, field, "invalid", message)
    }

    /// A 409 that points at the field whose value somebody else has.
    pub fn taken(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::field(Code::Conflict, field, "taken", message)
    }

    /// An error about one field; its message is also the message of the whole.
    pub fn field(code: Code, field: impl Into<String>, reason: &str, message: impl Into<String>) -> Self {
        let message = message.into();
        let mut error = Self::new(code, message.clone());
        error.0.fields.push(FieldError { field: field.into(), code: reason.into(), message });
        error
    }

    pub fn not_found(what: &str) -> Self {
        Self::new(Code::NotFound, format!("There is no such {what} in this organization."))
    }

    /// A 405; `allow` lists the methods that the path takes, where it is known.
    pub fn method_not_allowed(allow: Option<String>) -> Self {
        let mut error = Self::new(
            Code::MethodNotAllowed,
            "This path does not take this method; /docs lists what it takes.",
        );
        error.0.allow = allow;
        error
    }

    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(Code::Conflict, message)
    }

    pub fn denied(message: impl Into<String>) -> Self {
        Self::new(Code::PermissionDenied, message)
    }

    /// Something that should not happen: the text is for the log, the client reads a fixed sentence.
    pub fn internal(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::new(Code::Server, "Something went wrong on our side. Quote the request id when you report it.")
            .caused_by(source)
    }

    /// A dependency does not answer; the client should come back after `seconds`.
    pub fn unavailable(message: impl Into<String>, seconds: u32) -> Self {
        let mut error = Self::new(Code::Unavailable, message);
        error.0.retry_after = Some(seconds);
        error
    }

    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    pub fn with_details(mut self, details: Value) -> Self {
        self.0.details = Some(details);
        self
    }

    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.0.retry_after = Some(seconds);
        self
    }

    /// The same error, pointing at a field of another name.
    pub fn in_field(mut self, field: &str) -> Self {
        self.0.fields.iter_mut().for_each(|error| error.field = field.into());
        self
    }

    /// The same error, about this field, also where it named none.
    pub fn about(mut self, field: &str) -> Self {
        let message = self.0.message.clone();
        self.0.fields = vec![FieldError { field: field.into(), code: "invalid".into(), message }];
        self
    }

    /// The same error, about a part of the request: `due_date` becomes `change.due_date`.
    pub fn below(mut self, part: &str) -> Self {
        self.0.fields.iter_mut().for_each(|error| error.field = format!("{part}.{}", error.field));
        self
    }

    pub fn code(&self) -> Code {
        self.0.code
    }

    /// What people are told.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The fields at fault.
    pub fn fields(&self) -> &[FieldError] {
        &self.0.fields
    }

    /// The database's code for what went wrong, where it was the database that said so.
    pub fn sql_state(&self) -> Option<&str> {
        Some(self.0.source.as_ref()?.downcast_ref::<tokio_postgres::Error>()?.code()?.code())
    }

    /// The inside story, for the log.
    pub fn cause(&self) -> Option<String> {
        self.0.source.as_ref().map(|source| {
            let mut text = source.to_string();
            let mut next = source.source();
            while let Some(deeper) = next {
                text = format!("{text}: {deeper}");
                next = deeper.source();
            }
            text
        })
    }

    /// The answer in the one shape.
    pub fn to_response(&self, request_id: &str) -> Response {
        let body = json!({
            "success": false,
            "error": {
                "code": self.0.code.name(),
                "message": self.0.message,
                "details": self.0.details,
                "fields": self.0.fields,
                "request_id": request_id,
            }
        })
        .to_string();
        let mut response = Response::builder()
            .status(self.0.code.status())
            .header(header::CONTENT_TYPE, "application/json; charset=utf-8")
            .header(header::CONTENT_LENGTH, body.len())
            .body(body);
        if let Some(seconds) = self.0.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(allow) = self.0.allow.as_deref().and_then(|allow| HeaderValue::from_str(allow).ok()) {
            response.headers_mut().insert(header::ALLOW, allow);
        }
        if self.0.code.status() == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }

    /// Whatever poem or poem-openapi raised, as one of ours.
    pub fn from_poem(error: poem::Error) -> Self {
        use poem_openapi::error::{ContentTypeError, ParseParamError, ParsePathError};

        if error.is::<Error>() {
            return error.downcast().expect("the type was just checked");
        }
        if let Some(bad) = error.downcast_ref::<ParseParamError>() {
            return Self::invalid(bad.name, plain_reason(&bad.reason));
        }
        if let Some(bad) = error.downcast_ref::<ParsePathError>() {
            // An id that is no id cannot name anything, but the caller should see the typing error.
            return Self::invalid("path", plain_reason(&bad.reason));
        }
        if error.is::<ContentTypeError>() {
            return Self::new(Code::UnsupportedMediaType, "Send the body as application/json.");
        }
        if error.is::<poem::error::CorsError>() {
            return Self::denied("This origin may not call the API; add it to http.cors_origins.");
        }
        match error.status() {
            StatusCode::NOT_FOUND => {
                Self::new(Code::NotFound, "There is nothing at this path; /docs lists what there is.")
            }
            StatusCode::METHOD_NOT_ALLOWED => Self::method_not_allowed(None),
            StatusCode::PAYLOAD_TOO_LARGE => Self::new(Code::PayloadTooLarge, "The body is over the limit."),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                Self::new(Code::UnsupportedMediaType, "Send the body as application/json.")
            }
            status if status.is_client_error() => Self::new(Code::Validation, error.to_string()),
            _ => Self::internal(error.to_string()),
        }
    }
}

/// poem-openapi says `failed to parse "string_uuid": …`; a caller only needs what follows.
fn plain_reason(reason: &str) -> String {
    let plain = match reason.strip_prefix("failed to parse \"").and_then(|rest| rest.split_once("\": ")) {
        Some((_, said)) => said,
        None => reason,
    };
    match plain.split_once(" (occurred while parsing") {
        Some((said, _)) => said.to_owned(),
        None => plain.to_owned(),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.code.name(), self.0.message)?;
        match self.cause() {
            Some(cause) => write!(f, " ({cause})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

impl ResponseError for Error {
    fn status(&self) -> StatusCode {
        self.0.code.status()
    }

    fn as_response(&self) -> Response
    where
        Self: Sized,
    {
        self.to_response("")
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        self.as_response()
    }
}

/// The document's post-processing lists each operation's own errors; here the shape is registered.
impl ApiResponse for Error {
    fn meta() -> MetaResponses {
        MetaResponses { responses: Vec::new() }
    }

    fn register(registry: &mut Registry) {
        ErrorAnswer::register(registry);
    }
}

/// The shape of every error.
#[derive(Object)]
#[oai(rename = "Error")]
struct ErrorAnswer {
    /// Always false.
    success: bool,
    error: ErrorBody,
}

/// What went wrong.
#[derive(Object)]
struct ErrorBody {
    /// For programs: `VALIDATION_ERROR`, `NOT_FOUND`, and so on.
    code: String,
    /// For people.
    message: String,
    /// More, where a code has more to say.
    details: Option<HashMap<String, Value>>,
    /// The fields at fault.
    fields: Vec<FieldError>,
    /// Also in the `X-Request-Id` header and in the service's log.
    request_id: String,
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        use tokio_postgres::error::SqlState;

        let Some(state) = error.code() else {
            // No SQLSTATE: the connection broke, or a value could not be turned into a column's type.
            return if error.is_closed() || error.to_string().starts_with("error communicating") {
                Self::unavailable("The database does not answer. Try again in a moment.", 2).caused_by(error)
            } else {
                Self::internal(error)
            };
        };
        match state.code() {
            "23503" | "23514" | "23502" | "23P01" => {
                Self::new(Code::Integrity, "This would break a rule of the data.").caused_by(error)
            }
            "23505" => Self::conflict("This already exists.").caused_by(error),
            _ if *state == SqlState::QUERY_CANCELED => {
                Self::unavailable("This took too long and was stopped. Ask for less, or try again later.", 5)
                    .caused_by(error)
            }
            // serialization failure, deadlock, lock timeout: the same request can succeed
            "40001" | "40P01" | "55P03" => {
                Self::unavailable("Somebody else was changing the same thing. Try again.", 1).caused_by(error)
            }
            "57P01" | "57P02" | "57P03" | "53300" | "53400" => {
                Self::unavailable("The database is restarting or full. Try again in a moment.", 2)
                    .caused_by(error)
            }
            "0A000" if error.to_string().contains("cached plan") => {
                Self::unavailable("The organization was just migrated. Try again.", 1).caused_by(error)
            }
            "22003" | "22008" => {
                Self::new(Code::Validation, "A number or date is out of range.").caused_by(error)
            }
            "22021" | "22P05" => {
                Self::new(Code::Validation, "Text may not hold the character U+0000.").caused_by(error)
            }
            _ => Self::internal(error),
        }
    }
}

/// What sealing, random bytes and the like may fail with: our fault, whatever it is.
impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Self {
        Self::internal(format!("{error:#}"))
    }
}

/// Names what a constraint of the database means to a caller.
pub trait OnConstraint<T> {
    /// Replaces the error by `meaning` where it is a violation of the constraint called `name`.
    fn on_constraint(self, name: &str, meaning: impl FnOnce() -> Error) -> Result<T>;
}

impl<T> OnConstraint<T> for Result<T> {
    fn on_constraint(self, name: &str, meaning: impl FnOnce() -> Error) -> Result<T> {
        self.map_err(|error| {
            let violated = error
                .0
                .source
                .as_ref()
                .and_then(|source| source.downcast_ref::<tokio_postgres::Error>())
                .and_then(|source| source.as_db_error())
                .and_then(|database| database.constraint());
            if violated == Some(name) { meaning() } else { error }
        })
    }
}
