//! Making the best of a store that has lost something.
//!
//! Packs are read completely and every chunk in them is proven; what is good goes into one new
//! index. So a lost or damaged index is rebuilt from the packs alone, a chunk that is damaged in one
//! pack and good in another is found there, and one that is damaged everywhere is in no index any
//! more: nobody counts on it, and a machine that still has the file uploads it anew. What cannot be
//! brought back is named by snapshot and file.
//!
//! Like a compaction this changes and removes nothing: it writes an index, and whoever keeps the
//! heads points them to it.

use crate::error::Error;
use crate::events::Abort;
use crate::format::digest;
use crate::index::{ChunkMap, Index};
use crate::pack::{PackEntry, read_sealed_pack};
use crate::printable::printable;
use crate::reader::chunks;
use crate::restore::fetch::{Fetcher, parallel};
use crate::restore::load::{self, Manifest};
use crate::seal::Vault;
use crate::store::{ObjectSink, ObjectSource, StoreError};
use crate::upload::put;
use dumont_core::id::Digest;
use dumont_core::key::WorkspaceKey;
use dumont_core::snapshot::{DamagedObject, LostFiles, ObjectKind, ObjectRef, SnapshotHead};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Packs read at the same time; each is in memory whole.
const THREADS: usize = 3;
/// More are counted but not listed.
const MOST_NAMED: usize = 1000;

/// What was found, and the index that takes the place of all others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Repair {
    /// Absent if the snapshots' own indexes lead to good bytes of all they need.
    pub index: Option<ObjectRef>,
    /// The packs that it leads to.
    pub packs: Vec<ObjectRef>,
    pub packs_read: u64,
    pub bytes_read: u64,
    pub damaged: Vec<DamagedObject>,
    /// Snapshots that have lost something.
    pub lost: Vec<LostFiles>,
}

/// A pack's good chunks.
struct Found {
    object: ObjectRef,
    good: Vec<PackEntry>,
    /// Whether all of it is.
    problem: Option<String>,
}

/// Looks at all `packs` of a workspace and writes an index of what is good in them, if `heads` need
/// one. `head`s are the visible snapshots.
///
/// # Errors
/// [`Error::Cancelled`], [`Error::Key`], a transfer that fails, or an index that cannot be stored.
pub fn repair(
    heads: &[SnapshotHead],
    packs: &[String],
    source: &dyn ObjectSource,
    sink: &dyn ObjectSink,
    key: Option<&WorkspaceKey>,
    cancelled: &AtomicBool,
) -> Result<Repair, Error> {
    let vault = Vault::new(key);
    let mut out = Repair::default();
    let found = look_at_packs(packs, source, &vault, cancelled, &mut out)?;
    let mut map = ChunkMap::default();
    for pack in &found {
        map.add(Index {
            packs: vec![pack.object.clone()],
            entries: pack.good.iter().map(|e| (0, *e)).collect(),
        });
    }
    let good: HashSet<(Digest, &str)> = found
        .iter()
        .flat_map(|p| p.good.iter().map(|e| (e.id, p.object.key.as_str())))
        .collect();
    let (mut needed, mut rebuild) = (HashSet::new(), false);
    for head in heads {
        let own = own_indexes(head, source, &vault, cancelled, &mut out)?;
        // Each on its own: an error ends everything that shares its `Abort`.
        let abort = Abort::new(cancelled);
        let fetcher = Fetcher::new(source, vault.clone(), &abort);
        match load::manifest(head, &map, &fetcher).map_err(|e| abort.explain(e)) {
            Ok(manifest) => {
                let files = manifest.leaves.iter().flat_map(|l| chunks(&l.body));
                let ids: HashSet<Digest> = files.chain(&manifest.chunks).copied().collect();
                rebuild |= ids.iter().any(|id| !leads_to(&own, id, &good));
                needed.extend(ids);
                out.lost.extend(lost_files(head, &manifest, &map));
            }
            Err(Error::Corrupt { .. } | Error::ObjectMissing { .. }) => out.lost.push(LostFiles {
                snapshot_id: head.snapshot_id.clone(),
                everything: true,
                files: head.files,
                names: Vec::new(),
            }),
            Err(e) => return Err(e),
        }
    }
    let any_tree_lost = out.lost.iter().any(|l| l.everything);
    if rebuild || !out.lost.is_empty() {
        // While a tree is unreadable nobody knows which chunks it needs: all that is good stays.
        let wanted = |e: &PackEntry| any_tree_lost || needed.contains(&e.id);
        let index = gather(&found, wanted);
        out.index = Some(put(sink, ObjectKind::Index, &index.encode_with(&vault)?)?);
        out.packs = index.packs;
    }
    Ok(out)
}

/// What the head's own indexes say; those that cannot be read are named and count for nothing.
fn own_indexes(
    head: &SnapshotHead,
    source: &dyn ObjectSource,
    vault: &Vault,
    cancelled: &AtomicBool,
    out: &mut Repair,
) -> Result<ChunkMap, Error> {
    let mut map = ChunkMap::default();
    for object in &head.indexes {
        let one = SnapshotHead {
            indexes: vec![object.clone()],
            ..head.clone()
        };
        // Each on its own: an error ends everything that shares its `Abort`.
        let abort = Abort::new(cancelled);
        let fetcher = Fetcher::new(source, vault.clone(), &abort);
        let problem = match load::indexes(&one, &fetcher).map_err(|e| abort.explain(e)) {
            Ok(index) => {
                map.extend(index);
                continue;
            }
            Err(Error::Corrupt { detail, .. }) => detail,
            Err(Error::ObjectMissing { .. }) => "it is missing".into(),
            Err(e) => return Err(e),
        };
        if out.damaged.iter().all(|d| d.object != object.key) {
            out.damaged.push(DamagedObject {
                object: object.key.clone(),
                problem,
            });
        }
    }
    Ok(map)
}

/// Whether a restore by these indexes finds good bytes of the chunk.
fn leads_to(own: &ChunkMap, id: &Digest, good: &HashSet<(Digest, &str)>) -> bool {
    let packs = own.places(id).filter_map(|place| own.pack(place).ok());
    packs
        .into_iter()
        .any(|object| good.contains(&(*id, object.key.as_str())))
}

fn look_at_packs(
    packs: &[String],
    source: &dyn ObjectSource,
    vault: &Vault,
    cancelled: &AtomicBool,
    out: &mut Repair,
) -> Result<Vec<Found>, Error> {
    let abort = Abort::new(cancelled);
    let bytes_read = AtomicU64::new(0);
    let fetcher = Fetcher::new(source, vault.clone(), &abort);
    fetcher.prepare(packs).map_err(|e| abort.explain(e))?;
    let look = |key: &String| look_at_pack(key, source, &fetcher, vault, &bytes_read);
    // In the order of their keys, which is that of their making: the first good copy wins.
    let found = parallel(THREADS, packs, &abort, look).map_err(|e| abort.explain(e))?;
    out.packs_read = packs.len() as u64;
    out.bytes_read = bytes_read.load(Relaxed);
    for pack in &found {
        if let Some(problem) = &pack.problem {
            out.damaged.push(DamagedObject {
                object: pack.object.key.clone(),
                problem: problem.clone(),
            });
        }
    }
    Ok(found)
}

fn look_at_pack(
    key: &str,
    source: &dyn ObjectSource,
    fetcher: &Fetcher<'_>,
    vault: &Vault,
    bytes_read: &AtomicU64,
) -> Result<Found, Error> {
    fetcher.abort.check()?;
    let object = |bytes: &[u8]| ObjectRef {
        key: key.into(),
        size: bytes.len() as u64,
        digest: digest(bytes),
        version: None,
    };
    let nothing = |object, problem: String| Found {
        object,
        good: Vec::new(),
        problem: Some(problem),
    };
    let bytes = match source.get(key, None) {
        Ok(bytes) => bytes,
        Err(StoreError::Missing(_)) => return Ok(nothing(object(&[]), "it is missing".into())),
        Err(e) => return Err(Error::store(key, e)),
    };
    bytes_read.fetch_add(bytes.len() as u64, Relaxed);
    let (header, entries) = match read_sealed_pack(key, &bytes) {
        Ok(read) => read,
        Err(Error::Corrupt { detail, .. }) => return Ok(nothing(object(&bytes), detail)),
        Err(e) => return Err(e),
    };
    let mut opener = fetcher.opener()?;
    let mut good = Vec::with_capacity(entries.len());
    for e in &entries {
        let frame = usize::try_from(e.offset)
            .ok()
            .zip(usize::try_from(e.end()).ok())
            .and_then(|(from, to)| bytes.get(from..to));
        if frame.is_some_and(|f| e.open(f, &mut opener).is_ok()) {
            good.push(*e);
        }
    }
    let bad = entries.len() - good.len();
    let problem = match header.fits(key, vault) {
        // The wrong key opens nothing: that is no damage, and must not be taken for it.
        Err(wrong_key) if good.is_empty() => return Err(wrong_key),
        Err(_) => Some("its header names another key than its chunks open with".into()),
        Ok(()) => (bad > 0).then(|| format!("{bad} of its {} chunks are damaged", entries.len())),
    };
    Ok(Found {
        object: object(&bytes),
        good,
        problem,
    })
}

fn lost_files(head: &SnapshotHead, manifest: &Manifest, map: &ChunkMap) -> Option<LostFiles> {
    let mut out = LostFiles {
        snapshot_id: head.snapshot_id.clone(),
        everything: false,
        files: 0,
        names: Vec::new(),
    };
    for (number, leaf) in manifest.leaves.iter().enumerate() {
        if chunks(&leaf.body).any(|id| map.get(id).is_none()) {
            out.files += 1;
            if out.names.len() < MOST_NAMED {
                out.names.push(printable(&manifest.path(number)));
            }
        }
    }
    (out.files > 0).then_some(out)
}

/// One index of the wanted good chunks, each once.
fn gather(found: &[Found], wanted: impl Fn(&PackEntry) -> bool) -> Index {
    let (mut index, mut taken) = (Index::default(), HashSet::new());
    for pack in found {
        let number = u32::try_from(index.packs.len()).unwrap_or(u32::MAX);
        let before = index.entries.len();
        for e in pack.good.iter().filter(|e| wanted(e)) {
            if taken.insert(e.id) {
                index.entries.push((number, *e));
            }
        }
        if index.entries.len() > before {
            index.packs.push(pack.object.clone());
        }
    }
    index
}
