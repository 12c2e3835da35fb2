//! The catalogue: every type of event, in one place.
//!
//! It is published at `GET /webhook-events` and on the page `/docs/events`. Each type names the
//! permission that whoever sees such events must hold, in lists, streams and subscriptions alike. The
//! tests compare each example with what is really sent.

use serde_json::{Value, json};

use crate::{auth::Permission, types::text_enum};

/// Makes the enum and what is known about each type.
macro_rules! catalogue {
    ($($(#[doc = $about:literal])+ $variant:ident = $text:literal, $title:literal, $permission:ident, $example:expr;)+) => {
        text_enum! {
            /// What can happen in an organization.
            EventType { $($(#[doc = $about])+ $variant = $text),+ }
        }

        impl EventType {
            /// What people call it.
            pub fn title(self) -> &'static str {
                match self { $(Self::$variant => $title),+ }
            }

            /// What it means.
            pub fn about(self) -> &'static str {
                match self { $(Self::$variant => concat!($($about),+).trim_ascii()),+ }
            }

            /// What whoever sees such events must hold.
            pub fn permission(self) -> Permission {
                match self { $(Self::$variant => Permission::$permission),+ }
            }

            /// What `data` looks like.
            pub fn example(self) -> Value {
                match self { $(Self::$variant => $example),+ }
            }
        }
    };
}

catalogue! {
    /// An organization was made.
    OrganizationCreated = "organization.created", "Organization created", OrganizationRead, organization();
    /// Name, slug or logo of the organization changed.
    OrganizationUpdated = "organization.updated", "Organization updated", OrganizationRead, organization();
    /// The organization was deleted; it can be restored for 30 days.
    OrganizationDeleted = "organization.deleted", "Organization deleted", OrganizationRead, organization();
    /// The deleted organization was restored.
    OrganizationRestored = "organization.restored", "Organization restored", OrganizationRead, organization();
    /// The organization has another owner.
    OrganizationTransferred = "organization.transferred", "Organization handed over", OrganizationRead,
        json!({"owner": ID});
    /// The platform's staff suspended the organization.
    OrganizationSuspended = "organization.suspended", "Organization suspended", OrganizationRead,
        json!({"plan": "starter", "status": "suspended"});
    /// The platform's staff let the organization in again.
    OrganizationResumed = "organization.resumed", "Organization resumed", OrganizationRead,
        json!({"plan": "starter", "status": "active"});
    /// The organization is on another plan.
    OrganizationPlanChanged = "organization.plan_changed", "Plan changed", OrganizationRead,
        json!({"plan": "professional", "status": "active"});
    /// The subscription is in another state, on another plan, or ends at another time.
    SubscriptionUpdated = "subscription.updated", "Subscription updated", BillingRead,
        json!({"state": "active", "plan": "starter", "access": "full", "price": {"amount": "49.00", "currency": "SGD"},
            "period_start": TIME, "period_end": TIME, "trial_started_at": null, "trial_ends_at": null,
            "cancel_at_period_end": false, "past_due_since": null, "read_only_from": null});
    /// The trial ends in three days.
    SubscriptionTrialEnding = "subscription.trial_ending", "Trial ending", BillingRead,
        json!({"plan": "starter", "trial_ends_at": TIME, "goes_on": false});
    /// An invoice is to be paid.
    InvoiceFinalized = "invoice.finalized", "Invoice finalized", BillingRead, invoice("open", 0);
    /// An invoice was paid.
    InvoicePaid = "invoice.paid", "Invoice paid", BillingRead, invoice("paid", 1);
    /// The payment of an invoice failed.
    InvoicePaymentFailed = "invoice.payment_failed", "Payment failed", BillingRead, invoice("open", 1);
    /// Money that was paid went back.
    PaymentRefunded = "payment.refunded", "Payment refunded", BillingRead,
        json!({"id": "ch_1", "charge_id": "ch_1", "amount": {"amount": "49.00", "currency": "SGD"}, "reason": null,
            "status": "full"});
    /// A payment is contested, or its dispute came further.
    PaymentDisputed = "payment.disputed", "Payment disputed", BillingRead,
        json!({"id": "du_1", "charge_id": "ch_1", "amount": {"amount": "49.00", "currency": "SGD"},
            "reason": "fraudulent", "status": "needs_response"});
    /// Four fifths of something that the plan limits are used; told once a month.
    LimitApproached = "limit.approached", "Limit approached", BillingRead,
        json!({"resource": "users", "used": 8, "limit": 10, "plan": "starter", "percent": 80});
    /// All of something that the plan limits is used; told once a month.
    LimitReached = "limit.reached", "Limit reached", BillingRead,
        json!({"resource": "users", "used": 10, "limit": 10, "plan": "starter", "percent": 100});
    /// The settings of the organization changed.
    SettingsUpdated = "settings.updated", "Settings updated", OrganizationRead,
        json!({"default_currency": "SGD", "week_starts_on": "monday", "date_format": "iso"});
    /// Somebody asked for a module to be enabled or removed; `state` says which.
    ModuleRequested = "module.requested", "Module asked for", OrganizationRead, module("enabling", None);
    /// The organization has a module from now on.
    ModuleEnabled = "module.enabled", "Module enabled", OrganizationRead, module("enabled", None);
    /// A module was exported and removed; `archive` names the file with what it held.
    ModuleRemoved = "module.removed", "Module removed", OrganizationRead, module("disabled", Some(ARCHIVE));
    /// A domain was added; it is not verified yet.
    DomainAdded = "domain.added", "Domain added", SettingsManage, json!({"domain": "work.example.com"});
    /// A domain was proved to be the organization's.
    DomainVerified = "domain.verified", "Domain verified", SettingsManage, json!({"domain": "work.example.com"});
    /// A domain was removed.
    DomainRemoved = "domain.removed", "Domain removed", SettingsManage, json!({"domain": "work.example.com"});
    /// Somebody was invited.
    MemberInvited = "member.invited", "Member invited", MembersRead, invitation();
    /// An invitation was sent again.
    InvitationResent = "invitation.resent", "Invitation sent again", MembersRead, invitation();
    /// An invitation was revoked.
    InvitationRevoked = "invitation.revoked", "Invitation revoked", MembersRead, invitation();
    /// Somebody became a member.
    MemberJoined = "member.joined", "Member joined", MembersRead,
        json!({"email": "ben@example.com", "role": "member", "invitation_id": ID});
    /// Role, permissions or activity of a member changed.
    MemberUpdated = "member.updated", "Member updated", MembersRead, member();
    /// A member was removed.
    MemberRemoved = "member.removed", "Member removed", MembersRead, member();
    /// A member left.
    MemberLeft = "member.left", "Member left", MembersRead, json!({"user_id": ID});
    /// An API key was made.
    ApiKeyCreated = "api_key.created", "API key created", ApiKeysManage, api_key();
    /// Name, scopes or limits of an API key changed.
    ApiKeyUpdated = "api_key.updated", "API key updated", ApiKeysManage, api_key();
    /// An API key was replaced by another; the old one works for a while.
    ApiKeyRotated = "api_key.rotated", "API key rotated", ApiKeysManage, api_key();
    /// An API key does not work any more.
    ApiKeyRevoked = "api_key.revoked", "API key revoked", ApiKeysManage, api_key();
    /// An API key was found where it should not be, and revoked.
    ApiKeyLeaked = "api_key.leaked", "API key leaked", ApiKeysManage, api_key();
    /// A project was made.
    ProjectCreated = "project.created", "Project created", ProjectsRead, project();
    /// A project changed.
    ProjectUpdated = "project.updated", "Project updated", ProjectsRead, project();
    /// A project was deleted with its tasks.
    ProjectDeleted = "project.deleted", "Project deleted", ProjectsRead, project();
    /// A task was made.
    TaskCreated = "task.created", "Task created", TasksRead, task();
    /// A task changed.
    TaskUpdated = "task.updated", "Task updated", TasksRead, task();
    /// A task was done; comes beside `task.updated`.
    TaskCompleted = "task.completed", "Task completed", TasksRead, task();
    /// A task was deleted.
    TaskDeleted = "task.deleted", "Task deleted", TasksRead, task();
    /// Somebody commented on a task; `newly_mentioned_ids` are those whom it names for the first time.
    CommentCreated = "comment.created", "Comment made", CommentsRead, comment();
    /// A comment was edited.
    CommentUpdated = "comment.updated", "Comment edited", CommentsRead, comment();
    /// A comment was deleted.
    CommentDeleted = "comment.deleted", "Comment deleted", CommentsRead, comment();
    /// Somebody sent a message to a project; one with a `parent_id` is a reply.
    MessageCreated = "message.created", "Message sent", MessagesRead, message();
    /// A message was edited.
    MessageUpdated = "message.updated", "Message edited", MessagesRead, message();
    /// A message was deleted.
    MessageDeleted = "message.deleted", "Message deleted", MessagesRead, message();
    /// A file was attached to a task, a comment or a message.
    AttachmentCreated = "attachment.created", "Attachment added", TasksRead, attachment();
    /// What is said of an attachment changed.
    AttachmentUpdated = "attachment.updated", "Attachment changed", TasksRead, attachment();
    /// An attachment was deleted with its file.
    AttachmentDeleted = "attachment.deleted", "Attachment deleted", TasksRead, attachment();
    /// Somebody asked for an import.
    ImportRequested = "import.requested", "Import asked for", FilesWrite, import("queued");
    /// An import was done, or a dry run found nothing wrong.
    ImportCompleted = "import.completed", "Import completed", FilesWrite, import("done");
    /// An import came to its end with errors, or left lines out; nothing was imported if a check found them.
    ImportFailed = "import.failed", "Import failed", FilesWrite, import("failed");
    /// Somebody ended an import; what was written until then stays.
    ImportCanceled = "import.canceled", "Import canceled", FilesWrite, import("canceled");
    /// Somebody asked for an export.
    ExportRequested = "export.requested", "Export asked for", FilesWrite, export("queued");
    /// The file of an export is there.
    ExportCompleted = "export.completed", "Export completed", FilesWrite, export("done");
    /// An export could not be made.
    ExportFailed = "export.failed", "Export failed", FilesWrite, export("failed");
    /// A file was uploaded.
    FileUploaded = "file.uploaded", "File uploaded", FilesRead, file();
    /// A file that was not in use was deleted.
    FileDeleted = "file.deleted", "File deleted", FilesRead, file();
    /// An update was announced.
    UpdateCreated = "update.created", "Update announced", UpdatesRead, update();
    /// An update changed.
    UpdateUpdated = "update.updated", "Update changed", UpdatesRead, update();
    /// An update was deleted.
    UpdateDeleted = "update.deleted", "Update deleted", UpdatesRead, update();
    /// A webhook was made.
    WebhookCreated = "webhook.created", "Webhook created", WebhooksManage, webhook();
    /// A webhook changed, or has another secret.
    WebhookUpdated = "webhook.updated", "Webhook updated", WebhooksManage, webhook();
    /// A webhook was removed.
    WebhookDeleted = "webhook.deleted", "Webhook deleted", WebhooksManage, webhook();
    /// A webhook was switched off, as its deliveries failed for days or the receiver said to stop.
    WebhookDisabled = "webhook.disabled", "Webhook disabled", WebhooksManage, webhook();
    /// Deliveries of a webhook were sent again at somebody's wish.
    WebhookReplayed = "webhook.replayed", "Webhook replayed", WebhooksManage, json!({"deliveries": 12});
    /// A test of a webhook; goes to that webhook only.
    WebhookTest = "webhook.test", "Webhook tested", WebhooksManage, json!({"webhook_id": ID});
}

impl EventType {
    /// How `data` is laid out; grows when a field goes or means something else.
    pub fn schema_version(self) -> i32 {
        1
    }
}

const ID: &str = "0190b6a1-7c1e-7000-8000-000000000001";
const TIME: &str = "2026-01-05T09:00:00Z";
const ARCHIVE: &str = "0190b6a1-7c1e-7000-8000-000000000001/modules/operations-20260105T090000Z.tar.gz";

fn organization() -> Value {
    json!({"id": ID, "name": "Acme", "slug": "acme", "description": null, "industry": "Food", "size_range": "11-50",
        "country_code": "SG", "timezone": "Asia/Singapore", "logo_url": null, "plan": "free", "status": "active",
        "require_mfa": false, "created_at": TIME, "updated_at": TIME, "deleted_at": null})
}

fn invoice(status: &str, attempts: i64) -> Value {
    let paid = if status == "paid" { "49.00" } else { "0.00" };
    json!({"invoice_id": "in_1", "number": "ACME-0007", "status": status,
        "total": {"amount": "49.00", "currency": "SGD"}, "amount_paid": {"amount": paid, "currency": "SGD"},
        "amount_due": {"amount": "49.00", "currency": "SGD"}, "attempts": attempts})
}

fn invitation() -> Value {
    json!({"id": ID, "email": "ben@example.com", "role": "member", "state": "pending", "invited_by": ID,
        "created_at": TIME, "sent_at": TIME, "expires_at": "2026-01-12T09:00:00Z"})
}

fn member() -> Value {
    json!({"user_id": ID, "email": "ben@example.com", "username": null, "first_name": "Ben", "last_name": "Lim",
        "display_name": null, "role": "member", "permissions": ["projects:read"], "grants": [], "denials": [],
        "is_active": true, "joined_at": TIME})
}

fn api_key() -> Value {
    json!({"id": ID, "name": "Import from the shop", "description": null, "environment": "live",
        "hint": "rh_live_4fQz", "scopes": ["projects:read"], "rate_per_hour": 1000, "allowed_ips": [],
        "state": "active", "expires_at": null, "last_used_at": null, "last_used_address": null,
        "successor_id": null, "created_by": ID, "created_at": TIME, "revoked_at": null,
        "revoked_because": null})
}

fn project() -> Value {
    json!({"id": ID, "external_id": null, "name": "Website relaunch", "slug": "website-relaunch", "description": null,
        "status": "active", "priority": "high", "owner_id": ID, "created_by": ID, "member_ids": [],
        "start_date": "2026-01-05", "end_date": null, "budget": {"amount": "25000.00", "currency": "SGD"},
        "progress": 35.0, "created_at": TIME, "updated_at": TIME})
}

fn task() -> Value {
    json!({"id": ID, "project_id": ID, "parent_id": null, "external_id": null, "title": "Write the landing page",
        "description": null, "status": "in_progress", "priority": "medium", "assignee_ids": [ID], "waits_for": [],
        "created_by": ID, "due_date": "2026-02-14", "estimated_hours": 6.5, "actual_hours": null, "impact": 20.0,
        "position": "1767225600000000", "completed_at": null, "created_at": TIME, "updated_at": TIME})
}

fn comment() -> Value {
    json!({"id": ID, "task_id": ID, "project_id": ID, "author_id": ID, "body": "The lab wants the samples by Friday",
        "mention_ids": [ID], "attachments": [], "edited_at": null, "created_at": TIME, "updated_at": TIME,
        "task_title": "Write the landing page", "concerned_ids": [ID], "newly_mentioned_ids": [ID]})
}

fn message() -> Value {
    json!({"id": ID, "project_id": ID, "parent_id": null, "number": 17, "author_id": ID,
        "body": "The retort comes on Tuesday", "mention_ids": [ID], "attachments": [], "reply_count": 0,
        "last_reply_at": null, "edited_at": null, "deleted_at": null, "created_at": TIME, "updated_at": TIME,
        "project_name": "Website relaunch", "parent_author_id": null, "newly_mentioned_ids": [ID]})
}

fn attachment() -> Value {
    json!({"id": ID, "project_id": ID, "task_id": ID, "comment_id": null, "message_id": null, "file": file(),
        "description": "The page as it is now", "is_proof_of_completion": true, "created_by": ID, "created_at": TIME})
}

fn import(state: &str) -> Value {
    json!({"id": ID, "resource": "tasks", "format": "csv", "file_id": ID, "dry_run": false, "state": state,
        "lines_total": 240, "lines_done": 240, "created": 230, "updated": 9, "unchanged": 1, "failed": 0, "errors": [],
        "error_report_id": null, "message": null, "requested_by": ID, "created_at": TIME, "updated_at": TIME,
        "finished_at": TIME})
}

fn export(state: &str) -> Value {
    json!({"id": ID, "resource": "tasks", "format": "csv", "filters": {}, "state": state, "rows_total": 240,
        "rows_done": 240, "file_id": ID, "message": null, "requested_by": ID, "created_at": TIME, "updated_at": TIME,
        "finished_at": TIME})
}

fn file() -> Value {
    json!({"id": ID, "name": "floor-plan.png", "size": 48213,
        "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "content_type": "image/png",
        "kind": "image", "purpose": "upload", "uploaded_by": ID, "thumbnail": "pending",
        "expires_at": "2026-01-06T09:00:00Z", "created_at": TIME})
}

fn module(state: &str, archive: Option<&str>) -> Value {
    let digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    json!({"name": "operations", "state": state, "optional": true, "tables": ["updates"],
        "archive": archive.map(|file| json!({"file": file, "sha256": digest})), "error": null,
        "requested_by": ID, "updated_at": TIME})
}

fn update() -> Value {
    json!({"id": ID, "title": "Line 3 stands still on Friday", "body": "The press is serviced from 08:00 to 12:00.",
        "type": "warning", "priority": "high", "author_id": ID, "published_at": TIME, "expires_at": null,
        "created_at": TIME, "updated_at": TIME})
}

fn webhook() -> Value {
    json!({"id": ID, "name": "Our shop", "url": "https://hooks.example.com/…", "events": ["project.created"],
        "is_active": true, "disabled_because": null})
}
