//! What the machine remembers between snapshots, so that unchanged files are not opened.
//!
//! The cache belongs to exactly one snapshot and is used only when the controller names that
//! snapshot as the parent. It is an optimisation with two powers: it says which files did not
//! change, and which chunks the store already has. Both are only true if the snapshot it
//! belongs to was committed, and the engine cannot know that when it is done. Hence the rule:
//! a snapshot writes `CACHE.pending-ID` and leaves `CACHE` alone; whichever of the two the next
//! request's parent names is the true one, and the other is removed. A crash or a refused
//! commit at any point leaves a cache that fits the last committed snapshot.
//!
//! Known chunks are those that this very machine uploaded, or fetched and verified. Chunks that
//! it merely heard of, or found in its own files during a restore, are not among them: a hostile
//! machine could have claimed them over other bytes.
//!
//! A file is taken as unchanged if type, size, mtime, ctime and inode are the recorded ones and
//! both times lie before the moment the recording began ([`Cache::started_ns`]): a write in the
//! same tick of the file system's clock would not show in its times.

use crate::bytes::{Malformed, Put, Reader};
use crate::error::Error;
use crate::extras::{More, put_more, read_more};
use crate::format::{Kind, digest, put_header, read_header};
use crate::fsutil::{Attrs, Meta, Time};
use crate::seal::Vault;
use crate::tree::Extent;
use dumont_core::id::Digest;
use rustix::fs::FileType;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is remembered of one path that is not a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub attrs: Attrs,
    pub ctime: Time,
    pub ino: u64,
    pub body: KnownBody,
    pub more: More,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KnownBody {
    File { size: u64, extents: Arc<[Extent]> },
    Symlink(Box<[u8]>),
    Fifo,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cache {
    pub snapshot_id: String,
    pub root: Digest,
    /// This machine's clock, nanoseconds, before anything was looked at.
    pub started_ns: i64,
    pub entries: HashMap<Vec<u8>, Known>,
    /// The known ones; files may be made of others, too.
    pub chunks: HashSet<Digest>,
}

/// Of the chunks that the store is known to have, those that this very snapshot is made of. The
/// next one may build on no others: what no snapshot needs any more may be pruned, and the parent
/// is never pruned while a child may come.
pub(crate) fn still_used(
    known: HashSet<Digest>,
    entries: &HashMap<Vec<u8>, Known>,
    nodes: &HashSet<Digest>,
) -> HashSet<Digest> {
    let files = entries.values().flat_map(Known::chunks);
    files
        .chain(nodes)
        .filter(|id| known.contains(id))
        .copied()
        .collect()
}

impl Known {
    fn chunks(&self) -> impl Iterator<Item = &Digest> {
        let extents: &[Extent] = match &self.body {
            KnownBody::File { extents, .. } => extents,
            KnownBody::Symlink(_) | KnownBody::Fifo => &[],
        };
        extents.iter().filter_map(|e| match e {
            Extent::Chunk { id, .. } => Some(id),
            Extent::Hole { .. } => None,
        })
    }
}

/// On the type of an entry that has more than its attributes.
const MORE: u8 = 0x80;

/// The kernel stamps files with a clock that ticks up to every 10 ms; a file system that keeps
/// whole seconds shows itself by zeros.
const TICK_NS: i64 = 20_000_000;
const COARSE_NS: i64 = 2_000_000_000;

impl Cache {
    /// What a regular file that has not changed since is made of.
    pub fn unchanged(&self, path: &[u8], meta: &Meta) -> Option<(&Arc<[Extent]>, &More)> {
        let known = self.entries.get(path)?;
        let KnownBody::File { size, extents } = &known.body else {
            return None;
        };
        let same = (*size, known.attrs.mtime, known.ctime, known.ino)
            == (meta.size, meta.attrs.mtime, meta.ctime, meta.ino);
        let settled = |t: Time| {
            let margin = if t.ns == 0 { COARSE_NS } else { TICK_NS };
            t.as_ns() < self.started_ns.saturating_sub(margin)
        };
        // A user may set any mtime, whole seconds included: only ctime tells the clock's grain.
        let mtime_settled = meta.attrs.mtime.as_ns() < self.started_ns.saturating_sub(TICK_NS);
        let is_file = meta.kind == FileType::RegularFile;
        (is_file && same && settled(meta.ctime) && mtime_settled).then_some((extents, &known.more))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.entries.len() * 128 + self.chunks.len() * 32 + 256);
        put_header(&mut out, Kind::Cache, &Vault::default());
        out.short(self.snapshot_id.as_bytes());
        out.bytes(&self.root.0);
        out.i64(self.started_ns);
        let mut chunks: Vec<_> = self.chunks.iter().collect();
        chunks.sort_unstable();
        out.u32(u32::try_from(chunks.len()).unwrap_or(u32::MAX));
        let mut others: Vec<_> = self.entries.values().flat_map(Known::chunks).collect();
        others.retain(|id| !self.chunks.contains(id));
        others.sort_unstable();
        others.dedup();
        out.u32(u32::try_from(others.len()).unwrap_or(u32::MAX));
        let all = || chunks.iter().chain(&others);
        all().for_each(|c| out.bytes(&c.0));
        let numbers: HashMap<_, _> = all().copied().zip(0u32..).collect();
        out.u32(u32::try_from(self.entries.len()).unwrap_or(u32::MAX));
        for (path, known) in &self.entries {
            out.u32(u32::try_from(path.len()).unwrap_or(u32::MAX));
            out.bytes(path);
            put_known(&mut out, known, &numbers);
        }
        let check = digest(&out);
        out.bytes(&check.0);
        out
    }

    pub(crate) fn decode(object: &str, bytes: &[u8]) -> Result<Self, Error> {
        let corrupt = |e: Malformed| Error::corrupt(object, e);
        let body = bytes
            .len()
            .checked_sub(32)
            .ok_or(Malformed("it ends too early"))
            .map_err(corrupt)?;
        let (body, check) = bytes.split_at(body);
        let (_, r) = read_header(object, body, &[Kind::Cache])?;
        if digest(body).0 != check {
            return Err(Error::corrupt(object, "its checksum does not match"));
        }
        let first_version = body[8..10] == [1, 0];
        Self::parse(r, first_version).map_err(corrupt)
    }

    fn parse(mut r: Reader<'_>, first_version: bool) -> Result<Self, Malformed> {
        let snapshot_id =
            String::from_utf8(r.short()?.to_vec()).map_err(|_| Malformed("its id is not UTF-8"))?;
        let (root, started_ns) = (r.digest()?, r.i64()?);
        let known = r.count(32)?;
        let others = if first_version { 0 } else { r.count(32)? };
        let chunks: Vec<Digest> = (0..known.saturating_add(others))
            .map(|_| r.digest())
            .collect::<Result<_, _>>()?;
        let n = r.count(32)?;
        let mut entries = HashMap::with_capacity(n);
        for _ in 0..n {
            let len = r.u32()? as usize;
            let path = r.take(len)?.to_vec();
            entries.insert(path, read_known(&mut r, &chunks)?);
        }
        r.end()?;
        let mut chunks = chunks.into_iter().take(known).collect();
        if first_version {
            // It remembered what earlier snapshots had, too.
            chunks = still_used(chunks, &entries, &HashSet::new());
        }
        Ok(Self {
            snapshot_id,
            root,
            started_ns,
            entries,
            chunks,
        })
    }
}

fn put_known(out: &mut Vec<u8>, k: &Known, numbers: &HashMap<&Digest, u32>) {
    out.u32(k.attrs.mode);
    out.u32(k.attrs.uid);
    out.u32(k.attrs.gid);
    for t in [k.attrs.mtime, k.ctime] {
        out.i64(t.sec);
        out.u32(t.ns);
    }
    out.u64(k.ino);
    let more = if k.more.is_some() { MORE } else { 0 };
    match &k.body {
        KnownBody::File { size, extents } => {
            out.u8(more);
            out.u64(*size);
            out.u32(u32::try_from(extents.len()).unwrap_or(u32::MAX));
            for e in extents.iter() {
                match e {
                    // A chunk that is not in the table cannot be: every content is known.
                    Extent::Chunk { id, len } => {
                        out.u32(numbers.get(id).copied().unwrap_or(u32::MAX - 1));
                        out.u32(*len);
                    }
                    Extent::Hole { len } => {
                        out.u32(u32::MAX);
                        out.u64(*len);
                    }
                }
            }
        }
        KnownBody::Symlink(target) => {
            out.u8(1 | more);
            out.short(target);
        }
        KnownBody::Fifo => out.u8(2 | more),
    }
    put_more(out, &k.more);
}

fn read_known(r: &mut Reader<'_>, chunks: &[Digest]) -> Result<Known, Malformed> {
    let (mode, uid, gid) = (r.u32()?, r.u32()?, r.u32()?);
    let mut time = || {
        Ok(Time {
            sec: r.i64()?,
            ns: r.u32()?,
        })
    };
    let (mtime, ctime) = (time()?, time()?);
    let ino = r.u64()?;
    let kind = r.u8()?;
    let body = match kind & !MORE {
        0 => {
            let size = r.u64()?;
            let n = r.count(8)?;
            let extents = (0..n)
                .map(|_| match r.u32()? {
                    u32::MAX => Ok(Extent::Hole { len: r.u64()? }),
                    i => {
                        let id = *chunks.get(i as usize).ok_or(Malformed("it names no chunk"))?;
                        Ok(Extent::Chunk { id, len: r.u32()? })
                    }
                })
                .collect::<Result<_, _>>()?;
            KnownBody::File { size, extents }
        }
        1 => KnownBody::Symlink(r.short()?.into()),
        2 => KnownBody::Fifo,
        _ => return Err(Malformed("an entry is of no known type")),
    };
    let more = read_more(r, kind & MORE != 0)?;
    Ok(Known {
        attrs: Attrs {
            mode,
            uid,
            gid,
            mtime,
        },
        ctime,
        ino,
        body,
        more,
    })
}

fn pending_path(cache: &Path, snapshot_id: &str) -> PathBuf {
    let mut name = cache.as_os_str().to_owned();
    name.push(format!(".pending-{snapshot_id}"));
    name.into()
}

fn read(path: &Path) -> Result<Option<Cache>, Error> {
    match fs::read(path) {
        Ok(bytes) => Cache::decode(&path.display().to_string(), &bytes).map(Some),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path.display(), "read", e)),
    }
}

/// The cache of snapshot `parent`, or why there is none. A pending one that turns out to be
/// committed is adopted; all other pending ones are removed.
pub(crate) fn load(path: &Path, parent: &str) -> Result<Cache, String> {
    let pending = pending_path(path, parent);
    let mut why = format!("this machine has no cache of {parent}");
    let mut found = None;
    for candidate in [path, &pending] {
        match read(candidate) {
            Ok(Some(c)) if c.snapshot_id == parent => {
                found = Some((c, candidate == pending));
                break;
            }
            Ok(Some(c)) => why = format!("the cache belongs to {}, not to {parent}", c.snapshot_id),
            Ok(None) => {}
            Err(e) => why = format!("the cache cannot be used: {e}"),
        }
    }
    if let Some((_, true)) = found {
        // If this fails the pending file stays, and is found there again next time.
        let adopted = fs::rename(&pending, path).is_ok();
        clean(path, if adopted { None } else { Some(&pending) });
    } else {
        clean(path, None);
    }
    found.map(|f| f.0).ok_or(why)
}

/// All caches that can be read, of whatever snapshot: what they say about files is true whether
/// or not theirs was committed.
pub(crate) fn all(path: &Path) -> Vec<Cache> {
    let candidates = std::iter::once(path.to_owned()).chain(pending(path));
    candidates.filter_map(|p| read(&p).ok().flatten()).collect()
}

/// Removes pending caches but for `keep`.
pub(crate) fn clean(path: &Path, keep: Option<&Path>) {
    for old in pending(path) {
        if keep.is_none_or(|k| k.file_name() != old.file_name()) {
            // What cannot be removed now is tried again by the next snapshot.
            _ = fs::remove_file(old);
        }
    }
}

fn pending(path: &Path) -> Vec<PathBuf> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        return Vec::new();
    };
    let prefix = format!("{name}.pending-");
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    let Ok(list) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let ours = |n: &std::ffi::OsString| n.to_str().is_some_and(|n| n.starts_with(&prefix));
    list.flatten()
        .filter(|e| ours(&e.file_name()))
        .map(|e| e.path())
        .collect()
}

/// Writes the cache of a snapshot whose commit is still to come.
pub(crate) fn write_pending(path: &Path, cache: &Cache) -> Result<(), Error> {
    write(&pending_path(path, &cache.snapshot_id), cache)
}

/// Writes the cache of a snapshot that was just restored, which makes all others void.
pub(crate) fn write_current(path: &Path, cache: &Cache) -> Result<(), Error> {
    write(path, cache)?;
    clean(path, None);
    Ok(())
}

fn write(path: &Path, cache: &Cache) -> Result<(), Error> {
    let fail = |e| Error::io(path.display(), "write", e);
    if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        fs::create_dir_all(dir).map_err(fail)?;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let mut file = File::create(&temporary).map_err(fail)?;
    // Not synced: on ext4 that waits for every file of the restore. What a power failure leaves of
    // it fails its checksum, and the next snapshot is a full one.
    file.write_all(&cache.encode()).map_err(fail)?;
    fs::rename(&temporary, path).map_err(fail)
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
