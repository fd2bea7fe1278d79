//! Where files are cut.
//!
//! Content-defined (FastCDC, 2020 variant), so that bytes inserted near the front of a file
//! move the cuts with them. At either end of a change a chunk goes along that is mostly old:
//! with 1 MiB to aim at, a checkpoint's edits sent 29.0 MB, with half of it 21.0 (W3 in
//! docs/measurements.md), while each chunk costs an index entry and a hash-table probe. No cut is looked for in the first
//! 256 KiB, a third of all bytes. A file is cut as a whole; only a hole ends a chunk early.
//! These numbers decide what deduplicates against what: changing them costs every workspace
//! one full upload.

use crate::error::Error;
use std::os::fd::AsFd;

/// Bytes; smaller files are one chunk.
pub const MIN_CHUNK: usize = 256 << 10;
/// Bytes, aimed at.
pub const AVG_CHUNK: usize = 512 << 10;
/// Bytes; readers refuse longer ones.
pub const MAX_CHUNK: usize = 4 << 20;

/// Chunks of trees: directories are small, and a big one should cost only the part that changed.
const TREE_MIN: usize = 64 << 10;
const TREE_AVG: usize = 256 << 10;
/// Bytes; up to here a node is one chunk.
pub(crate) const TREE_MAX: usize = 1 << 20;

/// Two of the longest chunks: a cut is always looked for in at least `MAX_CHUNK` bytes.
const WINDOW: usize = 2 * MAX_CHUNK;

/// Reused between files, so that small ones cost no allocation.
pub(crate) struct Window {
    buf: Vec<u8>,
    /// Moves the cuts.
    seed: u64,
}

impl Window {
    pub fn new(seed: u64) -> Self {
        Self {
            buf: Vec::new(),
            seed,
        }
    }

    /// Reads `len` bytes of `fd` from `offset` and gives them to `each` in chunks. Ends early
    /// where the file does; returns the bytes read.
    pub fn cut(
        &mut self,
        fd: impl AsFd,
        name: &dyn Fn() -> String,
        offset: u64,
        len: u64,
        each: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let size = usize::try_from(len).unwrap_or(usize::MAX).min(WINDOW);
        if self.buf.len() < size {
            self.buf.resize(size, 0);
        }
        let (mut start, mut end, mut read) = (0, 0, 0u64);
        loop {
            while read < len && end < size {
                let want = usize::try_from(len - read).unwrap_or(usize::MAX).min(size - end);
                let got = rustix::io::pread(&fd, &mut self.buf[end..end + want], offset + read)
                    .map_err(|e| Error::io(name(), "read", e))?;
                if got == 0 {
                    break;
                }
                end += got;
                read += got as u64;
            }
            let ended = end < size || read == len;
            while end - start >= MAX_CHUNK || (ended && start < end) {
                let n = next_cut(&self.buf[start..end], MIN_CHUNK, AVG_CHUNK, MAX_CHUNK, self.seed);
                each(&self.buf[start..start + n])?;
                start += n;
            }
            if ended {
                return Ok(read);
            }
            self.buf.copy_within(start..end, 0);
            end -= start;
            start = 0;
        }
    }
}

fn next_cut(bytes: &[u8], min: usize, avg: usize, max: usize, seed: u64) -> usize {
    if bytes.len() <= min {
        return bytes.len();
    }
    let level = fastcdc::v2020::Normalization::Level1;
    let cutter = fastcdc::v2020::FastCDC::with_level_and_seed(bytes, min, avg, max, level, seed);
    let (_, at) = cutter.cut(0, bytes.len());
    at.clamp(1, bytes.len())
}

/// The pieces of a tree object that is too long for one chunk.
pub(crate) fn cut_tree(mut bytes: &[u8], seed: u64) -> Vec<&[u8]> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let (piece, rest) = bytes.split_at(next_cut(bytes, TREE_MIN, TREE_AVG, TREE_MAX, seed));
        out.push(piece);
        bytes = rest;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn noise(n: usize, seed: u64) -> Vec<u8> {
        let mut out = vec![0; n];
        blake3::Hasher::new()
            .update(&seed.to_le_bytes())
            .finalize_xof()
            .fill(&mut out);
        out
    }

    fn cuts(data: &[u8]) -> Vec<Vec<u8>> {
        let mut f = tempfile::tempfile().unwrap();
        f.write_all(data).unwrap();
        let mut out = Vec::new();
        let n = Window::new(0)
            .cut(&f, &|| "f".into(), 0, data.len() as u64, &mut |c| {
                out.push(c.to_vec());
                Ok(())
            })
            .unwrap();
        assert_eq!(n, data.len() as u64);
        out
    }

    #[test]
    fn cuts_keep_the_bytes_and_the_bounds() {
        let data = noise(40 << 20, 1);
        let chunks = cuts(&data);
        assert_eq!(chunks.concat(), data);
        let (last, inner) = chunks.split_last().unwrap();
        assert!(inner.iter().all(|c| (MIN_CHUNK..=MAX_CHUNK).contains(&c.len())));
        assert!(
            last.len() <= MAX_CHUNK && inner.len() > 20,
            "{} chunks",
            inner.len()
        );
        // The window's edges must not show: one pass over all bytes cuts at the same places.
        let mut whole = Vec::new();
        let mut rest = &data[..];
        while !rest.is_empty() {
            let n = next_cut(rest, MIN_CHUNK, AVG_CHUNK, MAX_CHUNK, 0);
            whole.push(rest[..n].to_vec());
            rest = &rest[n..];
        }
        assert!(whole == chunks, "the window changed the cuts");
    }

    #[test]
    fn an_insertion_at_the_front_moves_the_cuts_along() {
        let data = noise(20 << 20, 2);
        let before: std::collections::HashSet<_> = cuts(&data).into_iter().collect();
        let after = cuts(&[b"inserted".as_slice(), &data].concat());
        let new = after.iter().filter(|c| !before.contains(*c)).count();
        assert!(new <= 3, "{new} of {} chunks are new", after.len());
    }

    /// What goes along at both ends of a change is what the length of the chunks decides.
    #[test]
    fn an_overwrite_costs_less_than_two_megabytes_beside_itself() {
        let before = noise(24 << 20, 3);
        let (from, to) = (10 << 20, 14 << 20);
        let after = [&before[..from], &noise(to - from, 4), &before[to..]].concat();
        let all = |data: &[u8], seed| {
            let (mut out, mut rest) = (Vec::new(), data.to_owned());
            while !rest.is_empty() {
                let n = next_cut(&rest, MIN_CHUNK, AVG_CHUNK, MAX_CHUNK, seed);
                let left = rest.split_off(n);
                out.push(std::mem::replace(&mut rest, left));
            }
            out
        };
        let beside: Vec<usize> = (0..8)
            .map(|seed| {
                let known: std::collections::HashSet<_> = all(&before, seed).into_iter().collect();
                let new = all(&after, seed).into_iter().filter(|c| !known.contains(c));
                new.map(|c| c.len()).sum::<usize>() - (to - from)
            })
            .collect();
        let mean = beside.iter().sum::<usize>() / beside.len();
        assert!(mean < 2_000_000, "{mean} bytes: {beside:?}");
    }

    #[test]
    fn a_file_shorter_than_promised_ends_there() {
        let mut f = tempfile::tempfile().unwrap();
        f.write_all(b"abc").unwrap();
        let mut out = Vec::new();
        let n = Window::new(0).cut(&f, &|| "f".into(), 1, 1 << 20, &mut |c| {
            out.extend_from_slice(c);
            Ok(())
        });
        assert_eq!((n.unwrap(), out.as_slice()), (2, b"bc".as_slice()));
    }
}
