//! Reading, cutting, hashing and compressing files on all cores.
//!
//! Cutting one file is sequential, but hashing and compressing its chunks is not, and a
//! workspace may be one checkpoint of 50 GB. So a worker that reads a file does everything
//! itself as long as the others are busy with files of their own, and hands chunks over as soon
//! as somebody is idle. No file has to be cut at artificial places to be read in parallel, and
//! with many small files nothing is ever handed over.

use super::Tools;
use super::plan::{At, Content, Plan};
use crate::error::Error;
use crate::events::{Abort, Meter, lock};
use crate::extras::{self, Extras, More};
use crate::fsutil::{Meta, io_at};
use crate::pack::Class;
use crate::scan::{open_beneath, vanished};
use crate::tree::{Extent, List};
use crate::upload::Packer;
use dumont_core::id::Digest;
use md5::{Digest as _, Md5};
use rustix::fs::{FileType, Mode, OFlags, SeekFrom, openat, seek};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Times a file is read before it is recorded as torn.
const ATTEMPTS: u32 = 3;
/// Chunks that wait for their MD5; a reader that is further ahead waits.
const MD5_AHEAD: usize = 2;
/// Bytes; shorter holes are read as the zeros they are.
const MIN_HOLE: u64 = 64 << 10;

pub(super) struct ReadPool<'a> {
    pub root: &'a OwnedFd,
    pub shown: &'a Path,
    pub plan: &'a Plan<'a>,
    /// Ends of the names of files whose MD5 is wanted.
    pub model_files: &'a [String],
    pub packer: &'a Packer<'a>,
    pub meter: &'a Meter<'a>,
    pub abort: &'a Abort<'a>,
    pub queue: Mutex<Queue>,
    pub wake: Condvar,
}

#[derive(Default)]
pub(super) struct Queue {
    next: usize,
    reading: usize,
    idle: usize,
    chunks: VecDeque<ChunkJob>,
}

/// A chunk handed over by the reader of its file.
struct ChunkJob {
    raw: Vec<u8>,
    slot: usize,
    file: Arc<Handed>,
}

/// What a reader waits for.
#[derive(Default)]
struct Handed {
    open: AtomicUsize,
    ids: Mutex<Vec<(usize, Digest)>>,
}

/// A file that was read.
struct Read {
    /// As it was when this content was read; size and extents agree.
    meta: Meta,
    extents: List,
    more: More,
    torn: bool,
}

enum Work {
    Chunk(ChunkJob),
    File(usize),
    End,
}

impl ReadPool<'_> {
    /// The body of each worker.
    pub fn work(&self) {
        if let Err(e) = self.run() {
            self.abort.fail(e);
        }
        self.wake.notify_all();
    }

    fn run(&self) -> Result<(), Error> {
        let mut tools = Tools::new(self.packer)?;
        loop {
            match self.next()? {
                Work::End => return Ok(()),
                Work::Chunk(job) => self.run_chunk(&job, &mut tools)?,
                Work::File(i) => {
                    let job = self.plan.job(i);
                    self.plan.found(job, self.read_any(job, &mut tools)?);
                    self.meter.add(0, 1);
                    lock(&self.queue).reading -= 1;
                }
            }
        }
    }

    fn next(&self) -> Result<Work, Error> {
        let mut q = lock(&self.queue);
        loop {
            self.abort.check()?;
            if let Some(job) = q.chunks.pop_front() {
                return Ok(Work::Chunk(job));
            }
            if q.next < self.plan.jobs() {
                q.next += 1;
                q.reading += 1;
                return Ok(Work::File(q.next - 1));
            }
            if q.reading == 0 {
                return Ok(Work::End);
            }
            q.idle += 1;
            q = self
                .wake
                .wait_timeout(q, Duration::from_millis(20))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            q.idle -= 1;
        }
    }

    fn store(&self, raw: &[u8], tools: &mut Tools<'_>) -> Result<Digest, Error> {
        let id = self.packer.vault.id(raw);
        if self.packer.claim(id) {
            let stored = tools.encoder.encode(raw)?;
            self.packer
                .add(Class::Data, id, raw.len(), stored, &mut tools.sealed)?;
        }
        Ok(id)
    }

    fn run_chunk(&self, job: &ChunkJob, tools: &mut Tools<'_>) -> Result<(), Error> {
        let id = self.store(&job.raw, tools)?;
        lock(&job.file.ids).push((job.slot, id));
        if job.file.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.wake.notify_all();
        }
        Ok(())
    }

    /// Hands a chunk over if somebody is waiting for one.
    fn hand_over(&self, raw: &[u8], slot: usize, file: &Arc<Handed>) -> bool {
        let mut q = lock(&self.queue);
        if q.idle <= q.chunks.len() {
            return false;
        }
        file.open.fetch_add(1, Ordering::AcqRel);
        q.chunks.push_back(ChunkJob {
            raw: raw.to_vec(),
            slot,
            file: Arc::clone(file),
        });
        drop(q);
        self.wake.notify_all();
        true
    }

    /// Waits for the chunks of one file, working on anybody's meanwhile.
    fn wait_for(&self, file: &Handed, tools: &mut Tools<'_>) -> Result<(), Error> {
        while file.open.load(Ordering::Acquire) > 0 {
            self.abort.check()?;
            let mut q = lock(&self.queue);
            if let Some(job) = q.chunks.pop_front() {
                drop(q);
                self.run_chunk(&job, tools)?;
            } else {
                q = self
                    .wake
                    .wait_timeout(q, Duration::from_millis(5))
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
                drop(q);
            }
        }
        Ok(())
    }

    /// Reads a file by the first of its names that is still there.
    fn read_any(&self, job: At, tools: &mut Tools<'_>) -> Result<Content, Error> {
        for (name, gone) in self.plan.names(job).into_iter().zip(0u32..) {
            let path = self.plan.path(name);
            let fd = match self.open(&path) {
                Err(e) if vanished(e) => continue,
                other => other.map_err(|e| io_at(self.shown, &path, "open", e))?,
            };
            let meta = self.fstat(&fd, &path)?;
            if meta.kind == FileType::RegularFile {
                let read = self.read_settled(&fd, &path, meta, tools)?;
                return Ok(Content::File {
                    meta: (read.meta != *self.plan.listed(job)).then(|| Box::new(read.meta)),
                    extents: read.extents,
                    more: read.more,
                    torn: read.torn,
                    gone,
                });
            }
        }
        Ok(Content::Gone)
    }

    fn open(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        // Nonblocking: a fifo may have taken the file's place.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if path.len() < 2048 {
            return openat(self.root, path, flags, Mode::empty());
        }
        let at = path.iter().rposition(|b| *b == b'/').ok_or(Errno::NAMETOOLONG)?;
        let dir = open_beneath(self.root.as_fd(), &path[..at])?;
        openat(&dir, &path[at + 1..], flags, Mode::empty())
    }

    fn fstat(&self, fd: &OwnedFd, path: &[u8]) -> Result<Meta, Error> {
        Meta::fstat(fd).map_err(|e| io_at(self.shown, path, "read", e))
    }

    /// Reads until nothing changed meanwhile, or gives up and calls it torn.
    fn read_settled(
        &self,
        fd: &OwnedFd,
        path: &[u8],
        mut before: Meta,
        tools: &mut Tools<'_>,
    ) -> Result<Read, Error> {
        for attempt in 1.. {
            let (extents, md5) = self.read_once(fd, path, &before, attempt == 1, tools)?;
            let xattrs = extras::read(fd).map_err(|e| io_at(self.shown, path, "read", e))?;
            let read: u64 = extents.iter().map(Extent::len).sum();
            let after = self.fstat(fd, path)?;
            let settled = before.same_content(&after) && read == before.size;
            if settled || attempt == ATTEMPTS {
                before.size = read;
                return Ok(Read {
                    meta: before,
                    extents: extents[..].into(),
                    more: Extras::some(xattrs, md5),
                    torn: !settled,
                });
            }
            before = after;
        }
        Err(Error::internal("a file was read too often"))
    }

    /// Reads a file, and of a model file takes the MD5 beside. MD5 runs at 0.6 GB/s a core and
    /// cannot be divided: on the reader's own thread it would halve the speed of a large file.
    fn read_once(
        &self,
        fd: &OwnedFd,
        path: &[u8],
        meta: &Meta,
        count: bool,
        tools: &mut Tools<'_>,
    ) -> Result<(Vec<Extent>, Option<[u8; 16]>), Error> {
        let regions = regions(fd, meta).map_err(|e| io_at(self.shown, path, "read", e))?;
        let model = self.model_files.iter().any(|end| ends(path, end));
        // Of a file that is terabytes of nothing it would take hours.
        if !model || regions.iter().any(|r| r.hole) {
            let extents = self.read_regions(fd, path, &regions, count, tools, &|_| {})?;
            return Ok((extents, None));
        }
        std::thread::scope(|s| {
            let (pieces, received) = sync_channel::<Vec<u8>>(MD5_AHEAD);
            let md5 = s.spawn(move || {
                let mut md5 = Md5::new();
                received.iter().for_each(|piece| md5.update(&piece));
                md5.finalize().into()
            });
            // It ends only after this sender is gone.
            let beside = |raw: &[u8]| _ = pieces.send(raw.to_vec());
            let extents = self.read_regions(fd, path, &regions, count, tools, &beside);
            drop(pieces);
            let md5 = md5
                .join()
                .map_err(|_| Error::internal("the MD5 thread panicked"))?;
            Ok((extents?, Some(md5)))
        })
    }

    /// Reads, cuts and stores; every chunk's bytes go through `beside`, in order.
    fn read_regions(
        &self,
        fd: &OwnedFd,
        path: &[u8],
        regions: &[Region],
        count: bool,
        tools: &mut Tools<'_>,
        beside: &dyn Fn(&[u8]),
    ) -> Result<Vec<Extent>, Error> {
        let handed = Arc::new(Handed::default());
        let mut out = Vec::new();
        let mut window = std::mem::replace(
            &mut tools.window,
            crate::chunk::Window::new(self.packer.vault.cuts()),
        );
        let name = || format!("{}/{}", self.shown.display(), crate::printable(path));
        for region in regions {
            if region.hole {
                out.push(Extent::Hole { len: region.len });
                continue;
            }
            let read = window.cut(fd, &name, region.at, region.len, &mut |raw| {
                self.abort.check()?;
                beside(raw);
                let id = if self.hand_over(raw, out.len(), &handed) {
                    Digest([0; 32])
                } else {
                    self.store(raw, tools)?
                };
                out.push(Extent::Chunk {
                    id,
                    len: u32::try_from(raw.len()).unwrap_or(u32::MAX),
                });
                if count {
                    self.meter.add(raw.len() as u64, 0);
                }
                Ok(())
            })?;
            if read < region.len {
                break;
            }
        }
        tools.window = window;
        self.wait_for(&handed, tools)?;
        for (slot, id) in lock(&handed.ids).drain(..) {
            if let Some(Extent::Chunk { id: at, .. }) = out.get_mut(slot) {
                *at = id;
            }
        }
        Ok(out)
    }
}

fn ends(path: &[u8], end: &str) -> bool {
    let tail = path.len().checked_sub(end.len()).map(|at| &path[at..]);
    tail.is_some_and(|t| t.eq_ignore_ascii_case(end.as_bytes()))
}

struct Region {
    at: u64,
    len: u64,
    hole: bool,
}

/// Data and holes, in order. A file without holes is not asked twice.
fn regions(fd: &OwnedFd, meta: &Meta) -> Result<Vec<Region>, Errno> {
    let size = meta.size;
    let (mut out, mut data_from, mut at) = (Vec::new(), 0, 0);
    while meta.allocated() < size && at < size {
        let data = match seek(fd, SeekFrom::Data(at)) {
            Ok(p) => p.min(size),
            Err(Errno::NXIO) => size,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => break,
            Err(e) => return Err(e),
        };
        if data - at >= MIN_HOLE {
            if at > data_from {
                out.push(Region {
                    at: data_from,
                    len: at - data_from,
                    hole: false,
                });
            }
            out.push(Region {
                at,
                len: data - at,
                hole: true,
            });
            data_from = data;
        }
        if data >= size {
            break;
        }
        at = seek(fd, SeekFrom::Hole(data))?.clamp(data + 1, size);
    }
    if data_from < size {
        out.push(Region {
            at: data_from,
            len: size - data_from,
            hole: false,
        });
    }
    Ok(out)
}
