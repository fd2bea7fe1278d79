//! What to fetch, in which order, and where each chunk goes.
//!
//! Every chunk is fetched once, wherever and however often it is needed, in the order in which it
//! lies in its pack: neighbours become one request. All checks that need no data are made here,
//! before the first byte is written.
//!
//! What is wanted first comes first: files that a `priority` glob names, then small files (a
//! program that starts opens hundreds of those and reads little of its weights), then the rest.
//! A request never mixes these, or one small file would bring 16 MiB of weights along.

use super::load::{LeafBody, Manifest};
use super::survey::Survey;
use crate::error::Error;
use crate::index::ChunkMap;
use crate::printable::printable;
use crate::tree::Extent;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::AtomicU32;

/// Bytes; a gap up to here is read along, because a request costs more.
const MAX_GAP: u64 = 256 << 10;
/// Bytes that files take on disk in multiples of.
const BLOCK: u64 = 4096;
/// Entries without content that are created in one go.
const PLAIN_BATCH: usize = 512;
/// Bytes; files up to here are small.
const SMALL: u64 = 1 << 20;

/// When a file is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Turn {
    /// Before the workload may start.
    Ready,
    Priority,
    Small,
    Large,
}

/// One place of a chunk.
pub(super) struct Piece {
    pub leaf: u32,
    /// Bytes from the start of the file.
    pub at: u64,
}

pub(super) struct PlannedChunk {
    /// Its number in the [`ChunkMap`].
    pub place: u32,
    pub pieces: Range<u32>,
}

pub(super) enum Job {
    /// Of one pack; `chunks` are those in the range.
    Fetch {
        turn: Turn,
        pack: u32,
        range: Range<u64>,
        chunks: Range<usize>,
    },
    /// A stretch of [`Plan::plain`].
    Plain(Range<usize>),
}

impl Job {
    pub fn turn(&self) -> Turn {
        match self {
            Self::Fetch { turn, .. } => *turn,
            // They cost no transfer.
            Self::Plain(_) => Turn::Ready,
        }
    }

    pub fn pack(&self) -> Option<u32> {
        match self {
            Self::Fetch { pack, .. } => Some(*pack),
            Self::Plain(_) => None,
        }
    }
}

#[derive(Default)]
pub(super) struct Plan {
    pub jobs: Vec<Job>,
    pub chunks: Vec<PlannedChunk>,
    pub pieces: Vec<Piece>,
    /// Leaves without any chunk: symlinks, fifos, empty files, files that are one hole.
    pub plain: Vec<usize>,
    /// Files of several pieces, or with holes: created at their full length first.
    pub large: Vec<usize>,
    /// Files that hold a part of their content and get the rest in place.
    pub patch: Vec<usize>,
    /// Files that hold all of their content and lack a length, mode or time.
    pub touch: Vec<usize>,
    /// Names at which nothing has to be done.
    pub settled: u64,
    /// (name to make, the first name of the same file).
    pub links: Vec<(usize, usize)>,
    /// Those of them that the workload needs.
    pub ready_links: Vec<(usize, usize)>,
    /// Per leaf, whether the workload needs it before it starts; `None` where it needs all.
    pub ready: Option<Vec<bool>>,
    /// Per leaf, the pieces still to be written.
    pub remaining: Vec<AtomicU32>,
    /// Bytes that will be written.
    pub data_bytes: u64,
    /// Bytes that they take on disk.
    pub disk_bytes: u64,
}

struct Item {
    at: u64,
    offset: u64,
    pack: u32,
    /// In the [`ChunkMap`].
    place: u32,
    leaf: u32,
    turn: Turn,
}

/// What a plan is made from.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub snapshot_id: &'a str,
    pub manifest: &'a Manifest,
    pub map: &'a ChunkMap,
    pub survey: &'a Survey,
    /// Globs of paths below the root.
    pub priority: &'a [String],
    pub ready_when: &'a [String],
    /// Bytes; no longer range is asked for.
    pub max_range: u64,
}

impl Plan {
    pub fn new(wanted: &Wanted<'_>) -> Result<Self, Error> {
        let mut plan = Self::default();
        // Most files are one chunk.
        let mut items = Vec::with_capacity(wanted.manifest.leaves.len());
        let mut groups = HashMap::new();
        plan.remaining.reserve_exact(wanted.manifest.leaves.len());
        let (manifest, survey) = (wanted.manifest, wanted.survey);
        let ready = wanted.ready();
        let is_ready = |i: usize| ready.as_ref().is_some_and(|r| r[i]);
        for (i, leaf) in manifest.leaves.iter().enumerate() {
            if survey.left.contains(&i) {
                plan.settled += 1;
                plan.remaining.push(AtomicU32::new(0));
                continue;
            }
            let LeafBody::File { group, extents, .. } = &leaf.body else {
                plan.plain.push(i);
                plan.remaining.push(AtomicU32::new(0));
                continue;
            };
            if let Some(first) = (*group != 0)
                .then(|| *groups.entry(*group).or_insert(i))
                .filter(|f| *f != i)
            {
                same_file(manifest, i, first)?;
                if survey.linked.contains(&i) {
                    plan.settled += 1;
                } else {
                    let links = if is_ready(i) {
                        &mut plan.ready_links
                    } else {
                        &mut plan.links
                    };
                    links.push((i, first));
                }
                plan.remaining.push(AtomicU32::new(0));
                continue;
            }
            let pieces = wanted.file(i, is_ready(i), &mut items)?;
            match survey.found.get(&i) {
                Some(found) if found.complete() && found.settled => plan.settled += 1,
                Some(found) if found.complete() => plan.touch.push(i),
                Some(_) => plan.patch.push(i),
                None if pieces == 0 => plan.plain.push(i),
                None if pieces > 1 || extents.len() > 1 => plan.large.push(i),
                // Created when its only chunk comes.
                None => {}
            }
            plan.remaining.push(AtomicU32::new(pieces));
        }
        plan.add_disk(manifest);
        plan.add_jobs(items, wanted)?;
        plan.ready = ready;
        Ok(plan)
    }

    fn add_disk(&mut self, manifest: &Manifest) {
        for leaf in &manifest.leaves {
            if let LeafBody::File { extents, .. } = &leaf.body {
                let data: u64 = extents
                    .iter()
                    .filter(|e| matches!(e, Extent::Chunk { .. }))
                    .map(Extent::len)
                    .sum();
                self.disk_bytes = self.disk_bytes.saturating_add(data.next_multiple_of(BLOCK));
            }
        }
        for (link, _) in self.links.iter().chain(&self.ready_links) {
            if let LeafBody::File { size, .. } = &manifest.leaves[*link].body {
                self.disk_bytes = self.disk_bytes.saturating_sub(size.next_multiple_of(BLOCK));
            }
        }
    }

    fn add_jobs(&mut self, mut items: Vec<Item>, wanted: &Wanted<'_>) -> Result<(), Error> {
        items.sort_unstable_by_key(|i| (i.pack, i.offset, i.place, i.leaf, i.at));
        self.pieces.reserve_exact(items.len());
        self.chunks.reserve_exact(items.len());
        for same in items.chunk_by(|a, b| a.place == b.place) {
            let place = wanted.map.place(same[0].place);
            let from = self.pieces.len() as u32;
            self.pieces.extend(same.iter().map(|i| Piece {
                leaf: i.leaf,
                at: i.at,
            }));
            self.data_bytes += u64::from(place.entry.raw_len) * same.len() as u64;
            let first = same.iter().map(|i| i.turn).min().unwrap_or(Turn::Large);
            let number = self.chunks.len();
            self.chunks.push(PlannedChunk {
                place: same[0].place,
                pieces: from..self.pieces.len() as u32,
            });
            let (start, end) = (place.entry.offset, place.entry.end());
            match self.jobs.last_mut() {
                Some(Job::Fetch {
                    turn,
                    pack,
                    range,
                    chunks,
                }) if (*turn, *pack) == (first, place.pack)
                    && start <= range.end + MAX_GAP
                    && end.max(range.end) - range.start <= wanted.max_range =>
                {
                    range.end = range.end.max(end);
                    chunks.end = number + 1;
                }
                _ => self.jobs.push(Job::Fetch {
                    turn: first,
                    pack: place.pack,
                    range: start..end,
                    chunks: number..number + 1,
                }),
            }
        }
        for from in (0..self.plain.len()).step_by(PLAIN_BATCH) {
            self.jobs
                .push(Job::Plain(from..self.plain.len().min(from + PLAIN_BATCH)));
        }
        self.jobs.sort_by_key(Job::turn);
        Ok(())
    }
}

impl Wanted<'_> {
    /// Plans the chunks that a file lacks and returns how many there are.
    fn file(&self, leaf: usize, ready: bool, items: &mut Vec<Item>) -> Result<u32, Error> {
        let LeafBody::File { size, extents, .. } = &self.manifest.leaves[leaf].body else {
            return Ok(0);
        };
        let name = || printable(&self.manifest.path(leaf));
        let bad = |why: &str| {
            Err(Error::corrupt(
                self.snapshot_id,
                format_args!("{}: {why}", name()),
            ))
        };
        let have = self.survey.found.get(&leaf).map(|f| &f.have[..]);
        let turn = if ready {
            Turn::Ready
        } else {
            self.turn(leaf, *size)
        };
        let (mut at, mut pieces) = (0u64, 0u32);
        for (i, e) in extents.iter().enumerate() {
            if let Extent::Chunk { id, len } = e {
                let mut places = self.map.numbers(id).peekable();
                if places.peek().is_none() {
                    return bad(&format!("chunk {id} is in no index"));
                }
                let Some(number) = places.find(|n| self.map.place(*n).entry.raw_len == *len) else {
                    return bad(&format!("chunk {id} is of another length in the index"));
                };
                if !have.is_some_and(|h| h[i]) {
                    let place = self.map.place(number);
                    items.push(Item {
                        at,
                        offset: place.entry.offset,
                        pack: place.pack,
                        place: number,
                        leaf: leaf as u32,
                        turn,
                    });
                    pieces = pieces.saturating_add(1);
                }
            }
            at = at.saturating_add(e.len());
        }
        if at == *size {
            Ok(pieces)
        } else {
            bad("its parts do not add up to its size")
        }
    }

    /// Per leaf, whether the workload needs it; all names of a file are needed with one of them.
    /// `None` where everything is.
    fn ready(&self) -> Option<Vec<bool>> {
        if self.ready_when.is_empty() {
            return None;
        }
        let named = |i: usize| {
            let path = self.manifest.path(i);
            self.ready_when.iter().any(|g| fast_glob::glob_match(g, &path))
        };
        let mut out: Vec<bool> = (0..self.manifest.leaves.len()).map(named).collect();
        let group = |i: usize| match self.manifest.leaves[i].body {
            LeafBody::File { group, .. } if group != 0 => Some(group),
            _ => None,
        };
        let groups: HashSet<u64> = (0..out.len()).filter(|i| out[*i]).filter_map(group).collect();
        for (i, ready) in out.iter_mut().enumerate() {
            *ready |= group(i).is_some_and(|g| groups.contains(&g));
        }
        Some(out)
    }

    fn turn(&self, leaf: usize, size: u64) -> Turn {
        let first = !self.priority.is_empty() && {
            let path = self.manifest.path(leaf);
            self.priority.iter().any(|g| fast_glob::glob_match(g, &path))
        };
        match size {
            _ if first => Turn::Priority,
            0..=SMALL => Turn::Small,
            _ => Turn::Large,
        }
    }
}

/// Two names of one hard-link group must be one file.
fn same_file(manifest: &Manifest, i: usize, first: usize) -> Result<(), Error> {
    let (a, b) = (&manifest.leaves[i], &manifest.leaves[first]);
    match (&a.body, &b.body) {
        (
            LeafBody::File {
                size: s, extents: e, ..
            },
            LeafBody::File {
                size: t, extents: f, ..
            },
        ) if s == t && e == f && a.attrs == b.attrs => Ok(()),
        _ => Err(Error::corrupt(
            format_args!("the hard link {}", printable(&manifest.path(i))),
            format_args!(
                "it differs from its other name {}",
                printable(&manifest.path(first))
            ),
        )),
    }
}
