//! Bringing a snapshot back.
//!
//! In order: read indexes and tree; see what of it the target already holds; check all of it and
//! the disk's space; make room; create directories; fetch, verify and write; hard links;
//! directories' modes and times; compare the result with the manifest; remember it in the cache.
//! Until the tree is read and found sound nothing in the target is touched.
//!
//! A restore that was broken off is simply run again over what it left: whatever is there and
//! right is kept, whoever put it there, and the result does not depend on the rest.

pub(crate) mod fetch;
pub(crate) mod load;
mod memory;
mod models;
mod plan;
mod replace;
mod survey;
mod target;
mod validate;

use crate::cache::{self, NewCache};
use crate::error::Error;
use crate::events::{Abort, Events, Meter};
use crate::fsutil::{io_at, now_ns, open_root};
use crate::index::ChunkMap;
use crate::scan::{Scan, scan};
use crate::seal::Vault;
use crate::store::ObjectSource;
use dumont_core::id::Digest;
use dumont_core::key::WorkspaceKey;
use dumont_core::snapshot::{RestoreReport, SnapshotHead, Validation, Verdict};
use fetch::{Download, Fetcher, Ready};
use load::Manifest;
use memory::Share;
use plan::{Plan, Turn, Wanted};
use replace::Replacement;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;
use survey::{Survey, Surveyor, remembered};
use target::{Hands, Target};
use validate::{Check, each_known, validate};

pub use models::compare_models;

/// Four connections saturate a 10 Gbit/s link in what was measured; more only cost memory.
const MIN_WORKERS: usize = 4;
/// Each holds a range of 16 MiB and a chunk of 4 MiB.
const MAX_WORKERS: usize = 8;

/// What to restore where.
#[derive(Debug, Clone)]
pub struct RestoreOptions<'a> {
    /// The directory; created with its parents if it does not exist.
    pub path: PathBuf,
    /// Remove what the snapshot does not have.
    pub delete: bool,
    /// Where this machine's cache lies; without one the next snapshot is a full one.
    pub cache_path: Option<PathBuf>,
    /// Transfers at the same time; 0 for 4 to 8 by the number of cores.
    pub workers: usize,
    /// Globs of paths below the directory that come first, e.g. `*.py` or `config/**`.
    pub priority: Vec<String>,
    /// Globs of paths that must be there before the workload may start; [`Events::ready`] says when
    /// they are. From then on they are the workload's, which may change them while the rest comes.
    pub ready_when: Vec<String>,
    /// The workload runs already (an earlier restore got so far): what `ready_when` names and exists
    /// is left as it is.
    pub started: bool,
    /// Globs of paths below the directory that are restored, with the directories they lie in
    /// (`src/**`, `*.json`); none for all. The next snapshot is then a full one.
    pub include: Vec<String>,
    /// Globs of paths that are left alone, also where `include` names them.
    pub exclude: Vec<String>,
    /// Bytes of memory to stay below; 0 for 256 MiB.
    pub memory: u64,
    /// What the workspace's snapshots are sealed with.
    pub key: Option<WorkspaceKey>,
    /// Once true, the engine stops within about a second with [`Error::Cancelled`].
    pub cancelled: &'a AtomicBool,
}

impl<'a> RestoreOptions<'a> {
    /// Into `path`, without any of the rest.
    pub fn new(path: impl Into<PathBuf>, cancelled: &'a AtomicBool) -> Self {
        Self {
            path: path.into(),
            delete: false,
            cache_path: None,
            workers: 0,
            priority: Vec::new(),
            ready_when: Vec::new(),
            started: false,
            include: Vec::new(),
            exclude: Vec::new(),
            memory: 0,
            key: None,
            cancelled,
        }
    }

    /// Whether not all of the snapshot is wanted.
    fn is_part(&self) -> bool {
        !self.include.is_empty() || !self.exclude.is_empty()
    }
}

/// Restores a snapshot into a directory and compares the result with its manifest.
///
/// # Errors
/// Any [`Error`]. A validation that fails is not an error: the report says so.
pub fn restore(
    opts: &RestoreOptions<'_>,
    head: &SnapshotHead,
    source: &dyn ObjectSource,
    events: &dyn Events,
) -> Result<RestoreReport, Error> {
    let begun = Instant::now();
    if opts.delete && opts.is_part() {
        return Err(Error::Invalid {
            what: "a part of a snapshot cannot be restored with everything else deleted".into(),
        });
    }
    let abort = Abort::new(opts.cancelled);
    let fetcher = Fetcher::new(source, Vault::new(opts.key.as_ref()), &abort);
    let (manifest, outcome) = run(opts, head, &fetcher, events).map_err(|e| abort.explain(e))?;
    // Before the first look: whatever changes from now on must look fresh to the next snapshot.
    let started_ns = now_ns();
    let root = open_root(&opts.path).map_err(|e| no_such_path(&opts.path, e.into()))?;
    let check = Check {
        root: &root,
        manifest: &manifest,
        vault: &fetcher.vault,
        xattrs: outcome.xattrs,
        workloads: outcome.ready.as_deref(),
        content: false,
    };
    let expected = if opts.is_part() {
        manifest.files
    } else {
        head.files
    };
    let checking = Instant::now();
    let (validation, seen) = validate(&check, expected, workers(opts.workers), &abort)?;
    let validated = checking.elapsed();
    if let Some(path) = opts
        .cache_path
        .as_ref()
        .filter(|_| validation.validation == Verdict::Ok && !opts.is_part())
    {
        let cache = NewCache {
            snapshot_id: &head.snapshot_id,
            root: head.root,
            started_ns,
            known: outcome.proven,
            nodes: &manifest.chunks,
            entries: &|each| each_known(&manifest, &seen, each),
        };
        if let Err(e) = cache::write_current(path, cache) {
            events.log(&format!("The next snapshot will be a full one: {e}"));
        }
    }
    let elapsed = begun.elapsed();
    events.log(&format!(
        "✓ Restored {} files ({}) in {:.1} seconds",
        manifest.files,
        megabytes(manifest.bytes),
        elapsed.as_secs_f64()
    ));
    Ok(RestoreReport {
        files_restored: manifest.files,
        bytes_restored: manifest.bytes,
        downloaded_bytes: fetcher.bytes.load(Relaxed),
        reused_bytes: outcome.reused_bytes,
        peak_buffer_bytes: fetcher.held.peak.load(Relaxed),
        requests: fetcher.requests.load(Relaxed),
        elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        validation_ms: u64::try_from(validated.as_millis()).unwrap_or(u64::MAX),
        validation,
    })
}

/// Compares a directory with a snapshot: names, types, sizes, modes, mtimes, link targets, and
/// with `content` the hash of every chunk of every file. Reads only the tree from the source.
///
/// # Errors
/// Any [`Error`] of reading the snapshot. What differs in the directory is in the answer.
pub fn verify_tree(
    opts: &RestoreOptions<'_>,
    head: &SnapshotHead,
    source: &dyn ObjectSource,
    content: bool,
) -> Result<Validation, Error> {
    let abort = Abort::new(opts.cancelled);
    let fetcher = Fetcher::new(source, Vault::new(opts.key.as_ref()), &abort);
    let map = load::indexes(head, &fetcher)?;
    let manifest = load::manifest(head, &map, &fetcher)?;
    let root = open_root(&opts.path).map_err(|e| no_such_path(&opts.path, e.into()))?;
    let check = Check {
        root: &root,
        manifest: &manifest,
        vault: &fetcher.vault,
        xattrs: true,
        workloads: None,
        content,
    };
    validate(&check, head.files, workers(opts.workers), &abort).map(|v| v.0)
}

/// How the writing went.
struct Outcome {
    reused_bytes: u64,
    /// Whether all extended attributes could be set.
    xattrs: bool,
    /// Per leaf, whether the workload has had it since; `None` where it had to wait for all.
    ready: Option<Vec<bool>>,
    /// Chunks that were fetched and found good.
    proven: Vec<Digest>,
}

fn run(
    opts: &RestoreOptions<'_>,
    head: &SnapshotHead,
    fetcher: &Fetcher<'_>,
    events: &dyn Events,
) -> Result<(Manifest, Outcome), Error> {
    let map = load::indexes(head, fetcher)?;
    let mut manifest = load::manifest(head, &map, fetcher)?;
    if opts.is_part() {
        manifest.keep(&opts.include, &opts.exclude)?;
    }
    let shown = opts.path.as_path();
    let workers = workers(opts.workers);
    let share = share(opts, &manifest, &map, workers);
    let nothing = Survey::default();
    let wanted = Wanted {
        snapshot_id: &head.snapshot_id,
        manifest: &manifest,
        map: &map,
        survey: &nothing,
        priority: &opts.priority,
        ready_when: &opts.ready_when,
        max_range: share.max_range,
    };
    // Whether it is sound must be known before the directory is even created.
    let mut plan = Plan::new(&wanted)?;
    std::fs::create_dir_all(shown).map_err(|e| no_such_path(shown, e))?;
    let root = open_root(shown).map_err(|e| no_such_path(shown, e.into()))?;
    let existing = scan(&root, shown, workers, fetcher.abort)?;
    let mut replacement = Replacement::plan(&manifest, &existing, opts.delete);
    let mut survey = survey(opts, &root, &manifest, &existing, &replacement, fetcher, workers)?;
    if let Some(workloads) = plan.ready.as_ref().filter(|_| opts.started) {
        survey.leave(&replacement.exists, workloads);
    }
    if !survey.found.is_empty() || !survey.left.is_empty() {
        drop(std::mem::take(&mut plan));
        plan = Plan::new(&Wanted {
            survey: &survey,
            ..wanted
        })?;
    }
    if survey.reused_bytes > 0 {
        let bytes = megabytes(survey.reused_bytes);
        events.log(&format!("Resuming: {bytes} are already there and right"));
    }
    check_space(&root, shown, plan.disk_bytes.saturating_sub(replacement.freed))?;
    replacement.clear(&root, shown, &existing)?;
    drop(existing);
    let mut target = Target::new(root, shown, &manifest, &plan.remaining, events);
    target.exists = std::mem::take(&mut replacement.exists);
    write(share.workers, &plan, &map, &manifest, &target, fetcher, events)?;
    let xattrs = !target.xattrs_failed.load(Relaxed);
    drop(target);
    let fetched = plan.chunks.iter().map(|c| map.place(c.place).entry.id);
    let outcome = Outcome {
        reused_bytes: survey.reused_bytes,
        xattrs,
        proven: fetched.chain(manifest.chunks.iter().copied()).collect(),
        ready: plan.ready,
    };
    Ok((manifest, outcome))
}

fn share(opts: &RestoreOptions<'_>, manifest: &Manifest, map: &ChunkMap, workers: usize) -> Share {
    let memory = if opts.memory == 0 {
        memory::DEFAULT
    } else {
        opts.memory
    };
    let tables = memory::tables(manifest.leaves.len(), map.len());
    Share::of(memory, tables, workers)
}

fn survey(
    opts: &RestoreOptions<'_>,
    root: &OwnedFd,
    manifest: &Manifest,
    scan: &Scan,
    replacement: &Replacement,
    fetcher: &Fetcher<'_>,
    workers: usize,
) -> Result<Survey, Error> {
    let caches = match &opts.cache_path {
        Some(path) if !replacement.exists.is_empty() => cache::all(path),
        _ => Vec::new(),
    };
    let surveyor = Surveyor {
        root,
        manifest,
        scan,
        exists: &replacement.exists,
        remembered: remembered(caches, manifest, scan, &replacement.exists),
        vault: &fetcher.vault,
        abort: fetcher.abort,
    };
    surveyor.survey(workers)
}

fn write(
    workers: usize,
    plan: &Plan,
    map: &ChunkMap,
    manifest: &Manifest,
    target: &Target<'_>,
    fetcher: &Fetcher<'_>,
    events: &dyn Events,
) -> Result<(), Error> {
    let (mut hands, mut others) = (Hands::default(), Hands::default());
    target.create_dirs(&mut hands)?;
    let meter = Meter::new(events, plan.data_bytes, manifest.files, true);
    meter.add(0, plan.settled);
    for &leaf in &plan.touch {
        fetcher.abort.check()?;
        target.touch(leaf, &mut hands)?;
        meter.add(0, 1);
    }
    for &leaf in &plan.patch {
        fetcher.abort.check()?;
        target.patch(leaf, &mut hands)?;
    }
    for &leaf in &plan.large {
        fetcher.abort.check()?;
        target.create_large(leaf, &mut hands)?;
    }
    let urgent = plan.jobs.iter().filter(|j| j.pack().is_some());
    let before_ready = plan.jobs.iter().filter(|j| j.turn() == Turn::Ready).count();
    let download = Download {
        plan,
        map,
        manifest,
        target,
        fetcher,
        meter: &meter,
        next: AtomicUsize::new(0),
        announced: Mutex::new(0),
        ready: Ready {
            jobs: AtomicUsize::new(plan.ready.as_ref().map_or(usize::MAX, |_| before_ready)),
            files: plan.ready.iter().flatten().filter(|needed| **needed).count() as u64,
        },
        urgent: AtomicUsize::new(urgent.filter(|j| j.turn() == Turn::Priority).count()),
        events,
    };
    if plan.ready.is_some() && before_ready == 0 {
        download.say_ready(&mut hands)?;
    }
    std::thread::scope(|s| {
        for _ in 0..workers.min(plan.jobs.len()) {
            s.spawn(|| download.work());
        }
    });
    fetcher.abort.check()?;
    for (name, first) in &plan.links {
        target.link(*name, *first, &mut hands, &mut others)?;
        meter.add(0, 1);
    }
    target.finish_dirs(&mut hands)?;
    meter.finish();
    Ok(())
}

fn workers(asked: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    if asked == 0 {
        cores.clamp(MIN_WORKERS, MAX_WORKERS)
    } else {
        asked.min(MAX_WORKERS)
    }
}

fn check_space(root: &OwnedFd, shown: &Path, needed: u64) -> Result<(), Error> {
    let fs = rustix::fs::fstatvfs(root).map_err(|e| io_at(shown, b"", "ask for the free space of", e))?;
    let free = fs.f_bavail.saturating_mul(fs.f_frsize);
    if needed > free {
        return Err(Error::NoSpace {
            path: shown.display().to_string(),
            needed,
            free,
        });
    }
    Ok(())
}

fn no_such_path(path: &Path, e: std::io::Error) -> Error {
    if e.raw_os_error() == Some(rustix::io::Errno::NOSPC.raw_os_error()) {
        return Error::DiskFull {
            path: path.display().to_string(),
        };
    }
    Error::NoSuchPath {
        path: path.display().to_string(),
        reason: e.to_string(),
    }
}

/// The document's `(Y MB)`.
fn megabytes(bytes: u64) -> String {
    let mb = bytes as f64 / 1e6;
    if mb < 10.0 {
        format!("{mb:.1} MB")
    } else {
        format!("{mb:.0} MB")
    }
}

#[cfg(test)]
#[path = "restore/hostile_tests.rs"]
mod tests;
