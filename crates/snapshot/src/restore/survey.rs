//! What of the snapshot the directory already holds.
//!
//! A restore that broke off is simply run again, and a rollback goes over a tree that differs in
//! little: so before anything is fetched, every file that has a name of the snapshot is compared
//! with it, chunk by chunk. What is there and right is kept where it is, and only the rest is
//! fetched. Reading a local file costs a tenth of fetching it.
//!
//! Nothing is believed: a chunk counts if its bytes hash to its id now, or if this machine's own
//! cache says which chunks the file had and size, mtime, ctime and inode are unchanged since (the
//! rule by which snapshots leave files unopened). Chunks kept in this way do not become *known*
//! to the next snapshot: that the store holds good bytes for them has not been seen.
//!
//! A file is written in place only if no other name outside of the snapshot leads to it.

use super::fetch::parallel;
use super::load::{LeafBody, Manifest};
use super::target::Hands;
use crate::cache::Cache;
use crate::chunk::MAX_CHUNK;
use crate::error::Error;
use crate::events::Abort;
use crate::extras::{self, More, xattrs};
use crate::fsutil::{Attrs, Meta, locate};
use crate::scan::Scan;
use crate::seal::Vault;
use crate::tree::{Extent, List};
use rustix::fs::{FileType, Mode, OFlags, SeekFrom, openat, seek};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::os::fd::OwnedFd;

/// Extents and bytes looked at by one thread in one go.
const BATCH: usize = 256;
const BATCH_BYTES: u64 = 64 << 20;

/// A file that holds some of what it should.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Per extent: it is there, in its place.
    pub have: Vec<bool>,
    /// It is of the right length, too, and nothing else about it differs.
    pub settled: bool,
}

impl Found {
    pub fn complete(&self) -> bool {
        self.have.iter().all(|h| *h)
    }
}

#[derive(Debug, Default)]
pub(super) struct Survey {
    /// By leaf; of a hard-link group only the first name.
    pub found: HashMap<usize, Found>,
    /// Names that lead to their group's first file already.
    pub linked: HashSet<usize>,
    /// What the workload has already, whatever it made of it.
    pub left: HashSet<usize>,
    /// Bytes that need not be fetched.
    pub reused_bytes: u64,
}

impl Survey {
    /// Leaves alone what exists of these.
    pub fn leave(&mut self, exists: &HashMap<usize, (usize, usize)>, workloads: &[bool]) {
        self.left = exists.keys().copied().filter(|leaf| workloads[*leaf]).collect();
        for leaf in &self.left {
            self.found.remove(leaf);
        }
    }
}

/// What the caches say of files that did not change since, by leaf.
pub(super) type Remembered = HashMap<usize, (List, More)>;

/// Looks for what is there of the snapshot in the machine's caches.
pub(super) fn remembered(
    caches: Vec<Cache>,
    manifest: &Manifest,
    scan: &Scan,
    exists: &HashMap<usize, (usize, usize)>,
) -> Remembered {
    let mut out = Remembered::new();
    for mut cache in caches {
        let (started_ns, mut last) = (cache.started_ns, None);
        let read = cache.each(&mut |path, known| {
            let at = locate(path, &mut last, |dir| manifest.find_dir(dir));
            let leaf = at.and_then(|(dir, name)| manifest.find_leaf(dir, name));
            if let Some((leaf, (dir, number))) = leaf.and_then(|l| Some((l, *exists.get(&l)?)))
                && let Some(extents) = known.unchanged(started_ns, &scan.dirs[dir].leaves[number].meta)
            {
                out.entry(leaf)
                    .or_insert_with(|| (extents.clone(), known.more.clone()));
            }
        });
        // What cannot be remembered is read.
        if read.is_err() {
            break;
        }
    }
    out
}

/// What is needed to look.
pub(super) struct Surveyor<'a> {
    pub root: &'a OwnedFd,
    pub manifest: &'a Manifest,
    pub scan: &'a Scan,
    /// For leaves whose name is taken: where in the scan.
    pub exists: &'a HashMap<usize, (usize, usize)>,
    pub remembered: Remembered,
    pub vault: &'a Vault,
    pub abort: &'a Abort<'a>,
}

/// Extents of one file to read.
struct Look {
    leaf: usize,
    extents: Range<usize>,
    at: u64,
}

impl Surveyor<'_> {
    pub fn survey(&self, threads: usize) -> Result<Survey, Error> {
        let mut out = Survey::default();
        if self.exists.is_empty() {
            return Ok(out);
        }
        let firsts = self.firsts();
        let shared = self.shared_inodes();
        let (mut batches, mut hands) = (Vec::new(), Hands::default());
        // In the tree's order: neighbours share a directory.
        let mut leaves: Vec<_> = self.exists.iter().map(|(leaf, at)| (*leaf, *at)).collect();
        leaves.sort_unstable();
        for (leaf, at) in leaves {
            let Some((size, group, extents)) = self.file(leaf) else {
                continue;
            };
            let meta = self.meta(at);
            let first = firsts.get(&group).is_none_or(|f| *f == leaf);
            let alone = meta.nlink == 1 || group != 0 && shared.get(&(meta.dev, meta.ino)) == Some(&group);
            if !first || !alone || meta.kind != FileType::RegularFile {
                continue;
            }
            let found = match self.remembered.get(&leaf) {
                Some((known, more)) => Found {
                    have: same_places(extents, known),
                    settled: xattrs(more) == xattrs(&self.manifest.leaves[leaf].more),
                },
                None => {
                    add_looks(leaf, extents, meta.size, &mut batches);
                    Found {
                        have: vec![false; extents.len()],
                        settled: self.same_xattrs(leaf, &mut hands),
                    }
                }
            };
            let settled = found.settled && meta.size == size && self.same_attrs(&meta.attrs, leaf);
            out.found.insert(leaf, Found { settled, ..found });
        }
        let looked = parallel(threads, &batches, self.abort, |batch| self.look(batch))?;
        for (leaf, number) in looked.into_iter().flatten() {
            if let Some(found) = out.found.get_mut(&leaf) {
                found.have[number] = true;
            }
        }
        self.judge(&mut out, &firsts);
        Ok(out)
    }

    fn file(&self, leaf: usize) -> Option<(u64, u64, &[Extent])> {
        match &self.manifest.leaves[leaf].body {
            LeafBody::File { size, group, extents } => Some((*size, *group, extents)),
            _ => None,
        }
    }

    fn meta(&self, (dir, number): (usize, usize)) -> &Meta {
        &self.scan.dirs[dir].leaves[number].meta
    }

    fn firsts(&self) -> HashMap<u64, usize> {
        let mut out = HashMap::new();
        for leaf in 0..self.manifest.leaves.len() {
            if let Some((_, group, _)) = self.file(leaf)
                && group != 0
            {
                out.entry(group).or_insert(leaf);
            }
        }
        out
    }

    /// Files with several names, all of which are names of one group of the snapshot.
    fn shared_inodes(&self) -> HashMap<(u64, u64), u64> {
        let mut names: HashMap<_, (u32, u64)> = HashMap::new();
        for (&leaf, &at) in self.exists {
            let meta = self.meta(at);
            if meta.nlink > 1
                && let Some((_, group, _)) = self.file(leaf)
            {
                let (n, of) = names.entry((meta.dev, meta.ino)).or_insert((0, group));
                // Names of another group, or of none, never make it the file's own.
                *n += if *of == group && group != 0 { 1 } else { 0 };
            }
        }
        for at in self.exists.values() {
            let meta = self.meta(*at);
            if names
                .get(&(meta.dev, meta.ino))
                .is_some_and(|(n, _)| *n != meta.nlink)
            {
                names.remove(&(meta.dev, meta.ino));
            }
        }
        names
            .into_iter()
            .map(|(inode, (_, group))| (inode, group))
            .collect()
    }

    fn same_xattrs(&self, leaf: usize, hands: &mut Hands) -> bool {
        let l = &self.manifest.leaves[leaf];
        let of = |i: usize| (self.manifest.dirs[i].parent, self.manifest.dirs[i].name.clone());
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let found = hands
            .dir(self.root, l.dir(), &of)
            .and_then(|dir| openat(dir, self.manifest.name(leaf), flags, Mode::empty()))
            .and_then(extras::read);
        // What cannot be asked is made anew.
        found.is_ok_and(|f| f == xattrs(&l.more))
    }

    fn same_attrs(&self, found: &Attrs, leaf: usize) -> bool {
        let wanted = &self.manifest.leaves[leaf].attrs;
        let root = rustix::process::geteuid().is_root();
        (found.mode, found.mtime) == (wanted.mode, wanted.mtime)
            && (!root || (found.uid, found.gid) == (wanted.uid, wanted.gid))
    }

    /// The extents of a batch that are there, as (leaf, number).
    fn look(&self, batch: &[Look]) -> Result<Vec<(usize, usize)>, Error> {
        let (mut out, mut hands, mut buf) = (Vec::new(), Hands::default(), Vec::new());
        let of = |i: usize| (self.manifest.dirs[i].parent, self.manifest.dirs[i].name.clone());
        for look in batch {
            self.abort.check()?;
            let leaf = &self.manifest.leaves[look.leaf];
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            // What cannot be read is not there: it will be replaced.
            let opened = hands
                .dir(self.root, leaf.dir(), &of)
                .and_then(|dir| openat(dir, self.manifest.name(look.leaf), flags, Mode::empty()));
            let (Ok(fd), Some((_, _, extents))) = (opened, self.file(look.leaf)) else {
                continue;
            };
            let mut at = look.at;
            for number in look.extents.clone() {
                self.abort.check()?;
                if holds(&fd, at, &extents[number], self.vault, &mut buf) {
                    out.push((look.leaf, number));
                }
                at += extents[number].len();
            }
        }
        Ok(out)
    }

    /// Drops what does not help, and finds the links that are right already.
    fn judge(&self, out: &mut Survey, firsts: &HashMap<u64, usize>) {
        out.found.retain(|leaf, found| {
            let Some((_, _, extents)) = self.file(*leaf) else {
                return false;
            };
            let any = |wanted: bool, is: fn(&Extent) -> bool| {
                let mut all = extents.iter().zip(&found.have);
                all.any(|(e, have)| *have == wanted && is(e))
            };
            let useful = found.complete() || any(true, is_chunk);
            // A hole that is none costs as much to make as the file.
            useful && !any(false, |e| !is_chunk(e))
        });
        for (leaf, found) in &out.found {
            if let Some((_, _, extents)) = self.file(*leaf) {
                let there = extents.iter().zip(&found.have).filter(|(_, have)| **have);
                out.reused_bytes += there
                    .filter(|(e, _)| is_chunk(e))
                    .map(|(e, _)| e.len())
                    .sum::<u64>();
            }
        }
        for (&leaf, &at) in self.exists {
            let Some(first) = self
                .file(leaf)
                .and_then(|(_, group, _)| firsts.get(&group))
                .filter(|f| **f != leaf && out.found.contains_key(*f))
            else {
                continue;
            };
            let (a, b) = (self.meta(at), self.meta(self.exists[first]));
            if (a.dev, a.ino) == (b.dev, b.ino) {
                out.linked.insert(leaf);
            }
        }
    }
}

fn is_chunk(e: &Extent) -> bool {
    matches!(e, Extent::Chunk { .. })
}

fn add_looks(leaf: usize, extents: &[Extent], size: u64, batches: &mut Vec<Vec<Look>>) {
    let (mut from, mut at, mut begin, mut bytes) = (0, 0, 0, 0);
    for (i, e) in extents.iter().enumerate() {
        // What lies beyond the file's end is not there.
        if at + e.len() > size {
            break;
        }
        at += e.len();
        bytes += e.len();
        if bytes >= BATCH_BYTES || i + 1 == extents.len() || at + extents[i + 1].len() > size {
            let look = Look {
                leaf,
                extents: from..i + 1,
                at: begin,
            };
            push(batches, look, bytes);
            (from, begin, bytes) = (i + 1, at, 0);
        }
    }
}

/// Small files share a batch, so that a thread finds their directory open.
fn push(batches: &mut Vec<Vec<Look>>, look: Look, bytes: u64) {
    match batches.last_mut() {
        Some(last) if bytes < BATCH_BYTES / BATCH as u64 && last.len() < BATCH => last.push(look),
        _ => batches.push(vec![look]),
    }
}

/// Which of `wanted` stand in `known` with the same bytes at the same place.
fn same_places(wanted: &[Extent], known: &[Extent]) -> Vec<bool> {
    let (mut at, mut theirs, mut rest) = (0, 0, known.iter().peekable());
    wanted
        .iter()
        .map(|w| {
            while let Some(k) = rest.peek().filter(|_| theirs < at) {
                theirs += k.len();
                rest.next();
            }
            let same = theirs == at && rest.peek() == Some(&w);
            at += w.len();
            same
        })
        .collect()
}

/// Whether the file holds these bytes at `at`.
fn holds(fd: &OwnedFd, at: u64, extent: &Extent, vault: &Vault, buf: &mut Vec<u8>) -> bool {
    let hole = seek(fd, SeekFrom::Data(at))
        .map_or_else(|e| e == rustix::io::Errno::NXIO, |data| data >= at + extent.len());
    let Extent::Chunk { id, len } = extent else {
        return hole;
    };
    // Space that was only set aside.
    if hole || *len as usize > MAX_CHUNK {
        return false;
    }
    buf.resize(*len as usize, 0);
    let mut done = 0;
    while done < buf.len() {
        match rustix::io::pread(fd, &mut buf[done..], at + done as u64) {
            Ok(0) => return false,
            Ok(n) => done += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    vault.id(buf) == *id
}
