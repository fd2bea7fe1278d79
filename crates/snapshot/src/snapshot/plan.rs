//! Which files to read, and what is known of every file.

use crate::cache::{Cache, Known, KnownBody};
use crate::error::Error;
use crate::extras::{More, xattrs};
use crate::format::digest;
use crate::fsutil::{Meta, Time, join};
use crate::metadata;
use crate::scan::Scan;
use crate::tree::List;
use dumont_core::id::Digest;
use rustix::fs::FileType;
use std::collections::HashMap;
use std::sync::OnceLock;

/// A leaf: number of its directory, and its number there.
pub(super) type At = (usize, usize);

/// What a file was found to be.
pub(super) enum Content {
    File {
        /// As it was when this content was read, if that is not as it was listed.
        meta: Option<Box<Meta>>,
        extents: List,
        more: More,
        /// Not settled: to be read again next time whatever its times say.
        torn: bool,
        /// How many of the file's names were gone before one was found.
        gone: u32,
    },
    Gone,
}

/// A name of an inode that has several names in the tree.
struct Link {
    first: At,
    /// Which of the names this is, in depth-first order.
    name: u32,
    group: u64,
}

/// What has to be done, and what came of it. With the scan it is all that is known of the files:
/// entries of the tree and of the cache are made from it as they are written, and not kept.
pub(super) struct Plan<'a> {
    pub scan: &'a Scan,
    /// Of directories.
    pub paths: Vec<Vec<u8>>,
    /// Directories, depth first.
    order: Vec<usize>,
    /// Number of each directory's first leaf among all.
    first: Vec<usize>,
    /// By number of the leaf; of an inode with several names, of the first.
    contents: Vec<OnceLock<Content>>,
    links: HashMap<At, Link>,
    /// By first name.
    names: HashMap<At, Vec<At>>,
    /// Numbers of the files to read, by first name.
    jobs: Vec<u32>,
    pub bytes_to_read: u64,
}

impl<'a> Plan<'a> {
    /// Without a cache everything is read.
    pub fn new(scan: &'a Scan, cache: Option<&mut Cache>) -> Result<Self, Error> {
        let (mut first, mut count) = (Vec::with_capacity(scan.dirs.len()), 0);
        for dir in &scan.dirs {
            first.push(count);
            count += dir.leaves.len();
        }
        let mut plan = Self {
            scan,
            paths: scan.paths(),
            order: scan.depth_first(),
            first,
            contents: (0..count).map(|_| OnceLock::new()).collect(),
            links: HashMap::new(),
            names: HashMap::new(),
            jobs: Vec::new(),
            bytes_to_read: 0,
        };
        plan.find_links();
        if let Some(cache) = cache {
            plan.keep(cache)?;
        }
        for &dir in &plan.order {
            for (i, leaf) in scan.dirs[dir].leaves.iter().enumerate() {
                let at = (dir, i);
                let is_first = plan.links.get(&at).is_none_or(|l| l.first == at);
                let unknown = plan.contents[plan.first[dir] + i].get().is_none();
                if leaf.meta.kind == FileType::RegularFile && is_first && unknown {
                    plan.bytes_to_read += leaf.meta.size;
                    plan.jobs.push((plan.first[dir] + i) as u32);
                }
            }
        }
        Ok(plan)
    }

    /// Inodes with several names in the tree; the names in depth-first order.
    fn find_links(&mut self) {
        let mut inodes: HashMap<_, Vec<At>> = HashMap::new();
        for &dir in &self.order {
            for (i, leaf) in self.scan.dirs[dir].leaves.iter().enumerate() {
                if leaf.meta.kind == FileType::RegularFile && leaf.meta.nlink > 1 {
                    let inode = (leaf.meta.dev, leaf.meta.ino);
                    inodes.entry(inode).or_default().push((dir, i));
                }
            }
        }
        for names in inodes.into_values().filter(|names| names.len() > 1) {
            let (first, group) = (names[0], group_number(&self.path(names[0])));
            for (&at, name) in names.iter().zip(0u32..) {
                self.links.insert(at, Link { first, name, group });
            }
            self.names.insert(first, names);
        }
    }

    /// Takes the content of what did not change from the cache.
    fn keep(&mut self, cache: &mut Cache) -> Result<(), Error> {
        let (started_ns, mut last) = (cache.started_ns, None);
        cache.each(&mut |path, known| {
            let Some((dir, i)) = self.scan.find(path, &mut last) else {
                return;
            };
            if let Some(extents) = known.unchanged(started_ns, &self.scan.dirs[dir].leaves[i].meta) {
                let kept = Content::File {
                    meta: None,
                    extents: extents.clone(),
                    more: known.more.clone(),
                    torn: false,
                    gone: 0,
                };
                _ = self.contents[self.first[dir] + i].set(kept);
            }
        })
    }

    /// How many there are.
    pub fn leaves(&self) -> usize {
        self.contents.len()
    }

    pub fn path(&self, (dir, i): At) -> Vec<u8> {
        join(&self.paths[dir], self.scan.dirs[dir].leaf_name(i))
    }

    /// How many files are to be read.
    pub fn jobs(&self) -> usize {
        self.jobs.len()
    }

    pub fn job(&self, number: usize) -> At {
        let leaf = self.jobs[number] as usize;
        let dir = self.first.partition_point(|first| *first <= leaf) - 1;
        (dir, leaf - self.first[dir])
    }

    /// All names of the file with this first one, in depth-first order.
    pub fn names(&self, job: At) -> Vec<At> {
        self.names.get(&job).cloned().unwrap_or_else(|| vec![job])
    }

    /// As it was listed.
    pub fn listed(&self, (dir, i): At) -> &Meta {
        &self.scan.dirs[dir].leaves[i].meta
    }

    pub fn found(&self, job: At, content: Content) {
        _ = self.contents[self.first[job.0] + job.1].set(content);
    }

    /// `None` for what is no regular file, and for names that were gone.
    pub fn file(&self, at: At) -> Option<File<'_>> {
        let (first, name, group) = match self.links.get(&at) {
            Some(link) => (link.first, link.name, link.group),
            None => (at, 0, 0),
        };
        match self.contents[self.first[first.0] + first.1].get()? {
            Content::File {
                meta,
                extents,
                more,
                torn,
                gone,
            } if *gone <= name => Some(File {
                meta: meta.as_deref().unwrap_or_else(|| self.listed(first)),
                extents,
                more,
                torn: *torn,
                group,
                first: *gone == name,
            }),
            _ => None,
        }
    }

    /// What is to be remembered of a leaf; `None` if it is left out.
    pub fn known(&self, at: At) -> Option<Known> {
        let listed = self.listed(at);
        let (meta, body, more, torn) = match listed.kind {
            FileType::Symlink => {
                let target = self.scan.dirs[at.0].target(at.1).into();
                (listed, KnownBody::Symlink(target), None, false)
            }
            FileType::Fifo => (listed, KnownBody::Fifo, None, false),
            _ => {
                let file = self.file(at)?;
                let body = KnownBody::File {
                    size: file.meta.size,
                    extents: file.extents.clone(),
                };
                (file.meta, body, file.more.clone(), file.torn)
            }
        };
        Some(Known {
            attrs: meta.attrs,
            ctime: if torn { Time::default() } else { meta.ctime },
            ino: meta.ino,
            body,
            more,
        })
    }

    pub fn each_known(&self, each: &mut dyn FnMut(&[u8], &Known)) {
        for &dir in &self.order {
            for i in 0..self.scan.dirs[dir].leaves.len() {
                if let Some(known) = self.known((dir, i)) {
                    each(&self.path((dir, i)), &known);
                }
            }
        }
    }

    /// Files and symlinks, in order of path.
    pub fn each_by_path(&self, each: metadata::Each<'_>) {
        self.scan.by_path(&mut |dir, i| {
            let known = self.known((dir, i)).filter(|k| k.body != KnownBody::Fifo);
            if let Some(known) = known {
                each(&self.path((dir, i)), known.attrs.mtime);
            }
        });
    }

    /// Paths of files that changed while they were read, by the name under which they were.
    pub fn torn(&self) -> impl Iterator<Item = Vec<u8>> {
        (0..self.jobs.len()).map(|n| self.job(n)).filter_map(|job| {
            match self.contents[self.first[job.0] + job.1].get() {
                Some(Content::File { torn: true, gone, .. }) => {
                    Some(self.path(self.names(job)[*gone as usize]))
                }
                _ => None,
            }
        })
    }

    /// New, gone and differently recorded paths; `entries` is how many there are now.
    pub fn changed(&self, entries: u64, then: &mut Cache) -> Result<u64, Error> {
        let (mut before, mut matched, mut changed, mut last) = (0, 0, 0, None);
        then.each(&mut |path, old| {
            before += 1;
            let now = self.scan.find(path, &mut last).and_then(|at| self.known(at));
            if let Some(now) = now {
                matched += 1;
                changed += u64::from(!same_record(&old, &now));
            }
        })?;
        Ok(changed + (entries - matched) + (before - matched))
    }
}

/// An MD5 that was taken meanwhile is no change.
fn same_record(a: &Known, b: &Known) -> bool {
    (a.attrs, &a.body, xattrs(&a.more)) == (b.attrs, &b.body, xattrs(&b.more))
}

/// One name of a file, as it will be recorded.
pub(super) struct File<'a> {
    pub meta: &'a Meta,
    pub extents: &'a List,
    pub more: &'a More,
    torn: bool,
    pub group: u64,
    /// Whether this is the first of its names.
    pub first: bool,
}

fn group_number(first_path: &[u8]) -> u64 {
    let Digest([a, b, c, d, e, f, g, h, ..]) = digest(first_path);
    u64::from_le_bytes([a, b, c, d, e, f, g, h]) | 1
}
