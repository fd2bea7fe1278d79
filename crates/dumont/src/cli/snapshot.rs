//! `dumont snapshot`: create, list, restore, and look into them.

mod look;
mod mend;
mod place;

use super::workspace::path_of;
use crate::client::{Client, encode};
use crate::config::Globals;
use crate::fail::silent;
use crate::{output, progress, turn};
use anyhow::{Context, Result};
use clap::Subcommand;
use dumont_core::id::WorkspaceName;
use dumont_core::snapshot::SnapshotType;
use dumont_wire::rest::{
    CreateSnapshot, Pin, Prune, Pruned, Repaired, RestoreSnapshot, Snapshot, Started, Workflow,
};

#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Snapshot a running workspace; only what changed is read and sent
    Create {
        name: WorkspaceName,
        /// Read every file again and start a new base
        #[arg(long)]
        full: bool,
        /// Although the last restore broke off: what is there becomes the newest snapshot
        #[arg(long)]
        as_it_is: bool,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
    /// The snapshots of a workspace, newest first
    List { name: WorkspaceName },
    /// Put a snapshot's files back onto the workspace's machine
    Restore {
        name: WorkspaceName,
        /// Which one [default: the newest]
        #[arg(long, value_name = "ID")]
        snapshot: Option<String>,
        /// Remove files the snapshot does not have
        #[arg(long, conflicts_with_all = ["include", "exclude"])]
        delete: bool,
        /// Only paths that match, e.g. 'src/**'; may be repeated
        #[arg(long, value_name = "GLOB")]
        include: Vec<String>,
        /// Not paths that match; may be repeated
        #[arg(long, value_name = "GLOB")]
        exclude: Vec<String>,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
    /// Restore into a local directory, from a server or from a plain directory of objects
    Read(look::ReadArgs),
    /// The files of a snapshot
    Ls(look::LsArgs),
    /// Write one file of a snapshot to stdout
    Cat(look::CatArgs),
    /// What differs between two snapshots
    Diff(look::DiffArgs),
    /// Read everything that snapshots need and name what is damaged
    Check(look::CheckArgs),
    /// Let old snapshots go, as the workspace's policy says, and the objects only they needed
    Prune {
        name: WorkspaceName,
        /// Only say which snapshots would go
        #[arg(long)]
        dry_run: bool,
    },
    /// Read everything, rebuild the index from what is good, and name what is lost
    ///
    /// Nothing that is there is changed or removed. A machine that still has a lost file stores it
    /// again with its next snapshot. A directory of objects (a copy of the bucket, or the embedded
    /// store's own) needs no server. Exit code 1 if something is lost.
    Repair(mend::RepairArgs),
    /// Keep a snapshot whatever the policy says
    Pin {
        name: WorkspaceName,
        #[arg(value_name = "ID")]
        snapshot: String,
    },
    /// Let the policy decide about a snapshot again
    Unpin {
        name: WorkspaceName,
        #[arg(value_name = "ID")]
        snapshot: String,
    },
}

pub async fn run(globals: &Globals, command: SnapshotCommand) -> Result<()> {
    match command {
        SnapshotCommand::Read(args) => look::read(globals, args).await,
        SnapshotCommand::Ls(args) => look::ls(globals, args).await,
        SnapshotCommand::Cat(args) => look::cat(globals, args).await,
        SnapshotCommand::Diff(args) => look::diff(globals, args).await,
        SnapshotCommand::Check(args) => look::check(globals, args).await,
        SnapshotCommand::Repair(args) => repaired(globals, &mend::repair(globals, &args).await?),
        other => with_server(globals, other).await,
    }
}

async fn with_server(globals: &Globals, command: SnapshotCommand) -> Result<()> {
    let client = globals.client()?;
    match command {
        SnapshotCommand::Create {
            name,
            full,
            as_it_is,
            no_wait,
        } => {
            let wanted = CreateSnapshot { full, as_it_is };
            if no_wait {
                return started(globals, &client.post(&snapshots_of(&name), &wanted).await?);
            }
            let snapshot = create(&client, &name, &wanted, globals.quiet).await?;
            if globals.json {
                return output::json(&snapshot);
            }
            report(&snapshot);
            Ok(())
        }
        SnapshotCommand::List { name } => list(globals, &client, &name).await,
        SnapshotCommand::Restore {
            name,
            snapshot,
            delete,
            include,
            exclude,
            no_wait,
        } => {
            let body = RestoreSnapshot {
                snapshot_id: snapshot,
                delete,
                include,
                exclude,
            };
            if no_wait {
                return started(globals, &client.post(&restore_of(&name), &body).await?);
            }
            let wf = restore(&client, &name, &body, globals.quiet).await?;
            restored(globals, &name, &wf)
        }
        SnapshotCommand::Prune { name, dry_run } => {
            let path = format!("{}/prune", path_of(&name));
            let done: Pruned = client.post(&path, &Prune { dry_run }).await?;
            pruned(globals, &done)
        }
        SnapshotCommand::Pin { name, snapshot } => pin(globals, &client, &name, &snapshot, true).await,
        SnapshotCommand::Unpin { name, snapshot } => pin(globals, &client, &name, &snapshot, false).await,
        // Those that need no server went their own way.
        SnapshotCommand::Read(_)
        | SnapshotCommand::Ls(_)
        | SnapshotCommand::Cat(_)
        | SnapshotCommand::Diff(_)
        | SnapshotCommand::Check(_)
        | SnapshotCommand::Repair(_) => Ok(()),
    }
}

async fn pin(
    globals: &Globals,
    client: &Client,
    name: &WorkspaceName,
    snapshot: &str,
    pinned: bool,
) -> Result<()> {
    let path = format!("{}/snapshots/{}/pin", path_of(name), encode(snapshot));
    let snapshot: Snapshot = client.put(&path, &Pin { pinned }).await?;
    if globals.json {
        return output::json(&snapshot);
    }
    let state = if pinned { "is kept" } else { "may expire" };
    output::line(&format!("{} {state}.", snapshot.snapshot_id));
    Ok(())
}

fn pruned(globals: &Globals, done: &Pruned) -> Result<()> {
    if globals.json {
        return output::json(done);
    }
    let verb = if done.dry_run { "Would expire" } else { "Expired" };
    done.expired
        .iter()
        .for_each(|id| output::line(&format!("{verb} {id}")));
    if done.dry_run || done.expired.is_empty() {
        output::line(&format!(
            "{} {}.",
            output::count(done.expired.len() as u64, "snapshot"),
            if done.dry_run { "would expire" } else { "expired" }
        ));
    }
    if !done.dry_run {
        output::line(&format!(
            "Deleted {} ({}); {} wait until nothing can read them any more.",
            output::count(done.deleted_objects, "object"),
            output::bytes(done.deleted_bytes),
            output::count(done.waiting_objects, "object"),
        ));
    }
    Ok(())
}

fn repaired(globals: &Globals, done: &Repaired) -> Result<()> {
    if globals.json {
        output::json(done)?;
    } else {
        for d in &done.damaged {
            output::line(&format!("{}: {}", d.object, d.problem));
        }
        for lost in &done.lost {
            let what = if lost.everything {
                "its tree is gone; nothing of it can be restored".to_owned()
            } else {
                format!("{} lost", output::count(lost.files, "file"))
            };
            output::line(&format!("{}: {what}", lost.snapshot_id));
            lost.names.iter().for_each(|n| output::line(&format!("  {n}")));
        }
        output::line(&format!(
            "Read {} in {}; {}.",
            output::bytes(done.bytes_read),
            output::count(done.packs_read, "pack"),
            if done.pointed == 0 {
                "nothing had to be done".to_owned()
            } else {
                format!(
                    "{} pointed to a new index",
                    output::count(done.pointed, "snapshot")
                )
            }
        ));
    }
    if done.lost.is_empty() {
        Ok(())
    } else {
        Err(silent())
    }
}

fn started(globals: &Globals, started: &Started) -> Result<()> {
    if globals.json {
        return output::json(started);
    }
    output::line(&started.workflow_id);
    Ok(())
}

fn snapshots_of(name: &WorkspaceName) -> String {
    format!("{}/snapshots", path_of(name))
}

fn restore_of(name: &WorkspaceName) -> String {
    format!("{}/restore", path_of(name))
}

/// Restores in place and waits until it is done.
pub async fn restore(
    client: &Client,
    name: &WorkspaceName,
    wanted: &RestoreSnapshot,
    quiet: bool,
) -> Result<Workflow> {
    let began: Started = turn::post(client, &restore_of(name), wanted, quiet).await?;
    progress::follow(client, &began.workflow_id, quiet).await
}

/// Takes a snapshot and waits until it is visible.
pub async fn create(
    client: &Client,
    name: &WorkspaceName,
    wanted: &CreateSnapshot,
    quiet: bool,
) -> Result<Snapshot> {
    let began: Started = turn::post(client, &snapshots_of(name), wanted, quiet).await?;
    let wf = progress::follow(client, &began.workflow_id, quiet).await?;
    let result = wf
        .result
        .context("the finished snapshot workflow has no result")?;
    serde_json::from_value(result).context("the result of the snapshot workflow is not a snapshot")
}

/// The line that says what a snapshot did, in the plan's words.
pub fn headline(s: &Snapshot) -> String {
    match s.snapshot_type {
        SnapshotType::Incremental => {
            format!(
                "Incremental: {} files changed out of {} total",
                s.files_changed, s.files_total
            )
        }
        SnapshotType::Full => {
            format!(
                "Full: {}, {}",
                output::count(s.files_total, "file"),
                output::bytes(s.total_bytes)
            )
        }
    }
}

fn report(s: &Snapshot) {
    output::line(&headline(s));
    output::line(&format!(
        "{}  {} uploaded in {}",
        s.snapshot_id,
        output::bytes(s.uploaded_bytes),
        output::millis(i64::try_from(s.elapsed_ms).unwrap_or(i64::MAX))
    ));
    if let Some(why) = &s.full_because {
        output::note(&format!("A full snapshot was taken: {why}"));
    }
    if !s.torn.is_empty() {
        output::note(&format!(
            "{} changed while it was read and may be mixed: {}",
            output::count(s.torn.len() as u64, "file"),
            s.torn.iter().take(5).cloned().collect::<Vec<_>>().join(", ")
        ));
    }
}

async fn list(globals: &Globals, client: &Client, name: &WorkspaceName) -> Result<()> {
    let all: Vec<Snapshot> = client.list(&snapshots_of(name)).await?;
    if globals.json {
        return output::json(&all);
    }
    if all.is_empty() {
        output::note(&format!(
            "No snapshots yet: `dumont snapshot create {name}` takes one."
        ));
        return Ok(());
    }
    let rows: Vec<_> = all
        .iter()
        .map(|s| {
            vec![
                s.snapshot_id.clone(),
                format!(
                    "{}{}",
                    s.snapshot_type.as_str(),
                    if s.pinned { ", pinned" } else { "" }
                ),
                s.files_total.to_string(),
                s.files_changed.to_string(),
                output::bytes(s.total_bytes),
                output::bytes(s.uploaded_bytes),
                s.elapsed_ms.to_string(),
                output::ago(s.created_at),
            ]
        })
        .collect();
    let header = [
        "SNAPSHOT", "TYPE", "FILES", "CHANGED", "SIZE", "UPLOADED", "MS", "TAKEN",
    ];
    output::table(&header, &[2, 3, 4, 5, 6], &rows);
    Ok(())
}

fn restored(globals: &Globals, name: &WorkspaceName, wf: &Workflow) -> Result<()> {
    if globals.json {
        return output::json(wf);
    }
    let report = wf
        .result
        .as_ref()
        .and_then(|r| serde_json::from_value::<dumont_core::snapshot::RestoreReport>(r.clone()).ok());
    match report {
        Some(r) => output::line(&format!(
            "Restored {} ({}) in {}; validation {}: {} of {} files",
            output::count(r.files_restored, "file"),
            output::bytes(r.bytes_restored),
            output::millis(i64::try_from(r.elapsed_ms).unwrap_or(i64::MAX)),
            output::word(&r.validation.validation),
            r.validation.files_restored,
            r.validation.files_expected,
        )),
        None => output::line(&format!("Restored {name}.")),
    }
    Ok(())
}
