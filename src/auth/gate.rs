//! The gates: parameters of handlers that let a request through or answer it.

use std::{marker::PhantomData, ops::Deref, sync::Arc};

use poem::{FromRequest, Request, RequestBody, http::header};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaSecurityScheme, Registry},
};
use uuid::Uuid;

use super::permissions::{Asks, Permission, PermissionSet, Role};
use crate::{
    api::{BEARER, PUBLIC},
    app::App,
    db::TenantTx,
    error::{Code, Error, Result},
    tenancy::{self, Tenant},
};

/// Somebody who is logged in, in no particular organization.
pub struct User {
    pub app: Arc<App>,
    pub id: Uuid,
    pub session: Uuid,
}

/// A member of the organization that the request names.
pub struct Member {
    pub app: Arc<App>,
    pub user_id: Uuid,
    pub role: Role,
    pub permissions: PermissionSet,
    pub tenant: Tenant,
}

impl Member {
    /// Opens a transaction in the organization's schema.
    pub async fn begin(&self) -> Result<TenantTx> {
        self.tenant.begin().await
    }

    pub fn may(&self, permission: Permission) -> bool {
        self.permissions.contains(permission)
    }
}

/// A member who holds the permission `P`.
///
/// With `INCLUDING_DELETED` the gate also opens for an organization that was deleted and can still
/// be restored.
pub struct Can<P, const INCLUDING_DELETED: bool = false>(Member, PhantomData<P>);

impl<P, const INCLUDING_DELETED: bool> Deref for Can<P, INCLUDING_DELETED> {
    type Target = Member;

    fn deref(&self) -> &Member {
        &self.0
    }
}

/// Anybody. Written out so that a handler without a gate is seen to be wrong.
pub struct Public {
    pub app: Arc<App>,
}

/// The application that serves this request.
fn app(request: &Request) -> Result<Arc<App>> {
    request.data::<Arc<App>>().cloned().ok_or_else(|| Error::internal("the service carries no App"))
}

/// The user and the session of the request's access token.
async fn authenticate(request: &Request, app: &App) -> Result<(Uuid, Uuid)> {
    let header = request.header(header::AUTHORIZATION);
    let token = header
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or_else(|| {
            Error::new(Code::AuthFailed, "Log in first: send `Authorization: Bearer <access token>`.")
        })?;
    let claims = app.keys.verify(token, app.clock.now()).await?;
    Ok((claims.sub, claims.sid))
}

fn logged_out() -> Error {
    Error::new(Code::AuthFailed, "The session has ended. Log in again.")
}

impl User {
    pub async fn enter(request: &Request) -> Result<Self> {
        let app = app(request)?;
        let (id, session) = authenticate(request, &app).await?;
        let tx = app.db.begin().await?;
        let live = tx
            .query_opt(
                "select 1 from platform.sessions s join platform.users u on u.id = s.user_id \
                 where s.id = $1 and s.user_id = $2 and s.revoked_at is null and u.is_active",
                &[&session, &id],
            )
            .await?;
        drop(tx);
        live.ok_or_else(logged_out)?;
        Ok(Self { app, id, session })
    }
}

impl Member {
    pub async fn enter(request: &Request, asked: Permission, including_deleted: bool) -> Result<Self> {
        let app = app(request)?;
        let (user_id, session) = authenticate(request, &app).await?;
        let tenant = tenancy::resolve(request, &app).await?;
        let tx = app.db.begin().await?;
        let row = tx
            .query_opt(
                "select m.role, m.grants, m.denials, m.is_active \
                 from platform.sessions s join platform.users u on u.id = s.user_id \
                 left join platform.organization_members m on m.user_id = u.id and m.organization_id = $3 \
                 where s.id = $1 and s.user_id = $2 and s.revoked_at is null and u.is_active",
                &[&session, &user_id, &tenant.id()],
            )
            .await?;
        drop(tx);
        let row = row.ok_or_else(logged_out)?;
        // To somebody outside it, an organization does not exist.
        let Some(role) = row.try_get::<_, Option<Role>>("role")? else {
            return Err(tenancy::unknown());
        };
        if tenant.is_deleted() && !including_deleted {
            return Err(tenancy::unknown());
        }
        if !row.try_get::<_, bool>("is_active")? {
            return Err(Error::denied("Your membership of this organization is deactivated."));
        }
        if tenant.is_suspended() {
            return Err(Error::new(
                Code::TenantSuspended,
                "This organization is suspended. Contact support.",
            ));
        }
        let permissions =
            PermissionSet::effective(role, &known(row.try_get("grants")?), &known(row.try_get("denials")?));
        if !permissions.contains(asked) {
            return Err(Error::denied(format!(
                "This needs the permission {asked}, which your role {role} does not have."
            )));
        }
        Ok(Self { app, user_id, role, permissions, tenant })
    }
}

/// Names that this version does not know (any more) give nothing.
fn known(names: Vec<String>) -> Vec<Permission> {
    names.iter().filter_map(|name| name.parse().ok()).collect()
}

fn register_bearer(registry: &mut Registry) {
    registry.create_security_scheme(
        BEARER,
        MetaSecurityScheme {
            ty: "http",
            description: Some("The access token from register, login or refresh."),
            name: None,
            key_in: None,
            scheme: Some("bearer"),
            bearer_format: Some("JWT"),
            flows: None,
            openid_connect_url: None,
        },
    );
}

impl<'a, P: Asks, const INCLUDING_DELETED: bool> ApiExtractor<'a> for Can<P, INCLUDING_DELETED> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        register_bearer(registry);
    }

    /// The permission travels as a second name; `api::document` turns it into `x-permission`.
    fn security_schemes() -> Vec<&'static str> {
        vec![BEARER, P::PERMISSION.name()]
    }

    async fn from_request(
        request: &'a Request,
        _body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        Ok(Self(Member::enter(request, P::PERMISSION, INCLUDING_DELETED).await?, PhantomData))
    }
}

impl<'a> ApiExtractor<'a> for User {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        register_bearer(registry);
    }

    fn security_schemes() -> Vec<&'static str> {
        vec![BEARER]
    }

    async fn from_request(
        request: &'a Request,
        _body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        Ok(Self::enter(request).await?)
    }
}

impl<'a> ApiExtractor<'a> for Public {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
    type ParamType = ();
    type ParamRawType = ();

    fn security_schemes() -> Vec<&'static str> {
        vec![PUBLIC]
    }

    async fn from_request(
        request: &'a Request,
        _body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        Ok(Self { app: app(request)? })
    }
}

/// Where a request comes from, for the records.
pub struct Origin {
    pub address: Option<String>,
    pub agent: Option<String>,
}

impl<'a> FromRequest<'a> for Origin {
    async fn from_request(request: &'a Request, _body: &mut RequestBody) -> poem::Result<Self> {
        let cut = |text: &str| text.chars().filter(|c| !c.is_control()).take(300).collect();
        Ok(Self {
            address: request.remote_addr().as_socket_addr().map(|address| address.ip().to_string()),
            agent: request.header(header::USER_AGENT).map(cut),
        })
    }
}
