//! Retention: old snapshots go, and then what only they needed.
//!
//! Which snapshots go is a pure decision (`core::retention`), and the statement that removes one
//! asks again whether it may. What is hard is when an *object* may go, while machines upload and
//! restore and this process may die at any point. Four rules:
//!
//! * Needed is what the head of any snapshot names that is visible or pending, through its indexes.
//!   A snapshot refers only to chunks of its parent's tree and to its own packs (the engine's
//!   rule), and a parent that a machine builds on never goes. So nothing that was thrown away can
//!   be needed again.
//! * What is not needed is first only *marked*, with the time, and deleted by a later round. A mark
//!   holds only if the object was needed at no round in between.
//! * It is deleted only if no work on the workspace began before its mark: a restore that still
//!   reads by an old head, a snapshot whose uploads no head names yet. And never younger than a day:
//!   an import is no workflow.
//! * Room in packs is made by writing anew (`snapshot::compact`): new objects first, then each head
//!   is exchanged by one statement that fails if it is not the one that was read. A crash in between
//!   leaves garbage of one kind or the other, and marks find it.

use crate::app::App;
use crate::link::prefix;
use crate::objects::engine::Bridge;
use crate::objects::{ObjectError, ObjectStore};
use dumont_core::retention::{Kept, expired};
use dumont_core::snapshot::{ObjectRef, SnapshotHead};
use dumont_core::time::Timestamp;
use dumont_snapshot::{Compaction, compact, packs_of};
use dumont_store::{Error as StoreError, InstanceState, SnapshotRow, Store, WorkspaceRow};
use dumont_wire::rest::Pruned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::select;
use ulid::Ulid;

/// Between two rounds.
const EVERY: Duration = Duration::from_secs(3600);
/// After the start: first things first.
const FIRST: Duration = Duration::from_secs(300);
/// A head with more indexes is worth a compaction.
const MANY_INDEXES: usize = 32;
const PAGE: u32 = 500;

#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Objects(#[from] ObjectError),
    #[error("{0}")]
    Engine(#[from] dumont_snapshot::Error),
    #[error("the work ended without a result: {0}")]
    Ended(#[from] tokio::task::JoinError),
}

/// How long what is not needed stays.
#[derive(Debug, Clone, Copy)]
pub struct Grace {
    /// After its mark.
    pub marked: Duration,
    /// After it was created.
    pub created: Duration,
}

impl Default for Grace {
    fn default() -> Self {
        Self {
            marked: Duration::from_secs(3600),
            created: Duration::from_secs(86_400),
        }
    }
}

/// Runs until the server stops.
pub async fn run(app: Arc<App>) {
    let mut pause = FIRST;
    loop {
        select! {
            () = app.stopping.cancelled() => return,
            () = tokio::time::sleep(pause) => pause = EVERY,
        }
        if let Err(error) = round(&app).await {
            tracing::warn!(%error, "the list of workspaces for retention failed; it goes on");
        }
    }
}

async fn round(app: &Arc<App>) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let page = app.store.list_workspaces(after.as_deref(), PAGE).await?;
        for workspace in &page.items {
            if app.stopping.is_cancelled() {
                return Ok(());
            }
            let pruner = Pruner::of(app);
            match pruner.prune(workspace, app.now(), false).await {
                Ok(p) if p.expired.is_empty() && p.deleted_objects == 0 => {}
                Ok(p) => tracing::info!(
                    workspace = %workspace.spec.name,
                    expired = p.expired.len(),
                    deleted_bytes = p.deleted_bytes,
                    "pruned"
                ),
                Err(error) => {
                    tracing::warn!(workspace = %workspace.spec.name, %error, "not pruned; the next round tries again");
                }
            }
        }
        after = page.next;
        if after.is_none() {
            return Ok(());
        }
    }
}

/// Prunes one workspace at a time.
pub struct Pruner {
    pub store: Store,
    pub objects: Arc<dyn ObjectStore>,
    pub grace: Grace,
}

/// What is not needed, since when.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Marks {
    since: BTreeMap<String, Timestamp>,
}

impl Pruner {
    pub fn of(app: &App) -> Self {
        Self {
            store: app.store.clone(),
            objects: app.objects.clone(),
            grace: Grace::default(),
        }
    }

    /// Lets go what the workspace's policy does not keep. `dry_run` only says what would expire.
    pub async fn prune(
        &self,
        workspace: &WorkspaceRow,
        now: Timestamp,
        dry_run: bool,
    ) -> Result<Pruned, PruneError> {
        let rows = self.visible(workspace).await?;
        let mut report = Pruned {
            dry_run,
            ..Pruned::default()
        };
        let doomed = self.doomed(workspace, &rows).await?;
        if dry_run {
            report.expired = doomed;
            return Ok(report);
        }
        let (mut marks, old_marks) = self.marks(workspace).await?;
        // As it was since the last round: what was needed meanwhile loses its mark.
        let needed = self.needed(workspace).await?;
        marks.since.retain(|key, _| !needed.contains(key));
        for id in doomed {
            if self.store.expire_snapshot(&id).await? {
                report.expired.push(id);
            }
        }
        let rows = self.visible(workspace).await?;
        if !report.expired.is_empty() || rows.iter().any(|r| r.head.indexes.len() > MANY_INDEXES) {
            self.compact(workspace, &rows, &mut report).await?;
        }
        self.sweep(workspace, marks, now, &mut report).await?;
        for key in old_marks {
            self.objects.delete(&key).await?;
        }
        Ok(report)
    }

    pub async fn visible(&self, workspace: &WorkspaceRow) -> Result<Vec<SnapshotRow>, StoreError> {
        let (mut rows, mut after) = (Vec::new(), None::<String>);
        loop {
            let page = self
                .store
                .list_snapshots(&workspace.id, after.as_deref(), PAGE)
                .await?;
            rows.extend(page.items);
            after = page.next;
            if after.is_none() {
                return Ok(rows);
            }
        }
    }

    async fn doomed(
        &self,
        workspace: &WorkspaceRow,
        rows: &[SnapshotRow],
    ) -> Result<Vec<String>, StoreError> {
        let instances = self.store.instances_of(&workspace.id).await?;
        let built_on: HashSet<&str> = instances
            .iter()
            .filter(|i| i.state != InstanceState::Destroyed)
            .filter_map(|i| i.last_snapshot_id.as_deref())
            .collect();
        let kept: Vec<Kept<'_>> = rows
            .iter()
            .map(|r| Kept {
                id: &r.id,
                created_at: r.created_at,
                instance: r.instance_key.as_deref(),
                pinned: r.pinned,
                needed: built_on.contains(r.id.as_str()),
            })
            .collect();
        let ids = expired(workspace.spec.snapshot.keep, &kept);
        Ok(ids.into_iter().map(Into::into).collect())
    }

    /// Keys that some snapshot's head leads to, and those of its own folder.
    async fn needed(&self, workspace: &WorkspaceRow) -> Result<HashSet<String>, PruneError> {
        let mut rows = self.visible(workspace).await?;
        rows.extend(self.store.pending_snapshots(&workspace.id).await?);
        let mut out: HashSet<String> = rows.iter().filter_map(|r| r.metadata_key.clone()).collect();
        let Some(first) = rows.first() else {
            return Ok(out);
        };
        let mut seen = HashSet::new();
        let indexes = rows.iter().flat_map(|r| &r.head.indexes);
        // One head for all: only its indexes are read.
        let all = SnapshotHead {
            indexes: indexes.filter(|o| seen.insert(&o.key)).cloned().collect(),
            ..first.head.clone()
        };
        out.extend(all.indexes.iter().map(|o| o.key.clone()));
        let bridge = self.bridge(workspace);
        let key = self.store.workspace_key(workspace).await?;
        let packs = tokio::task::spawn_blocking(move || {
            packs_of(&all, &bridge, key.as_ref(), &AtomicBool::new(false))
        });
        out.extend(packs.await??.into_iter().map(|o| o.key));
        out.extend(rows.iter().map(|r| folder(workspace, &r.id)));
        Ok(out)
    }

    pub fn bridge(&self, workspace: &WorkspaceRow) -> Bridge {
        Bridge::new(self.objects.clone(), prefix(&workspace.id))
    }

    /// Writes the snapshots' living chunks anew if that frees enough, and exchanges the heads.
    async fn compact(
        &self,
        workspace: &WorkspaceRow,
        rows: &[SnapshotRow],
        report: &mut Pruned,
    ) -> Result<(), PruneError> {
        let heads: Vec<SnapshotHead> = rows.iter().map(|r| r.head.clone()).collect();
        let bridge = self.bridge(workspace);
        let key = self.store.workspace_key(workspace).await?;
        let work = move || compact(&heads, &bridge, &bridge, key.as_ref(), &AtomicBool::new(false));
        let Some(done) = tokio::task::spawn_blocking(work).await?? else {
            return Ok(());
        };
        let packs = self.with_versions(&done).await?;
        for row in rows {
            self.exchange(workspace, row, &done.index, &packs).await?;
        }
        report.freed_bytes = done.freed_bytes;
        report.copied_bytes = done.copied_bytes;
        Ok(())
    }

    /// Points a snapshot to an index that holds all it needs.
    pub async fn exchange(
        &self,
        workspace: &WorkspaceRow,
        row: &SnapshotRow,
        index: &ObjectRef,
        packs: &[ObjectRef],
    ) -> Result<(), PruneError> {
        let head = SnapshotHead {
            indexes: vec![index.clone()],
            ..row.head.clone()
        };
        let facts = crate::workflows::capture::commit_facts(
            row,
            &head,
            packs.to_vec(),
            workspace.spec.snapshot.encrypt,
        );
        let digest = index.digest.to_string();
        let key = format!("{}snapshot-{}.json", folder(workspace, &row.id), &digest[..16]);
        self.objects.put(&key, &facts).await?;
        // Another controller may have been faster: its objects hold the same.
        self.store
            .replace_snapshot_head(&row.id, &row.head, &head)
            .await?;
        Ok(())
    }

    /// The packs of the new index: with an empty database, all that says which version is ours.
    async fn with_versions(&self, done: &Compaction) -> Result<Vec<ObjectRef>, StoreError> {
        let mut packs = done.packs.clone();
        packs.extend(self.versions_of(&done.kept).await?);
        Ok(packs)
    }

    /// The same objects with the versions that are ours.
    pub async fn versions_of(&self, objects: &[ObjectRef]) -> Result<Vec<ObjectRef>, StoreError> {
        let mut packs = Vec::with_capacity(objects.len());
        for pack in objects {
            packs.push(ObjectRef {
                version: self.store.object_version(&pack.key).await?,
                ..pack.clone()
            });
        }
        Ok(packs)
    }

    async fn marks(&self, workspace: &WorkspaceRow) -> Result<(Marks, Vec<String>), PruneError> {
        let keys: Vec<String> = self
            .objects
            .list(&format!("{}/prune/", prefix(&workspace.id)))
            .await?
            .into_iter()
            .map(|o| o.key)
            .collect();
        // Keys sort by time. One that a crash cut short, or that is not ours, counts as none:
        // what it marked is marked again.
        let newest = match keys.last() {
            Some(key) => serde_json::from_slice(&self.objects.get(key).await?).unwrap_or_default(),
            None => Marks::default(),
        };
        Ok((newest, keys))
    }

    async fn sweep(
        &self,
        workspace: &WorkspaceRow,
        mut marks: Marks,
        now: Timestamp,
        report: &mut Pruned,
    ) -> Result<(), PruneError> {
        // First the work that runs, then what is needed: what begins in between is younger than
        // every mark that counts.
        let running = self.store.running_workflow(&workspace.id).await?;
        let began = running.map_or(now, |w| w.created_at);
        let needed = self.needed(workspace).await?;
        let root = prefix(&workspace.id);
        let (mut sizes, mut idle) = (HashMap::new(), Vec::new());
        for kind in ["packs", "indexes", "snapshots"] {
            for object in self.objects.list(&format!("{root}/{kind}/")).await? {
                let own = object.key.rsplit_once('/').map(|(dir, _)| format!("{dir}/"));
                if !needed.contains(&object.key) && !own.is_some_and(|o| needed.contains(&o)) {
                    sizes.insert(object.key.clone(), object.size);
                    idle.push(object.key);
                }
            }
        }
        let mut next = Marks::default();
        for key in idle {
            let since = marks.since.remove(&key).unwrap_or(now);
            let ripe = since < began && since.plus(self.grace.marked) <= now;
            if ripe && created(&key).is_none_or(|at| at.plus(self.grace.created) <= now) {
                self.objects.delete(&key).await?;
                report.deleted_objects += 1;
                report.deleted_bytes += sizes.get(&key).copied().unwrap_or(0);
            } else {
                report.waiting_objects += 1;
                next.since.insert(key, since);
            }
        }
        if !next.since.is_empty() {
            let body = serde_json::to_vec(&next).unwrap_or_default();
            let key = format!("{root}/prune/{}.json", Ulid::generate());
            self.objects.put(&key, &body).await?;
        }
        Ok(())
    }
}

/// Where a snapshot's `snapshot.json` and `metadata.json` lie.
fn folder(workspace: &WorkspaceRow, snapshot_id: &str) -> String {
    let stamp = snapshot_id
        .split_once('-')
        .map_or(snapshot_id, |(_, stamp)| stamp);
    format!("{}/snapshots/{stamp}/", prefix(&workspace.id))
}

/// When the key was invented, if it says so.
fn created(key: &str) -> Option<Timestamp> {
    let name = key.rsplit('/').next()?;
    let id = Ulid::from_string(name).ok()?;
    Some(Timestamp(i64::try_from(id.timestamp_ms()).ok()? * 1000))
}
