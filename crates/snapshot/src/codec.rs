//! How the bytes of a chunk are stored: whatever pays.
//!
//! Weights are almost noise and code shrinks to a third, so the choice is made per chunk, by
//! looking at a small sample first: a full try on data that does not compress costs more CPU
//! than the hash and the network together. The name of a file is never asked.
//!
//! Floats are noise in their mantissas and nearly constant in their exponents. Mixed together
//! neither matches nor entropy coding finds that; taken apart by the position of a byte in its
//! number ([`planes`]) the exponents alone shrink to a third. The same on code would triple its
//! size, so a split must be foreseen to beat what zstd really makes of the same sample.

mod planes;

use crate::bytes::Malformed;
use crate::chunk::MAX_CHUNK;
use crate::error::Error;
use planes::{Entropies, Splitter};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::CParameter;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Codec {
    Raw = 0,
    Zstd = 1,
    /// Byte planes of 16-bit numbers.
    Planes16 = 2,
    /// Byte planes of 32-bit numbers.
    Planes32 = 3,
}

impl Codec {
    pub fn from_byte(b: u8) -> Result<Self, Malformed> {
        match b {
            0 => Ok(Self::Raw),
            1 => Ok(Self::Zstd),
            2 => Ok(Self::Planes16),
            3 => Ok(Self::Planes32),
            _ => Err(Malformed(
                "it is stored by a codec that this program does not know",
            )),
        }
    }

    /// Bytes of one number, where the codec takes them apart.
    fn width(self) -> Option<usize> {
        match self {
            Self::Raw | Self::Zstd => None,
            Self::Planes16 => Some(2),
            Self::Planes32 => Some(4),
        }
    }
}

const FAST: i32 = 1;
const GOOD: i32 = 3;
/// Where there is little to send, and so time: a tenth less of text and code than by `GOOD`, at 30
/// to 50 MB/s.
const HARD: i32 = 11;
/// Logarithms of its tables; those that the level itself brings take 24 MB, and save half a percent.
const HARD_TABLES: u32 = 18;
/// Up to here trying is as cheap as sampling.
const TRY_WHOLE: usize = 64 << 10;
/// A multiple of every width.
const SAMPLE: usize = 16 << 10;
const SAMPLES: usize = 3;
/// Below this the tables of the planes cost what they save.
const LEAST_SPLIT: usize = 4 << 10;

/// Stored must be at most 31/32 of raw, else decoding it again is not worth it.
fn pays(raw: usize, stored: usize) -> bool {
    stored <= raw - raw / 32
}

fn zstd_error(e: std::io::Error) -> Error {
    Error::internal(format_args!("zstd: {e}"))
}

/// What the sample of a chunk promises.
enum Foreseen {
    Raw,
    /// The sample was all of it: this many bytes lie in `out`.
    Done(usize),
    Zstd(i32),
    Planes(Codec, Entropies),
}

/// Bytes that may still be compressed harder, by all encoders of a snapshot together.
#[derive(Default)]
pub(crate) struct Budget(AtomicU64);

impl Budget {
    pub fn of(bytes: u64) -> Self {
        Self(AtomicU64::new(bytes))
    }

    fn take(&self, bytes: usize) -> bool {
        let less = |left: u64| left.checked_sub(bytes as u64);
        self.0.fetch_update(Relaxed, Relaxed, less).is_ok()
    }
}

/// One per thread; its contexts and buffers are reused.
pub(crate) struct Encoder<'a> {
    budget: &'a Budget,
    hard: Compressor<'static>,
    fast: Compressor<'static>,
    good: Compressor<'static>,
    splitter: Splitter,
    out: Vec<u8>,
    split: Vec<u8>,
}

impl<'b> Encoder<'b> {
    pub fn new(budget: &'b Budget) -> Result<Self, Error> {
        let new = |level| Compressor::new(level).map_err(zstd_error);
        let mut hard = new(HARD)?;
        for table in [
            CParameter::HashLog(HARD_TABLES),
            CParameter::ChainLog(HARD_TABLES),
        ] {
            hard.set_parameter(table).map_err(zstd_error)?;
        }
        Ok(Self {
            budget,
            hard,
            fast: new(FAST)?,
            good: new(GOOD)?,
            splitter: Splitter::new().map_err(zstd_error)?,
            out: Vec::new(),
            split: Vec::new(),
        })
    }

    /// What to store for `raw`.
    pub fn encode<'a>(&'a mut self, raw: &'a [u8]) -> Result<(Codec, &'a [u8]), Error> {
        match self.foresee(raw)? {
            Foreseen::Raw => Ok((Codec::Raw, raw)),
            Foreseen::Done(n) => Ok(self.zstd_if_it_pays(raw, n)),
            Foreseen::Zstd(level) => {
                let n = self.compress(level, raw)?;
                Ok(self.zstd_if_it_pays(raw, n))
            }
            Foreseen::Planes(codec, entropies) => self.encode_planes(raw, codec, &entropies),
        }
    }

    fn zstd_if_it_pays<'a>(&'a self, raw: &'a [u8], n: usize) -> (Codec, &'a [u8]) {
        if pays(raw.len(), n) {
            (Codec::Zstd, &self.out)
        } else {
            (Codec::Raw, raw)
        }
    }

    fn encode_planes<'a>(
        &'a mut self,
        raw: &'a [u8],
        codec: Codec,
        entropies: &Entropies,
    ) -> Result<(Codec, &'a [u8]), Error> {
        let width = codec.width().unwrap_or(1);
        self.split.clear();
        self.splitter
            .split(raw, width, entropies, &mut self.split)
            .map_err(zstd_error)?;
        let n = self.split.len();
        // A chunk may be of two kinds, and the sample have met the smaller part of it.
        let promised = entropies.split_size(raw.len(), width);
        if n > promised + promised / 20 {
            let zstd = self.compress(FAST, raw)?;
            if zstd < n && pays(raw.len(), zstd) {
                return Ok((Codec::Zstd, &self.out));
            }
        }
        Ok(if pays(raw.len(), n) {
            (codec, &self.split)
        } else {
            (Codec::Raw, raw)
        })
    }

    /// Three samples (of what is short, all): what zstd makes of them, and what their planes
    /// would come to.
    fn foresee(&mut self, raw: &[u8]) -> Result<Foreseen, Error> {
        if raw.len() < LEAST_SPLIT {
            return self.compress(self.good_for(raw), raw).map(Foreseen::Done);
        }
        let whole = raw.len() <= TRY_WHOLE;
        let level = if whole { self.good_for(raw) } else { FAST };
        let (mut entropies, mut stored, mut seen) = (Entropies::default(), 0, 0);
        for i in 0..if whole { 1 } else { SAMPLES } {
            // In step with the chunk's numbers, or the planes would be mixed.
            let at = (raw.len() - SAMPLE.min(raw.len())) / (SAMPLES - 1) * i / 4 * 4;
            let sample = if whole { raw } else { &raw[at..at + SAMPLE] };
            entropies.add(sample);
            stored += self.compress(level, sample)?;
            seen += sample.len();
        }
        entropies.finish();
        let (codec, split) = [(Codec::Planes16, 2), (Codec::Planes32, 4)]
            .map(|(codec, width)| (codec, entropies.split_size(seen, width)))
            .into_iter()
            // Wider planes must be better, for 16-bit numbers look the same through them.
            .reduce(|a, b| if b.1 + b.1 / 100 < a.1 { b } else { a })
            .unwrap_or((Codec::Raw, seen));
        if split + split / 32 < stored && pays(seen, split) {
            return Ok(Foreseen::Planes(codec, entropies));
        }
        Ok(match stored * 16 / seen {
            _ if whole => Foreseen::Done(stored),
            15.. => Foreseen::Raw,
            8..15 if !self.budget.take(raw.len()) => Foreseen::Zstd(FAST),
            8..15 => Foreseen::Zstd(HARD),
            _ => Foreseen::Zstd(self.good_for(raw)),
        })
    }

    /// The level for what is worth a good one.
    fn good_for(&self, raw: &[u8]) -> i32 {
        if self.budget.take(raw.len()) { HARD } else { GOOD }
    }

    fn compress(&mut self, level: i32, raw: &[u8]) -> Result<usize, Error> {
        self.out.clear();
        self.out.reserve(zstd::zstd_safe::compress_bound(raw.len()));
        let with = match level {
            FAST => &mut self.fast,
            GOOD => &mut self.good,
            _ => &mut self.hard,
        };
        with.compress_to_buffer(raw, &mut self.out).map_err(zstd_error)
    }
}

/// One per thread. Its buffers grow to the longest chunk and are never cleared: what is decoded
/// covers what is given out.
pub(crate) struct Decoder {
    zstd: Decompressor<'static>,
    out: Vec<u8>,
    planes: Vec<u8>,
}

impl Decoder {
    pub fn new() -> Result<Self, Error> {
        Ok(Self {
            zstd: Decompressor::new().map_err(zstd_error)?,
            out: Vec::new(),
            planes: Vec::new(),
        })
    }

    /// The raw bytes, exactly `raw_len` of them (which the caller has bounded).
    pub fn decode<'a>(
        &'a mut self,
        codec: Codec,
        stored: &'a [u8],
        raw_len: u32,
    ) -> Result<&'a [u8], Malformed> {
        let raw_len = raw_len as usize;
        if raw_len > MAX_CHUNK {
            return Err(Malformed("a chunk is longer than chunks can be"));
        }
        let raw = if codec == Codec::Raw {
            stored
        } else {
            let out = at_least(&mut self.out, raw_len);
            match codec.width() {
                Some(width) => {
                    let planes = at_least(&mut self.planes, raw_len);
                    planes::join(stored, width, &mut self.zstd, planes, out)?;
                    out
                }
                None => {
                    let n = self
                        .zstd
                        .decompress_to_buffer(stored, out)
                        .map_err(|_| Malformed("its compressed bytes do not decode"))?;
                    &out[..n]
                }
            }
        };
        if raw.len() == raw_len {
            Ok(raw)
        } else {
            Err(Malformed("its bytes decode to another length"))
        }
    }
}

fn at_least(buf: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buf.len() < len {
        buf.resize(len, 0);
    }
    &mut buf[..len]
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
