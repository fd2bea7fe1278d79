//! Tree objects of any length as chunks of bounded length.
//!
//! A directory of a million names does not fit into one chunk. Its encoding is then cut like a
//! file, and a list of the pieces stands for it; a list can be cut again. So a reference into
//! the tree is always one id, the root's in the snapshot's head included.

use crate::bytes::Malformed;
use crate::chunk::{TREE_MAX, cut_tree};
use crate::error::Error;
use crate::seal::Vault;
use crate::tree::{decode_pieces, encode_pieces};
use dumont_core::id::Digest;

/// Bytes; no directory or list is longer. About two million names.
pub(crate) const MAX_BLOB: u64 = 256 << 20;
/// How often a list of pieces may be cut again: far beyond `MAX_BLOB`.
const MAX_DEPTH: usize = 4;

/// Keeps one chunk under its id.
pub(crate) type Keep<'a> = &'a mut dyn FnMut(Digest, &[u8]) -> Result<(), Error>;
/// Reads chunks, in the order asked for.
pub(crate) type Fetch<'a> = &'a mut dyn FnMut(&[Digest]) -> Result<Vec<Vec<u8>>, Error>;

/// Why objects could not be put together.
pub(crate) enum Broken {
    /// The object at this place among those asked for.
    Object(usize, Malformed),
    Fetch(Error),
}

/// Stores `bytes` through `put` (one chunk at a time) and returns the id that stands for them.
pub(crate) fn store(bytes: &[u8], vault: &Vault, put: Keep<'_>) -> Result<Digest, Error> {
    if bytes.len() <= TREE_MAX {
        let id = vault.id(bytes);
        put(id, bytes)?;
        return Ok(id);
    }
    let mut pieces = Vec::new();
    for piece in cut_tree(bytes, vault.cuts()) {
        let id = vault.id(piece);
        put(id, piece)?;
        pieces.push((id, u32::try_from(piece.len()).unwrap_or(u32::MAX)));
    }
    store(&encode_pieces(&pieces), vault, put)
}

/// Puts the tree objects `firsts` together, each given as the chunk that its id names; `fetch`
/// reads more chunks, in the order asked for.
pub(crate) fn assemble(firsts: Vec<Vec<u8>>, fetch: Fetch<'_>) -> Result<Vec<Vec<u8>>, Broken> {
    let mut out = firsts;
    for _ in 0..MAX_DEPTH {
        let mut open = Vec::new();
        for (i, bytes) in out.iter().enumerate() {
            if let Some(pieces) = decode_pieces(bytes).map_err(|e| Broken::Object(i, e))? {
                let total: u64 = pieces.iter().map(|p| u64::from(p.1)).sum();
                if total > MAX_BLOB {
                    return Err(Broken::Object(
                        i,
                        Malformed("it is longer than a directory can be"),
                    ));
                }
                open.push((i, pieces));
            }
        }
        if open.is_empty() {
            return Ok(out);
        }
        for (i, pieces) in open {
            let ids: Vec<_> = pieces.iter().map(|p| p.0).collect();
            let chunks = fetch(&ids).map_err(Broken::Fetch)?;
            if chunks.iter().zip(&pieces).any(|(c, p)| c.len() != p.1 as usize) {
                return Err(Broken::Object(
                    i,
                    Malformed("a piece is of another length than its list says"),
                ));
            }
            out[i] = chunks.concat();
        }
    }
    Err(Broken::Object(0, Malformed("it is cut into pieces too often")))
}
