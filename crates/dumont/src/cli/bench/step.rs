//! Single steps, each with its cost as JSON, so that a script can run other programs in between.

use super::agent::{Bench, Taken};
use super::trees::{self, Kind};
use crate::cli::drill::compare::{diff, scan};
use crate::config::Globals;
use crate::fail::{fail, silent};
use crate::output;
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use dumont_server::objects::ObjectStore;
use dumont_server::objects::s3::{S3Config, S3Store};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug, Subcommand)]
pub enum StepCommand {
    /// Generate a tree
    Tree {
        #[arg(value_enum)]
        kind: Kind,
        dir: PathBuf,
        /// Of the full size
        #[arg(long, default_value_t = 1.0)]
        size: f64,
    },
    /// Change a checkpoint: rename, append, overwrite in place, insert at the front
    Edit { dir: PathBuf },
    /// Take a snapshot; an incremental one after the first
    Take(StateArgs),
    /// Restore the snapshot that was taken last
    Restore(StateArgs),
    /// Say in what a directory differs from another: contents, modes, times, links
    Compare { expected: PathBuf, found: PathBuf },
}

#[derive(Debug, Args)]
pub struct StateArgs {
    dir: PathBuf,
    /// Where what is known between steps lies
    #[arg(long)]
    state: PathBuf,
    /// An agent instead of the built-in one
    #[arg(long)]
    agent: Option<PathBuf>,
    /// Take the MD5 of files whose names end like this, as workspaces do by default
    #[arg(long, value_name = "END")]
    model_files: Vec<String>,
}

pub async fn run(globals: &Globals, command: StepCommand) -> Result<()> {
    match command {
        StepCommand::Tree { kind, dir, size } => trees::make(kind, &dir, size),
        StepCommand::Edit { dir } => trees::edit(&dir),
        StepCommand::Take(args) => take(&args).await,
        StepCommand::Restore(args) => restore(&args).await,
        StepCommand::Compare { expected, found } => {
            let found = diff(&scan(&expected)?, &scan(&found)?);
            for one in found.iter().take(20) {
                output::line(&output::safe(&one.to_string()));
            }
            if found.is_empty() {
                return Ok(());
            }
            if !globals.quiet {
                output::note(&format!(
                    "{} in all",
                    output::count(found.len() as u64, "difference")
                ));
            }
            Err(silent())
        }
    }
}

fn store() -> Result<Arc<dyn ObjectStore>> {
    let bad = |e: dumont_server::objects::s3::BadSetting| fail("bad_store_settings", e.message, e.hint);
    let config = S3Config::from_env().map_err(bad)?.ok_or_else(|| {
        fail(
            "no_bucket",
            "no bucket is configured",
            "set S3_BUCKET and AWS_*, or use `dumont bench snapshot`, which starts a server of its own",
        )
    })?;
    Ok(Arc::new(S3Store::new(config, None).map_err(bad)?))
}

async fn take(args: &StateArgs) -> Result<()> {
    let mut bench = Bench::new(&args.state, args.agent.as_deref(), store()?, "bench".into()).await?;
    bench.model_files.clone_from(&args.model_files);
    let file = args.state.join("taken.json");
    let before: Option<Taken> = match fs::read(&file) {
        Ok(bytes) => Some(serde_json::from_slice(&bytes)?),
        Err(_) => None,
    };
    let (cost, taken) = bench.take(&args.dir, before.as_ref()).await?;
    fs::write(&file, serde_json::to_vec(&taken)?)?;
    output::json(
        &serde_json::json!({ "cost": cost, "files_read": taken.report.files_read,
        "files_changed": taken.report.files_changed, "torn": taken.report.torn }),
    )
}

async fn restore(args: &StateArgs) -> Result<()> {
    let bench = Bench::new(&args.state, args.agent.as_deref(), store()?, "bench".into()).await?;
    let file = args.state.join("taken.json");
    let bytes = fs::read(&file).with_context(|| format!("read {}: take a snapshot first", file.display()))?;
    let (cost, report) = bench.restore(&serde_json::from_slice(&bytes)?, &args.dir).await?;
    output::json(&serde_json::json!({ "cost": cost, "report": report }))
}
