//! Sealing what is stored, with the key of one workspace.
//!
//! A store learns from an unencrypted snapshot all of its files. With a key it learns how many
//! chunks there are, how long they are and which snapshots share them, and nothing of what is in
//! them: chunks, directories, indexes and `metadata.json` are sealed, and ids are keyed, so that
//! neither equal chunks of two workspaces nor a known file can be told by its ids. Where files are
//! cut depends on the key, too: lengths of chunks would otherwise be a fingerprint of a known file.
//!
//! AES-256-GCM, each sealed piece under a key of its own: BLAKE3 of 24 random bytes, keyed with the
//! workspace's. So the nonce can be zero, no counter has to survive a crash, and 2^96 pieces are as
//! safe as one. What a piece is (a chunk's id, lengths, codec, class; an object's header) is
//! authenticated along with it. The rest of the engine asks a [`Vault`], which without a key does
//! nothing at all.

use crate::bytes::{Malformed, Put};
use crate::error::Error;
use crate::format::digest;
use dumont_core::id::Digest;
use dumont_core::key::WorkspaceKey;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use std::sync::Arc;

const SALT: usize = 24;
const TAG: usize = 16;

/// Whether a workspace's objects are sealed, and how its chunks are named and cut.
#[derive(Clone, Default)]
pub(crate) struct Vault(Option<Arc<Keys>>);

struct Keys {
    /// Names chunks.
    ids: [u8; 32],
    /// Each piece's own key is derived from it.
    pieces: [u8; 32],
    /// Moves the cuts of files.
    cuts: u64,
    /// In every sealed object's header: tells another workspace's key from damage.
    mark: u32,
    random: SystemRandom,
}

impl Keys {
    fn new(key: &WorkspaceKey) -> Self {
        let derive = |what: &str| blake3::derive_key(&format!("dumont snapshot v3 {what}"), &key.0);
        let [a, b, c, d, e, f, g, h, ..] = derive("cuts");
        let [i, j, k, l, ..] = derive("mark");
        Self {
            ids: derive("ids"),
            pieces: derive("pieces"),
            // Zero would mean the table that everybody has.
            cuts: u64::from_le_bytes([a, b, c, d, e, f, g, h]) | 1,
            mark: u32::from_le_bytes([i, j, k, l]),
            random: SystemRandom::new(),
        }
    }

    fn piece(&self, salt: &[u8]) -> Option<LessSafeKey> {
        let own = blake3::keyed_hash(&self.pieces, salt);
        UnboundKey::new(&AES_256_GCM, own.as_bytes())
            .ok()
            .map(LessSafeKey::new)
    }
}

/// Never used twice with one key: each piece has its own.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

impl Vault {
    pub fn new(key: Option<&WorkspaceKey>) -> Self {
        Self(key.map(|k| Arc::new(Keys::new(k))))
    }

    /// The name of a chunk.
    pub fn id(&self, raw: &[u8]) -> Digest {
        match &self.0 {
            None => digest(raw),
            Some(keys) => Digest(*blake3::keyed_hash(&keys.ids, raw).as_bytes()),
        }
    }

    /// What moves the cuts; 0 for everybody's.
    pub fn cuts(&self) -> u64 {
        self.0.as_ref().map_or(0, |k| k.cuts)
    }

    /// For the headers of sealed objects.
    pub fn mark(&self) -> Option<u32> {
        self.0.as_ref().map(|k| k.mark)
    }

    /// `plain` as it is stored; `out` is used where that is something else.
    pub fn seal<'a>(&self, what: &[u8], plain: &'a [u8], out: &'a mut Vec<u8>) -> Result<&'a [u8], Error> {
        let Some(keys) = &self.0 else {
            return Ok(plain);
        };
        let failed = || Error::internal("a piece could not be sealed");
        let mut salt = [0; SALT];
        keys.random.fill(&mut salt).map_err(|_| failed())?;
        out.clear();
        out.reserve(SALT + plain.len() + TAG);
        out.bytes(&salt);
        out.bytes(plain);
        let key = keys.piece(&salt).ok_or_else(failed)?;
        let tag = key
            .seal_in_place_separate_tag(nonce(), Aad::from(what), &mut out[SALT..])
            .map_err(|_| failed())?;
        out.bytes(tag.as_ref());
        Ok(out)
    }

    /// The inverse of [`Vault::seal`]; `what` must be the same.
    pub fn open<'a>(
        &self,
        what: &[u8],
        stored: &'a [u8],
        out: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], Malformed> {
        let Some(keys) = &self.0 else {
            return Ok(stored);
        };
        let (salt, sealed) = stored
            .split_at_checked(SALT)
            .ok_or(Malformed("it is too short to be sealed"))?;
        out.clear();
        out.bytes(sealed);
        let wrong = Malformed("it was changed after it was sealed");
        let key = keys.piece(salt).ok_or(wrong)?;
        let plain = key.open_in_place(nonce(), Aad::from(what), out);
        plain.map(|p| &*p).map_err(|_| wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vault(byte: u8) -> Vault {
        Vault::new(Some(&WorkspaceKey([byte; 32])))
    }

    #[test]
    fn ids_and_cuts_are_the_workspaces_own() {
        let (open, one, two) = (Vault::default(), vault(1), vault(2));
        assert_eq!(open.id(b"x"), digest(b"x"));
        assert!(one.id(b"x") != open.id(b"x") && one.id(b"x") != two.id(b"x"));
        assert_eq!(one.id(b"x"), vault(1).id(b"x"));
        assert!(one.cuts() != two.cuts() && one.cuts() != 0 && open.cuts() == 0);
        assert!(one.mark() != two.mark() && open.mark().is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn what_is_sealed_opens_and_nothing_else_does(
            plain in prop::collection::vec(any::<u8>(), 0..200),
            at in 0usize..300, bit in 0u8..8, cut in 0usize..300,
        ) {
            let (mut out, mut opened, v) = (Vec::new(), Vec::new(), vault(1));
            let sealed = v.seal(b"what", &plain, &mut out).unwrap().to_vec();
            prop_assert_eq!(v.open(b"what", &sealed, &mut opened).unwrap(), &plain[..]);
            prop_assert!(v.open(b"else", &sealed, &mut opened).is_err());
            prop_assert!(vault(2).open(b"what", &sealed, &mut opened).is_err());
            prop_assert!(v.open(b"what", &sealed[..cut % sealed.len()], &mut opened).is_err());
            // The same bytes are sealed differently each time.
            prop_assert!(v.seal(b"what", &plain, &mut opened).unwrap() != &sealed[..]);
            let mut bad = sealed.clone();
            let at = at % bad.len();
            bad[at] ^= 1 << bit;
            prop_assert!(v.open(b"what", &bad, &mut opened).is_err());
        }
    }
}
