//! Looking into a snapshot without restoring it: list, read one file, compare, check.
//!
//! The same code that a restore uses reads indexes and tree, so what is shown here is what a
//! restore would bring, and what is damaged is found by the same checks.

mod check;
mod diff;

pub(crate) use check::chunks;
pub use check::{CheckReport, Damage, check};
pub use diff::{Change, ChangeKind};

use crate::error::Error;
use crate::events::Abort;
use crate::index::ChunkMap;
use crate::printable::printable;
use crate::restore::fetch::Fetcher;
use crate::restore::load::{self, Leaf, LeafBody, Manifest};
use crate::seal::Vault;
use crate::store::ObjectSource;
use crate::tree::Extent;
use dumont_core::key::WorkspaceKey;
use dumont_core::snapshot::SnapshotHead;
use std::io::Write;
use std::sync::atomic::AtomicBool;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    Dir,
    /// `links` counts the names of the file in the snapshot.
    File {
        size: u64,
        links: u64,
    },
    /// Where it points.
    Symlink(Vec<u8>),
    Fifo,
}

/// One entry of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Below the snapshot's root, without a leading slash.
    pub path: Vec<u8>,
    pub kind: EntryKind,
    /// The twelve permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since the epoch, and nanoseconds.
    pub mtime: (i64, u32),
}

/// A snapshot whose tree was read and found sound.
pub struct Reader<'a> {
    head: &'a SnapshotHead,
    source: &'a dyn ObjectSource,
    vault: Vault,
    cancelled: &'a AtomicBool,
    map: ChunkMap,
    manifest: Manifest,
}

impl<'a> Reader<'a> {
    /// Reads indexes and tree.
    ///
    /// # Errors
    /// Any [`Error`] of reading them.
    pub fn open(
        head: &'a SnapshotHead,
        source: &'a dyn ObjectSource,
        key: Option<&WorkspaceKey>,
        cancelled: &'a AtomicBool,
    ) -> Result<Self, Error> {
        let abort = Abort::new(cancelled);
        let vault = Vault::new(key);
        let fetcher = Fetcher::new(source, vault.clone(), &abort);
        let read = || {
            let map = load::indexes(head, &fetcher)?;
            let manifest = load::manifest(head, &map, &fetcher)?;
            Ok((map, manifest))
        };
        let (map, manifest) = read().map_err(|e| abort.explain(e))?;
        Ok(Self {
            head,
            source,
            vault,
            cancelled,
            map,
            manifest,
        })
    }

    /// Only what a restore of this part would bring.
    ///
    /// # Errors
    /// [`Error::Invalid`] if that is nothing.
    pub fn part(mut self, include: &[String], exclude: &[String]) -> Result<Self, Error> {
        self.manifest.keep(include, exclude)?;
        Ok(self)
    }

    /// Files and symlinks, and the bytes of files.
    pub fn totals(&self) -> (u64, u64) {
        (self.manifest.files, self.manifest.bytes)
    }

    /// Everything at or below `path` (all of it if that is empty), directories before what they
    /// hold, each directory in order of name. Empty if there is no such path.
    pub fn list(&self, path: &[u8]) -> Vec<Entry> {
        let groups = self.group_sizes();
        if let Some(leaf) = self.find(path) {
            return vec![self.entry(&self.manifest.leaves[leaf], path.to_vec(), &groups)];
        }
        let Some(top) = self.manifest.find_dir(path) else {
            return Vec::new();
        };
        let (mut out, mut stack) = (Vec::new(), vec![(top, path.to_vec())]);
        while let Some((number, path)) = stack.pop() {
            let dir = &self.manifest.dirs[number];
            if number != 0 {
                out.push(Entry {
                    path: path.clone(),
                    kind: EntryKind::Dir,
                    mode: dir.attrs.mode,
                    uid: dir.attrs.uid,
                    gid: dir.attrs.gid,
                    mtime: (dir.attrs.mtime.sec, dir.attrs.mtime.ns),
                });
            }
            for leaf in dir.leaves.clone() {
                let path = crate::fsutil::join(&path, self.manifest.name(leaf));
                out.push(self.entry(&self.manifest.leaves[leaf], path, &groups));
            }
            for &sub in dir.subdirs.iter().rev() {
                let name = &self.manifest.dirs[sub].name;
                stack.push((sub, crate::fsutil::join(&path, name)));
            }
        }
        out
    }

    fn group_sizes(&self) -> std::collections::HashMap<u64, u64> {
        let mut out = std::collections::HashMap::new();
        for leaf in &self.manifest.leaves {
            if let LeafBody::File { group, .. } = leaf.body
                && group != 0
            {
                *out.entry(group).or_insert(0) += 1;
            }
        }
        out
    }

    fn entry(&self, leaf: &Leaf, path: Vec<u8>, groups: &std::collections::HashMap<u64, u64>) -> Entry {
        let kind = match &leaf.body {
            LeafBody::File { size, group, .. } => EntryKind::File {
                size: *size,
                links: groups.get(group).copied().unwrap_or(1),
            },
            LeafBody::Symlink(target) => EntryKind::Symlink(target.to_vec()),
            LeafBody::Fifo => EntryKind::Fifo,
        };
        Entry {
            path,
            kind,
            mode: leaf.attrs.mode,
            uid: leaf.attrs.uid,
            gid: leaf.attrs.gid,
            mtime: (leaf.attrs.mtime.sec, leaf.attrs.mtime.ns),
        }
    }

    fn find(&self, path: &[u8]) -> Option<usize> {
        let (dir, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&[][..], path),
        };
        self.manifest.find_leaf(self.manifest.find_dir(dir)?, name)
    }

    /// Writes a file's content, verified chunk by chunk.
    ///
    /// # Errors
    /// [`Error::Invalid`] if `path` is no file of the snapshot; any of reading it; [`Error::Io`]
    /// if `out` takes no more.
    pub fn cat(&self, path: &[u8], out: &mut dyn Write) -> Result<(), Error> {
        let leaf = self.find(path).map(|l| &self.manifest.leaves[l].body);
        let Some(LeafBody::File { extents, .. }) = leaf else {
            return Err(Error::Invalid {
                what: format!("{} has no file {}", self.head.snapshot_id, printable(path)),
            });
        };
        let abort = Abort::new(self.cancelled);
        let fetcher = Fetcher::new(self.source, self.vault.clone(), &abort);
        let mut opener = fetcher.opener()?;
        let zeros = [0; 64 << 10];
        let fail = |e| Error::io("the output", "write", e);
        for extent in extents.iter() {
            match extent {
                Extent::Hole { len } => {
                    let mut left = *len;
                    while left > 0 {
                        let n = left.min(zeros.len() as u64);
                        out.write_all(&zeros[..n as usize]).map_err(fail)?;
                        left -= n;
                    }
                }
                Extent::Chunk { id, .. } => {
                    let place = self.map.get(id).ok_or_else(|| {
                        Error::corrupt(&self.head.snapshot_id, format_args!("chunk {id} is in no index"))
                    })?;
                    let raw = fetcher.chunk_anywhere(&self.map, place, &mut opener, &|| printable(path))?;
                    out.write_all(&raw).map_err(fail)?;
                }
            }
        }
        out.flush().map_err(fail)
    }
}
