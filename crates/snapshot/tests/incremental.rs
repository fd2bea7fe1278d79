//! What an incremental snapshot costs, in files opened, requests and bytes.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{World, noise, settle, tree};
use dumont_core::snapshot::SnapshotType;
use rustix::fs::inotify;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;

/// The kernel's word for which files are opened; what the engine counts is its own.
struct Watch(OwnedFd);

impl Watch {
    fn on(dirs: &[PathBuf]) -> Self {
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        for dir in dirs {
            inotify::add_watch(&fd, dir, inotify::WatchFlags::OPEN).unwrap();
        }
        Self(fd)
    }

    /// Names of files since the last call; directories are opened to be listed.
    fn opened(&self) -> Vec<String> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.0, &mut buffer);
        let mut out = Vec::new();
        while let Ok(event) = events.next() {
            assert!(!event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW));
            if let Some(name) = event
                .file_name()
                .filter(|_| !event.events().contains(inotify::ReadFlags::ISDIR))
            {
                out.push(name.to_str().unwrap().to_owned());
            }
        }
        out
    }
}

#[test]
fn nothing_changed_costs_nothing() {
    let mut world = World::new();
    let dirs: Vec<PathBuf> = (0..100).map(|d| world.work().join(format!("d{d}"))).collect();
    for (d, dir) in dirs.iter().enumerate() {
        fs::create_dir(dir).unwrap();
        for f in 0..300 {
            fs::write(dir.join(format!("f{f}")), format!("{d} {f}")).unwrap();
        }
    }
    settle();
    let (first, _, _) = world.snapshot();
    assert_eq!((first.files_total, first.files_read), (30_000, 30_000));
    let puts = world.store.puts.load(Relaxed);
    let watch = Watch::on(&dirs);
    let (second, _, lines) = world.snapshot();
    assert_eq!(watch.opened(), Vec::<String>::new());
    assert_eq!(second.snapshot_type, SnapshotType::Incremental);
    assert_eq!((second.files_changed, second.files_read), (0, 0));
    assert_eq!(second.uploaded_bytes, 0);
    // The parent's metadata.json and indexes hold.
    assert_eq!((second.metadata, second.index), (None, None));
    assert_eq!(world.store.puts.load(Relaxed), puts);
    assert!(lines.has("Incremental: 0 files changed out of 30000 total"));
    // One file: itself, its directory and the root, an index and metadata.json.
    fs::write(world.work().join("d7/f7"), "edited").unwrap();
    watch.opened();
    let (third, _, _) = world.snapshot();
    assert_eq!((third.files_changed, third.files_read), (1, 1));
    assert_eq!(watch.opened(), ["f7"]);
    assert_eq!(world.store.puts.load(Relaxed), puts + 4);
    let metadata = third.metadata.map_or(0, |m| m.size);
    let rest = third.uploaded_bytes - metadata;
    assert!(rest < 40_000, "{rest} besides metadata.json");
}

/// What a change costs to send: what is new, in whole chunks, and little else.
#[test]
fn edits_cost_what_they_change() {
    const MB: u64 = 1 << 20;
    // (what, how, at most)
    type Edit = (&'static str, fn(&std::path::Path), u64);
    let edits: [Edit; 5] = [
        (
            "rename",
            |w| fs::rename(w.join("big"), w.join("other")).unwrap(),
            MB / 8,
        ),
        (
            "append",
            |w| {
                let mut all = fs::read(w.join("big")).unwrap();
                all.extend(noise(100_000, 7));
                fs::write(w.join("big"), all).unwrap();
            },
            5 * MB,
        ),
        (
            "overwrite in place",
            |w| {
                let mut all = fs::read(w.join("big")).unwrap();
                all[15_000_000..15_000_100].copy_from_slice(&noise(100, 8));
                fs::write(w.join("big"), all).unwrap();
            },
            9 * MB,
        ),
        (
            "insert in front",
            |w| {
                let old = fs::read(w.join("big")).unwrap();
                fs::write(w.join("big"), [noise(1000, 9), old].concat()).unwrap();
            },
            9 * MB,
        ),
        (
            "copy",
            |w| assert_eq!(fs::copy(w.join("big"), w.join("copy")).unwrap(), 30_000_000),
            MB / 8,
        ),
    ];
    for (what, edit, most) in edits {
        let mut world = World::new();
        fs::write(world.work().join("big"), noise(30_000_000, 1)).unwrap();
        world.snapshot();
        edit(&world.work());
        let (report, head, _) = world.snapshot();
        assert!(
            report.uploaded_bytes <= most,
            "{what}: {} bytes sent",
            report.uploaded_bytes
        );
        assert_eq!(world.restored(&head), tree(&world.work()), "{what}");
    }
}

#[test]
fn a_base_that_cannot_be_used_is_named() {
    let mut world = World::new();
    fs::write(world.work().join("file"), "x").unwrap();
    let (first, _, _) = world.snapshot();
    // The agent's directory was lost.
    fs::remove_dir_all(world.cache().parent().unwrap()).unwrap();
    let (lost, _, lines) = world.snapshot();
    assert_eq!(lost.snapshot_type, SnapshotType::Full);
    let why = lost.full_because.unwrap();
    assert!(why.contains(&first.snapshot_id), "{why}");
    assert!(lines.has("Full snapshot: "));
    // It is there and damaged.
    for file in fs::read_dir(world.cache().parent().unwrap()).unwrap() {
        fs::write(file.unwrap().path(), noise(100, 1)).unwrap();
    }
    world.indexes.clear();
    let (damaged, head, _) = world.snapshot();
    assert_eq!(damaged.snapshot_type, SnapshotType::Full);
    assert!(damaged.full_because.unwrap().contains("cannot be used"));
    assert_eq!(world.restored(&head), tree(&world.work()));
}
