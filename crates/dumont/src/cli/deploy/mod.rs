//! `dumont deploy`: a workspace and its machine in one go.
//!
//! With a name it is `workspace create` and the race, and asks nothing, so that scripts can
//! use it; without one it asks (`wizard`). A machine chosen by hand is shown with its record
//! first: the ranking, which would have kept a bad one away, is not asked.

mod wizard;

use super::history::{self, show};
use super::spec::{self, SpecArgs};
use super::workspace::{self, Creation};
use crate::badge;
use crate::client::Client;
use crate::config::Globals;
use crate::fail::{fail, usage};
use crate::output::{self, Styled, safe};
use anyhow::Result;
use clap::Args;
use dumont_core::blacklist::CudaVersion;
use dumont_core::id::{MachineRef, WorkspaceName};
use dumont_core::level::Action;
use dumont_wire::rest::DeployWorkspace;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct DeployArgs {
    /// What to call it: lower-case letters, digits, dashes. Without any argument, everything is asked for
    pub name: Option<WorkspaceName>,
    #[command(flatten)]
    pub spec: SpecArgs,
    /// Local directory to start from; it becomes the first snapshot
    #[arg(long, value_name = "DIR")]
    pub from: Option<PathBuf>,
    #[command(flatten)]
    pub on: OnArgs,
    /// Return as soon as machines are chosen
    #[arg(long)]
    pub no_wait: bool,
}

/// Which machine, where it is not the ranking's to say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct OnArgs {
    /// Rent this machine and no other
    #[arg(long, value_name = "vast:12345")]
    pub machine: Option<MachineRef>,
    /// Rent it though it is blacklisted
    #[arg(long, requires = "machine")]
    pub allow_blacklisted: bool,
}

impl OnArgs {
    pub fn body(&self) -> DeployWorkspace {
        DeployWorkspace {
            machine: self.machine.clone(),
            allow_blacklisted: self.allow_blacklisted,
        }
    }
}

pub async fn run(globals: &Globals, args: DeployArgs) -> Result<()> {
    let Some(name) = args.name else {
        let bare = args.spec == SpecArgs::default() && args.from.is_none() && args.on == OnArgs::default();
        if bare && !globals.json {
            return wizard::run(globals).await;
        }
        return Err(usage(
            "the workspace has no name",
            "dumont deploy NAME …; `dumont deploy` alone asks for everything",
        ));
    };
    let wanted = Creation {
        spec: spec::build(&name, &args.spec)?,
        from: args.from,
        deploy: Some(args.on.body()),
        wait: !args.no_wait,
    };
    let client = globals.client()?;
    show_record(globals, &client, &args.on, wanted.spec.gpu.cuda).await?;
    workspace::create(globals, &client, wanted).await
}

/// Before a machine is rented by name: what is known of it; an error if it is blocked for a
/// workload that needs `cuda` and that was not allowed.
pub async fn show_record(
    globals: &Globals,
    client: &Client,
    on: &OnArgs,
    cuda: Option<CudaVersion>,
) -> Result<()> {
    let Some(machine) = &on.machine else { return Ok(()) };
    let check = history::check(client, machine, cuda).await?;
    let known = show::of(client, machine).await?;
    let say = |text: Styled| {
        if !globals.quiet {
            output::note(&output::paint_err(&text));
        }
    };
    match &known {
        None => say(Styled::plain(format!(
            "{machine}: never tried, nothing is known of it"
        ))),
        Some(h) => {
            let s = &h.stats;
            let rate = badge::rate(s.successful_attempts, s.failed_attempts).text;
            say(Styled::new(
                format!("{machine}: {}, success {rate}", s.reliability_status),
                s.reliability_status.colour(),
            ));
            let why = h
                .reasons
                .first()
                .map_or(String::new(), |r| format!(", mostly {}", safe(&r.reason)));
            if matches!(s.reliability_status.action(), Action::Warn | Action::Alert) {
                let counted = s.successful_attempts + s.failed_attempts;
                say(Styled::new(
                    format!("warning: {} of {counted} attempts failed{why}", s.failed_attempts),
                    s.reliability_status.colour(),
                ));
            }
        }
    }
    if check.is_blacklisted && !on.allow_blacklisted {
        return Err(fail(
            "machine_blacklisted",
            format!(
                "{machine} is blacklisted{}: {}",
                check
                    .scope
                    .as_deref()
                    .map_or_else(String::new, |s| format!(" for {}", safe(s))),
                safe(check.reason.as_deref().unwrap_or("no reason given"))
            ),
            format!(
                "take another (`dumont offers`), or pass --allow-blacklisted; `dumont history show {machine}` says more"
            ),
        ));
    }
    Ok(())
}
