//! The two ways to the store. Retries, URLs and budgets are the implementer's.

use dumont_core::id::Digest;
use dumont_core::snapshot::{ObjectKind, ObjectRef};
use std::ops::Range;

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The key that is not there.
    #[error("object {0} is missing")]
    Missing(String),
    /// The transfer failed and retrying did not help.
    #[error("transfer failed: {0}")]
    Transfer(String),
    /// No more may be stored.
    #[error("the store is full: {0}")]
    Full(String),
    #[error("cancelled")]
    Cancelled,
}

/// Where new objects go. Called from several threads.
pub trait ObjectSink: Sync {
    /// Stores `body`, whose BLAKE3 digest is `digest`, under a key of the sink's choice.
    ///
    /// # Errors
    /// Any [`StoreError`]; the snapshot ends with it.
    fn put(&self, kind: ObjectKind, digest: Digest, body: &[u8]) -> Result<ObjectRef, StoreError>;
}

/// Where existing objects are read. Called from several threads.
pub trait ObjectSource: Sync {
    /// Announces keys that will be read soon, so that an implementation can get leave to read
    /// many of them in one round trip. Reads must work without it.
    ///
    /// # Errors
    /// Any [`StoreError`]; the restore ends with it.
    fn prepare(&self, _keys: &[String]) -> Result<(), StoreError> {
        Ok(())
    }

    /// The object's bytes, or those in `range` (bytes from its start).
    ///
    /// # Errors
    /// Any [`StoreError`]. An answer of another length than asked for counts as corruption.
    fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Vec<u8>, StoreError>;

    /// The same into a buffer, whose content is replaced: fresh memory for every range costs the
    /// kernel as much as receiving it.
    ///
    /// # Errors
    /// As [`Self::get`].
    fn get_into(&self, key: &str, range: Option<Range<u64>>, out: &mut Vec<u8>) -> Result<(), StoreError> {
        *out = self.get(key, range)?;
        Ok(())
    }
}
