//! The files: stop what would change them, restore, validate. What a move's old machine wrote last
//! comes along.

use super::{
    choose_snapshot, connect, link, machine, machine_failed, machine_is_to_blame, on_machine, snapshot,
};
use crate::link::{Fence, Granter, Link, LinkError, Note};
use crate::objects::ObjectError;
use crate::workflows::capture;
use crate::workflows::state::Placement;
use crate::workflows::{Flow, Restoring, Run, StepError, StepResult, link_failure};
use async_trait::async_trait;
use dumont_core::snapshot::{RestoreReport, Verdict};
use dumont_core::workflow::Kind;
use dumont_store::{Effect, InstanceRow, SnapshotRow, Store, WorkspaceState};
use dumont_wire::agent::{FailureCode, RestoreRequest};
use std::sync::Arc;

/// While a workflow works on a machine that no workspace lives on yet, its own fence decides.
struct WorkflowFence {
    store: Store,
    id: String,
    fence: i64,
}

#[async_trait]
impl Fence for WorkflowFence {
    async fn holds(&self) -> bool {
        matches!(self.store.workflow(&self.id).await, Ok(Some(w)) if w.fence == self.fence && w.finished_at.is_none())
    }
}

/// The last step before files change where the workspace lives. Its commit marks the workspace, so
/// that whatever ends the restore (a failover that takes over as well) leaves the mark.
pub async fn stop(run: &mut Run) -> StepResult {
    let mut state: Placement = run.load();
    choose_snapshot(run, &mut state).await?;
    if state.is_part()
        && let Some(snapshot) = snapshot(run, &state).await?
        && let Err(refused) = crate::workflows::part::check(run, &snapshot, &state).await
    {
        state.untouched = true;
        run.keep(&state);
        return Err(refused);
    }
    let row = machine(run, &state).await?;
    let stopped = on_machine(run, &row, |link| async move { link.stop_workload().await }).await;
    stopped.map_err(|e| StepError::Failed(link_failure(&e)))?;
    state.half_before = run.workspace.half_restored.clone();
    run.effects = vec![Effect::HalfRestored {
        snapshot_id: state.snapshot_id.clone(),
    }];
    run.keep(&state);
    Ok(Flow::Next)
}

pub async fn restore(run: &mut Run) -> StepResult {
    let mut state: Placement = run.load();
    choose_snapshot(run, &mut state).await?;
    if state.parting && !state.parted {
        part(run, &mut state).await?;
    }
    let row = machine(run, &state).await?;
    let Some(snapshot) = snapshot(run, &state).await? else {
        run.say("there is no snapshot to restore; the workspace starts empty")
            .await;
        run.keep(&state);
        return Ok(Flow::Next);
    };
    let early = !run.workspace.spec.snapshot.ready_when.is_empty() && run.kind != Kind::Restore;
    run.keep(&state);
    // One more try on the same machine: its session may have died with our last process.
    for last in [false, true] {
        let restored = if early {
            restore_early(run, &row, &snapshot, &state).await
        } else {
            restore_once(run, &row, &snapshot, &state)
                .await
                .map(Early::Complete)
        };
        match restored {
            Ok(Early::Ready(files)) => {
                state.ready_files = Some(files);
                run.keep(&state);
                return Ok(Flow::Next);
            }
            Ok(Early::Complete(report)) => {
                // A part of a snapshot is no state that the next one could build on.
                if !state.is_part() {
                    run.app
                        .store
                        .set_instance_last_snapshot(&row.key, &snapshot.id)
                        .await?;
                }
                state.restored = Some(report);
                run.keep(&state);
                return Ok(Flow::Next);
            }
            Err(error) if !machine_is_to_blame(&error) => {
                state.refused = matches!(&error, LinkError::Failed(f) if f.code == FailureCode::Invalid);
                run.keep(&state);
                let mut body = link_failure(&error);
                body.message = format!("restore of {}: {}", snapshot.id, body.message);
                return Err(StepError::Failed(body));
            }
            Err(error) => {
                suspect_the_store(run, &error).await?;
                if last {
                    return machine_failed(run, &mut state, &error).await;
                }
                run.say(format!("the restore broke off, trying again: {error}"))
                    .await
            }
        }
    }
    Ok(Flow::Next)
}

/// A transfer that failed says as much about the store as about the machine: if the store does
/// not answer us either, no other machine would do better, and none is blamed.
pub async fn suspect_the_store(run: &Run, error: &LinkError) -> Result<(), StepError> {
    let LinkError::Failed(failure) = error else {
        return Ok(());
    };
    if failure.code != FailureCode::Transfer {
        return Ok(());
    }
    let answer = run.app.objects.ping().await;
    answer.map_err(|e| StepError::failed(e.code(), format!("{failure}; {e}"), e.hint()))
}

/// A move that was asked for: what the old machine wrote while the new one booted comes along,
/// and nothing is written there after it. If it does not answer any more, the snapshot from the
/// beginning of the move holds.
async fn part(run: &mut Run, state: &mut Placement) -> Result<(), StepError> {
    let old = match &run.workspace.instance_key {
        Some(key) => run.app.store.instance(key).await?,
        None => None,
    };
    let Some(old) = old else { return Ok(()) };
    let stopped = match connect(run, &old).await {
        Ok(link) => link.stop_workload().await,
        Err(error) => Err(error),
    };
    if let Err(error) = stopped {
        run.say(format!(
            "the old machine does not answer, its last snapshot holds: {error}"
        ))
        .await;
        return Ok(());
    }
    match capture::last_words(run).await {
        Ok(snapshot) => {
            state.snapshot_id = Some(snapshot.id);
            state.parted = true;
        }
        Err(StepError::Store(error)) => return Err(StepError::Store(error)),
        Err(StepError::Failed(body)) => {
            run.say(format!("the old machine's last snapshot holds: {}", body.message))
                .await;
        }
    }
    Ok(())
}

/// How far a restore has come.
enum Early {
    /// The workload has what it needs, so many files; the rest comes in the background.
    Ready(u64),
    Complete(RestoreReport),
}

/// Restores until the workload may start, and lets the rest go on.
async fn restore_early(
    run: &mut Run,
    row: &InstanceRow,
    snapshot: &SnapshotRow,
    state: &Placement,
) -> Result<Early, LinkError> {
    let (link, granter, request) = prepare_restore(run, row, snapshot, state).await?;
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let notes = run.notes();
    let mut task = Restoring::new(tokio::spawn(async move {
        let listen = |note: Note| match note {
            Note::Ready(files) => drop(tell.try_send(files)),
            other => notes(other),
        };
        link.restore(request, &granter, &listen).await
    }));
    tokio::select! {
        biased;
        Some(files) = told.recv() => {
            run.restoring = Some(task);
            Ok(Early::Ready(files))
        }
        ended = &mut task => ended.unwrap_or_else(|e| Err(LinkError::Closed(e.to_string()))).map(Early::Complete),
    }
}

/// Waits for the rest of a restore, and judges all of it. A machine that dies meanwhile sends the
/// workflow back to the race, for the same snapshot: what is on it is a half.
pub async fn complete(run: &mut Run) -> StepResult {
    let mut state: Placement = run.load();
    if state.ready_files.is_none() || state.restored.is_some() {
        return Ok(Flow::Next);
    }
    let row = machine(run, &state).await?;
    let Some(snapshot) = snapshot(run, &state).await? else {
        return Ok(Flow::Next);
    };
    let mut restored = match run.restoring.take() {
        Some(task) => task
            .await
            .unwrap_or_else(|e| Err(LinkError::Closed(e.to_string()))),
        // Another process began it.
        None => restore_once(run, &row, &snapshot, &state).await,
    };
    if let Err(error) = &restored
        && machine_is_to_blame(error)
    {
        suspect_the_store(run, error).await?;
        run.say(format!(
            "the rest of the restore broke off, trying again: {error}"
        ))
        .await;
        restored = restore_once(run, &row, &snapshot, &state).await;
    }
    let report = match restored {
        Ok(report) => report,
        Err(error) if machine_is_to_blame(&error) => {
            // It serves no more.
            run.effects = vec![Effect::State {
                state: match run.kind {
                    Kind::Failover => WorkspaceState::FailingOver,
                    _ => WorkspaceState::Deploying,
                },
                message: None,
            }];
            return machine_failed(run, &mut state, &error).await;
        }
        Err(error) => {
            let mut body = link_failure(&error);
            body.message = format!("the rest of {}: {}", snapshot.id, body.message);
            return Err(StepError::Failed(body));
        }
    };
    state.restored = Some(report);
    run.keep(&state);
    let verdict = validate(run).await?;
    let store = &run.app.store;
    store.set_instance_last_snapshot(&row.key, &snapshot.id).await?;
    Ok(verdict)
}

async fn restore_once(
    run: &mut Run,
    row: &InstanceRow,
    snapshot: &SnapshotRow,
    state: &Placement,
) -> Result<RestoreReport, LinkError> {
    let (link, granter, request) = prepare_restore(run, row, snapshot, state).await?;
    link.restore(request, &granter, &run.notes()).await
}

async fn prepare_restore(
    run: &mut Run,
    row: &InstanceRow,
    snapshot: &SnapshotRow,
    state: &Placement,
) -> Result<(Arc<Link>, Granter, RestoreRequest), LinkError> {
    let link = link(run, row).await?;
    let app = &run.app;
    let fence = WorkflowFence {
        store: app.store.clone(),
        id: run.id.clone(),
        fence: run.fence,
    };
    let granter = Granter::reading(
        app.objects.clone(),
        link.base_url(),
        &run.workspace.id,
        Arc::new(fence),
    );
    let key = app
        .store
        .workspace_key(&run.workspace)
        .await
        .map_err(ObjectError::from)?;
    let request = RestoreRequest {
        key,
        path: link.path().to_owned(),
        head: snapshot.head.clone(),
        delete: state.delete,
        ready_when: match run.kind {
            // Its workload stands still: there is nothing to be early for.
            Kind::Restore => Vec::new(),
            _ => run.workspace.spec.snapshot.ready_when.clone(),
        },
        started: state.ready_files.is_some(),
        include: state.include.clone(),
        exclude: state.exclude.clone(),
        priority: run.workspace.spec.snapshot.priority.clone(),
    };
    Ok((link, granter, request))
}

pub async fn validate(run: &mut Run) -> StepResult {
    let state: Placement = run.load();
    let Some(report) = &state.restored else {
        return Ok(Flow::Next);
    };
    let validation = &report.validation;
    let line = serde_json::json!({
        "validation": validation.validation,
        "files_restored": validation.files_restored,
        "files_expected": validation.files_expected,
    });
    run.say(line.to_string()).await;
    if validation.validation == Verdict::Ok && validation.files_restored == validation.files_expected {
        if run.kind == Kind::Restore {
            // A part that is whole makes nothing else whole.
            let snapshot_id = state.half_before.clone().filter(|_| state.is_part());
            run.effects = vec![Effect::HalfRestored { snapshot_id }];
        }
        return Ok(Flow::Next);
    }
    let shown: Vec<_> = validation.problems.iter().take(5).cloned().collect();
    Err(StepError::failed(
        "validation_failed",
        format!(
            "{} of {} files are as the snapshot has them: {}",
            validation.files_restored,
            validation.files_expected,
            shown.join("; ")
        ),
        "try again on another machine, or restore an earlier snapshot with --snapshot",
    ))
}
