//! Demo data: two organizations that look like real teams, made by the code that serves requests.

use std::sync::Arc;

use anyhow::Context;
use chrono::{Days, NaiveDate};
use uuid::Uuid;

use super::plain;
use crate::{
    accounts,
    app::App,
    audit::Actor,
    auth::{Member, Origin, Role},
    billing::{self, Plan},
    organizations::{self, NewOrganization, members},
    tenancy::fleet,
    types::{Email, Money, example},
    work::{
        By, Priority, dependencies,
        projects::{self, NewProject, ProjectStatus},
        tasks::{self, NewTask, TaskStatus},
    },
};

/// The password of everybody in the demo data.
pub const PASSWORD: &str = "Correct-Horse-7-Battery";

/// A person in a role.
pub struct Person {
    pub first: &'static str,
    pub last: &'static str,
    pub role: Role,
}

/// A team and its work.
pub struct Organization {
    pub slug: &'static str,
    pub name: &'static str,
    pub people: &'static [Person],
    projects: &'static [Project],
}

struct Project {
    name: &'static str,
    about: &'static str,
    status: ProjectStatus,
    priority: Priority,
    budget: &'static str,
    tasks: &'static [Task],
}

/// Title, status, priority, who (index), due in days, estimated hours, impact.
type Task = (&'static str, TaskStatus, Priority, usize, i64, f64, f64);

const fn person(first: &'static str, last: &'static str, role: Role) -> Person {
    Person { first, last, role }
}

use Priority::{High, Low, Medium, Urgent};
use TaskStatus::{Done, InProgress, Review, Todo};

pub const ORGANIZATIONS: &[Organization] = &[
    Organization {
        slug: "acme",
        name: "Acme Foods",
        people: &[
            person("Olivia", "Tan", Role::Owner),
            person("Adam", "Lim", Role::Admin),
            person("Maya", "Nair", Role::Manager),
            person("Sam", "Wong", Role::Member),
            person("Vera", "Chua", Role::Viewer),
        ],
        projects: &[
            Project {
                name: "Jurong plant opening",
                about: "Second processing line: permits, machines, people, first batch.",
                status: ProjectStatus::Active,
                priority: Urgent,
                budget: "480000.00",
                tasks: &[
                    ("Sign the lease for unit 04-12", Done, High, 0, -40, 6.0, 15.0),
                    ("Food establishment licence", Done, Urgent, 2, -12, 24.0, 20.0),
                    ("Order the retort and the conveyor", Done, High, 2, -20, 10.0, 10.0),
                    ("Install cold room sensors", InProgress, High, 3, 5, 16.0, 15.0),
                    ("Hire the night shift lead", Review, Medium, 1, 9, 8.0, 10.0),
                    ("Train the team on allergen separation", Todo, High, 3, 14, 12.0, 10.0),
                    ("Trial batch with the lab", Todo, Urgent, 2, 21, 20.0, 20.0),
                ],
            },
            Project {
                name: "Hawker brand relaunch",
                about: "New packs for the sambal and laksa pastes, in shops before the new year.",
                status: ProjectStatus::Active,
                priority: High,
                budget: "65000.00",
                tasks: &[
                    ("Shortlist three design studios", Done, Medium, 2, -25, 5.0, 20.0),
                    ("Choose the pack sizes", Done, Low, 1, -18, 3.0, 10.0),
                    ("Nutrition panel from the lab", InProgress, High, 3, 3, 6.0, 20.0),
                    ("Photograph the range", Todo, Medium, 3, 12, 9.0, 20.0),
                    ("Listing with two supermarket chains", Todo, Urgent, 0, 28, 30.0, 30.0),
                ],
            },
            Project {
                name: "ISO 22000 audit",
                about: "Yearly surveillance audit.",
                status: ProjectStatus::Planning,
                priority: Medium,
                budget: "18000.00",
                tasks: &[
                    ("Collect last year's findings", Todo, Medium, 1, 30, 4.0, 25.0),
                    ("Internal audit of line 1", Todo, High, 2, 45, 16.0, 50.0),
                ],
            },
        ],
    },
    Organization {
        slug: "globex",
        name: "Globex Logistics",
        people: &[
            person("Grace", "Ong", Role::Owner),
            person("Ali", "Rahman", Role::Admin),
            person("Mei", "Goh", Role::Manager),
            person("Ravi", "Kumar", Role::Member),
            person("Victor", "Lee", Role::Viewer),
        ],
        projects: &[
            Project {
                name: "Electric van pilot",
                about: "Ten vans on the eastern routes for three months.",
                status: ProjectStatus::Active,
                priority: High,
                budget: "210000.00",
                tasks: &[
                    ("Compare three leasing offers", Done, High, 2, -15, 8.0, 25.0),
                    ("Chargers at the Changi depot", InProgress, Urgent, 3, 6, 40.0, 30.0),
                    ("Driver briefing", Todo, Medium, 3, 15, 4.0, 15.0),
                    ("Measure range in the rain", Todo, Medium, 2, 35, 12.0, 30.0),
                ],
            },
            Project {
                name: "Customs broker switch",
                about: "Move the Johor lanes to the new broker without a day of delay.",
                status: ProjectStatus::Completed,
                priority: Medium,
                budget: "12000.00",
                tasks: &[
                    ("Parallel run on the Tuesday lane", Done, High, 1, -50, 10.0, 60.0),
                    ("Cancel the old contract", Done, Low, 0, -30, 1.0, 40.0),
                ],
            },
        ],
    },
];

/// `olivia@acme.example`
pub fn email(organization: &Organization, person: &Person) -> Email {
    example(&format!("{}@{}.example", person.first.to_lowercase(), organization.slug))
}

/// Loads the organizations of the demo that are missing; tells whether there were any. Each is one
/// transaction, so a run that is killed leaves whole ones.
pub async fn load(app: &Arc<App>) -> anyhow::Result<bool> {
    let mut hash = None;
    for organization in ORGANIZATIONS {
        let tx = app.db.begin().await.map_err(plain)?;
        let owner = email(organization, &organization.people[0]);
        let there = tx.query_opt("select 1 from platform.users where email = $1", &[&owner]).await;
        drop(tx);
        if there.map_err(plain)?.is_some() {
            continue;
        }
        let hash = match &hash {
            Some(hash) => hash,
            None => hash.insert(app.passwords.hash(&example(PASSWORD)).await.map_err(plain)?),
        };
        load_one(app, organization, hash).await.map_err(plain).context("loading demo data")?;
    }
    Ok(hash.is_some())
}

async fn load_one(app: &Arc<App>, demo: &Organization, hash: &str) -> crate::error::Result<()> {
    let (tx, tenant) = fleet::begin_new_tenant(&app.db, &app.directory).await?;
    let now = app.clock.now();
    let mut people: Vec<Uuid> = Vec::new();
    for person in demo.people {
        let email = email(demo, person);
        let new = accounts::NewUser {
            email: &email,
            username: None,
            hash: hash.to_owned(),
            first_name: Some(example(person.first)),
            last_name: Some(example(person.last)),
        };
        people.push(accounts::insert(&tx, app, new).await?);
    }
    let new = NewOrganization {
        slug: Some(example(demo.slug)),
        country_code: Some(example("SG")),
        ..NewOrganization::named(example(demo.name))
    };
    organizations::insert(&tx, app, &Actor::user(people[0], Origin::default()), new).await?;
    for (person, user) in demo.people.iter().zip(&people).skip(1) {
        members::insert(&tx, tenant.id(), *user, person.role, now).await?;
    }
    // A team that is past its first day: addresses confirmed, room to invite more.
    tx.execute("update platform.users set email_verified_at = $2 where id = any ($1)", &[&people, &now])
        .await?;
    billing::override_plan(&tx, app, &Actor::system(), Some(Plan::Professional)).await?;
    let manager = Member {
        session: None,
        app: app.clone(),
        user_id: people[2],
        key: None,
        origin: Origin::default(),
        role: Role::Manager,
        permissions: Role::Manager.permissions(),
        tenant,
        inside: None,
    };
    let today = now.date_naive();
    let by = By::from(&manager);
    for project in demo.projects {
        let made = projects::insert(&tx, &by, new_project(project, today, &people)).await?;
        let mut ids = Vec::new();
        for task in project.tasks {
            ids.push(tasks::insert(&tx, &by, new_task(task, made.id, today, &people)).await?.id);
        }
        // The last step waits for the one before it.
        if let [.., before, last] = ids[..] {
            dependencies::add(&tx, &by, last, before, |_| Ok(())).await?;
        }
    }
    tx.commit().await?;
    app.directory.forget(manager.tenant.id());
    Ok(())
}

fn new_project(project: &Project, today: NaiveDate, people: &[Uuid]) -> NewProject {
    NewProject {
        external_id: None,
        name: example(project.name),
        slug: None,
        description: Some(example(project.about)),
        status: Some(project.status),
        priority: Some(project.priority),
        owner_id: None,
        member_ids: Some(vec![people[2], people[3]]),
        start_date: today.checked_sub_days(Days::new(60)),
        end_date: today.checked_add_days(Days::new(90)),
        budget: Some(Money { amount: example(project.budget), currency: example("SGD") }),
    }
}

fn new_task(task: &Task, project_id: Uuid, today: NaiveDate, people: &[Uuid]) -> NewTask {
    let (title, status, priority, who, due, hours, impact) = *task;
    NewTask {
        project_id,
        parent_id: None,
        external_id: None,
        title: example(title),
        description: None,
        status: Some(status),
        priority: Some(priority),
        assignee_ids: Some(vec![people[who]]),
        due_date: Some(today + chrono::TimeDelta::days(due)),
        estimated_hours: Some(hours),
        actual_hours: (status == Done).then_some(hours * 1.25),
        impact: Some(impact),
    }
}
