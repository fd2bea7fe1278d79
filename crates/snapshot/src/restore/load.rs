//! Reading what a snapshot consists of: its indexes, then its tree.
//!
//! The tree is walked level by level, so that all directories of a level are fetched together:
//! the number of round trips is the depth of the tree and not its size. Tree packs are small and
//! dense, so up to a size they are fetched whole at the first touch; the levels below usually
//! find what they need already there.
//!
//! Everything here may come from a hostile machine. What bounds it is the head, which the
//! controller keeps: no more files and bytes than it says are ever accepted.

use super::fetch::{Fetcher, parallel};
use crate::blob::{self, Broken};
use crate::error::Error;
use crate::extras::More;
use crate::format::{digest, plausible};
use crate::fsutil::{Attrs, join};
use crate::index::{ChunkMap, ChunkPlace, Index};
use crate::pack::Opener;
use crate::printable::printable;
use crate::tree::{Body, Extent, Extents, List, Node, decode_extents};
use dumont_core::id::Digest;
use dumont_core::snapshot::{ObjectRef, SnapshotHead};
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

/// Bytes; up to here a tree pack is fetched whole.
const WHOLE_PACK: u64 = 8 << 20;
/// Bytes of tree packs that are kept while the tree is walked.
const KEEP: usize = 64 << 20;
/// Nodes fetched at once.
const BATCH: usize = 4096;

#[derive(Debug)]
pub(crate) enum LeafBody {
    File { size: u64, group: u64, extents: List },
    Symlink(Box<[u8]>),
    Fifo,
}

#[derive(Debug)]
pub(crate) struct Leaf {
    pub body: LeafBody,
    pub more: More,
    pub attrs: Attrs,
    dir: u32,
    /// Where its name ends in the text of its directory.
    name_end: u32,
}

impl Leaf {
    pub fn dir(&self) -> usize {
        self.dir as usize
    }
}

#[derive(Debug)]
pub(crate) struct Dir {
    /// Smaller than the directory's own number, but for the root.
    pub parent: usize,
    pub name: Box<[u8]>,
    pub attrs: Attrs,
    pub more: More,
    /// Sorted by name.
    pub leaves: Range<usize>,
    /// Names of the leaves, one after the other.
    text: Box<[u8]>,
    /// Sorted by name.
    pub subdirs: Vec<usize>,
}

/// The whole tree of a snapshot.
#[derive(Debug, Default)]
pub(crate) struct Manifest {
    pub dirs: Vec<Dir>,
    pub leaves: Vec<Leaf>,
    /// Files and symlinks.
    pub files: u64,
    /// An inode counted once.
    pub bytes: u64,
    /// All tree chunks read, and so verified.
    pub chunks: HashSet<Digest>,
}

impl Manifest {
    pub fn dir_path(&self, dir: usize) -> Vec<u8> {
        let (mut names, mut at) = (Vec::new(), dir);
        while at != 0 {
            names.push(&*self.dirs[at].name);
            at = self.dirs[at].parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    pub fn name(&self, leaf: usize) -> &[u8] {
        let l = &self.leaves[leaf];
        let dir = &self.dirs[l.dir()];
        let from = if leaf == dir.leaves.start {
            0
        } else {
            self.leaves[leaf - 1].name_end
        };
        &dir.text[from as usize..l.name_end as usize]
    }

    /// The leaf of this name in a directory.
    pub fn find_leaf(&self, dir: usize, name: &[u8]) -> Option<usize> {
        // No slice of the names exists that could be searched.
        let Range {
            start: mut from,
            end: mut to,
        } = self.dirs[dir].leaves;
        while from < to {
            let middle = from + (to - from) / 2;
            match self.name(middle).cmp(name) {
                Ordering::Less => from = middle + 1,
                Ordering::Equal => return Some(middle),
                Ordering::Greater => to = middle,
            }
        }
        None
    }

    /// The directory of this path below the root.
    pub fn find_dir(&self, path: &[u8]) -> Option<usize> {
        let mut names = path.split(|b| *b == b'/').filter(|n| !n.is_empty());
        names.try_fold(0, |at, name| {
            let subdirs = &self.dirs[at].subdirs;
            let found = subdirs.binary_search_by(|i| (*self.dirs[*i].name).cmp(name));
            found.ok().map(|i| subdirs[i])
        })
    }

    /// Drops what no glob of `include` names (none names all) or one of `exclude` does, and
    /// directories that then lead nowhere.
    pub fn keep(&mut self, include: &[String], exclude: &[String]) -> Result<(), Error> {
        let named = |globs: &[String], path: &[u8]| globs.iter().any(|g| fast_glob::glob_match(g, path));
        let chosen = |path: &[u8]| (include.is_empty() || named(include, path)) && !named(exclude, path);
        let mut wanted = vec![false; self.dirs.len()];
        let mut kept = Vec::new();
        for (number, leaf) in self.leaves.iter().enumerate() {
            let path = self.path(number);
            if chosen(&path) {
                kept.push(number);
                wanted[leaf.dir()] = true;
            }
        }
        for (dir, wanted) in wanted.iter_mut().enumerate().skip(1) {
            let path = self.dir_path(dir);
            *wanted |= chosen(&path);
        }
        if kept.is_empty() && !wanted.iter().any(|w| *w) {
            return Err(Error::Invalid {
                what: format!(
                    "the snapshot has nothing that {} names{}",
                    if include.is_empty() {
                        "*".into()
                    } else {
                        include.join(", ")
                    },
                    if exclude.is_empty() {
                        ""
                    } else {
                        " and --exclude leaves"
                    },
                ),
            });
        }
        // Parents have smaller numbers than what they hold.
        for dir in (1..self.dirs.len())
            .rev()
            .filter(|d| wanted[*d])
            .collect::<Vec<_>>()
        {
            let mut at = dir;
            while at != 0 {
                at = self.dirs[at].parent;
                wanted[at] = true;
            }
        }
        wanted[0] = true;
        self.renumber(&wanted, &kept);
        Ok(())
    }

    fn renumber(&mut self, wanted: &[bool], kept: &[usize]) {
        let mut numbers = vec![0; self.dirs.len()];
        let alive = (0..self.dirs.len()).filter(|d| wanted[*d]);
        alive.enumerate().for_each(|(new, old)| numbers[old] = new);
        let mut texts = vec![Vec::new(); self.dirs.len()];
        let mut ends = Vec::with_capacity(kept.len());
        for &leaf in kept {
            let text = &mut texts[self.leaves[leaf].dir()];
            text.extend_from_slice(self.name(leaf));
            ends.push(text.len() as u32);
        }
        let (dirs, leaves) = (std::mem::take(&mut self.dirs), std::mem::take(&mut self.leaves));
        let (mut leaves, mut at) = (leaves.into_iter().enumerate(), 0);
        (self.files, self.bytes) = (0, 0);
        let mut groups = HashSet::new();
        for (old, mut dir) in dirs.into_iter().enumerate() {
            let first = self.leaves.len();
            // Leaves lie in the order of their directories.
            while kept.get(at).is_some_and(|k| dir.leaves.contains(k)) {
                let Some((_, mut leaf)) = leaves.by_ref().find(|(number, _)| *number == kept[at]) else {
                    break;
                };
                (leaf.dir, leaf.name_end) = (numbers[old] as u32, ends[at]);
                self.files += u64::from(!matches!(leaf.body, LeafBody::Fifo));
                if let LeafBody::File { size, group, .. } = leaf.body
                    && (group == 0 || groups.insert(group))
                {
                    self.bytes += size;
                }
                self.leaves.push(leaf);
                at += 1;
            }
            if wanted[old] {
                dir.leaves = first..self.leaves.len();
                dir.text = std::mem::take(&mut texts[old]).into();
                dir.parent = numbers[dir.parent];
                dir.subdirs.retain(|d| wanted[*d]);
                dir.subdirs.iter_mut().for_each(|d| *d = numbers[*d]);
                self.dirs.push(dir);
            }
        }
    }

    pub fn path(&self, leaf: usize) -> Vec<u8> {
        let l = &self.leaves[leaf];
        join(&self.dir_path(l.dir()), self.name(leaf))
    }
}

/// All indexes of the head as one table.
pub(crate) fn indexes(head: &SnapshotHead, fetcher: &Fetcher<'_>) -> Result<ChunkMap, Error> {
    let keys: Vec<String> = head.indexes.iter().map(|o| o.key.clone()).collect();
    fetcher.prepare(&keys)?;
    let decoded = parallel(4, &head.indexes, fetcher.abort, |object| {
        Index::decode_with(&object.key, &whole(object, fetcher)?, &fetcher.vault)
    })?;
    let mut map = ChunkMap::default();
    decoded.into_iter().for_each(|index| map.add(index));
    Ok(map)
}

/// An object read completely and held to its digest; read once more if that fails.
fn whole(object: &ObjectRef, fetcher: &Fetcher<'_>) -> Result<Vec<u8>, Error> {
    for _ in 0..2 {
        match fetcher.get(&object.key, None, object.size) {
            Ok(bytes) if digest(&bytes) == object.digest => return Ok(bytes),
            Ok(_) | Err(Error::Corrupt { .. }) => {}
            Err(e) => return Err(e),
        }
    }
    Err(Error::corrupt(
        &object.key,
        "its bytes are not those of its digest",
    ))
}

/// The tree under the head's root.
pub(crate) fn manifest(
    head: &SnapshotHead,
    map: &ChunkMap,
    fetcher: &Fetcher<'_>,
) -> Result<Manifest, Error> {
    let mut loader = Loader {
        head,
        reader: TreeReader {
            head,
            map,
            fetcher,
            opener: fetcher.opener()?,
            kept: HashMap::new(),
            bytes: 0,
        },
        groups: HashSet::new(),
        extents: 0,
        out: Manifest::default(),
    };
    let mut level = vec![(0, Box::default(), head.root)];
    while !level.is_empty() {
        let mut below = Vec::new();
        for batch in level.chunks(BATCH) {
            loader.batch(batch, &mut below)?;
        }
        level = below;
    }
    loader.out.leaves.shrink_to_fit();
    Ok(loader.out)
}

/// A directory to read: its parent's number, its name, its node.
type Wanted = (usize, Box<[u8]>, Digest);

struct Loader<'a> {
    head: &'a SnapshotHead,
    reader: TreeReader<'a>,
    groups: HashSet<u64>,
    extents: u64,
    out: Manifest,
}

impl Loader<'_> {
    fn batch(&mut self, batch: &[Wanted], below: &mut Vec<Wanted>) -> Result<(), Error> {
        let ids: Vec<Digest> = batch.iter().map(|w| w.2).collect();
        let nodes = self.reader.objects(&ids, &mut self.out.chunks)?;
        let mut listed = Vec::new();
        for ((parent, name, id), bytes) in batch.iter().zip(nodes) {
            let this = self.out.dirs.len();
            let node = Node::decode(&bytes).map_err(|e| {
                let path = join(&self.out_path(*parent, this), name);
                Error::corrupt(format_args!("directory \"{}\" (chunk {id})", printable(&path)), e)
            })?;
            if this > 0 {
                self.out.dirs[*parent].subdirs.push(this);
            }
            let (first, mut text) = (self.out.leaves.len(), Vec::new());
            let dir = Dir {
                parent: *parent,
                name: name.clone(),
                attrs: node.attrs,
                more: node.more,
                leaves: first..first,
                text: Box::default(),
                subdirs: Vec::new(),
            };
            self.out.dirs.push(dir);
            for entry in node.entries {
                let body = match entry.body {
                    Body::Dir { node } => {
                        below.push((this, entry.name, node));
                        continue;
                    }
                    Body::Symlink { target } => LeafBody::Symlink(target),
                    Body::Fifo => LeafBody::Fifo,
                    Body::File { size, group, extents } => {
                        let extents = match extents {
                            Extents::Here(list) => list,
                            Extents::Listed(id) => {
                                listed.push((self.out.leaves.len(), id));
                                List::Many([].into())
                            }
                        };
                        LeafBody::File { size, group, extents }
                    }
                };
                self.count(&body)?;
                // Names of one directory are at most as long as the longest tree object.
                text.extend_from_slice(&entry.name);
                self.out.leaves.push(Leaf {
                    body,
                    more: entry.more,
                    attrs: entry.attrs,
                    dir: this as u32,
                    name_end: text.len() as u32,
                });
            }
            self.out.dirs[this].leaves.end = self.out.leaves.len();
            self.out.dirs[this].text = text.into();
            let others = (self.out.leaves.len() + self.out.dirs.len() + below.len()) as u64 - self.out.files;
            if !plausible(self.head.files, others) {
                return Err(Error::corrupt(
                    &self.head.snapshot_id,
                    "its tree has more directories than it can",
                ));
            }
        }
        self.lists(&listed)
    }

    fn out_path(&self, parent: usize, this: usize) -> Vec<u8> {
        if this == 0 {
            Vec::new()
        } else {
            self.out.dir_path(parent)
        }
    }

    fn count(&mut self, body: &LeafBody) -> Result<(), Error> {
        match body {
            LeafBody::Fifo => return Ok(()),
            LeafBody::Symlink(_) => {}
            LeafBody::File { size, group, extents } => {
                if *group == 0 || self.groups.insert(*group) {
                    self.out.bytes = self.out.bytes.saturating_add(*size);
                    self.count_extents(extents)?;
                }
            }
        }
        self.out.files += 1;
        if self.out.files > self.head.files || self.out.bytes > self.head.bytes {
            return Err(Error::corrupt(
                &self.head.snapshot_id,
                "its tree holds more than its head says",
            ));
        }
        Ok(())
    }

    /// Chunks and holes are long, so there cannot be many of them: a list of tiny ones would
    /// cost far more memory than the files it describes.
    fn count_extents(&mut self, list: &[Extent]) -> Result<(), Error> {
        self.extents += list.len() as u64;
        let most = (self.head.bytes / 4096)
            .saturating_add(self.head.files.saturating_mul(2))
            .saturating_add(1024);
        if self.extents <= most {
            return Ok(());
        }
        Err(Error::corrupt(
            &self.head.snapshot_id,
            "its files are in more parts than files of their size can be",
        ))
    }

    /// Reads the extents that did not fit into their nodes.
    fn lists(&mut self, listed: &[(usize, Digest)]) -> Result<(), Error> {
        let ids: Vec<Digest> = listed.iter().map(|l| l.1).collect();
        let lists = self.reader.objects(&ids, &mut self.out.chunks)?;
        for ((leaf, id), bytes) in listed.iter().zip(lists) {
            let list = decode_extents(&bytes).map_err(|e| {
                let path = printable(&self.out.path(*leaf));
                Error::corrupt(format_args!("the extents of {path} (chunk {id})"), e)
            })?;
            if let LeafBody::File { extents, group, .. } = &mut self.out.leaves[*leaf].body {
                let again = *group != 0;
                *extents = list.clone();
                if !again {
                    self.count_extents(&list)?;
                }
            }
        }
        Ok(())
    }
}

struct TreeReader<'a> {
    head: &'a SnapshotHead,
    map: &'a ChunkMap,
    fetcher: &'a Fetcher<'a>,
    opener: Opener,
    /// Whole packs, by number.
    kept: HashMap<u32, Vec<u8>>,
    bytes: usize,
}

/// A range of a pack to read.
struct Want {
    pack: u32,
    range: Range<u64>,
}

impl TreeReader<'_> {
    /// The tree objects of these ids, in the same order, put together where they are in pieces.
    fn objects(&mut self, ids: &[Digest], seen: &mut HashSet<Digest>) -> Result<Vec<Vec<u8>>, Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        seen.extend(ids);
        let firsts = self.chunks(ids)?;
        let mut fetch = |more: &[Digest]| {
            seen.extend(more);
            self.chunks(more)
        };
        blob::assemble(firsts, &mut fetch).map_err(|e| match e {
            Broken::Object(i, why) => Error::corrupt(format_args!("tree chunk {}", ids[i]), why),
            Broken::Fetch(e) => e,
        })
    }

    fn chunks(&mut self, ids: &[Digest]) -> Result<Vec<Vec<u8>>, Error> {
        let places: Vec<ChunkPlace> = ids.iter().map(|id| self.place(id)).collect::<Result<_, _>>()?;
        let ranges = self.fetch(&places)?;
        let mut out = Vec::with_capacity(places.len());
        for place in &places {
            let bytes = match self.kept.get(&place.pack) {
                Some(pack) => slice(pack, 0, place),
                None => ranges
                    .get(&place.pack)
                    .and_then(|r| r.range(..=place.entry.offset).next_back())
                    .and_then(|(start, bytes)| slice(bytes, *start, place)),
            };
            let opened = bytes.and_then(|b| place.entry.open(b, &mut self.opener).ok().map(<[u8]>::to_vec));
            out.push(match opened {
                Some(raw) => raw,
                None => self
                    .fetcher
                    .chunk_anywhere(self.map, place, &mut self.opener, &|| "the tree".into())?,
            });
        }
        if self.bytes > KEEP {
            self.kept.clear();
            self.bytes = 0;
        }
        Ok(out)
    }

    fn place(&self, id: &Digest) -> Result<ChunkPlace, Error> {
        let found = self.map.get(id).copied();
        found.ok_or_else(|| {
            Error::corrupt(
                &self.head.snapshot_id,
                format_args!("tree chunk {id} is in no index"),
            )
        })
    }

    /// Fetches what is not there yet. Whole packs are kept; other ranges are returned by pack
    /// and start.
    fn fetch(&mut self, places: &[ChunkPlace]) -> Result<HashMap<u32, BTreeMap<u64, Vec<u8>>>, Error> {
        let mut sorted: Vec<_> = places
            .iter()
            .filter(|p| !self.kept.contains_key(&p.pack))
            .collect();
        sorted.sort_unstable_by_key(|p| (p.pack, p.entry.offset));
        let mut wants: Vec<Want> = Vec::new();
        for p in sorted {
            let size = self.map.pack(p)?.size;
            let range = if size <= WHOLE_PACK {
                0..size
            } else {
                p.entry.offset..p.entry.end()
            };
            match wants.last_mut().filter(|w| w.pack == p.pack) {
                Some(w)
                    if range.start <= w.range.end + (64 << 10) && range.end - w.range.start <= 16 << 20 =>
                {
                    w.range.end = w.range.end.max(range.end);
                }
                _ => wants.push(Want { pack: p.pack, range }),
            }
        }
        let packs: HashSet<u32> = wants.iter().map(|w| w.pack).collect();
        let key = |pack: u32| self.map.packs[pack as usize].key.clone();
        let keys: Vec<String> = packs.iter().map(|p| key(*p)).collect();
        if !keys.is_empty() {
            self.fetcher.prepare(&keys)?;
        }
        let fetched = parallel(4, &wants, self.fetcher.abort, |w| {
            let length = w.range.end - w.range.start;
            match self.fetcher.get(&key(w.pack), Some(w.range.clone()), length) {
                // Each chunk is then asked for on its own, here or elsewhere.
                Err(Error::Corrupt { .. } | Error::ObjectMissing { .. }) => Ok(Vec::new()),
                other => other,
            }
        })?;
        let mut out: HashMap<u32, BTreeMap<u64, Vec<u8>>> = HashMap::new();
        for (w, bytes) in wants.iter().zip(fetched) {
            if w.range.start == 0 {
                self.bytes += bytes.len();
                self.kept.insert(w.pack, bytes);
            } else {
                out.entry(w.pack).or_default().insert(w.range.start, bytes);
            }
        }
        Ok(out)
    }
}

/// A chunk's frame in bytes that begin at `start` of its pack.
fn slice<'a>(bytes: &'a [u8], start: u64, place: &ChunkPlace) -> Option<&'a [u8]> {
    let from = usize::try_from(place.entry.offset.checked_sub(start)?).ok()?;
    let to = usize::try_from(place.entry.end().checked_sub(start)?).ok()?;
    bytes.get(from..to)
}
