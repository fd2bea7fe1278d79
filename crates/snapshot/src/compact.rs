//! Making room: the chunks that some snapshots need, without the dead around them.
//!
//! A pack of which nothing is needed any more simply goes; one of which more than half is dead is
//! replaced by its living chunks in new packs. All that is left is written into one new index, and
//! the snapshots' heads are pointed to it by whoever keeps them. Nothing that exists is changed or
//! removed here: until the heads are changed the new objects are garbage, and afterwards the old
//! ones are, so that a crash in between costs space and nothing else.
//!
//! Chunks are copied as they are stored (sealed ones, too), after they were decoded and held against their id. Where
//! two snapshots have a chunk in different packs, one whose bytes are good is chosen.

use crate::error::Error;
use crate::events::Abort;
use crate::index::{ChunkMap, ChunkPlace, Index};
use crate::pack::{Class, FRAME_LEN, Opener, PackBuilder, PackEntry};
use crate::reader::chunks;
use crate::restore::fetch::Fetcher;
use crate::restore::load;
use crate::seal::Vault;
use crate::store::{ObjectSink, ObjectSource};
use crate::upload::put;
use dumont_core::id::Digest;
use dumont_core::key::WorkspaceKey;
use dumont_core::snapshot::{ObjectKind, ObjectRef, SnapshotHead};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::AtomicBool;

/// Living chunks are read together if no more than this lies between them, in ranges of at most
/// `RANGE` bytes: a request costs as much as some hundred KiB, and the dead are not read for it.
const GAP: u64 = 256 << 10;
const RANGE: u64 = 16 << 20;

/// So many indexes are worth one that replaces them: a restore reads each.
const MANY_INDEXES: usize = 32;

/// The new index, and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compaction {
    /// Takes the place of all indexes of the snapshots that were looked at.
    pub index: ObjectRef,
    /// Packs that were written.
    pub packs: Vec<ObjectRef>,
    /// Packs that stay; the index names these and the written ones, and no others.
    pub kept: Vec<ObjectRef>,
    /// Bytes of objects that the snapshots do not need any more.
    pub freed_bytes: u64,
    /// Bytes of living chunks that had to be copied.
    pub copied_bytes: u64,
}

/// The packs that the indexes of `head` name.
///
/// # Errors
/// Any [`Error`] of reading them.
pub fn packs_of(
    head: &SnapshotHead,
    source: &dyn ObjectSource,
    key: Option<&WorkspaceKey>,
    cancelled: &AtomicBool,
) -> Result<Vec<ObjectRef>, Error> {
    let abort = Abort::new(cancelled);
    let fetcher = Fetcher::new(source, Vault::new(key), &abort);
    let map = load::indexes(head, &fetcher).map_err(|e| abort.explain(e))?;
    Ok(map.packs)
}

/// Looks at all that the snapshots need and, if it is worth it, stores it without the dead.
/// `None` if nothing could be freed.
///
/// # Errors
/// Any [`Error`]. A damaged snapshot ends it: what cannot be read is not thrown away.
pub fn compact(
    heads: &[SnapshotHead],
    source: &dyn ObjectSource,
    sink: &dyn ObjectSink,
    key: Option<&WorkspaceKey>,
    cancelled: &AtomicBool,
) -> Result<Option<Compaction>, Error> {
    let abort = Abort::new(cancelled);
    let fetcher = Fetcher::new(source, Vault::new(key), &abort);
    let mut live = Live::default();
    for head in heads {
        abort.check()?;
        live.add(head, &fetcher).map_err(|e| abort.explain(e))?;
    }
    if !live.worth_it() {
        return Ok(None);
    }
    live.write(&fetcher, sink).map(Some).map_err(|e| abort.explain(e))
}

/// Where a chunk lies; looked at where its indexes say different things.
fn good_place<'a>(
    map: &'a ChunkMap,
    id: &Digest,
    fetcher: &Fetcher<'_>,
    opener: &mut Opener,
) -> Result<Option<&'a ChunkPlace>, Error> {
    if map.places(id).nth(1).is_none() {
        return Ok(map.get(id));
    }
    for place in map.places(id) {
        match fetcher.chunk_again(&map.pack(place)?.key, place, opener, &String::new) {
            Ok(_) => return Ok(Some(place)),
            Err(Error::Corrupt { .. } | Error::ObjectMissing { .. }) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(map.get(id))
}

/// Living chunks by pack.
#[derive(Default)]
struct Live {
    packs: BTreeMap<String, Pack>,
    /// Where each chunk lies: the key of its pack.
    at: HashMap<Digest, String>,
    indexes: HashSet<ObjectRef>,
}

struct Pack {
    object: ObjectRef,
    chunks: BTreeMap<u64, PackEntry>,
}

impl Pack {
    fn live_bytes(&self) -> u64 {
        let stored = |e: &PackEntry| FRAME_LEN as u64 + u64::from(e.stored_len);
        self.chunks.values().map(stored).sum()
    }

    fn mostly_dead(&self) -> bool {
        self.live_bytes() < self.object.size / 2
    }
}

impl Live {
    fn add(&mut self, head: &SnapshotHead, fetcher: &Fetcher<'_>) -> Result<(), Error> {
        let map = load::indexes(head, fetcher)?;
        let manifest = load::manifest(head, &map, fetcher)?;
        self.indexes.extend(head.indexes.iter().cloned());
        for object in &map.packs {
            self.packs.entry(object.key.clone()).or_insert_with(|| Pack {
                object: object.clone(),
                chunks: BTreeMap::new(),
            });
        }
        let files = manifest.leaves.iter().flat_map(|l| chunks(&l.body));
        let needed: HashSet<&Digest> = files.chain(&manifest.chunks).collect();
        let mut opener = fetcher.opener()?;
        for id in needed {
            let place = good_place(&map, id, fetcher, &mut opener)?.ok_or_else(|| {
                Error::corrupt(&head.snapshot_id, format_args!("chunk {id} is in no index"))
            })?;
            self.claim(&map, place, fetcher, &mut opener)?;
        }
        Ok(())
    }

    fn claim(
        &mut self,
        map: &ChunkMap,
        place: &ChunkPlace,
        fetcher: &Fetcher<'_>,
        opener: &mut Opener,
    ) -> Result<(), Error> {
        let (id, key) = (place.entry.id, &map.pack(place)?.key);
        match self.at.get(&id) {
            Some(known) if known == key => return Ok(()),
            Some(known) => {
                // Two packs claim it. The one chosen first stays if it is good.
                let first = self.packs.get(known).and_then(|p| {
                    let entry = p.chunks.values().find(|e| e.id == id)?;
                    Some((known.clone(), *entry))
                });
                if let Some((key, entry)) = first {
                    let place = ChunkPlace { pack: 0, entry };
                    match fetcher.chunk_again(&key, &place, opener, &String::new) {
                        Ok(_) => return Ok(()),
                        Err(Error::Corrupt { .. } | Error::ObjectMissing { .. }) => {
                            if let Some(p) = self.packs.get_mut(&key) {
                                p.chunks.remove(&entry.offset);
                            }
                        }
                        Err(e) => return Err(e),
                    }
                }
            }
            None => {}
        }
        if let Some(pack) = self.packs.get_mut(key) {
            pack.chunks.insert(place.entry.offset, place.entry);
            self.at.insert(id, key.clone());
        }
        Ok(())
    }

    fn worth_it(&self) -> bool {
        self.indexes.len() > MANY_INDEXES || self.packs.values().any(Pack::mostly_dead)
    }

    fn write(self, fetcher: &Fetcher<'_>, sink: &dyn ObjectSink) -> Result<Compaction, Error> {
        let (mut index, mut freed, mut kept) = (Index::default(), 0, Vec::new());
        let mut writer = Writer {
            sink,
            vault: &fetcher.vault,
            open: [None, None],
            done: Vec::new(),
            copied: 0,
        };
        for pack in self.packs.into_values() {
            fetcher.abort.check()?;
            if !pack.mostly_dead() {
                let number = u32::try_from(index.packs.len()).unwrap_or(u32::MAX);
                index
                    .entries
                    .extend(pack.chunks.into_values().map(|e| (number, e)));
                kept.push(pack.object.clone());
                index.packs.push(pack.object);
                continue;
            }
            freed += pack.object.size;
            writer.copy(&pack, fetcher)?;
        }
        let copied_bytes = writer.copied;
        let written = writer.finish()?;
        let packs: Vec<ObjectRef> = written.iter().map(|(object, _)| object.clone()).collect();
        for (object, entries) in written {
            let number = u32::try_from(index.packs.len()).unwrap_or(u32::MAX);
            index.entries.extend(entries.into_iter().map(|e| (number, e)));
            index.packs.push(object);
        }
        Ok(Compaction {
            index: put(sink, ObjectKind::Index, &index.encode_with(&fetcher.vault)?)?,
            packs,
            kept,
            freed_bytes: freed,
            copied_bytes,
        })
    }
}

struct Writer<'a> {
    sink: &'a dyn ObjectSink,
    vault: &'a Vault,
    /// By class.
    open: [Option<PackBuilder>; 2],
    done: Vec<(ObjectRef, Vec<PackEntry>)>,
    copied: u64,
}

impl Writer<'_> {
    fn copy(&mut self, pack: &Pack, fetcher: &Fetcher<'_>) -> Result<(), Error> {
        let mut opener = fetcher.opener()?;
        let key = &pack.object.key;
        for run in runs(pack.chunks.values()) {
            fetcher.abort.check()?;
            let (Some(first), Some(last)) = (run.first(), run.last()) else {
                continue;
            };
            let (from, to) = (first.offset, last.end());
            let bytes = fetcher.get(key, Some(from..to), to - from)?;
            for e in run {
                let frame = &bytes[(e.offset - from) as usize..(e.end() - from) as usize];
                if e.open(frame, &mut opener).is_ok() {
                    self.add(e, &frame[FRAME_LEN..])?;
                    continue;
                }
                // The transfer may have been at fault.
                let frame = fetcher.get(key, Some(e.offset..e.end()), e.end() - e.offset)?;
                e.open(&frame, &mut opener)
                    .map_err(|why| Error::corrupt(key, format_args!("chunk {}: {why}", e.id)))?;
                self.add(e, &frame[FRAME_LEN..])?;
            }
        }
        Ok(())
    }

    fn add(&mut self, e: &PackEntry, stored: &[u8]) -> Result<(), Error> {
        self.copied += stored.len() as u64;
        let lane = &mut self.open[usize::from(e.class == Class::Tree)];
        if let Some(full) = lane.take_if(|p| p.full(stored.len())) {
            self.done.push(seal(full, self.sink)?);
        }
        let lane = &mut self.open[usize::from(e.class == Class::Tree)];
        lane.get_or_insert_with(|| PackBuilder::new(e.class, Vec::new(), self.vault))
            .add(e.id, e.raw_len, e.codec, stored);
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<(ObjectRef, Vec<PackEntry>)>, Error> {
        for last in self.open.into_iter().flatten() {
            self.done.push(seal(last, self.sink)?);
        }
        Ok(self.done)
    }
}

/// Chunks in the order of their places, cut where it does not pay to read on. One that lies in
/// another (only a hostile index says so) begins a run of its own.
fn runs<'a>(chunks: impl Iterator<Item = &'a PackEntry>) -> Vec<Vec<&'a PackEntry>> {
    let mut out: Vec<Vec<&PackEntry>> = Vec::new();
    for e in chunks {
        let fits = |run: &&mut Vec<&PackEntry>| {
            let (Some(first), Some(last)) = (run.first(), run.last()) else {
                return false;
            };
            e.offset >= last.end() && e.offset - last.end() <= GAP && e.end() - first.offset <= RANGE
        };
        match out.last_mut().filter(fits) {
            Some(run) => run.push(e),
            None => out.push(vec![e]),
        }
    }
    out
}

fn seal(pack: PackBuilder, sink: &dyn ObjectSink) -> Result<(ObjectRef, Vec<PackEntry>), Error> {
    let (body, entries) = pack.seal();
    Ok((put(sink, ObjectKind::Pack, &body)?, entries))
}
