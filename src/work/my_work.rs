//! My work: what is on one's own plate.

use chrono::{DateTime, Days, NaiveDate, Utc};
use chrono_tz::Tz;
use poem_openapi::{Object, OpenApi, param::Query, types::Example};
use serde::Serialize;
use uuid::Uuid;

use super::{Priority, tasks::TaskStatus};
use crate::{
    api::Tag,
    auth::{Can, Member, permissions::TasksRead},
    db::{Row, TenantTx},
    error::{Error, Result},
    http::Json,
    page::Paging,
    types::{EXAMPLE_ID, Name, Text, example, example_time, text_enum},
};

text_enum! {
    /// Which of one's tasks.
    MyTaskState {
        /// All that are not done.
        Open = "open",
        /// Open, and due today or in the next days.
        Due = "due",
        /// Open, and were due before today.
        Overdue = "overdue",
        /// Done.
        Done = "done",
    }
}

/// A task that one is assigned to.
#[derive(Debug, Serialize, Object)]
pub struct MyTask {
    pub id: Uuid,
    pub title: Text<1, 200>,
    pub project_id: Uuid,
    pub project_name: Name,
    pub status: TaskStatus,
    pub priority: Priority,
    pub due_date: Option<NaiveDate>,
    pub is_overdue: bool,
    pub completed_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// How many open tasks one has.
#[derive(Debug, Serialize, Object)]
pub struct MyTaskCounts {
    pub open: i64,
    pub due: i64,
    pub overdue: i64,
}

/// One's tasks, and how many there are.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct MyTasks {
    /// Those due first come first, of one day the more urgent; those without a day last. Done ones: the last
    /// done first.
    pub data: Vec<MyTask>,
    /// From 1.
    pub page: u32,
    pub page_size: u32,
    /// How many there are on all pages.
    pub total: i64,
    pub counts: MyTaskCounts,
    /// The day it is in one's time zone.
    pub today: NaiveDate,
}

impl Example for MyTasks {
    fn example() -> Self {
        let today = example_time().date_naive();
        let task = MyTask {
            id: EXAMPLE_ID,
            title: example("Write the landing page"),
            project_id: EXAMPLE_ID,
            project_name: example("Website relaunch"),
            status: TaskStatus::InProgress,
            priority: Priority::High,
            due_date: Some(today),
            is_overdue: false,
            completed_at: None,
            created_at: example_time(),
            updated_at: example_time(),
        };
        let counts = MyTaskCounts { open: 5, due: 1, overdue: 0 };
        Self { data: vec![task], page: 1, page_size: 20, total: 5, counts, today }
    }
}

pub struct MyWorkApi;

#[OpenApi(tag = "Tag::MyWork")]
impl MyWorkApi {
    /// List the tasks that one is assigned to.
    #[oai(path = "/me/tasks", method = "get", operation_id = "list_my_tasks")]
    async fn tasks(
        &self,
        who: Can<TasksRead>,
        page: Query<Option<u32>>,
        page_size: Query<Option<u32>>,
        /// `open` where it is absent.
        state: Query<Option<MyTaskState>>,
        /// How many days from today on a task counts as due, 0 to 365; 7 where it is absent.
        within_days: Query<Option<u32>>,
    ) -> Result<Json<MyTasks>> {
        let told = |error: Error| match page.0 {
            // Page 0 says so itself.
            Some(n) if n > 0 && error.fields().iter().any(|field| field.field == "page") => Error::invalid(
                "page",
                "reaches to row 10000; for more, GET /tasks with assigned_to, status and `next_cursor`",
            ),
            _ => error,
        };
        let paging = Paging::new(page.0, page_size.0, None).map_err(told)?;
        let days = within_days.0.unwrap_or(7);
        if days > 365 {
            return Err(Error::invalid("within_days", "must be from 0 to 365"));
        }
        let state = state.0.unwrap_or(MyTaskState::Open);
        let tx = who.begin().await?;
        let today = today(&tx, &who).await?;
        let until = today.checked_add_days(Days::new(days.into())).unwrap_or(today);
        let limit = paging.page_size() as i64;
        let rows =
            tx.query(&statement(state), &[&who.user_id, &today, &until, &limit, &paging.offset()]).await?;
        // There is always a row: the counts stand beside every task, or alone.
        let first = rows.first().ok_or_else(|| Error::internal("no counts"))?;
        let counts = MyTaskCounts {
            open: first.try_get("open")?,
            due: first.try_get("due")?,
            overdue: first.try_get("overdue")?,
        };
        let total = first.try_get("total")?;
        let mut data = Vec::new();
        for row in &rows {
            data.extend(from_row(row, today)?);
        }
        let page = page.0.unwrap_or(1);
        Ok(Json(MyTasks { data, page, page_size: limit as u32, total, counts, today }))
    }
}

/// The day it is where somebody lives.
async fn today(tx: &TenantTx, who: &Member) -> Result<NaiveDate> {
    let row = tx.query_one("select timezone from platform.users where id = $1", &[&who.user_id]).await?;
    let zone = row.try_get::<_, String>("timezone")?.parse().unwrap_or(Tz::UTC);
    Ok(who.app.clock.now().with_timezone(&zone).date_naive())
}

/// One statement for tasks and counts: `$1` is whose, `$2` today, `$3` the last day that counts as due, `$4`
/// and `$5` the page. Of open tasks no more is looked at than an index holds, but for those shown.
fn statement(state: MyTaskState) -> String {
    let next = "due_date nulls last, array_position(array['urgent', 'high', 'medium', 'low'], priority), id";
    let (total, which, order) = match state {
        MyTaskState::Open => ("counts.open", "mine", next),
        MyTaskState::Due => ("counts.due", "mine where due_date between $2 and $3", next),
        MyTaskState::Overdue => ("counts.overdue", "mine where due_date < $2", next),
        MyTaskState::Done => ("(select count(*) from finished)", "finished", "completed_at desc, id desc"),
    };
    format!(
        "with mine as materialized ( \
           select t.id, t.priority, t.due_date from task_assignees a join tasks t on t.id = a.task_id \
           where a.user_id = $1 and t.status <> 'done'), \
         finished as ( \
           select t.id, t.completed_at from task_assignees a join tasks t on t.id = a.task_id \
           where a.user_id = $1 and t.status = 'done'), \
         counts as ( \
           select count(*) as open, count(*) filter (where due_date between $2 and $3) as due, \
           count(*) filter (where due_date < $2) as overdue from mine), \
         shown as ( \
           select id, row_number() over (order by {order}) as place from {which} \
           order by place limit $4 offset $5) \
         select counts.open, counts.due, counts.overdue, {total} as total, found.id, found.title, \
         found.project_id, found.project_name, found.status, found.priority, found.due_date, \
         found.completed_at, found.created_at, found.updated_at from counts left join ( \
           select shown.place, t.id, t.title, t.project_id, p.name as project_name, t.status, t.priority, \
           t.due_date, t.completed_at, t.created_at, t.updated_at \
           from shown join tasks t on t.id = shown.id join projects p on p.id = t.project_id) as found on true \
         order by found.place"
    )
}

/// The task of a row, if it has one.
fn from_row(row: &Row, today: NaiveDate) -> Result<Option<MyTask>> {
    let Some(id) = row.try_get("id")? else { return Ok(None) };
    let (status, due_date): (TaskStatus, Option<NaiveDate>) =
        (row.try_get("status")?, row.try_get("due_date")?);
    Ok(Some(MyTask {
        id,
        title: row.try_get("title")?,
        project_id: row.try_get("project_id")?,
        project_name: row.try_get("project_name")?,
        status,
        priority: row.try_get("priority")?,
        due_date,
        is_overdue: status != TaskStatus::Done && due_date.is_some_and(|due| due < today),
        completed_at: row.try_get("completed_at")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    }))
}
