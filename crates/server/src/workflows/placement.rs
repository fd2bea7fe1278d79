//! Putting the workspace onto a ready machine: restore, validate, start, probe.
//!
//! A machine may die in the middle of any of these. That is not the workflow's failure: it
//! goes back to the race with the machines that are left. A snapshot that is damaged, a failed
//! validation or a workload that does not come up are, because another machine would not help.

use super::state::Placement;
use super::{Flow, Restoring, Run, StepError, StepResult, abandoned, link_failure};
use crate::history;
use crate::link::{Fence, Granter, Link, LinkError, Note};
use crate::objects::ObjectError;
use crate::providers::{Access, SshEndpoint};
use async_trait::async_trait;
use dumont_core::blacklist::LossCause;
use dumont_core::snapshot::{RestoreReport, Verdict};
use dumont_core::spec::{Probe, WorkspaceSpec};
use dumont_core::workflow::{Kind, Step};
use dumont_store::{Effect, InstanceRow, SnapshotRow, SnapshotState, Store, WorkspaceState};
use dumont_wire::agent::{FailureCode, RestoreRequest, Workload};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long a machine that was ready may be unreachable before it counts as dead.
const RELINK: Duration = Duration::from_secs(8);
/// Room on the disk beside the files themselves.
const DISK_SLACK: u64 = 64 << 20;

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
    let (Some(host), Some(port)) = (row.ssh_host.clone(), row.ssh_port) else {
        return Err(LinkError::Closed("its address is not known".into()));
    };
    let endpoints = vec![SshEndpoint { host, port }];
    let target = run
        .app
        .target(endpoints, Access::of(row), &run.workspace.spec.path);
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

/// The last step before files change where the workspace lives. Its commit marks the workspace, so
/// that whatever ends the restore (a failover that takes over as well) leaves the mark.
pub async fn stop(run: &mut Run) -> StepResult {
    let mut state: Placement = run.load();
    choose_snapshot(run, &mut state).await?;
    if state.is_part()
        && let Some(snapshot) = snapshot(run, &state).await?
        && let Err(refused) = super::part::check(run, &snapshot, &state).await
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
    match super::capture::last_words(run).await {
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
