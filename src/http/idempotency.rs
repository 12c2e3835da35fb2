//! `Idempotency-Key` on POST: the same key and request gets the first answer again for 24 hours.
//!
//! The first request claims the key by inserting its row; of two at once, one wins and the other
//! waits for its answer. The claim is marked as carried out in the very commit that carries it out
//! ([`COMMIT_NOTE`]), so a crash before the answer is stored leads to a refusal, never to doing it
//! twice. Answers may hold tokens, so they are stored sealed.

use std::{sync::Arc, time::Duration};

use chrono::TimeDelta;
use poem::{
    Body, Endpoint, IntoResponse, Request, Response,
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
};
use ring::digest::{Context, SHA256};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{
    client_address,
    front::{RequestId, is_upload, shaped},
    host_name, payload,
};
use crate::{
    api::{self, Needs},
    app::App,
    auth::{Counting, Member, Permission, Superuser, User},
    db::COMMIT_NOTE,
    error::{Code, Error, Result},
};

const KEPT: TimeDelta = TimeDelta::hours(24);
/// How long a second request waits for the first one's answer.
const WAIT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Headers that belong to the answer itself; the rest is made anew each time.
const KEPT_HEADERS: [HeaderName; 3] = [header::CONTENT_TYPE, header::LOCATION, header::ETAG];

/// The endpoint around everything that can be posted to.
pub struct Idempotent<E> {
    pub inner: E,
    pub app: Arc<App>,
}

impl<E: Endpoint> Endpoint for Idempotent<E> {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        if request.method() != Method::POST || !request.headers().contains_key("idempotency-key") {
            return self.inner.call(request).await.map(IntoResponse::into_response);
        }
        let key = key(&request)?;
        let Some(caller) = caller(&request, &self.app).await? else {
            // Not let in, or nothing there: the handler says so, and nothing is stored.
            return self.inner.call(request).await.map(IntoResponse::into_response);
        };
        let is_upload = is_upload(&request);
        let hash = if is_upload {
            // What is not read before it is stored is known by its length.
            let length = request.headers().get(header::CONTENT_LENGTH).ok_or_else(|| {
                Error::invalid(
                    "Idempotency-Key",
                    "takes a Content-Length with an upload; send one, or leave the key out",
                )
            })?;
            fingerprint(&request, length.as_bytes())
        } else {
            let body = payload::read(request.take_body(), self.app.config.http.body_limit).await?;
            let hash = fingerprint(&request, &body);
            request.set_body(body);
            hash
        };
        match claim(&self.app, &caller, &key, &hash).await? {
            Claim::Answered(response) => Ok(response),
            Claim::Ours(id) => {
                let abandoned = Abandon { app: self.app.clone(), id: Some(id) };
                let request_id = request.data::<RequestId>().map_or_else(String::new, |id| id.0.clone());
                let response = match COMMIT_NOTE.scope(id, self.inner.call(request)).await {
                    Ok(output) => output.into_response(),
                    Err(error) => shaped(error, &request_id),
                };
                Ok(abandoned.settle(response, is_upload).await?)
            }
        }
    }
}

fn key(request: &Request) -> Result<String> {
    let wrong = || {
        Error::invalid("Idempotency-Key", "must be 1 to 255 visible ASCII characters; a UUID is a good one")
    };
    let key = request.headers().get("idempotency-key").and_then(|key| key.to_str().ok()).ok_or_else(wrong)?;
    let usable = (1..=255).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic());
    if usable { Ok(key.to_owned()) } else { Err(wrong()) }
}

/// Keys belong to whoever the operation's gate lets in now: what was answered once is not told again
/// to somebody who has been shut out since. Those of public operations belong to an address.
///
/// Errors: whether somebody is let in cannot be told now. Done without its key it might be done twice.
async fn caller(request: &Request, app: &App) -> Result<Option<String>> {
    let entered = match api::needs_of(request) {
        None => return Ok(None),
        Some(Needs::Nothing) => {
            let address = client_address(request, &app.config.http.trusted_proxies);
            Ok(format!("anonymous {}", address.map(|address| address.to_string()).unwrap_or_default()))
        }
        Some(Needs::User) => User::enter(request, Counting::No).await.map(|user| user.id.to_string()),
        Some(Needs::Superuser) => {
            Superuser::enter(request, Counting::No).await.map(|superuser| superuser.0.id.to_string())
        }
        Some(Needs::Permission(permission)) => {
            // The one POST that deleted organizations take is the one that restores them.
            let including_deleted = permission == Permission::OrganizationDelete;
            let member = Member::enter(request, Some(permission), including_deleted, Counting::No).await;
            member.map(|member| match member.key {
                Some(key) => format!("key {}", key.id),
                None => member.user_id.to_string(),
            })
        }
    };
    match entered {
        Ok(caller) => Ok(Some(caller)),
        Err(error) if error.code().status().is_server_error() => Err(error),
        Err(_) => Ok(None),
    }
}

/// What makes a request the same: where it goes, for whom, and what it says.
fn fingerprint(request: &Request, body: &[u8]) -> Vec<u8> {
    let mut context = Context::new(&SHA256);
    let header = |name: &str| request.header(name).unwrap_or_default().to_owned();
    let (path, host) = (request.original_uri().to_string(), host_name(request).unwrap_or_default());
    let parts = [path, host, header("x-organization-id"), header("x-tenant-id")];
    for part in parts {
        context.update(part.as_bytes());
        context.update(b"\0");
    }
    context.update(body);
    context.finish().as_ref().to_vec()
}

enum Claim {
    Ours(Uuid),
    Answered(Response),
}

async fn claim(app: &App, caller: &str, key: &str, hash: &[u8]) -> Result<Claim> {
    let started = tokio::time::Instant::now();
    loop {
        let now = app.clock.now();
        let id = Uuid::now_v7();
        let stuck = now - TimeDelta::seconds(2 * app.config.http.request_timeout_seconds as i64);
        let tx = app.db.begin().await?;
        // An old key is free again, and so is one whose process died before it changed anything.
        let claimed = tx
            .query_opt(
                "insert into platform.idempotency_keys as k (id, caller, key, request_hash, claimed_at) \
                 values ($1, $2, $3, $4, $5) on conflict (caller, key) do update \
                 set id = excluded.id, request_hash = excluded.request_hash, claimed_at = excluded.claimed_at, \
                     committed = false, status = null, headers = null, sealed_body = null \
                 where k.claimed_at < $6 or (k.status is null and not k.committed and k.claimed_at < $7) returning id",
                &[&id, &caller, &key, &hash, &now, &(now - KEPT), &stuck],
            )
            .await?;
        if claimed.is_some() {
            tx.commit().await?;
            return Ok(Claim::Ours(id));
        }
        let row = tx
            .query_opt(
                "select id, request_hash, committed, status, headers, sealed_body, claimed_at < $3 as stuck \
                 from platform.idempotency_keys where caller = $1 and key = $2",
                &[&caller, &key, &stuck],
            )
            .await?;
        drop(tx);
        let Some(row) = row else { continue };
        if row.try_get::<_, &[u8]>("request_hash")? != hash {
            return Err(Error::new(
                Code::IdempotencyConflict,
                "This Idempotency-Key was used for another request. Take a new key for a new request.",
            ));
        }
        if let Some(status) = row.try_get::<_, Option<i16>>("status")? {
            let id: Uuid = row.try_get("id")?;
            let body = app.sealer.open(&purpose(id), row.try_get("sealed_body")?)?;
            return Ok(Claim::Answered(replay(status, row.try_get("headers")?, body)));
        }
        if row.try_get("committed")? && row.try_get("stuck")? {
            return Err(Error::new(
                Code::IdempotencyConflict,
                "The first request with this key was carried out, but its answer was lost. Look the object up.",
            ));
        }
        if started.elapsed() > WAIT {
            return Err(Error::new(
                Code::IdempotencyConflict,
                "The first request with this key is still running. Ask again in a moment.",
            )
            .retry_after(2));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn purpose(id: Uuid) -> String {
    format!("idempotent answer {id}")
}

fn replay(status: i16, headers: Value, body: Vec<u8>) -> Response {
    let status = StatusCode::from_u16(status as u16).unwrap_or(StatusCode::OK);
    let mut response = Response::builder().status(status).body(body);
    for name in KEPT_HEADERS {
        if let Some(value) = headers.get(name.as_str()).and_then(|v| HeaderValue::from_str(v.as_str()?).ok())
        {
            response.headers_mut().insert(name, value);
        }
    }
    response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
    response
}

/// A claim whose request is running. If the request is dropped, its claim is given up, unless what
/// it asked for was done.
struct Abandon {
    app: Arc<App>,
    id: Option<Uuid>,
}

impl Abandon {
    async fn settle(mut self, response: Response, is_upload: bool) -> Result<Response> {
        let Some(id) = self.id else { return Ok(response) };
        // What time or somebody else mends must not be the answer for a day.
        let passing = [
            StatusCode::UNAUTHORIZED,
            StatusCode::PAYMENT_REQUIRED,
            StatusCode::LOCKED,
            StatusCode::TOO_MANY_REQUESTS,
        ];
        // Of an upload nothing but its success is certain: the same one is refused because it broke off.
        let final_answer = match is_upload {
            true => response.status().is_success(),
            false => !response.status().is_server_error() && !passing.contains(&response.status()),
        };
        let (mut parts, body) = response.into_parts();
        let bytes = body.into_bytes().await.map_err(Error::internal)?;
        if final_answer {
            store(&self.app, id, parts.status, &parts.headers, &bytes).await?;
            self.id = None;
        }
        parts.headers.remove(header::CONTENT_LENGTH);
        Ok(Response::from_parts(parts, Body::from_bytes(bytes)))
    }
}

async fn store(
    app: &App,
    id: Uuid,
    status: StatusCode,
    headers: &poem::http::HeaderMap,
    body: &[u8],
) -> Result<()> {
    let sealed = app.sealer.seal(&purpose(id), body)?;
    let kept: Map<String, Value> = KEPT_HEADERS
        .iter()
        .filter_map(|name| Some((name.to_string(), Value::from(headers.get(name)?.to_str().ok()?))))
        .collect();
    let tx = app.db.begin().await?;
    tx.execute(
        "update platform.idempotency_keys set status = $2, headers = $3, sealed_body = $4 where id = $1",
        &[&id, &(status.as_u16() as i16), &Value::Object(kept), &sealed],
    )
    .await?;
    tx.commit().await
}

impl Drop for Abandon {
    fn drop(&mut self) {
        let (Some(id), Ok(runtime)) = (self.id.take(), tokio::runtime::Handle::try_current()) else { return };
        let app = self.app.clone();
        runtime.spawn(async move {
            let given_up = async {
                let tx = app.db.begin().await?;
                tx.execute("delete from platform.idempotency_keys where id = $1 and not committed", &[&id])
                    .await?;
                tx.commit().await
            };
            if let Err(error) = given_up.await {
                tracing::warn!(%error, "an idempotency key stays claimed until its time is over");
            }
        });
    }
}
