//! Writing into the directory, and never anywhere else.
//!
//! Every path is walked from the root's file descriptor one name at a time, refusing symlinks,
//! and names were checked when the tree was read: neither a hostile manifest nor a link that
//! already lies in the target can lead a write outside. A file that holds some of the right
//! content, and that no name outside of the snapshot leads to, is completed in place (see
//! `survey`). Whatever else a name holds is unlinked before the new file is created exclusively,
//! because writing into it would also change what it may be hard-linked to elsewhere.
//!
//! Files appear under their final names with mode 0600 and get their mode and times when the
//! last chunk is in, so a half-restored file does not look finished. Nothing is synced: when the
//! machine loses power after a restore it has lost the instance anyway, and the store still has
//! everything; a `syncfs` would put the whole disk write on the way to a running workload.

use super::load::{LeafBody, Manifest};
use crate::error::Error;
use crate::events::Events;
use crate::extras::{self, More, xattrs};
use crate::fsutil::{Attrs, Meta, io_at, join, mtime_only, open_dir_at};
use crate::tree::Extent;
use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::AcqRel, Ordering::Relaxed};

/// Open directories kept by each thread.
const KEEP_OPEN: usize = 64;

pub(super) struct Target<'a> {
    pub root: OwnedFd,
    pub shown: &'a Path,
    pub manifest: &'a Manifest,
    pub remaining: &'a [AtomicU32],
    /// Leaves whose name is taken in the target, to be unlinked when their turn comes.
    pub exists: HashMap<usize, (usize, usize)>,
    pub events: &'a dyn Events,
    owner: (u32, u32),
    chown_failed: AtomicBool,
    /// Extended attributes could not be given to something.
    pub xattrs_failed: AtomicBool,
}

/// Directories and the file that one thread has open.
#[derive(Default)]
pub(super) struct Hands {
    dirs: HashMap<usize, OwnedFd>,
    file: Option<(usize, OwnedFd)>,
}

impl Hands {
    /// The open directory `dir`, reached from `root` without following a link.
    pub fn dir<'h>(
        &'h mut self,
        root: &'h OwnedFd,
        dir: usize,
        of: &dyn Fn(usize) -> (usize, Box<[u8]>),
    ) -> Result<&'h OwnedFd, Errno> {
        if dir == 0 {
            return Ok(root);
        }
        if !self.dirs.contains_key(&dir) {
            if self.dirs.len() >= KEEP_OPEN {
                self.dirs.clear();
            }
            let (mut chain, mut at) = (Vec::new(), dir);
            while at != 0 && !self.dirs.contains_key(&at) {
                let (parent, name) = of(at);
                chain.push((at, name));
                at = parent;
            }
            let mut fd = match self.dirs.get(&at) {
                Some(known) => known
                    .try_clone()
                    .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::MFILE))?,
                None => open_dir_at(root, b".")?,
            };
            // Of a very long way down only the end is kept.
            let keep_from = chain.len().min(KEEP_OPEN / 2);
            while let Some((number, name)) = chain.pop() {
                let next = open_dir_at(&fd, &name)?;
                if let Some((above, old)) = Some((at, fd)).filter(|(a, _)| *a != 0 && chain.len() < keep_from)
                {
                    self.dirs.entry(above).or_insert(old);
                }
                (at, fd) = (number, next);
            }
            self.dirs.insert(dir, fd);
        }
        self.dirs.get(&dir).ok_or(Errno::BADF)
    }
}

impl<'a> Target<'a> {
    pub fn new(
        root: OwnedFd,
        shown: &'a Path,
        manifest: &'a Manifest,
        remaining: &'a [AtomicU32],
        events: &'a dyn Events,
    ) -> Self {
        let owner = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        let chown_failed = AtomicBool::new(false);
        Self {
            root,
            shown,
            manifest,
            remaining,
            exists: HashMap::new(),
            events,
            owner,
            chown_failed,
            xattrs_failed: AtomicBool::new(false),
        }
    }

    fn open_dir<'h>(&'h self, dir: usize, hands: &'h mut Hands) -> Result<&'h OwnedFd, Error> {
        let of = |i: usize| (self.manifest.dirs[i].parent, self.manifest.dirs[i].name.clone());
        hands
            .dir(&self.root, dir, &of)
            .map_err(|e| io_at(self.shown, &self.manifest.dir_path(dir), "open", e))
    }

    fn fail<'b>(&'b self, leaf: usize, action: &'static str) -> impl Fn(Errno) -> Error + 'b {
        move |e| io_at(self.shown, &self.manifest.path(leaf), action, e)
    }

    /// Creates all directories that are not there yet, open for us alone.
    pub fn create_dirs(&self, hands: &mut Hands) -> Result<(), Error> {
        unlock(&self.root).map_err(|e| io_at(self.shown, b"", "write to", e))?;
        for dir in self.manifest.dirs.iter().skip(1) {
            let parent = self.open_dir(dir.parent, hands)?;
            let path = || join(&self.manifest.dir_path(dir.parent), &dir.name);
            let fail = |e| io_at(self.shown, &path(), "create", e);
            match fs::mkdirat(parent, &*dir.name, Mode::RWXU) {
                Ok(()) => {}
                Err(Errno::EXIST) => make_usable(parent, &dir.name).map_err(fail)?,
                Err(e) => return Err(fail(e)),
            }
        }
        Ok(())
    }

    /// An empty new file under the leaf's name; what was there before is gone.
    fn create_file(&self, leaf: usize, hands: &mut Hands) -> Result<OwnedFd, Error> {
        let l = &self.manifest.leaves[leaf];
        let dir = self.open_dir(l.dir(), hands)?;
        self.clear(leaf, dir)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = || fs::openat(dir, self.manifest.name(leaf), flags, Mode::RUSR | Mode::WUSR);
        create()
            .or_else(|e| {
                if e == Errno::EXIST {
                    unlink(dir, self.manifest.name(leaf)).and_then(|()| create())
                } else {
                    Err(e)
                }
            })
            .map_err(self.fail(leaf, "create"))
    }

    fn clear(&self, leaf: usize, dir: &OwnedFd) -> Result<(), Error> {
        if self.exists.contains_key(&leaf) {
            unlink(dir, self.manifest.name(leaf)).map_err(self.fail(leaf, "replace"))?;
        }
        Ok(())
    }

    /// Creates a file that will be written in parts, at its full length: its holes are there now.
    pub fn create_large(&self, leaf: usize, hands: &mut Hands) -> Result<(), Error> {
        let LeafBody::File { size, .. } = &self.manifest.leaves[leaf].body else {
            return Ok(());
        };
        let fd = self.create_file(leaf, hands)?;
        fs::ftruncate(&fd, *size).map_err(self.fail(leaf, "write"))?;
        set_aside(&fd, &self.manifest.leaves[leaf].body).map_err(self.fail(leaf, "write"))
    }

    /// Opens a file that holds a part of its content, and lets it look unfinished.
    pub fn patch(&self, leaf: usize, hands: &mut Hands) -> Result<(), Error> {
        let fd = self.reopen(leaf, hands)?;
        fs::fchmod(&fd, Mode::RUSR | Mode::WUSR).map_err(self.fail(leaf, "write to"))
    }

    /// Gives a file that holds all of its content what else it lacks.
    pub fn touch(&self, leaf: usize, hands: &mut Hands) -> Result<(), Error> {
        let fd = self.reopen(leaf, hands)?;
        let l = &self.manifest.leaves[leaf];
        self.finish(&fd, &l.attrs, &l.more)
            .map_err(self.fail(leaf, "set the mode of"))
    }

    /// An existing file at its right length, open for writing.
    fn reopen(&self, leaf: usize, hands: &mut Hands) -> Result<OwnedFd, Error> {
        let l = &self.manifest.leaves[leaf];
        let LeafBody::File { size, .. } = &l.body else {
            return Err(Error::internal("what is no file was to be written in place"));
        };
        let dir = self.open_dir(l.dir(), hands)?;
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = || fs::openat(dir, self.manifest.name(leaf), flags, Mode::empty());
        let fd = open().or_else(|e| {
            // Its owner may make a read-only file writable.
            if e != Errno::ACCESS {
                return Err(e);
            }
            fs::chmodat(
                dir,
                self.manifest.name(leaf),
                Mode::RUSR | Mode::WUSR,
                AtFlags::empty(),
            )?;
            open()
        });
        let fd = fd.map_err(self.fail(leaf, "open"))?;
        self.noted(extras::make(&fd, xattrs(&l.more)));
        fs::ftruncate(&fd, *size).map_err(self.fail(leaf, "write"))?;
        Ok(fd)
    }

    /// Creates what has no chunks: links, fifos, files that are empty or one hole.
    pub fn create_plain(&self, leaf: usize, hands: &mut Hands) -> Result<(), Error> {
        let l = &self.manifest.leaves[leaf];
        let (name, fail) = (self.manifest.name(leaf), self.fail(leaf, "create"));
        if let LeafBody::File { size, .. } = &l.body {
            let fd = self.create_file(leaf, hands)?;
            if *size > 0 {
                fs::ftruncate(&fd, *size).map_err(&fail)?;
            }
            return self.finish(&fd, &l.attrs, &l.more).map_err(fail);
        }
        let dir = self.open_dir(l.dir(), hands)?;
        self.clear(leaf, dir)?;
        let create = || match &l.body {
            LeafBody::Symlink(target) => fs::symlinkat(&**target, dir, name),
            _ => fs::mknodat(dir, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0),
        };
        create()
            .or_else(|e| {
                if e == Errno::EXIST {
                    unlink(dir, name).and_then(|()| create())
                } else {
                    Err(e)
                }
            })
            .map_err(&fail)?;
        if let Some((uid, gid)) = self.foreign(&l.attrs) {
            self.chowned(fs::chownat(
                dir,
                name,
                Some(uid),
                Some(gid),
                AtFlags::SYMLINK_NOFOLLOW,
            ));
        }
        if matches!(l.body, LeafBody::Fifo) {
            // Made by us a moment ago; the call knows no way not to follow.
            fs::chmodat(dir, name, Mode::from_raw_mode(l.attrs.mode), AtFlags::empty()).map_err(&fail)?;
        }
        fs::utimensat(dir, name, &mtime_only(l.attrs.mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(fail)
    }

    /// Writes one piece; true if it was the file's last, which then has its mode and times.
    pub fn write(&self, leaf: usize, at: u64, bytes: &[u8], hands: &mut Hands) -> Result<bool, Error> {
        let l = &self.manifest.leaves[leaf];
        let LeafBody::File { size, .. } = &l.body else {
            return Ok(false);
        };
        let fail = self.fail(leaf, "write");
        if at == 0 && *size == bytes.len() as u64 {
            let fd = self.create_file(leaf, hands)?;
            write_all(&fd, bytes, 0)
                .and_then(|()| self.finish(&fd, &l.attrs, &l.more))
                .map_err(fail)?;
            return Ok(true);
        }
        if hands.file.as_ref().is_none_or(|f| f.0 != leaf) {
            let dir = self.open_dir(l.dir(), hands)?;
            let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = fs::openat(dir, self.manifest.name(leaf), flags, Mode::empty()).map_err(&fail)?;
            hands.file = Some((leaf, fd));
        }
        let Some((_, fd)) = &hands.file else {
            return Ok(false);
        };
        write_all(fd, bytes, at).map_err(&fail)?;
        let last = self.remaining[leaf].fetch_sub(1, AcqRel) == 1;
        if last {
            self.finish(fd, &l.attrs, &l.more).map_err(fail)?;
            hands.file = None;
        }
        Ok(last)
    }

    /// Makes `name` another name of the finished file `first`.
    pub fn link(&self, name: usize, first: usize, a: &mut Hands, b: &mut Hands) -> Result<(), Error> {
        let (new, old) = (&self.manifest.leaves[name], &self.manifest.leaves[first]);
        let (new_dir, old_dir) = (self.open_dir(new.dir(), a)?, self.open_dir(old.dir(), b)?);
        self.clear(name, new_dir)?;
        let (new, old) = (self.manifest.name(name), self.manifest.name(first));
        let link = || fs::linkat(old_dir, old, new_dir, new, AtFlags::empty());
        link()
            .or_else(|e| {
                if e == Errno::EXIST {
                    unlink(new_dir, new).and_then(|()| link())
                } else {
                    Err(e)
                }
            })
            .map_err(self.fail(name, "link"))
    }

    /// Modes and times of all directories, children before parents: each change in a directory
    /// would move its time again, and a read-only one takes no more files.
    pub fn finish_dirs(&self, hands: &mut Hands) -> Result<(), Error> {
        for (i, dir) in self.manifest.dirs.iter().enumerate().rev() {
            let fd = self.open_dir(i, hands)?;
            self.noted(extras::make(fd, xattrs(&dir.more)));
            self.finish(fd, &dir.attrs, &None)
                .map_err(|e| io_at(self.shown, &self.manifest.dir_path(i), "set the mode of", e))?;
            hands.dirs.remove(&i);
        }
        Ok(())
    }

    /// Extended attributes, owner, then mode (a change of owner clears setuid), then mtime.
    fn finish(&self, fd: impl AsFd, attrs: &Attrs, more: &More) -> Result<(), Errno> {
        let fd = fd.as_fd();
        self.noted(extras::set(fd, xattrs(more)));
        if let Some((uid, gid)) = self.foreign(attrs) {
            self.chowned(fs::fchown(fd, Some(uid), Some(gid)));
        }
        fs::fchmod(fd, Mode::from_raw_mode(attrs.mode))?;
        fs::futimens(fd, &mtime_only(attrs.mtime))
    }

    /// The recorded owner, if it is not us and we might be allowed to set it.
    fn foreign(&self, attrs: &Attrs) -> Option<(Uid, Gid)> {
        let wanted = self.owner.0 == 0 && self.owner != (attrs.uid, attrs.gid);
        // All ones means "leave it" to the system call.
        let sayable = attrs.uid != u32::MAX && attrs.gid != u32::MAX;
        (wanted && sayable).then(|| (Uid::from_raw(attrs.uid), Gid::from_raw(attrs.gid)))
    }

    /// A file system that has no extended attributes, or no room for them, is said once.
    fn noted(&self, result: Result<(), Errno>) {
        if let Err(e) = result
            && !self.xattrs_failed.swap(true, Relaxed)
        {
            self.events
                .log(&format!("Extended attributes are not all restored here: {e}"));
        }
    }

    fn chowned(&self, result: Result<(), Errno>) {
        if let Err(e) = result
            && !self.chown_failed.swap(true, Relaxed)
        {
            self.events.log(&format!("Owners are not restored here: {e}"));
        }
    }
}

/// Bytes; below this the file system does as well by itself.
const LEAST_SET_ASIDE: u64 = 8 << 20;

/// Reserves the space of a large file without holes, so that its blocks lie together and a full
/// disk shows before anything is fetched. Not every file system can.
fn set_aside(fd: &OwnedFd, body: &LeafBody) -> Result<(), Errno> {
    let LeafBody::File { size, extents, .. } = body else {
        return Ok(());
    };
    if *size < LEAST_SET_ASIDE || extents.iter().any(|e| matches!(e, Extent::Hole { .. })) {
        return Ok(());
    }
    match fs::fallocate(fd, fs::FallocateFlags::empty(), 0, *size) {
        Err(e @ (Errno::NOSPC | Errno::DQUOT)) => Err(e),
        _ => Ok(()),
    }
}

fn write_all(fd: &OwnedFd, mut bytes: &[u8], mut at: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(fd, bytes, at) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(n) => {
                bytes = &bytes[n..];
                at += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Removes a name that is no directory; that it is gone already is fine.
pub(super) fn unlink(dir: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    match fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Lets us change what is in a directory; its own mode is set when all else is done.
pub(super) fn unlock(dir: &OwnedFd) -> Result<(), Errno> {
    let mode = Meta::fstat(dir)?.attrs.mode;
    if mode & 0o300 == 0o300 {
        Ok(())
    } else {
        fs::fchmod(dir, Mode::from_raw_mode(mode | 0o700))
    }
}

/// An existing directory must let us list it and create files in it.
fn make_usable(parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    let meta = Meta::lstat_at(parent, name)?;
    if meta.kind != FileType::Directory {
        return Err(Errno::EXIST);
    }
    if meta.attrs.mode & 0o700 != 0o700 {
        fs::chmodat(
            parent,
            name,
            Mode::from_raw_mode(meta.attrs.mode | 0o700),
            AtFlags::empty(),
        )?;
    }
    Ok(())
}
