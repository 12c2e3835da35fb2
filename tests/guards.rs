//! Rules of the code base that the compiler does not know.

use std::{collections::BTreeSet, fs, path::Path};

use rowhouse::{api::DOCUMENT, auth::Permission, db::migrations};
use serde_json::Value;

fn files(folder: &str, ending: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(ending) {
                let name =
                    path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_string_lossy().into_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty(), "no {ending} in {folder}");
    found.sort();
    found
}

/// Source without comments and test modules.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().unwrap();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn operations() -> Vec<(String, String, Value)> {
    let mut all = Vec::new();
    for (path, methods) in DOCUMENT.value["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            all.push((method.clone(), path.clone(), operation.clone()));
        }
    }
    all
}

#[test]
fn the_committed_document_is_the_code_s() {
    for (name, text) in [("openapi/openapi.json", &DOCUMENT.json), ("openapi/openapi.yaml", &DOCUMENT.yaml)] {
        let committed = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
        assert!(committed == **text, "{name} is out of date: run `make openapi` and commit the result");
    }
}

#[test]
fn every_operation_is_documented_in_full() {
    let mut ids = BTreeSet::new();
    for (method, path, operation) in operations() {
        let place = format!("{method} {path}");
        let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{place} has no id"));
        assert!(ids.insert(id.to_owned()), "{place}: the id {id} is taken");
        assert_eq!(operation["tags"].as_array().map(Vec::len), Some(1), "{place} needs one tag");
        assert!(
            operation["summary"].as_str().is_some_and(|text| text.ends_with('.')),
            "{place} needs a summary"
        );
        let needs = operation["x-permission"].as_str().unwrap();
        let permission = needs.parse::<Permission>().is_ok();
        assert!(
            permission || ["public", "authenticated", "superuser", "api_key"].contains(&needs),
            "{place} needs a gate"
        );
        assert_eq!(operation["security"] == Value::Array(Vec::new()), needs == "public", "{place}");
        let responses = operation["responses"].as_object().unwrap();
        let mut expected = vec!["400", "500", "503"];
        if needs != "public" {
            expected.push("401");
        }
        if permission {
            expected.extend(["403", "404"]);
        }
        for status in expected {
            let error = &responses[status];
            assert!(
                error["description"].as_str().is_some_and(|text| !text.is_empty()),
                "{place} lacks {status}"
            );
        }
        let bodies = responses.iter().filter(|(status, _)| status.starts_with('2') && *status != "204");
        for (status, response) in bodies {
            let Some(content) = response["content"].as_object() else { continue };
            for form in content.values() {
                assert!(has_example(&form["schema"]), "{place} {status} has no example");
            }
        }
        if let Some(body) = operation.get("requestBody") {
            for form in body["content"].as_object().unwrap().values() {
                assert!(has_example(&form["schema"]), "{place}: the body has no example");
            }
        }
    }
}

fn has_example(schema: &Value) -> bool {
    let Some(name) = schema["$ref"].as_str() else { return schema.get("example").is_some() };
    DOCUMENT.value["components"]["schemas"][name.rsplit('/').next().unwrap()].get("example").is_some()
}

/// Of two handlers for one path and method, poem-openapi keeps one without a word.
#[test]
fn no_operation_hides_another() {
    let mut declared = Vec::new();
    for (name, text) in files("src", ".rs") {
        let text = code(&text).replace("#[oai(\n", "#[oai(");
        for attribute in text.split("#[oai(").skip(1) {
            let attribute = attribute.split(")]").next().unwrap();
            let value = |key: &str| {
                let from = attribute.split(&format!("{key} = \"")).nth(1)?;
                Some(from.split('"').next().unwrap().to_owned())
            };
            if let (Some(path), Some(method)) = (value("path"), value("method")) {
                declared.push(format!("{method} {path} in {name}"));
            }
        }
    }
    let keys: BTreeSet<&str> = declared.iter().map(|line| line.split(" in ").next().unwrap()).collect();
    assert_eq!(keys.len(), declared.len(), "declared twice: {declared:#?}");
    assert_eq!(keys.len(), operations().len(), "declared but not in the route list: {declared:#?}");
}

#[test]
fn only_the_database_room_holds_connections_and_only_tenancy_opens_schemas() {
    for (name, text) in files("src", ".rs") {
        let text = code(&text);
        let database = name.starts_with("src/db/");
        // The private server of development and tests waits until it can be connected to.
        let starts_servers = name == "src/cli/postgres.rs";
        for word in ["pool::", "Client", "NoTls", "MakeRustlsConnect"] {
            let names = text.contains(&format!("tokio_postgres::{word}"))
                || text.contains(&format!("db::{word}"))
                || text
                    .split("tokio_postgres::{")
                    .skip(1)
                    .any(|list| list.split('}').next().unwrap().contains(word));
            assert!(database || starts_servers || !names, "{name} names {word}");
        }
        let opens = text.contains("TenantDoor")
            || text.contains(" Schema::new")
            || text.contains("(Schema::new")
            || text.contains("door.begin");
        assert!(database || name.starts_with("src/tenancy/") || !opens, "{name} can open schemas");
        assert!(!text.to_lowercase().contains("select *"), "{name} selects columns without naming them");
        let sets = ["set search_path", "set local search_path", "set_config('search_path'"];
        assert!(database || !sets.iter().any(|set| text.contains(set)), "{name} sets a path");
        let makes_doors = text.contains("Db::new(");
        assert!(database || name == "src/app.rs" || !makes_doors, "{name} makes a second door");
    }
}

#[test]
fn rooms_use_only_what_is_below_them() {
    let ground = ["config", "error", "types", "page", "clock", "limits", "observability", "outbound", "db"];
    let platform = [
        "tenancy",
        "auth",
        "accounts",
        "organizations",
        "http",
        "app",
        "api",
        "billing",
        "jobs",
        "mail",
        "audit",
        "flags",
        "admin",
        "events",
        "webhooks",
        "realtime",
        "notifications",
        "usage",
        "files",
        "search",
        "exchange",
    ];
    for (name, text) in files("src", ".rs") {
        let room = name.trim_start_matches("src/").split(['/', '.']).next().unwrap().to_owned();
        if ["cli", "main", "lib", "api", "app"].contains(&room.as_str()) {
            continue;
        }
        let text = code(&text);
        // Every name of the crate's that a file uses: `crate::room::…` and what `use crate::{…}` lists.
        let listed = text.split("use crate::{").skip(1).map(|rest| rest.split("};").next().unwrap());
        let mut depth = 0;
        let named: Vec<String> = listed
            .flat_map(|block| block.split_inclusive(['{', '}', ',']))
            .filter_map(|piece| {
                let outer = depth == 0;
                depth += piece.matches('{').count();
                depth -= piece.matches('}').count();
                outer.then(|| piece.trim().split([':', ',']).next().unwrap().to_owned())
            })
            .collect();
        let uses = |other: &str| {
            named.iter().any(|name| name == other) || text.contains(&format!("crate::{other}::"))
        };
        for module in ["work", "operations"].iter().filter(|module| **module != room) {
            assert!(!uses(module), "{name} uses the module {module}");
        }
        if ground.contains(&room.as_str()) {
            for above in platform {
                assert!(!uses(above), "{name} is ground and uses {above}");
            }
        }
        assert!(!uses("cli"), "{name} uses the command line");
    }
}

#[test]
fn what_permissions_call_a_module_is_one() {
    let named: BTreeSet<&str> = Permission::ALL.iter().filter_map(|permission| permission.module()).collect();
    let optional: BTreeSet<&str> = migrations::optional_sets().iter().map(|set| set.module).collect();
    assert_eq!(named, optional);
}

#[test]
fn tenant_migrations_keep_to_the_rules() {
    for (name, text) in files("tenant-migrations", ".sql") {
        let aside = text.contains("index concurrently ");
        for statement in migrations::statements(&text) {
            let sql = statement.to_lowercase();
            for (word, why) in [
                ("platform.", "names another schema"),
                ("public.", "names another schema"),
                ("extensions.", "names another schema"),
                ("tenant_", "names a tenant's schema"),
                ("set ", "sets something"),
                ("$$", "has a body that the splitter would cut"),
                ("create trigger", "has a trigger"),
                ("create rule", "has a rule"),
                ("create function", "has a function"),
                ("as enum", "has an enum type"),
                ("serial", "has a serial column"),
                ("inherits", "inherits"),
                ("create type", "makes a type"),
            ] {
                assert!(
                    !sql.contains(word) || (word == "set " && !sql.starts_with("set ")),
                    "{name} {why}: {statement}"
                );
            }
            assert!(
                !aside
                    || sql.starts_with("create index concurrently ")
                    || sql.starts_with("create unique index concurrently "),
                "{name} has more than indexes that are built while people write: {statement}"
            );
            if sql.starts_with("create table") {
                assert!(sql.contains("primary key"), "{name}: a table without a primary key: {statement}");
                for line in sql.lines().map(str::trim) {
                    let unnamed =
                        line.starts_with("check") || line.starts_with("unique") || line.contains(" unique");
                    assert!(
                        !unnamed || line.starts_with("constraint"),
                        "{name}: a rule without a name: {line}"
                    );
                    let inline_check = line.contains(" check (") && !line.starts_with("constraint");
                    assert!(!inline_check, "{name}: a rule without a name: {line}");
                }
            }
            assert!(
                !(sql.contains("add column") && sql.contains("add constraint")),
                "{name}: a column and a constraint in one statement: {statement}"
            );
        }
    }
}

#[test]
fn shared_migrations_name_their_schema() {
    for (name, text) in files("shared-migrations", ".sql") {
        for statement in migrations::statements(&text) {
            let sql = statement.to_lowercase();
            assert!(
                sql.contains("platform.") || sql.starts_with("revoke"),
                "{name} does not name platform: {statement}"
            );
            assert!(!sql.contains("$$") && !sql.contains("tenant_id"), "{name}: {statement}");
        }
    }
}

/// They may be on two servers.
#[test]
fn no_statement_names_tables_of_a_tenant_and_of_the_platform() {
    let tables: BTreeSet<String> = migrations::all_sets().iter().flat_map(|set| set.tables()).collect();
    for (name, text) in files("src", ".rs") {
        let text = code(&text).replace("'\"'", "").replace("\\\"", "'");
        for literal in text.split('"').skip(1).step_by(2).filter(|literal| literal.contains("platform.")) {
            let words: Vec<&str> = literal
                .split(|c: char| c.is_whitespace() || "(),\\".contains(c))
                .filter(|word| !word.is_empty())
                .collect();
            let both = words.windows(2).find(|pair| {
                ["from", "join", "into", "update"].contains(&pair[0]) && tables.contains(pair[1])
            });
            assert!(both.is_none(), "{name} names {both:?} together with platform: {literal}");
        }
    }
}
