//! Runs workflows: claims them, keeps their lease, does their steps, commits each one.
//!
//! A step may be started twice (a paused owner may wake in the middle of a call), so every
//! step looks at what is there before it acts; its *commit* happens once, guarded by the fence
//! that grows with each claim. What a step needs again after a crash is in its state, saved
//! with the step; what it merely holds open (links, racers) is found again.

use super::{Flow, Run, StepError, dispose, steps};
use crate::app::App;
use crate::providers::budget::as_class;
use dumont_core::budget::Class;
use dumont_core::workflow::{Kind, Status, Step};
use dumont_store::{Advance, Error as StoreError, Finish, WorkflowRow};
use dumont_wire::rest::ErrorBody;
use serde_json::Value;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::select;

/// Without a poke, how often free work is looked for.
const LOOK: Duration = Duration::from_secs(2);

/// Claims and drives workflows until the server stops.
pub async fn run(app: Arc<App>) {
    loop {
        match app
            .store
            .claim_next_workflow(&app.process_id, app.config.timing.lease)
            .await
        {
            Ok(Some(row)) => {
                tokio::spawn(drive(app.clone(), row));
                continue;
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "cannot look for work"),
        }
        select! {
            () = app.stopping.cancelled() => return,
            () = app.work.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Drives one workflow as long as its fence is ours.
async fn drive(app: Arc<App>, row: WorkflowRow) {
    let (id, fence) = (row.id.clone(), row.fence);
    let class = match row.kind {
        Kind::Failover => Class::Urgent,
        _ => Class::Normal,
    };
    select! {
        outcome = as_class(class, steps_of(app.clone(), row)) => match outcome {
            Ok(()) => {}
            Err(StoreError::Stale { .. }) => tracing::warn!(workflow = %id, "another controller has taken it over"),
            // The lease runs out and the work is claimed again, by us or by another.
            Err(error) => tracing::error!(workflow = %id, %error, "the database failed in the middle of a workflow"),
        },
        // A branch and not a task of its own: whatever ends the work ends its lease.
        () = keep_lease(&app, &id, fence) => tracing::warn!(workflow = %id, "its lease is lost"),
        () = app.stopping.cancelled() => {}
    }
    app.progress.clear(&id);
    app.work.notify_one();
    app.watch.notify_one();
}

/// Returns when the lease is lost. What is preempted here must not go on to rent until its next heartbeat.
async fn keep_lease(app: &App, id: &str, fence: i64) {
    let lease = app.config.timing.lease;
    let mut preempted = pin!(app.preempted.notified());
    loop {
        select! {
            () = tokio::time::sleep(lease / 3) => {}
            () = &mut preempted => preempted.set(app.preempted.notified()),
        }
        match app.store.heartbeat_workflow(id, fence, lease).await {
            Ok(()) => {}
            Err(StoreError::Stale { .. }) => return,
            Err(error) => tracing::warn!(workflow = %id, %error, "cannot extend the lease"),
        }
    }
}

async fn steps_of(app: Arc<App>, row: WorkflowRow) -> Result<(), StoreError> {
    let Some(workspace) = app.store.workspace(&row.workspace_id).await? else {
        tracing::error!(workflow = %row.id, "its workspace is gone");
        return Ok(());
    };
    tracing::info!(workflow = %row.id, kind = %row.kind, step = %row.step, workspace = %workspace.name, "begins");
    let mut run = Run::new(app.clone(), &row, workspace);
    let mut step = row.step;
    while step != Step::Done {
        crash_at(&app, row.kind, step, true);
        let next = match steps::run(&mut run, step).await {
            Ok(Flow::Next) => row.kind.next(step).unwrap_or(Step::Done),
            Ok(Flow::Goto(to)) => to,
            Err(StepError::Store(error)) if passing(&error) => return Err(error),
            Err(StepError::Store(error)) => return fail(&mut run, &unexpected(&error)).await,
            Err(StepError::Failed(body)) => {
                tracing::warn!(workflow = %row.id, kind = %row.kind, %step, code = %body.code, "fails: {}", body.message);
                return fail(&mut run, &body).await;
            }
        };
        crash_at(&app, row.kind, step, false);
        let effects = std::mem::take(&mut run.effects);
        let commit = Advance {
            id: &row.id,
            fence: row.fence,
            from: step,
            to: next,
            state: &run.state,
            effects: &effects,
        };
        match app.store.advance_workflow(commit, app.now()).await {
            Ok(()) => {}
            Err(error) if passing(&error) => return Err(error),
            Err(error) => return fail(&mut run, &unexpected(&error)).await,
        }
        app.progress.clear(&row.id);
        tracing::info!(workflow = %row.id, kind = %row.kind, %step, "done");
        step = next;
    }
    finish(&mut run, Status::Done, None).await
}

/// Is it only that the work belongs to somebody else by now, or that the database is away? Any
/// other error would come again at every claim, so it ends the workflow.
fn passing(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Stale { what: "workflow", .. } | StoreError::Database(_) | StoreError::Unavailable(_)
    )
}

fn unexpected(error: &StoreError) -> ErrorBody {
    ErrorBody::new(
        "internal",
        error.to_string(),
        "look at the workspace's state and at the server's log, then try again",
    )
}

/// The end is written under the fence first; what must be destroyed follows, and is found by
/// the reaper if we die before it.
async fn fail(run: &mut Run, body: &ErrorBody) -> Result<(), StoreError> {
    run.effects.clear();
    run.still_ours().await?;
    let owed = steps::give_up(run, body).await?;
    finish(run, Status::Failed, serde_json::to_value(body).ok()).await?;
    for key in owed {
        dispose::owe(&run.app, &key).await?;
    }
    run.app.reap.notify_one();
    run.app.watch.notify_one();
    Ok(())
}

async fn finish(run: &mut Run, status: Status, error: Option<Value>) -> Result<(), StoreError> {
    let effects = std::mem::take(&mut run.effects);
    let end = Finish {
        id: &run.id,
        fence: run.fence,
        status,
        error: error.as_ref(),
        result: run.result.as_ref(),
        effects: &effects,
    };
    run.app.store.finish_workflow(end, run.app.now()).await?;
    crate::metrics::workflow_ended(run.kind, status);
    Ok(())
}

/// For crash drills: the process ends here as `kill -9` would end it.
fn crash_at(app: &App, kind: Kind, step: Step, begin: bool) {
    let Some(point) = &app.config.crash_at else { return };
    if point.kind == kind.as_str() && point.step == step.as_str() && point.begin == begin {
        tracing::error!("crash drill: killing this process at {kind}:{step}");
        let me = rustix::process::getpid();
        let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
    }
}
