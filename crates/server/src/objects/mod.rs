//! Where snapshots' objects live, and the signatures that let an agent reach single ones.
//!
//! Hosts are not trusted, so they never see a key of the store: they get URLs that name one
//! object, one act and a time. Keys are invented by the controller and used once; nothing is
//! ever overwritten.

pub mod engine;
pub mod file;

use async_trait::async_trait;
use dumont_core::id::Digest;
use dumont_wire::agent::{DownloadGrant, UploadGrant, UploadWanted};

/// What the store itself saw of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// BLAKE3, where the store checked it while receiving.
    pub digest: Option<Digest>,
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
}

/// Plain objects plus signatures. `base_url` is how the agent reaches the store.
#[async_trait]
pub trait ObjectStore: Send + Sync + 'static {
    /// Permission to create `key`, with exactly the size and digest announced.
    async fn grant_upload(
        &self,
        base_url: &str,
        key: &str,
        wanted: &UploadWanted,
    ) -> Result<UploadGrant, ObjectError>;

    /// Permission to read `key` (whole or by range); `url` is `None` if it does not exist.
    async fn grant_download(&self, base_url: &str, key: &str) -> Result<DownloadGrant, ObjectError>;

    async fn head(&self, key: &str) -> Result<Option<ObjectMeta>, ObjectError>;

    async fn get(&self, key: &str) -> Result<Vec<u8>, ObjectError>;

    /// Creates `key`; refuses if it exists with other content, so that it can be repeated.
    async fn put(&self, key: &str, bytes: &[u8]) -> Result<(), ObjectError>;

    async fn delete(&self, key: &str) -> Result<(), ObjectError>;

    /// Every object below `prefix`, sorted by key.
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError>;
}
