//! `dumont drill`
use crate::config::Globals;
use anyhow::Result;
#[derive(Debug, clap::Args)]
pub struct DrillArgs {
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 0.02, value_parser = super::factor)]
    time_scale: f64,
}
pub async fn run(_: &Globals, _a: DrillArgs) -> Result<()> { Ok(()) }
