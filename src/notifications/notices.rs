//! What there is to tell: kinds, who is meant, and the texts of `notices.toml`.

use std::{collections::HashMap, sync::LazyLock};

use anyhow::Context;
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use super::channels::ChannelKind;
use crate::{auth::Permission, events::Event, mail::one_line, types::text_enum};

text_enum! {
    /// What a notification is about.
    NoticeKind {
        /// A task was assigned to you.
        TaskAssigned = "task_assigned",
        /// A task that you made or are assigned to was done.
        TaskCompleted = "task_completed",
        /// You were added to a project, or own it now.
        ProjectAdded = "project_added",
        /// A comment on a task mentions you.
        MentionedInComment = "mentioned_in_comment",
        /// A message in a project mentions you.
        MentionedInMessage = "mentioned_in_message",
        /// Somebody commented on a task that you made or are assigned to.
        TaskCommented = "task_commented",
        /// Somebody replied in a thread that you began.
        MessageReplied = "message_replied",
        /// Somebody became a member.
        MemberJoined = "member_joined",
        /// Your role was changed.
        MemberUpdated = "member_updated",
        /// A webhook was switched off.
        WebhookDisabled = "webhook_disabled",
        /// An API key was found in public.
        ApiKeyLeaked = "api_key_leaked",
        /// The organization is on another plan.
        PlanChanged = "plan_changed",
        /// The trial of a plan ends soon.
        TrialEnding = "trial_ending",
        /// A payment failed.
        PaymentFailed = "payment_failed",
        /// Nothing can be changed any more, as a payment is owed.
        ReadOnly = "read_only",
        /// A payment is contested.
        PaymentDisputed = "payment_disputed",
        /// Most of what the plan allows of something is used.
        LimitApproached = "limit_approached",
        /// All of what the plan allows of something is used.
        LimitReached = "limit_reached",
        /// What happened in a week.
        WeeklyReport = "weekly_report",
    }
}

impl NoticeKind {
    /// What whoever is told must hold, also when it is sent later.
    pub fn permission(self) -> Permission {
        match self {
            Self::TaskAssigned | Self::TaskCompleted => Permission::TasksRead,
            Self::ProjectAdded => Permission::ProjectsRead,
            Self::MentionedInComment | Self::TaskCommented => Permission::CommentsRead,
            Self::MentionedInMessage | Self::MessageReplied => Permission::MessagesRead,
            Self::MemberJoined | Self::MemberUpdated => Permission::MembersRead,
            Self::WebhookDisabled => Permission::WebhooksManage,
            Self::ApiKeyLeaked => Permission::ApiKeysManage,
            Self::PlanChanged => Permission::OrganizationRead,
            Self::TrialEnding
            | Self::PaymentFailed
            | Self::PaymentDisputed
            | Self::ReadOnly
            | Self::LimitApproached
            | Self::LimitReached => Permission::BillingRead,
            Self::WeeklyReport => Permission::AnalyticsRead,
        }
    }
}

/// Who is told. Whoever did it is not, and neither is anybody who may not see it.
#[derive(Clone, Debug)]
pub enum Audience {
    Users(Vec<Uuid>),
    /// Every member who holds this permission.
    Holding(Permission),
}

/// Something to tell of an event.
#[derive(Clone, Debug)]
pub struct Notice {
    pub kind: NoticeKind,
    pub to: Audience,
    /// What its texts name, beside `actor` and `organization`.
    pub fields: HashMap<String, String>,
}

/// What is to be told of an event, and to whom. A rule only looks at the event.
pub type Rule = fn(&Event) -> Vec<Notice>;

impl Notice {
    /// For these users; nothing if there are none.
    pub fn to_users(kind: NoticeKind, users: Vec<Uuid>) -> Option<Self> {
        (!users.is_empty()).then(|| Self { kind, to: Audience::Users(users), fields: HashMap::new() })
    }

    pub fn to_holders(kind: NoticeKind, permission: Permission) -> Self {
        Self { kind, to: Audience::Holding(permission), fields: HashMap::new() }
    }

    /// Gives a field of the texts its value. Control characters have no place in a subject or an SMS.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.fields.insert(name.into(), one_line(value));
        self
    }
}

/// The text that stands in a field of an event's data.
pub fn text_of<'a>(event: &'a Event, field: &str) -> &'a str {
    event.data[field].as_str().unwrap_or_default()
}

/// The ids in a list of ids, or the one id.
pub fn ids(value: &Value) -> Vec<Uuid> {
    let one = std::slice::from_ref(value);
    let all = value.as_array().map_or(one, Vec::as_slice);
    all.iter().filter_map(|id| id.as_str()?.parse().ok()).collect()
}

/// The ids that a change put into a field and that were not there before.
pub fn added(event: &Event, field: &str) -> Vec<Uuid> {
    let change = &event.changes[field];
    let before = ids(&change["before"]);
    ids(&change["after"]).into_iter().filter(|id| !before.contains(id)).collect()
}

/// A notice as it is written down, its texts being templates.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Template {
    title: String,
    body: String,
    path: String,
    channels: Vec<ChannelKind>,
}

static TEMPLATES: LazyLock<HashMap<NoticeKind, Template>> =
    LazyLock::new(|| toml::from_str(include_str!("notices.toml")).expect("the tests read every notice"));

/// Whether a channel is on for a kind until a member says otherwise.
pub fn is_on_by_default(kind: NoticeKind, channel: ChannelKind) -> bool {
    channel == ChannelKind::InApp
        || TEMPLATES.get(&kind).is_some_and(|template| template.channels.contains(&channel))
}

/// What is told.
pub struct Written {
    pub title: String,
    pub body: String,
    pub path: String,
}

/// Puts the fields into the texts of a kind.
pub fn write(kind: NoticeKind, fields: &HashMap<String, String>) -> anyhow::Result<Written> {
    let template = TEMPLATES.get(&kind).with_context(|| format!("there is no text for {kind}"))?;
    let mut filler = Environment::new();
    filler.set_undefined_behavior(UndefinedBehavior::Strict);
    filler.set_auto_escape_callback(|_| AutoEscape::None);
    let fill = |template: &str| filler.render_str(template, fields);
    Ok(Written { title: fill(&template.title)?, body: fill(&template.body)?, path: fill(&template.path)? })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::events::EventType;

    #[test]
    fn every_notice_can_be_written() {
        // Whatever a notice may name.
        let names = [
            "actor",
            "organization",
            "task",
            "task_id",
            "project",
            "project_id",
            "email",
            "role",
            "webhook",
            "because",
            "source",
            "plan",
            "date",
            "then",
            "amount",
            "resource",
            "used",
            "limit",
            "summary",
        ];
        let fields = names.iter().map(|name| (name.to_string(), "{{ boom }}".to_owned())).collect();
        for kind in NoticeKind::ALL {
            let written = write(*kind, &fields).unwrap();
            assert!(!written.title.is_empty() && !written.body.is_empty(), "{kind}");
            assert!(written.path.starts_with('/'), "{kind}: {}", written.path);
        }
        let written = write(NoticeKind::TaskAssigned, &fields).unwrap();
        assert_eq!(written.title, "New task: {{ boom }}", "a value is no template");
    }

    #[test]
    fn a_field_that_is_missing_is_an_error() {
        assert!(write(NoticeKind::TaskAssigned, &HashMap::new()).is_err());
    }

    #[test]
    fn who_was_there_before_is_not_added() {
        let (old, new) = (Uuid::now_v7(), Uuid::now_v7());
        let mut event = Event::of_type(EventType::TaskUpdated);
        event.changes = json!({"assignee_ids": {"before": [old], "after": [old, new, "nobody", 7]}});
        assert_eq!(added(&event, "assignee_ids"), [new]);
        event.changes = json!({"owner_id": {"before": null, "after": new}});
        assert_eq!(added(&event, "owner_id"), [new]);
        assert!(added(&event, "assignee_ids").is_empty());
    }
}
