//! `dumont serve`: the controller.

use crate::config::{Globals, private_dir};
use crate::fail::{fail, usage};
use crate::output;
use anyhow::Result;
use clap::Args;
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
    /// Kill this process hard when it begins that step of a failover (for drills)
    #[arg(long, value_name = "STEP", hide = true)]
    pub crash_at: Option<String>,
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
    super::log_to_stderr();
    let data_dir = globals.data_dir()?;
    private_dir(&data_dir)?;
    let _ = args.crash_at;
    output::note("");
    Err(fail(
        "not_built",
        "this build has no server",
        "build a newer version",
    ))
}
