//! What differs between two snapshots, by path.

use super::Reader;
use crate::extras::{More, xattrs};
use crate::fsutil::{Attrs, join};
use crate::restore::load::{LeafBody, Manifest};
use std::collections::BTreeMap;

/// How a path differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    Added,
    Removed,
    /// Type, content or target.
    Content,
    /// Only mode, owner, mtime or extended attributes.
    Attributes,
}

/// One path that is not the same in both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub path: Vec<u8>,
    pub kind: ChangeKind,
}

impl Reader<'_> {
    /// From `self` to `other`, in order of path. No file's content is fetched: chunk ids say
    /// enough. A directory's own times are not compared.
    pub fn diff(&self, other: &Reader<'_>) -> Vec<Change> {
        let (mut out, before) = (Vec::new(), by_path(&self.manifest));
        let after = by_path(&other.manifest);
        for (path, now) in &after {
            let kind = match before.get(path) {
                None => ChangeKind::Added,
                Some(then) if !same_content(then.1, now.1) => ChangeKind::Content,
                Some(then)
                    if then.1.is_some() && then.0 != now.0
                        || mode_differs(then.0, now.0)
                        || xattrs(then.2) != xattrs(now.2) =>
                {
                    ChangeKind::Attributes
                }
                Some(_) => continue,
            };
            out.push(Change {
                path: path.clone(),
                kind,
            });
        }
        let gone = before.into_keys().filter(|p| !after.contains_key(p));
        out.extend(gone.map(|path| Change {
            path,
            kind: ChangeKind::Removed,
        }));
        out.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        out
    }
}

fn mode_differs(a: &Attrs, b: &Attrs) -> bool {
    (a.mode, a.uid, a.gid) != (b.mode, b.uid, b.gid)
}

fn same_content(a: Option<&LeafBody>, b: Option<&LeafBody>) -> bool {
    match (a, b) {
        (None, None) => true,
        (
            Some(LeafBody::File {
                size: s, extents: e, ..
            }),
            Some(LeafBody::File {
                size: t, extents: f, ..
            }),
        ) => s == t && e == f,
        (Some(LeafBody::Symlink(a)), Some(LeafBody::Symlink(b))) => a == b,
        (Some(LeafBody::Fifo), Some(LeafBody::Fifo)) => true,
        _ => false,
    }
}

/// Directories have no body.
fn by_path(m: &Manifest) -> BTreeMap<Vec<u8>, (&Attrs, Option<&LeafBody>, &More)> {
    let mut paths: Vec<Vec<u8>> = Vec::with_capacity(m.dirs.len());
    let mut out = BTreeMap::new();
    for (number, dir) in m.dirs.iter().enumerate() {
        let path = if number == 0 {
            Vec::new()
        } else {
            join(&paths[dir.parent], &dir.name)
        };
        for number in dir.leaves.clone() {
            let leaf = &m.leaves[number];
            out.insert(
                join(&path, m.name(number)),
                (&leaf.attrs, Some(&leaf.body), &leaf.more),
            );
        }
        if number != 0 {
            out.insert(path.clone(), (&dir.attrs, None, &dir.more));
        }
        paths.push(path);
    }
    out
}
