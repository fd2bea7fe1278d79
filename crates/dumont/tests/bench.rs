//! `dumont bench snapshot` in small: it runs, every restore is exact, and what costs nothing sends
//! nothing. No times are judged.

#![allow(clippy::unwrap_used, reason = "test code")]

use serde_json::Value;
use std::process::Command;

#[test]
fn every_tree_goes_to_the_bucket_and_comes_back() {
    let temp = tempfile::tempdir().unwrap();
    let ran = Command::new(env!("CARGO_BIN_EXE_dumont"))
        .args(["--json", "--quiet", "bench", "snapshot", "--size", "0.004"])
        .args(["--rounds", "1", "--dir"])
        .arg(temp.path())
        .env("HOME", std::env::var_os("HOME").unwrap())
        .env_remove("B2_BUCKET")
        .env_remove("S3_BUCKET")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&ran.stdout).unwrap();
    let trees = report["trees"].as_array().unwrap();
    assert_eq!(trees.len(), 3);
    for tree in trees {
        let row = |step: &str| {
            let rows = tree["rows"].as_array().unwrap();
            rows.iter().find(|r| r["step"] == step).unwrap().clone()
        };
        let (first, again, restore) = (row("first snapshot"), row("no change"), row("restore"));
        assert_eq!(again["files_read"], 0, "{tree}");
        assert_eq!(again["cost"]["sent_bytes"], 0, "{tree}");
        let (bytes, stored) = (
            tree["bytes"].as_u64().unwrap(),
            tree["stored_bytes"].as_u64().unwrap(),
        );
        // Weights are nearly all mantissas, and those are noise.
        let most = if tree["tree"] == "W1" {
            bytes * 7 / 10
        } else {
            bytes
        };
        let sent = first["cost"]["sent_bytes"].as_u64().unwrap();
        assert!(sent < most, "{sent} of {bytes}");
        let received = restore["cost"]["received_bytes"].as_u64().unwrap();
        assert!(received < stored + stored / 4, "{received} for {stored}");
        // 256 MB whatever the sizes, and the program itself far below it here.
        assert!(
            restore["cost"]["peak_bytes"].as_u64().unwrap() < 256 << 20,
            "{tree}"
        );
        if tree["tree"] == "W3" {
            let edits = row("after edits")["cost"]["sent_bytes"].as_u64().unwrap();
            assert!(edits < sent, "{edits} of {sent}");
        }
    }
    assert_eq!(temp.path().read_dir().unwrap().count(), 0, "something was left");
}
