//! `dumont machine`: machines of the user's own.

use crate::client::encode;
use crate::config::Globals;
use crate::fail::usage;
use crate::output::{self, Styled, safe};
use anyhow::Result;
use clap::{Args, Subcommand};
use dumont_core::id::MachineRef;
use dumont_core::level::Colour;
use dumont_core::own_machine::{OwnMachine, PROVIDER};
use dumont_wire::machines::{OwnMachineShown, OwnMachineState};

#[derive(Debug, Subcommand)]
pub enum MachineCommand {
    /// Add a machine of your own, or tell anew what it is
    ///
    /// It must let dumont's key in; what is printed says which line to add to authorized_keys.
    /// Workspaces come to it that say `--provider ssh` or `--provider any`.
    Add(Box<AddArgs>),
    /// List your machines and how each stands now
    List,
    /// Take one out of the inventory
    Remove {
        #[arg(value_name = "ssh:NAME")]
        machine: MachineRef,
        /// It will not come back: give up what is on it
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
pub struct AddArgs {
    #[arg(value_name = "ssh:NAME")]
    machine: MachineRef,
    /// Its name or address
    #[arg(long)]
    host: String,
    #[arg(long, default_value_t = 22)]
    port: u16,
    /// Who logs in there
    #[arg(long, default_value = "root")]
    user: String,
    /// GPU's name as workspaces ask for it, e.g. "RTX 4090"
    #[arg(long, value_name = "NAME")]
    gpu: Option<String>,
    #[arg(long, value_name = "N", default_value_t = 1)]
    gpu_count: u32,
    /// Memory per GPU, GB
    #[arg(long, value_name = "GB", default_value_t = 0.0)]
    gpu_ram: f64,
    /// Dollars per hour, to be compared with rented ones
    #[arg(long, value_name = "DOLLARS", default_value_t = 0.0)]
    price: f64,
    /// How many may live on it at once
    #[arg(long, value_name = "N", default_value_t = 1)]
    workspaces: u32,
    /// Its host key, an OpenSSH line [default: pinned on first contact]
    #[arg(long, value_name = "KEY")]
    host_key: Option<String>,
    /// Where leases are put there [default: .dumont-leases in the user's home]
    #[arg(long, value_name = "DIR")]
    dir: Option<String>,
}

pub async fn run(globals: &Globals, command: MachineCommand) -> Result<()> {
    match command {
        MachineCommand::Add(args) => add(globals, *args).await,
        MachineCommand::List => list(globals).await,
        MachineCommand::Remove { machine, force } => remove(globals, &machine, force).await,
    }
}

const PATH: &str = "/providers/ssh/machines";

async fn add(globals: &Globals, args: AddArgs) -> Result<()> {
    let machine = OwnMachine {
        machine: args.machine,
        host: args.host,
        port: args.port,
        user: args.user,
        gpu: args.gpu,
        gpu_count: args.gpu_count,
        gpu_ram_gb: args.gpu_ram,
        price: args.price,
        workspaces: args.workspaces,
        host_key: args.host_key,
        dir: args.dir,
    };
    machine
        .check()
        .map_err(|e| usage(e.to_string(), "change this option and try again"))?;
    let added: OwnMachineShown = globals.client()?.post(PATH, &machine).await?;
    if globals.json {
        return output::json(&added);
    }
    output::note(&format!("{} is in the inventory.", added.spec.machine));
    match &added.message {
        Some(message) => output::note(&format!("It cannot be used yet: {}", safe(message))),
        None => output::note("It answers and lets dumont in."),
    }
    Ok(())
}

async fn list(globals: &Globals) -> Result<()> {
    let all: Vec<OwnMachineShown> = globals.client()?.list(PATH).await?;
    if globals.json {
        return output::json(&all);
    }
    if all.is_empty() {
        output::note("No machine of your own is known: dumont machine add ssh:NAME --host HOST");
        return Ok(());
    }
    let rows: Vec<_> = all.iter().map(row).collect();
    output::styled_table(
        &["MACHINE", "ADDRESS", "GPU", "$/H", "STATE", "WORKSPACES"],
        &[3],
        &rows,
    );
    for message in all.iter().filter_map(|m| m.message.as_deref()) {
        output::note(&safe(message));
    }
    Ok(())
}

fn row(m: &OwnMachineShown) -> Vec<Styled> {
    let s = &m.spec;
    let colour = match m.state {
        OwnMachineState::Free | OwnMachineState::Leased => Colour::Green,
        OwnMachineState::Cleaning => Colour::Yellow,
        OwnMachineState::Unreachable | OwnMachineState::Refused => Colour::Red,
    };
    let names = m.leases.iter().map(|l| {
        let name = l.workspace.as_ref().map_or("another's", |w| w.as_str());
        format!("{name}{}", if l.cleaning { " (cleaning)" } else { "" })
    });
    vec![
        Styled::plain(s.machine.to_string()),
        Styled::plain(format!("{}@{}:{}", s.user, s.host, s.port)),
        Styled::plain(super::workspace::gpu(
            s.gpu.as_deref().unwrap_or("-"),
            s.gpu_count,
        )),
        Styled::plain(format!("{:.3}", s.price)),
        Styled::new(output::word(&m.state), colour),
        Styled::plain(names.collect::<Vec<_>>().join(", ")),
    ]
}

async fn remove(globals: &Globals, machine: &MachineRef, force: bool) -> Result<()> {
    if machine.provider != PROVIDER {
        return Err(usage(
            format!("{machine} is not a machine of your own"),
            "those are called ssh:NAME; `dumont machine list` shows them",
        ));
    }
    let query = if force { "?force=true" } else { "" };
    let path = format!("{PATH}/{}{query}", encode(&machine.machine_id));
    let removed: OwnMachine = globals.client()?.delete(&path).await?;
    if globals.json {
        return output::json(&removed);
    }
    output::note(&format!("{} is out of the inventory.", removed.machine));
    Ok(())
}
