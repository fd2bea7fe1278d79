//! What only some entries have: extended attributes, and the MD5 of a model file.
//!
//! Of extended attributes those of the user's own (`user.*`) are kept; the others belong to the
//! machine (SELinux labels, capabilities) and mean nothing on another one. A file system that has
//! none is no error, neither when reading nor when restoring.

use crate::bytes::{Malformed, Put, Reader};
use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fremovexattr, fsetxattr};
use rustix::io::Errno;
use std::os::fd::AsFd;
use std::sync::Arc;

/// What the kernel lets an attribute be, and the list of all names of a file.
const MOST: usize = 64 << 10;

/// Name and value.
pub(crate) type Xattr = (Box<[u8]>, Box<[u8]>);
/// Sorted by name.
pub(crate) type Xattrs = Vec<Xattr>;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Extras {
    pub xattrs: Xattrs,
    pub md5: Option<[u8; 16]>,
}

/// Most entries have none, and pay for none.
pub(crate) type More = Option<Arc<Extras>>;

/// The extended attributes in it.
pub(crate) fn xattrs(more: &More) -> &[Xattr] {
    more.as_ref().map_or(&[], |m| &m.xattrs)
}

impl Extras {
    pub fn some(xattrs: Xattrs, md5: Option<[u8; 16]>) -> More {
        (!xattrs.is_empty() || md5.is_some()).then(|| Arc::new(Self { xattrs, md5 }))
    }
}

pub(crate) fn put_more(out: &mut Vec<u8>, more: &More) {
    let Some(more) = more else { return };
    out.u16(u16::try_from(more.xattrs.len()).unwrap_or(u16::MAX));
    for (name, value) in &more.xattrs {
        out.short(name);
        out.u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        out.bytes(value);
    }
    match &more.md5 {
        Some(md5) => {
            out.u8(1);
            out.bytes(md5);
        }
        None => out.u8(0),
    }
}

/// What [`put_more`] wrote, if `there` is any.
pub(crate) fn read_more(r: &mut Reader<'_>, there: bool) -> Result<More, Malformed> {
    if !there {
        return Ok(None);
    }
    let mut xattrs: Xattrs = Vec::new();
    for _ in 0..r.u16()? {
        let name: Box<[u8]> = r.short()?.into();
        let own = name.starts_with(b"user.") && name.len() > 5 && name.len() <= 255 && !name.contains(&0);
        if !own || xattrs.last().is_some_and(|last| last.0 >= name) {
            return Err(Malformed("an extended attribute's name is not one"));
        }
        let len = r.u32()? as usize;
        if len > MOST {
            return Err(Malformed("an extended attribute is longer than one can be"));
        }
        xattrs.push((name, r.take(len)?.into()));
    }
    let md5 = match r.u8()? {
        0 => None,
        1 => Some(r.array()?),
        _ => return Err(Malformed("a digest is of no known kind")),
    };
    match Extras::some(xattrs, md5) {
        None => Err(Malformed("an entry has more than nothing, and it is nothing")),
        more => Ok(more),
    }
}

/// The file system or the kernel has none.
fn none_here(e: Errno) -> bool {
    [Errno::OPNOTSUPP, Errno::NOSYS].contains(&e)
}

/// Those that `fd` has; none where there can be none.
pub(crate) fn read(fd: impl AsFd) -> Result<Xattrs, Errno> {
    let mut names = Vec::new();
    let mut short = [0; 256];
    match flistxattr(&fd, &mut short[..]) {
        Ok(n) => names.extend_from_slice(&short[..n]),
        Err(e) if none_here(e) => return Ok(Vec::new()),
        Err(Errno::RANGE) => {
            names.resize(MOST, 0);
            let n = flistxattr(&fd, &mut names[..])?;
            names.truncate(n);
        }
        Err(e) => return Err(e),
    }
    let mut out: Xattrs = Vec::new();
    for name in names.split(|b| *b == 0).filter(|n| n.starts_with(b"user.")) {
        match value(&fd, name) {
            Ok(value) => out.push((name.into(), value)),
            // Removed since its name was read.
            Err(Errno::NODATA) => {}
            Err(e) => return Err(e),
        }
    }
    out.sort_unstable();
    Ok(out)
}

fn value(fd: impl AsFd, name: &[u8]) -> Result<Box<[u8]>, Errno> {
    let mut short = [0; 256];
    match fgetxattr(&fd, name, &mut short[..]) {
        Ok(n) => Ok(short[..n].into()),
        Err(Errno::RANGE) => {
            let mut long = vec![0; MOST];
            let n = fgetxattr(&fd, name, &mut long[..])?;
            long.truncate(n);
            Ok(long.into())
        }
        Err(e) => Err(e),
    }
}

/// Gives `fd` these and takes all others of the user's away.
pub(crate) fn make(fd: impl AsFd, wanted: &[Xattr]) -> Result<(), Errno> {
    let there = read(&fd)?;
    for (name, _) in &there {
        if wanted.iter().all(|w| w.0 != *name) {
            fremovexattr(&fd, &**name)?;
        }
    }
    set(fd, wanted.iter().filter(|w| !there.contains(w)))
}

pub(crate) fn set<'a>(fd: impl AsFd, wanted: impl IntoIterator<Item = &'a Xattr>) -> Result<(), Errno> {
    let mut wanted = wanted.into_iter();
    wanted.try_for_each(|(name, value)| fsetxattr(&fd, &**name, value, XattrFlags::empty()))
}
