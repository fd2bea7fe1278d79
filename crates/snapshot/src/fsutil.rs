//! Small pieces over the file system calls: what `lstat` says, and opening without following.

use crate::error::Error;
use crate::printable::printable;
use rustix::fs::{self, FileType, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// A moment as the file system keeps it. Packed: there are two in every entry of a table of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(C, packed(4))]
pub(crate) struct Time {
    pub sec: i64,
    /// 0 to 999 999 999.
    pub ns: u32,
}

impl Time {
    /// Nanoseconds since the epoch; saturates at the years 1677 and 2262.
    pub fn as_ns(self) -> i64 {
        self.sec
            .saturating_mul(1_000_000_000)
            .saturating_add(self.ns.into())
    }
}

/// What is recorded and restored of every entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Attrs {
    /// The twelve permission bits: `rwxrwxrwx`, setuid, setgid, sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
}

/// `lstat`, in fixed types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta {
    pub kind: FileType,
    pub attrs: Attrs,
    pub ctime: Time,
    pub size: u64,
    pub ino: u64,
    pub dev: u64,
    pub nlink: u32,
    /// On disk, of 512 bytes each; saturates at 2 TiB.
    blocks: u32,
}

impl Meta {
    #[allow(clippy::unnecessary_cast, reason = "the C types differ between architectures")]
    pub fn of(s: &Stat) -> Self {
        Self {
            kind: FileType::from_raw_mode(s.st_mode as _),
            attrs: Attrs {
                mode: s.st_mode as u32 & 0o7777,
                uid: s.st_uid as u32,
                gid: s.st_gid as u32,
                mtime: Time {
                    sec: s.st_mtime as i64,
                    ns: s.st_mtime_nsec as u32,
                },
            },
            size: s.st_size as u64,
            blocks: u32::try_from(s.st_blocks).unwrap_or(u32::MAX),
            ctime: Time {
                sec: s.st_ctime as i64,
                ns: s.st_ctime_nsec as u32,
            },
            ino: s.st_ino as u64,
            dev: s.st_dev as u64,
            nlink: u32::try_from(s.st_nlink).unwrap_or(u32::MAX),
        }
    }

    /// Bytes on disk.
    pub fn allocated(&self) -> u64 {
        u64::from(self.blocks) * 512
    }

    pub fn lstat_at(dir: impl AsFd, name: &[u8]) -> Result<Self, Errno> {
        fs::statat(dir, name, fs::AtFlags::SYMLINK_NOFOLLOW).map(|s| Self::of(&s))
    }

    pub fn fstat(fd: impl AsFd) -> Result<Self, Errno> {
        fs::fstat(fd).map(|s| Self::of(&s))
    }

    /// Whether the two say that nothing was written in between.
    pub fn same_content(&self, other: &Self) -> bool {
        (self.ino, self.dev, self.size, self.attrs.mtime, self.ctime)
            == (other.ino, other.dev, other.size, other.attrs.mtime, other.ctime)
    }
}

pub(crate) const DIR_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// The directory a snapshot or restore works on. It may itself be reached by a symlink: the
/// user named it.
pub(crate) fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// A subdirectory, never through a symlink.
pub(crate) fn open_dir_at(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    fs::openat(dir, name, DIR_FLAGS, Mode::empty())
}

/// Access time is left alone.
pub(crate) fn mtime_only(t: Time) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: fs::UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: t.sec,
            tv_nsec: t.ns.into(),
        },
    }
}

pub(crate) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(dir.len() + 1 + name.len());
    if !dir.is_empty() {
        out.extend_from_slice(dir);
        out.push(b'/');
    }
    out.extend_from_slice(name);
    out
}

/// The directory of a path, by number, and the name in it. Neighbours are found faster: the caller
/// keeps `last`, which begins as nothing.
pub(crate) fn locate<'p>(
    path: &'p [u8],
    last: &mut Option<(Vec<u8>, usize)>,
    find_dir: impl Fn(&[u8]) -> Option<usize>,
) -> Option<(usize, &'p [u8])> {
    let (dir, name) = match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[][..], path),
    };
    match last {
        Some((path, number)) if path == dir => Some((*number, name)),
        _ => {
            let number = find_dir(dir)?;
            *last = Some((dir.to_vec(), number));
            Some((number, name))
        }
    }
}

/// An I/O error about a path below the root.
pub(crate) fn io_at(root: &Path, relative: &[u8], action: &'static str, e: Errno) -> Error {
    let root = root.display();
    if relative.is_empty() {
        Error::io(root, action, e)
    } else {
        Error::io(format_args!("{root}/{}", printable(relative)), action, e)
    }
}

/// Nanoseconds since the epoch by this machine's clock.
pub(crate) fn now_ns() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}
