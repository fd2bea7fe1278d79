//! Retention and prune against a real store and a real database, with crashes at every step.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use async_trait::async_trait;
use dumont_core::retention::Keep;
use dumont_core::snapshot::{SnapshotHead, SnapshotReport, Verdict};
use dumont_core::time::Timestamp;
use dumont_server::objects::engine::Bridge;
use dumont_server::objects::file::FileStore;
use dumont_server::objects::{Check, ObjectError, ObjectMeta, ObjectStore, Ticket};
use dumont_server::reconcilers::retention::{Grace, Pruner};
use dumont_snapshot::{NoEvents, RestoreOptions, SnapshotOptions, restore, snapshot};
use dumont_store::{NewSnapshot, NewWorkspace, Store, WorkspaceRow, WorkspaceState};
use dumont_wire::agent::{DownloadGrant, UploadWanted};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};
use std::time::Duration;

static NEVER: AtomicBool = AtomicBool::new(false);

/// Dies after so many acts: whatever comes then has no effect.
struct Dying {
    inner: Arc<FileStore>,
    left: AtomicI64,
}

impl Dying {
    fn act(&self) -> Result<(), ObjectError> {
        if self.left.fetch_sub(1, Relaxed) > 0 {
            return Ok(());
        }
        Err(ObjectError::Io(std::io::Error::other("it died here")))
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
        self.inner.get(key).await
    }
    async fn put(&self, key: &str, bytes: &[u8]) -> Result<(), ObjectError> {
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

struct World {
    temp: tempfile::TempDir,
    store: Store,
    objects: Arc<FileStore>,
    workspace: WorkspaceRow,
    indexes: Vec<dumont_core::snapshot::ObjectRef>,
    parent: Option<String>,
    clock: i64,
}

impl World {
    async fn new(last: u32) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(temp.path().join("db")).await.unwrap();
        let objects = Arc::new(FileStore::open(temp.path().join("objects"), [1; 32]).unwrap());
        let mut spec: dumont_core::spec::WorkspaceSpec =
            serde_json::from_value(serde_json::json!({ "name": "w" })).unwrap();
        spec.snapshot.keep = Keep {
            last,
            hourly: 0,
            daily: 0,
            weekly: 0,
        };
        let new = NewWorkspace {
            id: "id-w".into(),
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
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.temp.path().join("w").join(name)
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.clock * 1_000_000)
    }

    /// Takes a snapshot and makes it visible, as the controller would.
    async fn snapshot(&mut self) -> String {
        self.clock += 60;
        let bridge = Bridge::new(self.objects.clone(), "workspaces/id-w".into());
        let (path, cache) = (self.temp.path().join("w"), self.temp.path().join("cache"));
        let (stamp, parent) = (format!("i-{}", self.clock), self.parent.clone());
        let report: SnapshotReport = tokio::task::spawn_blocking(move || {
            let options = SnapshotOptions {
                path,
                stamp,
                parent,
                full: false,
                cache_path: cache,
                workers: 1,
                cancelled: &NEVER,
            };
            snapshot(&options, &bridge, &NoEvents).unwrap()
        })
        .await
        .unwrap();
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

    async fn prune(&mut self, objects: Arc<dyn ObjectStore>) -> Result<dumont_wire::rest::Pruned, String> {
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
    async fn all_restore(&self) -> usize {
        let rows = self.store.list_snapshots("id-w", None, 100).await.unwrap().items;
        for row in &rows {
            let out = tempfile::tempdir().unwrap();
            let bridge = Bridge::new(self.objects.clone(), "workspaces/id-w".into());
            let (path, head) = (out.path().to_owned(), row.head.clone());
            let report = tokio::task::spawn_blocking(move || {
                restore(&RestoreOptions::new(path, &NEVER), &head, &bridge, &NoEvents)
            });
            let report = report.await.unwrap().unwrap();
            assert_eq!(report.validation.validation, Verdict::Ok, "{}", row.id);
        }
        rows.len()
    }

    async fn stored(&self, kind: &str) -> u64 {
        let all = self
            .objects
            .list(&format!("workspaces/id-w/{kind}/"))
            .await
            .unwrap();
        all.iter().map(|o| o.size).sum()
    }

    /// Six snapshots in which most of the content is replaced again and again.
    async fn busy(&mut self) {
        for n in 0..6u8 {
            fs::write(self.file("stays"), noise(100_000, 0)).unwrap();
            fs::write(self.file("changes"), noise(400_000, n + 1)).unwrap();
            self.snapshot().await;
        }
    }
}

fn noise(n: usize, seed: u8) -> Vec<u8> {
    let mut out = vec![0; n];
    blake3::Hasher::new()
        .update(&[seed])
        .finalize_xof()
        .fill(&mut out);
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_needs_goes_after_its_grace() {
    let mut world = World::new(2).await;
    world.busy().await;
    let before = world.stored("packs").await;
    let first = world.prune(world.objects.clone()).await.unwrap();
    assert_eq!(first.expired.len(), 4, "{first:?}");
    assert_eq!(first.deleted_objects, 0, "marked first: {first:?}");
    assert!(first.waiting_objects > 0);
    assert_eq!(world.all_restore().await, 2);
    let second = world.prune(world.objects.clone()).await.unwrap();
    assert_eq!(second.deleted_objects, first.waiting_objects);
    assert_eq!(second.waiting_objects, 0);
    assert!(world.stored("packs").await < before / 2);
    assert_eq!(world.all_restore().await, 2);
    // The machine goes on from what it knew.
    fs::write(world.file("new"), noise(50_000, 99)).unwrap();
    world.snapshot().await;
    assert_eq!(world.all_restore().await, 3);
    // Nothing more to do, and nothing is done.
    world.prune(world.objects.clone()).await.unwrap();
    world.prune(world.objects.clone()).await.unwrap();
    let idle = world.prune(world.objects.clone()).await.unwrap();
    assert_eq!((idle.deleted_objects, idle.expired.len()), (0, 0), "{idle:?}");
    assert_eq!(world.all_restore().await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_act_costs_no_snapshot() {
    let (mut crashes, mut acts) = (0, 0);
    loop {
        let mut world = World::new(2).await;
        world.busy().await;
        let dying = Arc::new(Dying {
            inner: world.objects.clone(),
            left: AtomicI64::new(acts),
        });
        let mut done = true;
        for _ in 0..2 {
            done &= world.prune(dying.clone()).await.is_ok();
            assert!(world.all_restore().await >= 2, "after {acts} acts");
        }
        // Whoever comes next finishes the work, with a snapshot in between.
        fs::write(world.file("between"), noise(10_000, 77)).unwrap();
        world.snapshot().await;
        for _ in 0..3 {
            world.prune(world.objects.clone()).await.unwrap();
        }
        assert_eq!(world.all_restore().await, 2, "after {acts} acts");
        // Two snapshots of half a megabyte that share most of it.
        let left = world.stored("packs").await;
        assert!(left < 1_100_000, "after {acts} acts: {left} bytes of packs");
        if done {
            break;
        }
        crashes += 1;
        // Each of the first, then some of the many deletions.
        acts += 1 + acts / 6;
    }
    assert!(crashes > 5, "{crashes}");
}

/// A snapshot that still uploads has no head: nothing of it may go, however old.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_of_running_work_stay() {
    let mut world = World::new(2).await;
    world.busy().await;
    let key = format!("workspaces/id-w/packs/{}", ulid::Ulid::generate());
    world.objects.put(&key, b"uploaded a moment ago").await.unwrap();
    let workflow = dumont_store::NewWorkflow {
        id: "wf".into(),
        kind: dumont_core::workflow::Kind::Snapshot,
        workspace_id: "id-w".into(),
        state: serde_json::json!({}),
        preempt: Vec::new(),
        preempt_error: None,
        expects_instance: None,
        effects: Vec::new(),
    };
    world.store.start_workflow(&workflow, world.now()).await.unwrap();
    for _ in 0..3 {
        world.prune(world.objects.clone()).await.unwrap();
    }
    assert!(world.objects.head(&key).await.unwrap().is_some());
}
