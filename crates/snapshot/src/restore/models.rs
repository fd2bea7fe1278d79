//! The MD5 of model files, compared after a restore.
//!
//! BLAKE3 has proven every byte before it was written; this is the word of the document, asked for
//! when nobody waits any more. The workload may be running by then: a file whose size or mtime is
//! no longer the snapshot's has been changed by it, which says nothing about the restore.

use super::fetch::Fetcher;
use super::load::{self, LeafBody};
use super::target::Hands;
use super::{RestoreOptions, no_such_path};
use crate::error::Error;
use crate::events::Abort;
use crate::fsutil::{Meta, open_root};
use crate::printable::printable;
use crate::seal::Vault;
use crate::store::ObjectSource;
use dumont_core::snapshot::{ModelFiles, SnapshotHead, Verdict};
use md5::{Digest as _, Md5};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::time::Instant;

/// More are counted but not listed.
const MOST_NAMED: usize = 100;

enum Found {
    Same,
    Other,
    /// Since the restore.
    Changed,
}

/// Reads the model files of a restored snapshot and compares their MD5 with that of the snapshot.
/// Only the tree is read from the source.
///
/// # Errors
/// Any [`Error`] of reading the snapshot. What differs is in the answer.
pub fn compare_models(
    opts: &RestoreOptions<'_>,
    head: &SnapshotHead,
    source: &dyn ObjectSource,
) -> Result<ModelFiles, Error> {
    let begun = Instant::now();
    let abort = Abort::new(opts.cancelled);
    let fetcher = Fetcher::new(source, Vault::new(opts.key.as_ref()), &abort);
    let read = || {
        let map = load::indexes(head, &fetcher)?;
        load::manifest(head, &map, &fetcher)
    };
    let manifest = read().map_err(|e| abort.explain(e))?;
    let root = open_root(&opts.path).map_err(|e| no_such_path(&opts.path, e.into()))?;
    let of = |i: usize| (manifest.dirs[i].parent, manifest.dirs[i].name.clone());
    let (mut out, mut hands, mut groups) = (ModelFiles::default(), Hands::default(), HashSet::new());
    for (number, leaf) in manifest.leaves.iter().enumerate() {
        let (LeafBody::File { size, group, .. }, Some(md5)) =
            (&leaf.body, leaf.more.as_ref().and_then(|m| m.md5))
        else {
            continue;
        };
        if *group != 0 && !groups.insert(*group) {
            continue;
        }
        out.files_expected += 1;
        let looked = hands
            .dir(&root, leaf.dir(), &of)
            .and_then(|dir| look(dir, manifest.name(number), (*size, leaf.attrs.mtime), md5, &abort));
        let name = || printable(&manifest.path(number));
        match looked {
            Ok(Found::Same) => out.files_checked += 1,
            Ok(Found::Changed) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => out.changed += 1,
            Ok(Found::Other) => {
                out.files_checked += 1;
                out.validation = Verdict::Failed;
                if out.mismatched.len() < MOST_NAMED {
                    out.mismatched.push(name());
                }
            }
            Err(Errno::CANCELED) => return Err(Error::Cancelled),
            Err(e) => return Err(Error::io(name(), "read", e)),
        }
    }
    out.elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(out)
}

fn look(
    dir: &OwnedFd,
    name: &[u8],
    recorded: (u64, crate::fsutil::Time),
    md5: [u8; 16],
    abort: &Abort<'_>,
) -> Result<Found, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = openat(dir, name, flags, Mode::empty())?;
    let before = Meta::fstat(&fd)?;
    if (before.size, before.attrs.mtime) != recorded {
        return Ok(Found::Changed);
    }
    let (mut hash, mut at, mut buf) = (Md5::new(), 0u64, vec![0; 1 << 20]);
    loop {
        abort.check().map_err(|_| Errno::CANCELED)?;
        match rustix::io::pread(&fd, &mut buf[..], at) {
            Ok(0) => break,
            Ok(n) => {
                hash.update(&buf[..n]);
                at += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(if !before.same_content(&Meta::fstat(&fd)?) {
        Found::Changed
    } else if <[u8; 16]>::from(hash.finalize()) == md5 {
        Found::Same
    } else {
        Found::Other
    })
}
