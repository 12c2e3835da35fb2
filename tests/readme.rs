//! The README's commands, run as a reader would paste them.

use std::{fs, path::Path, process::Command};

use crate::commands::{Dev, home};

fn readme() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap()
}

/// The shell blocks of one section.
fn blocks(section: &str) -> Vec<String> {
    let text = readme();
    let section = text.split("\n## ").find(|part| part.starts_with(section)).unwrap().to_owned();
    section.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn the_two_commands_and_the_tour_do_what_they_say() {
    let commands = blocks("Five minutes");
    assert_eq!(commands, ["make dev\n", "make test\n"]);
    // `make dev` itself, with a folder and a port of its own.
    let dev = Dev::make(&home("readme"));
    let tour = blocks("A tour").join("\n");
    let expected: Vec<&str> = tour.lines().filter_map(|line| line.split("# prints ").nth(1)).collect();
    assert!(expected.len() >= 8, "{expected:?}");
    // What a reader gives some seconds may take longer here.
    let enabled = "for _ in {1..300}; do curl -sf -o /dev/null \"$API/updates\" -H \"Authorization: Bearer $OLIVIA\" \
                   -H 'X-Organization-Id: acme' && break; sleep 0.2; done\n";
    let script = tour
        .replace("localhost:8080", &format!("localhost:{}", dev.port))
        .replace("sleep 3\n", enabled)
        .replace("--max-time 1 ", "--max-time 8 ");
    let output = Command::new("bash").args(["-euo", "pipefail", "-c", &script]).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed.lines().collect::<Vec<_>>(), expected, "{}", String::from_utf8_lossy(&output.stderr));
    dev.stop();
}

#[test]
fn make_test_runs_the_tests() {
    let plan =
        Command::new("make").args(["-n", "test"]).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(String::from_utf8_lossy(&plan.stdout).contains("cargo test"));
}

#[test]
fn the_commands_for_real_use_work_in_their_order() {
    let block = blocks("Running it for real").join("\n");
    let database = crate::support::TestApp::fresh_database();
    let binary = Path::new(env!("CARGO_BIN_EXE_rowhouse")).parent().unwrap().display().to_string();
    let script = block
        .replace("postgres://user:password@host/rowhouse", &database)
        .replace("rowhouse serve", "timeout --signal=TERM 15 rowhouse serve");
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &script])
        .env("PATH", format!("{binary}:{}", std::env::var("PATH").unwrap()))
        .env("HTTP_LISTEN", "127.0.0.1:0")
        .output()
        .unwrap();
    let (printed, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(printed.contains("Everything is in order."), "{printed}{log}");
    assert!(printed.contains("platform: from version 0"), "{printed}{log}");
    assert!(log.contains("server stopped"), "{printed}{log}");
}
