//! Reading the event log, and the catalogue.

use std::collections::BTreeMap;

use poem_openapi::{Object, OpenApi, param::Query, types::Example};
use serde::Serialize;

use super::{Event, EventType};
use crate::{
    api::Tag,
    auth::{Can, Member, Permission, Public, permissions::OrganizationRead},
    db::Select,
    error::{Error, Result},
    http::Json,
    page::{Cursor, CursorPage, Stretch},
};

/// A type of event.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct EventTypeView {
    #[serde(rename = "type")]
    #[oai(rename = "type")]
    pub kind: EventType,
    pub display_name: String,
    pub description: String,
    pub schema_version: i32,
    /// What whoever sees such events must hold.
    pub permission: Permission,
    /// The body of a webhook.
    pub payload_example: Event,
}

impl From<EventType> for EventTypeView {
    fn from(kind: EventType) -> Self {
        Self {
            kind,
            display_name: kind.title().into(),
            description: kind.about().into(),
            schema_version: kind.schema_version(),
            permission: kind.permission(),
            payload_example: Event::of_type(kind),
        }
    }
}

impl Example for EventTypeView {
    fn example() -> Self {
        EventType::ProjectCreated.into()
    }
}

/// Every type of event.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct EventCatalogue {
    pub data: Vec<EventTypeView>,
}

impl Example for EventCatalogue {
    fn example() -> Self {
        Self { data: vec![EventTypeView::example()] }
    }
}

pub struct EventsApi;

#[OpenApi(tag = "Tag::Events")]
impl EventsApi {
    /// List the types of events, each with an example.
    #[oai(path = "/webhook-events", method = "get", operation_id = "list_webhook_events")]
    async fn catalogue(&self, _anybody: Public) -> Result<Json<EventCatalogue>> {
        Ok(Json(EventCatalogue { data: EventType::ALL.iter().map(|kind| (*kind).into()).collect() }))
    }

    /// List what happened in the organization, newest first.
    ///
    /// Shows the types of events that the caller may see. With `after` it lists what was told after that
    /// position, oldest first.
    #[oai(path = "/events", method = "get", operation_id = "list_events")]
    #[allow(clippy::too_many_arguments)]
    async fn list(
        &self,
        who: Can<OrganizationRead>,
        #[oai(name = "type")] kind: Query<Option<EventType>>,
        resource_id: Query<Option<uuid::Uuid>>,
        /// A position.
        after: Query<Option<i64>>,
        cursor: Query<Option<Cursor>>,
        limit: Query<Option<u32>>,
    ) -> Result<Json<CursorPage<Event>>> {
        let stretch = Stretch::new(cursor.0, limit.0)?;
        let seen = visible(&who);
        let names: Vec<&str> = seen.iter().map(|kind| kind.name()).collect();
        let tx = who.begin().await?;
        let select = Select::new(Event::COLUMNS, "events")
            .and("type = any (?)", &names)
            .and_if("type = ?", &kind.0)
            .and_if("resource_id = ?", &resource_id.0);
        let rows = match &after.0 {
            None => select.newest(&tx, &stretch).await?,
            Some(_) if stretch.below().is_some() => {
                return Err(Error::invalid("after", "is not combined with cursor; send the last position"));
            }
            Some(position) => {
                select.and("position > ?", position).first(&tx, "position", stretch.rows() - 1).await?
            }
        };
        let events = rows.iter().map(|row| Event::from_row(row, tx.organization())).collect::<Result<_>>()?;
        Ok(Json(match after.0 {
            None => stretch.answer(events, |event: &Event| event.id),
            Some(_) => CursorPage { data: events, next_cursor: None },
        }))
    }
}

/// The catalogue for people.
pub fn page() -> String {
    let types: Vec<BTreeMap<&str, String>> = EventType::ALL
        .iter()
        .map(|kind| {
            let view = EventTypeView::from(*kind);
            let example = serde_json::to_string_pretty(&view.payload_example).unwrap_or_default();
            BTreeMap::from([
                ("type", kind.to_string()),
                ("display_name", view.display_name),
                ("description", view.description),
                ("schema_version", view.schema_version.to_string()),
                ("permission", view.permission.to_string()),
                ("example", example),
            ])
        })
        .collect();
    let mut pages = minijinja::Environment::new();
    pages.set_auto_escape_callback(|_| minijinja::AutoEscape::Html);
    pages
        .render_str(include_str!("page.html"), minijinja::context! { types })
        .expect("the page has no parts that depend on a request")
}

/// The types of events that a member may see.
pub fn visible(who: &Member) -> Vec<EventType> {
    EventType::ALL.iter().copied().filter(|kind| who.may(kind.permission())).collect()
}
