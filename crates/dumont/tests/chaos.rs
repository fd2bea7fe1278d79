//! The drill where everything goes wrong now and then: two seeds; `scripts/chaos` runs twenty.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot run the binary fails"
)]

use serde_json::Value;
use std::process::Command;

fn survives(seed: &str, more: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_dumont"))
        .args(["drill", "--chaos", "--seed", seed, "--json", "--instant"])
        .args(["--machines", "40", "--size-mb", "4", "--timeout", "300"])
        .args(more)
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
    let ledger = &report["ledger"];
    assert_eq!(ledger["created"], ledger["destroyed"], "{ledger:#}");
}

#[test]
fn a_drill_survives_chaos() {
    survives("1", &[]);
}

#[test]
fn a_drill_survives_chaos_and_the_servers_death_in_it() {
    survives("2", &["--kill-server-at", "race"]);
}
