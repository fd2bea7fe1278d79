//! Which function does which step, and what is undone when a workflow fails.

use super::state::{Loss, Placement};
use super::{Flow, Run, StepError, StepResult, capture, detect, dispose, placement, race, search, switch};
use crate::history;
use dumont_core::blacklist::LossCause;
use dumont_core::detect::Cause;
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
        Step::Complete => placement::complete(run).await,
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
/// Gives the instances to destroy once the end is written.
pub async fn give_up(run: &mut Run, error: &ErrorBody) -> Result<Vec<String>, StoreError> {
    let mut loss = match run.kind {
        Kind::Deploy | Kind::Failover => run.load::<Placement>().loss,
        _ => None,
    };
    if loss.as_ref().is_some_and(|l| l.dead)
        && !old_machine_stays(run, loss.as_ref())
        && let Some(loss) = &mut loss
    {
        loss.cause = history::lost(&run.app, loss).await;
        let state: Placement = run.load();
        run.keep(&Placement {
            loss: Some(loss.clone()),
            ..state
        });
    }
    if let Err(StepError::Store(error)) = write_failed_event(run, error).await {
        return Err(error);
    }
    let mut message = format!("{} failed: {} — {}", run.kind, error.message, error.hint);
    let mut owed = Vec::new();
    match run.kind {
        // It serves already; what failed is the rest of its files.
        Kind::Deploy | Kind::Failover if run.load::<Placement>().switched => {
            message.push_str("; its workload runs with what was restored: restore a snapshot, or move it");
            let half = Effect::HalfRestored {
                snapshot_id: run.load::<Placement>().snapshot_id,
            };
            run.effects = vec![state(WorkspaceState::Running, message), half];
        }
        Kind::Deploy | Kind::Failover => {
            owed = rented(run).await?;
            if old_machine_stays(run, loss.as_ref()) {
                if run.load::<Placement>().parting {
                    placement::go_on_there(run).await;
                }
                // It may have taken over a restore in place.
                if let Some(half) = capture::half(&run.workspace, false) {
                    message.push_str(&format!("; {}; {}", half.message, half.hint));
                }
                run.effects = vec![state(WorkspaceState::Running, message)];
            } else if had_back(run, loss.as_ref()) {
                message.push_str("; its machine is back, with its files as they were");
                run.effects = vec![state(WorkspaceState::Running, message)];
            } else if stands_still(run, loss.as_ref()).await? {
                // Its disk is whole, so nothing on it is lost before a person says so.
                message.push_str("; the disk of its machine is kept");
                run.effects = vec![state(WorkspaceState::Failed, message)];
            } else {
                owed.extend(loss.and_then(|l| l.instance_key));
                run.effects = vec![Effect::Detach, state(WorkspaceState::Failed, message)];
            }
        }
        Kind::Restore if run.load::<Placement>().untouched => {}
        Kind::Restore if run.load::<Placement>().refused => {
            placement::go_on_there(run).await;
            let half = Effect::HalfRestored {
                snapshot_id: run.load::<Placement>().half_before,
            };
            run.effects = vec![state(WorkspaceState::Running, message), half];
        }
        Kind::Restore => {
            message.push_str(
                "; its workload may be stopped: restore a snapshot, or move it with `dumont failover run`",
            );
            run.effects = vec![state(WorkspaceState::Running, message)];
        }
        Kind::Teardown => run.effects = vec![state(WorkspaceState::Running, message)],
        Kind::Snapshot => {}
    }
    Ok(owed)
}

fn state(state: WorkspaceState, message: String) -> Effect {
    Effect::State {
        state,
        message: Some(message),
    }
}

/// Does the workspace go on living where it was? Yes if the machine was never said to be dead,
/// and if only silence said so and the provider then failed us as well: that may have been our
/// own network, and the watcher judges again.
fn old_machine_stays(run: &Run, loss: Option<&Loss>) -> bool {
    let only_silence = |l: &Loss| {
        l.trigger == Cause::SilentAndUnreachable.as_str() && run.load::<Placement>().offers.is_empty()
    };
    run.kind == Kind::Failover
        && loss.is_some_and(|l| l.instance_key.is_some() && (!l.dead || only_silence(l)))
}

/// Whether the machine that was lost is ours again.
fn had_back(run: &Run, loss: Option<&Loss>) -> bool {
    let lost = loss.and_then(|l| l.instance_key.as_ref());
    lost.is_some() && run.load::<Placement>().winner.as_ref() == lost
}

/// It was stopped or outbid, and nothing came of it since.
async fn stands_still(run: &Run, loss: Option<&Loss>) -> Result<bool, StoreError> {
    let Some(key) = loss
        .filter(|l| l.cause.is_some_and(|cause| cause != LossCause::Host))
        .and_then(|l| l.instance_key.as_ref())
    else {
        return Ok(false);
    };
    let row = run.app.store.instance(key).await?;
    Ok(row.is_some_and(|r| r.state == InstanceState::Owned))
}

/// Every instance that this workflow rented and nobody owns.
async fn rented(run: &Run) -> Result<Vec<String>, StoreError> {
    let unowned = [
        InstanceState::Intended,
        InstanceState::Rented,
        InstanceState::Ready,
    ];
    let rows = race::rented_by(run).await?;
    Ok(rows
        .into_iter()
        .filter(|r| unowned.contains(&r.state))
        .map(|r| r.key)
        .collect())
}

async fn write_failed_event(run: &Run, error: &ErrorBody) -> Result<(), StepError> {
    if run.kind != Kind::Failover {
        return Ok(());
    }
    let state: Placement = run.load();
    let event = switch::event(run, &state, Some(format!("{}: {}", error.code, error.message))).await?;
    if run.app.store.insert_failover_event(&event).await? {
        crate::metrics::failover(&event);
    }
    Ok(())
}
