//! The header that every pack, index and cache begins with.
//!
//! An object says what it is before anything else of it is believed: magic, version, kind and
//! flags. Flags are zero today; encryption will take one, and a reader that does not know a
//! flag refuses the object instead of misreading it.

use crate::bytes::{Put, Reader};
use crate::error::Error;
use dumont_core::id::Digest;

/// The version written; this and all before are read. 2 added the codecs of byte planes, which a
/// reader of version 1 would have to call damage.
pub const FORMAT_VERSION: u16 = 2;

const MAGIC: [u8; 8] = *b"DUMONTsn";
pub(crate) const HEADER_LEN: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    DataPack = 1,
    TreePack = 2,
    Index = 3,
    Cache = 4,
}

pub(crate) fn put_header(out: &mut Vec<u8>, kind: Kind) {
    out.bytes(&MAGIC);
    out.u16(FORMAT_VERSION);
    out.u8(kind as u8);
    out.u8(0);
    out.u32(0);
}

/// The reader after a header of one of `kinds`; `object` names it in errors.
pub(crate) fn read_header<'a>(object: &str, bytes: &'a [u8], kinds: &[Kind]) -> Result<Reader<'a>, Error> {
    let mut r = Reader::new(bytes);
    let mut fields = || Ok((r.take(8)?, r.u16()?, r.u8()?, r.u8()?, r.u32()?));
    let (magic, version, kind, flags, zero) =
        fields().map_err(|e: crate::bytes::Malformed| Error::corrupt(object, e))?;
    if magic != MAGIC {
        return Err(Error::corrupt(object, "it does not begin like an object of ours"));
    }
    if version > FORMAT_VERSION {
        return Err(Error::Version {
            object: object.into(),
            found: version,
            known: FORMAT_VERSION,
        });
    }
    if version == 0 || flags != 0 || zero != 0 || !kinds.iter().any(|k| *k as u8 == kind) {
        return Err(Error::corrupt(object, "its header is not one of its kind"));
    }
    Ok(r)
}

/// Directories and fifos beyond the number of files that a tree may have. A few nodes that name
/// each other several times make a tree of any size out of nothing; files and bytes are bounded
/// by the snapshot's head, and this bounds the rest. Snapshots keep to it, restores insist on it.
const MORE_OTHERS: u64 = 1_000_000;

/// Whether a tree with this many files (symlinks included) may have so many other entries.
pub(crate) fn plausible(files: u64, others: u64) -> bool {
    others <= files.saturating_add(MORE_OTHERS)
}

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}
