//! Which function does which step, and what is undone when a workflow fails.

use super::state::Placement;
use super::{Flow, Run, StepError, StepResult, capture, detect, dispose, placement, race, search, switch};
use dumont_core::workflow::{Kind, Step};
use dumont_store::{Effect, Error as StoreError, InstanceState, WorkspaceState};
use dumont_wire::rest::ErrorBody;

/// Does one step.
pub async fn run(run: &mut Run, step: Step) -> StepResult {
    match step {
        Step::Detect => detect::run(run).await,
        Step::Search => search::run(run).await,
        Step::Race => race::run(run).await,
        Step::Stop => placement::stop(run).await,
        Step::Capture => capture::capture(run).await,
        Step::Commit => capture::commit(run).await,
        Step::Restore => placement::restore(run).await,
        Step::Validate => placement::validate(run).await,
        Step::Start => placement::start(run).await,
        Step::Probe => placement::probe(run).await,
        Step::Switch => switch::switch(run).await,
        Step::Cleanup => switch::cleanup(run).await,
        Step::Record => switch::record(run).await,
        Step::Destroy => destroy(run).await,
        Step::Done => Ok(Flow::Next),
    }
}

/// Teardown: everything the workspace rents goes; its snapshots stay.
async fn destroy(run: &mut Run) -> StepResult {
    for row in run.app.store.instances_of(&run.workspace.id).await? {
        if matches!(row.state, InstanceState::Destroyed)
            || (row.state == InstanceState::Failed && row.instance_id.is_none())
        {
            continue;
        }
        dispose::owe(&run.app, &row.key).await?;
        if let Err(error) = dispose::destroy(&run.app, &row).await {
            run.say(format!(
                "{} is not destroyed yet, the reaper goes on: {error}",
                row.offer.machine
            ))
            .await;
            run.app.reap.notify_one();
        }
    }
    run.effects = vec![Effect::Delete];
    Ok(Flow::Next)
}

/// A workflow fails: nothing stays rented that no workspace owns, and the workspace says why.
/// Runs again after a crash, so every line may be repeated.
pub async fn give_up(run: &mut Run, error: &ErrorBody) -> Result<(), StoreError> {
    if let Err(StepError::Store(error)) = write_failed_event(run, error).await {
        return Err(error);
    }
    let message = Some(format!("{} failed: {} — {}", run.kind, error.message, error.hint));
    let state: Placement = run.load();
    match run.kind {
        Kind::Deploy | Kind::Failover => {
            release(run).await?;
            let old_lives = run.kind == Kind::Failover
                && state
                    .loss
                    .as_ref()
                    .is_some_and(|l| !l.dead && l.instance_key.is_some());
            if old_lives {
                run.effects = vec![Effect::State {
                    state: WorkspaceState::Running,
                    message,
                }];
            } else {
                if let Some(key) = state.loss.and_then(|l| l.instance_key) {
                    dispose::owe(&run.app, &key).await?;
                }
                run.effects = vec![
                    Effect::Detach,
                    Effect::State {
                        state: WorkspaceState::Failed,
                        message,
                    },
                ];
            }
        }
        Kind::Restore | Kind::Teardown => {
            run.effects = vec![Effect::State {
                state: WorkspaceState::Running,
                message,
            }];
        }
        Kind::Snapshot => {}
    }
    run.app.reap.notify_one();
    run.app.watch.notify_one();
    Ok(())
}

/// Marks every instance that this workflow rented and nobody owns.
async fn release(run: &Run) -> Result<(), StoreError> {
    for row in race::rented_by(run).await? {
        if matches!(
            row.state,
            InstanceState::Intended | InstanceState::Rented | InstanceState::Ready
        ) {
            dispose::owe(&run.app, &row.key).await?;
        }
    }
    Ok(())
}

async fn write_failed_event(run: &Run, error: &ErrorBody) -> Result<(), StepError> {
    if run.kind != Kind::Failover {
        return Ok(());
    }
    let state: Placement = run.load();
    let event = switch::event(run, &state, Some(format!("{}: {}", error.code, error.message))).await?;
    run.app.store.insert_failover_event(&event).await?;
    Ok(())
}
