//! The OpenAPI document: reviewed, and valid by a foreign judge.

use std::path::{Path, PathBuf};
use std::process::Command;

fn copy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json")
}

fn current() -> String {
    let document = dumont_server::http::openapi::document();
    serde_json::to_string_pretty(document).unwrap() + "\n"
}

/// A change of the API shows in the diff of `docs/openapi.json`, where it is reviewed.
#[test]
fn the_reviewed_copy_is_what_the_code_says() {
    let (path, current) = (copy(), current());
    if std::env::var_os("DUMONT_UPDATE").is_some() {
        std::fs::write(&path, &current).unwrap();
    }
    let reviewed = std::fs::read_to_string(&path).unwrap_or_default();
    let first = reviewed.lines().zip(current.lines()).position(|(a, b)| a != b);
    assert!(
        reviewed == current,
        "docs/openapi.json is not what the code says (first at line {}).\n\
         If the API was meant to change, write it anew, read the diff and commit it:\n\
         DUMONT_UPDATE=1 cargo nextest run -p dumont-server the_reviewed_copy\n",
        first.map_or_else(|| "of the shorter's end".into(), |line| (line + 1).to_string()),
    );
}

#[test]
fn a_foreign_validator_finds_it_valid() {
    let judged = Command::new("openapi-spec-validator")
        .args(["--schema", "3.1"])
        .arg(copy())
        .output()
        .expect("openapi-spec-validator: `scripts/setup --tests` installs it, scripts/test finds it");
    let said = String::from_utf8_lossy(&judged.stdout) + String::from_utf8_lossy(&judged.stderr);
    assert!(judged.status.success(), "{said}");
}
