//! A snapshot: the machine uploads, the controller looks, then it is visible.
//!
//! Nothing the machine says is taken on its word: every object must have been granted in this
//! very snapshot and must lie in the store with the size and digest it claims. The list of
//! indexes is composed here, from snapshots that are already visible plus the one new index,
//! so a hostile machine cannot redefine what an earlier snapshot needs. The last act is one
//! row; before it the snapshot does not exist, and what was uploaded is garbage.

use super::placement::{connect, suspect_the_store};
use super::state::Capture;
use super::{Flow, Run, StepError, StepResult, link_failure};
use crate::app::App;
use crate::link::{Fence, Granter, Link, LinkError, prefix};
use async_trait::async_trait;
use dumont_core::snapshot::{ObjectRef, SnapshotHead, SnapshotReport, SnapshotType};
use dumont_core::spec::SnapshotPolicy;
use dumont_core::time::Timestamp;
use dumont_store::{
    Effect, Error as StoreError, InstanceRow, NewSnapshot, SnapshotRow, SnapshotState, Store, WorkspaceRow,
};
use dumont_wire::agent::{Hooks, SnapshotRequest, objects_of};
use dumont_wire::rest::ErrorBody;
use futures::future::try_join_all;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// Only the machine that the workspace lives on may write its snapshots.
pub struct HomeFence {
    pub store: Store,
    pub workspace_id: String,
    pub instance_key: String,
    pub fence: i64,
}

#[async_trait]
impl Fence for HomeFence {
    async fn holds(&self) -> bool {
        matches!(self.store.workspace(&self.workspace_id).await,
            Ok(Some(w)) if w.fence == self.fence && w.instance_key.as_deref() == Some(self.instance_key.as_str()))
    }
}

pub async fn capture(run: &mut Run) -> StepResult {
    let Capture { full, as_it_is, .. } = run.load();
    let taken = take(run, full, as_it_is).await?;
    run.keep(&taken);
    Ok(Flow::Next)
}

/// A session that ends in the middle says nothing about its machine: its agent may have been
/// killed. So the snapshot is taken again after each of these pauses. Whether the machine is lost
/// is for the monitor to say, whose failover takes the workflow away from us. None is shorter than the
/// second that stamps count.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

/// Has the machine upload a snapshot; nobody can see it before `commit`.
async fn take(run: &Run, full: bool, as_it_is: bool) -> Result<Capture, StepError> {
    if let Some(refused) = half(&run.workspace, as_it_is) {
        return Err(StepError::Failed(refused));
    }
    let row = home(run).await?;
    let instance = row.instance_id.clone().unwrap_or_else(|| "none".into());
    let (parent, full_because) = base_of(&run.app, &row).await?;
    if let Some(why) = &full_because {
        run.say(format!("Full snapshot: {why}")).await;
    }
    let mut request = SnapshotRequest {
        key: run.app.store.workspace_key(&run.workspace).await?,
        model_files: run.workspace.spec.snapshot.model_files.clone(),
        path: String::new(),
        stamp: String::new(),
        parent: parent.clone(),
        full,
        hooks: hooks(&run.workspace.spec.snapshot),
    };
    let mut pauses = PAUSES.iter();
    let mut broke = None;
    loop {
        let began_at = run.app.now();
        // One of its own: what the agent of a broken session still sends lies under another one.
        request.stamp = free_stamp(&run.app.store, &instance, began_at.unix_seconds()).await?;
        let link = connect(run, &row)
            .await
            .map_err(|e| StepError::Failed(unreachable(run, broke.as_ref(), &e)))?;
        request.path = link.path().to_owned();
        let granter = granter(run, &row, &link, &request.stamp);
        match link.snapshot(request.clone(), &granter, &run.notes()).await {
            Ok(report) => {
                return Ok(Capture {
                    full,
                    as_it_is,
                    instance_key: row.key,
                    parent,
                    full_because,
                    stamp: request.stamp,
                    began_at,
                    report: Some(report),
                });
            }
            Err(error) => {
                again(run, &link, &error, pauses.next()).await?;
                broke = Some(error);
            }
        }
    }
}

/// What this machine may upload for one try of a snapshot.
fn granter(run: &Run, row: &InstanceRow, link: &Link, stamp: &str) -> Granter {
    let fence = HomeFence {
        store: run.app.store.clone(),
        workspace_id: run.workspace.id.clone(),
        instance_key: row.key.clone(),
        fence: run.workspace.fence,
    };
    Granter::writing(
        run.app.objects.clone(),
        link.base_url(),
        &run.workspace.id,
        stamp,
        budget(run.workspace.spec.disk_gb),
        Arc::new(fence),
    )
}

/// Waits until another try may begin, or says why there is none.
async fn again(run: &Run, link: &Link, error: &LinkError, pause: Option<&Duration>) -> Result<(), StepError> {
    if !matches!(error, LinkError::Closed(_) | LinkError::Timeout(_)) {
        suspect_the_store(run, error).await?;
        return Err(StepError::Failed(link_failure(error)));
    }
    let Some(pause) = pause else {
        return Err(StepError::failed(
            "agent_failed",
            format!(
                "the snapshot broke off {} times; the last time: {error}",
                PAUSES.len() + 1
            ),
            "try again; if it repeats, look at the machine with `dumont ssh`, or move the workspace with \
             `dumont failover run`",
        ));
    };
    run.say(format!("the snapshot broke off, taking it again: {error}"))
        .await;
    // It may be half-open. What its agent still does ends when the next one wants the directory.
    link.close().await;
    sleep(*pause).await;
    Ok(run.still_ours().await?)
}

/// Why there is no session; `broke` is the end of the last one, if this workflow had one.
fn unreachable(run: &Run, broke: Option<&LinkError>, error: &LinkError) -> ErrorBody {
    let Some(broke) = broke else {
        return link_failure(error);
    };
    let mut body = link_failure(broke);
    body.message = format!("{broke}; there is no new one: {error}");
    if !run.workspace.spec.failover.automatic {
        let name = &run.workspace.name;
        body.hint = format!("`dumont failover run {name}` moves the workspace to another machine");
    }
    body
}

/// Why what is on the machine is not worth a snapshot: a restore that broke off left a mixture,
/// which as the newest snapshot would be what the next failover restores.
pub fn half(workspace: &WorkspaceRow, as_it_is: bool) -> Option<ErrorBody> {
    let snapshot = workspace.half_restored.as_ref().filter(|_| !as_it_is)?;
    let name = &workspace.name;
    Some(ErrorBody::new(
        "half_restored",
        format!("the restore of {snapshot} broke off: what lies on the machine is a mixture"),
        format!(
            "restore again (`dumont snapshot restore {name}`) or move it (`dumont failover run {name}`); \
             `dumont snapshot create {name} --as-it-is` keeps what is there"
        ),
    ))
}

fn hooks(policy: &SnapshotPolicy) -> Option<Hooks> {
    (policy.before.is_some() || policy.after.is_some()).then(|| Hooks {
        before: policy.before.clone(),
        after: policy.after.clone(),
        timeout_ms: u64::from(policy.hook_timeout_s) * 1000,
    })
}

/// What the next snapshot may build on: the last one that this very instance took or restored,
/// if it is still there with all its indexes; else why not.
async fn base_of(app: &App, row: &InstanceRow) -> Result<(Option<String>, Option<String>), StepError> {
    let Some(id) = &row.last_snapshot_id else {
        return Ok((None, None));
    };
    let base = app.store.snapshot(id).await?;
    let Some(base) = base.filter(|b| b.state == SnapshotState::Visible) else {
        return Ok((None, Some(format!("its base {id} is not there any more"))));
    };
    for index in &base.head.indexes {
        let seen = app.objects.head(&index.key).await;
        let damage = match seen {
            Ok(Some(seen)) if seen.size == index.size && seen.digest.is_none_or(|d| d == index.digest) => {
                continue;
            }
            Ok(Some(_)) => "is damaged".into(),
            Ok(None) => "is missing".into(),
            Err(e) => format!("cannot be looked at: {e}"),
        };
        let why = format!("object {} of its base {id} {damage}", index.key);
        return Ok((None, Some(why)));
    }
    Ok((Some(id.clone()), None))
}

/// What a snapshot may upload: a machine cannot hold more than its disk, and some transfers
/// are begun twice.
fn budget(disk_gb: u32) -> u64 {
    u64::from(disk_gb) * 2_000_000_000
}

/// The instance that the workspace lives on.
async fn home(run: &Run) -> Result<InstanceRow, StepError> {
    let row = match &run.workspace.instance_key {
        Some(key) => run.app.store.instance(key).await?,
        None => None,
    };
    row.ok_or_else(|| {
        StepError::failed(
            "no_machine",
            format!("workspace {} lives on no machine", run.workspace.name),
            "deploy it first, then take the snapshot",
        )
    })
}

/// Before a move that was asked for: what the machine has and no snapshot yet.
pub async fn last_words(run: &Run) -> Result<SnapshotRow, StepError> {
    let taken = take(run, false, false).await?;
    show(run, &taken).await
}

/// Ids carry whole seconds; two snapshots within one second take the next free one.
async fn free_stamp(store: &Store, instance: &str, unix: i64) -> Result<String, StepError> {
    for second in unix.. {
        let stamp = format!("{instance}-{second}");
        let full = SnapshotType::Full.snapshot_id(instance, second);
        let incremental = SnapshotType::Incremental.snapshot_id(instance, second);
        if store.snapshot(&full).await?.is_none() && store.snapshot(&incremental).await?.is_none() {
            return Ok(stamp);
        }
    }
    Err(StepError::failed(
        "internal",
        "no free snapshot id",
        "report this",
    ))
}

fn untrue(what: &str) -> StepError {
    StepError::failed(
        "snapshot_refused",
        format!("the machine's snapshot was refused: {what}"),
        "nothing was changed; move the workspace to another machine with `dumont failover run`",
    )
}

pub async fn commit(run: &mut Run) -> StepResult {
    let row = show(run, &run.load()).await?;
    run.result = serde_json::to_value(crate::http::snapshots::shown(&row)).ok();
    run.effects = vec![Effect::HalfRestored { snapshot_id: None }];
    Ok(Flow::Next)
}

async fn show(run: &Run, taken: &Capture) -> Result<SnapshotRow, StepError> {
    let Some(report) = &taken.report else {
        return Err(StepError::failed(
            "internal",
            "there is no report to commit",
            "take the snapshot again",
        ));
    };
    let origin = Origin {
        workspace_id: run.workspace.id.clone(),
        // The fence of when this workflow was taken up: a switch since then refuses the commit.
        fence: run.workspace.fence,
        instance_key: Some(taken.instance_key.clone()),
        parent: taken.parent.clone(),
        full_because: taken.full_because.clone(),
        stamp: taken.stamp.clone(),
        began_at: taken.began_at,
    };
    publish(&run.app, &origin, report).await
}

/// Where a snapshot comes from.
pub struct Origin {
    pub workspace_id: String,
    /// The workspace's fence when it was begun.
    pub fence: i64,
    /// `None` for an import.
    pub instance_key: Option<String>,
    /// The last snapshot that this very instance took or restored.
    pub parent: Option<String>,
    /// Why there is none although one was recorded.
    pub full_because: Option<String>,
    pub stamp: String,
    pub began_at: Timestamp,
}

/// Looks at everything the report names, then makes the snapshot visible: the commit object
/// first (an empty database can adopt from it), the row last.
pub async fn publish(app: &App, origin: &Origin, report: &SnapshotReport) -> Result<SnapshotRow, StepError> {
    let new = compose(app, origin, report).await?;
    let workspace = app.store.workspace(&origin.workspace_id).await?;
    let encrypted = workspace.is_some_and(|w| w.spec.snapshot.encrypt);
    // Our own commit, after which we died before its step was written down.
    if let Some(row) = app.store.snapshot(&new.id).await?
        && row.state == SnapshotState::Visible
        && row.workspace_id == new.workspace_id
        && row.head == new.head
    {
        return Ok(row);
    }
    app.store.insert_pending_snapshot(&new).await?;
    let key = format!(
        "{}/snapshots/{}/snapshot.json",
        prefix(&origin.workspace_id),
        origin.stamp
    );
    app.objects
        .put(&key, &commit_object(&new, encrypted))
        .await
        .map_err(|e| StepError::failed(e.code(), e.to_string(), e.hint()))?;
    let now = app.now();
    let elapsed_ms = now.millis_since(new.created_at).max(0).unsigned_abs();
    match app
        .store
        .commit_snapshot(&new.id, origin.fence, elapsed_ms, now)
        .await
    {
        Err(StoreError::Stale { .. }) => Err(StepError::failed(
            "fenced",
            "the workspace has moved to another machine meanwhile",
            "take the snapshot again; this one was never visible",
        )),
        other => {
            let row = other?;
            crate::metrics::snapshot(&new, elapsed_ms);
            Ok(row)
        }
    }
}

async fn compose(app: &App, origin: &Origin, report: &SnapshotReport) -> Result<NewSnapshot, StepError> {
    let id = match report.snapshot_type {
        SnapshotType::Full => format!("base-{}", origin.stamp),
        SnapshotType::Incremental => format!("incr-{}", origin.stamp),
    };
    if report.snapshot_id != id {
        return Err(untrue(&format!(
            "it calls itself {:?} instead of {id}",
            report.snapshot_id
        )));
    }
    check_objects(app, report).await?;
    // What it builds on: unless the machine began anew, the snapshot it last took or restored.
    let parent = match (&origin.parent, &report.full_because) {
        (Some(id), None) => app.store.snapshot(id).await?,
        _ => None,
    };
    let mut indexes = parent
        .as_ref()
        .map(|p| p.head.indexes.clone())
        .unwrap_or_default();
    indexes.extend(report.index.clone());
    let base = match (report.snapshot_type, &parent) {
        (SnapshotType::Incremental, Some(p)) => {
            Some(p.base_snapshot_id.clone().unwrap_or_else(|| p.id.clone()))
        }
        _ => None,
    };
    let own_metadata = report.metadata.as_ref().map(|m| m.key.clone());
    Ok(NewSnapshot {
        workspace_id: origin.workspace_id.clone(),
        instance_key: origin.instance_key.clone(),
        snapshot_type: report.snapshot_type,
        base_snapshot_id: base,
        metadata_key: own_metadata.or_else(|| parent.as_ref().and_then(|p| p.metadata_key.clone())),
        parent_id: parent.map(|p| p.id),
        head: SnapshotHead {
            snapshot_id: id.clone(),
            root: report.root,
            indexes,
            files: report.files_total,
            bytes: report.total_bytes,
        },
        id,
        packs: report.packs.clone(),
        files_changed: report.files_changed,
        uploaded_bytes: report.uploaded_bytes,
        full_because: origin.full_because.clone().or(report.full_because.clone()),
        torn: report.torn.clone(),
        created_at: origin.began_at,
    })
}

/// Sees every object itself: size, and digest or version where the store knows them.
async fn check_objects(app: &App, report: &SnapshotReport) -> Result<(), StepError> {
    let objects: Vec<_> = objects_of(report).collect();
    for some in objects.chunks(LOOKS_AT_ONCE) {
        let mut looks = Vec::with_capacity(some.len());
        for object in some {
            looks.push(check_object(app, object));
        }
        try_join_all(looks).await?;
    }
    Ok(())
}

/// The same of a snapshot that is visible, with another head and the packs that it leads to.
pub fn commit_facts(
    row: &SnapshotRow,
    head: &SnapshotHead,
    packs: Vec<ObjectRef>,
    encrypted: bool,
) -> Vec<u8> {
    let new = NewSnapshot {
        id: row.id.clone(),
        workspace_id: row.workspace_id.clone(),
        instance_key: row.instance_key.clone(),
        snapshot_type: row.snapshot_type,
        base_snapshot_id: row.base_snapshot_id.clone(),
        parent_id: row.parent_id.clone(),
        head: head.clone(),
        packs,
        metadata_key: row.metadata_key.clone(),
        files_changed: row.files_changed,
        uploaded_bytes: row.uploaded_bytes,
        full_because: row.full_because.clone(),
        torn: row.torn.clone(),
        created_at: row.created_at,
    };
    commit_object(&new, encrypted)
}

/// Each is a round trip to a bucket.
const LOOKS_AT_ONCE: usize = 16;

async fn check_object(app: &App, object: &ObjectRef) -> Result<(), StepError> {
    let seen = app.objects.head(&object.key).await;
    let seen = seen.map_err(|e| StepError::failed(e.code(), e.to_string(), e.hint()))?;
    let right = seen.is_some_and(|s| {
        s.size == object.size
            && s.digest.is_none_or(|d| d == object.digest)
            && (object.version.is_none() || s.version == object.version)
    });
    if right {
        return Ok(());
    }
    Err(untrue(&format!(
        "object {:?} is missing or not what it claims",
        object.key
    )))
}

/// Enough to adopt the snapshot with an empty database. The store shows it to whoever may read
/// it: of an encrypted workspace it names no file.
fn commit_object(new: &NewSnapshot, encrypted: bool) -> Vec<u8> {
    let torn: &[String] = if encrypted { &[] } else { &new.torn };
    let facts = serde_json::json!({
        "version": 1,
        "snapshot_id": new.id,
        "snapshot_type": new.snapshot_type,
        "base_snapshot_id": new.base_snapshot_id,
        "parent_id": new.parent_id,
        "head": new.head,
        "packs": new.packs,
        "metadata_key": new.metadata_key,
        "files_changed": new.files_changed,
        "torn": torn,
        "encrypted": encrypted,
        "created_at": new.created_at,
    });
    facts.to_string().into_bytes()
}
