//! `dumont doctor`: what is wrong with this installation, and what to do about it.

mod live;

use super::serve;
use crate::config::{Globals, SERVER_FILE, read_if_there};
use crate::fail::{body_of, fail, silent};
use crate::output;
use anyhow::Result;
use clap::Args;
use dumont_server::doctor::{Check, Level};
use dumont_server::providers::vast::KEY_HINT;
use dumont_wire::rest::{Page, Token};
use serde::Serialize;
use std::net::SocketAddr;

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Try the provider for real: rent the cheapest fitting machine, say hello, restore,
    /// snapshot, restore again, compare, destroy. This costs money, at most what --spend says
    #[arg(long, value_name = "NAME", value_parser = ["vast"], requires = "spend")]
    pub provider: Option<String>,
    /// The most that the try may cost, dollars; 0 only destroys what an earlier one left
    #[arg(long, value_name = "USD", value_parser = super::factor, requires = "provider")]
    pub spend: Option<f64>,
    /// The try ends after so many minutes, whatever it has reached
    #[arg(long, value_name = "MINUTES", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=240))]
    pub deadline: u32,
    /// Container image of the try; a small one boots sooner
    #[arg(
        long,
        value_name = "IMAGE",
        default_value = "nvidia/cuda:12.4.1-base-ubuntu22.04"
    )]
    pub image: String,
}

#[derive(Serialize)]
struct Report {
    healthy: bool,
    checks: Vec<Check>,
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<live::Report>,
}

pub async fn run(globals: &Globals, args: DoctorArgs) -> Result<()> {
    // The settings of `serve` itself: what it would find is what is looked at.
    let config = serve::config(globals, SocketAddr::from(([127, 0, 0, 1], 0)));
    if args.spend.is_some() && config.as_ref().is_ok_and(|config| config.vast.is_none()) {
        return Err(fail(
            "provider_not_configured",
            "VAST_API_KEY is not set, and the try rents at Vast.ai",
            KEY_HINT,
        ));
    }
    let mut checks = match &config {
        Ok(config) => dumont_server::doctor::examine(config).await,
        Err(e) => {
            let body = body_of(e);
            vec![Check::failed("settings", body.message, body.hint)]
        }
    };
    if let Some(check) = server(globals).await {
        checks.push(check);
    }
    let broken = |checks: &[Check]| checks.iter().any(|c| c.level == Level::Failed);
    if !globals.json {
        show(&checks);
    }
    let mut live = None;
    if let (Some(spend), Ok(config)) = (args.spend, config)
        && (spend == 0.0 || !broken(&checks))
    {
        let wish = live::Wish {
            spend,
            deadline: std::time::Duration::from_secs(u64::from(args.deadline) * 60),
            image: args.image,
        };
        live = Some(live::run(globals, config, &wish).await?);
    }
    let healthy = !broken(&checks) && live.as_ref().is_none_or(|l| l.error.is_none());
    if globals.json {
        output::json(&Report {
            healthy,
            checks,
            live,
        })?;
    } else if let Some(live) = &live {
        live.show();
    } else if args.spend.is_some() {
        output::note("Nothing was rented: put right what failed first.");
    }
    if healthy { Ok(()) } else { Err(silent()) }
}

/// The server that the CLI would talk to, if there is one.
async fn server(globals: &Globals) -> Option<Check> {
    let known = read_if_there(&globals.data_dir().ok()?.join(SERVER_FILE)).ok()?;
    if known.is_none() && globals.url.is_none() {
        return None;
    }
    let name = "server API";
    let asked = async {
        let client = globals.client()?;
        let _: Page<Token> = client.get("/tokens?limit=1").await?;
        anyhow::Ok(client.url().to_owned())
    };
    Some(match asked.await {
        Ok(url) => Check::ok(name, format!("{url} answers and takes the token")),
        Err(e) => {
            let body = body_of(&e);
            // A server that was stopped is no fault of the installation.
            Check::warning(name, body.message, body.hint)
        }
    })
}

fn show(checks: &[Check]) {
    let width = checks.iter().map(|c| c.name.len()).max().unwrap_or(0);
    for check in checks {
        let word = match check.level {
            Level::Ok => output::green("OK  "),
            Level::Warning => output::bold("WARN"),
            Level::Failed => output::red("FAIL"),
        };
        output::line(&format!(
            "{word}  {:<width$}  {}",
            check.name,
            output::safe(&check.detail)
        ));
        if !check.hint.is_empty() {
            output::line(&format!(
                "      {:<width$}  {}",
                "",
                output::dim(&output::safe(&check.hint))
            ));
        }
    }
}
