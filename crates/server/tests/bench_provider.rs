//! `scripts/bench-provider` in small: it runs to its end, and an idle server asks for nothing but pages
//! of the listing. No times are judged.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::process::Command;

#[test]
fn the_bench_runs_and_who_is_well_asks_nothing() {
    let here = std::env::current_exe().unwrap();
    let built = here.parent().and_then(|deps| deps.parent()).unwrap();
    // Examples are built with the tests; their binary lies beside them.
    let program = built.join("examples/provider");
    let done = Command::new(&program)
        .arg("--small")
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}; cargo build --examples makes it", program.display()));
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(
        done.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&done.stderr)
    );
    for line in [
        "one instance: HTTP by itself",
        "one instance: the client with its budget",
        "from the race's begin to its first contract",
        "listing pages: ",
        "other requests: 0",
        "refused: ",
    ] {
        assert!(said.contains(line), "{line:?} is missing in\n{said}");
    }
}
