//! `dumont history`: what machines did, and which are not to be used.

mod blacklist;
mod machines;
pub mod show;
mod transfer;

use crate::client::{Client, encode, query_of};
use crate::config::Globals;
use crate::fail::leave;
use crate::output::{self, Styled, safe};
use anyhow::Result;
use clap::{Args, Subcommand};
use dumont_core::blacklist::CudaVersion;
use dumont_core::id::MachineRef;
use dumont_core::level::Colour;
use dumont_wire::history::{BlacklistCheck, CheckQuery, ReportAttempt, Reported};

/// Exit code of `check` for a machine that is blocked.
const BLOCKED: u8 = 3;

#[derive(Debug, Subcommand)]
pub enum HistoryCommand {
    /// Machines that are not to be used: add, remove, list
    #[command(subcommand)]
    Blacklist(blacklist::BlacklistCommand),
    /// Say whether a machine is blocked: exit code 0 if it is free, 3 if it is blocked
    Check {
        machine: MachineRef,
        /// CUDA version the workload needs, e.g. 12.4: blocks for it count, too
        #[arg(long, value_name = "VERSION")]
        cuda: Option<CudaVersion>,
    },
    /// One machine: attempts, success rate over time, reasons of failure, boot times
    Show {
        machine: MachineRef,
        /// Attempts to list, newest first
        #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=500))]
        attempts: u32,
    },
    /// All machines together: levels, attempts, blocks, reasons of failure
    Summary {
        /// Attempts of this long only, e.g. 7d or 12h
        #[arg(long, value_name = "TIME")]
        period: Option<String>,
    },
    /// The most reliable machines
    Reliable(machines::MachinesArgs),
    /// The least reliable machines
    Problematic(machines::MachinesArgs),
    /// Tell what happened on a machine that you used by other means
    ///
    /// At most one report per machine, reporter and day counts, and a report alone never
    /// blocks a machine.
    Report(ReportArgs),
    /// Write everything that was learned as JSON lines, for a colleague to import
    Export {
        /// Where to [default: standard output]
        file: Option<std::path::PathBuf>,
        /// Attempts of this long only, e.g. 30d
        #[arg(long, value_name = "TIME")]
        period: Option<String>,
    },
    /// Take over what a colleague exported; what is known already is skipped
    Import(transfer::ImportArgs),
}

#[derive(Debug, Args)]
pub struct ReportArgs {
    pub machine: MachineRef,
    /// Why it failed: driver_mismatch, boot_timeout, ssh_failed, gpu_not_ready, …
    #[arg(
        long,
        value_name = "WORD",
        required_unless_present = "success",
        conflicts_with = "success"
    )]
    pub reason: Option<String>,
    /// It worked
    #[arg(long)]
    pub success: bool,
    /// What was seen, in words
    #[arg(long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Seconds from the request to a machine that answered
    #[arg(long, value_name = "SECONDS", requires = "success")]
    pub ready_seconds: Option<f64>,
    /// Which GPU it was
    #[arg(long, value_name = "NAME")]
    pub gpu: Option<String>,
    /// CUDA version that was asked for, e.g. 12.8: with it, driver_mismatch is not charged
    #[arg(long, value_name = "VERSION")]
    pub cuda: Option<CudaVersion>,
}

pub async fn run(globals: &Globals, command: HistoryCommand) -> Result<()> {
    match command {
        HistoryCommand::Blacklist(c) => blacklist::run(globals, c).await,
        HistoryCommand::Check { machine, cuda } => check_verb(globals, &machine, cuda).await,
        HistoryCommand::Show { machine, attempts } => show::run(globals, &machine, attempts).await,
        HistoryCommand::Summary { period } => machines::summary(globals, period).await,
        HistoryCommand::Reliable(a) => machines::run(globals, "reliable", a).await,
        HistoryCommand::Problematic(a) => machines::run(globals, "problematic", a).await,
        HistoryCommand::Report(a) => report(globals, a).await,
        HistoryCommand::Export { file, period } => transfer::export(globals, file.as_deref(), period).await,
        HistoryCommand::Import(a) => transfer::import(globals, &a).await,
    }
}

/// `/machines/history/{what}/{provider}/{machine_id}`
fn path_of(what: &str, machine: &MachineRef) -> String {
    format!(
        "/machines/history/{what}/{}/{}",
        encode(&machine.provider),
        encode(&machine.machine_id)
    )
}

/// What the blacklist says of a machine.
pub async fn check(
    client: &Client,
    machine: &MachineRef,
    cuda: Option<CudaVersion>,
) -> Result<BlacklistCheck> {
    let query = query_of(&CheckQuery { cuda });
    client
        .get(&format!("{}{query}", path_of("blacklist/check", machine)))
        .await
}

async fn check_verb(globals: &Globals, machine: &MachineRef, cuda: Option<CudaVersion>) -> Result<()> {
    let found = check(&globals.client()?, machine, cuda).await?;
    if globals.json {
        output::json(&found)?;
    } else {
        for text in verdict(machine, &found) {
            output::line(&output::paint(&text));
        }
    }
    if found.is_blacklisted {
        Err(leave(BLOCKED))
    } else {
        Ok(())
    }
}

/// `vast:12345 is blocked …`, and what it is blocked for besides.
fn verdict(machine: &MachineRef, found: &BlacklistCheck) -> Vec<Styled> {
    let mut lines = vec![if found.is_blacklisted {
        let kind = found.blacklist_type.map_or("", |t| t.as_str());
        let scope = found
            .scope
            .as_ref()
            .map_or(String::new(), |s| format!(" for {}", safe(s)));
        Styled::new(
            format!(
                "{machine} is blocked{scope}: {} ({kind}, {})",
                safe(found.reason.as_deref().unwrap_or("no reason given")),
                blacklist::end(found.expires_at)
            ),
            Colour::Red,
        )
    } else {
        Styled::new(format!("{machine} is free"), Colour::Green)
    }];
    // The one that blocks was said already.
    lines.extend(found.scoped.iter().filter(|e| e.scope != found.scope).map(|e| {
        let scope = e.scope.as_deref().unwrap_or("everything");
        let text = format!(
            "  blocked for {} and newer: {} ({})",
            safe(scope),
            safe(&e.reason),
            blacklist::end(e.expires_at)
        );
        Styled::new(text, Colour::Yellow)
    }));
    lines
}

async fn report(globals: &Globals, args: ReportArgs) -> Result<()> {
    let body = ReportAttempt {
        provider: args.machine.provider.clone(),
        machine_id: args.machine.machine_id.clone(),
        success: args.success,
        reason: args.reason,
        error_message: args.message,
        ready_seconds: args.ready_seconds,
        gpu_name: args.gpu,
        cuda: args.cuda,
    };
    let told: Reported = globals
        .client()?
        .post("/machines/history/attempts", &body)
        .await?;
    if globals.json {
        return output::json(&told);
    }
    output::line(&match (told.counted, &told.note) {
        (true, _) => format!("Recorded for {}; it counts.", args.machine),
        (false, Some(note)) => format!("Recorded for {}; it does not count: {}", args.machine, safe(note)),
        (false, None) => format!("Recorded for {}; it does not count.", args.machine),
    });
    Ok(())
}
