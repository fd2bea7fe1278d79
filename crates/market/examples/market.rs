//! A market to try by hand: `cargo run -p dumont-market --example market -- DIR [key=value]...`

use dumont_market::{MarketConfig, start};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(std::env::var("RUST_LOG").unwrap_or("warn".into()))
        .init();
    let mut args = std::env::args().skip(1);
    let mut config = MarketConfig::new(args.next().ok_or("which directory?")?);
    config.time_scale = 0.0;
    for arg in args {
        match arg.split_once('=') {
            Some(("listen", v)) => config.listen = v.parse()?,
            Some(("admin", v)) => config.admin_listen = v.parse()?,
            Some(("scale", v)) => config.time_scale = v.parse()?,
            Some(("isolation", v)) => config.isolation = v.parse()?,
            _ => return Err(format!("what is {arg}?").into()),
        }
    }
    let market = start(config).await?;
    println!(
        "market {} admin {} isolation {}",
        market.url(),
        market.admin_url(),
        market.isolation()
    );
    tokio::signal::ctrl_c().await?;
    market.shutdown().await;
    Ok(())
}
