//! The workload: started where the files are, and probed until it serves.

use super::{connect, machine, machine_failed, on_machine};
use crate::link::{Link, LinkError};
use crate::workflows::state::Placement;
use crate::workflows::{Flow, Run, StepError, StepResult, link_failure};
use dumont_core::spec::{Probe, WorkspaceSpec};
use dumont_core::workflow::Kind;
use dumont_store::{Effect, WorkspaceState};
use dumont_wire::agent::Workload;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The workspace stays where it was after all: its workload may have been stopped.
pub async fn go_on_there(run: &Run) {
    let spec = &run.workspace.spec;
    let (Some(start), Some(key)) = (spec.start.clone(), &run.workspace.instance_key) else {
        return;
    };
    let Ok(Some(row)) = run.app.store.instance(key).await else {
        return;
    };
    let started = match connect(run, &row).await {
        Ok(link) => link.start_workload(workload(spec, start, &link)).await,
        Err(error) => Err(error),
    };
    if let Err(error) = started {
        run.say(format!(
            "the workload could not be started again where it was: {error}"
        ))
        .await;
    }
}

/// The workload as it runs on this machine: `DUMONT_PATH` says where the workspace really lies.
fn workload(spec: &WorkspaceSpec, start: String, link: &Link) -> Workload {
    let path = link.path().to_owned();
    let mut env = spec.env.clone();
    env.entry("DUMONT_PATH".into()).or_insert_with(|| path.clone());
    Workload { start, path, env }
}

pub async fn start(run: &mut Run) -> StepResult {
    let mut state: Placement = run.load();
    let spec = run.workspace.spec.clone();
    let Some(command) = spec.start.clone() else {
        return Ok(Flow::Next);
    };
    let row = machine(run, &state).await?;
    let start = |link: Arc<Link>| {
        let workload = workload(&spec, command.clone(), &link);
        async move { link.start_workload(workload).await }
    };
    match on_machine(run, &row, start).await {
        Ok(()) => Ok(Flow::Next),
        Err(LinkError::Failed(failure)) => Err(StepError::Failed(link_failure(&LinkError::Failed(failure)))),
        Err(error) => machine_failed(run, &mut state, &error).await,
    }
}

pub async fn probe(run: &mut Run) -> StepResult {
    let mut state: Placement = run.load();
    let Some(probe) = run.workspace.spec.probe.clone() else {
        return served(run, &state);
    };
    let timeout_s = probe.timeout_s();
    let row = machine(run, &state).await?;
    let deadline = Instant::now() + Duration::from_secs(timeout_s.into());
    let mut pause = Duration::from_millis(20);
    loop {
        let ask = |link: Arc<Link>| {
            let probe = probe.clone();
            async move { link.probe(probe.clone(), one_try(&probe, deadline)).await }
        };
        let answer = on_machine(run, &row, ask).await;
        let answer = match answer {
            Ok(answer) if answer.healthy => {
                run.say(format!("the probe {}", answer.verdict)).await;
                return served(run, &state);
            }
            Ok(answer) => answer,
            Err(LinkError::Failed(f)) => return Err(StepError::Failed(link_failure(&LinkError::Failed(f)))),
            Err(error) => return machine_failed(run, &mut state, &error).await,
        };
        if Instant::now() >= deadline {
            return Err(StepError::failed(
                "probe_failed",
                format!(
                    "the probe {} after {timeout_s} s: {}{}",
                    answer.verdict,
                    answer.output.trim(),
                    workload_log(run).await
                ),
                "try the start and probe commands by hand: create the workspace without a probe, then `dumont ssh`",
            ));
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// How long one try may take. A hanging command or page is asked again; an inference that
/// waits for its weights to load is not begun anew.
fn one_try(probe: &Probe, deadline: Instant) -> Duration {
    let left = deadline
        .saturating_duration_since(Instant::now())
        .max(Duration::from_secs(1));
    match probe {
        Probe::Ollama { .. } => left,
        Probe::Command { .. } | Probe::Http { .. } => left.min(Duration::from_secs(30)),
    }
}

/// The last step of a restore in place: its report is the workflow's result, and what went wrong
/// before is over.
fn served(run: &mut Run, state: &Placement) -> StepResult {
    if run.kind == Kind::Restore {
        run.effects = vec![Effect::State {
            state: WorkspaceState::Running,
            message: None,
        }];
        run.result = serde_json::to_value(&state.restored).ok();
    }
    Ok(Flow::Next)
}

/// The end of the workload's log: the machine is given back before anyone could look.
async fn workload_log(run: &Run) -> String {
    let Some(link) = &run.link else {
        return String::new();
    };
    let look = Probe::Command {
        command: "tail -c 600 \"$HOME/.dumont/workload/log\"".into(),
        timeout_s: 5,
    };
    match link.probe(look, Duration::from_secs(5)).await {
        Ok(answer) if answer.healthy && !answer.output.trim().is_empty() => {
            format!("; the workload's log ends: {}", answer.output.trim())
        }
        _ => String::new(),
    }
}
