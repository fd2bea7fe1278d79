//! What an older version of the format wrote is read for ever; `version-1` and `version-2` were
//! written by their own programs.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Lines, NEVER, noise};
use dumont_core::snapshot::{SnapshotHead, Verdict};
use dumont_snapshot::{DirStore, RestoreOptions, restore};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tempfile::TempDir;

/// The restored directory.
fn restored(version: u8) -> TempDir {
    let objects = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/version-{version}"));
    let head: SnapshotHead = serde_json::from_slice(&fs::read(objects.join("head.json")).unwrap()).unwrap();
    for object in fs::read_dir(objects.join("packs")).unwrap() {
        assert_eq!(fs::read(object.unwrap().path()).unwrap()[8..10], [version, 0]);
    }
    let out = tempfile::tempdir().unwrap();
    let options = RestoreOptions::new(out.path(), &NEVER);
    let report = restore(&options, &head, &DirStore::new(objects), &Lines::default()).unwrap();
    assert_eq!(report.validation.validation, Verdict::Ok);
    let text = format!("hello from version {version}\n").repeat(300);
    assert_eq!(fs::read(out.path().join("text")).unwrap(), text.into_bytes());
    assert_eq!(fs::read(out.path().join("sub/noise")).unwrap(), noise(3000, 1));
    assert_eq!(fs::read(out.path().join("empty")).unwrap(), b"");
    assert_eq!(fs::read_link(out.path().join("link")).unwrap(), Path::new("text"));
    out
}

#[test]
fn a_snapshot_of_version_1_restores() {
    restored(1);
}

#[test]
fn a_snapshot_of_version_2_restores() {
    let out = restored(2);
    let floats: Vec<u8> = noise(6000, 2).iter().flat_map(|b| [*b, 0x3c + b % 3]).collect();
    assert_eq!(fs::read(out.path().join("sub/floats")).unwrap(), floats);
    assert_eq!(fs::read(out.path().join("hole")).unwrap(), vec![0; 1 << 20]);
    let inode = |name: &str| fs::metadata(out.path().join(name)).unwrap().ino();
    assert_eq!(inode("sub/again"), inode("text"));
}
