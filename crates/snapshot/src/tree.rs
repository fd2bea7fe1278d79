//! The manifest: a content-addressed tree of directories.
//!
//! A node holds the directory's own attributes and its entries, sorted by name, in one
//! canonical encoding: the same directory always has the same id, so a directory in which
//! nothing changed costs nothing in the next snapshot, and neither does anything below it.
//! A directory's attributes live in its own node and not in its parent's entry, so that the
//! root is a node like every other.
//!
//! Hard links are groups: entries of the same inode carry the same group number anywhere in
//! the tree. It is derived from the group's first path and not from the inode, because a
//! restored tree has other inodes and must still encode to the same nodes.

use crate::bytes::{Malformed, Put, Reader};
use crate::chunk::MAX_CHUNK;
use crate::extras::{More, put_more, read_more};
use crate::fsutil::{Attrs, Time};
use dumont_core::id::Digest;
use std::ops::Deref;
use std::sync::Arc;

/// A longer list of extents moves out of the node into an object of its own.
const INLINE_EXTENTS: usize = 256;
const TAG_NODE: u8 = 1;
const TAG_EXTENTS: u8 = 2;
const TAG_PIECES: u8 = 3;
/// A directory with more than its attributes.
const TAG_NODE_MORE: u8 = 4;
/// On the type of an entry that has more than its attributes.
const MORE: u8 = 0x80;

/// A stretch of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Extent {
    /// `len` is the chunk's raw length.
    Chunk { id: Digest, len: u32 },
    /// Bytes that read as zero and take no space.
    Hole { len: u64 },
}

impl Extent {
    pub fn len(&self) -> u64 {
        match self {
            Self::Chunk { len, .. } => (*len).into(),
            Self::Hole { len } => *len,
        }
    }
}

/// What a file is made of. Most are one chunk, and need no list on the heap.
#[derive(Debug, Clone)]
pub(crate) enum List {
    One([Extent; 1]),
    Many(Arc<[Extent]>),
}

impl Deref for List {
    type Target = [Extent];

    fn deref(&self) -> &[Extent] {
        match self {
            Self::One(one) => one,
            Self::Many(many) => many,
        }
    }
}

impl From<&[Extent]> for List {
    fn from(all: &[Extent]) -> Self {
        match *all {
            [one] => Self::One([one]),
            _ => Self::Many(all.into()),
        }
    }
}

impl PartialEq for List {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for List {}

/// Where a file's extents are written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Extents {
    Here(List),
    /// In a tree object of this id.
    Listed(Digest),
}

impl Extents {
    /// Whether a list of this length belongs in the node. Part of the canonical form.
    pub fn fits(extents: &[Extent]) -> bool {
        extents.len() <= INLINE_EXTENTS
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    File {
        size: u64,
        /// 0 for a file with one name in the tree.
        group: u64,
        extents: Extents,
    },
    Dir {
        node: Digest,
    },
    Symlink {
        target: Box<[u8]>,
    },
    Fifo,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub name: Box<[u8]>,
    /// Default for directories: theirs are in their own node.
    pub attrs: Attrs,
    pub body: Body,
    /// Of a directory they are in its own node.
    pub more: More,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub attrs: Attrs,
    pub more: More,
    /// Sorted by name, no name twice.
    pub entries: Vec<Entry>,
}

fn put_attrs(out: &mut Vec<u8>, a: &Attrs) {
    out.u16(a.mode as u16);
    out.u32(a.uid);
    out.u32(a.gid);
    out.i64(a.mtime.sec);
    out.u32(a.mtime.ns);
}

fn read_attrs(r: &mut Reader<'_>) -> Result<Attrs, Malformed> {
    let mode = u32::from(r.u16()?);
    let attrs = Attrs {
        mode,
        uid: r.u32()?,
        gid: r.u32()?,
        mtime: Time {
            sec: r.i64()?,
            ns: r.u32()?,
        },
    };
    if mode > 0o7777 || attrs.mtime.ns >= 1_000_000_000 {
        return Err(Malformed("a mode or time is out of range"));
    }
    Ok(attrs)
}

fn put_extents(out: &mut Vec<u8>, extents: &[Extent]) {
    out.u32(u32::try_from(extents.len()).unwrap_or(u32::MAX));
    for e in extents {
        match e {
            Extent::Chunk { id, len } => {
                out.u8(0);
                out.u32(*len);
                out.bytes(&id.0);
            }
            Extent::Hole { len } => {
                out.u8(1);
                out.u64(*len);
            }
        }
    }
}

/// The list; its lengths add up without overflow.
fn read_extents(r: &mut Reader<'_>) -> Result<List, Malformed> {
    let mut out = Vec::with_capacity(r.count(9)?);
    let mut total = 0u64;
    for _ in 0..out.capacity() {
        let e = match r.u8()? {
            0 => {
                let len = r.u32()?;
                if len == 0 || len as usize > MAX_CHUNK {
                    return Err(Malformed("a chunk has an impossible length"));
                }
                Extent::Chunk { len, id: r.digest()? }
            }
            1 => Extent::Hole { len: r.u64()? },
            _ => return Err(Malformed("an extent is of no known kind")),
        };
        total = total
            .checked_add(e.len())
            .ok_or(Malformed("a file is impossibly long"))?;
        out.push(e);
    }
    Ok(out[..].into())
}

impl Node {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.entries.len() * 128);
        let tags = [TAG_NODE, TAG_NODE_MORE];
        out.u8(tags[usize::from(self.more.is_some())]);
        put_attrs(&mut out, &self.attrs);
        put_more(&mut out, &self.more);
        out.u32(u32::try_from(self.entries.len()).unwrap_or(u32::MAX));
        for e in &self.entries {
            out.short(&e.name);
            let more = if e.more.is_some() { MORE } else { 0 };
            match &e.body {
                Body::Dir { node } => {
                    out.u8(0);
                    out.bytes(&node.0);
                }
                Body::File { size, group, extents } => {
                    out.u8(1 | more);
                    put_attrs(&mut out, &e.attrs);
                    out.u64(*size);
                    out.u64(*group);
                    match extents {
                        Extents::Here(list) => {
                            out.u8(0);
                            put_extents(&mut out, list);
                        }
                        Extents::Listed(id) => {
                            out.u8(1);
                            out.bytes(&id.0);
                        }
                    }
                }
                Body::Symlink { target } => {
                    out.u8(2 | more);
                    put_attrs(&mut out, &e.attrs);
                    out.short(target);
                }
                Body::Fifo => {
                    out.u8(3 | more);
                    put_attrs(&mut out, &e.attrs);
                }
            }
            put_more(&mut out, &e.more);
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        let tag = r.u8()?;
        if tag != TAG_NODE && tag != TAG_NODE_MORE {
            return Err(Malformed("it is not a directory"));
        }
        let attrs = read_attrs(&mut r)?;
        let more = read_more(&mut r, tag == TAG_NODE_MORE)?;
        let count = r.count(3)?;
        let mut entries: Vec<Entry> = Vec::with_capacity(count.min(bytes.len() / 16));
        for _ in 0..count {
            let e = read_entry(&mut r)?;
            if entries.last().is_some_and(|last| last.name >= e.name) {
                return Err(Malformed("its names are not in order"));
            }
            entries.push(e);
        }
        r.end()?;
        Ok(Self { attrs, more, entries })
    }
}

fn read_entry(r: &mut Reader<'_>) -> Result<Entry, Malformed> {
    let name: Box<[u8]> = r.short()?.into();
    check_name(&name)?;
    let kind = r.u8()?;
    let (attrs, body) = match kind & !MORE {
        0 if kind == 0 => (Attrs::default(), Body::Dir { node: r.digest()? }),
        1 => {
            let (attrs, size, group) = (read_attrs(r)?, r.u64()?, r.u64()?);
            // Offsets are signed in every system call.
            if size > i64::MAX as u64 {
                return Err(Malformed("a file is impossibly long"));
            }
            let extents = match r.u8()? {
                0 => Extents::Here(read_extents(r)?),
                1 => Extents::Listed(r.digest()?),
                _ => return Err(Malformed("a file's content is of no known kind")),
            };
            (attrs, Body::File { size, group, extents })
        }
        2 => {
            let (attrs, target) = (read_attrs(r)?, r.short()?);
            if target.is_empty() || target.contains(&0) {
                return Err(Malformed("a symlink points nowhere"));
            }
            (
                attrs,
                Body::Symlink {
                    target: target.into(),
                },
            )
        }
        3 => (read_attrs(r)?, Body::Fifo),
        _ => return Err(Malformed("an entry is of no known type")),
    };
    let more = read_more(r, kind & MORE != 0)?;
    Ok(Entry {
        name,
        attrs,
        body,
        more,
    })
}

/// A name is one component: this is what keeps a manifest inside its directory.
fn check_name(name: &[u8]) -> Result<(), Malformed> {
    match name {
        b"" | b"." | b".." => Err(Malformed("an entry is named '', '.' or '..'")),
        n if n.len() > 255 => Err(Malformed("a name is longer than 255 bytes")),
        n if n.contains(&b'/') || n.contains(&0) => Err(Malformed("a name contains '/' or NUL")),
        _ => Ok(()),
    }
}

/// A list of extents that did not fit into its node.
pub(crate) fn encode_extents(extents: &[Extent]) -> Vec<u8> {
    let mut out = vec![TAG_EXTENTS];
    put_extents(&mut out, extents);
    out
}

pub(crate) fn decode_extents(bytes: &[u8]) -> Result<List, Malformed> {
    let mut r = Reader::new(bytes);
    if r.u8()? != TAG_EXTENTS {
        return Err(Malformed("it is not a list of extents"));
    }
    let list = read_extents(&mut r)?;
    r.end()?;
    Ok(list)
}

/// The chunks that a tree object was cut into when it was too long for one.
pub(crate) fn encode_pieces(pieces: &[(Digest, u32)]) -> Vec<u8> {
    let mut out = vec![TAG_PIECES];
    out.u32(u32::try_from(pieces.len()).unwrap_or(u32::MAX));
    for (id, len) in pieces {
        out.bytes(&id.0);
        out.u32(*len);
    }
    out
}

/// `None` if the object is not in pieces.
pub(crate) fn decode_pieces(bytes: &[u8]) -> Result<Option<Vec<(Digest, u32)>>, Malformed> {
    let mut r = Reader::new(bytes);
    if r.u8()? != TAG_PIECES {
        return Ok(None);
    }
    let n = r.count(36)?;
    let pieces = (0..n)
        .map(|_| Ok((r.digest()?, r.u32()?)))
        .collect::<Result<_, _>>()?;
    r.end()?;
    Ok(Some(pieces))
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
