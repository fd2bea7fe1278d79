//! A workspace, a store and a cache in one temporary directory, and exact comparison of trees.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "test code, and not every test program uses all of it"
)]

use dumont_core::id::Digest;
use dumont_core::key::WorkspaceKey;
use dumont_core::snapshot::{
    ObjectKind, ObjectRef, Progress, RestoreReport, SnapshotHead, SnapshotReport, Verdict,
};
use dumont_snapshot::{
    DirStore, Error, Events, ObjectSink, ObjectSource, RestoreOptions, SnapshotOptions, StoreError, restore,
    snapshot,
};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

pub static NEVER: AtomicBool = AtomicBool::new(false);

/// Keeps the lines.
#[derive(Default)]
pub struct Lines(pub Mutex<Vec<String>>);

impl Events for Lines {
    fn progress(&self, _: Progress) {}
    fn log(&self, line: &str) {
        self.0.lock().unwrap().push(line.into());
    }
}

impl Lines {
    pub fn has(&self, part: &str) -> bool {
        self.0.lock().unwrap().iter().any(|l| l.contains(part))
    }
}

/// A directory store that counts.
pub struct Store {
    pub dir: DirStore,
    pub puts: AtomicU64,
    pub gets: AtomicU64,
}

impl ObjectSink for Store {
    fn put(&self, kind: ObjectKind, digest: Digest, body: &[u8]) -> Result<ObjectRef, StoreError> {
        self.puts.fetch_add(1, Relaxed);
        self.dir.put(kind, digest, body)
    }
}

impl ObjectSource for Store {
    fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Vec<u8>, StoreError> {
        self.gets.fetch_add(1, Relaxed);
        self.dir.get(key, range)
    }
}

/// One machine with its workspace and cache, and a store.
pub struct World {
    pub temp: tempfile::TempDir,
    pub store: Store,
    pub indexes: Vec<ObjectRef>,
    pub parent: Option<String>,
    pub clock: i64,
    pub key: Option<WorkspaceKey>,
}

impl World {
    pub fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("w")).unwrap();
        let dir = DirStore::new(temp.path().join("store"));
        let store = Store {
            dir,
            puts: AtomicU64::new(0),
            gets: AtomicU64::new(0),
        };
        Self {
            temp,
            store,
            indexes: Vec::new(),
            parent: None,
            clock: 1_766_230_181,
            key: None,
        }
    }

    pub fn work(&self) -> PathBuf {
        self.temp.path().join("w")
    }

    pub fn cache(&self) -> PathBuf {
        self.temp.path().join("agent/cache")
    }

    pub fn options(&mut self) -> SnapshotOptions<'static> {
        self.clock += 1;
        SnapshotOptions {
            path: self.work(),
            stamp: format!("29049571-{}", self.clock),
            parent: self.parent.clone(),
            full: false,
            cache_path: self.cache(),
            workers: 2,
            key: self.key.clone(),
            model_files: vec![".safetensors".into()],
            cancelled: &NEVER,
        }
    }

    /// What the controller does: take a snapshot, commit it, keep its head.
    pub fn snapshot(&mut self) -> (SnapshotReport, SnapshotHead, Lines) {
        let lines = Lines::default();
        let report = snapshot(&self.options(), &self.store, &lines).unwrap();
        let head = self.commit(&report);
        (report, head, lines)
    }

    pub fn commit(&mut self, report: &SnapshotReport) -> SnapshotHead {
        self.indexes.extend(report.index.clone());
        self.parent = Some(report.snapshot_id.clone());
        SnapshotHead {
            snapshot_id: report.snapshot_id.clone(),
            root: report.root,
            indexes: self.indexes.clone(),
            files: report.files_total,
            bytes: report.total_bytes,
        }
    }

    pub fn restore_to(&self, head: &SnapshotHead, path: &Path, delete: bool) -> Result<RestoreReport, Error> {
        restore(
            &self.restore_options(path, delete),
            head,
            &self.store,
            &Lines::default(),
        )
    }

    pub fn restore_options(&self, path: &Path, delete: bool) -> RestoreOptions<'static> {
        RestoreOptions {
            delete,
            workers: 4,
            key: self.key.clone(),
            ..RestoreOptions::new(path, &NEVER)
        }
    }

    /// Restores into a new directory and returns what came out.
    pub fn restored(&self, head: &SnapshotHead) -> BTreeMap<Vec<u8>, String> {
        let out = tempfile::tempdir_in(self.temp.path()).unwrap();
        let report = self.restore_to(head, out.path(), false).unwrap();
        assert_eq!(
            report.validation.validation,
            Verdict::Ok,
            "{:?}",
            report.validation
        );
        let found = tree(out.path());
        unlock(out.path());
        found
    }
}

impl Drop for World {
    fn drop(&mut self) {
        unlock(self.temp.path());
    }
}

/// Makes every directory removable again.
pub fn unlock(path: &Path) {
    if fs::symlink_metadata(path).is_ok_and(|m| m.is_dir()) {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        for e in fs::read_dir(path).unwrap() {
            unlock(&e.unwrap().path());
        }
    }
}

/// Everything about a tree that a restore must bring back, by path; `""` is the root.
pub fn tree(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let (mut out, mut inodes) = (BTreeMap::new(), BTreeMap::new());
    walk(root, b"", &mut out, &mut inodes);
    out
}

fn walk(path: &Path, name: &[u8], out: &mut BTreeMap<Vec<u8>, String>, inodes: &mut BTreeMap<u64, Vec<u8>>) {
    let m = fs::symlink_metadata(path).unwrap();
    let t = m.file_type();
    let time = format!("{}.{:09}", m.mtime(), m.mtime_nsec());
    let text = if t.is_dir() {
        let mut names: Vec<_> = fs::read_dir(path)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        for n in names {
            let below = [name, b"/", n.as_bytes()].concat();
            walk(&path.join(&n), &below, out, inodes);
        }
        format!("dir {:o} {time}", m.mode())
    } else if t.is_symlink() {
        format!("link {:?} {time}", fs::read_link(path).unwrap())
    } else if t.is_fifo() {
        format!("fifo {:o} {time}", m.mode())
    } else {
        let first = inodes.entry(m.ino()).or_insert_with(|| name.to_vec()).clone();
        let content = blake3::hash(&fs::read(path).unwrap());
        format!(
            "file {:o} {time} {} {} of {:?} {}",
            m.mode(),
            m.len(),
            content,
            OsStr::from_bytes(&first),
            m.nlink()
        )
    };
    out.insert(name.to_vec(), format!("{text}{}", xattrs(path)));
}

/// The user's own extended attributes; links and fifos have none.
fn xattrs(path: &Path) -> String {
    let mut names = vec![0; 1 << 16];
    let Ok(n) = rustix::fs::llistxattr(path, &mut names[..]) else {
        return String::new();
    };
    let mut all: Vec<String> = names[..n]
        .split(|b| *b == 0)
        .filter(|name| name.starts_with(b"user."))
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let n = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            format!(" {}={}", String::from_utf8_lossy(name), blake3::hash(&value[..n]))
        })
        .collect();
    all.sort();
    all.concat()
}

/// Where a file has data and where it has holes, in steps of 64 KiB: what a restore must keep.
pub fn holes(path: &Path) -> Vec<bool> {
    let file = fs::File::open(path).unwrap();
    let size = file.metadata().unwrap().len();
    let step = 64 << 10;
    let is_hole = |at: u64| match rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
        Ok(data) => data >= size.min(at + step),
        Err(_) => true,
    };
    (0..size).step_by(step as usize).map(is_hole).collect()
}

/// Bytes that do not compress.
pub fn noise(n: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; n];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut out);
    out
}

/// Lets the file system's clock move on, so that what is there counts as settled.
pub fn settle() {
    std::thread::sleep(std::time::Duration::from_millis(45));
}
