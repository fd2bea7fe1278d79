//! From chunks to packs to the sink: deduplicated, in parallel, in bounded memory.
//!
//! Workers add chunks to the one open pack of their class; a full pack is handed to one of a few
//! upload threads. There are never more than [`uploads`] packs waiting or under way, and a worker
//! that fills one more waits, with the open pack locked: so a slow store stops the readers
//! instead of filling the memory (at most 5 × 34 MiB here, whatever the size of the workspace).

use crate::codec::{Budget, Codec};
use crate::error::Error;
use crate::events::{Abort, lock};
use crate::format::digest;
use crate::index;
use crate::numbers::Numbers;
use crate::pack::{Class, PACK_TARGET, PackBuilder, PackEntry};
use crate::seal::Vault;
use crate::store::ObjectSink;
use dumont_core::id::Digest;
use dumont_core::snapshot::{ObjectKind, ObjectRef};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Uploads at the same time; four connections saturate what we measured, and each costs a pack.
const UPLOADS: usize = 3;
/// Bytes; what a snapshot may take.
const MEMORY: usize = 256 << 20;
/// Bytes: the program itself and its connections; of each worker its window, a chunk that was handed
/// over and what it is encoded with; of each file its rows in the tables.
const OURSELVES: usize = 24 << 20;
const PER_WORKER: usize = 18 << 20;
const PER_FILE: usize = 250;
/// The trailer of a pack of small files is 1 to 2 MiB.
const PACK_CAPACITY: usize = PACK_TARGET + (2 << 20);

/// How many uploads leave the memory within its bounds, one at least: with a million files the
/// tables take what otherwise two packs may.
pub(crate) fn uploads(files: usize, workers: usize) -> usize {
    let taken = OURSELVES + workers * PER_WORKER + files.saturating_mul(PER_FILE);
    let packs = MEMORY.saturating_sub(taken) / PACK_CAPACITY;
    // One is being filled.
    packs.saturating_sub(1).clamp(1, UPLOADS)
}

/// Chunks that the store has, or will have in a moment.
pub(crate) struct Chunks {
    pub ids: Vec<Digest>,
    numbers: Numbers,
}

impl Chunks {
    /// There is room for so many `more`.
    pub fn new(mut ids: Vec<Digest>, more: usize) -> Self {
        ids.reserve_exact(more);
        let mut numbers = Numbers::default();
        let id_of = |n: u32| &ids[n as usize];
        numbers.reserve(ids.len() + more, id_of);
        for (id, number) in ids.iter().zip(0u32..) {
            numbers.insert(id, number, id_of);
        }
        Self { ids, numbers }
    }

    fn number(&self, id: &Digest) -> Option<u32> {
        self.numbers.find(id, |n| &self.ids[n as usize])
    }

    /// Whether it is new.
    fn insert(&mut self, id: Digest) -> bool {
        let ids = &self.ids;
        let there = self.numbers.insert(&id, ids.len() as u32, |n| &ids[n as usize]);
        if there.is_none() {
            self.ids.push(id);
        }
        there.is_none()
    }
}

/// Where an uploaded chunk lies in its pack: a [`PackEntry`] in a third of its memory.
#[derive(Clone, Copy)]
struct Stored {
    /// In [`Chunks`].
    number: u32,
    offset: u32,
    stored_len: u32,
    raw_len: u32,
    codec: Codec,
    class: Class,
}

pub(crate) struct Packer<'a> {
    sink: &'a dyn ObjectSink,
    pub vault: &'a Vault,
    abort: &'a Abort<'a>,
    known: Mutex<Chunks>,
    pub uploads: usize,
    pub budget: Budget,
    data: Mutex<Option<PackBuilder>>,
    tree: Mutex<Option<PackBuilder>>,
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    sealed: VecDeque<(usize, PackBuilder)>,
    /// Queued or being uploaded.
    outstanding: usize,
    closed: bool,
    /// How many packs there have been.
    count: usize,
    spare: Vec<Vec<u8>>,
    done: Vec<(usize, ObjectRef, Box<[Stored]>)>,
}

/// What was uploaded.
pub(crate) struct Packed {
    /// In the order in which they were filled.
    pub packs: Vec<ObjectRef>,
    /// The chunks of each.
    stored: Vec<Box<[Stored]>>,
    chunks: Chunks,
}

impl Packed {
    /// What an index of it says; none if nothing was uploaded.
    pub fn index(&self) -> Option<Vec<u8>> {
        let stored = (0u32..).zip(&self.stored);
        let entries = stored.flat_map(|(pack, all)| {
            all.iter().map(move |s| {
                let entry = PackEntry {
                    id: self.chunks.ids[s.number as usize],
                    offset: s.offset.into(),
                    stored_len: s.stored_len,
                    raw_len: s.raw_len,
                    codec: s.codec,
                    class: s.class,
                };
                (pack, entry)
            })
        });
        let count = self.stored.iter().map(|s| s.len()).sum();
        (!self.packs.is_empty()).then(|| index::payload(&self.packs, count, entries))
    }

    /// The packs, and all chunks that the store is known to have, new ones included.
    pub fn into_parts(self) -> (Vec<ObjectRef>, Vec<Digest>) {
        (self.packs, self.chunks.ids)
    }
}

impl<'a> Packer<'a> {
    pub fn new(
        sink: &'a dyn ObjectSink,
        vault: &'a Vault,
        abort: &'a Abort<'a>,
        known: Chunks,
        uploads: usize,
        budget: Budget,
    ) -> Self {
        Self {
            sink,
            vault,
            abort,
            known: Mutex::new(known),
            uploads,
            budget,
            data: Mutex::new(None),
            tree: Mutex::new(None),
            queue: Mutex::default(),
            wake: Condvar::new(),
        }
    }

    /// Whether the store lacks this chunk. Whoever hears `true` must add it: others hear `false`
    /// from now on.
    pub fn claim(&self, id: Digest) -> bool {
        lock(&self.known).insert(id)
    }

    /// `buf` is the caller's own, for sealing.
    pub fn add(
        &self,
        class: Class,
        id: Digest,
        raw_len: usize,
        (codec, stored): (Codec, &[u8]),
        buf: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let raw_len = u32::try_from(raw_len).map_err(|_| Error::internal("a chunk is too long"))?;
        let what = PackEntry::sealed_as(&id, raw_len, codec, class);
        let stored = self.vault.seal(&what, stored, buf)?;
        let mut open = lock(if class == Class::Data {
            &self.data
        } else {
            &self.tree
        });
        if let Some(full) = open.take_if(|p| p.full(stored.len())) {
            self.submit(full)?;
        }
        open.get_or_insert_with(|| PackBuilder::new(class, self.buffer(class), self.vault))
            .add(id, raw_len, codec, stored);
        Ok(())
    }

    fn buffer(&self, class: Class) -> Vec<u8> {
        let spare = lock(&self.queue).spare.pop();
        match class {
            Class::Data => spare.unwrap_or_else(|| Vec::with_capacity(PACK_CAPACITY)),
            Class::Tree => spare.unwrap_or_default(),
        }
    }

    fn submit(&self, pack: PackBuilder) -> Result<(), Error> {
        let mut q = lock(&self.queue);
        while q.outstanding >= self.uploads {
            self.abort.check()?;
            q = self.wait(q);
        }
        let number = q.count;
        q.count += 1;
        q.outstanding += 1;
        q.sealed.push_back((number, pack));
        drop(q);
        self.wake.notify_all();
        Ok(())
    }

    fn wait<'q>(&self, q: std::sync::MutexGuard<'q, Queue>) -> std::sync::MutexGuard<'q, Queue> {
        // The timeout is for a cancellation, which nobody announces.
        self.wake
            .wait_timeout(q, Duration::from_millis(50))
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    /// Sends what is still open, then lets the upload threads end.
    pub fn close(&self) -> Result<(), Error> {
        let sent = [&self.data, &self.tree].into_iter().try_for_each(|lane| {
            let last = lock(lane).take().filter(|p| !p.is_empty());
            last.map_or(Ok(()), |p| self.submit(p))
        });
        lock(&self.queue).closed = true;
        self.wake.notify_all();
        sent
    }

    /// The body of each upload thread.
    pub fn upload(&self) {
        while let Some((number, pack)) = self.next() {
            match self.send(number, pack) {
                Ok(()) => {}
                Err(e) => self.abort.fail(e),
            }
            self.wake.notify_all();
        }
    }

    fn next(&self) -> Option<(usize, PackBuilder)> {
        let mut q = lock(&self.queue);
        loop {
            if self.abort.check().is_err() {
                return None;
            }
            if let Some(next) = q.sealed.pop_front() {
                return Some(next);
            }
            if q.closed {
                return None;
            }
            q = self.wait(q);
        }
    }

    fn send(&self, number: usize, pack: PackBuilder) -> Result<(), Error> {
        let (body, entries) = pack.seal();
        let stored = self.compact(&entries)?;
        drop(entries);
        let object = put(self.sink, ObjectKind::Pack, &body)?;
        let mut q = lock(&self.queue);
        q.outstanding -= 1;
        q.spare.push(body);
        q.done.push((number, object, stored));
        Ok(())
    }

    fn compact(&self, entries: &[PackEntry]) -> Result<Box<[Stored]>, Error> {
        let known = lock(&self.known);
        let compact = |e: &PackEntry| {
            Some(Stored {
                number: known.number(&e.id)?,
                offset: u32::try_from(e.offset).ok()?,
                stored_len: e.stored_len,
                raw_len: e.raw_len,
                codec: e.codec,
                class: e.class,
            })
        };
        let all: Option<_> = entries.iter().map(compact).collect();
        all.ok_or_else(|| Error::internal("a chunk was packed that nobody claimed"))
    }

    pub fn finish(self) -> Packed {
        let q = self.queue.into_inner().unwrap_or_else(PoisonError::into_inner);
        let chunks = self.known.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut done = q.done;
        done.sort_unstable_by_key(|d| d.0);
        let (packs, stored) = done
            .into_iter()
            .map(|(_, object, stored)| (object, stored))
            .unzip();
        Packed {
            packs,
            stored,
            chunks,
        }
    }
}

/// Stores one object and holds the sink to what it was given.
pub(crate) fn put(sink: &dyn ObjectSink, kind: ObjectKind, body: &[u8]) -> Result<ObjectRef, Error> {
    let digest = digest(body);
    let what = format!("a new object of {} bytes in {}", body.len(), kind.folder());
    let object = sink.put(kind, digest, body).map_err(|e| Error::store(&what, e))?;
    if (object.size, object.digest) == (body.len() as u64, digest) {
        Ok(object)
    } else {
        Err(Error::internal(format_args!(
            "the sink stored something else than {what}"
        )))
    }
}
