//! The monitor: is each workspace's machine still there?
//!
//! One watcher per running workspace keeps a session open and gathers evidence for
//! `dumont_core::detect`; the judgement is there, the observing is here. A lost session costs
//! nothing by itself: the watcher dials again at once, and only if that fails as well, or the
//! provider agrees, does a failover begin.

use crate::app::App;
use crate::history;
use crate::link::{Link, LinkError};
use crate::providers::budget::as_class;
use crate::providers::{InstanceStatus, own};
use crate::ssh::SshError;
use crate::workflows::abandoned;
use crate::workflows::state::{Loss, Placement};
use dumont_core::blacklist::LossCause;
use dumont_core::budget::Class;
use dumont_core::detect::{Evidence, Judgement, ProviderWord, Redial, SILENCE, judge};
use dumont_core::time::Timestamp;
use dumont_core::workflow::Kind;
use dumont_store::{Effect, Error as StoreError, InstanceRow, NewWorkflow, WorkspaceRow, WorkspaceState};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::select;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use ulid::Ulid;

/// Between two looks at a healthy session.
const TICK: Duration = Duration::from_millis(500);
/// Between two questions to the provider about a machine in doubt, at the slowest.
const SLOWEST: Duration = Duration::from_secs(10);
/// How long a provider's hint is held against a machine that its word speaks against, ms; how often it
/// is asked after one, and how long between, for its own list may lag behind its notifications.
const HINT_MS: i64 = 30_000;
const HINT_ASKS: u8 = 3;
const HINT_PAUSE_MS: i64 = 2_000;
/// Missed heartbeats after which a new connection is tried, ms.
const QUIET_MS: i64 = 3_000;
/// Between two rounds over all workspaces.
const ROUND: Duration = Duration::from_secs(2);

/// Keeps one watcher per workspace that lives on a machine.
pub async fn run(app: Arc<App>) {
    let mut watchers: HashMap<String, JoinHandle<()>> = HashMap::new();
    loop {
        match living(&app).await {
            Ok(living) => {
                watchers.retain(|key, task| {
                    let stays = !task.is_finished() && living.contains_key(key);
                    if !stays {
                        // A watcher in the middle of a long dial must not live on beside the next.
                        task.abort();
                    }
                    stays
                });
                for (key, (workspace, row)) in living {
                    watchers.entry(key).or_insert_with(|| {
                        tokio::spawn(as_class(Class::Urgent, watch(app.clone(), workspace, row)))
                    });
                }
            }
            Err(error) => tracing::warn!(%error, "cannot see which workspaces to watch"),
        }
        select! {
            () = app.stopping.cancelled() => return,
            () = app.watch.notified() => {}
            () = sleep(ROUND) => {}
        }
    }
}

/// Running workspaces by the key of the instance they live on.
async fn living(app: &App) -> Result<HashMap<String, (WorkspaceRow, InstanceRow)>, StoreError> {
    let mut out = HashMap::new();
    let mut after = None;
    loop {
        let page = app.store.list_workspaces(after.as_deref(), 500).await?;
        for workspace in page.items {
            if workspace.state == WorkspaceState::Running
                && let Some(key) = workspace.instance_key.clone()
                && let Some(row) = app.store.instance(&key).await?
            {
                out.insert(key, (workspace, row));
            }
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(out),
        }
    }
}

/// Watches one machine until it is lost or no longer the workspace's.
async fn watch(app: Arc<App>, workspace: WorkspaceRow, row: InstanceRow) {
    let mut evidence = fresh(app.now());
    let mut pause = TICK;
    let mut hint = None;
    loop {
        let Ok(Some(now)) = app.store.workspace(&workspace.id).await else {
            return;
        };
        if now.instance_key.as_deref() != Some(row.key.as_str()) || now.state != WorkspaceState::Running {
            return;
        }
        match app.sessions.get(&row.key) {
            Some(link) => listen(&app, &link, &row, &mut evidence).await,
            None => {
                if let Some((when, why)) = app.sessions.take_end(&row.key) {
                    note_end(&row, &mut evidence, when, &why);
                }
                redial(&app, &workspace, &row, &mut evidence).await;
            }
        }
        hint = told(&app, &row, hint).await;
        if let Some(told) = hint.as_ref().filter(|t| t.word.says_lost()) {
            evidence.hinted = true;
            evidence.provider = Some(told.word);
        }
        match judge(&evidence, app.now()) {
            Judgement::Alive => pause = TICK,
            // The next look dials afresh, which decides faster than the provider's word.
            Judgement::Suspect if evidence.redial.is_none() => {}
            Judgement::Suspect => {
                // Ever less often while nothing changes: the account's calls serve everyone.
                evidence.provider = Some(ask_provider(&app, &row).await);
                sleep(pause).await;
                pause = (pause * 2).min(SLOWEST);
            }
            Judgement::Lost(cause) => {
                // Ends what still waits on it: a snapshot must not hold up the failover.
                if let Some(link) = app.sessions.remove(&row.key) {
                    link.close().await;
                }
                let lost_at = evidence.session_reset.unwrap_or(evidence.last_heard);
                if let Err(error) = fail_over(&app, &now, &row, cause.as_str(), lost_at).await {
                    tracing::warn!(workspace = %workspace.name, %error, "the failover could not begin; trying again");
                    sleep(TICK).await;
                    continue;
                }
                return;
            }
        }
    }
}

/// Nothing against it since `last_heard`.
fn fresh(last_heard: Timestamp) -> Evidence {
    Evidence {
        last_heard,
        session_reset: None,
        redial: None,
        provider: None,
        hinted: false,
    }
}

/// The provider told us of this instance by itself, and we asked whether it is so.
#[derive(Clone, Copy)]
struct Told {
    at: Timestamp,
    word: ProviderWord,
    asked: u8,
}

/// Asks, if there is a hint or the last one's answer may have come too early. What is known of it.
async fn told(app: &App, row: &InstanceRow, before: Option<Told>) -> Option<Told> {
    let now = app.now();
    let asked = match before {
        _ if app.hints.take(&row.key) => 0,
        None => return None,
        Some(told) if now.millis_since(told.at) > HINT_MS => return None,
        Some(told) if told.word.says_lost() || told.asked >= HINT_ASKS => return before,
        Some(told) if now.millis_since(told.at) < i64::from(told.asked) * HINT_PAUSE_MS => return before,
        Some(told) => told.asked,
    };
    let at = before.filter(|_| asked > 0).map_or(now, |told| told.at);
    Some(Told {
        at,
        word: ask_provider(app, row).await,
        asked: asked + 1,
    })
}

fn note_end(row: &InstanceRow, evidence: &mut Evidence, when: Timestamp, why: &str) {
    tracing::warn!(machine = %row.offer.machine, %why, "the session ended");
    evidence.session_reset = Some(when);
}

/// A live session: wait for its end, a while at most.
async fn listen(app: &App, link: &Arc<Link>, row: &InstanceRow, evidence: &mut Evidence) {
    select! {
        () = link.closed() => {}
        () = app.hints.came.notified() => {}
        () = sleep(TICK) => {}
    }
    let quiet = || app.now().millis_since(link.last_heard());
    if let Some((when, why)) = link.ended() {
        evidence.last_heard = link.last_heard().max(evidence.last_heard);
        note_end(row, evidence, when, &why);
        app.sessions.remove(&row.key);
    } else if quiet() < QUIET_MS {
        *evidence = fresh(link.last_heard());
    } else {
        // Quiet, but open: does a new connection get through? It may speak again meanwhile.
        let redial = knock(app, row).await;
        if quiet() < QUIET_MS {
            *evidence = fresh(link.last_heard());
            return;
        }
        evidence.redial = Some(redial);
        if redial == Redial::Connected && quiet() >= SILENCE.as_millis() as i64 {
            tracing::warn!(machine = %row.offer.machine, "the session is silent but the machine answers; renewing it");
            app.sessions.remove(&row.key);
            link.close().await;
        }
    }
}

/// No session: open one. Its failure is evidence.
async fn redial(app: &App, workspace: &WorkspaceRow, row: &InstanceRow, evidence: &mut Evidence) {
    if row.ssh_host.is_none() {
        return;
    }
    let target = app.target_of(row, &workspace.spec.path).await;
    let error = match Link::open(&target).await {
        Ok(link) => {
            note_address(app, row, &link).await;
            app.sessions.put(&row.key, Arc::new(link));
            *evidence = fresh(app.now());
            return;
        }
        Err(error) => error,
    };
    tracing::warn!(machine = %row.offer.machine, %error, "cannot open a session");
    let redial = match &error {
        LinkError::Ssh(SshError::Refused(_)) => Redial::Refused,
        LinkError::Ssh(SshError::Denied(_) | SshError::HostKeyChanged { .. })
        | LinkError::NoAgent(_)
        | LinkError::Failed(_) => Redial::Shut,
        _ => Redial::Unreachable,
    };
    evidence.redial = Some(redial);
    // A reset and a refusal decide at once; anything else is looked at again, not in a hurry.
    if redial != Redial::Refused || evidence.session_reset.is_none() {
        sleep(TICK).await;
    }
}

/// A machine of the user's own may be somewhere else than it was.
async fn note_address(app: &App, row: &InstanceRow, link: &Link) {
    let at = link.reached_at();
    if (row.ssh_host.as_deref(), row.ssh_port) == (Some(at.host), Some(at.port)) {
        return;
    }
    tracing::info!(machine = %row.offer.machine, host = at.host, port = at.port, "is reached elsewhere now");
    if let Err(error) = app.store.set_instance_endpoint(&row.key, &at, app.now()).await {
        tracing::warn!(machine = %row.offer.machine, %error, "its address could not be written down");
    }
}

/// A bare connection, to tell a hung session from a dead machine.
async fn knock(app: &App, row: &InstanceRow) -> Redial {
    let target = app.target_of(row, "").await;
    let (user, pinned) = (target.access.user(), target.access.host_key.as_deref());
    let mut heard = Redial::Unreachable;
    for endpoint in &target.endpoints {
        match crate::ssh::connect(endpoint, user, &app.ssh_key, pinned, None).await {
            Ok(connection) => {
                connection.close().await;
                return Redial::Connected;
            }
            Err(SshError::Refused(_)) => heard = Redial::Refused,
            Err(_) => heard = Redial::Unreachable,
        }
    }
    heard
}

async fn ask_provider(app: &App, row: &InstanceRow) -> ProviderWord {
    let (Some(market), Some(id)) = (app.market(&row.machine.provider), &row.instance_id) else {
        return ProviderWord::NoWord;
    };
    match market.provider.get(id).await {
        Ok(Some(instance)) => match instance.status {
            InstanceStatus::Running | InstanceStatus::Starting | InstanceStatus::Unknown => {
                ProviderWord::Running
            }
            InstanceStatus::Stopped => ProviderWord::Stopped,
            InstanceStatus::Outbid => ProviderWord::Outbid,
            InstanceStatus::Offline => ProviderWord::Offline,
        },
        Ok(None) => ProviderWord::Gone,
        Err(_) if others_answer(app, &row.machine.provider).await => ProviderWord::Running,
        Err(_) => ProviderWord::NoWord,
    }
}

/// Another provider's answer says nothing about the machine, but that it is not we who are cut off,
/// which is all that the word of a running one adds.
async fn others_answer(app: &App, but: &str) -> bool {
    let others = app.markets.values().filter(|m| m.provider.name() != but);
    for market in others {
        // Its own machines prove nothing where there are none.
        let answered = market.listing.whole(Instant::now()).await;
        if answered.is_ok_and(|_| market.provider.name() != own::NAME) {
            return true;
        }
    }
    false
}

/// Starts the failover workflow, unless the policy leaves that to a person.
async fn fail_over(
    app: &App,
    workspace: &WorkspaceRow,
    row: &InstanceRow,
    trigger: &str,
    lost_at: Timestamp,
) -> Result<(), StoreError> {
    if !workspace.spec.failover.automatic {
        let loss = loss(row, trigger, true, lost_at, app.now());
        let cause = history::lost(app, &loss).await;
        let message = if abandoned::stopped_itself(app, row).await {
            format!(
                "its machine {}; its disk is kept, and `dumont failover run {}` starts it again",
                abandoned::words(row),
                workspace.name
            )
        } else {
            let (why, then) = match cause {
                // Which of the two, a start would tell.
                Some(LossCause::Outbid) => ("outbid or stopped in the account", "has it back, or moves it"),
                Some(LossCause::UserStop) => ("stopped in the account", "has it back, or moves it"),
                _ => (trigger, "moves it"),
            };
            format!(
                "its machine {} is lost ({why}); `dumont failover run {}` {then}",
                row.offer.machine, workspace.name
            )
        };
        // What was judged may be over by now: the machine may be left already.
        let now = app.store.workspace(&workspace.id).await?;
        if !now.is_some_and(|w| w.fence == workspace.fence && w.state == WorkspaceState::Running) {
            return Ok(());
        }
        return app
            .store
            .set_workspace_state(&workspace.id, WorkspaceState::Failed, Some(&message))
            .await;
    }
    let loss = loss(row, trigger, true, lost_at, app.now());
    start_failover(app, workspace, Some(loss), None).await.map(drop)
}

/// What is known of the machine that a failover leaves.
pub fn loss(row: &InstanceRow, trigger: &str, dead: bool, lost_at: Timestamp, now: Timestamp) -> Loss {
    Loss {
        trigger: trigger.to_owned(),
        cause: None,
        dead,
        lost_at,
        detected_at: now,
        instance_key: Some(row.key.clone()),
        instance_id: row.instance_id.clone(),
        machine: Some(row.machine.clone()),
        ssh_host: row.ssh_host.clone(),
        ssh_port: row.ssh_port,
    }
}

/// Starts a failover. Snapshots and restores on the old machine give way.
pub async fn start_failover(
    app: &App,
    workspace: &WorkspaceRow,
    loss: Option<Loss>,
    snapshot_id: Option<String>,
) -> Result<String, StoreError> {
    let state = Placement {
        loss,
        snapshot_id,
        ..Placement::default()
    };
    let error = serde_json::json!({
        "code": "preempted",
        "message": "its machine was lost and a failover took over",
        "hint": "take it again when the failover is done",
    });
    let new = NewWorkflow {
        id: Ulid::generate().to_string(),
        kind: Kind::Failover,
        workspace_id: workspace.id.clone(),
        state: serde_json::to_value(&state).unwrap_or_default(),
        preempt: vec![Kind::Snapshot, Kind::Restore],
        preempt_error: Some(error),
        expects_instance: workspace.instance_key.clone(),
        effects: vec![
            Effect::BumpFence,
            Effect::State {
                state: WorkspaceState::FailingOver,
                message: None,
            },
        ],
    };
    let started = app.store.start_workflow(&new, app.now()).await?;
    app.preempted.notify_waiters();
    app.work.notify_one();
    Ok(started.workflow.id)
}
