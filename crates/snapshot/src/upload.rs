//! From chunks to packs to the sink: deduplicated, in parallel, in bounded memory.
//!
//! Workers add chunks to the one open pack of their class; a full pack is handed to one of a few
//! upload threads. There are never more than `UPLOADS` packs waiting or under way, and a worker
//! that fills one more waits, with the open pack locked: so a slow store stops the readers
//! instead of filling the memory (at most 5 × 34 MiB here, whatever the size of the workspace).

use crate::codec::Codec;
use crate::error::Error;
use crate::events::{Abort, lock};
use crate::format::digest;
use crate::pack::{Class, PACK_TARGET, PackBuilder, PackEntry};
use crate::seal::Vault;
use crate::store::ObjectSink;
use dumont_core::id::Digest;
use dumont_core::snapshot::{ObjectKind, ObjectRef};
use std::collections::{HashSet, VecDeque};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Uploads at the same time; four connections saturate what we measured, and each costs a pack.
pub(crate) const UPLOADS: usize = 3;
/// The trailer of a pack of small files is 1 to 2 MiB.
const PACK_CAPACITY: usize = PACK_TARGET + (2 << 20);

pub(crate) struct Packer<'a> {
    sink: &'a dyn ObjectSink,
    pub vault: &'a Vault,
    abort: &'a Abort<'a>,
    known: Mutex<HashSet<Digest>>,
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
    done: Vec<(usize, ObjectRef, Vec<PackEntry>)>,
}

/// What was uploaded: packs in the order in which they were filled, with their chunks.
pub(crate) struct Packed {
    pub packs: Vec<(ObjectRef, Vec<PackEntry>)>,
    /// All that the store is known to have, new chunks included.
    pub known: HashSet<Digest>,
}

impl<'a> Packer<'a> {
    pub fn new(
        sink: &'a dyn ObjectSink,
        vault: &'a Vault,
        abort: &'a Abort<'a>,
        known: HashSet<Digest>,
    ) -> Self {
        Self {
            sink,
            vault,
            abort,
            known: Mutex::new(known),
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
        while q.outstanding >= UPLOADS {
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
        let object = put(self.sink, ObjectKind::Pack, &body)?;
        let mut q = lock(&self.queue);
        q.outstanding -= 1;
        q.spare.push(body);
        q.done.push((number, object, entries));
        Ok(())
    }

    pub fn finish(self) -> Packed {
        let q = self.queue.into_inner().unwrap_or_else(PoisonError::into_inner);
        let known = self.known.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut done = q.done;
        done.sort_unstable_by_key(|d| d.0);
        Packed {
            packs: done
                .into_iter()
                .map(|(_, object, entries)| (object, entries))
                .collect(),
            known,
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
