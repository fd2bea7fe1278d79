//! Extended attributes, holes, and the MD5 of model files.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{NEVER, World, holes, noise, settle, tree};
use dumont_core::snapshot::{SnapshotHead, Verdict};
use dumont_snapshot::{ChangeKind, Reader, RestoreOptions, compare_models};
use rustix::fs::{XattrFlags, removexattr, setxattr};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

fn xattr(path: &Path, name: &str, value: &[u8]) {
    setxattr(path, name, value, XattrFlags::empty()).unwrap();
}

#[test]
fn extended_attributes_come_back_and_cost_only_themselves() {
    let mut world = World::new();
    let w = world.work();
    fs::create_dir(w.join("dir")).unwrap();
    fs::write(w.join("file"), noise(300_000, 1)).unwrap();
    fs::write(w.join("read-only"), "x").unwrap();
    fs::write(w.join("bare"), "y").unwrap();
    xattr(&w, "user.of-the-root", b"r");
    xattr(&w.join("dir"), "user.label", b"a directory");
    xattr(&w.join("file"), "user.long", &noise(2000, 2));
    xattr(&w.join("file"), "user.empty", b"");
    xattr(&w.join("read-only"), "user.a", b"b");
    fs::set_permissions(w.join("read-only"), fs::Permissions::from_mode(0o400)).unwrap();
    let (_, first, _) = world.snapshot();
    let before = tree(&w);
    assert_eq!(world.restored(&first), before);

    settle();
    removexattr(w.join("file"), "user.empty").unwrap();
    xattr(&w.join("bare"), "user.new", b"1");
    xattr(&w.join("dir"), "user.label", b"changed");
    let (report, second, _) = world.snapshot();
    assert_eq!(report.files_changed, 2, "a directory is none");
    assert!(report.uploaded_bytes < 10_000, "{}", report.uploaded_bytes);
    assert_eq!(world.restored(&second), tree(&w));
    assert_eq!(world.restored(&first), before);
    let open = |head| Reader::open(head, &world.store, None, &NEVER).unwrap();
    let changes = open(&first).diff(&open(&second));
    assert_eq!(changes.len(), 3, "{changes:?}");
    assert!(changes.iter().all(|c| c.kind == ChangeKind::Attributes));

    // Over a tree that has others, and by a cache that knows.
    xattr(&w.join("file"), "user.stray", b"s");
    xattr(&w.join("dir"), "user.stray", b"s");
    for _ in 0..2 {
        settle();
        let options = RestoreOptions {
            cache_path: Some(world.cache()),
            ..world.restore_options(&w, true)
        };
        let report =
            dumont_snapshot::restore(&options, &first, &world.store, &dumont_snapshot::NoEvents).unwrap();
        assert_eq!(
            report.validation.validation,
            Verdict::Ok,
            "{:?}",
            report.validation
        );
        assert_eq!(tree(&w), before);
    }
    world.parent = Some(first.snapshot_id.clone());
    world.indexes.clone_from(&first.indexes);
    let (next, ..) = world.snapshot();
    assert_eq!(next.files_read, 0, "the restore's cache knows them");
}

#[test]
fn holes_stay_holes() {
    let mut world = World::new();
    let path = world.work().join("sparse");
    let file = File::create(&path).unwrap();
    file.write_all_at(&noise(100_000, 1), 0).unwrap();
    file.write_all_at(&noise(100_000, 2), 20 << 20).unwrap();
    file.set_len(64 << 20).unwrap();
    File::create(world.work().join("nothing-but"))
        .unwrap()
        .set_len(1 << 26)
        .unwrap();
    let (report, head, _) = world.snapshot();
    assert!(report.uploaded_bytes < 250_000, "{}", report.uploaded_bytes);
    let out = tempfile::tempdir().unwrap();
    world.restore_to(&head, out.path(), false).unwrap();
    assert_eq!(tree(out.path()), tree(&world.work()));
    assert_eq!(holes(&out.path().join("sparse")), holes(&path));
    let blocks = fs::metadata(out.path().join("nothing-but")).unwrap().blocks();
    assert_eq!(blocks, 0);
}

/// A world with two model files, one under two names, one with holes, and something else.
fn models() -> (World, SnapshotHead) {
    let mut world = World::new();
    let w = world.work();
    fs::create_dir(w.join("m")).unwrap();
    fs::write(w.join("m/a.safetensors"), noise(3_000_000, 1)).unwrap();
    fs::write(w.join("m/B.SAFETENSORS"), noise(10, 2)).unwrap();
    fs::hard_link(w.join("m/B.SAFETENSORS"), w.join("m/again.safetensors")).unwrap();
    fs::write(w.join("other.txt"), "text").unwrap();
    File::create(w.join("m/hole.safetensors"))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    settle();
    let (_, head, _) = world.snapshot();
    (world, head)
}

fn compared(world: &World, head: &SnapshotHead, path: &Path) -> dumont_core::snapshot::ModelFiles {
    let options = RestoreOptions::new(path, &NEVER);
    compare_models(&options, head, &world.store).unwrap()
}

#[test]
fn model_files_are_compared_and_a_mismatch_is_named() {
    let (world, head) = models();
    let out = tempfile::tempdir().unwrap();
    world.restore_to(&head, out.path(), false).unwrap();
    let good = compared(&world, &head, out.path());
    assert_eq!(
        (
            good.validation,
            good.files_checked,
            good.files_expected,
            good.changed
        ),
        (Verdict::Ok, 2, 2, 0)
    );
    // One byte, and the time as it was: no workload does that.
    let path = out.path().join("m/a.safetensors");
    let mtime = fs::metadata(&path).unwrap().modified().unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"\0\0", 1_234_567).unwrap();
    file.set_modified(mtime).unwrap();
    let bad = compared(&world, &head, out.path());
    assert_eq!((bad.validation, bad.files_checked), (Verdict::Failed, 2));
    assert_eq!(bad.mismatched, ["m/a.safetensors"]);
    // What the workload writes or removes is its own affair.
    file.set_modified(UNIX_EPOCH + Duration::from_secs(1)).unwrap();
    let changed = compared(&world, &head, out.path());
    assert_eq!(
        (changed.validation, changed.files_checked, changed.changed),
        (Verdict::Ok, 1, 1)
    );
    fs::remove_file(&path).unwrap();
    assert_eq!(compared(&world, &head, out.path()).changed, 1);
}

#[test]
fn an_md5_is_kept_as_long_as_its_file_is_unchanged() {
    let (mut world, _) = models();
    settle();
    fs::write(world.work().join("m/c.safetensors"), noise(1000, 3)).unwrap();
    let (report, head, _) = world.snapshot();
    assert_eq!(report.files_read, 1);
    let out = tempfile::tempdir().unwrap();
    let cache_path = world.temp.path().join("other/cache");
    let options = RestoreOptions {
        cache_path: Some(cache_path.clone()),
        ..world.restore_options(out.path(), false)
    };
    dumont_snapshot::restore(&options, &head, &world.store, &dumont_snapshot::NoEvents).unwrap();
    // Again, when its clock has moved on: only then does it trust what it remembers.
    settle();
    dumont_snapshot::restore(&options, &head, &world.store, &dumont_snapshot::NoEvents).unwrap();
    assert_eq!(compared(&world, &head, out.path()).files_checked, 3);
    // On the new machine, too, by what the restore remembers.
    fs::write(out.path().join("other.txt"), "changed").unwrap();
    let options = dumont_snapshot::SnapshotOptions {
        path: out.path().to_owned(),
        cache_path,
        ..world.options()
    };
    let next = dumont_snapshot::snapshot(&options, &world.store, &dumont_snapshot::NoEvents).unwrap();
    assert_eq!((next.files_read, next.files_changed), (1, 1));
    let head = world.commit(&next);
    assert_eq!(compared(&world, &head, out.path()).files_checked, 3);
}
