//! The embedded object store: plain files under one directory, reached by signed URLs.
//!
//! The hard promise is that an object is visible only when it is whole, checked and durable,
//! and that nothing ever changes or replaces it, whoever writes at the same time and wherever
//! a crash falls. So every object is received into `incoming/`, hashed on the way, synced, and
//! then *linked* to its key under `objects/`: a link is atomic, refuses an existing name, and
//! leaves no moment at which a reader sees a part. What a crash leaves lies in `incoming/`,
//! where no key can point, and is swept by a later `open`.
//!
//! Objects are plain files under their own names, so that the directory can be copied to a
//! bucket as it is. The digest found while receiving is kept beside the content as an extended
//! attribute; where the file system has none, it is computed again when somebody asks.
//!
//! Hosts are not trusted. A URL names one act on one key until one moment, for an upload also
//! the exact size and digest, under an HMAC; the clock is the controller's, on both ends. No
//! slow peer holds a thread: disk work is done in pieces on the blocking pool.

mod disk;
mod refusal;
mod serve;
mod sign;

use super::{Check, Level, ObjectError, ObjectMeta, ObjectStore, Ticket, check};
use async_trait::async_trait;
use disk::Disk;
use dumont_core::time::Timestamp;
use dumont_wire::agent::{DownloadGrant, UploadGrant, UploadWanted};
use sign::{Act, Signer};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use sign::GRANT_LIFETIME;

/// Tells the time; the same for signing and for checking.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Objects in a directory of this machine.
pub struct FileStore {
    disk: Arc<Disk>,
    signer: Signer,
    clock: Clock,
    upload_idle: Duration,
}

impl fmt::Debug for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileStore")
            .field("disk", &self.disk)
            .finish_non_exhaustive()
    }
}

impl FileStore {
    /// Opens or creates the store and sweeps what old crashes left. `secret` signs the URLs:
    /// replicas that share the directory share it.
    pub fn open(root: impl AsRef<Path>, secret: [u8; 32]) -> Result<Self, ObjectError> {
        Ok(Self {
            disk: Arc::new(Disk::open(root.as_ref())?),
            signer: Signer::new(secret),
            clock: Arc::new(|| Timestamp::from_system(SystemTime::now())),
            upload_idle: Duration::from_secs(60),
        })
    }

    /// Another clock, for tests and simulations.
    #[must_use]
    pub fn with_clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    /// How long an upload may send nothing before it is given up.
    #[must_use]
    pub fn with_upload_idle(self, upload_idle: Duration) -> Self {
        Self { upload_idle, ..self }
    }

    /// Serves `/o/{key}`; needs no other authentication than the signatures.
    pub fn router(self: Arc<Self>) -> axum::Router {
        serve::router(self)
    }

    fn now(&self) -> Timestamp {
        (self.clock)()
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Disk) -> Result<T, ObjectError> + Send + 'static,
    ) -> Result<T, ObjectError> {
        let disk = Arc::clone(&self.disk);
        blocking(move || work(&disk)).await
    }
}

/// Runs disk work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ObjectError> + Send + 'static,
) -> Result<T, ObjectError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(ObjectError::Io(std::io::Error::other(e))),
    }
}

#[async_trait]
impl ObjectStore for FileStore {
    async fn grant_upload(
        &self,
        base_url: &str,
        key: &str,
        wanted: &UploadWanted,
    ) -> Result<Ticket, ObjectError> {
        disk::check_key(key)?;
        let act = Act::Put {
            size: wanted.size,
            digest: wanted.digest,
        };
        let url = self.signer.url(base_url, key, &act, self.now());
        Ok(Ticket {
            grant: UploadGrant {
                key: key.to_owned(),
                url,
                headers: BTreeMap::new(),
                parts: Vec::new(),
                addresses: Vec::new(),
            },
            upload_id: None,
        })
    }

    async fn grant_download(&self, base_url: &str, key: &str) -> Result<DownloadGrant, ObjectError> {
        let owned = key.to_owned();
        let exists = self.on_disk(move |disk| Ok(disk.find(&owned)?.is_some())).await?;
        let url = exists.then(|| self.signer.url(base_url, key, &Act::Get, self.now()));
        Ok(DownloadGrant {
            key: key.to_owned(),
            url,
            headers: BTreeMap::new(),
            addresses: Vec::new(),
        })
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectMeta>, ObjectError> {
        let key = key.to_owned();
        self.on_disk(move |disk| disk.head(&key)).await
    }

    async fn get(&self, key: &str) -> Result<Vec<u8>, ObjectError> {
        let key = key.to_owned();
        self.on_disk(move |disk| disk.read(&key)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ObjectError> {
        let key = key.to_owned();
        self.on_disk(move |disk| disk.read_range(&key, &range)).await
    }

    async fn put(&self, key: &str, bytes: &[u8]) -> Result<Option<String>, ObjectError> {
        let (key, bytes) = (key.to_owned(), bytes.to_vec());
        self.on_disk(move |disk| {
            disk::check_key(&key)?;
            let mut incoming = disk.receive()?;
            incoming.write(&bytes)?;
            disk.publish(incoming, &key)
        })
        .await?;
        Ok(None)
    }

    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        let key = key.to_owned();
        self.on_disk(move |disk| disk.delete(&key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError> {
        let prefix = prefix.to_owned();
        self.on_disk(move |disk| disk.list(&prefix)).await
    }

    async fn examine(&self) -> Vec<Check> {
        let mut checks = check::basics(self).await;
        if checks.iter().all(|c| c.level == Level::Ok) {
            checks.push(check::refuses_to_overwrite(self).await);
        }
        checks
    }

    fn describe(&self) -> String {
        format!("files in {}", self.disk.root().display())
    }
}
