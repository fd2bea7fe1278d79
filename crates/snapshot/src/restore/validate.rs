//! Does the directory hold what the snapshot says?
//!
//! Content was proven while it was written: every chunk had its hash before a byte of it went
//! into a file. What is left to check is that everything is there, under its name, with its type,
//! size, mode, mtime and target: one `lstat` per entry. The same pass collects the inode numbers
//! and ctimes for the machine's cache.

use super::fetch::parallel;
use super::load::{LeafBody, Manifest};
use super::target::Hands;
use crate::cache::{Known, KnownBody};
use crate::error::Error;
use crate::events::Abort;
use crate::extras::{self, More, xattrs};
use crate::fsutil::{Attrs, Meta, Time, join};
use crate::printable::printable;
use crate::seal::Vault;
use crate::tree::Extent;
use dumont_core::snapshot::{Validation, Verdict};
use rustix::fs::{self, FileType, Mode, OFlags};
use std::ops::Range;
use std::os::fd::OwnedFd;

/// More are counted but not listed.
const MAX_PROBLEMS: usize = 100;
/// Directories looked at in one go.
const BATCH: usize = 64;

pub(super) struct Check<'a> {
    pub root: &'a OwnedFd,
    pub manifest: &'a Manifest,
    pub vault: &'a Vault,
    /// Leaves that the workload may have changed since they were restored and proven: they are
    /// neither compared nor remembered, so the next snapshot reads them.
    pub workloads: Option<&'a [bool]>,
    /// Compare extended attributes, too.
    pub xattrs: bool,
    /// Also read every file and compare its chunks' hashes.
    pub content: bool,
}

#[derive(Default)]
struct Part {
    problems: Vec<String>,
    good: u64,
    seen: Vec<Seen>,
}

/// What a cache would remember of a leaf, besides what the manifest says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    ino: u64,
    ctime: Time,
    leaf: u32,
    /// As they are here: they may not be settable on this machine.
    uid: u32,
    gid: u32,
}

/// Gives all that was seen to `each`, with its path, as a cache remembers it.
pub(super) fn each_known(manifest: &Manifest, seen: &[Vec<Seen>], each: &mut dyn FnMut(&[u8], &Known)) {
    let mut dir = (usize::MAX, Vec::new());
    for s in seen.iter().flatten() {
        let leaf = &manifest.leaves[s.leaf as usize];
        if dir.0 != leaf.dir() {
            dir = (leaf.dir(), manifest.dir_path(leaf.dir()));
        }
        let body = match &leaf.body {
            LeafBody::File { size, extents, .. } => KnownBody::File {
                size: *size,
                extents: extents.clone(),
            },
            LeafBody::Symlink(target) => KnownBody::Symlink(target.clone()),
            LeafBody::Fifo => KnownBody::Fifo,
        };
        let known = Known {
            attrs: Attrs {
                uid: s.uid,
                gid: s.gid,
                ..leaf.attrs
            },
            ctime: s.ctime,
            ino: s.ino,
            body,
            more: leaf.more.clone(),
        };
        each(&join(&dir.1, manifest.name(s.leaf as usize)), &known);
    }
}

/// The verdict, and what was seen on the way.
pub(super) fn validate(
    check: &Check<'_>,
    expected: u64,
    threads: usize,
    abort: &Abort<'_>,
) -> Result<(Validation, Vec<Vec<Seen>>), Error> {
    let n = check.manifest.dirs.len();
    let batches: Vec<Range<usize>> = (0..n).step_by(BATCH).map(|i| i..n.min(i + BATCH)).collect();
    let parts = parallel(threads, &batches, abort, |dirs| {
        let (mut part, mut hands) = (Part::default(), Hands::default());
        for dir in dirs.clone() {
            abort.check()?;
            check.dir(dir, &mut hands, &mut part);
        }
        part.seen.shrink_to_fit();
        Ok(part)
    })?;
    let (mut problems, mut good) = (Vec::new(), 0);
    let mut seen = Vec::with_capacity(parts.len());
    for part in parts {
        problems.extend(part.problems);
        good += part.good;
        seen.push(part.seen);
    }
    let missing = good != expected;
    if missing && problems.is_empty() {
        problems.push(format!("the tree holds {good} files, {expected} were expected"));
    }
    let validation = if problems.is_empty() {
        Verdict::Ok
    } else {
        Verdict::Failed
    };
    problems.truncate(MAX_PROBLEMS);
    Ok((
        Validation {
            validation,
            files_restored: good,
            files_expected: expected,
            problems,
        },
        seen,
    ))
}

impl Check<'_> {
    fn dir(&self, dir: usize, hands: &mut Hands, part: &mut Part) {
        let (m, path) = (self.manifest, self.manifest.dir_path(dir));
        let of = |i: usize| (m.dirs[i].parent, m.dirs[i].name.clone());
        let shown = || {
            if path.is_empty() {
                ".".into()
            } else {
                printable(&path)
            }
        };
        let fd = match hands.dir(self.root, dir, &of) {
            Ok(fd) => fd,
            Err(e) => return part.problems.push(format!("{}: {e}", shown())),
        };
        match Meta::fstat(fd) {
            // It may have made files of its own anywhere, and so moved times.
            Ok(_) if self.workloads.is_some() => {}
            Ok(meta) => differences(&m.dirs[dir].attrs, &meta.attrs)
                .into_iter()
                .for_each(|d| part.problems.push(format!("{}: {d}", shown()))),
            Err(e) => part.problems.push(format!("{}: {e}", shown())),
        }
        if let Err(problem) = self.xattrs(fd, &m.dirs[dir].more) {
            part.problems.push(format!("{}: {problem}", shown()));
        }
        for leaf in m.dirs[dir].leaves.clone() {
            let l = &m.leaves[leaf];
            if self.workloads.is_some_and(|w| w[leaf]) {
                part.good += u64::from(!matches!(l.body, LeafBody::Fifo));
                continue;
            }
            match self.leaf(leaf, fd) {
                Ok(seen) => {
                    part.good += u64::from(!matches!(l.body, LeafBody::Fifo));
                    part.seen.push(seen);
                }
                Err(problem) => {
                    let path = join(&path, m.name(leaf));
                    part.problems.push(format!("{}: {problem}", printable(&path)));
                }
            }
        }
    }

    fn leaf(&self, leaf: usize, dir: &OwnedFd) -> Result<Seen, String> {
        let (l, name) = (&self.manifest.leaves[leaf], self.manifest.name(leaf));
        let meta = Meta::lstat_at(dir, name).map_err(|e| e.to_string())?;
        let kind = match &l.body {
            LeafBody::File { size, .. } => {
                if meta.kind == FileType::RegularFile && meta.size != *size {
                    return Err(format!("{} bytes where {size} were expected", meta.size));
                }
                FileType::RegularFile
            }
            LeafBody::Symlink(target) => {
                let found = fs::readlinkat(dir, name, Vec::new()).map(std::ffi::CString::into_bytes);
                if found.as_ref().is_ok_and(|f| f[..] != target[..]) {
                    return Err("the link points somewhere else".into());
                }
                FileType::Symlink
            }
            LeafBody::Fifo => FileType::Fifo,
        };
        if meta.kind != kind {
            return Err(format!("it is a {:?} where a {kind:?} was expected", meta.kind));
        }
        // A symlink's own mode means nothing and cannot be set.
        let mode = if kind == FileType::Symlink {
            l.attrs.mode
        } else {
            meta.attrs.mode
        };
        if let Some(problem) = differences(&l.attrs, &Attrs { mode, ..meta.attrs })
            .into_iter()
            .next()
        {
            return Err(problem);
        }
        if !xattrs(&l.more).is_empty() {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let fd = fs::openat(dir, name, flags, Mode::empty()).map_err(|e| e.to_string())?;
            self.xattrs(&fd, &l.more)?;
        }
        if self.content
            && let LeafBody::File { extents, .. } = &l.body
        {
            self.content(dir, name, extents)?;
        }
        Ok(Seen {
            ino: meta.ino,
            ctime: meta.ctime,
            leaf: leaf as u32,
            uid: meta.attrs.uid,
            gid: meta.attrs.gid,
        })
    }

    fn xattrs(&self, fd: &OwnedFd, more: &More) -> Result<(), String> {
        let wanted = xattrs(more);
        if wanted.is_empty() || !self.xattrs {
            return Ok(());
        }
        let found = extras::read(fd).map_err(|e| e.to_string())?;
        if found == wanted {
            Ok(())
        } else {
            Err("its extended attributes are other ones".into())
        }
    }

    fn content(&self, dir: &OwnedFd, name: &[u8], extents: &[Extent]) -> Result<(), String> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = fs::openat(dir, name, flags, Mode::empty()).map_err(|e| e.to_string())?;
        let (mut at, mut buf) = (0u64, Vec::new());
        for e in extents {
            let mut left = e.len();
            while left > 0 {
                let n = left.min(crate::chunk::MAX_CHUNK as u64);
                buf.resize(usize::try_from(n).unwrap_or(0), 0);
                let mut done = 0;
                while done < buf.len() {
                    match rustix::io::pread(&fd, &mut buf[done..], at + done as u64) {
                        Ok(0) => return Err("it ends too early".into()),
                        Ok(n) => done += n,
                        Err(e) => return Err(e.to_string()),
                    }
                }
                let same = match e {
                    Extent::Chunk { id, .. } => self.vault.id(&buf) == *id,
                    Extent::Hole { .. } => buf.iter().all(|b| *b == 0),
                };
                if !same {
                    return Err(format!("its bytes differ somewhere in {at} to {}", at + n));
                }
                at += n;
                left -= n;
            }
        }
        Ok(())
    }
}

/// How an entry's mode and mtime differ from what was recorded.
fn differences(expected: &Attrs, found: &Attrs) -> Vec<String> {
    let mut out = Vec::new();
    if expected.mode != found.mode {
        out.push(format!(
            "mode {:o} where {:o} was expected",
            found.mode, expected.mode
        ));
    }
    if expected.mtime != found.mtime {
        let (a, b) = (found.mtime, expected.mtime);
        out.push(format!(
            "mtime {}.{:09} where {}.{:09} was expected",
            { a.sec },
            { a.ns },
            { b.sec },
            { b.ns }
        ));
    }
    out
}
