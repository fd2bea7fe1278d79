//! Taking a snapshot: look, read what changed, upload what is new, say what the root is.
//!
//! The tree is listed completely first, then changed files are read, then the directories are
//! encoded from the leaves up. Nodes are always encoded and never looked up in a cache: it
//! costs microseconds per directory, and a node that comes out as before is simply a chunk that
//! the store already has. So "nothing changed" needs no code of its own and uploads nothing.
//!
//! **Changed files** ([`SnapshotReport::files_changed`]) are the paths, directories aside, that
//! are new, gone, or recorded differently than in the parent (type, content, size, mode, owner,
//! mtime, target, extended attributes). A file that was read again because its times were too fresh, and turned out
//! the same, is not counted. A full snapshot counts every path.

mod manifest;
mod plan;
mod read;

use crate::cache::{self, Cache, NewCache};
use crate::chunk::Window;
use crate::codec::{Budget, Encoder};
use crate::error::Error;
use crate::events::{Abort, Events, Meter};
use crate::format::plausible;
use crate::fsutil::{Time, now_ns, open_root};
use crate::index;
use crate::metadata;
use crate::scan::{Scan, scan};
use crate::seal::Vault;
use crate::store::ObjectSink;
use crate::upload::{Chunks, Packed, Packer, put, uploads};
use dumont_core::key::WorkspaceKey;
use dumont_core::snapshot::{ObjectKind, ObjectRef, SnapshotReport, SnapshotType};
use manifest::Manifest;
use plan::Plan;
use read::ReadPool;
use rustix::fs::FileType;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Condvar, Mutex};
use std::time::Instant;

/// More workers than this are of no use to any network, and each costs up to 18 MB.
const MAX_WORKERS: usize = 6;

/// Bytes of an incremental snapshot that are compressed harder, a second of one core at most. Most
/// send less than that; the first is in more of a hurry.
const HARDER: u64 = 32 << 20;

/// What to snapshot and how.
#[derive(Debug, Clone)]
pub struct SnapshotOptions<'a> {
    /// The directory. Anything mounted below it is part of it.
    pub path: PathBuf,
    /// `{instance}-{unix}`, of letters, digits and `._-`.
    pub stamp: String,
    /// The last committed snapshot that this machine took or restored; none means full.
    pub parent: Option<String>,
    /// Read every file even if its times say it did not change.
    pub full: bool,
    /// Where this machine's cache lies; should be outside of `path`.
    pub cache_path: PathBuf,
    /// 0 for one per core, at most 6.
    pub workers: usize,
    /// Seals all that is stored. The same for every snapshot of a workspace.
    pub key: Option<WorkspaceKey>,
    /// Ends of the names of files whose MD5 is taken while they are read, e.g. `.safetensors`.
    pub model_files: Vec<String>,
    /// Once true, the engine stops within about a second with [`Error::Cancelled`].
    pub cancelled: &'a AtomicBool,
}

/// What each worker keeps for itself.
struct Tools<'a> {
    window: Window,
    encoder: Encoder<'a>,
    sealed: Vec<u8>,
}

impl<'a> Tools<'a> {
    fn new(packer: &'a Packer<'_>) -> Result<Self, Error> {
        Ok(Self {
            window: Window::new(packer.vault.cuts()),
            encoder: Encoder::new(&packer.budget)?,
            sealed: Vec::new(),
        })
    }
}

/// What the snapshot builds on.
struct Base {
    id: String,
    kind: SnapshotType,
    full_because: Option<String>,
    cache: Option<Cache>,
}

impl Base {
    fn of(opts: &SnapshotOptions<'_>) -> Result<Self, Error> {
        let invalid = || Error::Invalid {
            what: format!("stamp {:?} is not {{instance}}-{{unix}}", opts.stamp),
        };
        let plain = |s: &str| {
            s.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let (instance, unix) = opts.stamp.rsplit_once('-').ok_or_else(invalid)?;
        let unix: i64 = unix.parse().map_err(|_| invalid())?;
        if instance.is_empty() || opts.stamp.len() > 200 || !plain(&opts.stamp) {
            return Err(invalid());
        }
        // A parent becomes part of a file name.
        let parent = opts.parent.as_deref();
        if let Some(p) = parent.filter(|p| !plain(p) || p.len() > 220 || p.is_empty()) {
            return Err(Error::Invalid {
                what: format!("parent {p:?} is not a snapshot id"),
            });
        }
        let (cache, because) = match parent.map(|p| cache::load(&opts.cache_path, p)) {
            Some(Ok(cache)) => (Some(cache), None),
            Some(Err(why)) => (None, Some(why)),
            None => {
                cache::clean(&opts.cache_path, None);
                (None, None)
            }
        };
        let kind = if cache.is_none() || opts.full {
            SnapshotType::Full
        } else {
            SnapshotType::Incremental
        };
        let full_because = because.filter(|_| !opts.full);
        Ok(Self {
            id: kind.snapshot_id(instance, unix),
            kind,
            full_because,
            cache,
        })
    }
}

/// Takes a snapshot of a directory. When it returns, every object that the report names is
/// stored; whether the snapshot exists is up to whoever commits it.
///
/// # Errors
/// Any [`Error`]; objects already uploaded then belong to no snapshot.
pub fn snapshot(
    opts: &SnapshotOptions<'_>,
    sink: &dyn ObjectSink,
    events: &dyn Events,
) -> Result<SnapshotReport, Error> {
    let begun = Instant::now();
    let started_ns = now_ns();
    let root = open_root(&opts.path).map_err(|e| Error::NoSuchPath {
        path: opts.path.display().to_string(),
        reason: std::io::Error::from(e).to_string(),
    })?;
    let mut base = Base::of(opts)?;
    if let Some(why) = &base.full_because {
        events.log(&format!("Full snapshot: {why}"));
    }
    let abort = Abort::new(opts.cancelled);
    let workers = workers(opts.workers);
    let scan = scan(&root, &opts.path, workers, &abort)?;
    plausible_tree(&scan, &opts.path)?;
    let plan = Plan::new(&scan, base.cache.as_mut().filter(|_| !opts.full))?;
    let known = base.cache.as_mut().map_or(Ok(Vec::new()), Cache::known)?;
    let vault = Vault::new(opts.key.as_ref());
    let chunks = Chunks::new(known, plan.jobs());
    let budget = Budget::of(match base.kind {
        SnapshotType::Full => 0,
        SnapshotType::Incremental => HARDER,
    });
    let uploads = uploads(plan.leaves(), workers);
    let packer = Packer::new(sink, &vault, &abort, chunks, uploads, budget);
    let manifest = run(opts, &root, &plan, &packer, events, &abort, workers)?;
    let packed = packer.finish();
    let put = Put { sink, vault: &vault };
    finish(
        opts, base, &plan, manifest, packed, put, events, started_ns, begun,
    )
}

/// What no restore would accept is refused now, while the files are still there.
fn plausible_tree(scan: &Scan, path: &Path) -> Result<(), Error> {
    let leaves = || scan.dirs.iter().flat_map(|d| &d.leaves);
    let fifos = leaves().filter(|l| l.meta.kind == FileType::Fifo).count();
    if plausible(
        (leaves().count() - fifos) as u64,
        (scan.dirs.len() + fifos) as u64,
    ) {
        return Ok(());
    }
    let what = format!(
        "{} holds over a million directories more than files",
        path.display()
    );
    Err(Error::Invalid { what })
}

fn workers(asked: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    if asked == 0 {
        cores.clamp(1, MAX_WORKERS)
    } else {
        asked.min(MAX_WORKERS)
    }
}

/// Reads, uploads and encodes. Afterwards all packs are stored.
#[allow(
    clippy::too_many_arguments,
    reason = "one call, each argument a part of the run"
)]
fn run(
    opts: &SnapshotOptions<'_>,
    root: &OwnedFd,
    plan: &Plan<'_>,
    packer: &Packer<'_>,
    events: &dyn Events,
    abort: &Abort<'_>,
    workers: usize,
) -> Result<Manifest, Error> {
    let meter = Meter::new(events, plan.bytes_to_read, plan.jobs() as u64, false);
    let pool = ReadPool {
        root,
        shown: &opts.path,
        plan,
        model_files: &opts.model_files,
        packer,
        meter: &meter,
        abort,
        queue: Mutex::default(),
        wake: Condvar::new(),
    };
    let encoded = std::thread::scope(|s| {
        for _ in 0..packer.uploads {
            s.spawn(|| packer.upload());
        }
        std::thread::scope(|readers| {
            for _ in 0..if plan.jobs() == 0 { 0 } else { workers } {
                readers.spawn(|| pool.work());
            }
        });
        let encoded = abort
            .check()
            .and_then(|()| manifest::build(plan, packer, events, &mut Tools::new(packer)?));
        // Always closed, or the upload threads would wait for ever.
        let closed = packer.close();
        encoded.and_then(|m| closed.map(|()| m))
    });
    abort.result()?;
    meter.finish();
    encoded
}

/// Where the last objects go.
#[derive(Clone, Copy)]
struct Put<'a> {
    sink: &'a dyn ObjectSink,
    vault: &'a Vault,
}

#[allow(
    clippy::too_many_arguments,
    reason = "one call, each argument a part of the report"
)]
fn finish(
    opts: &SnapshotOptions<'_>,
    mut base: Base,
    plan: &Plan<'_>,
    manifest: Manifest,
    packed: Packed,
    to: Put<'_>,
    events: &dyn Events,
    started_ns: i64,
    begun: Instant,
) -> Result<SnapshotReport, Error> {
    let changed = match &mut base.cache {
        Some(then) if base.kind == SnapshotType::Incremental => plan.changed(manifest.entries, then)?,
        _ => manifest.entries,
    };
    let index = put_index(&packed, to)?;
    let metadata = if base.kind == SnapshotType::Full || changed > 0 {
        let taken = Time {
            sec: started_ns.div_euclid(1_000_000_000),
            ns: u32::try_from(started_ns.rem_euclid(1_000_000_000)).unwrap_or(0),
        };
        let files = |each: metadata::Each<'_>| plan.each_by_path(each);
        let body = metadata::encode(&base.id, taken, files, manifest.bytes, to.vault)?;
        Some(put(to.sink, ObjectKind::Metadata, &body)?)
    } else {
        None
    };
    if base.kind == SnapshotType::Incremental {
        events.log(&format!(
            "Incremental: {changed} files changed out of {} total",
            manifest.files
        ));
    }
    let (packs, known) = packed.into_parts();
    let uploaded_bytes = packs.iter().chain(&index).chain(&metadata).map(|o| o.size).sum();
    let cache = NewCache {
        snapshot_id: &base.id,
        root: manifest.root,
        started_ns,
        known,
        nodes: &manifest.nodes,
        entries: &|each| plan.each_known(each),
    };
    // The snapshot itself is complete; without a cache the next one is only slower.
    if let Err(e) = cache::write_pending(&opts.cache_path, cache) {
        events.log(&format!("The next snapshot will be a full one: {e}"));
    }
    Ok(SnapshotReport {
        snapshot_id: base.id,
        snapshot_type: base.kind,
        full_because: base.full_because,
        root: manifest.root,
        files_total: manifest.files,
        files_changed: changed,
        files_read: plan.jobs() as u64,
        total_bytes: manifest.bytes,
        packs,
        index,
        metadata,
        uploaded_bytes,
        torn: manifest.torn,
        elapsed_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

fn put_index(packed: &Packed, to: Put<'_>) -> Result<Option<ObjectRef>, Error> {
    let Some(payload) = packed.index() else {
        return Ok(None);
    };
    let index = index::encode(payload, to.vault)?;
    put(to.sink, ObjectKind::Index, &index).map(Some)
}
