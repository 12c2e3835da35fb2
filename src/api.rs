//! The one route list, and the document that describes it.

use poem::{
    Endpoint, EndpointExt, IntoEndpoint, Request, Response, Route,
    endpoint::make_sync,
    get, handler,
    http::{Method, StatusCode, header},
    post,
    web::{Data, Html},
};
use poem_openapi::{OpenApi, OpenApiService, Tags};
use serde_json::{Map, Value, json};
use std::sync::{Arc, LazyLock};

use crate::{
    accounts, admin,
    app::App,
    audit,
    auth::Permission,
    billing,
    db::migrations,
    error::{Code, Error, Result},
    events, exchange, files, flags,
    http::Json,
    jobs, notifications, observability, operations, organizations, realtime, search,
    tenancy::fleet,
    usage, webhooks, work,
};

/// Name of the scheme for people.
pub const BEARER: &str = "bearer";
/// Name of the scheme for programs.
pub const API_KEY: &str = "api_key";
/// Marks an operation that needs no credentials; see `auth::Public`.
pub const PUBLIC: &str = "public";
/// Marks an operation for platform staff; see `auth::Superuser`.
pub const SUPERUSER: &str = "superuser";

/// Where the API lives.
const BASE: &str = "/api/v1";

/// The chapters of the document.
#[derive(Tags)]
pub enum Tag {
    /// Registering, logging in, tokens and one's own profile.
    Accounts,
    /// Organizations and their settings.
    Organizations,
    /// Who belongs to an organization, as what.
    Members,
    /// What a team works towards.
    Projects,
    /// What there is to do.
    Tasks,
    /// What is said about tasks.
    Comments,
    /// What is talked about in projects, and who has read it.
    Messages,
    /// What is on one's own plate, and where one is mentioned.
    #[oai(rename = "My work")]
    MyWork,
    /// Finding what was written down.
    Search,
    /// Imports and exports of what the organization has, as files.
    Exchange,
    /// What is uploaded, downloaded and linked.
    Files,
    /// Announcements, with the module `operations`.
    Updates,
    /// Programs that act for an organization.
    #[oai(rename = "API keys")]
    ApiKeys,
    /// Who did what.
    Audit,
    /// What happened, for those who poll, and what can happen.
    Events,
    /// Servers that are told of events.
    Webhooks,
    /// What happens, as it happens.
    Realtime,
    /// What one is told, and how.
    Notifications,
    /// What is on for whom.
    Features,
    /// Plans, subscriptions, invoices.
    Billing,
    /// How much is used, and how an organization is doing.
    Analytics,
    /// For the platform's staff.
    Admin,
}

/// Every API, by room; tuples end at sixteen.
fn service() -> OpenApiService<impl OpenApi, ()> {
    let apis = (
        (
            accounts::AuthApi,
            accounts::ProfileApi,
            accounts::AvatarApi,
            accounts::emails::EmailsApi,
            accounts::mfa::MfaApi,
            accounts::sessions::SessionsApi,
            accounts::security_events::SecurityEventsApi,
        ),
        (
            organizations::OrganizationsApi,
            organizations::settings::SettingsApi,
            organizations::members::MembersApi,
            organizations::ownership::OwnershipApi,
            organizations::invitations::InvitationsApi,
            organizations::domains::DomainsApi,
            organizations::modules::ModulesApi,
            organizations::logo::LogoApi,
            organizations::api_keys::ApiKeysApi,
        ),
        (
            audit::AuditApi,
            events::EventsApi,
            events::ActivityApi,
            webhooks::WebhooksApi,
            realtime::RealtimeApi,
            flags::FlagsApi,
            files::FilesApi,
            search::SearchApi,
            exchange::ExchangeApi,
        ),
        (
            notifications::NotificationsApi,
            notifications::NotificationSettingsApi,
            notifications::NotificationNumbersApi,
            notifications::PushApi,
        ),
        (billing::PlansApi, billing::SubscriptionsApi, usage::UsageApi, usage::AnalyticsApi),
        (
            admin::AdminUsersApi,
            admin::AdminOrganizationsApi,
            admin::AdminFleetApi,
            jobs::admin::AdminJobsApi,
            billing::AdminPlansApi,
            billing::AdminBillingApi,
        ),
        (
            work::projects::ProjectsApi,
            work::members::ProjectMembersApi,
            work::summary::SummaryApi,
            work::tasks::TasksApi,
            work::dependencies::DependenciesApi,
            work::board::BoardApi,
            work::bulk::BulkApi,
            work::activity::WorkActivityApi,
            work::attachments::AttachmentsApi,
            work::exchange::WorkExchangeApi,
            (
                work::comments::CommentsApi,
                work::messages::MessagesApi,
                work::reading::ReadingApi,
                work::mentions::MentionsApi,
                work::my_work::MyWorkApi,
            ),
        ),
        operations::updates::UpdatesApi,
    );
    OpenApiService::new(apis, "Rowhouse", env!("CARGO_PKG_VERSION")).server(BASE).description(
        "The backend that a company picks instead of building its own: many organizations in one service, each in \
         a Postgres schema of its own.\n\nName the organization by its subdomain or with `X-Organization-Id` (id or \
         slug); programs send an API key as `X-API-Key`, which names it too. Every error has one shape; `code` is for programs, `message` for people, `request_id` for support.\n\nWhat happens is told by webhooks and streams: [the types of events](/docs/events).",
    )
}

/// Everything that can be requested.
pub fn routes() -> impl Endpoint<Output = Response> + 'static {
    Route::new()
        .nest(BASE, Strict(service().into_endpoint()))
        .nest_no_strip("/ws", Strict(service().into_endpoint()))
        .at("/webhooks/stripe", post(billing::receive))
        .at("/health", get(health))
        .at("/ready", get(ready))
        .at(
            "/metrics",
            get(make_sync(|_| text_document("text/plain; version=0.0.4", observability::render()))),
        )
        .at("/.well-known/jwks.json", get(jwks))
        .at("/openapi.json", get(make_sync(|_| text_document("application/json", DOCUMENT.json.as_str()))))
        .at("/openapi.yaml", get(make_sync(|_| text_document("application/yaml", DOCUMENT.yaml.as_str()))))
        .at("/docs/events", get(make_sync(|_| Html(EVENTS_PAGE.as_str()))))
        .at("/docs", get(make_sync(|_| Html(DOCUMENT_PAGE.as_str()))))
        .map_to_response()
        .into_endpoint()
}

fn text_document(kind: &'static str, text: impl Into<poem::Body>) -> Response {
    Response::builder().header(header::CONTENT_TYPE, kind).body(text)
}

/// Around the API: refuses query parameters that the operation does not know (a typing error must
/// not read as "no filter"), and tells with a 405 which methods there are.
struct Strict<E>(E);

impl<E: Endpoint<Output = Response>> Endpoint for Strict<E> {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        let path = request.uri().path().to_owned();
        if let Some(query) = request.uri().query().filter(|query| !query.is_empty()) {
            check_query(request.method(), &path, query)?;
        }
        self.0.call(request).await.map_err(|error| match error.status() {
            StatusCode::METHOD_NOT_ALLOWED => Error::method_not_allowed(methods_of(&path)).into(),
            _ => error,
        })
    }
}

/// What requests are judged by, of each operation of the document.
struct Operation {
    /// In upper case.
    method: String,
    permission: Option<String>,
    /// The names of its query parameters.
    query: Vec<String>,
}

/// The operations of each path. The document itself is large, and made only when somebody asks for it.
static OPERATIONS: LazyLock<Vec<(String, Vec<Operation>)>> = LazyLock::new(|| {
    let value = document();
    let paths = value["paths"].as_object().into_iter().flatten();
    paths.map(|(template, methods)| (template.clone(), operations_in(methods))).collect()
});

fn operations_in(methods: &Value) -> Vec<Operation> {
    let query = |operation: &Value| {
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        let named = parameters.filter(|p| p["in"] == "query").filter_map(|p| p["name"].as_str());
        named.map(str::to_owned).collect()
    };
    let of = |(method, operation): (&String, &Value)| Operation {
        method: method.to_uppercase(),
        permission: operation["x-permission"].as_str().map(str::to_owned),
        query: query(operation),
    };
    methods.as_object().into_iter().flatten().map(of).collect()
}

/// The operations at a path.
fn operations_of(path: &str) -> Option<&'static [Operation]> {
    let fits = |template: &str| {
        let (mut given, mut wanted) = (path.split('/'), template.split('/'));
        loop {
            match (given.next(), wanted.next()) {
                (None, None) => return true,
                (Some(given), Some(wanted)) if wanted.starts_with('{') || given == wanted => {}
                _ => return false,
            }
        }
    };
    OPERATIONS.iter().find(|(template, _)| fits(template)).map(|(_, operations)| operations.as_slice())
}

/// The operation behind a method; what is asked for its head is what is got.
fn operation_of(path: &str, method: &Method) -> Option<&'static Operation> {
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    operations_of(path)?.iter().find(|operation| operation.method == method)
}

/// What an operation asks of its caller.
pub enum Needs {
    Nothing,
    User,
    Superuser,
    Permission(Permission),
}

/// What the document says that the operation behind a request needs; `None` where there is none.
pub fn needs_of(request: &Request) -> Option<Needs> {
    let path = request.original_uri().path().strip_prefix(BASE)?;
    let operation = operations_of(path)?.iter().find(|one| one.method == request.method().as_str())?;
    Some(match operation.permission.as_deref()? {
        "public" => Needs::Nothing,
        "authenticated" => Needs::User,
        SUPERUSER => Needs::Superuser,
        permission => Needs::Permission(permission.parse().ok()?),
    })
}

fn check_query(method: &Method, path: &str, query: &str) -> Result<()> {
    let Some(Operation { query: known, .. }) = operation_of(path, method) else { return Ok(()) };
    let mut seen = Vec::new();
    for name in query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split('=').next().unwrap_or_default())
    {
        if !known.iter().any(|known| known == name) {
            let told = match known.is_empty() {
                true => "This operation takes no query parameters.".to_owned(),
                false => format!("There is no parameter {name}; there are: {}.", known.join(", ")),
            };
            return Err(Error::field(Code::Validation, name, "unknown", told));
        }
        if seen.contains(&name) {
            return Err(Error::invalid(name, "is given twice"));
        }
        seen.push(name);
    }
    Ok(())
}

fn methods_of(path: &str) -> Option<String> {
    let mut methods: Vec<String> = operations_of(path)?.iter().map(|one| one.method.clone()).collect();
    if methods.iter().any(|method| method == "GET") {
        methods.push("HEAD".into());
    }
    methods.sort();
    Some(methods.join(", "))
}

/// The process is alive.
#[handler]
fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// The service can do its work: the database answers and is at this version's migrations.
#[handler]
async fn ready(Data(app): Data<&Arc<App>>) -> Result<Json<Value>> {
    let tx = app.db.begin().await?;
    let version = migrations::shared_version(&tx).await?;
    let wanted = migrations::shared_set().latest();
    if version < wanted {
        return Err(Error::unavailable(
            format!(
                "The platform schema is at {version}, this service needs {wanted}. Run `rowhouse migrate`."
            ),
            10,
        ));
    }
    // Tenants behind do not make the service unready: old and new schemas are served alike.
    let behind = fleet::behind(&tx).await?;
    Ok(Json(json!({"status": "ok", "platform_version": version, "tenant_modules_behind": behind})))
}

/// The public halves of the keys that sign access tokens.
#[handler]
fn jwks(Data(app): Data<&Arc<App>>) -> Response {
    Response::builder()
        .header(header::CONTENT_TYPE, "application/jwk-set+json")
        .header(header::CACHE_CONTROL, "public, max-age=300")
        .body(app.keys.jwks().to_string())
}

/// The API document in its two forms.
pub struct Document {
    pub value: Value,
    pub json: String,
    pub yaml: String,
}

fn document() -> Value {
    // The one name of poem-openapi's that is not a format of the standard.
    let spec = service().spec().replace("\"naive-date\"", "\"date\"");
    let mut value: Value = serde_json::from_str(&spec).expect("poem-openapi writes JSON");
    complete(&mut value);
    value
}

/// Made once: what `/openapi.json`, `/docs`, `rowhouse openapi` and the tests show.
pub static DOCUMENT: LazyLock<Document> = LazyLock::new(|| {
    let value = document();
    let json = serde_json::to_string_pretty(&value).expect("a value can be written") + "\n";
    let yaml = serde_yaml::to_string(&value).expect("a value can be written");
    Document { value, json, yaml }
});

/// The page of the documentation.
static DOCUMENT_PAGE: LazyLock<String> = LazyLock::new(document_page);

/// The page of the documentation that lists the types of events.
static EVENTS_PAGE: LazyLock<String> = LazyLock::new(events::page);

/// Adds what poem-openapi does not know: permissions, each operation's errors, and the headers that
/// the HTTP ground handles for every endpoint.
fn complete(document: &mut Value) {
    if let Some(schemas) = document["components"]["schemas"].as_object_mut() {
        schemas.values_mut().for_each(complete_schema);
    }
    let Some(paths) = document["paths"].as_object_mut() else { return };
    for (path, operations) in paths.iter_mut() {
        let Some(operations) = operations.as_object_mut() else { continue };
        for (method, operation) in operations.iter_mut() {
            complete_operation(path, method, operation);
        }
    }
}

/// Says of what may be absent that it may be null as well.
fn complete_schema(schema: &mut Value) {
    let required: Vec<Value> = schema["required"].as_array().cloned().unwrap_or_default();
    let Some(properties) = schema["properties"].as_object_mut() else { return };
    for (name, property) in properties {
        if !required.contains(&name.as_str().into()) {
            // Beside a `$ref` nothing else counts.
            if property.get("$ref").is_some() {
                *property = json!({"allOf": [property.clone()]});
            }
            property["nullable"] = true.into();
        }
    }
}

fn complete_operation(path: &str, method: &str, operation: &mut Value) {
    let marks: Vec<String> = operation["security"]
        .as_array()
        .map(|schemes| schemes.iter().filter_map(|s| Some(s.as_object()?.keys().next()?.clone())).collect())
        .unwrap_or_default();
    let permission = marks.iter().find_map(|mark| mark.parse::<Permission>().ok());
    let public = marks.iter().any(|mark| mark == PUBLIC);
    let marked = |mark: &str| marks.iter().any(|known| known == mark);
    let (needs, schemes) = match permission {
        Some(permission) if permission.is_scope() => {
            (permission.name(), json!([{ BEARER: [] }, { API_KEY: [] }]))
        }
        Some(permission) => (permission.name(), json!([{ BEARER: [] }])),
        None if public => (PUBLIC, json!([])),
        None if marked(SUPERUSER) => (SUPERUSER, json!([{ BEARER: [] }])),
        None if marked(API_KEY) => (API_KEY, json!([{ API_KEY: [] }])),
        None => ("authenticated", json!([{ BEARER: [] }])),
    };
    operation["security"] = schemes;
    operation["x-permission"] = needs.into();
    let about = operation["description"].as_str().unwrap_or_default();
    operation["description"] = format!("{about}\n\nPermission: `{needs}`").trim().into();

    let in_path = path.starts_with("/organizations/{") || path.contains("/dashboard/{");
    let mut parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
    let mut header = |name: &str, about: &str, example: &str| {
        let schema = json!({"type": "string"});
        parameters.push(json!({"name": name, "in": "header", "required": false, "description": about,
            "schema": schema, "example": example, "deprecated": false}));
    };
    if permission.is_some() && !in_path {
        header(
            "X-Organization-Id",
            "Id or slug of the organization, where its subdomain is not used",
            "acme",
        );
    }
    let one_object = path.ends_with('}')
        || ["/settings", "/plan", "/preferences", "/sms-number", "/avatar", "/logo", "/messages/read"]
            .iter()
            .any(|end| path.ends_with(end))
        || path == "/auth/user";
    let changes_one = one_object && matches!(method, "put" | "patch" | "delete");
    if changes_one {
        header("If-Match", "The ETag that the object must still have", "\"v1\"");
    }
    if method == "post" {
        header(
            "Idempotency-Key",
            "Repeating the request with the same key answers the first response again for 24 h",
            "0190b6a1-7c1e-7000-8000-0000000000aa",
        );
    }
    operation["parameters"] = parameters.into();

    let has_body = operation.get("requestBody").is_some();
    let mut codes = vec![Code::Validation, Code::RateLimit, Code::Server, Code::Unavailable];
    if !public {
        codes.extend([Code::AuthFailed, Code::TokenExpired]);
    } else if path.starts_with("/auth/") {
        codes.push(Code::AuthFailed);
    }
    if permission.is_some_and(Permission::is_scope) || needs == API_KEY {
        codes.push(Code::PlanLimit);
    }
    if permission.is_some() || needs == API_KEY {
        codes.extend([
            Code::MfaRequired,
            Code::TenantMismatch,
            Code::PermissionDenied,
            Code::TenantSuspended,
            Code::TenantNotFound,
        ]);
        if !in_path {
            codes.push(Code::TenantRequired);
        }
    }
    if permission.and_then(Permission::module).is_some() {
        codes.push(Code::ModuleNotEnabled);
    }
    if needs == SUPERUSER {
        codes.extend([Code::MfaRequired, Code::PermissionDenied]);
    }
    if path.contains('{') {
        codes.push(Code::NotFound);
    }
    // What a few operations answer beside what their form tells.
    codes.extend(match operation["operationId"].as_str().unwrap_or_default() {
        "login" | "login_mfa" => vec![Code::AccountLocked, Code::MfaRequired],
        "disable_mfa" | "renew_recovery_codes" => vec![Code::AccountLocked],
        "register" | "accept_invitation" => {
            vec![Code::PermissionDenied, Code::NotFound, Code::PaymentRequired]
        }
        "preview_invitation" => vec![Code::NotFound],
        "create_invitation" | "resend_invitation" => vec![Code::EmailNotVerified, Code::PlanLimit],
        "set_sms_number" | "upload_file" => vec![Code::PlanLimit],
        "download_file" => vec![Code::RangeNotSatisfiable],
        "download_by_link" => {
            vec![Code::RangeNotSatisfiable, Code::PermissionDenied, Code::TenantSuspended]
        }
        "download_thumbnail" => vec![Code::Conflict],
        _ => Vec::new(),
    });
    if has_body {
        codes.extend([Code::PayloadTooLarge, Code::UnsupportedMediaType]);
    }
    if method != "get" {
        codes.extend([Code::Conflict, Code::Integrity]);
        if permission.is_some() {
            codes.push(Code::PaymentRequired);
        }
    }
    if method == "post" {
        codes.push(Code::IdempotencyConflict);
    }
    if changes_one {
        codes.push(Code::PreconditionFailed);
    }
    let mut by_status: Map<String, Value> = Map::new();
    for code in Code::ALL.iter().filter(|code| codes.contains(code)) {
        let status = code.status().as_str().to_owned();
        let line = format!("`{}`: {}", code.name(), code.meaning());
        let known = by_status.entry(status).or_insert_with(|| {
            json!({"description": "", "content": {"application/json; charset=utf-8": {
                "schema": {"$ref": "#/components/schemas/Error"},
                "example": {"success": false, "error": {"code": code.name(), "message": code.meaning(),
                    "details": null, "fields": [], "request_id": "0190b6a1-7c1e-7000-8000-000000000000"}}}}})
        });
        let told = known["description"].as_str().unwrap_or_default();
        known["description"] = if told.is_empty() { line } else { format!("{told}\n\n{line}") }.into();
    }
    if let Some(responses) = operation["responses"].as_object_mut() {
        responses.extend(by_status);
    }
}

/// The page at `/docs`; it carries its script, its style and the completed document.
fn document_page() -> String {
    let page = service().swagger_ui_html();
    let marker = "let spec = ";
    let (Some(start), Some(end)) = (page.find(marker), page.find("let oauth2RedirectUrl;")) else {
        return page;
    };
    let start = start + marker.len();
    // A script ends at the first `</`, also inside a string.
    let document = DOCUMENT.json.replace("</", "<\\/");
    format!("{}{};\n    {}", &page[..start], document.trim_end(), &page[end..])
        .replace("<html charset=\"UTF-8\">", "<!doctype html>\n<html lang=\"en\">")
        .replace("<title>Swagger UI</title>", "<title>Rowhouse API</title>")
}
