//! What the platform has to tell of its own events.

use serde_json::Value;

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
        EventType::SubscriptionTrialEnding => {
            let date = text_of(event, "trial_ends_at").split('T').next().unwrap_or_default().to_owned();
            let then = match event.data["goes_on"] == true {
                true => "From then on it is paid for, as chosen at the checkout.",
                false => {
                    "Begin to pay to keep it; otherwise the plan is free after that, and nothing is lost."
                }
            };
            holders(NoticeKind::TrialEnding, Permission::BillingRead).map(|notice| {
                notice.with("plan", text_of(event, "plan")).with("date", &date).with("then", then)
            })
        }
        EventType::SubscriptionUpdated if event.changes["access"]["after"] == "read_only" => {
            holders(NoticeKind::ReadOnly, Permission::BillingRead)
        }
        EventType::InvoicePaymentFailed => holders(NoticeKind::PaymentFailed, Permission::BillingRead)
            .map(|notice| notice.with("amount", &money(&event.data["amount_due"]))),
        EventType::PaymentDisputed => {
            holders(NoticeKind::PaymentDisputed, Permission::BillingRead).map(|notice| {
                notice.with("amount", &money(&event.data["amount"])).with("because", text_of(event, "reason"))
            })
        }
        EventType::LimitApproached => limit(event, NoticeKind::LimitApproached),
        EventType::LimitReached => limit(event, NoticeKind::LimitReached),
        _ => None,
    };
    notice.into_iter().collect()
}

fn limit(event: &Event, kind: NoticeKind) -> Option<Notice> {
    let number = |field: &str| event.data[field].to_string();
    let resource = match text_of(event, "resource") {
        "api_calls" => "API calls of this month",
        "storage" => "bytes of storage",
        other => other,
    };
    let then = match text_of(event, "resource") {
        "api_calls" => "More are refused until the next month begins or the plan is a larger one.",
        _ => "More are refused until some are removed or the plan is a larger one.",
    };
    let notice = Notice::to_holders(kind, Permission::BillingRead)
        .with("then", then)
        .with("resource", resource)
        .with("used", &number("used"))
        .with("limit", &number("limit"))
        .with("plan", text_of(event, "plan"));
    Some(notice)
}

/// A sum as people write it.
fn money(value: &Value) -> String {
    let text = |field: &str| value[field].as_str().unwrap_or_default();
    format!("{} {}", text("currency"), text("amount"))
}
