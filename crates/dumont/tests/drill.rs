//! The drill as a user runs it: the real binary, a small workspace, machines that boot at once.
//!
//! The drill judges itself (bytes, modes, times, the market's ledger, the workload); here it
//! must say that all of it held, and its exit code must agree.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot run the binary fails"
)]

use serde_json::Value;
use std::process::Command;

fn drill(args: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_dumont"))
        .args([
            "drill",
            "--json",
            "--instant",
            "--machines",
            "12",
            "--timeout",
            "240",
        ])
        .args(args)
        .output()
        .expect("the binary runs");
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    let report: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}\n{out}\n{err}"));
    assert!(
        output.status.success() && report["ok"] == true,
        "{report:#}\n{err}"
    );
    report
}

#[test]
fn a_small_drill_holds() {
    let report = drill(&["--size-mb", "8"]);
    let checks = report["checks"].as_array().expect("checks");
    assert!(checks.len() >= 12, "{report:#}");
    assert!(checks.iter().all(|c| c["ok"] == true), "{report:#}");
}

/// On an S3 server (SeaweedFS, which the drill starts), once with the server killed as well.
#[test]
fn a_drill_on_a_bucket_holds() {
    drill(&["--size-mb", "4", "--store", "s3"]);
    drill(&["--size-mb", "4", "--store", "s3", "--kill-server-at", "restore"]);
}

#[test]
fn a_drill_on_postgres_holds() {
    let report = drill(&["--size-mb", "4", "--database", "postgres"]);
    assert_eq!(report["database"], "temporary PostgreSQL");
}

#[test]
fn the_server_may_die_on_postgres_too() {
    let killed = ["--size-mb", "4", "--kill-server-at", "restore"];
    drill(&[&killed[..], &["--database", "postgres"]].concat());
}

#[test]
fn a_drill_on_ones_own_files_holds() {
    // This crate's own sources: small real files that nobody made for the test.
    drill(&["--workspace", env!("CARGO_MANIFEST_DIR")]);
}

/// `kill -9` of the server at the end of each step of a failover, before its commit: the
/// worst moment, since everything outside has happened and nothing is written down.
fn survives(steps: &[&str]) {
    for step in steps {
        drill(&["--size-mb", "4", "--kill-server-at", step]);
    }
}

#[test]
fn the_server_may_die_while_it_looks_for_a_machine() {
    survives(&["detect", "search", "race:begin", "race"]);
}

#[test]
fn the_server_may_die_while_it_restores() {
    survives(&["restore:begin", "restore", "validate"]);
}

#[test]
fn the_server_may_die_while_it_starts_and_switches() {
    survives(&["start", "probe", "switch", "cleanup", "complete", "record"]);
}
