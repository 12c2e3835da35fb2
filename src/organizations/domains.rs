//! Hosts of an organization's own, which it proves to be its by a record in the DNS.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use hickory_resolver::proto::rr::RData;
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::Example,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::{
    api::Tag,
    app::App,
    audit::Changes,
    auth::{Can, keys::opaque_token, permissions::SettingsManage},
    billing::{Feature, plans},
    db::{Row, Select, TenantTx},
    error::{Error, OnConstraint, Result},
    events::{self, EventType},
    http::{Body, Created, IfMatch, Json, NoContent, Versioned},
    outbound,
    page::{ListCursor, Order, Page, Paging},
    tenancy,
    types::{EXAMPLE_ID, example, example_time, string_schema, text, text_serialize},
};

const MOST: i64 = 20;

/// The name of a host, in lower case and as the DNS has it (`xn--…` for other letters).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName(String);

impl FromStr for HostName {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let name = text.trim().trim_end_matches('.').to_ascii_lowercase();
        let label_ok = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let top = name.rsplit('.').next().unwrap_or_default();
        let ok = name.len() <= 253
            && name.contains('.')
            && name.split('.').all(label_ok)
            && !top.bytes().all(|b| b.is_ascii_digit());
        if ok { Ok(Self(name)) } else { Err("must be the name of a host such as tasks.example.com".into()) }
    }
}

impl AsRef<str> for HostName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

text!([] HostName, string_schema(Some("hostname"), None, 4, 253));
text_serialize!([] HostName);

/// A host of the organization's own.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct Domain {
    pub id: Uuid,
    pub domain: HostName,
    /// Since when it is proved and leads to the organization.
    pub verified_at: Option<DateTime<Utc>>,
    /// The TXT record that proves it, as long as it is not proved.
    pub record_name: String,
    pub record_value: String,
    pub created_at: DateTime<Utc>,
}

impl Versioned for Domain {
    /// A domain has two: claimed, and proved.
    fn version(&self) -> i64 {
        if self.verified_at.is_some() { 2 } else { 1 }
    }
}

impl Example for Domain {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            domain: example("tasks.example.com"),
            verified_at: None,
            record_name: "_rowhouse-challenge.tasks.example.com".into(),
            record_value: "rhd_c29tZXRoaW5nIHRoYXQgbm9ib2R5IGNhbiBndWVzcyE".into(),
            created_at: example_time(),
        }
    }
}

/// A host to be proved.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct NewDomain {
    pub domain: HostName,
}

impl Example for NewDomain {
    fn example() -> Self {
        Self { domain: example("tasks.example.com") }
    }
}

pub struct DomainsApi;

#[OpenApi(tag = "Tag::Organizations")]
impl DomainsApi {
    /// List custom domains.
    #[oai(path = "/organizations/:organization_id/domains", method = "get", operation_id = "list_domains")]
    async fn list(
        &self,
        who: Can<SettingsManage>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
        page: Query<Option<u32>>,
        page_size: Query<Option<u32>>,
        cursor: Query<Option<ListCursor>>,
    ) -> Result<Json<Page<Domain>>> {
        let paging = Paging::new(page.0, page_size.0, cursor.0)?;
        let organization = who.tenant.id();
        let tx = who.begin().await?;
        let page = Select::new(COLUMNS, "platform.organization_domains")
            .and("organization_id = ?", &organization)
            .page(&tx, &Order::up("domain", "text", "id"), &paging, from_row)
            .await?;
        Ok(Json(page))
    }

    /// Add a custom domain.
    ///
    /// It leads here once the TXT record in the answer is in the DNS and the domain is verified.
    #[oai(path = "/organizations/:organization_id/domains", method = "post", operation_id = "add_domain")]
    async fn add(
        &self,
        who: Can<SettingsManage>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
        new: Body<NewDomain>,
    ) -> Result<Created<Domain>> {
        let domain = new.0.domain;
        let base = &who.app.config.http.base_domain;
        if domain.as_ref() == base || domain.as_ref().ends_with(&format!(".{base}")) {
            return Err(Error::invalid("domain", format!("Names below {base} are the service's own.")));
        }
        plans::require(&who, Feature::CustomDomains).await?;
        let now = who.app.clock.now();
        let organization = who.tenant.id();
        let tx = who.begin().await?;
        super::lock(&tx, organization).await?;
        let row = tx
            .query_one(
                "select count(*) from platform.organization_domains where organization_id = $1",
                &[&organization],
            )
            .await?;
        if row.try_get::<_, i64>(0)? >= MOST {
            return Err(Error::conflict(format!("An organization can have {MOST} domains.")));
        }
        let (challenge, _) = opaque_token("rhd")?;
        let id = Uuid::now_v7();
        tx.execute(
            "insert into platform.organization_domains (id, organization_id, domain, challenge, created_at) \
             values ($1, $2, $3, $4, $5)",
            &[&id, &organization, &domain, &challenge, &now],
        )
        .await
        .on_constraint("organization_domains_own_key", || {
            Error::taken("domain", "This domain is added already.")
        })?;
        let added = find(&tx, id).await?;
        events::record(
            &tx,
            &who.app,
            &*who,
            EventType::DomainAdded,
            id,
            Changes::created(&json!({"domain": domain})),
        )
        .await?;
        tx.commit().await?;
        Ok(Created { location: format!("/api/v1/organizations/{organization}/domains/{id}"), value: added })
    }

    /// Verify a custom domain.
    ///
    /// Looks for the TXT record in the DNS.
    #[oai(
        path = "/organizations/:organization_id/domains/:domain_id/verify",
        method = "post",
        operation_id = "verify_domain"
    )]
    async fn verify(
        &self,
        who: Can<SettingsManage>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
        domain_id: Path<Uuid>,
    ) -> Result<Json<Domain>> {
        let app = &*who.app;
        let tx = who.begin().await?;
        let domain = find(&tx, domain_id.0).await?;
        // The DNS may take its time; no connection waits for it.
        drop(tx);
        if domain.verified_at.is_some() {
            return Ok(Json(domain));
        }
        plans::require(&who, Feature::CustomDomains).await?;
        let found = texts(app, &domain.record_name).await?;
        if !found.contains(&domain.record_value) {
            return Err(Error::conflict(format!(
                "The DNS has no TXT record {} with the value {}. New records can take an hour to be seen.",
                domain.record_name, domain.record_value
            ))
            .with_details(json!({"found": found})));
        }
        let tx = who.begin().await?;
        let verified = tx
            .execute(
                "update platform.organization_domains set verified_at = $3 \
             where id = $1 and organization_id = $2 and verified_at is null",
                &[&domain.id, &who.tenant.id(), &app.clock.now()],
            )
            .await
            .on_constraint("organization_domains_verified_key", || {
                Error::conflict("Another organization has proved this domain to be its own.")
            })?;
        let domain = find(&tx, domain.id).await?;
        if verified == 0 {
            // Another request was quicker.
            return Ok(Json(domain));
        }
        tenancy::changed(&tx, who.tenant.id()).await?;
        let changes = Changes::created(&json!({"domain": domain.domain}));
        events::record(&tx, app, &*who, EventType::DomainVerified, domain.id, changes).await?;
        tx.commit().await?;
        app.directory.forget(who.tenant.id());
        Ok(Json(domain))
    }

    /// Remove a custom domain.
    #[oai(
        path = "/organizations/:organization_id/domains/:domain_id",
        method = "delete",
        operation_id = "remove_domain"
    )]
    async fn remove(
        &self,
        who: Can<SettingsManage>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
        domain_id: Path<Uuid>,
        expected: IfMatch,
    ) -> Result<NoContent> {
        let tx = who.begin().await?;
        super::lock(&tx, who.tenant.id()).await?;
        let domain = find(&tx, domain_id.0).await?;
        expected.check(domain.version())?;
        tx.execute("delete from platform.organization_domains where id = $1", &[&domain.id]).await?;
        tenancy::changed(&tx, who.tenant.id()).await?;
        let changes = Changes::deleted(&json!({"domain": domain.domain}));
        events::record(&tx, &who.app, &*who, EventType::DomainRemoved, domain.id, changes).await?;
        tx.commit().await?;
        who.app.directory.forget(who.tenant.id());
        Ok(NoContent)
    }
}

/// Gives the domains of an organization that is being deleted back: others may prove them now, and it
/// proves them anew should it be restored.
pub(super) async fn release(tx: &TenantTx) -> Result<()> {
    let sql = "update platform.organization_domains set verified_at = null where organization_id = $1";
    tx.execute(sql, &[&tx.organization()]).await?;
    Ok(())
}

const COLUMNS: &str = "id, domain, verified_at, challenge, created_at";

fn from_row(row: &Row) -> Result<Domain> {
    let domain: HostName = row.try_get("domain")?;
    Ok(Domain {
        id: row.try_get("id")?,
        record_name: format!("_rowhouse-challenge.{domain}"),
        domain,
        verified_at: row.try_get("verified_at")?,
        record_value: row.try_get("challenge")?,
        created_at: row.try_get("created_at")?,
    })
}

async fn find(tx: &TenantTx, id: Uuid) -> Result<Domain> {
    let sql =
        format!("select {COLUMNS} from platform.organization_domains where id = $1 and organization_id = $2");
    let row = tx.query_opt(&sql, &[&id, &tx.organization()]).await?;
    from_row(&row.ok_or_else(|| Error::not_found("domain"))?)
}

/// The TXT records of a name; nothing is kept from one question to the next.
async fn texts(app: &App, name: &str) -> Result<Vec<String>> {
    let unreachable = |error: &dyn std::fmt::Display| {
        Error::unavailable("The DNS does not answer. Try again in a moment.", 10).caused_by(error.to_string())
    };
    let resolver = outbound::resolver(app.config.tenancy.dns_server).map_err(|error| unreachable(&error))?;
    match resolver.txt_lookup(format!("{name}.")).await {
        Ok(answer) => Ok(answer
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                RData::TXT(text) => Some(String::from_utf8_lossy(&text.txt_data.concat()).into_owned()),
                _ => None,
            })
            .collect()),
        Err(error) if error.is_no_records_found() || error.is_nx_domain() => Ok(Vec::new()),
        Err(error) => Err(unreachable(&error)),
    }
}
