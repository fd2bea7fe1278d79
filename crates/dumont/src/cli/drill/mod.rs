//! `dumont drill`: one whole failover on this machine, and proof that nothing was lost.
//!
//! A market and a server run as children with a temporary directory. The drill puts a
//! workspace on a rented machine, snapshots it, edits it, snapshots again, kills the machine
//! and waits. What came back is compared with what was there, and the market's books with
//! what should be rented.

pub mod bucket;
mod chaos;
pub mod compare;
mod database;
mod judge;
mod report;
mod script;
mod workspace;
mod world;

use crate::config::Globals;
use crate::fail::{fail, silent, usage};
use crate::output;
use anyhow::{Context, Result};
use bucket::StoreWish;
use clap::Args;
use report::Report;
use script::Drill;
use std::path::{Path, PathBuf};
use std::time::Duration;
use world::{MarketWish, World};

#[derive(Debug, Args)]
pub struct DrillArgs {
    /// Directory to use; it is only read [default: a generated one]
    #[arg(long, value_name = "DIR")]
    workspace: Option<PathBuf>,
    /// Size of the generated workspace, MB
    #[arg(long, value_name = "MB", default_value_t = 300, conflicts_with = "workspace",
          value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    size_mb: u64,
    /// Same seed, same market and same generated workspace
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Physical machines in the market
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    machines: u32,
    /// How long machines take to boot, as a share of what real ones take (about 45 s)
    #[arg(long, value_name = "FACTOR", default_value_t = 0.05, value_parser = super::factor)]
    time_scale: f64,
    /// Where the server keeps objects
    #[arg(long, value_enum, default_value_t, value_name = "STORE")]
    store: StoreWish,
    /// Machines boot at once: shows what dumont itself costs
    #[arg(long, conflicts_with = "time_scale")]
    instant: bool,
    /// Where the server keeps its state. postgres: in the empty database that DATABASE_URL or
    /// DB_* lead to, else in a temporary one
    #[arg(long, value_enum, default_value_t = database::Engine::Sqlite)]
    database: database::Engine,
    /// Kill the server hard at that step of the failover, e.g. race, restore, switch (at its
    /// end, before it is committed; STEP:begin for its begin)
    #[arg(long, value_name = "STEP", value_parser = crash_step)]
    kill_server_at: Option<String>,
    /// Everything goes wrong now and then, by the seed: machines that do not boot, lag, lie or
    /// die, and a market that refuses or forgets to answer
    #[arg(long)]
    chaos: bool,
    /// Run OpenSSH's server on the machines instead of the market's own (needs root)
    #[arg(long, conflicts_with = "chaos")]
    openssh: bool,
    /// Stay and say how to look around, until Ctrl-C; nothing is torn down before
    #[arg(long)]
    keep: bool,
    /// Give up after so many seconds
    #[arg(long, value_name = "S", default_value_t = 900, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

/// A step the server knows, kept as it was written.
fn crash_step(text: &str) -> Result<String, String> {
    let point: dumont_server::CrashPoint = text.parse()?;
    if point.kind == "failover" {
        return Ok(text.to_owned());
    }
    Err(format!(
        "the drill kills the server in the failover; name its step only, e.g. {}",
        point.step
    ))
}

pub async fn run(globals: &Globals, args: DrillArgs) -> Result<()> {
    let stop = super::until_stopped()?;
    let mut hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())?;
    let stop = async move {
        tokio::select! {
            () = stop => {}
            // The terminal was closed: nobody looks any more.
            _ = hangup.recv() => {}
        }
    };
    let mut report = Report {
        seed: args.seed,
        plan_mttr_ms: super::failover::PLAN_MTTR_MS,
        ..Report::default()
    };
    let ready_file = format!("/tmp/dumont-drill-{:016x}.ready", rand::random::<u64>());
    let done = act(globals, &args, &mut report, &ready_file, stop).await;
    // Where machines are no namespaces, the file was written here.
    let _ = std::fs::remove_file(&ready_file);
    done?;
    if report.ok { Ok(()) } else { Err(silent()) }
}

/// Makes the world, plays in it, reports, and takes the world down again.
async fn act(
    globals: &Globals,
    args: &DrillArgs,
    report: &mut Report,
    ready_file: &str,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let quiet = globals.quiet;
    let dir = tempfile::Builder::new()
        .prefix("dumont-drill-")
        .tempdir()
        .context("make a temporary directory")?;
    let source = source(args, dir.path(), quiet)?;
    let wish = MarketWish {
        seed: args.seed,
        machines: args.machines,
        time_scale: if args.instant { 0.0 } else { args.time_scale },
        openssh: args.openssh,
    };
    let data = dir.path().join("data");
    let _keep_until_the_end = dir;
    crate::config::private_dir(&data)?;
    tokio::pin!(stop);
    // Ends after the world, which uses it.
    let database = database::DrillDatabase::prepare(args.database, globals).await?;
    report.database = database.in_words();
    let mut world = tokio::select! {
        world = World::start(&data, &wish, args.store, args.kill_server_at.as_deref(), database.url()) => world?,
        () = &mut stop => return Err(interrupted()),
    };
    if let (Some(bucket), false) = (world.bucket(), quiet) {
        output::note(&output::dim_err(&format!("== objects go to {bucket}")));
    }
    let name = "drill".parse()?;
    let limit = Duration::from_secs(args.timeout);
    let interrupted_early = {
        let mut drill = Drill {
            world: &mut world,
            report,
            name,
            source,
            made_up: args.workspace.is_none(),
            ready_file: ready_file.to_owned(),
            crash: args.kill_server_at.is_some(),
            chaos: args.chaos.then(|| chaos::Plan::of(args.seed)),
            keep: args.keep,
            quiet,
        };
        tokio::select! {
            // The verbs inside notice a Ctrl-C, too; it is the drill's to answer.
            biased;
            () = &mut stop => true,
            played = tokio::time::timeout(limit, drill.play()) => {
                let error = match played {
                    Ok(Ok(())) => None,
                    Ok(Err(e)) => Some(words(&e)),
                    Err(_) => Some(format!("not finished after {} s (--timeout)", args.timeout)),
                };
                report.error = error;
                false
            }
        }
    };
    if !interrupted_early {
        conclude(globals, args, report, &world, &mut stop).await?;
    }
    if !quiet {
        output::note(&output::dim_err("== ending the market and the server"));
    }
    world.stop().await;
    if interrupted_early {
        Err(interrupted())
    } else {
        Ok(())
    }
}

async fn conclude(
    globals: &Globals,
    args: &DrillArgs,
    report: &mut Report,
    world: &World,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    report.ledger = world
        .admin
        .ledger()
        .await
        .ok()
        .map(|l| l.totals)
        .or(report.ledger.take());
    report.close();
    if globals.json {
        output::json(report)?;
    } else {
        report.print();
    }
    if !report.ok {
        output::note(&format!(
            "The logs of the market and the server: {}",
            world.save_logs()?.display()
        ));
    }
    if args.keep {
        keep(world);
        stop.await;
    }
    Ok(())
}

fn interrupted() -> anyhow::Error {
    fail(
        "interrupted",
        "the drill was stopped; everything it started is gone",
        "run it again any time",
    )
}

/// An error and its hint on one line.
fn words(e: &anyhow::Error) -> String {
    let body = crate::fail::body_of(e);
    if body.hint.is_empty() {
        body.message
    } else {
        format!("{} ({})", body.message, body.hint)
    }
}

/// The directory to use, checked or made.
fn source(args: &DrillArgs, dir: &Path, quiet: bool) -> Result<PathBuf> {
    if let Some(own) = &args.workspace {
        let own = own.canonicalize().map_err(|e| {
            usage(
                format!("cannot read {}: {e}", own.display()),
                "check the path after --workspace",
            )
        })?;
        if !own.is_dir() {
            return Err(usage(
                format!("{} is not a directory", own.display()),
                "--workspace takes a directory",
            ));
        }
        return Ok(own);
    }
    let wanted = args.size_mb * 1_000_000 * 5;
    let free = free_bytes(dir)?;
    if free < wanted {
        return Err(fail(
            "no_space",
            format!(
                "{} has {} free, the drill needs about {}",
                dir.display(),
                output::bytes(free),
                output::bytes(wanted)
            ),
            "a smaller workspace (--size-mb 50), or another place (TMPDIR=/somewhere)",
        ));
    }
    if !quiet {
        output::note(&output::dim_err("== generate a workspace"));
    }
    let source = dir.join("source");
    std::fs::create_dir(&source)?;
    workspace::generate(&source, args.seed, args.size_mb).context("generate the workspace")?;
    Ok(source)
}

fn free_bytes(dir: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(dir).with_context(|| format!("free space of {}", dir.display()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn keep(world: &World) {
    let admin = &world.market_urls.admin_url;
    output::note("");
    output::note("Everything still runs. In another terminal:");
    let program = std::env::current_exe().unwrap_or_else(|_| "dumont".into());
    for line in [
        format!("alias dumont={}", super::ssh::quote(&program.to_string_lossy())),
        world::how_to_look(world),
        "dumont workspace show drill".into(),
        "dumont ssh drill".into(),
        "dumont failover show drill".into(),
        "dumont machines; dumont instances".into(),
        format!("curl {admin}/admin/ledger"),
        format!(
            "curl -X POST {admin}/admin/instances/ID/kill     # the number of `dumont instances`, without vast:"
        ),
        format!("tail -f {}/server.log", world.dir().display()),
    ] {
        output::note(&format!("  {line}"));
    }
    output::note("Ctrl-C here ends it and removes everything.");
}
