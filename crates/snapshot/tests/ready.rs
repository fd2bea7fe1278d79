//! A workload may start before the last byte, and what it makes of its files is its own.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Store, World, noise, settle, tree};
use dumont_core::snapshot::{Progress, SnapshotHead, Verdict};
use dumont_snapshot::{Events, ObjectSource, RestoreOptions, StoreError, restore};
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// Notes when the workload may start.
#[derive(Default)]
struct Listener {
    ready: AtomicBool,
    files: AtomicU64,
}

impl Events for Listener {
    fn progress(&self, _: Progress) {}
    fn log(&self, _: &str) {}
    fn ready(&self, files: u64) {
        self.files.store(files, SeqCst);
        assert!(!self.ready.swap(true, SeqCst), "said once");
    }
}

/// Gives no long stretch before the workload may start.
struct Gate<'a> {
    store: &'a Store,
    listener: &'a Listener,
}

impl ObjectSource for Gate<'_> {
    fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Vec<u8>, StoreError> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while range.as_ref().is_some_and(|r| r.end - r.start > 1 << 20) && !self.listener.ready.load(SeqCst) {
            if Instant::now() > deadline {
                return Err(StoreError::Transfer("never ready".into()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.store.get(key, range)
    }
}

fn furnished() -> (World, SnapshotHead, PathBuf) {
    let mut world = World::new();
    let w = world.work();
    fs::create_dir_all(w.join("app/empty")).unwrap();
    fs::write(w.join("app/main.py"), "print('hello')").unwrap();
    fs::write(w.join("app/none"), "").unwrap();
    std::os::unix::fs::symlink("main.py", w.join("app/link")).unwrap();
    fs::hard_link(w.join("app/main.py"), w.join("elsewhere.py")).unwrap();
    fs::write(w.join("weights"), noise(9_000_000, 1)).unwrap();
    fs::write(w.join("zz-weights"), noise(5_000_000, 2)).unwrap();
    let (_, head, _) = world.snapshot();
    let out = world.temp.path().join("out");
    (world, head, out)
}

fn options(world: &World, out: &std::path::Path) -> RestoreOptions<'static> {
    RestoreOptions {
        ready_when: vec!["app/**".into()],
        cache_path: Some(world.temp.path().join("other/cache")),
        ..world.restore_options(out, false)
    }
}

#[test]
fn what_is_named_is_there_before_the_rest() {
    let (world, head, out) = furnished();
    let listener = Listener::default();
    let gate = Gate {
        store: &world.store,
        listener: &listener,
    };
    let report = restore(&options(&world, &out), &head, &gate, &listener).unwrap();
    assert!(listener.ready.load(SeqCst));
    // The script with both its names, the link, and the empty file.
    assert_eq!(listener.files.load(SeqCst), 4);
    assert_eq!(
        report.validation.validation,
        Verdict::Ok,
        "{:?}",
        report.validation
    );
    assert_eq!(report.validation.files_restored, 6);
    assert_eq!(tree(&out), tree(&world.work()));
    // Over a tree that holds all of it, it is ready at once, and once.
    let listener = Listener::default();
    restore(&options(&world, &out), &head, &world.store, &listener).unwrap();
    assert!(listener.ready.load(SeqCst));
}

#[test]
fn what_the_workload_changes_meanwhile_is_kept_and_not_believed() {
    let (mut world, head, out) = furnished();
    /// A workload that writes as soon as it may.
    struct Workload<'a>(&'a std::path::Path);
    impl Events for Workload<'_> {
        fn progress(&self, _: Progress) {}
        fn log(&self, _: &str) {}
        fn ready(&self, _: u64) {
            fs::write(self.0.join("app/main.py"), "print('HELLO')").unwrap();
            fs::write(self.0.join("app/log"), "its own").unwrap();
            fs::remove_file(self.0.join("app/none")).unwrap();
        }
    }
    let workload = Workload(&out);
    let report = restore(&options(&world, &out), &head, &world.store, &workload).unwrap();
    assert_eq!(
        report.validation.validation,
        Verdict::Ok,
        "{:?}",
        report.validation
    );
    let holds = || {
        assert_eq!(
            fs::read_to_string(out.join("app/main.py")).unwrap(),
            "print('HELLO')"
        );
        assert_eq!(fs::read_to_string(out.join("app/log")).unwrap(), "its own");
        assert_eq!(fs::read(out.join("weights")).unwrap(), noise(9_000_000, 1));
    };
    holds();
    // A restore that is taken up again leaves what is its own, and brings the rest.
    fs::remove_file(out.join("zz-weights")).unwrap();
    fs::write(out.join("weights"), noise(1000, 3)).unwrap();
    let again = RestoreOptions {
        started: true,
        ..options(&world, &out)
    };
    let report = restore(&again, &head, &world.store, &Listener::default()).unwrap();
    assert_eq!(
        report.validation.validation,
        Verdict::Ok,
        "{:?}",
        report.validation
    );
    holds();
    assert_eq!(fs::read(out.join("zz-weights")).unwrap(), noise(5_000_000, 2));
    // The next snapshot sees what changed, though nobody compared it.
    settle();
    world.parent = Some(head.snapshot_id.clone());
    let next = dumont_snapshot::SnapshotOptions {
        path: out.clone(),
        cache_path: world.temp.path().join("other/cache"),
        ..world.options()
    };
    let report = dumont_snapshot::snapshot(&next, &world.store, &dumont_snapshot::NoEvents).unwrap();
    assert!(report.full_because.is_none(), "{:?}", report.full_because);
    let taken = world.commit(&report);
    assert_eq!(world.restored(&taken), tree(&out));
}
