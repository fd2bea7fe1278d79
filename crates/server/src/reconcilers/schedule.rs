//! Periodic snapshots: the newest one of a running workspace is never older than its interval.
//!
//! When each is due is a pure decision (`core::schedule`) over what the database knows, so nothing
//! is lost with a process, and every controller comes to the same answer; of two that start the same
//! snapshot one is refused, as one workflow at a time works on a workspace. A server that was away
//! for hours finds everything due at once: at most [`AT_ONCE`] run, whoever waits longest first.

use crate::app::App;
use crate::workflows::state::Capture;
use dumont_core::schedule::{Standing, due};
use dumont_core::spec::WorkspaceSpec;
use dumont_core::time::Timestamp;
use dumont_core::workflow::Kind;
use dumont_store::{Error as StoreError, Idle, NewWorkflow};
use std::sync::Arc;
use std::time::Duration;
use tokio::select;
use ulid::Ulid;

/// Snapshots that run at one time before this adds no more.
const AT_ONCE: u64 = 16;
const PAGE: u32 = 500;

/// Runs until the server stops.
pub async fn run(app: Arc<App>) {
    loop {
        select! {
            () = app.stopping.cancelled() => return,
            () = tokio::time::sleep(app.config.timing.schedule) => {}
        }
        if let Err(error) = round(&app).await {
            tracing::warn!(%error, "cannot see which snapshots are due");
        }
    }
}

/// How often a workspace is snapshotted by itself, if it is.
pub fn interval(app: &App, spec: &WorkspaceSpec) -> Option<Duration> {
    let own = spec.snapshot.every_minutes;
    let every = own.map_or(app.config.snapshot_every, |m| {
        Duration::from_secs(60 * u64::from(m))
    });
    (every > Duration::ZERO).then_some(every)
}

/// When the next one is due, if any ever is.
pub fn next(app: &App, id: &str, spec: &WorkspaceSpec, standing: &Standing) -> Option<Timestamp> {
    interval(app, spec).map(|every| due(id, every, standing))
}

async fn round(app: &App) -> Result<(), StoreError> {
    let mut waiting = all_due(app).await?;
    if waiting.is_empty() {
        return Ok(());
    }
    waiting.sort_by_key(|(at, _)| *at);
    let free = AT_ONCE.saturating_sub(app.store.running_snapshots().await?);
    for (at, workspace) in waiting.iter().take(free as usize) {
        match start(app, workspace).await {
            Ok(()) => tracing::info!(workspace = %workspace.name, due = %at, "periodic snapshot"),
            // Something else works on it by now, or it has moved.
            Err(StoreError::Conflict { .. } | StoreError::Stale { .. } | StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn all_due(app: &App) -> Result<Vec<(Timestamp, Idle)>, StoreError> {
    let (mut out, mut after) = (Vec::new(), None);
    loop {
        let page = app.store.idle_workspaces(after.as_deref(), PAGE).await?;
        let now = app.now();
        for workspace in page.items {
            let at = next(app, &workspace.id, &workspace.spec, &workspace.standing());
            if let Some(at) = at.filter(|at| *at <= now) {
                out.push((at, workspace));
            }
        }
        after = page.next;
        if after.is_none() {
            return Ok(out);
        }
    }
}

async fn start(app: &App, workspace: &Idle) -> Result<(), StoreError> {
    let new = NewWorkflow {
        id: Ulid::generate().to_string(),
        kind: Kind::Snapshot,
        workspace_id: workspace.id.clone(),
        state: serde_json::to_value(Capture::default()).unwrap_or_default(),
        preempt: Vec::new(),
        preempt_error: None,
        expects_instance: Some(workspace.instance_key.clone()),
        effects: Vec::new(),
    };
    app.store.start_workflow(&new, app.now()).await?;
    app.work.notify_one();
    Ok(())
}
