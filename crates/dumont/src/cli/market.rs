//! `dumont market`: the emulated marketplace.

use crate::config::{Globals, private_dir};
use crate::fail::fail;
use anyhow::Result;
use clap::Args;
use std::net::SocketAddr;

#[derive(Debug, Args)]
pub struct MarketArgs {
    /// Where the Vast.ai protocol is served
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7071")]
    pub listen: SocketAddr,
    /// Where faults are made and the ledger is read; loopback only, it has no password
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7072")]
    pub admin_listen: SocketAddr,
    /// The same seed gives the same machines, prices and boot times
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Physical machines; each lists up to three offers
    #[arg(long, default_value_t = 100)]
    pub machines: usize,
    /// Multiplies the market's own waits only; 0 boots at once
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = super::factor)]
    pub time_scale: f64,
}

pub async fn run(globals: &Globals, args: MarketArgs) -> Result<()> {
    super::log_to_stderr();
    let data_dir = globals.data_dir()?.join("market");
    private_dir(&data_dir)?;
    let _ = args;
    Err(fail("not_built", "this build has no market", "build a newer version"))
}
