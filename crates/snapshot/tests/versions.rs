//! What an older version of the format wrote is read for ever; `version-1` was written by it.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Lines, NEVER, noise};
use dumont_core::snapshot::{SnapshotHead, Verdict};
use dumont_snapshot::{DirStore, RestoreOptions, restore};
use std::fs;
use std::path::Path;

#[test]
fn a_snapshot_of_version_1_restores() {
    let objects = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/version-1");
    let head: SnapshotHead = serde_json::from_slice(&fs::read(objects.join("head.json")).unwrap()).unwrap();
    for object in fs::read_dir(objects.join("packs")).unwrap() {
        assert_eq!(fs::read(object.unwrap().path()).unwrap()[8..10], [1, 0]);
    }
    let out = tempfile::tempdir().unwrap();
    let options = RestoreOptions::new(out.path(), &NEVER);
    let report = restore(&options, &head, &DirStore::new(objects), &Lines::default()).unwrap();
    assert_eq!(report.validation.validation, Verdict::Ok);
    let read = |name: &str| fs::read(out.path().join(name)).unwrap();
    assert_eq!(read("text"), "hello from version 1\n".repeat(300).into_bytes());
    assert_eq!(read("sub/noise"), noise(3000, 1));
    assert_eq!(read("empty"), b"");
    assert_eq!(fs::read_link(out.path().join("link")).unwrap(), Path::new("text"));
}
