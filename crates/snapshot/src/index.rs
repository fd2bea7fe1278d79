//! Indexes: which pack holds a chunk, and where.
//!
//! Each snapshot writes one for its new packs only. A restore is handed all of them, oldest
//! first, and the first definition of a chunk wins: so a machine that turned hostile can add
//! chunks, but cannot redefine one that an earlier snapshot needs. Where the first does not hold,
//! the next is tried: so it cannot spoil in advance what a later snapshot brings.

use crate::bytes::{Malformed, Put, Reader};
use crate::chunk::MAX_CHUNK;
use crate::error::Error;
use crate::format::{HEADER_LEN, Kind, digest, put_header, read_header};
use crate::numbers::Numbers;
use crate::pack::PackEntry;
use crate::seal::Vault;
use dumont_core::id::Digest;
use dumont_core::snapshot::ObjectRef;
use std::collections::HashMap;
use std::io::Read;

const ENTRY_LEN: usize = 54;
/// Digests do not compress, so no honest index shrinks nearly this much. It bounds what a
/// hostile one can make us allocate.
const MAX_RATIO: u64 = 64;

/// One index object, decoded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Index {
    /// Without store versions: the controller's own record has those.
    pub packs: Vec<ObjectRef>,
    /// Each with its place in `packs`, in the order of the packs.
    pub entries: Vec<(u32, PackEntry)>,
}

impl Index {
    pub(crate) fn payload(&self) -> Vec<u8> {
        payload(&self.packs, self.entries.len(), self.entries.iter().copied())
    }

    /// The object's bytes, not sealed.
    ///
    /// # Errors
    /// [`Error::Internal`] if compressing or sealing fails.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        self.encode_with(&Vault::default())
    }

    pub(crate) fn encode_with(&self, vault: &Vault) -> Result<Vec<u8>, Error> {
        encode(self.payload(), vault)
    }

    /// Reads an index that is not sealed; every place it names lies inside its pack.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Key`] or [`Error::Version`], naming `object`.
    pub fn decode(object: &str, bytes: &[u8]) -> Result<Self, Error> {
        Self::decode_with(object, bytes, &Vault::default())
    }

    pub(crate) fn decode_with(object: &str, bytes: &[u8], vault: &Vault) -> Result<Self, Error> {
        let (header, mut r) = read_header(object, bytes, &[Kind::Index])?;
        header.fits(object, vault)?;
        let fields = r.u64().and_then(|len| Ok((len, r.digest()?)));
        let (raw_len, check) = fields.map_err(|e| Error::corrupt(object, e))?;
        let (what, stored) = bytes.split_at(HEADER_LEN + 40);
        let mut opened = Vec::new();
        let stored = vault
            .open(what, stored, &mut opened)
            .map_err(|e| Error::corrupt(object, e))?;
        if raw_len > (stored.len() as u64).saturating_mul(MAX_RATIO) {
            return Err(Error::corrupt(
                object,
                "it claims to decode to more than an index can",
            ));
        }
        let mut raw = Vec::new();
        zstd::stream::read::Decoder::new(stored)
            .and_then(|d| d.take(raw_len.saturating_add(1)).read_to_end(&mut raw))
            .map_err(|_| Error::corrupt(object, "its compressed bytes do not decode"))?;
        if raw.len() as u64 != raw_len || digest(&raw) != check {
            return Err(Error::corrupt(object, "its checksum does not match"));
        }
        Self::parse(&raw).map_err(|e| Error::corrupt(object, e))
    }

    pub(crate) fn parse(raw: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(raw);
        let packs: Vec<_> = (0..r.count(42)?)
            .map(|_| {
                let key = std::str::from_utf8(r.short()?).map_err(|_| Malformed("a key is not UTF-8"))?;
                Ok(ObjectRef {
                    key: key.into(),
                    size: r.u64()?,
                    digest: r.digest()?,
                    version: None,
                })
            })
            .collect::<Result<_, _>>()?;
        let entries = (0..r.count(ENTRY_LEN)?)
            .map(|_| {
                let (pack, e) = (r.u32()?, PackEntry::read(&mut r)?);
                let size = packs
                    .get(pack as usize)
                    .ok_or(Malformed("a chunk lies in no pack"))?
                    .size;
                if e.end() > size || e.offset < HEADER_LEN as u64 {
                    return Err(Malformed("a chunk lies outside its pack"));
                }
                // What does not shrink is kept raw; the margin is for what sealing adds.
                if e.raw_len as usize > MAX_CHUNK || e.stored_len > e.raw_len.saturating_add(1024) {
                    return Err(Malformed("a chunk is longer than chunks can be"));
                }
                Ok((pack, e))
            })
            .collect::<Result<_, _>>()?;
        r.end()?;
        Ok(Self { packs, entries })
    }
}

/// What an index says, before it is compressed; the `count` entries are as [`Index::entries`].
pub(crate) fn payload(
    packs: &[ObjectRef],
    count: usize,
    entries: impl Iterator<Item = (u32, PackEntry)>,
) -> Vec<u8> {
    let mut raw = Vec::with_capacity(packs.len() * 128 + count * ENTRY_LEN + 8);
    raw.u32(u32::try_from(packs.len()).unwrap_or(u32::MAX));
    for p in packs {
        raw.short(p.key.as_bytes());
        raw.u64(p.size);
        raw.bytes(&p.digest.0);
    }
    raw.u32(u32::try_from(count).unwrap_or(u32::MAX));
    for (pack, e) in entries {
        raw.u32(pack);
        e.put(&mut raw);
    }
    raw
}

/// The object's bytes.
pub(crate) fn encode(raw: Vec<u8>, vault: &Vault) -> Result<Vec<u8>, Error> {
    let stored = zstd::bulk::compress(&raw, 1).map_err(|e| Error::internal(format_args!("zstd: {e}")))?;
    let (raw_len, check) = (raw.len() as u64, digest(&raw));
    // As long as what it became, for a large tree.
    drop(raw);
    let mut out = Vec::with_capacity(stored.len() + 128);
    put_header(&mut out, Kind::Index, vault);
    out.u64(raw_len);
    out.bytes(&check.0);
    let mut sealed = Vec::new();
    let stored = vault.seal(&out, &stored, &mut sealed)?;
    out.bytes(stored);
    Ok(out)
}

/// Where a chunk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkPlace {
    /// Number of its pack in the whole set of indexes.
    pub pack: u32,
    pub entry: PackEntry,
}

/// All indexes of a snapshot as one table.
#[derive(Default)]
pub(crate) struct ChunkMap {
    pub packs: Vec<ObjectRef>,
    /// In the order in which they were met.
    places: Vec<ChunkPlace>,
    /// Of the first definition of every chunk, by number in `places`.
    firsts: Numbers,
    /// Later definitions of chunks that were defined before, oldest first, one per index.
    again: HashMap<Digest, Vec<u32>>,
}

impl ChunkMap {
    /// To be called oldest first.
    pub fn add(&mut self, index: Index) {
        let base = u32::try_from(self.packs.len()).unwrap_or(u32::MAX);
        self.packs.extend(index.packs);
        let (places, more) = (&mut self.places, index.entries.len());
        places.reserve_exact(more);
        self.firsts.reserve(more, |n| &places[n as usize].entry.id);
        for (pack, entry) in index.entries {
            self.note(pack, entry, base);
        }
    }

    /// All of a younger index.
    pub fn extend(&mut self, one: Self) {
        let base = u32::try_from(self.packs.len()).unwrap_or(u32::MAX);
        self.packs.extend(one.packs);
        for place in one.places {
            self.note(place.pack, place.entry, base);
        }
    }

    fn note(&mut self, pack: u32, entry: PackEntry, base: u32) {
        let place = ChunkPlace {
            pack: base.saturating_add(pack),
            entry,
        };
        let (places, number) = (&self.places, self.places.len() as u32);
        let id_of = |n: u32| &places[n as usize].entry.id;
        if let Some(first) = self.firsts.insert(&entry.id, number, id_of) {
            if self.place(first).pack >= base {
                return;
            }
            let again = self.again.entry(entry.id).or_default();
            if again
                .last()
                .is_some_and(|last| places[*last as usize].pack >= base)
            {
                return;
            }
            again.push(number);
        }
        self.places.push(place);
    }

    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// The first definition.
    pub fn get(&self, id: &Digest) -> Option<&ChunkPlace> {
        self.numbers(id).next().map(|n| self.place(n))
    }

    /// Everywhere it is said to lie, oldest first. The first is the one to use; a machine that
    /// turned hostile may have claimed it in advance over other bytes, and then another holds.
    pub fn places(&self, id: &Digest) -> impl Iterator<Item = &ChunkPlace> {
        self.numbers(id).map(|n| self.place(n))
    }

    /// The same as numbers, for those who keep many.
    pub fn numbers(&self, id: &Digest) -> impl Iterator<Item = u32> {
        let first = self.firsts.find(id, |n| &self.place(n).entry.id);
        let again = self.again.get(id).filter(|_| first.is_some());
        first.into_iter().chain(again.into_iter().flatten().copied())
    }

    pub fn place(&self, number: u32) -> &ChunkPlace {
        &self.places[number as usize]
    }

    pub fn pack(&self, place: &ChunkPlace) -> Result<&ObjectRef, Error> {
        self.packs
            .get(place.pack as usize)
            .ok_or_else(|| Error::internal("a chunk lies in no pack"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Codec;
    use crate::pack::Class;
    use proptest::prelude::*;

    fn sample(offset: u64) -> Index {
        let object = |k: &str| ObjectRef {
            key: k.into(),
            size: 1000,
            digest: digest(k.as_bytes()),
            version: None,
        };
        let entry = PackEntry {
            id: digest(b"x"),
            offset,
            stored_len: 100,
            raw_len: 200,
            codec: Codec::Zstd,
            class: Class::Data,
        };
        Index {
            packs: vec![object("a"), object("b")],
            entries: vec![(1, entry)],
        }
    }

    #[test]
    fn round_trips_and_checks_bounds() {
        let bytes = sample(16).encode().unwrap();
        assert_eq!(Index::decode("i", &bytes).unwrap(), sample(16));
        let beyond = sample(900).encode().unwrap();
        assert!(matches!(Index::decode("i", &beyond), Err(Error::Corrupt { object, .. }) if object == "i"));
    }

    #[test]
    fn the_first_definition_wins() {
        let mut map = ChunkMap::default();
        map.add(sample(16));
        map.add(sample(500));
        let place = map.get(&digest(b"x")).unwrap();
        assert_eq!((place.pack, place.entry.offset), (1, 16));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn damage_is_found_and_never_panics(at in 0usize..10_000, byte in any::<u8>(), cut in 0usize..10_000) {
            let good = sample(16).encode().unwrap();
            let mut bytes = good.clone();
            let at = at % bytes.len();
            bytes[at] = byte;
            if bytes != good {
                prop_assert!(Index::decode("i", &bytes).is_err());
            }
            prop_assert!(Index::decode("i", &good[..cut % good.len()]).is_err());
        }

        #[test]
        fn random_payloads_never_panic(raw in prop::collection::vec(any::<u8>(), 0..400)) {
            _ = Index::parse(&raw);
        }
    }
}
