//! How the bytes of a chunk are stored: whatever pays.
//!
//! Weights are almost noise and code shrinks to a third, so the choice is made per chunk, by
//! compressing a small sample first: a full try on data that does not compress costs more CPU
//! than the hash and the network together. The name of a file is never asked.
//!
//! Codec numbers 2 and up are kept for float planes (exponents compressed, mantissas raw).

use crate::bytes::Malformed;
use crate::chunk::MAX_CHUNK;
use crate::error::Error;
use zstd::bulk::{Compressor, Decompressor};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Codec {
    Raw = 0,
    Zstd = 1,
}

impl Codec {
    pub fn from_byte(b: u8) -> Result<Self, Malformed> {
        match b {
            0 => Ok(Self::Raw),
            1 => Ok(Self::Zstd),
            _ => Err(Malformed(
                "it is stored by a codec that this program does not know",
            )),
        }
    }
}

const FAST: i32 = 1;
const GOOD: i32 = 3;
/// Up to here trying is as cheap as sampling.
const TRY_WHOLE: usize = 64 << 10;
const SAMPLE: usize = 16 << 10;
/// Stored must be at most 31/32 of raw, else decoding it again is not worth it.
fn pays(raw: usize, stored: usize) -> bool {
    stored <= raw - raw / 32
}

/// One per thread; its contexts and buffer are reused.
pub(crate) struct Encoder {
    fast: Compressor<'static>,
    good: Compressor<'static>,
    out: Vec<u8>,
}

impl Encoder {
    pub fn new() -> Result<Self, Error> {
        let new = |level| Compressor::new(level).map_err(|e| Error::internal(format_args!("zstd: {e}")));
        Ok(Self {
            fast: new(FAST)?,
            good: new(GOOD)?,
            out: Vec::new(),
        })
    }

    /// What to store for `raw`.
    pub fn encode<'a>(&'a mut self, raw: &'a [u8]) -> Result<(Codec, &'a [u8]), Error> {
        let level = if raw.len() <= TRY_WHOLE {
            Some(GOOD)
        } else {
            self.sample(raw)?
        };
        let Some(level) = level else {
            return Ok((Codec::Raw, raw));
        };
        let n = self.compress(level, raw)?;
        if n > 0 && pays(raw.len(), n) {
            Ok((Codec::Zstd, &self.out))
        } else {
            Ok((Codec::Raw, raw))
        }
    }

    /// Three samples; `None` where they hardly shrink, the stronger level where they halve.
    fn sample(&mut self, raw: &[u8]) -> Result<Option<i32>, Error> {
        let mut stored = 0;
        for at in [0, raw.len() / 2, raw.len() - SAMPLE] {
            stored += self.compress(FAST, &raw[at..at + SAMPLE])?;
        }
        Ok(match stored * 16 / (3 * SAMPLE) {
            16.. => None,
            15 => None,
            8..15 => Some(FAST),
            _ => Some(GOOD),
        })
    }

    fn compress(&mut self, level: i32, raw: &[u8]) -> Result<usize, Error> {
        self.out.clear();
        self.out.reserve(zstd::zstd_safe::compress_bound(raw.len()));
        let with = if level == FAST {
            &mut self.fast
        } else {
            &mut self.good
        };
        with.compress_to_buffer(raw, &mut self.out)
            .map_err(|e| Error::internal(format_args!("zstd: {e}")))
    }
}

/// One per thread.
pub(crate) struct Decoder {
    zstd: Decompressor<'static>,
    out: Vec<u8>,
}

impl Decoder {
    pub fn new() -> Result<Self, Error> {
        let zstd = Decompressor::new().map_err(|e| Error::internal(format_args!("zstd: {e}")))?;
        Ok(Self {
            zstd,
            out: Vec::new(),
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
        let raw = match codec {
            Codec::Raw => stored,
            Codec::Zstd => {
                self.out.clear();
                self.out.reserve(raw_len);
                self.zstd
                    .decompress_to_buffer(stored, &mut self.out)
                    .map_err(|_| Malformed("its compressed bytes do not decode"))?;
                &self.out
            }
        };
        if raw.len() == raw_len {
            Ok(raw)
        } else {
            Err(Malformed("its bytes decode to another length"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(raw: &[u8]) -> (Codec, usize) {
        let mut encoder = Encoder::new().unwrap();
        let (codec, stored) = encoder.encode(raw).unwrap();
        let mut decoder = Decoder::new().unwrap();
        assert_eq!(decoder.decode(codec, stored, raw.len() as u32).unwrap(), raw);
        (codec, stored.len())
    }

    #[test]
    fn compresses_what_pays_and_nothing_else() {
        let mut noise = vec![0; 1 << 20];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        assert_eq!(round_trip(&noise), (Codec::Raw, 1 << 20));
        let text = "fn main() { println!(\"hello\"); }\n".repeat(40_000).into_bytes();
        let (codec, n) = round_trip(&text);
        assert!(codec == Codec::Zstd && n < text.len() / 20, "{n}");
        assert_eq!(round_trip(b"x").0, Codec::Raw);
    }

    #[test]
    fn refuses_what_does_not_decode() {
        let mut encoder = Encoder::new().unwrap();
        let raw = vec![7; 100_000];
        let (codec, stored) = encoder.encode(&raw).unwrap();
        let mut d = Decoder::new().unwrap();
        assert!(d.decode(codec, stored, 99_999).is_err());
        assert!(d.decode(codec, stored, 100_001).is_err());
        assert!(d.decode(codec, &stored[1..], 100_000).is_err());
        assert!(d.decode(codec, stored, u32::MAX).is_err());
        assert!(Codec::from_byte(9).is_err());
    }
}
