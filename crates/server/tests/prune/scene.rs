//! One workspace on any store, its snapshots, and a store that dies.

use async_trait::async_trait;
use dumont_core::key::WorkspaceKey;
use dumont_core::retention::Keep;
use dumont_core::snapshot::{SnapshotHead, SnapshotReport, Verdict};
use dumont_core::time::Timestamp;
use dumont_server::objects::engine::Bridge;
use dumont_server::objects::file::FileStore;
use dumont_server::objects::s3::{S3Config, S3Store};
use dumont_server::objects::{Check, ObjectError, ObjectMeta, ObjectStore, Ticket};
use dumont_server::reconcilers::retention::{Grace, Pruner};
use dumont_snapshot::{NoEvents, RestoreOptions, SnapshotOptions, restore, snapshot};
use dumont_store::{NewSnapshot, NewWorkspace, Store, WorkspaceRow, WorkspaceState};
use dumont_wire::agent::{DownloadGrant, UploadWanted};
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

static NEVER: AtomicBool = AtomicBool::new(false);

/// Dies after so many acts: whatever comes then has no effect. Counts what is read of packs.
pub struct Dying {
    inner: Arc<dyn ObjectStore>,
    left: AtomicI64,
    pub read: AtomicU64,
}

impl Dying {
    pub fn after(acts: i64, inner: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            left: AtomicI64::new(acts),
            read: AtomicU64::new(0),
        })
    }

    fn act(&self) -> Result<(), ObjectError> {
        if self.left.fetch_sub(1, Relaxed) > 0 {
            return Ok(());
        }
        Err(ObjectError::Io(std::io::Error::other("it died here")))
    }

    fn count(&self, key: &str, bytes: Vec<u8>) -> Vec<u8> {
        if key.contains("/packs/") {
            self.read.fetch_add(bytes.len() as u64, Relaxed);
        }
        bytes
    }
}

#[async_trait]
impl ObjectStore for Dying {
    async fn grant_upload(&self, b: &str, k: &str, w: &UploadWanted) -> Result<Ticket, ObjectError> {
        self.inner.grant_upload(b, k, w).await
    }
    async fn grant_download(&self, b: &str, k: &str) -> Result<DownloadGrant, ObjectError> {
        self.inner.grant_download(b, k).await
    }
    async fn head(&self, key: &str) -> Result<Option<ObjectMeta>, ObjectError> {
        self.inner.head(key).await
    }
    async fn get(&self, key: &str) -> Result<Vec<u8>, ObjectError> {
        Ok(self.count(key, self.inner.get(key).await?))
    }
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ObjectError> {
        Ok(self.count(key, self.inner.get_range(key, range).await?))
    }
    async fn put(&self, key: &str, bytes: &[u8]) -> Result<Option<String>, ObjectError> {
        self.act()?;
        self.inner.put(key, bytes).await
    }
    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        self.act()?;
        self.inner.delete(key).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError> {
        self.inner.list(prefix).await
    }
    async fn examine(&self) -> Vec<Check> {
        self.inner.examine().await
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
}

pub struct World {
    temp: tempfile::TempDir,
    pub store: Store,
    pub objects: Arc<dyn ObjectStore>,
    pub workspace: WorkspaceRow,
    indexes: Vec<dumont_core::snapshot::ObjectRef>,
    parent: Option<String>,
    clock: i64,
    key: Option<WorkspaceKey>,
}

/// Where a world keeps its objects.
#[derive(Clone)]
pub enum On {
    Files,
    Bucket(Box<S3Config>),
}

impl World {
    pub async fn new(last: u32, on: &On) -> Self {
        Self::with_key(last, on, None).await
    }

    pub async fn with_key(last: u32, on: &On, key: Option<WorkspaceKey>) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(temp.path().join("db")).await.unwrap();
        let objects: Arc<dyn ObjectStore> = match on {
            On::Files => Arc::new(FileStore::open(temp.path().join("objects"), [1; 32]).unwrap()),
            On::Bucket(config) => Arc::new(S3Store::new((**config).clone(), Some(store.clone())).unwrap()),
        };
        let mut spec: dumont_core::spec::WorkspaceSpec =
            serde_json::from_value(serde_json::json!({ "name": "w" })).unwrap();
        spec.snapshot.keep = Keep {
            last,
            hourly: 0,
            daily: 0,
            weekly: 0,
        };
        spec.snapshot.encrypt = key.is_some();
        let new = NewWorkspace {
            key: key.clone(),
            // Worlds may share a bucket.
            id: format!("id-{}", ulid::Ulid::generate()).to_lowercase(),
            spec,
            state: WorkspaceState::Draft,
        };
        let workspace = store.create_workspace(&new, Timestamp(1)).await.unwrap();
        fs::create_dir(temp.path().join("w")).unwrap();
        Self {
            temp,
            store,
            objects,
            workspace,
            indexes: Vec::new(),
            parent: None,
            clock: 1_800_000_000,
            key,
        }
    }

    pub fn prefix(&self) -> String {
        format!("workspaces/{}", self.workspace.id)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.temp.path().join("w").join(name)
    }

    pub fn now(&self) -> Timestamp {
        Timestamp(self.clock * 1_000_000)
    }

    /// Takes a snapshot and makes it visible, as the controller would.
    pub async fn snapshot(&mut self) -> String {
        let report = self.upload().await;
        self.commit(report).await
    }

    /// What the machine does; nobody can see it yet.
    pub async fn upload(&mut self) -> SnapshotReport {
        self.clock += 60;
        let bridge = Bridge::new(self.objects.clone(), self.prefix());
        let (path, cache) = (self.temp.path().join("w"), self.temp.path().join("cache"));
        let (stamp, parent) = (format!("i-{}", self.clock), self.parent.clone());
        let key = self.key.clone();
        let work = move || {
            let options = SnapshotOptions {
                path,
                stamp,
                parent,
                full: false,
                cache_path: cache,
                workers: 1,
                key,
                model_files: Vec::new(),
                cancelled: &NEVER,
            };
            snapshot(&options, &bridge, &NoEvents).unwrap()
        };
        tokio::task::spawn_blocking(work).await.unwrap()
    }

    pub async fn commit(&mut self, report: SnapshotReport) -> String {
        // The head of the parent as it is now: it may have been exchanged.
        if let Some(parent) = &self.parent {
            self.indexes = self.store.snapshot(parent).await.unwrap().unwrap().head.indexes;
        }
        self.indexes.extend(report.index.clone());
        let new = NewSnapshot {
            id: report.snapshot_id.clone(),
            workspace_id: self.workspace.id.clone(),
            instance_key: None,
            snapshot_type: report.snapshot_type,
            base_snapshot_id: None,
            parent_id: self.parent.clone(),
            head: SnapshotHead {
                snapshot_id: report.snapshot_id.clone(),
                root: report.root,
                indexes: self.indexes.clone(),
                files: report.files_total,
                bytes: report.total_bytes,
            },
            packs: report.packs,
            metadata_key: report.metadata.map(|m| m.key),
            files_changed: report.files_changed,
            uploaded_bytes: report.uploaded_bytes,
            full_because: None,
            torn: Vec::new(),
            created_at: self.now(),
        };
        self.store.insert_pending_snapshot(&new).await.unwrap();
        self.store
            .commit_snapshot(&new.id, self.workspace.fence, 1, self.now())
            .await
            .unwrap();
        self.parent = Some(new.id.clone());
        new.id
    }

    pub async fn prune(
        &mut self,
        objects: Arc<dyn ObjectStore>,
    ) -> Result<dumont_wire::rest::Pruned, String> {
        self.clock += 60;
        let pruner = Pruner {
            store: self.store.clone(),
            objects,
            grace: Grace {
                marked: Duration::ZERO,
                created: Duration::ZERO,
            },
        };
        // Objects carry the time of the real clock in their keys; it is behind this one.
        let done = pruner.prune(&self.workspace, self.now(), false).await;
        done.map_err(|e| e.to_string())
    }

    /// Every visible snapshot restores; how many there are.
    pub async fn all_restore(&self) -> usize {
        let rows = self
            .store
            .list_snapshots(&self.workspace.id, None, 100)
            .await
            .unwrap()
            .items;
        for row in &rows {
            let out = tempfile::tempdir().unwrap();
            let bridge = Bridge::new(self.objects.clone(), self.prefix());
            let (path, head) = (out.path().to_owned(), row.head.clone());
            let key = self.key.clone();
            let report = tokio::task::spawn_blocking(move || {
                let options = RestoreOptions {
                    key,
                    ..RestoreOptions::new(path, &NEVER)
                };
                restore(&options, &head, &bridge, &NoEvents)
            });
            let report = report.await.unwrap().unwrap();
            assert_eq!(report.validation.validation, Verdict::Ok, "{}", row.id);
        }
        rows.len()
    }

    pub async fn stored(&self, kind: &str) -> u64 {
        let all = self
            .objects
            .list(&format!("{}/{kind}/", self.prefix()))
            .await
            .unwrap();
        all.iter().map(|o| o.size).sum()
    }

    /// Six snapshots in which most of the content is replaced again and again.
    pub async fn busy(&mut self) {
        for n in 0..6u8 {
            fs::write(self.file("stays"), noise(100_000, 0)).unwrap();
            fs::write(self.file("changes"), noise(400_000, n + 1)).unwrap();
            self.snapshot().await;
        }
    }
}

pub fn noise(n: usize, seed: u8) -> Vec<u8> {
    let mut out = vec![0; n];
    blake3::Hasher::new()
        .update(&[seed])
        .finalize_xof()
        .fill(&mut out);
    out
}
