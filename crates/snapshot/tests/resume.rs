//! Restoring over what is already there: after a break, after a change, over another tree.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Lines, World, noise, settle, tree};
use dumont_core::snapshot::{Progress, RestoreReport, SnapshotHead, Verdict};
use dumont_snapshot::{Error, Events, ObjectSource, RestoreOptions, StoreError, restore};
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};

const MB: usize = 1 << 20;

/// Fails every request after the first few.
struct Breaking<'a> {
    world: &'a World,
    left: AtomicI64,
}

impl ObjectSource for Breaking<'_> {
    fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Vec<u8>, StoreError> {
        if self.left.fetch_sub(1, Relaxed) <= 0 {
            return Err(StoreError::Transfer("cut".into()));
        }
        self.world.store.get(key, range)
    }
}

/// Two files of weights, small files around them, and links.
fn furnish(root: &Path) {
    fs::create_dir(root.join("models")).unwrap();
    fs::create_dir(root.join("src")).unwrap();
    fs::write(root.join("models/a.bin"), noise(30 * MB, 1)).unwrap();
    fs::write(root.join("models/b.bin"), noise(20 * MB, 2)).unwrap();
    fs::hard_link(root.join("models/b.bin"), root.join("src/again")).unwrap();
    for i in 0..20 {
        fs::write(root.join(format!("src/{i}.py")), noise(3000, 100 + i)).unwrap();
    }
    fs::set_permissions(root.join("src/3.py"), fs::Permissions::from_mode(0o400)).unwrap();
    File::create(root.join("sparse"))
        .unwrap()
        .set_len(5 << 20)
        .unwrap();
}

/// One worker and the shortest ranges: what was fetched before a break is well defined.
fn step_by_step<'a>(path: &Path) -> RestoreOptions<'a> {
    RestoreOptions {
        delete: true,
        workers: 1,
        memory: 1,
        ..RestoreOptions::new(path, &common::NEVER)
    }
}

fn good(report: &RestoreReport) {
    assert_eq!(report.validation.problems, Vec::<String>::new());
    assert_eq!(report.validation.validation, Verdict::Ok);
}

fn furnished() -> (World, SnapshotHead, PathBuf) {
    let mut world = World::new();
    furnish(&world.work());
    let (_, head, _) = world.snapshot();
    let out = world.temp.path().join("out");
    (world, head, out)
}

#[test]
fn what_is_there_is_not_fetched_again() {
    let (world, head, out) = furnished();
    let first = world.restore_to(&head, &out, true).unwrap();
    assert_eq!(first.reused_bytes, 0);
    let second = world.restore_to(&head, &out, true).unwrap();
    good(&second);
    assert_eq!(
        second.reused_bytes,
        first.bytes_restored - (5 << 20),
        "all but the hole"
    );
    assert!(second.downloaded_bytes < 64 << 10, "{second:?}");
    assert_eq!(tree(&out), tree(&world.work()));
}

#[test]
fn a_restore_broken_off_at_any_request_goes_on_where_it_was() {
    let (world, head, out) = furnished();
    let whole = world.restore_to(&head, &out, true).unwrap();
    let tree_bytes = world.restore_to(&head, &out, true).unwrap().downloaded_bytes;
    let mut breaks = 0;
    for requests in 1.. {
        common::unlock(&out);
        fs::remove_dir_all(&out).unwrap();
        let source = Breaking {
            world: &world,
            left: AtomicI64::new(requests),
        };
        let options = step_by_step(&out);
        match restore(&options, &head, &source, &Lines::default()) {
            Err(Error::Transfer { .. }) => breaks += 1,
            other => {
                good(&other.unwrap());
                break;
            }
        }
        let rest = restore(&options, &head, &world.store, &Lines::default()).unwrap();
        good(&rest);
        assert_eq!(tree(&out), tree(&world.work()));
        // What the first part fetched of files it kept; the tree is read twice.
        let data = whole.downloaded_bytes - tree_bytes;
        assert!(
            rest.downloaded_bytes + rest.reused_bytes <= data + tree_bytes + (64 << 10),
            "after {requests} requests: {rest:?}"
        );
    }
    assert!(breaks > 10, "{breaks}");
}

#[test]
fn only_what_differs_is_fetched() {
    let (world, head, out) = furnished();
    world.restore_to(&head, &out, true).unwrap();
    let at = |name: &str| out.join(name);
    let open = |name: &str| File::options().write(true).open(at(name)).unwrap();
    open("models/a.bin").write_all_at(b"damage", 17 << 20).unwrap();
    open("models/b.bin").set_len(12 << 20).unwrap();
    open("sparse").write_all_at(b"not a hole", 1 << 20).unwrap();
    fs::write(at("src/7.py"), "longer than it was".repeat(900)).unwrap();
    fs::write(at("stray"), "x").unwrap();
    fs::remove_file(at("src/1.py")).unwrap();
    let report = world.restore_to(&head, &out, true).unwrap();
    good(&report);
    assert_eq!(tree(&out), tree(&world.work()));
    // A chunk (4 MiB at most) of one file, 8 MiB and a chunk of the other.
    assert!(report.downloaded_bytes < 17 << 20, "{report:?}");
    assert!(report.reused_bytes > 33 << 20, "{report:?}");
}

#[test]
fn a_file_with_a_name_elsewhere_is_never_written_in_place() {
    let (world, head, out) = furnished();
    fs::create_dir_all(out.join("models")).unwrap();
    let mine = world.temp.path().join("mine");
    let mut bytes = noise(30 * MB, 1);
    bytes[5 * MB] ^= 1;
    fs::write(&mine, &bytes).unwrap();
    fs::hard_link(&mine, out.join("models/a.bin")).unwrap();
    good(&world.restore_to(&head, &out, true).unwrap());
    assert_eq!(tree(&out), tree(&world.work()));
    assert!(fs::read(&mine).unwrap() == bytes);
}

/// The rule of snapshots, used the other way round: size, times and inode say what is in a file.
#[test]
fn a_rollback_fetches_nothing_that_the_files_hold() {
    let (mut world, head, _) = furnished();
    settle();
    fs::write(world.work().join("src/1.py"), "edited").unwrap();
    let (_, _, _) = world.snapshot();
    let options = RestoreOptions {
        cache_path: Some(world.cache()),
        ..world.restore_options(&world.work(), true)
    };
    let before = tree(&world.work());
    let report = restore(&options, &head, &world.store, &Lines::default()).unwrap();
    good(&report);
    assert!(report.downloaded_bytes < 64 << 10, "{report:?}");
    let after = tree(&world.work());
    assert_ne!(before, after);
    assert_eq!(after, world.restored(&head));
    // And the next snapshot goes on from there.
    world.parent = Some(head.snapshot_id.clone());
    world.indexes = head.indexes.clone();
    let (report, head, _) = world.snapshot();
    assert_eq!((report.files_changed, report.full_because), (0, None));
    assert_eq!(world.restored(&head), after);
}

#[test]
fn transfers_stay_within_their_memory() {
    let (world, head, out) = furnished();
    for memory in [1 << 20, 64 << 20, 96 << 20, 0] {
        let options = RestoreOptions {
            memory,
            workers: 8,
            delete: true,
            ..RestoreOptions::new(&out, &common::NEVER)
        };
        let report = restore(&options, &head, &world.store, &Lines::default()).unwrap();
        good(&report);
        // Less than one chunk and what it is decoded with cannot be.
        let most = if memory == 0 { 256 << 20 } else { memory }.max(18 << 20);
        assert!(report.peak_buffer_bytes <= most, "{memory}: {report:?}");
        assert!(report.peak_buffer_bytes > 4 << 20, "{memory}: {report:?}");
        common::unlock(&out);
        fs::remove_dir_all(&out).unwrap();
    }
}

/// Looks at the directory in the moment when the priority files are said to be there.
struct Watch<'a> {
    out: &'a Path,
    seen: AtomicBool,
}

impl Events for Watch<'_> {
    fn progress(&self, _: Progress) {}
    fn log(&self, line: &str) {
        if line == "Priority files are restored" {
            assert!(fs::read(self.out.join("models/b.bin")).unwrap() == noise(20 * MB, 2));
            assert!(fs::read(self.out.join("models/a.bin")).unwrap() != noise(30 * MB, 1));
            self.seen.store(true, Relaxed);
        }
    }
}

#[test]
fn what_has_priority_is_there_first() {
    let (world, head, out) = furnished();
    let watch = Watch {
        out: &out,
        seen: AtomicBool::new(false),
    };
    let options = RestoreOptions {
        priority: vec!["models/b.*".into()],
        ..step_by_step(&out)
    };
    good(&restore(&options, &head, &world.store, &watch).unwrap());
    assert!(watch.seen.load(Relaxed));
    assert_eq!(tree(&out), tree(&world.work()));
}
