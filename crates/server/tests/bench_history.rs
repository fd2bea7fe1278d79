//! `scripts/bench-history` in small, on both engines: it runs to its end, and a search costs two
//! queries at most, which it asserts itself. No times are judged.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::process::Command;

/// Examples are built with the tests; their binary lies beside them.
fn ran(engine: &str) -> String {
    let here = std::env::current_exe().unwrap();
    let built = here.parent().and_then(|deps| deps.parent()).unwrap();
    let program = built.join("examples/history");
    let small = "--machines 300 --attempts 6000 --seconds 1 --checks 100 --pages 10 --offers 500";
    let done = Command::new(&program)
        .args(["--engine", engine])
        .args(small.split(' '))
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}; cargo build --examples makes it", program.display()));
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(
        done.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&done.stderr)
    );
    said
}

fn measures_everything(engine: &str) {
    let said = ran(engine);
    for line in [
        "an empty round trip",
        "annotate 64 offers",
        "annotate 500 offers, 1 in 100",
        "attempts were recorded meanwhile",
        "check one machine",
        "GET /machines/history/reliable",
        "record an attempt: ",
    ] {
        assert!(said.contains(line), "{line:?} is missing in\n{said}");
    }
}

#[test]
fn the_bench_runs_on_postgres() {
    measures_everything("postgres");
}

#[test]
fn the_bench_runs_on_sqlite() {
    measures_everything("sqlite");
}
