//! The whole: every tree through snapshot, nothing changed, changes, and restore.

use super::agent::{Bench, Cost, Taken};
use super::limits::{self, Limits};
use super::trees::{self, Kind};
use crate::cli::drill::bucket::Bucket;
use crate::cli::drill::compare::{diff, scan};
use crate::config::Globals;
use crate::fail::fail;
use crate::output;
use anyhow::{Context, Result};
use clap::Args;
use dumont_core::snapshot::ObjectRef;
use dumont_server::objects::ObjectStore;
use dumont_server::objects::s3::{S3Config, S3Store};
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug, Args)]
pub struct SnapshotArgs {
    /// Trees, all three if none is named
    #[arg(value_enum)]
    trees: Vec<Kind>,
    /// Of the full size, which is 3.2 GB, 650 MB and 1.8 GB
    #[arg(long, default_value_t = 1.0)]
    size: f64,
    /// How often each is restored; medians are shown
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Where trees and restored copies go, up to three times the size; else the temporary directory
    #[arg(long)]
    dir: Option<PathBuf>,
    /// An agent instead of the built-in one
    #[arg(long)]
    agent: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Row {
    tree: &'static str,
    step: &'static str,
    /// Medians.
    cost: Cost,
    #[serde(skip_serializing_if = "Option::is_none")]
    files_read: Option<u64>,
}

#[derive(Debug, Serialize)]
struct TreeReport {
    tree: &'static str,
    files: u64,
    bytes: u64,
    stored_bytes: u64,
    limits: Limits,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Report {
    store: String,
    cores: usize,
    rounds: u32,
    trees: Vec<TreeReport>,
}

pub async fn run(globals: &Globals, args: SnapshotArgs) -> Result<()> {
    if !(args.size > 0.0 && args.size <= 100.0) {
        return Err(crate::fail::usage(
            "--size must be above 0",
            "write e.g. --size 0.1",
        ));
    }
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let temp = tempfile::Builder::new()
        .prefix("dumont-bench-")
        .tempdir_in(&parent)
        .with_context(|| format!("make a directory in {}", parent.display()))?;
    let bucket = Bucket::start(temp.path()).await?;
    let result = measure(globals, &args, temp.path(), &bucket).await;
    bucket.stop().await;
    let report = result?;
    if globals.json {
        return output::json(&report);
    }
    print(&report);
    Ok(())
}

fn store(bucket: &Bucket) -> Result<Arc<dyn ObjectStore>> {
    let var = |name: &str| bucket.env.iter().find(|e| e.0 == name).map(|e| e.1.clone());
    let bad = |e: dumont_server::objects::s3::BadSetting| fail("bad_store_settings", e.message, e.hint);
    let config = S3Config::from_vars(&var).map_err(bad)?.context("no bucket")?;
    Ok(Arc::new(S3Store::new(config, None).map_err(bad)?))
}

async fn measure(globals: &Globals, args: &SnapshotArgs, dir: &Path, bucket: &Bucket) -> Result<Report> {
    let store = store(bucket)?;
    let kinds = if args.trees.is_empty() {
        Kind::ALL.to_vec()
    } else {
        args.trees.clone()
    };
    let mut trees = Vec::new();
    for kind in kinds {
        let note = |text: &str| {
            if !globals.quiet {
                output::note(&format!("{} ({}): {text}", kind.name(), kind.about()));
            }
        };
        let own = dir.join(kind.name());
        // A configured bucket may hold workspaces of others, or what another run left.
        let workspace = format!("bench-{:016x}", rand::random::<u64>());
        let bench = Bench::new(
            &own.join("agent"),
            args.agent.as_deref(),
            store.clone(),
            workspace,
        )
        .await?;
        let one = One {
            kind,
            dir: own,
            bench,
            note: &note,
        };
        let ran = one.run(args).await;
        one.bench.clean().await?;
        trees.push(ran?);
    }
    Ok(Report {
        store: bucket.about.clone(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        rounds: args.rounds,
        trees,
    })
}

/// One tree.
struct One<'a> {
    kind: Kind,
    dir: PathBuf,
    bench: Bench,
    note: &'a dyn Fn(&str),
}

impl One<'_> {
    async fn run(&self, args: &SnapshotArgs) -> Result<TreeReport> {
        let (tree, name) = (self.dir.join("tree"), self.kind.name());
        (self.note)("made");
        trees::make(self.kind, &tree, args.size)?;
        settle();
        let mut rows = Vec::new();
        let mut row = |step, cost, files_read| {
            rows.push(Row {
                tree: name,
                step,
                cost,
                files_read,
            });
        };
        (self.note)("first snapshot");
        let (cost, mut taken) = self.bench.take(&tree, None).await?;
        let mut objects: Vec<ObjectRef> = objects(&taken);
        row("first snapshot", cost, Some(taken.report.files_read));
        // The first of these finds files that were made too shortly before the one above.
        (self.note)("nothing changed");
        (_, taken) = self.bench.take(&tree, Some(&taken)).await?;
        let (cost, after) = self.bench.take(&tree, Some(&taken)).await?;
        row("no change", cost, Some(after.report.files_read));
        taken = after;
        if self.kind == Kind::Checkpoint {
            (self.note)("changed");
            trees::edit(&tree)?;
            let (cost, after) = self.bench.take(&tree, Some(&taken)).await?;
            row("after edits", cost, Some(after.report.files_read));
            objects.extend(self::objects(&after));
            taken = after;
        }
        row("restore", self.restores(args.rounds, &tree, &taken).await?, None);
        (self.note)("limits");
        let scratch = self.dir.join("limit");
        let limits = limits::measure(&*self.bench.store, &objects, &tree, &scratch).await?;
        fs::remove_dir_all(&self.dir)?;
        Ok(TreeReport {
            tree: name,
            files: taken.head.files,
            bytes: taken.head.bytes,
            stored_bytes: objects.iter().map(|o| o.size).sum(),
            limits,
            rows,
        })
    }

    /// Each into a new directory, and compared with the tree.
    async fn restores(&self, rounds: u32, tree: &Path, taken: &Taken) -> Result<Cost> {
        let expected = scan(tree)?;
        let mut costs = Vec::new();
        for round in 1..=rounds {
            (self.note)(&format!("restore {round} of {rounds}"));
            let to = self.dir.join(format!("restored-{round}"));
            settle();
            costs.push(self.bench.restore(taken, &to).await?.0);
            let found = diff(&expected, &scan(&to)?);
            if let Some(first) = found.first() {
                return Err(fail(
                    "restore_differs",
                    format!(
                        "{} differ, e.g. {}",
                        found.len(),
                        output::safe(&first.to_string())
                    ),
                    "report this",
                ));
            }
            // Many deletions make later creations slow on ext4; few large files need the room.
            if self.kind == Kind::Weights {
                fs::remove_dir_all(&to)?;
            }
        }
        Ok(median(&costs))
    }
}

fn objects(taken: &Taken) -> Vec<ObjectRef> {
    taken
        .report
        .packs
        .iter()
        .chain(&taken.report.index)
        .cloned()
        .collect()
}

/// What one run wrote must not be written back during the next.
fn settle() {
    rustix::fs::sync();
}

fn median(costs: &[Cost]) -> Cost {
    let of = |f: &dyn Fn(&Cost) -> f64| {
        let mut all: Vec<f64> = costs.iter().map(f).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let last = costs.last().cloned().unwrap_or_default();
    Cost {
        wall_s: of(&|c| c.wall_s),
        user_s: of(&|c| c.user_s),
        system_s: of(&|c| c.system_s),
        peak_bytes: costs.iter().map(|c| c.peak_bytes).max().unwrap_or(0),
        ..last
    }
}

fn print(report: &Report) {
    let seconds = |s: f64| format!("{s:.2} s");
    let mut rows = Vec::new();
    for tree in &report.trees {
        for row in &tree.rows {
            let cost = &row.cost;
            rows.push(vec![
                row.tree.to_owned(),
                row.step.to_owned(),
                seconds(cost.wall_s),
                format!("{} + {}", seconds(cost.user_s), seconds(cost.system_s)),
                output::bytes(cost.peak_bytes),
                output::bytes(cost.sent_bytes),
                output::bytes(cost.received_bytes),
                cost.requests.to_string(),
                output::or_dash(row.files_read),
            ]);
        }
    }
    let header = [
        "TREE",
        "STEP",
        "WALL",
        "CPU user + system",
        "PEAK MEMORY",
        "SENT",
        "RECEIVED",
        "REQUESTS",
        "READ",
    ];
    output::table(&header, &[2, 3, 4, 5, 6, 7, 8], &rows);
    output::line("");
    for tree in &report.trees {
        output::line(&format!(
            "{}: {}, {} in {}, {} stored. Alone take: the same objects by {} s of GET, BLAKE3 {:.2} s, writing {:.2} s",
            tree.tree,
            Kind::ALL
                .iter()
                .find(|k| k.name() == tree.tree)
                .map_or("", |k| k.about()),
            output::bytes(tree.bytes),
            output::count(tree.files, "file"),
            output::bytes(tree.stored_bytes),
            tree.limits
                .get_s
                .map_or_else(|| "-".into(), |s| format!("{s:.2}")),
            tree.limits.hash_s,
            tree.limits.write_s,
        ));
    }
    output::line(&format!(
        "{}; {}, shared with the server; medians of {}; every restore compared with its tree",
        report.store,
        output::count(report.cores as u64, "core"),
        output::count(u64::from(report.rounds), "restore"),
    ));
}
