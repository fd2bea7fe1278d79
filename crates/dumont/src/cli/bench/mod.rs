//! `dumont bench`: how fast the engine is here, next to what it could be at best.
//!
//! The agent is the one that machines get, started as they start it and spoken to in frames; it
//! reads and writes presigned URLs that the controller's own code grants, of a real S3 server.
//! Nothing is rented and no server of dumont's is asked.

mod agent;
mod limits;
mod snapshot;
mod step;
mod trees;

use crate::config::Globals;
use anyhow::Result;
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Take and restore snapshots of generated trees, and say what limits each
    ///
    /// Uses the bucket that B2_* or S3_BUCKET and AWS_* name, else a SeaweedFS of its own.
    Snapshot(snapshot::SnapshotArgs),
    /// One step of it at a time, for scripts that measure other programs besides
    #[command(subcommand)]
    Step(step::StepCommand),
}

pub async fn run(globals: &Globals, command: BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Snapshot(args) => snapshot::run(globals, args).await,
        BenchCommand::Step(command) => step::run(globals, command).await,
    }
}
