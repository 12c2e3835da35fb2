//! What members are told of projects and tasks.

use crate::{
    events::{Event, EventType},
    notifications::{Notice, NoticeKind, added, ids, text_of},
};

pub fn notices(event: &Event) -> Vec<Notice> {
    let Some(kind) = event.known() else { return Vec::new() };
    let notice = match kind {
        EventType::TaskCreated | EventType::TaskUpdated => {
            task(event, NoticeKind::TaskAssigned, added(event, "assignee_ids"))
        }
        EventType::TaskCompleted => {
            let mut users = ids(&event.data["assignee_ids"]);
            users.extend(ids(&event.data["created_by"]));
            task(event, NoticeKind::TaskCompleted, users)
        }
        EventType::ProjectCreated | EventType::ProjectUpdated => {
            let mut users = added(event, "member_ids");
            users.extend(added(event, "owner_id"));
            let notice = Notice::to_users(NoticeKind::ProjectAdded, users);
            notice.map(|notice| {
                notice
                    .with("project", text_of(event, "name"))
                    .with("project_id", &event.resource_id.to_string())
            })
        }
        _ => None,
    };
    notice.into_iter().collect()
}

fn task(event: &Event, kind: NoticeKind, users: Vec<uuid::Uuid>) -> Option<Notice> {
    let notice = Notice::to_users(kind, users)?;
    Some(notice.with("task", text_of(event, "title")).with("task_id", &event.resource_id.to_string()))
}
