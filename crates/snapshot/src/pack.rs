//! Packs: many chunks in one object.
//!
//! One object per chunk would cost more in requests than in bytes (0.5 to 1.4 ms each on the
//! server alone), so chunks are put together until about 32 MiB. Each chunk is framed by a
//! header that says what it is, and a trailer lists them all: an index can be rebuilt from the
//! packs alone. Directories go into packs of their own, so that walking a tree reads a few
//! dense objects and not a sprinkling over all of the data.

use crate::bytes::{Malformed, Put, Reader};
use crate::codec::{Codec, Decoder};
use crate::error::Error;
use crate::format::{HEADER_LEN, Header, Kind, digest, put_header, read_header};
use crate::seal::Vault;
use dumont_core::id::Digest;

/// Bytes at which a pack is closed. It can be longer by one chunk and its trailer.
pub(crate) const PACK_TARGET: usize = 32 << 20;
/// Bytes: id 32, raw 4, stored 4, codec 1, class 1, zero 2, check 4.
pub(crate) const FRAME_LEN: usize = 48;
const ENTRY_LEN: usize = 50;
const FOOTER_LEN: usize = 48;
const END_MAGIC: [u8; 8] = *b"DUMONTed";

/// What a chunk is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    Data = 0,
    Tree = 1,
}

impl Class {
    pub fn from_byte(b: u8) -> Result<Self, Malformed> {
        match b {
            0 => Ok(Self::Data),
            1 => Ok(Self::Tree),
            _ => Err(Malformed("a chunk is of no known class")),
        }
    }
}

/// One chunk in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackEntry {
    /// BLAKE3 of the raw bytes, keyed where they are sealed.
    pub id: Digest,
    /// Of the frame, bytes from the start of the pack.
    pub offset: u64,
    /// Bytes after the frame's header.
    pub stored_len: u32,
    /// Bytes once decoded.
    pub raw_len: u32,
    pub(crate) codec: Codec,
    pub(crate) class: Class,
}

impl PackEntry {
    /// Where the frame ends, bytes from the start of the pack.
    pub(crate) fn end(&self) -> u64 {
        self.offset
            .saturating_add(FRAME_LEN as u64)
            .saturating_add(self.stored_len.into())
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.bytes(&self.id.0);
        out.u64(self.offset);
        out.u32(self.stored_len);
        out.u32(self.raw_len);
        out.u8(self.codec as u8);
        out.u8(self.class as u8);
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            id: r.digest()?,
            offset: r.u64()?,
            stored_len: r.u32()?,
            raw_len: r.u32()?,
            codec: Codec::from_byte(r.u8()?)?,
            class: Class::from_byte(r.u8()?)?,
        })
    }

    /// What a sealed chunk is; authenticated with it.
    pub(crate) fn sealed_as(id: &Digest, raw_len: u32, codec: Codec, class: Class) -> [u8; 38] {
        let mut out = [0; 38];
        out[..32].copy_from_slice(&id.0);
        out[32..36].copy_from_slice(&raw_len.to_le_bytes());
        out[36] = codec as u8;
        out[37] = class as u8;
        out
    }

    fn put_frame(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.bytes(&self.id.0);
        out.u32(self.raw_len);
        out.u32(self.stored_len);
        out.u8(self.codec as u8);
        out.u8(self.class as u8);
        out.u16(0);
        let check = digest(&out[start..]);
        out.bytes(&check.0[..4]);
    }

    /// The chunk's raw bytes out of `frame` (its header and stored bytes): the header must say
    /// what the index says, and the bytes must hash to the id.
    pub(crate) fn open<'a>(&self, frame: &'a [u8], opener: &'a mut Opener) -> Result<&'a [u8], Malformed> {
        let mut expected = Vec::with_capacity(FRAME_LEN);
        self.put_frame(&mut expected);
        let (head, stored) = frame
            .split_at_checked(FRAME_LEN)
            .ok_or(Malformed("a chunk's frame ends too early"))?;
        if head != expected || stored.len() != self.stored_len as usize {
            return Err(Malformed("a chunk's header differs from the index"));
        }
        let Opener {
            vault,
            opened,
            decoder,
        } = opener;
        let what = Self::sealed_as(&self.id, self.raw_len, self.codec, self.class);
        let stored = vault.open(&what, stored, opened)?;
        let raw = decoder.decode(self.codec, stored, self.raw_len)?;
        if vault.id(raw) == self.id {
            Ok(raw)
        } else {
            Err(Malformed("its bytes do not hash to its id"))
        }
    }
}

/// Opens chunks; one per thread.
pub(crate) struct Opener {
    vault: Vault,
    opened: Vec<u8>,
    decoder: Decoder,
}

impl Opener {
    pub fn new(vault: &Vault) -> Result<Self, Error> {
        Ok(Self {
            vault: vault.clone(),
            opened: Vec::new(),
            decoder: Decoder::new()?,
        })
    }
}

/// A pack while it is filled.
pub(crate) struct PackBuilder {
    class: Class,
    buf: Vec<u8>,
    entries: Vec<PackEntry>,
}

impl PackBuilder {
    /// `buf` is an old buffer to reuse, or an empty one.
    pub fn new(class: Class, mut buf: Vec<u8>, vault: &Vault) -> Self {
        buf.clear();
        put_header(
            &mut buf,
            if class == Class::Data {
                Kind::DataPack
            } else {
                Kind::TreePack
            },
            vault,
        );
        Self {
            class,
            buf,
            entries: Vec::new(),
        }
    }

    /// `stored` is sealed already where the pack is.
    pub fn add(&mut self, id: Digest, raw_len: u32, codec: Codec, stored: &[u8]) {
        let stored_len = u32::try_from(stored.len()).unwrap_or(u32::MAX);
        let offset = self.buf.len() as u64;
        let entry = PackEntry {
            id,
            offset,
            stored_len,
            raw_len,
            codec,
            class: self.class,
        };
        entry.put_frame(&mut self.buf);
        self.buf.bytes(stored);
        self.entries.push(entry);
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether it should be closed before a chunk of `more` bytes is added.
    pub fn full(&self, more: usize) -> bool {
        !self.is_empty() && self.buf.len() + more > PACK_TARGET
    }

    /// The object's bytes and what lies where.
    pub fn seal(mut self) -> (Vec<u8>, Vec<PackEntry>) {
        let start = self.buf.len();
        self.entries.iter().for_each(|e| e.put(&mut self.buf));
        let check = digest(&self.buf[start..]);
        self.buf
            .u32(u32::try_from(self.entries.len()).unwrap_or(u32::MAX));
        self.buf.u32(0);
        self.buf.bytes(&check.0);
        self.buf.bytes(&END_MAGIC);
        (self.buf, self.entries)
    }
}

/// The chunks of a whole pack by its own trailer, checked for shape but not opened. This is how
/// an index is rebuilt when it is lost; it needs no key.
///
/// # Errors
/// [`Error::Corrupt`] or [`Error::Version`], naming `object`.
pub fn read_pack(object: &str, bytes: &[u8]) -> Result<Vec<PackEntry>, Error> {
    Ok(read_sealed_pack(object, bytes)?.1)
}

/// Besides what its header says of the key.
pub(crate) fn read_sealed_pack(object: &str, bytes: &[u8]) -> Result<(Header, Vec<PackEntry>), Error> {
    let (header, _) = read_header(object, bytes, &[Kind::DataPack, Kind::TreePack])?;
    let entries = entries(bytes).map_err(|e| Error::corrupt(object, e))?;
    Ok((header, entries))
}

fn entries(bytes: &[u8]) -> Result<Vec<PackEntry>, Malformed> {
    let footer_at = bytes
        .len()
        .checked_sub(FOOTER_LEN)
        .ok_or(Malformed("it ends too early"))?;
    let mut r = Reader::new(&bytes[footer_at..]);
    let (count, zero, check, magic) = (r.u32()? as usize, r.u32()?, r.digest()?, r.take(8)?);
    let start = count
        .checked_mul(ENTRY_LEN)
        .and_then(|n| footer_at.checked_sub(n))
        .filter(|s| *s >= HEADER_LEN)
        .ok_or(Malformed("its trailer is longer than itself"))?;
    let trailer = &bytes[start..footer_at];
    if magic != END_MAGIC || zero != 0 || digest(trailer) != check {
        return Err(Malformed("its trailer is damaged"));
    }
    let mut r = Reader::new(trailer);
    let mut at = HEADER_LEN as u64;
    let entries: Result<Vec<_>, _> = (0..count)
        .map(|_| {
            let e = PackEntry::read(&mut r)?;
            let gapless = e.offset == at;
            at = e.end();
            if gapless {
                Ok(e)
            } else {
                Err(Malformed("its chunks do not follow each other"))
            }
        })
        .collect();
    if at == start as u64 {
        entries
    } else {
        Err(Malformed("its chunks do not fill it"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> (Vec<u8>, Vec<PackEntry>) {
        let mut b = PackBuilder::new(Class::Data, Vec::new(), &Vault::default());
        for raw in [b"one".as_slice(), b"two two", b""] {
            b.add(digest(raw), raw.len() as u32, Codec::Raw, raw);
        }
        b.seal()
    }

    #[test]
    fn the_trailer_tells_what_the_index_knows() {
        let (bytes, entries) = sample();
        assert_eq!(read_pack("p", &bytes).unwrap(), entries);
        let e = entries[1];
        let mut d = Opener::new(&Vault::default()).unwrap();
        assert_eq!(
            e.open(&bytes[e.offset as usize..e.end() as usize], &mut d)
                .unwrap(),
            b"two two"
        );
    }

    #[test]
    fn a_newer_version_is_refused_with_its_number() {
        let (mut bytes, _) = sample();
        bytes[8] = 9;
        assert!(matches!(
            read_pack("p", &bytes),
            Err(Error::Version { found: 9, .. })
        ));
    }

    /// Each of them: a sample of the bits once missed the one that says "sealed".
    #[test]
    fn any_bit_flip_is_found() {
        let (whole, entries) = sample();
        let vault = Vault::default();
        let mut d = Opener::new(&vault).unwrap();
        for (at, bit) in (0..whole.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            // An older version is read as one.
            if at == 8 && bit < 2 {
                continue;
            }
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            let opened = entries.iter().all(|e| {
                e.open(&bytes[e.offset as usize..e.end() as usize], &mut d)
                    .is_ok()
            });
            let read = read_sealed_pack("p", &bytes);
            let read = read.is_ok_and(|(header, _)| header.fits("p", &vault).is_ok());
            assert!(!(opened && read), "byte {at}, bit {bit}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut whole = sample().0[..16].to_vec();
            whole.extend(&bytes);
            _ = read_pack("p", &bytes);
            _ = read_pack("p", &whole);
        }
    }
}
