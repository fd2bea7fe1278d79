//! The header that every pack, index and cache begins with.
//!
//! An object says what it is before anything else of it is believed: magic, version, kind and
//! flags. One flag says that the object is sealed; a reader that does not know a flag refuses
//! the object instead of misreading it.

use crate::bytes::{Put, Reader};
use crate::error::Error;
use crate::seal::Vault;
use dumont_core::id::Digest;

/// The version written; this and all before are read. 2 added the codecs of byte planes, which a
/// reader of version 1 would have to call damage; 3 added sealed objects.
pub const FORMAT_VERSION: u16 = 3;

const MAGIC: [u8; 8] = *b"DUMONTsn";
pub(crate) const HEADER_LEN: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    DataPack = 1,
    TreePack = 2,
    Index = 3,
    Cache = 4,
    Metadata = 5,
}

const SEALED: u8 = 1;

pub(crate) fn put_header(out: &mut Vec<u8>, kind: Kind, vault: &Vault) {
    out.bytes(&MAGIC);
    out.u16(FORMAT_VERSION);
    out.u8(kind as u8);
    out.u8(if vault.mark().is_some() { SEALED } else { 0 });
    out.u32(vault.mark().unwrap_or(0));
}

/// What a header says of its object.
pub(crate) struct Header {
    /// The mark of the key that it is sealed with.
    sealed: Option<u32>,
}

impl Header {
    /// Whether the object can be opened with what `vault` has.
    pub fn fits(&self, object: &str, vault: &Vault) -> Result<(), Error> {
        let problem = match (self.sealed, vault.mark()) {
            (a, b) if a == b => return Ok(()),
            (Some(_), None) => "is encrypted, and no key was given",
            (None, Some(_)) => "is not encrypted, though a key was given",
            _ => "is encrypted with another key than the one given",
        };
        Err(Error::Key {
            object: object.into(),
            problem,
        })
    }
}

/// The reader after a header of one of `kinds`; `object` names it in errors.
pub(crate) fn read_header<'a>(
    object: &str,
    bytes: &'a [u8],
    kinds: &[Kind],
) -> Result<(Header, Reader<'a>), Error> {
    let mut r = Reader::new(bytes);
    let mut fields = || Ok((r.take(8)?, r.u16()?, r.u8()?, r.u8()?, r.u32()?));
    let (magic, version, kind, flags, mark) =
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
    let sealed = match (flags, mark) {
        (0, 0) => Some(None),
        (SEALED, mark) if version >= 3 => Some(Some(mark)),
        _ => None,
    };
    match sealed.filter(|_| version != 0 && kinds.iter().any(|k| *k as u8 == kind)) {
        Some(sealed) => Ok((Header { sealed }, r)),
        None => Err(Error::corrupt(object, "its header is not one of its kind")),
    }
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
