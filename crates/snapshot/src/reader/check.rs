//! Reads everything that some snapshots need, and names what is damaged.
//!
//! Every pack is read once, however many snapshots share it: whole, so that its own digest can
//! be held against the index, and then chunk by chunk, so that damage is named by the files that
//! it costs. A damaged pack of which all needed chunks are whole costs nothing yet, and is named
//! all the same.

use crate::error::Error;
use crate::events::Abort;
use crate::format::digest;
use crate::index::{ChunkMap, ChunkPlace};
use crate::printable::printable;
use crate::restore::fetch::{Fetcher, parallel};
use crate::restore::load::{self, LeafBody, Manifest};
use crate::seal::Vault;
use crate::store::ObjectSource;
use crate::tree::Extent;
use dumont_core::id::Digest;
use dumont_core::key::WorkspaceKey;
use dumont_core::snapshot::{ObjectRef, SnapshotHead};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Packs read at the same time; each is in memory whole.
const THREADS: usize = 3;
/// Files named of one damaged object.
const MOST_NAMED: usize = 20;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Key of the object, or the snapshot's id where it is about its tree.
    pub object: String,
    pub problem: String,
    /// Snapshots that cannot be restored completely.
    pub snapshots: Vec<String>,
    /// Files that cannot, as `snapshot:path`; at most 20.
    pub files: Vec<String>,
}

/// What a check read and found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckReport {
    pub snapshots: u64,
    pub packs: u64,
    /// Chunks that files or trees need.
    pub chunks: u64,
    pub bytes_read: u64,
    pub damaged: Vec<Damage>,
}

/// A snapshot that could be opened.
struct Opened<'a> {
    head: &'a SnapshotHead,
    map: ChunkMap,
    manifest: Manifest,
}

/// Reads all that the snapshots need. Damage is in the report and no error.
///
/// # Errors
/// [`Error::Cancelled`], or a transfer that fails for another reason than a missing object.
pub fn check(
    heads: &[SnapshotHead],
    source: &dyn ObjectSource,
    key: Option<&WorkspaceKey>,
    cancelled: &AtomicBool,
) -> Result<CheckReport, Error> {
    let abort = Abort::new(cancelled);
    let vault = Vault::new(key);
    let fetcher = Fetcher::new(source, vault.clone(), &abort);
    let mut report = CheckReport {
        snapshots: heads.len() as u64,
        ..CheckReport::default()
    };
    let mut opened = Vec::new();
    for head in heads {
        // Each on its own: an error ends everything that shares its `Abort`.
        let abort = Abort::new(cancelled);
        let fetcher = Fetcher::new(source, vault.clone(), &abort);
        match open(head, &fetcher) {
            Ok(snapshot) => opened.push(snapshot),
            Err(e) => report.damaged.push(unopened(head, abort.explain(e))?),
        }
        report.bytes_read += fetcher.bytes.load(Relaxed);
    }
    let packs = packs(&opened);
    report.packs = packs.len() as u64;
    report.chunks = packs.values().map(|p| p.chunks.len() as u64).sum();
    let keys: Vec<String> = packs.keys().cloned().collect();
    fetcher.prepare(&keys).map_err(|e| abort.explain(e))?;
    let items: Vec<_> = packs.into_values().collect();
    let bad = parallel(THREADS, &items, &abort, |pack| look(pack, &fetcher))?;
    for (pack, bad) in items.iter().zip(bad) {
        if let Some(bad) = bad {
            report.damaged.push(name(pack, &bad, &opened, &fetcher)?);
        }
    }
    report.bytes_read += fetcher.bytes.load(Relaxed);
    Ok(report)
}

fn open<'a>(head: &'a SnapshotHead, fetcher: &Fetcher<'_>) -> Result<Opened<'a>, Error> {
    let map = load::indexes(head, fetcher)?;
    let manifest = load::manifest(head, &map, fetcher)?;
    Ok(Opened { head, map, manifest })
}

fn unopened(head: &SnapshotHead, e: Error) -> Result<Damage, Error> {
    let (object, problem) = match e {
        Error::Corrupt { object, detail } => (object, detail),
        Error::ObjectMissing { key } => (key, "it is missing".into()),
        Error::Version { .. } => (head.snapshot_id.clone(), e.to_string()),
        other => return Err(other),
    };
    Ok(Damage {
        object,
        problem,
        snapshots: vec![head.snapshot_id.clone()],
        files: Vec::new(),
    })
}

/// A pack and the chunks in it that somebody needs.
struct Pack {
    object: ObjectRef,
    chunks: HashMap<Digest, ChunkPlace>,
}

fn packs(opened: &[Opened<'_>]) -> BTreeMap<String, Pack> {
    let mut out: BTreeMap<String, Pack> = BTreeMap::new();
    for s in opened {
        let files = s.manifest.leaves.iter().flat_map(|l| chunks(&l.body));
        let needed: HashSet<&Digest> = files.chain(&s.manifest.chunks).collect();
        // A chunk in no index was named when the snapshot was opened, or is by its file below.
        for place in needed.into_iter().filter_map(|id| s.map.get(id)) {
            let Ok(object) = s.map.pack(place) else { continue };
            let pack = out.entry(object.key.clone()).or_insert_with(|| Pack {
                object: object.clone(),
                chunks: HashMap::new(),
            });
            pack.chunks.insert(place.entry.id, *place);
        }
    }
    out
}

pub(crate) fn chunks(body: &LeafBody) -> impl Iterator<Item = &Digest> {
    let extents: &[Extent] = match body {
        LeafBody::File { extents, .. } => extents,
        LeafBody::Symlink(_) | LeafBody::Fifo => &[],
    };
    extents.iter().filter_map(|e| match e {
        Extent::Chunk { id, .. } => Some(id),
        Extent::Hole { .. } => None,
    })
}

/// What is wrong with a pack.
struct Bad {
    problem: String,
    chunks: HashSet<Digest>,
}

fn look(pack: &Pack, fetcher: &Fetcher<'_>) -> Result<Option<Bad>, Error> {
    let all = || pack.chunks.keys().copied().collect();
    let bytes = match fetcher.get(&pack.object.key, None, pack.object.size) {
        Ok(bytes) => bytes,
        Err(Error::ObjectMissing { .. }) => {
            return Ok(Some(Bad {
                problem: "it is missing".into(),
                chunks: all(),
            }));
        }
        // Cut short, say: what a restore could still get of it is not lost.
        Err(Error::Corrupt { detail, .. }) => return one_by_one(pack, detail, fetcher).map(Some),
        Err(e) => return Err(e),
    };
    let mut opener = fetcher.opener()?;
    let mut bad = HashSet::new();
    for place in pack.chunks.values() {
        let e = &place.entry;
        let frame = bytes.get(e.offset as usize..e.end() as usize);
        if frame.is_none_or(|f| e.open(f, &mut opener).is_err()) {
            bad.insert(e.id);
        }
    }
    Ok(if !bad.is_empty() {
        let problem = format!(
            "{} of the {} chunks needed are damaged",
            bad.len(),
            pack.chunks.len()
        );
        Some(Bad { problem, chunks: bad })
    } else if digest(&bytes) == pack.object.digest {
        None
    } else {
        Some(Bad {
            problem: "its bytes are not those of its digest; the chunks needed are whole".into(),
            chunks: bad,
        })
    })
}

fn one_by_one(pack: &Pack, problem: String, fetcher: &Fetcher<'_>) -> Result<Bad, Error> {
    let (mut opener, mut chunks) = (fetcher.opener()?, HashSet::new());
    for place in pack.chunks.values() {
        match fetcher.chunk_again(&pack.object.key, place, &mut opener, &String::new) {
            Ok(_) => {}
            Err(Error::Corrupt { .. } | Error::ObjectMissing { .. }) => _ = chunks.insert(place.entry.id),
            Err(e) => return Err(e),
        }
    }
    Ok(Bad { problem, chunks })
}

/// What of `bad` a snapshot gets from nowhere else. Another line of snapshots may have the same chunk
/// in a pack of its own, which is looked at for itself.
fn lost(s: &Opened<'_>, pack: &Pack, bad: &Bad, fetcher: &Fetcher<'_>) -> Result<HashSet<Digest>, Error> {
    let (mut opener, mut lost) = (fetcher.opener()?, HashSet::new());
    let here = |place: &ChunkPlace| s.map.pack(place).is_ok_and(|o| o.key == pack.object.key);
    for id in &bad.chunks {
        let Some(place) = s.map.get(id).filter(|p| here(p)) else {
            continue;
        };
        if s.map.places(id).nth(1).is_some() {
            match fetcher.chunk_anywhere(&s.map, place, &mut opener, &String::new) {
                Ok(_) => continue,
                Err(Error::Corrupt { .. } | Error::ObjectMissing { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        lost.insert(*id);
    }
    Ok(lost)
}

fn name(pack: &Pack, bad: &Bad, opened: &[Opened<'_>], fetcher: &Fetcher<'_>) -> Result<Damage, Error> {
    let (mut snapshots, mut files) = (BTreeSet::new(), Vec::new());
    for s in opened {
        let lost = lost(s, pack, bad, fetcher)?;
        if s.manifest.chunks.iter().any(|id| lost.contains(id)) {
            snapshots.insert(s.head.snapshot_id.clone());
        }
        for (number, leaf) in s.manifest.leaves.iter().enumerate() {
            if chunks(&leaf.body).any(|id| lost.contains(id)) {
                snapshots.insert(s.head.snapshot_id.clone());
                if files.len() < MOST_NAMED {
                    let path = printable(&s.manifest.path(number));
                    files.push(format!("{}:{path}", s.head.snapshot_id));
                }
            }
        }
    }
    Ok(Damage {
        object: pack.object.key.clone(),
        problem: bad.problem.clone(),
        snapshots: snapshots.into_iter().collect(),
        files,
    })
}
