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
//!
//! Nothing of it is held in memory but what its users keep: its entries are read one after the
//! other, as often as they are needed, and written in the same way. A workspace may have a million
//! files, and this is a guest on its machine.

use crate::bytes::{Malformed, Put, Reader};
use crate::error::Error;
use crate::extras::{More, put_more, read_more};
use crate::format::{HEADER_LEN, Kind, put_header, read_header};
use crate::fsutil::{Attrs, Meta, Time};
use crate::seal::Vault;
use crate::tree::{Extent, List};
use dumont_core::id::Digest;
use rustix::fs::FileType;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

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
    File { size: u64, extents: List },
    Symlink(Box<[u8]>),
    Fifo,
}

/// On the type of an entry that has more than its attributes.
const MORE: u8 = 0x80;

/// The kernel stamps files with a clock that ticks up to every 10 ms; a file system that keeps
/// whole seconds shows itself by zeros.
const TICK_NS: i64 = 20_000_000;
const COARSE_NS: i64 = 2_000_000_000;

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

    /// What the regular file that is there now is made of, if it has not changed since.
    /// `started_ns` is when the recording began.
    pub fn unchanged(&self, started_ns: i64, meta: &Meta) -> Option<&List> {
        let KnownBody::File { size, extents } = &self.body else {
            return None;
        };
        let same = (*size, self.attrs.mtime, self.ctime, self.ino)
            == (meta.size, meta.attrs.mtime, meta.ctime, meta.ino);
        let settled = |t: Time| {
            let margin = if t.ns == 0 { COARSE_NS } else { TICK_NS };
            t.as_ns() < started_ns.saturating_sub(margin)
        };
        // A user may set any mtime, whole seconds included: only ctime tells the clock's grain.
        let mtime_settled = meta.attrs.mtime.as_ns() < started_ns.saturating_sub(TICK_NS);
        let is_file = meta.kind == FileType::RegularFile;
        (is_file && same && settled(meta.ctime) && mtime_settled).then_some(extents)
    }
}

/// Gives every entry that is to be remembered, with its path, each time that it is called.
pub(crate) type Entries<'a> = &'a dyn Fn(&mut dyn FnMut(&[u8], &Known));

/// A cache to be written.
pub(crate) struct NewCache<'a> {
    pub snapshot_id: &'a str,
    pub root: Digest,
    /// This machine's clock, nanoseconds, before anything was looked at.
    pub started_ns: i64,
    /// Chunks that the store is known to have. Written are those that this very snapshot is made
    /// of. The next one may build on no others: what no snapshot needs any more may be pruned, and
    /// the parent is never pruned while a child may come.
    pub known: Vec<Digest>,
    /// Chunks of the tree itself.
    pub nodes: &'a HashSet<Digest>,
    pub entries: Entries<'a>,
}

/// Writes on, and takes the digest of it.
struct Hashed<W> {
    out: W,
    hash: blake3::Hasher,
}

impl<W: Write> Hashed<W> {
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hash.update(bytes);
        self.out.write_all(bytes)
    }
}

impl NewCache<'_> {
    pub(crate) fn encode(mut self, out: impl Write) -> std::io::Result<()> {
        self.known.sort_unstable();
        let (others, count) = self.judge();
        let (known, mut out, mut buf) = (
            &self.known,
            Hashed {
                out,
                hash: blake3::Hasher::new(),
            },
            Vec::new(),
        );
        put_header(&mut buf, Kind::Cache, &Vault::default());
        buf.short(self.snapshot_id.as_bytes());
        buf.bytes(&self.root.0);
        buf.i64(self.started_ns);
        buf.u32(u32::try_from(known.len()).unwrap_or(u32::MAX));
        buf.u32(u32::try_from(others.len()).unwrap_or(u32::MAX));
        out.put(&buf)?;
        for id in known.iter().chain(&others) {
            out.put(&id.0)?;
        }
        out.put(&count.to_le_bytes())?;
        let number = |id: &Digest| {
            let other = || others.binary_search(id).map(|i| known.len() + i);
            let found = known.binary_search(id).or_else(|_| other());
            // Every content is in one of the two.
            found
                .ok()
                .and_then(|i| u32::try_from(i).ok())
                .unwrap_or(u32::MAX - 1)
        };
        let mut result = Ok(());
        (self.entries)(&mut |path, known| {
            if result.is_ok() {
                buf.clear();
                buf.u32(u32::try_from(path.len()).unwrap_or(u32::MAX));
                buf.bytes(path);
                put_known(&mut buf, known, &number);
                result = out.put(&buf);
            }
        });
        result?;
        let check = out.hash.finalize();
        out.out.write_all(check.as_bytes())?;
        out.out.flush()
    }

    /// Keeps of the known chunks those that are used; gives the others that are, and counts entries.
    fn judge(&mut self) -> (Vec<Digest>, u32) {
        let (mut used, mut others, mut count) = (vec![false; self.known.len()], Vec::new(), 0u32);
        let mut note = |id: &Digest, others: Option<&mut Vec<Digest>>| match self.known.binary_search(id) {
            Ok(i) => used[i] = true,
            Err(_) => others.into_iter().for_each(|o| o.push(*id)),
        };
        self.nodes.iter().for_each(|id| note(id, None));
        (self.entries)(&mut |_, known| {
            count = count.saturating_add(1);
            known.chunks().for_each(|id| note(id, Some(&mut others)));
        });
        let mut used = used.into_iter();
        self.known.retain(|_| used.next() == Some(true));
        others.sort_unstable();
        others.dedup();
        (others, count)
    }
}

/// A cache that was read and found whole.
pub(crate) struct Cache<R = File> {
    pub snapshot_id: String,
    /// As it was written: see [`NewCache`].
    pub started_ns: i64,
    object: String,
    from: R,
    /// Where the table of chunks begins.
    table_at: u64,
    /// Where the entries end.
    end: u64,
    first_version: bool,
}

impl<R: Read + Seek> Cache<R> {
    /// Reads all of it once and holds it to its digest.
    pub fn open(object: &str, mut from: R) -> Result<Self, Error> {
        let fail = |e| Error::io(object, "read", e);
        let size = from.seek(SeekFrom::End(0)).map_err(fail)?;
        let end = size
            .checked_sub(32)
            .ok_or_else(|| Error::corrupt(object, "it ends too early"))?;
        from.rewind().map_err(fail)?;
        let mut header = [0; HEADER_LEN];
        let n = usize::try_from(end).unwrap_or(HEADER_LEN).min(HEADER_LEN);
        from.read_exact(&mut header[..n]).map_err(fail)?;
        read_header(object, &header[..n], &[Kind::Cache])?;
        from.rewind().map_err(fail)?;
        let mut hash = blake3::Hasher::new();
        hash.update_reader((&mut from).take(end)).map_err(fail)?;
        let mut check = [0; 32];
        from.read_exact(&mut check).map_err(fail)?;
        if hash.finalize() != check {
            return Err(Error::corrupt(object, "its checksum does not match"));
        }
        let mut cache = Self {
            snapshot_id: String::new(),
            started_ns: 0,
            object: object.into(),
            from,
            table_at: HEADER_LEN as u64,
            end,
            first_version: header[8..10] == [1, 0],
        };
        let mut stream = cache.stream(HEADER_LEN as u64)?;
        let (id, started_ns) = stream.next(|r| {
            let id = r.short()?.to_vec();
            r.digest()?;
            Ok((id, r.i64()?))
        })?;
        let (at, object) = (stream.position(), object);
        cache.snapshot_id =
            String::from_utf8(id).map_err(|_| Error::corrupt(object, "its id is not UTF-8"))?;
        (cache.started_ns, cache.table_at) = (started_ns, at);
        Ok(cache)
    }

    fn stream(&mut self, at: u64) -> Result<Stream<'_, R>, Error> {
        self.from
            .seek(SeekFrom::Start(at))
            .map_err(|e| Error::io(&self.object, "read", e))?;
        Ok(Stream {
            object: &self.object,
            from: &mut self.from,
            buf: Vec::new(),
            at: 0,
            end: self.end,
            left: self.end - at,
        })
    }

    /// Chunks that the store is known to have.
    pub fn known(&mut self) -> Result<Vec<Digest>, Error> {
        let (first_version, at) = (self.first_version, self.table_at);
        let (mut chunks, known) = self.stream(at)?.table(first_version)?;
        if first_version {
            // It remembered what earlier snapshots had, too.
            let mut used = HashSet::new();
            self.each(&mut |_, known| used.extend(known.chunks().copied()))?;
            chunks.retain(|id| used.contains(id));
        }
        chunks.truncate(known);
        Ok(chunks)
    }

    /// Gives every entry to `f`, in the order in which they were written.
    pub fn each(&mut self, f: &mut dyn FnMut(&[u8], Known)) -> Result<(), Error> {
        let (first_version, at) = (self.first_version, self.table_at);
        let mut stream = self.stream(at)?;
        let (chunks, _) = stream.table(first_version)?;
        for _ in 0..stream.next(|r| r.u32())? {
            let (path, known) = stream.next(|r| {
                let len = r.u32()? as usize;
                Ok((r.take(len)?.to_vec(), read_known(r, &chunks)?))
            })?;
            f(&path, known);
        }
        stream.finish()
    }
}

/// Bytes read at once.
const STEP: usize = 256 << 10;

/// Reads one thing after the other. What it reads has had its digest checked.
struct Stream<'a, R> {
    object: &'a str,
    from: &'a mut R,
    buf: Vec<u8>,
    /// In `buf`: all before it was given out.
    at: usize,
    end: u64,
    /// Bytes that are not in `buf` yet.
    left: u64,
}

impl<R: Read> Stream<'_, R> {
    /// What `parse` makes of the next bytes; it is asked again with more if they were too few.
    fn next<T>(&mut self, parse: impl Fn(&mut Reader<'_>) -> Result<T, Malformed>) -> Result<T, Error> {
        loop {
            let mut r = Reader::new(&self.buf[self.at..]);
            match parse(&mut r) {
                Ok(found) => {
                    self.at = self.buf.len() - r.left();
                    return Ok(found);
                }
                Err(e) if self.left == 0 => return Err(Error::corrupt(self.object, e)),
                Err(_) => self.more()?,
            }
        }
    }

    fn more(&mut self) -> Result<(), Error> {
        self.buf.drain(..self.at);
        self.at = 0;
        // As much again as did not suffice, or long entries would be parsed a hundred times.
        let step = self.left.min(STEP.max(self.buf.len()) as u64);
        let from = self.buf.len();
        self.buf.resize(from + usize::try_from(step).unwrap_or(STEP), 0);
        self.from
            .read_exact(&mut self.buf[from..])
            .map_err(|e| Error::io(self.object, "read", e))?;
        self.left -= step;
        Ok(())
    }

    fn position(&self) -> u64 {
        self.end - self.left - (self.buf.len() - self.at) as u64
    }

    /// The table of chunks, and how many of them the store is known to have.
    fn table(&mut self, first_version: bool) -> Result<(Vec<Digest>, usize), Error> {
        let known = self.next(|r| r.u32())?;
        let others = if first_version { 0 } else { self.next(|r| r.u32())? };
        let all = u64::from(known) + u64::from(others);
        if all * 32 > self.end {
            return Err(Error::corrupt(self.object, "a count exceeds its size"));
        }
        let mut chunks = Vec::with_capacity(usize::try_from(all).unwrap_or(0));
        for _ in 0..all {
            chunks.push(self.next(|r| r.digest())?);
        }
        Ok((chunks, known as usize))
    }

    fn finish(self) -> Result<(), Error> {
        if self.left == 0 && self.at == self.buf.len() {
            return Ok(());
        }
        Err(Error::corrupt(self.object, "bytes follow its end"))
    }
}

fn put_known(out: &mut Vec<u8>, k: &Known, number: &dyn Fn(&Digest) -> u32) {
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
                    Extent::Chunk { id, len } => {
                        out.u32(number(id));
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
            let mut extent = || match r.u32()? {
                u32::MAX => Ok(Extent::Hole { len: r.u64()? }),
                i => {
                    let id = *chunks.get(i as usize).ok_or(Malformed("it names no chunk"))?;
                    Ok(Extent::Chunk { id, len: r.u32()? })
                }
            };
            let extents = if n == 1 {
                List::One([extent()?])
            } else {
                let all: Vec<_> = (0..n).map(|_| extent()).collect::<Result<_, _>>()?;
                all[..].into()
            };
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
    match File::open(path) {
        Ok(file) => Cache::open(&path.display().to_string(), file).map(Some),
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
pub(crate) fn write_pending(path: &Path, cache: NewCache<'_>) -> Result<(), Error> {
    write(&pending_path(path, cache.snapshot_id), cache)
}

/// Writes the cache of a snapshot that was just restored, which makes all others void.
pub(crate) fn write_current(path: &Path, cache: NewCache<'_>) -> Result<(), Error> {
    write(path, cache)?;
    clean(path, None);
    Ok(())
}

fn write(path: &Path, cache: NewCache<'_>) -> Result<(), Error> {
    let fail = |e| Error::io(path.display(), "write", e);
    if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        fs::create_dir_all(dir).map_err(fail)?;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let file = File::create(&temporary).map_err(fail)?;
    // Not synced: on ext4 that waits for every file of the restore. What a power failure leaves of
    // it fails its checksum, and the next snapshot is a full one.
    cache.encode(BufWriter::with_capacity(STEP, file)).map_err(fail)?;
    fs::rename(&temporary, path).map_err(fail)
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
