//! Putting the workspace onto a ready machine: restore, validate, start, probe.
//!
//! A machine may die in the middle of any of these. That is not the workflow's failure: it
//! goes back to the race with the machines that are left. A snapshot that is damaged, a failed
//! validation or a workload that does not come up are, because another machine would not help.

mod restore;
mod serve;

pub use restore::{complete, restore, stop, suspect_the_store, validate};
pub use serve::{go_on_there, probe, start};

use super::state::Placement;
use super::{Flow, Run, StepError, StepResult, abandoned, link_failure};
use crate::history;
use crate::link::{Link, LinkError};
use dumont_core::blacklist::LossCause;
use dumont_core::workflow::{Kind, Step};
use dumont_store::{InstanceRow, SnapshotRow, SnapshotState};
use dumont_wire::agent::FailureCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long a machine that was ready may be unreachable before it counts as dead.
const RELINK: Duration = Duration::from_secs(8);

/// Room on the disk beside the files themselves.
const DISK_SLACK: u64 = 64 << 20;

/// Fixes which snapshot is restored; gives the bytes it needs on the disk.
pub async fn choose_snapshot(run: &Run, state: &mut Placement) -> Result<u64, StepError> {
    if !state.chosen {
        // What the lost machine itself took or restored last: a rollback stays rolled back.
        let lived = match state.loss.as_ref().and_then(|l| l.instance_key.as_deref()) {
            Some(key) => run
                .app
                .store
                .instance(key)
                .await?
                .and_then(|i| i.last_snapshot_id),
            None => None,
        };
        let newest = run
            .app
            .store
            .latest_snapshot(&run.workspace.id)
            .await?
            .map(|s| s.id);
        state.snapshot_id = state.snapshot_id.take().or(lived).or(newest);
        state.chosen = true;
    }
    Ok(snapshot(run, state)
        .await?
        .map_or(0, |s| s.head.bytes + DISK_SLACK))
}

async fn snapshot(run: &Run, state: &Placement) -> Result<Option<SnapshotRow>, StepError> {
    let Some(id) = &state.snapshot_id else {
        return Ok(None);
    };
    match run.app.store.snapshot(id).await? {
        Some(found) if found.workspace_id == run.workspace.id && found.state == SnapshotState::Visible => {
            Ok(Some(found))
        }
        _ => Err(StepError::failed(
            "snapshot_not_found",
            format!("workspace {} has no snapshot {id:?}", run.workspace.name),
            format!("`dumont snapshot list {}` shows those it has", run.workspace.name),
        )),
    }
}

/// The machine this workflow works on: the race's winner, or where the workspace lives.
async fn machine(run: &Run, state: &Placement) -> Result<InstanceRow, StepError> {
    let key = match run.kind {
        Kind::Restore => run.workspace.instance_key.clone(),
        _ => state.winner.clone(),
    };
    let row = match key {
        Some(key) => run.app.store.instance(&key).await?,
        None => None,
    };
    row.ok_or_else(|| {
        StepError::failed(
            "no_machine",
            format!("workspace {} lives on no machine", run.workspace.name),
            format!("`dumont failover run {}` puts it on one", run.workspace.name),
        )
    })
}

/// An open link to the machine: the one at hand, another part's, or a new one.
async fn link(run: &mut Run, row: &InstanceRow) -> Result<Arc<Link>, LinkError> {
    if let Some(link) = run.link.clone().filter(|l| l.ended().is_none()) {
        return Ok(link);
    }
    let link = connect(run, row).await?;
    run.link = Some(link.clone());
    Ok(link)
}

/// Asks the machine; once more in a new session if this one ends under it: an agent that was killed
/// says nothing about its machine. Whatever is asked may be asked twice.
async fn on_machine<T, F>(
    run: &mut Run,
    row: &InstanceRow,
    ask: impl Fn(Arc<Link>) -> F,
) -> Result<T, LinkError>
where
    F: Future<Output = Result<T, LinkError>>,
{
    let asked = ask(link(run, row).await?).await;
    let Err(LinkError::Closed(why)) = &asked else {
        return asked;
    };
    run.say(format!("the session with the machine ended, trying again: {why}"))
        .await;
    ask(link(run, row).await?).await
}

/// Connects to a machine we know, or takes the session that is open.
pub async fn connect(run: &Run, row: &InstanceRow) -> Result<Arc<Link>, LinkError> {
    if let Some(link) = run.app.sessions.get(&row.key) {
        return Ok(link);
    }
    if row.ssh_host.is_none() {
        return Err(LinkError::Closed("its address is not known".into()));
    }
    let target = run.app.target_of(row, &run.workspace.spec.path).await;
    let deadline = Instant::now() + RELINK;
    loop {
        match Link::open(&target).await {
            Ok(link) => {
                let link = Arc::new(link);
                run.app.sessions.put(&row.key, link.clone());
                return Ok(link);
            }
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => sleep(Duration::from_millis(300)).await,
        }
    }
}

/// The machine failed, not the workspace: forget it and race on, or say so if we cannot.
async fn machine_failed(run: &mut Run, state: &mut Placement, error: &LinkError) -> StepResult {
    if run.kind == Kind::Restore {
        return Err(StepError::Failed(link_failure(error)));
    }
    run.say(format!("the machine failed after it was ready: {error}"))
        .await;
    run.still_ours().await?;
    if let Some(key) = state.winner.take() {
        if let Some(row) = run.app.store.instance(&key).await? {
            let app = &run.app;
            let cause = match abandoned::stopped_itself(app, &row).await {
                true => LossCause::Abandoned,
                false => LossCause::Host,
            };
            history::interrupted(app, &row, "died_before_it_served", cause, app.now()).await;
        }
        run.app.sessions.remove(&key);
        super::dispose::owe(&run.app, &key).await?;
    }
    run.link = None;
    run.restoring = None;
    state.restored = None;
    state.ready_files = None;
    state.switched = false;
    run.keep(state);
    Ok(Flow::Goto(Step::Race))
}

/// Would another machine do better?
fn machine_is_to_blame(error: &LinkError) -> bool {
    match error {
        LinkError::Failed(f) => {
            matches!(
                f.code,
                FailureCode::DiskFull | FailureCode::Io | FailureCode::Busy | FailureCode::Transfer
            )
        }
        LinkError::Store(_) => false,
        _ => true,
    }
}
