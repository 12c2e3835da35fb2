//! What members are told of projects and tasks, and of what is said about them.

use uuid::Uuid;

use crate::{
    events::{Event, EventType},
    notifications::{Notice, NoticeKind, added, ids, text_of},
};

pub fn notices(event: &Event) -> Vec<Notice> {
    let Some(kind) = event.known() else { return Vec::new() };
    match kind {
        EventType::TaskCreated | EventType::TaskUpdated => {
            Vec::from_iter(task(event, NoticeKind::TaskAssigned, added(event, "assignee_ids")))
        }
        EventType::TaskCompleted => {
            let mut users = ids(&event.data["assignee_ids"]);
            users.extend(ids(&event.data["created_by"]));
            Vec::from_iter(task(event, NoticeKind::TaskCompleted, users))
        }
        EventType::ProjectCreated | EventType::ProjectUpdated => {
            let mut users = added(event, "member_ids");
            users.extend(added(event, "owner_id"));
            let notice = Notice::to_users(NoticeKind::ProjectAdded, users);
            let named = notice.map(|notice| {
                notice
                    .with("project", text_of(event, "name"))
                    .with("project_id", &event.resource_id.to_string())
            });
            Vec::from_iter(named)
        }
        EventType::CommentCreated => {
            said(event, NoticeKind::MentionedInComment, NoticeKind::TaskCommented, "concerned_ids")
        }
        EventType::CommentUpdated => mentioned(event, NoticeKind::MentionedInComment),
        EventType::MessageCreated => {
            said(event, NoticeKind::MentionedInMessage, NoticeKind::MessageReplied, "parent_author_id")
        }
        EventType::MessageUpdated => mentioned(event, NoticeKind::MentionedInMessage),
        _ => Vec::new(),
    }
}

fn task(event: &Event, kind: NoticeKind, users: Vec<Uuid>) -> Option<Notice> {
    let notice = Notice::to_users(kind, users)?;
    Some(notice.with("task", text_of(event, "title")).with("task_id", &event.resource_id.to_string()))
}

/// Those who are mentioned for the first time.
fn mentioned(event: &Event, kind: NoticeKind) -> Vec<Notice> {
    Vec::from_iter(about(event, kind, ids(&event.data["newly_mentioned_ids"])))
}

/// Those who are mentioned, and of those whom it concerns the others: nobody is told twice.
fn said(event: &Event, mention: NoticeKind, other: NoticeKind, concerned: &str) -> Vec<Notice> {
    let told = ids(&event.data["newly_mentioned_ids"]);
    let others = ids(&event.data[concerned]).into_iter().filter(|id| !told.contains(id)).collect();
    let mut notices = mentioned(event, mention);
    notices.extend(about(event, other, others));
    notices
}

/// The task that a comment is about, or the project that a message is in.
fn about(event: &Event, kind: NoticeKind, users: Vec<Uuid>) -> Option<Notice> {
    let notice = Notice::to_users(kind, users)?;
    Some(match event.data.get("task_title") {
        Some(_) => {
            notice.with("task", text_of(event, "task_title")).with("task_id", text_of(event, "task_id"))
        }
        None => notice
            .with("project", text_of(event, "project_name"))
            .with("project_id", text_of(event, "project_id")),
    })
}
