//! Making room in a target that already holds something.
//!
//! Only what stands in the way of a directory (or is one where a file belongs) is removed up
//! front, and with `delete` what the snapshot does not have. Files that have a name of the snapshot
//! are merely noted: what is right in them is kept, and one that is replaced is unlinked when its
//! replacement is at hand. A directory that its owner made
//! read-only does not stand in the owner's own way.

use super::load::Manifest;
use super::target::{Hands, unlink, unlock};
use crate::error::Error;
use crate::fsutil::{Meta, io_at};
use crate::scan::Scan;
use rustix::fs::{AtFlags, FileType, unlinkat};
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;

#[derive(Default)]
pub(super) struct Replacement {
    /// Leaves of the manifest whose name is taken by something that can be unlinked: where in the
    /// scan (directory, number).
    pub exists: HashMap<usize, (usize, usize)>,
    /// Bytes on disk that will become free.
    pub freed: u64,
    /// Directories of the scan to remove with all they hold.
    trees: Vec<usize>,
    /// Leaves of the scan to remove: (directory, number).
    leaves: Vec<(usize, usize)>,
}

impl Replacement {
    pub fn plan(manifest: &Manifest, scan: &Scan, delete: bool) -> Self {
        let mut out = Self::default();
        let mut pairs = vec![(0, 0)];
        while let Some((here, there)) = pairs.pop() {
            let (d, s) = (&manifest.dirs[here], &scan.dirs[there]);
            let leaf = |name: &[u8]| manifest.find_leaf(here, name);
            let subdir = |name: &[u8]| {
                let found = d
                    .subdirs
                    .binary_search_by(|i| (*manifest.dirs[*i].name).cmp(name));
                found.ok().map(|i| d.subdirs[i])
            };
            for (i, l) in s.leaves.iter().enumerate() {
                let name = s.leaf_name(i);
                if let Some(number) = leaf(name) {
                    out.exists.insert(number, (there, i));
                } else if subdir(name).is_some() || delete {
                    out.leaves.push((there, i));
                } else {
                    continue;
                }
                out.freed += freed(&l.meta);
            }
            for &sub in &s.subdirs {
                let name = &scan.dirs[sub].name;
                if let Some(number) = subdir(name) {
                    pairs.push((number, sub));
                } else if leaf(name).is_some() || delete {
                    out.tree(scan, sub);
                }
            }
        }
        out
    }

    /// All of a directory, parents before children.
    fn tree(&mut self, scan: &Scan, top: usize) {
        let mut stack = vec![top];
        while let Some(dir) = stack.pop() {
            self.trees.push(dir);
            for (i, l) in scan.dirs[dir].leaves.iter().enumerate() {
                self.leaves.push((dir, i));
                self.freed += freed(&l.meta);
            }
            stack.extend(&scan.dirs[dir].subdirs);
        }
    }

    /// Removes what stands in the way.
    pub fn clear(&self, root: &OwnedFd, shown: &Path, scan: &Scan) -> Result<(), Error> {
        if self.leaves.is_empty() && self.trees.is_empty() {
            return Ok(());
        }
        let paths = scan.paths();
        let mut hands = Hands::default();
        let of = |i: usize| (scan.dirs[i].parent, scan.dirs[i].name.clone());
        for (dir, i) in &self.leaves {
            let name = scan.dirs[*dir].leaf_name(*i);
            hands
                .dir(root, *dir, &of)
                .and_then(|fd| unlink(fd, name).or_else(|_| unlock(fd).and_then(|()| unlink(fd, name))))
                .map_err(|e| io_at(shown, &crate::fsutil::join(&paths[*dir], name), "remove", e))?;
        }
        for dir in self.trees.iter().rev() {
            let (parent, name) = of(*dir);
            let mut fresh = Hands::default();
            let remove = |fd: &OwnedFd| unlinkat(fd, &*name, AtFlags::REMOVEDIR);
            let done = fresh
                .dir(root, parent, &of)
                .and_then(|fd| remove(fd).or_else(|_| unlock(fd).and_then(|()| remove(fd))));
            match done {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(io_at(shown, &paths[*dir], "remove", e)),
            }
        }
        Ok(())
    }
}

fn freed(meta: &Meta) -> u64 {
    if meta.kind == FileType::RegularFile && meta.nlink == 1 {
        meta.allocated()
    } else {
        0
    }
}
