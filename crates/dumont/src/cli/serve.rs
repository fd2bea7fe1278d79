//! `dumont serve`: the controller.

use crate::config::Globals;
use crate::fail::{fail, usage};
use crate::output;
use anyhow::Result;
use clap::Args;
use dumont_agent_embed::{AGENT_DIGEST, AGENT_GZ};
use dumont_server::providers::vast::VastConfig;
use dumont_server::{AgentBinary, CrashPoint, ServerConfig, ServerError, Timing};
use std::net::SocketAddr;

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Address to listen on
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7070")]
    pub listen: SocketAddr,
    /// Listen beyond this machine. The API is plain HTTP and its token can rent machines and
    /// read every workspace: put a TLS proxy before it
    #[arg(long)]
    pub allow_remote: bool,
    /// Kill this process hard at that step of a failover (for drills)
    #[arg(long, value_name = "STEP", hide = true)]
    pub crash_at: Option<CrashPoint>,
}

pub async fn run(globals: &Globals, args: ServeArgs) -> Result<()> {
    if !args.listen.ip().is_loopback() && !args.allow_remote {
        return Err(usage(
            format!(
                "{} is reachable from other machines, and the API is plain HTTP",
                args.listen
            ),
            "keep to 127.0.0.1 behind a TLS proxy, or pass --allow-remote if the network is trusted",
        ));
    }
    let vast = VastConfig::from_env().map_err(|e| fail("bad_vast_settings", e.message, e.hint))?;
    super::log_to_stderr();
    let data_dir = globals.data_dir()?;
    let config = ServerConfig {
        listen: args.listen,
        data_dir: data_dir.clone(),
        agent: AgentBinary {
            gz: AGENT_GZ,
            digest: AGENT_DIGEST,
        },
        vast,
        race: dumont_core::plan::RaceSettings::default(),
        blacklist: dumont_core::blacklist::Settings::default(),
        timing: Timing::default(),
        crash_at: args.crash_at,
    };
    let stop = super::until_stopped()?;
    let mut server = dumont_server::start(config).await.map_err(refused)?;
    if globals.json {
        output::json(&serde_json::json!({ "url": server.url(), "data_dir": data_dir }))?;
    } else if !globals.quiet {
        output::facts(&[
            ("server", server.url().to_owned()),
            ("data", data_dir.display().to_string()),
            (
                "token",
                format!(
                    "{} (the CLI on this machine finds it)",
                    data_dir.join("admin.token").display()
                ),
            ),
            ("next", "dumont workspace create NAME --from DIR".into()),
        ]);
    }
    tokio::select! {
        ended = server.wait() => return ended.map_err(refused),
        () = stop => {}
    }
    server.shutdown().await;
    Ok(())
}

fn refused(e: ServerError) -> anyhow::Error {
    let (code, hint) = match &e {
        ServerError::DataDir { .. } => (
            "data_dir",
            "check its owner and free space, or choose another --data-dir",
        ),
        ServerError::InUse(_) => (
            "data_dir_in_use",
            "`dumont workspace list` talks to the one that runs",
        ),
        ServerError::Listen { .. } => (
            "cannot_listen",
            "choose another port with --listen 127.0.0.1:PORT",
        ),
        ServerError::Provider(_) => ("provider", "check VAST_URL and VAST_API_KEY"),
        _ => ("server_failed", "look at the log above"),
    };
    fail(code, e.to_string(), hint)
}
