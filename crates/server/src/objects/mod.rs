//! Where snapshots' objects live, and the signatures that let an agent reach single ones.
//!
//! Hosts are not trusted, so they never see a key of the store: they get URLs that name one
//! object, one act and a time. Keys are invented by the controller and used once; nothing is
//! ever overwritten.

mod check;
pub mod engine;
pub mod file;
pub mod s3;

pub use crate::check::{Check, Level};
pub use check::failed;

use async_trait::async_trait;
use dumont_core::id::Digest;
use dumont_wire::agent::{DownloadGrant, UploadGrant, UploadWanted};
use std::ops::Range;

/// What the store itself saw of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// BLAKE3, where the store checked it while receiving.
    pub digest: Option<Digest>,
    /// The store's version id, where the bucket keeps versions.
    pub version: Option<String>,
}

/// What a store refused or could not do, in words a person can act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StoreRefusal {
    /// E.g. `bucket_missing`, `wrong_region`, `access_denied`.
    pub code: &'static str,
    pub message: String,
    /// What to do next.
    pub hint: String,
    /// It may pass by itself: the store was not reached, or was busy.
    pub transient: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("object {0} is not in the store")]
    Missing(String),
    #[error("object {0} exists already; keys are never used twice")]
    Exists(String),
    #[error("{0:?} is not a key this store accepts")]
    InvalidKey(String),
    #[error("no space left in the object store at {0}: free some space or move the data directory")]
    Full(String),
    #[error("object store: {0}")]
    Io(#[from] std::io::Error),
    #[error("object store: {0}")]
    Store(Box<StoreRefusal>),
    #[error("object store: {0}")]
    Database(#[from] dumont_store::Error),
}

impl ObjectError {
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing(_) => "object_missing",
            Self::Exists(_) => "object_exists",
            Self::InvalidKey(_) => "invalid_key",
            Self::Full(_) => "store_full",
            Self::Io(_) => "store_failed",
            Self::Database(_) => "database",
            Self::Store(refusal) => refusal.code,
        }
    }

    /// What to do next.
    pub fn hint(&self) -> &str {
        match self {
            Self::Missing(_) => "restore an older snapshot",
            Self::Exists(_) | Self::InvalidKey(_) => "report this as a bug",
            Self::Full(_) => "free some space where the objects are kept",
            Self::Io(_) => "look at the server's log and at its data directory's free space",
            Self::Database(_) => "look at the server's log",
            Self::Store(refusal) => &refusal.hint,
        }
    }
}

/// Permission for one upload, and the store's own word for it until it is completed.
#[derive(Debug, Clone)]
pub struct Ticket {
    pub grant: UploadGrant,
    /// `None` where an object is there as soon as it was sent.
    pub upload_id: Option<String>,
}

/// Plain objects plus signatures. `base_url` is how the agent reaches an embedded store.
#[async_trait]
pub trait ObjectStore: Send + Sync + 'static {
    /// Permission to create `key`, with exactly the size (and where the store can check it,
    /// the digest) announced.
    async fn grant_upload(
        &self,
        base_url: &str,
        key: &str,
        wanted: &UploadWanted,
    ) -> Result<Ticket, ObjectError>;

    /// Makes what was sent in parts one visible object; `parts` is what the store answered to
    /// each. Gives the version where the bucket keeps them. Repeating it is harmless.
    async fn complete(
        &self,
        key: &str,
        _upload_id: &str,
        _size: u64,
        _parts: &[String],
    ) -> Result<Option<String>, ObjectError> {
        Err(ObjectError::InvalidKey(key.into()))
    }

    /// Forgets an upload that will not be completed.
    async fn abandon(&self, _key: &str, _upload_id: &str) -> Result<(), ObjectError> {
        Ok(())
    }

    /// Permission to read `key` (whole or by range); `url` is `None` if it is known not to exist.
    async fn grant_download(&self, base_url: &str, key: &str) -> Result<DownloadGrant, ObjectError>;

    async fn head(&self, key: &str) -> Result<Option<ObjectMeta>, ObjectError>;

    async fn get(&self, key: &str) -> Result<Vec<u8>, ObjectError>;

    /// A part of an object; what lies beyond its end is left out.
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ObjectError>;

    /// Creates `key`; refuses if it exists with other content, so that it can be repeated. Gives
    /// the version where the bucket keeps them.
    async fn put(&self, key: &str, bytes: &[u8]) -> Result<Option<String>, ObjectError>;

    /// Whatever was ever stored under `key` is gone, older versions included.
    async fn delete(&self, key: &str) -> Result<(), ObjectError>;

    /// Every object below `prefix`, sorted by key.
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError>;

    /// Tries everything that dumont needs of the store, for `dumont doctor`. Never fails: what
    /// does not work is in the list.
    async fn examine(&self) -> Vec<Check>;

    /// Whether the store answers, and to us.
    async fn ping(&self) -> Result<(), ObjectError> {
        Ok(())
    }

    /// Aborts uploads that nobody will complete any more; how many.
    async fn sweep(&self) -> Result<usize, ObjectError> {
        Ok(0)
    }

    /// One line about where the objects are.
    fn describe(&self) -> String;

    /// A certificate authority (PEM) that agents must trust besides the public ones.
    fn private_ca(&self) -> Option<&str> {
        None
    }
}
