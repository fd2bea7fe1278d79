//! What a directory tree holds now, by `lstat`; no file is opened.
//!
//! The whole list is kept in memory (80 bytes and the name): hard links can only be told apart
//! from single names once every name has been seen, and the manifest's hard-link groups must not
//! depend on the order in which threads happen to look.

use crate::error::Error;
use crate::events::{Abort, lock};
use crate::extras::{self, Xattrs};
use crate::fsutil::{DIR_FLAGS, Meta, io_at, join, locate};
use rustix::fs::{Dir, FileType, Mode, openat, readlinkat};
use rustix::io::Errno;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Condvar, Mutex};

/// Anything but a directory. Sockets and devices are listed, too: no snapshot keeps them, but a
/// restore may have to remove them.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub meta: Meta,
    /// Where in its directory's `text` the name ends, and a symlink's target after it.
    name_end: u32,
    end: u32,
}

#[derive(Debug)]
pub(crate) struct ScanDir {
    /// Number of the directory it is in; the root's own is 0. Parents come before children.
    pub parent: usize,
    pub name: Box<[u8]>,
    pub meta: Meta,
    /// Sorted by name.
    pub leaves: Box<[Leaf]>,
    /// The leaves' names and targets, one after the other.
    text: Box<[u8]>,
    /// Sorted by name.
    pub subdirs: Vec<usize>,
    pub xattrs: Xattrs,
    /// It was removed while we looked.
    pub gone: bool,
}

impl ScanDir {
    fn new(parent: usize, name: Box<[u8]>, meta: Meta) -> Self {
        Self {
            parent,
            name,
            meta,
            leaves: Box::default(),
            text: Box::default(),
            subdirs: Vec::new(),
            xattrs: Xattrs::new(),
            gone: false,
        }
    }

    /// Of leaf number `i`.
    pub fn leaf_name(&self, i: usize) -> &[u8] {
        let from = i.checked_sub(1).map_or(0, |before| self.leaves[before].end);
        &self.text[from as usize..self.leaves[i].name_end as usize]
    }

    /// Where a symlink points.
    pub fn target(&self, i: usize) -> &[u8] {
        let leaf = &self.leaves[i];
        &self.text[leaf.name_end as usize..leaf.end as usize]
    }

    fn find(&self, name: &[u8]) -> Option<usize> {
        // No slice of the names exists that could be searched.
        let (mut from, mut to) = (0, self.leaves.len());
        while from < to {
            let middle = from + (to - from) / 2;
            match self.leaf_name(middle).cmp(name) {
                Ordering::Less => from = middle + 1,
                Ordering::Equal => return Some(middle),
                Ordering::Greater => to = middle,
            }
        }
        None
    }
}

#[derive(Debug)]
pub(crate) struct Scan {
    pub dirs: Vec<ScanDir>,
}

impl Scan {
    /// Path of every directory below the root; the root's is empty.
    pub fn paths(&self) -> Vec<Vec<u8>> {
        let mut out: Vec<Vec<u8>> = Vec::with_capacity(self.dirs.len());
        for (i, d) in self.dirs.iter().enumerate() {
            out.push(if i == 0 {
                Vec::new()
            } else {
                join(&out[d.parent], &d.name)
            });
        }
        out
    }

    /// The leaf of this path, as directory and number; `last` is for [`locate`].
    pub fn find(&self, path: &[u8], last: &mut Option<(Vec<u8>, usize)>) -> Option<(usize, usize)> {
        let (dir, name) = locate(path, last, |dir| self.find_dir(dir))?;
        self.dirs[dir].find(name).map(|i| (dir, i))
    }

    fn find_dir(&self, path: &[u8]) -> Option<usize> {
        let mut names = path.split(|b| *b == b'/').filter(|n| !n.is_empty());
        names.try_fold(0, |at, name| {
            let subdirs = &self.dirs[at].subdirs;
            let found = subdirs.binary_search_by(|i| (*self.dirs[*i].name).cmp(name));
            found.ok().map(|i| subdirs[i])
        })
    }

    /// All leaves in the order of their paths' bytes, as directory and number.
    pub fn by_path(&self, each: &mut dyn FnMut(usize, usize)) {
        // A number of a leaf, or a directory; last comes first.
        let mut stack = vec![(0, None)];
        while let Some((dir, leaf)) = stack.pop() {
            if let Some(leaf) = leaf {
                each(dir, leaf);
                continue;
            }
            let d = &self.dirs[dir];
            let leaves = (0..d.leaves.len()).map(|i| (Cow::from(d.leaf_name(i)), (dir, Some(i))));
            // All that is below a directory begins with its name and a slash.
            let below = |s: &usize| ([&self.dirs[*s].name, &b"/"[..]].concat(), (*s, None));
            let subdirs = d
                .subdirs
                .iter()
                .map(below)
                .map(|(name, at)| (Cow::from(name), at));
            let mut all: Vec<_> = leaves.chain(subdirs).collect();
            all.sort_unstable_by(|a, b| b.0.cmp(&a.0));
            stack.extend(all.into_iter().map(|(_, at)| at));
        }
    }

    /// Directory numbers in the order a person would list them: this is the order in which files
    /// are read and so lie in packs, which lets a restore create neighbours together.
    pub fn depth_first(&self) -> Vec<usize> {
        let (mut out, mut stack) = (Vec::with_capacity(self.dirs.len()), vec![0]);
        while let Some(i) = stack.pop() {
            if !self.dirs[i].gone {
                out.push(i);
                stack.extend(self.dirs[i].subdirs.iter().rev());
            }
        }
        out
    }
}

struct Shared {
    dirs: Vec<ScanDir>,
    todo: Vec<(usize, Vec<u8>)>,
    active: usize,
}

struct Listing {
    leaves: Box<[Leaf]>,
    text: Box<[u8]>,
    subdirs: Vec<(Box<[u8]>, Meta)>,
    xattrs: Xattrs,
}

/// Lists everything under the open directory `root`, with `threads` threads. `shown` is its
/// path for errors.
pub(crate) fn scan(root: &OwnedFd, shown: &Path, threads: usize, abort: &Abort<'_>) -> Result<Scan, Error> {
    let meta = Meta::fstat(root).map_err(|e| io_at(shown, b"", "read", e))?;
    let top = ScanDir::new(0, Box::default(), meta);
    let shared = Mutex::new(Shared {
        dirs: vec![top],
        todo: vec![(0, Vec::new())],
        active: 0,
    });
    let wake = Condvar::new();
    std::thread::scope(|s| {
        for _ in 0..threads.max(1) {
            s.spawn(|| {
                if let Err(e) = worker(root.as_fd(), shown, &shared, &wake, abort) {
                    abort.fail(e);
                    wake.notify_all();
                }
            });
        }
    });
    abort.result()?;
    let shared = shared
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(Scan { dirs: shared.dirs })
}

fn worker(
    root: BorrowedFd<'_>,
    shown: &Path,
    shared: &Mutex<Shared>,
    wake: &Condvar,
    abort: &Abort<'_>,
) -> Result<(), Error> {
    let mut state = lock(shared);
    loop {
        abort.check()?;
        let Some((index, path)) = state.todo.pop() else {
            if state.active == 0 {
                wake.notify_all();
                return Ok(());
            }
            state = wake
                .wait_timeout(state, std::time::Duration::from_millis(50))
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .0;
            continue;
        };
        state.active += 1;
        drop(state);
        let listed = list(root, shown, &path);
        state = lock(shared);
        state.active -= 1;
        match listed? {
            None if index == 0 => return Err(io_at(shown, b"", "read", Errno::NOENT)),
            None => state.dirs[index].gone = true,
            Some(listing) => store(&mut state, index, &path, listing),
        }
        wake.notify_all();
    }
}

fn store(state: &mut Shared, index: usize, path: &[u8], listing: Listing) {
    for (name, meta) in listing.subdirs {
        let child = state.dirs.len();
        state.todo.push((child, join(path, &name)));
        state.dirs[index].subdirs.push(child);
        state.dirs.push(ScanDir::new(index, name, meta));
    }
    state.dirs[index].leaves = listing.leaves;
    state.dirs[index].text = listing.text;
    state.dirs[index].xattrs = listing.xattrs;
}

/// One directory, sorted; `None` if it is no longer there.
fn list(root: BorrowedFd<'_>, shown: &Path, path: &[u8]) -> Result<Option<Listing>, Error> {
    let fail = |e| io_at(shown, path, "read", e);
    let fd = match open_beneath(root, path) {
        Err(e) if vanished(e) => return Ok(None),
        other => other.map_err(fail)?,
    };
    let xattrs = extras::read(&fd).map_err(fail)?;
    let (mut found, mut subdirs) = (Vec::new(), Vec::<(Box<[u8]>, Meta)>::new());
    for entry in Dir::read_from(&fd).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let one = |e| io_at(shown, &join(path, name), "read", e);
        let meta = match Meta::lstat_at(&fd, name) {
            Err(e) if vanished(e) => continue,
            other => other.map_err(one)?,
        };
        let target = match meta.kind {
            FileType::Directory => {
                subdirs.push((name.into(), meta));
                continue;
            }
            FileType::Symlink => match readlinkat(&fd, name, Vec::new()) {
                Err(e) if vanished(e) || e == Errno::INVAL => continue,
                other => other.map_err(one)?.into_bytes(),
            },
            _ => Vec::new(),
        };
        found.push((Box::<[u8]>::from(name), target, meta));
    }
    found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    subdirs.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let (leaves, text) = packed(found).map_err(fail)?;
    Ok(Some(Listing {
        leaves,
        text,
        subdirs,
        xattrs,
    }))
}

/// Leaves, and their names and targets in one text.
type Packed = (Box<[Leaf]>, Box<[u8]>);

fn packed(found: Vec<(Box<[u8]>, Vec<u8>, Meta)>) -> Result<Packed, Errno> {
    let (mut leaves, mut text) = (Vec::with_capacity(found.len()), Vec::new());
    for (name, target, meta) in found {
        text.extend_from_slice(&name);
        let name_end = u32::try_from(text.len()).map_err(|_| Errno::OVERFLOW)?;
        text.extend_from_slice(&target);
        let end = u32::try_from(text.len()).map_err(|_| Errno::OVERFLOW)?;
        leaves.push(Leaf { meta, name_end, end });
    }
    Ok((leaves.into(), text.into()))
}

/// The entry went away, or became something else, since its name was read.
pub(crate) fn vanished(e: Errno) -> bool {
    [Errno::NOENT, Errno::NOTDIR, Errno::LOOP].contains(&e)
}

/// Longest path given to one system call; the limit is 4096 with the final NUL.
const PATH_STEP: usize = 2048;

/// Opens a directory by its path below `root`, however long that path is. Only for reading what
/// the user's own machine holds: links in the middle of the path are not refused here.
pub(crate) fn open_beneath(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let Some((head, tail)) = split(path) else {
        return openat(
            root,
            if path.is_empty() { b"." } else { path },
            DIR_FLAGS,
            Mode::empty(),
        );
    };
    let mut fd = openat(root, head, DIR_FLAGS, Mode::empty())?;
    let mut rest = tail;
    while let Some((head, tail)) = split(rest) {
        fd = openat(&fd, head, DIR_FLAGS, Mode::empty())?;
        rest = tail;
    }
    openat(&fd, rest, DIR_FLAGS, Mode::empty())
}

/// The first part of a path too long for one call, and the rest.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = path.get(..PATH_STEP)?.iter().rposition(|b| *b == b'/')?;
    Some((&path[..at], &path[at + 1..]))
}
