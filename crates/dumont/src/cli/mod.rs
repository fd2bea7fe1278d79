//! The command line: one file per noun.

mod bench;
mod completions;
mod config;
mod deploy;
mod doctor;
mod drill;
mod failover;
mod history;
mod import;
mod instance;
mod keys;
mod machine;
mod market;
mod offers;
mod own_machine;
pub mod serve;
mod simulate;
mod snapshot;
mod spec;
mod spending;
mod ssh;
mod token;
mod workspace;
mod workspace_key;

use crate::config::Globals;
use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

/// Keeps a GPU workspace alive on rented machines: snapshots it, and when its machine is
/// lost, races for another one, restores, validates and goes on.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    propagate_version = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
#[command(
    after_help = "Start here: `dumont drill` shows a whole failover on this machine; nothing is paid for."
)]
pub struct Args {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the controller
    Serve(serve::ServeArgs),
    /// Put a workspace on a machine in one go; without arguments it asks for everything
    Deploy(Box<deploy::DeployArgs>),
    /// Create, list, show and delete workspaces
    #[command(subcommand, visible_alias = "ws")]
    Workspace(workspace::WorkspaceCommand),
    /// Open a shell, or run a command, in a workspace
    Ssh(ssh::SshArgs),
    /// Take, list and restore snapshots
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// Run, show and list failovers
    #[command(subcommand)]
    Failover(failover::FailoverCommand),
    /// What can be rented now, the most reliable machines first
    Offers(offers::OffersArgs),
    /// What machines did, and which are not to be used
    #[command(subcommand)]
    History(history::HistoryCommand),
    /// Machines of your own, reached by SSH: add, list and remove them
    #[command(subcommand)]
    Machine(own_machine::MachineCommand),
    /// The machines met so far, and how reliable they were
    Machines,
    /// Everything that is rented now
    Instances(instance::InstancesArgs),
    /// What was spent today and this month, and the caps
    Spending,
    /// Make, list and revoke API tokens
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Say what is wrong with this installation and what to do about it
    ///
    /// Looks at the data directory, the database, the store and the provider with the settings
    /// of `dumont serve`, whether one is running or not. Exit code 1 if something has failed.
    Doctor(doctor::DoctorArgs),
    /// Show the settings in force
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Run an emulated Vast.ai marketplace whose machines are real SSH servers
    ///
    /// It keeps its machines' disks, and market.json with its addresses, in `market/` below the
    /// data directory. The machines end with it.
    Market(market::MarketArgs),
    /// Show a whole failover from start to end: rent, snapshot, kill, recover, compare
    Drill(drill::DrillArgs),
    /// Print a completion script, e.g. `dumont completions bash > /etc/bash_completion.d/dumont`
    Completions(completions::CompletionsArgs),
    /// Write the man pages of every command
    Man(completions::ManArgs),
    /// Measure dumont's decisions in a simulated market
    #[command(subcommand)]
    Simulate(simulate::SimulateCommand),
    /// Measure how fast parts of dumont are on this machine
    #[command(subcommand)]
    Bench(bench::BenchCommand),
}

/// Runs what was asked for.
pub async fn run(args: Args) -> Result<()> {
    let globals = &args.globals;
    match args.command {
        Command::Serve(a) => serve::run(globals, a).await,
        Command::Deploy(a) => deploy::run(globals, *a).await,
        Command::Workspace(c) => workspace::run(globals, c).await,
        Command::Ssh(a) => ssh::run(globals, a).await,
        Command::Snapshot(c) => snapshot::run(globals, c).await,
        Command::Failover(c) => failover::run(globals, c).await,
        Command::Offers(a) => offers::run(globals, &a).await,
        Command::History(c) => history::run(globals, c).await,
        Command::Machine(c) => own_machine::run(globals, c).await,
        Command::Machines => machine::run(globals).await,
        Command::Instances(a) => instance::run(globals, &a).await,
        Command::Spending => spending::run(globals).await,
        Command::Token(c) => token::run(globals, c).await,
        Command::Doctor(a) => doctor::run(globals, a).await,
        Command::Config(c) => config::run(globals, &c),
        Command::Market(a) => market::run(globals, a).await,
        Command::Drill(a) => drill::run(globals, a).await,
        Command::Completions(a) => completions::completions(Args::command(), &a),
        Command::Man(a) => completions::man(Args::command(), &a),
        Command::Simulate(c) => simulate::run(globals, c).await,
        Command::Bench(c) => bench::run(globals, c).await,
    }
}

/// Asks a yes-or-no question on the terminal; false where nobody can answer.
fn confirm(question: &str) -> Result<bool> {
    use std::io::{IsTerminal, Write};
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    eprint!("{question} [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// A factor for waits: 0 or more.
fn factor(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(n) if n.is_finite() && n >= 0.0 => Ok(n),
        _ => Err("a number of 0 or more, e.g. 0.1".into()),
    }
}

/// Completes when somebody asks this process to stop (Ctrl-C, SIGTERM). The handlers are in
/// place when this returns.
fn until_stopped() -> Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// The log of a long-running process: on stderr, `DUMONT_LOG` filters it.
fn log_to_stderr(settings: &crate::settings::Settings) {
    use std::io::IsTerminal;
    let filter = settings.text("DUMONT_LOG").unwrap_or("info");
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(std::iter::once("dumont").chain(line.split_whitespace()))
    }

    #[test]
    fn the_command_line_is_consistent() {
        <Args as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn a_crash_point_is_checked_before_anything_starts() {
        assert!(parse("serve --crash-at restore").is_ok());
        assert!(parse("drill --kill-server-at restore").is_ok());
        assert_eq!(
            parse("drill --kill-server-at nowhere")
                .expect_err("nowhere")
                .exit_code(),
            2
        );
    }

    #[test]
    fn common_options_stand_before_and_after_the_verb() {
        assert!(parse("--json workspace list").unwrap().globals.json);
        assert!(parse("workspace list --json").unwrap().globals.json);
        assert!(parse("drill --seed 7 --json").unwrap().globals.json);
    }

    #[test]
    fn names_and_numbers_are_checked_while_parsing() {
        for bad in [
            "workspace show Bad_Name",
            "workspace create x --gpu-count two",
            "workspace create x --port 70000",
            "workspace create x --env NOVALUE",
            "drill --time-scale -1",
            "frobnicate",
            "market --machines many",
            "simulate history --seeds 1",
            "simulate history --row-seeds 4",
            "ssh",
        ] {
            assert_eq!(parse(bad).expect_err(bad).exit_code(), 2, "{bad}");
        }
    }

    #[test]
    fn a_remote_command_keeps_its_own_options() {
        let args = parse("ssh box -- ls --json -l").unwrap();
        assert!(!args.globals.json);
        let Command::Ssh(ssh) = args.command else {
            panic!("not ssh")
        };
        assert_eq!(ssh.command, ["ls", "--json", "-l"]);
    }
}
