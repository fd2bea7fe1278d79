//! The end of a placement: the workspace lives on the new machine, the old one is given back,
//! and a failover writes down what it took.
//!
//! The switch is the commit of its step: new instance, higher fence, new state, in one
//! transaction. From then on the old machine can neither upload nor commit.

use super::dispose;
use super::state::{Loss, Placement};
use super::{Flow, Run, StepError, StepResult};
use crate::history;
use dumont_core::snapshot::Validation;
use dumont_core::time::Timestamp;
use dumont_core::workflow::Step;
use dumont_store::{Effect, FailoverEventRow, InstanceState, WorkspaceState};
use std::time::Duration;
use tokio::time::timeout;

/// How long the failover waits for the old machine's end before it leaves it to the reaper.
const CLEANUP: Duration = Duration::from_secs(10);

pub async fn switch(run: &mut Run) -> StepResult {
    let state: Placement = run.load();
    let Some(winner) = &state.winner else {
        return Err(StepError::failed(
            "internal",
            "there is no machine to switch to",
            "report this",
        ));
    };
    // A crash in the middle of giving up may have marked it; then another one is needed.
    let row = run.app.store.instance(winner).await?;
    let usable = [InstanceState::Rented, InstanceState::Ready, InstanceState::Owned];
    if !row.is_some_and(|r| usable.contains(&r.state)) {
        run.say("the machine was given up meanwhile; racing on").await;
        run.keep(&Placement {
            winner: None,
            restored: None,
            ..state
        });
        return Ok(Flow::Goto(Step::Race));
    }
    run.keep(&Placement {
        switched: true,
        ..state.clone()
    });
    run.effects = vec![
        Effect::Attach {
            instance_key: winner.clone(),
        },
        Effect::State {
            state: WorkspaceState::Running,
            message: None,
        },
    ];
    Ok(Flow::Next)
}

pub async fn cleanup(run: &mut Run) -> StepResult {
    let mut state: Placement = run.load();
    // One that we have back is not the old one.
    if let Some(loss) = &mut state.loss
        && let Some(key) = loss.instance_key.clone()
        && state.winner.as_ref() != Some(&key)
    {
        run.app.watch.notify_one();
        if loss.dead {
            loss.cause = history::lost(&run.app, loss).await;
            run.keep(&state);
        }
        run.app.sessions.remove(&key);
        dispose::owe(&run.app, &key).await?;
        if let Ok(Some(row)) = run.app.store.instance(&key).await
            && !matches!(
                timeout(CLEANUP, dispose::destroy(&run.app, &row)).await,
                Ok(Ok(()))
            )
        {
            run.say("the old machine could not be destroyed yet; the reaper goes on")
                .await;
        }
    }
    Ok(Flow::Next)
}

pub async fn record(run: &mut Run) -> StepResult {
    let state: Placement = run.load();
    let event = event(run, &state, None).await?;
    if run.app.store.insert_failover_event(&event).await? {
        crate::metrics::failover(&event);
    }
    run.say(format!(
        "failover took {:.1} s from the loss",
        event.total_ms as f64 / 1000.0
    ))
    .await;
    run.result = Some(serde_json::json!({ "failover_id": event.id }));
    Ok(Flow::Next)
}

/// The row of `failover_test_events`; `failure` is why it failed.
pub async fn event(
    run: &Run,
    state: &Placement,
    failure: Option<String>,
) -> Result<FailoverEventRow, StepError> {
    let now = run.app.now();
    let steps = run
        .app
        .store
        .workflow(&run.id)
        .await?
        .map(|w| w.steps)
        .unwrap_or_default();
    let took = |step: Step| -> i64 {
        steps
            .iter()
            .filter(|s| s.step == step)
            .map(|s| s.elapsed_ms as i64)
            .sum()
    };
    let loss = state.loss.clone().unwrap_or_else(|| Loss {
        trigger: "requested".into(),
        cause: None,
        dead: false,
        lost_at: now,
        detected_at: now,
        instance_key: None,
        instance_id: None,
        machine: None,
        ssh_host: None,
        ssh_port: None,
    });
    let served_again = served_again(&steps).unwrap_or(now);
    // The last byte, where the workload did not wait for it.
    let complete = ended(&steps, Step::Complete).filter(|_| state.ready_files.is_some());
    // A machine that was asked to go works on until the switch.
    let serving_until = if loss.dead { loss.lost_at } else { served_again };
    let snapshot = match &state.snapshot_id {
        Some(id) => run.app.store.snapshot(id).await?,
        None => None,
    };
    let new = match &state.winner {
        Some(key) => run.app.store.instance(key).await?,
        None => None,
    };
    // Its files are as they were.
    let had_back = state.winner.is_some() && state.winner == loss.instance_key;
    let restored = state.restored.as_ref();
    let early = state.ready_files.is_some();
    let compared_ms = restored
        .filter(|_| !early)
        .map_or(0, |r| r.validation_ms.min(r.elapsed_ms) as i64);
    let validation: Option<Validation> = restored.map(|r| r.validation.clone());
    Ok(FailoverEventRow {
        workflow_id: run.id.clone(),
        id: run.id.clone(),
        workspace_id: run.workspace.id.clone(),
        workspace_name: run.workspace.name.clone(),
        success: failure.is_none(),
        failure_reason: failure,
        trigger: loss.trigger,
        cause: loss.cause,
        lost_at: loss.lost_at,
        detected_at: loss.detected_at,
        finished_at: now,
        detection_ms: loss.detected_at.millis_since(loss.lost_at),
        search_ms: took(Step::Search),
        gpu_provisioning_time_ms: took(Step::Race),
        // The agent compares at the end of its restore; the plan counts that as validation.
        restore_ms: took(Step::Restore) - compared_ms,
        validation_ms: took(Step::Validate) + compared_ms,
        start_ms: took(Step::Start),
        probe_ms: took(Step::Probe),
        complete_ms: complete.map(|at| at.millis_since(loss.lost_at)),
        switch_ms: took(Step::Switch),
        total_ms: served_again.millis_since(loss.lost_at),
        original_instance_id: loss.instance_id,
        original_ssh_host: loss.ssh_host,
        original_ssh_port: loss.ssh_port,
        new_instance_id: new.as_ref().and_then(|i| i.instance_id.clone()),
        new_ssh_host: new.as_ref().and_then(|i| i.ssh_host.clone()),
        new_ssh_port: new.as_ref().and_then(|i| i.ssh_port),
        snapshot_id: state.snapshot_id.clone(),
        snapshot_type: snapshot.as_ref().map(|s| s.snapshot_type),
        base_snapshot_id: snapshot.as_ref().and_then(|s| s.base_snapshot_id.clone()),
        files_changed: snapshot.as_ref().map(|s| s.files_changed),
        validation,
        model_files: None,
        bytes_restored: restored.map_or(0, |r| r.bytes_restored),
        bytes_downloaded: restored.map_or(0, |r| r.downloaded_bytes),
        data_loss_ms: match &snapshot {
            _ if had_back || state.parted => Some(0),
            Some(s) => Some(serving_until.millis_since(s.created_at).max(0)),
            None => None,
        },
    })
}

/// The workload serves, validated, from the end of the switch: what comes after (destroying
/// the old machine, writing rows) nobody waits for.
fn served_again(steps: &[dumont_store::StepTime]) -> Option<Timestamp> {
    ended(steps, Step::Switch)
}

fn ended(steps: &[dumont_store::StepTime], step: Step) -> Option<Timestamp> {
    let last = steps.iter().rev().find(|s| s.step == step)?;
    Some(last.started_at.plus(Duration::from_millis(last.elapsed_ms)))
}
