//! Activity: the events of an organization, of a project or of a task as people read them.
//!
//! It is read from the event log, which goes back 90 days.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use poem_openapi::{Object, OpenApi, param::Query, types::Example};
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Event, EventType, api::visible};
use crate::{
    api::Tag,
    audit::ActorKind,
    auth::{Can, Member, permissions::OrganizationRead},
    db::{TenantTx, ToSql},
    error::Result,
    http::Json,
    notifications,
    page::{Cursor, CursorPage, Stretch},
    types::{EXAMPLE_ID, example_time},
};

/// Characters that are shown of a title.
const TITLE: usize = 120;
/// Longer values of a field are not shown.
const SMALL: usize = 100;

/// Something that happened, for people.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct Activity {
    /// That of the event.
    pub id: Uuid,
    /// One of `GET /webhook-events`.
    #[serde(rename = "type")]
    #[oai(rename = "type")]
    pub kind: String,
    pub timestamp: DateTime<Utc>,
    pub actor_kind: ActorKind,
    /// Null where it was nobody, or one of the platform's staff.
    pub actor_id: Option<Uuid>,
    /// Null where it was nobody, or somebody who is gone.
    pub actor_name: Option<String>,
    /// What it happened to.
    pub resource_id: Uuid,
    /// What that was called then, or how its text began; at most 120 characters.
    pub title: Option<String>,
    /// What happened, in one sentence.
    pub summary: String,
    /// What changed of something that was there before and after.
    pub changed: Vec<ActivityChange>,
}

/// A field that changed.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct ActivityChange {
    pub field: String,
    /// Null where it was empty, or is too long to be shown.
    pub before: Value,
    /// Null where it is empty, or is too long to be shown.
    pub after: Value,
}

impl Example for ActivityChange {
    fn example() -> Self {
        Self { field: "status".into(), before: json!("in_progress"), after: json!("done") }
    }
}

impl Example for Activity {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            kind: EventType::TaskCompleted.name().into(),
            timestamp: example_time(),
            actor_kind: ActorKind::User,
            actor_id: Some(EXAMPLE_ID),
            actor_name: Some("Ben Lim".into()),
            resource_id: EXAMPLE_ID,
            title: Some("Write the landing page".into()),
            summary: "Ben Lim completed the task ‘Write the landing page’.".into(),
            changed: vec![ActivityChange::example()],
        }
    }
}

pub struct ActivityApi;

#[OpenApi(tag = "Tag::Events")]
impl ActivityApi {
    /// List what happened in the organization for people, newest first.
    ///
    /// Shows the types of events that the caller may see, of the last 90 days.
    #[oai(path = "/activity", method = "get", operation_id = "list_activity")]
    async fn list(
        &self,
        who: Can<OrganizationRead>,
        #[oai(name = "type")] kind: Query<Option<EventType>>,
        /// What one member did.
        actor_id: Query<Option<Uuid>>,
        cursor: Query<Option<Cursor>>,
        limit: Query<Option<u32>>,
    ) -> Result<Json<CursorPage<Activity>>> {
        let stretch = Stretch::new(cursor.0, limit.0)?;
        let tx = who.begin().await?;
        let only = Only { kind: kind.0, actor: actor_id.0 };
        Ok(Json(list(&tx, &who, Place::Organization, &only, &stretch).await?))
    }
}

/// Where something happened.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    Organization,
    /// To the project or in it.
    Project(Uuid),
    /// To the task or in it.
    Task(Uuid),
}

/// What of it is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Only {
    pub kind: Option<EventType>,
    pub actor: Option<Uuid>,
}

/// The newest of what happened in a project that the member may see.
pub async fn latest(tx: &TenantTx, who: &Member, project: Uuid, many: i64) -> Result<Vec<Activity>> {
    let stretch = Stretch::first(u32::try_from(many).unwrap_or_default());
    Ok(list(tx, who, Place::Project(project), &Only::default(), &stretch).await?.data)
}

/// A stretch of what happened somewhere that the member may see.
pub async fn list(
    tx: &TenantTx,
    who: &Member,
    place: Place,
    only: &Only,
    stretch: &Stretch,
) -> Result<CursorPage<Activity>> {
    let seen: Vec<EventType> = visible(who);
    if only.kind.is_some_and(|kind| !seen.contains(&kind)) {
        return Ok(stretch.answer(Vec::new(), |activity: &Activity| activity.id));
    }
    let names: Vec<&str> = seen.iter().map(|kind| kind.name()).collect();
    let (below, rows) = (stretch.below().unwrap_or(Uuid::max()), stretch.rows());
    let mut values: Vec<&(dyn ToSql + Sync)> = vec![&below, &rows];
    // An index on the type is in the order of the list for one type only.
    let mut conditions = match &only.kind {
        Some(kind) => {
            values.push(kind);
            "type = $3".to_owned()
        }
        None => {
            values.push(&names);
            "type = any ($3)".to_owned()
        }
    };
    if let Some(actor) = &only.actor {
        values.push(actor);
        conditions += &format!(" and actor_id = ${}", values.len());
    }
    let part = |place: &str| {
        format!(
            "(select {} from events where {place} id < $1 and {conditions} order by id desc limit $2)",
            Event::COLUMNS
        )
    };
    let inside = match place {
        Place::Organization => None,
        Place::Project(id) => Some(("project_id", id)),
        Place::Task(id) => Some(("task_id", id)),
    };
    let text = inside.map(|(_, id)| id.to_string());
    let sql = match (&inside, &text) {
        (Some((field, id)), Some(text)) => {
            values.push(id);
            values.push(text);
            let (id, text) = (values.len() - 1, values.len());
            // Each part by an index of its own, which an `or` would not use.
            let (to, within) = (
                part(&format!("resource_id = ${id} and data ->> '{field}' is distinct from ${text} and")),
                part(&format!("data ->> '{field}' = ${text} and")),
            );
            format!(
                "select {} from ({to} union all {within}) as parts order by id desc limit $2",
                Event::COLUMNS
            )
        }
        _ => part(""),
    };
    let rows = tx.query(&sql, &values).await?;
    let events: Vec<Event> =
        rows.iter().map(|row| Event::from_row(row, tx.organization())).collect::<Result<_>>()?;
    let mut actors: Vec<Uuid> = events.iter().filter_map(|event| event.actor_id).collect();
    actors.sort();
    actors.dedup();
    let actors = match actors.is_empty() {
        true => HashMap::new(),
        false => notifications::names(tx, &actors).await?,
    };
    let told = events.into_iter().map(|event| tell(event, &actors)).collect();
    Ok(stretch.answer(told, |activity: &Activity| activity.id))
}

fn tell(event: Event, actors: &HashMap<Uuid, String>) -> Activity {
    // Which of the staff it was is not shown to members.
    let known = event.actor_id.filter(|_| event.actor_kind != ActorKind::Superuser);
    let actor_name = known.and_then(|id| actors.get(&id).cloned());
    let title = ["title", "name", "body", "email", "domain"]
        .iter()
        .find_map(|field| event.data.get(field)?.as_str())
        .map(|title| cut(title, TITLE));
    let summary = summary(&event, actor_name.as_deref(), title.as_deref());
    Activity {
        id: event.id,
        changed: changed(&event),
        kind: event.kind,
        timestamp: event.timestamp,
        actor_kind: event.actor_kind,
        actor_id: known,
        actor_name,
        resource_id: event.resource_id,
        title,
        summary,
    }
}

/// One sentence such as “Ben Lim completed the task ‘Write the landing page’.”
fn summary(event: &Event, name: Option<&str>, title: Option<&str>) -> String {
    let who = match (event.actor_kind, name) {
        (ActorKind::User, Some(name)) => name.to_owned(),
        (ActorKind::User, None) => "Somebody".into(),
        (ActorKind::ApiKey, Some(name)) => format!("A program of {name}"),
        (ActorKind::ApiKey, None) => "A program".into(),
        (ActorKind::Superuser, _) => "The platform's staff".into(),
        (ActorKind::System, _) => "The service".into(),
    };
    let about = title.map(|title| format!(" ‘{title}’")).unwrap_or_default();
    match event.kind.split_once('.') {
        // What somebody did to something.
        Some((thing, deed @ ("created" | "updated" | "deleted" | "completed" | "added" | "removed")))
            if thing != "member" =>
        {
            format!("{who} {deed} the {}{about}.", thing.replace('_', " "))
        }
        _ => {
            let kind = event.known().map_or(event.kind.as_str(), |kind| kind.title());
            format!("{kind}{about}, by {who}.")
        }
    }
}

/// What changed of something that was there before and after.
fn changed(event: &Event) -> Vec<ActivityChange> {
    let (Some(fields), false) =
        (event.changes.as_object(), event.kind.ends_with(".created") || event.kind.ends_with(".deleted"))
    else {
        return Vec::new();
    };
    let small = |value: Option<&Value>| match value {
        Some(value) if value.to_string().chars().count() <= SMALL => value.clone(),
        _ => Value::Null,
    };
    fields
        .iter()
        .map(|(field, change)| ActivityChange {
            field: field.clone(),
            before: small(change.get("before")),
            after: small(change.get("after")),
        })
        .collect()
}

/// At most so many characters of a text, in one line.
fn cut(text: &str, most: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(most - 1) {
        Some((at, _)) if line.chars().count() > most => format!("{}…", &line[..at]),
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_says_who_did_what() {
        let completed = Event::of_type(EventType::TaskCompleted);
        assert_eq!(
            summary(&completed, Some("Ben Lim"), Some("Write")),
            "Ben Lim completed the task ‘Write’."
        );
        let joined = Event::of_type(EventType::MemberJoined);
        assert_eq!(
            summary(&joined, None, Some("ben@example.com")),
            "Member joined ‘ben@example.com’, by Somebody."
        );
        assert_eq!(cut("a  b\nc", 120), "a b c");
        assert_eq!(cut("abcdef", 4), "abc…");
    }

    #[test]
    fn what_is_long_is_not_shown() {
        let changes = json!({"status": {"before": "todo", "after": "done"},
            "description": {"before": "x".repeat(500), "after": null}});
        let event = Event { changes, ..Event::of_type(EventType::TaskUpdated) };
        let changed = changed(&event);
        let of = |field: &str| changed.iter().find(|change| change.field == field).unwrap();
        assert_eq!(of("status").after, json!("done"));
        assert_eq!(of("description").before, Value::Null);
    }
}
