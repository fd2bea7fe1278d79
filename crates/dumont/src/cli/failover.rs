//! `dumont failover`: run, show, list.

use super::workspace::path_of;
use crate::client::{Client, encode};
use crate::config::Globals;
use crate::fail::fail;
use crate::{output, progress};
use anyhow::Result;
use clap::Subcommand;
use dumont_core::id::WorkspaceName;
use dumont_wire::rest::{Attempt, ErrorBody, FailoverEvent, RunFailover, Started};

/// What a failover took before: the total in the failover plan, milliseconds.
pub const PLAN_MTTR_MS: i64 = 107_900;

#[derive(Debug, Subcommand)]
pub enum FailoverCommand {
    /// Move a workspace to another machine now
    Run {
        name: WorkspaceName,
        /// Why, for the record
        #[arg(long)]
        reason: Option<String>,
        /// Restore this snapshot [default: the newest]
        #[arg(long, value_name = "ID")]
        snapshot: Option<String>,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
    /// One failover: every phase, every machine tried, what was lost
    Show {
        /// Its id, or a workspace's name for its newest one
        #[arg(value_name = "ID|NAME")]
        id: String,
    },
    /// All failovers, newest first
    List {
        /// Of one workspace only
        #[arg(long, value_name = "NAME")]
        workspace: Option<WorkspaceName>,
    },
}

pub async fn run(globals: &Globals, command: FailoverCommand) -> Result<()> {
    let client = globals.client()?;
    match command {
        FailoverCommand::Run {
            name,
            reason,
            snapshot,
            no_wait,
        } => {
            run_verb(
                globals,
                &client,
                &name,
                &RunFailover {
                    reason,
                    snapshot_id: snapshot,
                },
                no_wait,
            )
            .await
        }
        FailoverCommand::Show { id } => show(globals, &find(&client, &id).await?),
        FailoverCommand::List { workspace } => list(globals, &client, workspace.as_ref()).await,
    }
}

async fn run_verb(
    globals: &Globals,
    client: &Client,
    name: &WorkspaceName,
    body: &RunFailover,
    no_wait: bool,
) -> Result<()> {
    let began: Started = client.post(&format!("{}/failover", path_of(name)), body).await?;
    if no_wait {
        return if globals.json {
            output::json(&began)
        } else {
            output::line(&began.workflow_id);
            Ok(())
        };
    }
    progress::follow(client, &began.workflow_id, globals.quiet).await?;
    let event: FailoverEvent = client
        .get(&format!("/failovers/{}", encode(&began.workflow_id)))
        .await?;
    show(globals, &event)
}

/// By event id, workflow id, or workspace name (its newest).
async fn find(client: &Client, id: &str) -> Result<FailoverEvent> {
    match client.get(&format!("/failovers/{}", encode(id))).await {
        Ok(event) => Ok(event),
        Err(e)
            if e.downcast_ref::<ErrorBody>()
                .is_some_and(|b| b.code.ends_with("not_found")) =>
        {
            let Ok(name) = id.parse::<WorkspaceName>() else {
                return Err(e);
            };
            newest(client, &name).await?.ok_or_else(|| {
                fail(
                    "failover_not_found",
                    format!("{id:?} is no failover, and no workspace that had one"),
                    "see `dumont failover list`",
                )
            })
        }
        Err(e) => Err(e),
    }
}

/// The newest failover of a workspace.
pub async fn newest(client: &Client, name: &WorkspaceName) -> Result<Option<FailoverEvent>> {
    Ok(of_workspace(client, Some(name)).await?.into_iter().next())
}

/// Newest first.
pub async fn of_workspace(client: &Client, name: Option<&WorkspaceName>) -> Result<Vec<FailoverEvent>> {
    let path = name.map_or_else(
        || "/failovers".into(),
        |n| format!("/failovers?workspace={}", encode(n.as_str())),
    );
    let mut all: Vec<FailoverEvent> = client.list(&path).await?;
    all.sort_by_key(|e| std::cmp::Reverse(e.detected_at));
    Ok(all)
}

async fn list(globals: &Globals, client: &Client, name: Option<&WorkspaceName>) -> Result<()> {
    let all = of_workspace(client, name).await?;
    if globals.json {
        return output::json(&all);
    }
    if all.is_empty() {
        output::note("No failover yet.");
        return Ok(());
    }
    let rows: Vec<_> = all
        .iter()
        .map(|e| {
            vec![
                e.id.clone(),
                e.workspace.to_string(),
                if e.success { "ok".into() } else { "failed".into() },
                e.trigger.clone(),
                output::or_dash(e.cause.as_ref()),
                e.total_ms.to_string(),
                output::or_dash(e.data_loss_ms.map(output::millis)),
                e.attempts.len().to_string(),
                output::ago(e.detected_at),
            ]
        })
        .collect();
    let header = [
        "FAILOVER",
        "WORKSPACE",
        "RESULT",
        "TRIGGER",
        "CAUSE",
        "TOTAL MS",
        "WORK LOST",
        "TRIED",
        "WHEN",
    ];
    output::table(&header, &[5, 6, 7], &rows);
    Ok(())
}

fn show(globals: &Globals, event: &FailoverEvent) -> Result<()> {
    if globals.json {
        return output::json(event);
    }
    let result = if event.success {
        output::green("ok")
    } else {
        output::red("failed")
    };
    let mut pairs = vec![
        ("failover", output::bold(&event.id)),
        ("workspace", event.workspace.to_string()),
        ("result", result),
        ("trigger", event.trigger.clone()),
        ("when", output::ago(event.detected_at)),
    ];
    if let Some(cause) = &event.cause {
        pairs.insert(4, ("cause", in_words(cause)));
    }
    if let Some(why) = &event.failure_reason {
        // It quotes providers and hosts.
        pairs.push(("why", output::safe(why)));
    }
    pairs.extend(what_moved(event));
    output::facts(&pairs);
    output::line("");
    phases(event);
    output::line("");
    attempts(&event.attempts);
    Ok(())
}

/// What became of the machine that was lost.
fn in_words(cause: &str) -> String {
    match cause {
        "host" => "host: it vanished, or its operator took it".into(),
        "user_stop" => "user_stop: it was stopped in the account, by a person or for want of credit".into(),
        "outbid" => "outbid: a higher bid took it".into(),
        "abandoned" => "abandoned: it stopped itself, as no controller was there".into(),
        other => output::safe(other),
    }
}

/// From where to where, with which snapshot, and what was lost.
pub fn what_moved(event: &FailoverEvent) -> Vec<(&'static str, String)> {
    let (old, new) = (&event.original_instance_id, &event.new_instance_id);
    let mut pairs = vec![match new.as_ref().filter(|_| old == new) {
        Some(id) => ("had back", format!("instance {id}, with its files as they were")),
        None => {
            let (old, new) = (output::or_dash(old.as_ref()), output::or_dash(new.as_ref()));
            ("moved", format!("instance {old} -> {new}"))
        }
    }];
    if let Some(id) = &event.snapshot_id {
        let kind = event.snapshot_type.map_or("", |t| t.as_str());
        pairs.push((
            "restored",
            format!(
                "{id} ({kind}), {} from {} downloaded",
                output::bytes(event.bytes_restored),
                output::bytes(event.bytes_downloaded)
            ),
        ));
    }
    if let Some(v) = &event.validation {
        let text = format!(
            "{}, {} of {} files",
            output::word(&v.validation),
            v.files_restored,
            v.files_expected
        );
        pairs.push(("validation", text));
    }
    if let Some(ms) = event.complete_ms {
        pairs.push((
            "complete",
            format!("the last byte {} after the loss", output::millis(ms)),
        ));
    }
    if let Some(m) = &event.model_files {
        let mut text = format!(
            "{}, MD5 of {} of {}",
            output::word(&m.validation),
            m.files_checked,
            output::count(m.files_expected, "model file")
        );
        if !m.mismatched.is_empty() {
            text = format!("{text}; not as at the snapshot: {}", m.mismatched.join(", "));
        }
        pairs.push(("model files", text));
    }
    let lost = event.data_loss_ms.map_or_else(
        || "unknown: no snapshot was restored".into(),
        |ms| match ms {
            0 => "none".into(),
            ms => format!(
                "{} (age of the snapshot when the machine was lost)",
                output::millis(ms)
            ),
        },
    );
    pairs.push(("work lost", lost));
    pairs
}

/// Name and milliseconds of each phase, in order, without the total.
pub fn phase_rows(e: &FailoverEvent) -> [(&'static str, i64); 8] {
    [
        ("detection", e.detection_ms),
        ("search", e.search_ms),
        ("provisioning", e.gpu_provisioning_time_ms),
        ("restore", e.restore_ms),
        ("validation", e.validation_ms),
        ("start", e.start_ms),
        ("probe", e.probe_ms),
        ("switch", e.switch_ms),
    ]
}

/// The phase table, with the plan's total beside ours.
pub fn phases(event: &FailoverEvent) {
    let mut rows: Vec<_> = phase_rows(event)
        .iter()
        .map(|(name, ms)| vec![(*name).into(), ms.to_string(), String::new()])
        .collect();
    rows.push(vec![
        "total (MTTR)".into(),
        event.total_ms.to_string(),
        beside_plan(),
    ]);
    output::table(&["PHASE", "MS", "PLAN"], &[1], &rows);
}

/// The plan's total, for comparison. No ratio: its boots were real ones, a drill's are shortened.
pub fn beside_plan() -> String {
    PLAN_MTTR_MS.to_string()
}

/// Every machine tried and why it lost.
pub fn attempts(all: &[Attempt]) {
    if all.is_empty() {
        return output::line("No other machine was tried.");
    }
    let rows: Vec<_> = all
        .iter()
        .map(|a| {
            let why = [a.reason.as_deref(), a.error_message.as_deref()];
            let why: Vec<_> = why.into_iter().flatten().filter(|w| !w.is_empty()).collect();
            vec![
                a.machine.to_string(),
                a.outcome.clone(),
                a.stage.clone(),
                format!("{:.2}", a.duration_seconds),
                a.gpu_name.clone(),
                format!("{:.3}", a.price),
                match a.success {
                    Some(true) => "for".into(),
                    Some(false) => "against".into(),
                    None => "no".into(),
                },
                if why.is_empty() {
                    "-".into()
                } else {
                    why.join(": ")
                },
            ]
        })
        .collect();
    output::table(
        &[
            "MACHINE TRIED",
            "OUTCOME",
            "REACHED",
            "S",
            "GPU",
            "$/H",
            "COUNTS",
            "WHY",
        ],
        &[3, 5],
        &rows,
    );
}
