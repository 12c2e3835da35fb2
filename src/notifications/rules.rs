//! What the platform has to tell of its own events.

use super::notices::{Notice, NoticeKind, text_of};
use crate::{
    auth::Permission,
    events::{Event, EventType},
};

pub fn notices(event: &Event) -> Vec<Notice> {
    let holders = |kind, permission| Some(Notice::to_holders(kind, permission));
    let Some(kind) = event.known() else { return Vec::new() };
    let notice = match kind {
        EventType::MemberJoined => holders(NoticeKind::MemberJoined, Permission::MembersManage)
            .map(|notice| notice.with("email", text_of(event, "email")).with("role", text_of(event, "role"))),
        // Other changes of a member are for those who manage members.
        EventType::MemberUpdated if event.changes.get("role").is_some() => {
            Notice::to_users(NoticeKind::MemberUpdated, vec![event.resource_id])
                .map(|notice| notice.with("role", text_of(event, "role")))
        }
        EventType::WebhookDisabled => {
            let because = match text_of(event, "disabled_because") {
                "" => "its deliveries failed",
                because => because,
            };
            holders(NoticeKind::WebhookDisabled, Permission::WebhooksManage)
                .map(|notice| notice.with("webhook", text_of(event, "name")).with("because", because))
        }
        EventType::ApiKeyLeaked => {
            holders(NoticeKind::ApiKeyLeaked, Permission::ApiKeysManage).map(|notice| {
                notice
                    .with("source", event.changes["found_at"]["after"].as_str().unwrap_or("an unnamed place"))
            })
        }
        EventType::OrganizationPlanChanged => holders(NoticeKind::PlanChanged, Permission::BillingManage)
            .map(|notice| notice.with("plan", text_of(event, "plan"))),
        _ => None,
    };
    notice.into_iter().collect()
}
