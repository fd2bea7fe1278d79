//! What a file costs in memory. A workspace may have a million of them, and the machine is rented
//! for something else: so tables are bounded by bytes allocated per file, which no scheduler changes.

#![allow(clippy::unwrap_used, reason = "test code")]
#![allow(unsafe_code, reason = "an allocator that counts is one")]

mod common;

use common::{Lines, NEVER, noise};
use dumont_core::snapshot::{SnapshotHead, SnapshotReport, Verdict};
use dumont_snapshot::{DirStore, RestoreOptions, SnapshotOptions, restore, snapshot};
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes; buffers of packs and ranges are longer, and bounded by themselves. No table of this
/// test is.
const BUFFER: usize = 8 << 20;

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn add(bytes: usize) {
    if bytes < BUFFER {
        PEAK.fetch_max(NOW.fetch_add(bytes, Relaxed) + bytes, Relaxed);
    }
}

fn sub(bytes: usize) {
    if bytes < BUFFER {
        NOW.fetch_sub(bytes, Relaxed);
    }
}

// SAFETY: all of it is the system's allocator; what is counted besides touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller keeps the contract of the same function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        sub(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // The kernel moves the pages of long tables: there are never two of them.
        sub(layout.size());
        add(size);
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Files, 100 to a directory, with names as long as such names are.
fn make(tree: &Path, from: usize, to: usize) {
    for i in from..to {
        let dir = tree.join(format!("package-{:03}/module-{:02}", i / 1000, i / 100 % 10));
        if i % 100 == 0 {
            fs::create_dir_all(&dir).unwrap();
        }
        fs::write(dir.join(format!("some_source_{i:06}.py")), noise(700, i as u64)).unwrap();
    }
}

/// The most that `f` has allocated at once.
fn peak<T>(f: impl FnOnce() -> T) -> (usize, T) {
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let out = f();
    (PEAK.load(Relaxed) - before, out)
}

/// Of a first snapshot, one in which nothing changed, a restore, and one over what is there.
fn peaks(temp: &Path, tree: &Path, stamp: u32) -> [usize; 4] {
    let store = DirStore::new(temp.join(format!("store-{stamp}")));
    let cache = temp.join(format!("cache-{stamp}"));
    let take = |n: u32, parent: Option<&SnapshotReport>| {
        let options = SnapshotOptions {
            path: tree.into(),
            stamp: format!("{stamp}-{n}"),
            parent: parent.map(|p| p.snapshot_id.clone()),
            full: false,
            cache_path: cache.clone(),
            workers: 2,
            key: None,
            model_files: Vec::new(),
            cancelled: &NEVER,
        };
        snapshot(&options, &store, &Lines::default()).unwrap()
    };
    // Files are believed by their times only once these lie behind.
    std::thread::sleep(std::time::Duration::from_millis(100));
    let (first, report) = peak(|| take(1, None));
    let (again, unchanged) = peak(|| take(2, Some(&report)));
    assert_eq!((unchanged.files_read, unchanged.uploaded_bytes), (0, 0));
    let head = SnapshotHead {
        snapshot_id: report.snapshot_id,
        root: report.root,
        indexes: report.index.into_iter().collect(),
        files: report.files_total,
        bytes: report.total_bytes,
    };
    let out = temp.join(format!("out-{stamp}"));
    let bring = || {
        let options = RestoreOptions {
            cache_path: Some(temp.join(format!("restored-{stamp}"))),
            // One worker and the shortest ranges, which even the small tree fills.
            memory: 1,
            ..RestoreOptions::new(&out, &NEVER)
        };
        let report = restore(&options, &head, &store, &Lines::default()).unwrap();
        assert_eq!(report.validation.validation, Verdict::Ok);
    };
    [first, again, peak(bring).0, peak(bring).0]
}

#[test]
fn a_file_costs_a_bounded_number_of_bytes() {
    let temp = tempfile::tempdir().unwrap();
    let tree = temp.path().join("tree");
    let (few, many) = (8_000, 24_000);
    make(&tree, 0, few);
    let small = peaks(temp.path(), &tree, 1);
    make(&tree, few, many);
    let large = peaks(temp.path(), &tree, 2);
    let each: Vec<usize> = small
        .iter()
        .zip(large)
        .map(|(small, large)| large.saturating_sub(*small) / (many - few))
        .collect();
    let names = ["first", "unchanged", "restore", "over it"];
    println!(
        "bytes allocated a file: {:?}",
        names.iter().zip(&each).collect::<Vec<_>>()
    );
    let most = [450, 300, 420, 550];
    assert!(
        each.iter().zip(most).all(|(e, most)| (1..most).contains(e)),
        "{each:?}"
    );
}
