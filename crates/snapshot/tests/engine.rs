//! What the engine promises, one promise a test.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Lines, NEVER, World, noise, settle, tree};
use dumont_core::snapshot::{SnapshotType, Verdict};
use dumont_snapshot::{Error, snapshot, verify_tree};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn set_mtime(path: &std::path::Path, ns: u64) {
    File::options()
        .read(true)
        .open(path)
        .unwrap()
        .set_modified(UNIX_EPOCH + Duration::from_nanos(ns))
        .unwrap();
}

fn mode(path: &std::path::Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Something of everything.
fn furnish(w: &std::path::Path) {
    fs::create_dir_all(w.join("src/deep/er")).unwrap();
    fs::create_dir(w.join("empty")).unwrap();
    fs::write(w.join("src/main.rs"), "fn main() {}\n".repeat(500)).unwrap();
    fs::write(w.join("zero"), b"").unwrap();
    fs::write(w.join("weights.bin"), noise(9 << 20, 1)).unwrap();
    fs::write(w.join(OsStr::from_bytes(b"new\nline \xff\xfe")), b"odd").unwrap();
    fs::hard_link(w.join("weights.bin"), w.join("src/deep/er/same.bin")).unwrap();
    symlink("/nowhere/at/all", w.join("dangling")).unwrap();
    symlink("src", w.join("to-dir")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        w.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o640),
        0,
    )
    .unwrap();
    let sparse = File::create(w.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(b"in the middle", 20 << 20).unwrap();
    File::create(w.join("all-hole"))
        .unwrap()
        .set_len(5 << 20)
        .unwrap();
    fs::write(w.join("tool"), b"#!/bin/sh\n").unwrap();
    mode(&w.join("tool"), 0o4755);
    set_mtime(&w.join("tool"), 1_234_567_890_123_456_789);
    fs::create_dir(w.join("locked")).unwrap();
    fs::write(w.join("locked/in"), b"x").unwrap();
    mode(&w.join("locked/in"), 0o400);
    mode(&w.join("locked"), 0o555);
    set_mtime(&w.join("locked"), 1_000_000_000_000_000_001);
    mode(w, 0o1750);
    set_mtime(w, 1_100_000_000_000_000_003);
}

#[test]
fn a_tree_of_everything_comes_back() {
    let mut world = World::new();
    furnish(&world.work());
    let (report, head, _) = world.snapshot();
    assert_eq!(report.snapshot_type, SnapshotType::Full);
    assert_eq!(report.snapshot_id, "base-29049571-1766230182");
    assert_eq!(
        (report.full_because.as_ref(), report.files_changed),
        (None, report.files_total + 1)
    );
    assert_eq!(report.total_bytes, head.bytes);
    let out = world.temp.path().join("out");
    let done = world.restore_to(&head, &out, false).unwrap();
    assert_eq!(done.validation.validation, Verdict::Ok, "{:?}", done.validation);
    assert_eq!(done.files_restored, report.files_total);
    assert_eq!(tree(&out), tree(&world.work()));
    let sparse = fs::metadata(out.join("sparse")).unwrap();
    assert!(
        sparse.blocks() * 512 < 1 << 20,
        "holes were filled: {} blocks",
        sparse.blocks()
    );
}

#[test]
fn nothing_changed_uploads_nothing() {
    let mut world = World::new();
    furnish(&world.work());
    let (first, ..) = world.snapshot();
    settle();
    let (_, _, _) = world.snapshot();
    settle();
    let before = world.store.puts.load(std::sync::atomic::Ordering::Relaxed);
    // A file that may not even be opened is not: only its times are looked at.
    let (report, head, lines) = world.snapshot();
    assert_eq!(
        world.store.puts.load(std::sync::atomic::Ordering::Relaxed),
        before
    );
    assert_eq!((report.files_changed, report.uploaded_bytes), (0, 0));
    assert_eq!(
        (report.metadata, report.index, report.root),
        (None, None, first.root)
    );
    assert!(report.snapshot_id.starts_with("incr-29049571-"));
    assert!(lines.has("Incremental: 0 files changed out of"));
    assert_eq!(world.restored(&head), tree(&world.work()));
}

#[test]
fn unchanged_files_are_not_opened() {
    use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
    let mut world = World::new();
    for i in 0..5 {
        fs::write(world.work().join(format!("f{i}")), noise(100_000, i)).unwrap();
    }
    settle();
    world.snapshot();
    let watch = inotify::init(CreateFlags::NONBLOCK).unwrap();
    for i in 0..5 {
        inotify::add_watch(&watch, world.work().join(format!("f{i}")), WatchFlags::OPEN).unwrap();
    }
    world.snapshot();
    let opened = || {
        let mut buf = [std::mem::MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&watch, &mut buf);
        std::iter::from_fn(|| events.next().ok().map(|e| e.wd())).count()
    };
    assert_eq!(opened(), 0);
    fs::write(world.work().join("f3"), b"changed").unwrap();
    let written = opened();
    world.snapshot();
    assert_eq!((written, opened()), (1, 1), "only the changed one is read");
}

#[test]
fn three_files_changed() {
    let mut world = World::new();
    for i in 0..20 {
        fs::write(world.work().join(format!("f{i}")), noise(1000, i)).unwrap();
    }
    settle();
    world.snapshot();
    fs::write(world.work().join("f3"), b"changed").unwrap();
    fs::write(world.work().join("new"), b"new").unwrap();
    fs::remove_file(world.work().join("f7")).unwrap();
    let (report, head, lines) = world.snapshot();
    assert_eq!((report.files_changed, report.files_total), (3, 20));
    assert!(lines.has("Incremental: 3 files changed out of 20 total"));
    assert!(
        report.metadata.is_some() && report.uploaded_bytes < 10_000,
        "{report:?}"
    );
    assert_eq!(world.restored(&head), tree(&world.work()));
}

#[test]
fn edits_that_keep_size_and_mtime_are_caught() {
    let mut world = World::new();
    let path = world.work().join("f");
    fs::write(&path, b"before").unwrap();
    set_mtime(&path, 1_000_000_000);
    settle();
    world.snapshot();
    settle();
    fs::write(&path, b"after!").unwrap();
    set_mtime(&path, 1_000_000_000);
    let (report, head, _) = world.snapshot();
    assert_eq!(report.files_changed, 1);
    assert_eq!(world.restored(&head), tree(&world.work()));
}

#[test]
fn a_file_written_during_the_last_snapshot_is_read_again() {
    let mut world = World::new();
    let path = world.work().join("f");
    fs::write(&path, b"1").unwrap();
    let (_, _, _) = world.snapshot();
    // The same size within the same tick of the clock: only the racy rule sees it.
    fs::write(&path, b"2").unwrap();
    let (_, head, _) = world.snapshot();
    assert_eq!(world.restored(&head), tree(&world.work()));
}

#[test]
fn append_and_rename_cost_what_they_change() {
    let mut world = World::new();
    let data = noise(24 << 20, 5);
    fs::write(world.work().join("a"), &data).unwrap();
    let (first, ..) = world.snapshot();
    assert!(first.uploaded_bytes > 24 << 20);
    fs::rename(world.work().join("a"), world.work().join("b")).unwrap();
    File::options()
        .append(true)
        .open(world.work().join("b"))
        .unwrap()
        .write_all(b"more")
        .unwrap();
    let (second, head, _) = world.snapshot();
    assert_eq!(second.files_changed, 2);
    assert!(second.uploaded_bytes < 5 << 20, "{}", second.uploaded_bytes);
    assert_eq!(world.restored(&head), tree(&world.work()));
}

#[test]
fn a_lost_or_damaged_cache_means_a_full_snapshot_that_says_why() {
    let mut world = World::new();
    fs::write(world.work().join("f"), b"x").unwrap();
    world.snapshot();
    let (report, ..) = world.snapshot();
    assert_eq!(report.full_because, None);
    let pending: Vec<_> = fs::read_dir(world.temp.path().join("agent")).unwrap().collect();
    assert_eq!(pending.len(), 2, "{pending:?}");
    for e in fs::read_dir(world.temp.path().join("agent")).unwrap() {
        let path = e.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    let (report, head, lines) = world.snapshot();
    assert_eq!(report.snapshot_type, SnapshotType::Full);
    assert!(
        report
            .full_because
            .as_ref()
            .is_some_and(|w| w.contains("checksum")),
        "{report:?}"
    );
    assert!(lines.has("Full snapshot: "));
    assert!(!report.packs.is_empty(), "nothing is known any more");
    fs::remove_dir_all(world.temp.path().join("agent")).unwrap();
    let (report, ..) = world.snapshot();
    assert!(
        report
            .full_because
            .is_some_and(|w| w.contains("no cache of base-"))
    );
    assert_eq!(world.restored(&head), tree(&world.work()));
}

#[test]
fn a_snapshot_that_was_never_committed_leaves_no_trace() {
    let mut world = World::new();
    fs::write(world.work().join("f"), noise(1000, 1)).unwrap();
    world.snapshot();
    fs::write(world.work().join("f"), noise(1000, 2)).unwrap();
    let lost = snapshot(&world.options(), &world.store, &Lines::default()).unwrap();
    assert_eq!(lost.packs.len(), 2, "data and tree");
    // The controller refused it: its chunks must be uploaded again, under the old parent.
    let (report, head, _) = world.snapshot();
    assert_eq!((report.packs.len(), report.files_changed), (2, 1));
    assert_eq!(world.restored(&head), tree(&world.work()));
}

#[test]
fn full_reads_everything_but_uploads_nothing_known() {
    let mut world = World::new();
    fs::write(world.work().join("f"), noise(1 << 20, 1)).unwrap();
    world.snapshot();
    let report = snapshot(
        &dumont_snapshot::SnapshotOptions {
            full: true,
            ..world.options()
        },
        &world.store,
        &Lines::default(),
    )
    .unwrap();
    assert_eq!(
        (report.snapshot_type, report.full_because),
        (SnapshotType::Full, None)
    );
    assert!(report.packs.is_empty() && report.metadata.is_some());
}

#[test]
fn a_restore_is_a_parent() {
    let mut world = World::new();
    furnish(&world.work());
    let (report, head, _) = world.snapshot();
    let out = world.temp.path().join("out");
    let cache_path = world.temp.path().join("other/cache");
    let opts = dumont_snapshot::RestoreOptions {
        cache_path: Some(cache_path.clone()),
        ..world.restore_options(&out, false)
    };
    let lines = Lines::default();
    dumont_snapshot::restore(&opts, &head, &world.store, &lines).unwrap();
    assert!(
        lines.has("Downloading: 100% (") && lines.has("✓ Restored 11 files (82 MB) in "),
        "{:?}",
        lines.0
    );
    fs::write(out.join("zero"), b"no more").unwrap();
    let opts = dumont_snapshot::SnapshotOptions {
        path: out.clone(),
        cache_path,
        ..world.options()
    };
    let next = snapshot(&opts, &world.store, &Lines::default()).unwrap();
    assert_eq!(
        (next.snapshot_type, next.files_changed),
        (SnapshotType::Incremental, 1)
    );
    assert_ne!(next.root, report.root);
    assert!(next.uploaded_bytes < 10_000, "{}", next.uploaded_bytes);
    let head = world.commit(&next);
    assert_eq!(world.restored(&head), tree(&out));
}

#[test]
fn a_file_that_never_stands_still_is_torn() {
    let mut world = World::new();
    let path = world.work().join("log");
    fs::write(&path, noise(6 << 20, 1)).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (report, head, lines) = std::thread::scope(|s| {
        s.spawn(|| {
            let f = File::options().write(true).open(&path).unwrap();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                f.write_all_at(b"x", 10).unwrap();
                f.set_modified(SystemTime::now()).unwrap();
            }
        });
        // On a busy machine the writer may sleep through all three reads.
        let torn = (0..100).map(|_| world.snapshot()).find(|s| !s.0.torn.is_empty());
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        torn.unwrap()
    });
    assert_eq!(report.torn, ["log"]);
    assert!(lines.has("Warning: log changed while it was read"));
    settle();
    let (report, next, _) = world.snapshot();
    assert!(report.torn.is_empty());
    assert_eq!(world.restored(&next), tree(&world.work()));
    assert_eq!(world.restored(&head).len(), 2);
}

#[test]
fn restoring_over_something_else_gives_the_snapshot() {
    let mut world = World::new();
    furnish(&world.work());
    let (_, head, _) = world.snapshot();
    let out = world.temp.path().join("out");
    let outside = world.temp.path().join("outside");
    fs::create_dir_all(out.join("weights.bin/full/of")).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), b"precious").unwrap();
    symlink(&outside, out.join("src")).unwrap();
    fs::hard_link(outside.join("precious"), out.join("tool")).unwrap();
    symlink(outside.join("precious"), out.join("zero")).unwrap();
    fs::write(out.join("extra"), b"extra").unwrap();
    fs::create_dir(out.join("extra-dir")).unwrap();
    fs::write(out.join("extra-dir/f"), b"extra").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(out.join("dangling")).unwrap();
    fs::create_dir(out.join("locked")).unwrap();
    mode(&out.join("locked"), 0o500);
    world.restore_to(&head, &out, false).unwrap();
    assert_eq!(fs::read(outside.join("precious")).unwrap(), b"precious");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert!(out.join("extra-dir/f").exists());
    let done = world.restore_to(&head, &out, true).unwrap();
    assert_eq!(done.validation.validation, Verdict::Ok);
    assert_eq!(tree(&out), tree(&world.work()));
}

#[test]
fn validation_names_what_differs() {
    let mut world = World::new();
    fs::write(world.work().join("a"), b"aaaa").unwrap();
    fs::write(world.work().join("b"), b"bbbb").unwrap();
    fs::write(world.work().join("c"), b"cccc").unwrap();
    let (_, head, _) = world.snapshot();
    let opts = world.restore_options(&world.work(), false);
    let verify = |content| verify_tree(&opts, &head, &world.store, content).unwrap();
    assert_eq!(verify(true).validation, Verdict::Ok);
    let time = fs::metadata(world.work().join("a")).unwrap().modified().unwrap();
    fs::write(world.work().join("a"), b"aaab").unwrap();
    File::open(world.work().join("a"))
        .unwrap()
        .set_modified(time)
        .unwrap();
    mode(&world.work().join("b"), 0o777);
    fs::remove_file(world.work().join("c")).unwrap();
    let found = verify(true);
    assert_eq!(
        (found.validation, found.files_restored, found.files_expected),
        (Verdict::Failed, 0, 3)
    );
    let text = found.problems.join("\n");
    assert!(
        text.contains("a: its bytes differ") && text.contains("b: mode 777"),
        "{text}"
    );
    assert!(text.contains("c: No such file"), "{text}");
    assert_eq!(
        verify(false).files_restored,
        1,
        "sizes and times alone do not see it"
    );
}

#[test]
fn what_is_asked_for_must_exist() {
    let mut world = World::new();
    let opts = dumont_snapshot::SnapshotOptions {
        path: "/no/such/dir".into(),
        ..world.options()
    };
    let e = snapshot(&opts, &world.store, &Lines::default()).unwrap_err();
    assert!(
        matches!(&e, Error::NoSuchPath { path, .. } if path == "/no/such/dir"),
        "{e}"
    );
    let opts = dumont_snapshot::SnapshotOptions {
        stamp: "../x".into(),
        ..world.options()
    };
    assert!(matches!(
        snapshot(&opts, &world.store, &Lines::default()),
        Err(Error::Invalid { .. })
    ));
    let stop = std::sync::atomic::AtomicBool::new(true);
    let opts = dumont_snapshot::SnapshotOptions {
        cancelled: &stop,
        ..world.options()
    };
    assert!(matches!(
        snapshot(&opts, &world.store, &Lines::default()),
        Err(Error::Cancelled)
    ));
    assert!(!NEVER.load(std::sync::atomic::Ordering::Relaxed));
}

#[test]
fn names_longer_than_a_path_can_be() {
    let mut world = World::new();
    let mut fd = rustix::fs::open(
        world.work(),
        rustix::fs::OFlags::DIRECTORY,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    let name = "d".repeat(200);
    for _ in 0..50 {
        rustix::fs::mkdirat(&fd, &name, rustix::fs::Mode::RWXU).unwrap();
        fd = rustix::fs::openat(
            &fd,
            &name,
            rustix::fs::OFlags::DIRECTORY,
            rustix::fs::Mode::empty(),
        )
        .unwrap();
    }
    let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
    let f = rustix::fs::openat(&fd, "bottom", flags, rustix::fs::Mode::RUSR).unwrap();
    rustix::io::write(&f, b"here").unwrap();
    let (report, head, _) = world.snapshot();
    assert_eq!(report.files_total, 1);
    let out = world.temp.path().join("out");
    let done = world.restore_to(&head, &out, false).unwrap();
    assert_eq!(
        (done.validation.validation, done.files_restored),
        (Verdict::Ok, 1)
    );
    // And the way down can be removed again.
    fs::remove_dir_all(world.work()).unwrap();
    fs::create_dir(world.work()).unwrap();
    let (_, empty, _) = world.snapshot();
    world.restore_to(&empty, &out, true).unwrap();
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
}
