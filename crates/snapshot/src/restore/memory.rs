//! How much memory the transfers may take.
//!
//! Each worker holds one range and what it decodes it with, so their number and the length of
//! ranges bound all of it, whatever the sizes of files. The tables (the tree, the list of
//! chunks) grow with the workspace, about 290 bytes a file of one chunk; the transfers get what
//! those leave.

use crate::chunk::MAX_CHUNK;
use crate::pack::FRAME_LEN;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes; what a restore may take if nobody says.
pub(super) const DEFAULT: u64 = 256 << 20;
/// Bytes; longer ranges were not faster.
const LONGEST: u64 = 16 << 20;
/// A chunk and its frame must fit.
const SHORTEST: u64 = (MAX_CHUNK + FRAME_LEN) as u64;
/// Decoded bytes, as many of planes, and a chunk that is asked for again.
pub(super) const PER_WORKER: u64 = 3 * MAX_CHUNK as u64;
/// The program itself, its stacks and its connections.
const OURSELVES: u64 = 24 << 20;

/// Bytes of tables per leaf, and per chunk in the indexes or in a file.
const LEAF: u64 = 150;
const CHUNK: u64 = 140;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    pub workers: usize,
    /// Bytes.
    pub max_range: u64,
}

pub(super) fn tables(leaves: usize, chunks: usize) -> u64 {
    leaves as u64 * LEAF + chunks as u64 * CHUNK
}

impl Share {
    /// Of `memory` bytes, after the tables; `workers` at most. One worker always gets what it
    /// cannot do without.
    pub fn of(memory: u64, tables: u64, workers: usize) -> Self {
        let left = memory.saturating_sub(OURSELVES).saturating_sub(tables);
        let most = usize::try_from(left / (PER_WORKER + SHORTEST)).unwrap_or(usize::MAX);
        let workers = workers.min(most).max(1);
        let each = left / workers as u64;
        Self {
            workers,
            max_range: each.saturating_sub(PER_WORKER).clamp(SHORTEST, LONGEST),
        }
    }
}

/// Bytes in buffers now, and the most there were.
#[derive(Debug, Default)]
pub(crate) struct Held {
    now: AtomicU64,
    pub peak: AtomicU64,
}

/// Counts until it is dropped.
pub(crate) struct Holding<'a>(&'a Held, u64);

impl Held {
    pub fn hold(&self, bytes: u64) -> Holding<'_> {
        let now = self.now.fetch_add(bytes, Relaxed) + bytes;
        self.peak.fetch_max(now, Relaxed);
        Holding(self, bytes)
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(self.1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn all_shares_together_stay_within_the_memory(
            memory in 0u64..1 << 32, tables in 0u64..1 << 31, workers in 1usize..9,
        ) {
            let share = Share::of(memory, tables, workers);
            prop_assert!((1..=workers).contains(&share.workers));
            prop_assert!((SHORTEST..=LONGEST).contains(&share.max_range));
            let all = OURSELVES + tables + share.workers as u64 * (PER_WORKER + share.max_range);
            let least = share.workers == 1 && share.max_range == SHORTEST;
            prop_assert!(all <= memory || least, "{share:?} takes {all} of {memory}");
        }
    }

    #[test]
    fn the_default_is_enough_for_full_speed() {
        let share = Share::of(DEFAULT, tables(30_000, 5_000), 8);
        assert_eq!(
            share,
            Share {
                workers: 8,
                max_range: LONGEST
            }
        );
    }
}
