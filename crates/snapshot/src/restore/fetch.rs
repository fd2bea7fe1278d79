//! Asking the source for bytes, and the download workers.
//!
//! A few threads each take the next range, decode, verify and write it, so that the network, the
//! cores and the disk are all busy without any queue between them: what is in memory is one range
//! per thread. Ranges of 16 MiB and four connections saturate what was measured.

use super::load::Manifest;
use super::memory::{Held, PER_WORKER};
use super::plan::{Job, Plan, Turn};
use super::target::{Hands, Target};
use crate::error::Error;
use crate::events::{Abort, Events, Meter, lock};
use crate::index::{ChunkMap, ChunkPlace};
use crate::pack::Opener;
use crate::printable::printable;
use crate::seal::Vault;
use crate::store::ObjectSource;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::AcqRel, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock};

/// Jobs whose objects are announced to the source together.
const WINDOW: usize = 512;

/// The source, counted and held to the lengths that were asked for.
pub(crate) struct Fetcher<'a> {
    source: &'a dyn ObjectSource,
    pub vault: Vault,
    pub abort: &'a Abort<'a>,
    pub requests: AtomicU64,
    pub bytes: AtomicU64,
    pub held: Held,
}

impl<'a> Fetcher<'a> {
    pub fn new(source: &'a dyn ObjectSource, vault: Vault, abort: &'a Abort<'a>) -> Self {
        Self {
            source,
            vault,
            abort,
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            held: Held::default(),
        }
    }

    pub fn opener(&self) -> Result<Opener, Error> {
        Opener::new(&self.vault)
    }

    pub fn prepare(&self, keys: &[String]) -> Result<(), Error> {
        self.source
            .prepare(keys)
            .map_err(|e| Error::store("the list of objects", e))
    }

    /// `len` bytes of an object.
    pub fn get(&self, key: &str, range: Option<Range<u64>>, len: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        self.get_into(key, range, len, &mut bytes)?;
        Ok(bytes)
    }

    /// The same into a buffer that was used before.
    pub fn get_into(
        &self,
        key: &str,
        range: Option<Range<u64>>,
        len: u64,
        bytes: &mut Vec<u8>,
    ) -> Result<(), Error> {
        self.abort.check()?;
        self.requests.fetch_add(1, Relaxed);
        self.source
            .get_into(key, range, bytes)
            .map_err(|e| Error::store(key, e))?;
        self.bytes.fetch_add(bytes.len() as u64, Relaxed);
        if bytes.len() as u64 == len {
            Ok(())
        } else {
            Err(Error::corrupt(
                key,
                format_args!("{} bytes came where {len} were expected", bytes.len()),
            ))
        }
    }

    /// A chunk on its own: where it should lie, else wherever another index says.
    pub fn chunk_anywhere(
        &self,
        map: &ChunkMap,
        place: &ChunkPlace,
        opener: &mut Opener,
        of: &dyn Fn() -> String,
    ) -> Result<Vec<u8>, Error> {
        let others = map.places(&place.entry.id).filter(|p| *p != place);
        let mut first = None;
        for place in std::iter::once(place).chain(others) {
            match self.chunk_again(&map.pack(place)?.key, place, opener, of) {
                Err(e @ (Error::Corrupt { .. } | Error::ObjectMissing { .. })) => {
                    first.get_or_insert(e);
                }
                other => return other,
            }
        }
        Err(first.unwrap_or_else(|| Error::internal("a chunk lies nowhere")))
    }

    /// One chunk on its own, after it was found bad in a longer range: the transfer may have
    /// been at fault and not the object. `of` says what it is part of.
    pub fn chunk_again(
        &self,
        key: &str,
        place: &ChunkPlace,
        opener: &mut Opener,
        of: &dyn Fn() -> String,
    ) -> Result<Vec<u8>, Error> {
        let e = &place.entry;
        let frame = self.get(key, Some(e.offset..e.end()), e.end() - e.offset)?;
        let opened = e.open(&frame, opener).map(<[u8]>::to_vec);
        opened.map_err(|why| Error::corrupt(key, format_args!("chunk {} of {}: {why}", e.id, of())))
    }
}

/// Runs `f` over `items` on up to `threads` threads; results in order.
pub(crate) fn parallel<T: Sync, R: Send + Sync>(
    threads: usize,
    items: &[T],
    abort: &Abort<'_>,
    f: impl Fn(&T) -> Result<R, Error> + Sync,
) -> Result<Vec<R>, Error> {
    if items.len() <= 1 {
        return items.iter().map(f).collect();
    }
    let results: Vec<OnceLock<R>> = items.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|s| {
        for _ in 0..threads.min(items.len()) {
            s.spawn(|| {
                while let Some((item, slot)) = Some(next.fetch_add(1, Relaxed))
                    .and_then(|i| items.get(i).zip(results.get(i)))
                    .filter(|_| abort.check().is_ok())
                {
                    match f(item) {
                        Ok(r) => _ = slot.set(r),
                        Err(e) => abort.fail(e),
                    }
                }
            });
        }
    });
    abort.result()?;
    let all: Option<Vec<R>> = results.into_iter().map(OnceLock::into_inner).collect();
    all.ok_or_else(|| Error::internal("a task ended without a result"))
}

/// When the workload may start.
pub(super) struct Ready {
    /// Jobs of what it needs that are not done yet.
    pub jobs: AtomicUsize,
    pub files: u64,
}

/// Everything the download workers share.
pub(super) struct Download<'a> {
    pub plan: &'a Plan,
    pub map: &'a ChunkMap,
    pub manifest: &'a Manifest,
    pub target: &'a Target<'a>,
    pub fetcher: &'a Fetcher<'a>,
    pub meter: &'a Meter<'a>,
    pub next: AtomicUsize,
    /// How many windows of jobs have been announced.
    pub announced: Mutex<usize>,
    /// Jobs of priority files that are not done yet.
    pub urgent: AtomicUsize,
    pub ready: Ready,
    pub events: &'a dyn Events,
}

impl Download<'_> {
    /// The body of each worker.
    pub fn work(&self) {
        if let Err(e) = self.run() {
            self.fetcher.abort.fail(e);
        }
    }

    fn run(&self) -> Result<(), Error> {
        let (mut opener, mut hands, mut buffer) = (self.fetcher.opener()?, Hands::default(), Vec::new());
        let _own = self.fetcher.held.hold(PER_WORKER);
        loop {
            self.fetcher.abort.check()?;
            let number = self.next.fetch_add(1, Relaxed);
            match self.plan.jobs.get(number) {
                None => return Ok(()),
                Some(Job::Plain(leaves)) => {
                    for &leaf in &self.plan.plain[leaves.clone()] {
                        self.target.create_plain(leaf, &mut hands)?;
                        self.meter.add(0, 1);
                    }
                    self.done(Turn::Ready, &mut hands)?;
                }
                Some(Job::Fetch {
                    turn,
                    pack,
                    range,
                    chunks,
                }) => {
                    self.announce(number)?;
                    self.fetch(*pack, range, chunks.clone(), &mut opener, &mut hands, &mut buffer)?;
                    self.done(*turn, &mut hands)?;
                    if *turn == Turn::Priority && self.urgent.fetch_sub(1, AcqRel) == 1 {
                        self.events.log("Priority files are restored");
                    }
                }
            }
        }
    }

    /// Counts what the workload needs.
    fn done(&self, turn: Turn, hands: &mut Hands) -> Result<(), Error> {
        if turn == Turn::Ready && self.ready.jobs.fetch_sub(1, AcqRel) == 1 {
            self.say_ready(hands)?;
        }
        Ok(())
    }

    pub fn say_ready(&self, hands: &mut Hands) -> Result<(), Error> {
        let mut others = Hands::default();
        for (name, first) in &self.plan.ready_links {
            self.target.link(*name, *first, hands, &mut others)?;
            self.meter.add(0, 1);
        }
        let files = self.ready.files;
        self.events
            .log(&format!("Ready: {files} files are restored, the rest follows"));
        self.events.ready(files);
        Ok(())
    }

    fn announce(&self, number: usize) -> Result<(), Error> {
        let mut announced = lock(&self.announced);
        while *announced <= number / WINDOW {
            let from = *announced * WINDOW;
            let jobs = &self.plan.jobs[from..self.plan.jobs.len().min(from + WINDOW)];
            let mut packs: Vec<u32> = jobs.iter().filter_map(Job::pack).collect();
            packs.dedup();
            let keys: Vec<String> = packs
                .iter()
                .map(|p| self.map.packs[*p as usize].key.clone())
                .collect();
            self.fetcher.prepare(&keys)?;
            *announced += 1;
        }
        Ok(())
    }

    fn fetch(
        &self,
        pack: u32,
        range: &Range<u64>,
        chunks: Range<usize>,
        opener: &mut Opener,
        hands: &mut Hands,
        bytes: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let key = &self.map.packs[pack as usize].key;
        let _range = self.fetcher.held.hold(range.end - range.start);
        match self
            .fetcher
            .get_into(key, Some(range.clone()), range.end - range.start, bytes)
        {
            // Too short or long, or lost: each chunk is asked for on its own below.
            Err(Error::Corrupt { .. } | Error::ObjectMissing { .. }) => bytes.clear(),
            other => other?,
        }
        for chunk in &self.plan.chunks[chunks] {
            self.fetcher.abort.check()?;
            let pieces = &self.plan.pieces[chunk.pieces.start as usize..chunk.pieces.end as usize];
            let place = self.map.place(chunk.place);
            let e = &place.entry;
            let frame = usize::try_from(e.offset - range.start)
                .ok()
                .zip(usize::try_from(e.end() - range.start).ok())
                .and_then(|(from, to)| bytes.get(from..to));
            let again;
            let raw = match frame.map(|f| e.open(f, opener)) {
                Some(Ok(raw)) => raw,
                _ => {
                    let of = || {
                        pieces
                            .first()
                            .map_or_else(String::new, |p| printable(&self.manifest.path(p.leaf as usize)))
                    };
                    again = self
                        .fetcher
                        .chunk_anywhere(self.map, place, &mut self.fetcher.opener()?, &of)?;
                    &again
                }
            };
            for piece in pieces {
                let done = self.target.write(piece.leaf as usize, piece.at, raw, hands)?;
                self.meter.add(raw.len() as u64, done.into());
            }
        }
        Ok(())
    }
}
