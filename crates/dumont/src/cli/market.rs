//! `dumont market`: the emulated marketplace.

use crate::config::{Globals, MARKET_FILE, MarketFile, private_dir, write_private};
use crate::fail::{fail, usage};
use crate::output;
use anyhow::Result;
use clap::Args;
use dumont_market::{
    ClockHook, Limits, MarketConfig, MarketError, Preset, SWITCHES, Sshd, Switch, Switches, Webhook,
};
use dumont_server::link::AGENT_SESSION;
use std::net::SocketAddr;

#[derive(Debug, Args)]
pub struct MarketArgs {
    /// Where the Vast.ai protocol is served
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7071")]
    pub listen: SocketAddr,
    /// Listen beyond this machine. Whoever reaches the market rents machines with any key, and
    /// those machines are programs on this host
    #[arg(long)]
    pub allow_remote: bool,
    /// Where faults are made and the ledger is read
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7072")]
    pub admin_listen: SocketAddr,
    /// Let the admin port listen beyond this machine. It has no password and no TLS: whoever
    /// reaches it kills machines and makes faults
    #[arg(long)]
    pub allow_remote_admin: bool,
    /// The same seed gives the same machines, prices and boot times
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Physical machines; each lists up to three offers
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub machines: u32,
    /// Multiplies the market's own waits only; 0 boots at once
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = super::factor)]
    pub time_scale: f64,
    /// What happens by itself: `calm` (nothing), `vast` (as far as it is known), `hell`
    #[arg(long, default_value = "calm")]
    pub preset: Preset,
    /// Rate limits: `off`, `documented`, or a factor of the documented intervals. Those of the
    /// preset where nothing is said: off in `calm`, documented in the others
    #[arg(long)]
    pub limits: Option<Limits>,
    /// Searches a day for each key and address, until midnight UTC; the real number is not known
    #[arg(long, value_name = "N")]
    pub search_quota: Option<u64>,
    /// What the account starts with, in dollars
    #[arg(long, default_value_t = 1000.0)]
    pub credit: f64,
    /// One thing that is not known of the real market, the other way: `NAME=VALUE`. `--switches`
    /// lists them
    #[arg(long = "switch", value_name = "NAME=VALUE")]
    pub switch: Vec<String>,
    /// List the switches, each with its values (the default first) and its evidence
    #[arg(long)]
    pub switches: bool,
    /// Send notifications of outbid, stopped and offline instances there, as Vast.ai does
    #[arg(long, value_name = "URL", requires = "webhook_secret")]
    pub webhook: Option<String>,
    /// What they are signed with
    #[arg(long, value_name = "SECRET", requires = "webhook")]
    pub webhook_secret: Option<String>,
    /// Run OpenSSH's server on the machines (needs root and openssh-server)
    #[arg(long)]
    pub openssh: bool,
}

impl MarketArgs {
    fn limits(&self) -> Option<Limits> {
        let quota = self.search_quota;
        let limits = self.limits.or(quota.map(|_| self.preset.limits()))?;
        Some(Limits {
            searches_per_day: quota,
            ..limits
        })
    }

    fn switch_positions(&self) -> Result<Switches> {
        let mut switches = Switches::default();
        for text in &self.switch {
            switches.set(text).map_err(refused)?;
        }
        Ok(switches)
    }

    /// Neither port has TLS, and what is behind them runs programs.
    fn check(&self) -> Result<()> {
        if !self.listen.ip().is_loopback() && !self.allow_remote {
            return Err(usage(
                format!(
                    "{} is reachable from other machines, and whoever rents there runs programs on this host",
                    self.listen
                ),
                "keep to 127.0.0.1, or pass --allow-remote if everybody on that network may do that",
            ));
        }
        if !self.admin_listen.ip().is_loopback() && !self.allow_remote_admin {
            return Err(usage(
                format!(
                    "the admin address {} is reachable from other machines, and it has no password",
                    self.admin_listen
                ),
                "keep to 127.0.0.1, or pass --allow-remote-admin if everybody on that network may use it",
            ));
        }
        Ok(())
    }
}

fn list_switches(globals: &Globals) -> Result<()> {
    if globals.json {
        return output::json(&SWITCHES);
    }
    let row = |s: &Switch| vec![s.name.to_owned(), s.values.join(", "), s.evidence.to_owned()];
    let rows: Vec<Vec<String>> = SWITCHES.iter().map(row).collect();
    output::table(&["switch", "values", "evidence"], &[], &rows);
    Ok(())
}

pub async fn run(globals: &Globals, args: MarketArgs) -> Result<()> {
    if args.switches {
        return list_switches(globals);
    }
    args.check()?;
    let (limits, switches) = (args.limits(), args.switch_positions()?);
    super::log_to_stderr(&globals.settings()?);
    let base = globals.data_dir()?;
    let data_dir = base.join("market");
    private_dir(&data_dir)?;
    let config = MarketConfig {
        listen: args.listen,
        admin_listen: args.admin_listen,
        admin_remote: args.allow_remote_admin,
        seed: args.seed,
        machines: args.machines as usize,
        time_scale: args.time_scale,
        preset: args.preset,
        limits,
        switches,
        credit: args.credit,
        webhook: args
            .webhook
            .zip(args.webhook_secret)
            .map(|(url, secret)| Webhook { url, secret }),
        sshd: if args.openssh {
            Sshd::OpenSsh(Vec::new())
        } else {
            Sshd::InProcess
        },
        // The one program of ours that runs on machines.
        clock_hook: Some(ClockHook {
            find: AGENT_SESSION.into(),
            replace: format!("{AGENT_SESSION} --clock-offset-ms {{ms}}"),
        }),
        ..MarketConfig::new(&data_dir)
    };
    let stop = super::until_stopped()?;
    let market = dumont_market::start(config).await.map_err(refused)?;
    let file = MarketFile {
        url: market.url(),
        admin_url: market.admin_url(),
    };
    // Written when both ports are open: whoever sees the file can connect.
    write_private(&data_dir.join(MARKET_FILE), &serde_json::to_string(&file)?)?;
    if globals.json {
        output::json(&file)?;
    } else if !globals.quiet {
        output::facts(&[
            (
                "market",
                format!("{}  ({} isolation)", file.url, market.isolation()),
            ),
            ("admin", file.admin_url.clone()),
            (
                "use it",
                format!("VAST_URL={} VAST_API_KEY=any dumont serve", file.url),
            ),
        ]);
    }
    stop.await;
    let _ = std::fs::remove_file(data_dir.join(MARKET_FILE));
    market.shutdown().await;
    Ok(())
}

fn refused(e: MarketError) -> anyhow::Error {
    match e {
        MarketError::AdminNotLoopback(_) | MarketError::Invalid(_) => usage(
            e.to_string(),
            "choose another value; `dumont market --help` lists them",
        ),
        other => fail(
            "market_not_started",
            other.to_string(),
            "is the port taken? choose another one with --listen and --admin-listen",
        ),
    }
}
