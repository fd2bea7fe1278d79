//! `dumont offers`: what can be rented now, beside the record of each machine.

use super::workspace::gpu;
use crate::badge;
use crate::client::{Client, query_of};
use crate::config::Globals;
use crate::output::{self, Styled};
use anyhow::Result;
use clap::{Args, ValueEnum};
use dumont_core::blacklist::CudaVersion;
use dumont_core::id::MachineRef;
use dumont_core::level::Action;
use dumont_core::spec::Providers;
use dumont_wire::offers::{Offer, OfferOrder, OfferPage, OfferQuery, OfferVerified};

#[derive(Debug, Clone, Default, Args)]
pub struct OffersArgs {
    /// Whose: vast, ssh (your own) or any [default: vast]
    #[arg(long, value_name = "WHOSE")]
    pub provider: Option<Providers>,
    /// GPU's marketplace name, e.g. "RTX 4090"
    #[arg(long, value_name = "NAME")]
    pub gpu: Option<String>,
    /// GPUs on the machine [default: 1]
    #[arg(long, value_name = "N")]
    pub gpu_count: Option<u32>,
    /// Least memory per GPU, GB
    #[arg(long, value_name = "GB")]
    pub min_ram: Option<f64>,
    /// The most to pay, dollars per hour, the disk included
    #[arg(long, value_name = "DOLLARS", allow_negative_numbers = true)]
    pub max_price: Option<f64>,
    /// Disk to rent, GB [default: 20]
    #[arg(long, value_name = "GB")]
    pub disk: Option<u32>,
    /// Least download rate, Mbit/s
    #[arg(long, value_name = "MBPS")]
    pub min_down: Option<f64>,
    /// Least upload rate, Mbit/s
    #[arg(long, value_name = "MBPS")]
    pub min_up: Option<f64>,
    /// A country's two letters (CA), or a part of the place's name
    #[arg(long, value_name = "PLACE")]
    pub region: Option<String>,
    /// Machines that the marketplace has verified, those it has not, or any
    /// [default: as the server is set, verified only]
    #[arg(long, value_name = "WHICH")]
    pub verified: Option<Which>,
    /// Machines in a data centre: yes or no
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub datacenter: Option<bool>,
    /// CUDA version the driver must serve, e.g. 12.4
    #[arg(long, value_name = "VERSION")]
    pub cuda: Option<CudaVersion>,
    /// This machine only
    #[arg(long, value_name = "vast:12345")]
    pub machine: Option<MachineRef>,
    /// What comes first
    #[arg(long, value_name = "ORDER", default_value = "score")]
    pub order: Order,
    /// Show blacklisted machines, too
    #[arg(long)]
    pub include_blacklisted: bool,
    /// Show every offer of a machine, not only its best
    #[arg(long)]
    pub all_offers: bool,
    /// Show at most this many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=500))]
    pub limit: Option<u32>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Which {
    #[value(alias = "true")]
    Yes,
    #[value(alias = "false")]
    No,
    Any,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum Order {
    /// Most reliable first
    #[default]
    Score,
    /// Cheapest first
    Price,
    /// Soonest ready first
    Ready,
}

impl OffersArgs {
    fn query(&self) -> OfferQuery {
        OfferQuery {
            provider: self.provider,
            gpu: self.gpu.clone(),
            gpu_count: self.gpu_count,
            min_ram_gb: self.min_ram,
            max_price: self.max_price,
            disk_gb: self.disk,
            min_down_mbps: self.min_down,
            min_up_mbps: self.min_up,
            region: self.region.clone(),
            verified: self.verified.map(|which| match which {
                Which::Yes => OfferVerified::True,
                Which::No => OfferVerified::False,
                Which::Any => OfferVerified::Any,
            }),
            datacenter: self.datacenter,
            cuda: self.cuda,
            machine: self.machine.as_ref().map(ToString::to_string),
            order: Some(match self.order {
                Order::Score => OfferOrder::Score,
                Order::Price => OfferOrder::Price,
                Order::Ready => OfferOrder::Ready,
            }),
            all_offers: self.all_offers.then_some(true),
            include_blacklisted: self.include_blacklisted.then_some(true),
            limit: self.limit,
            after: None,
        }
    }
}

pub async fn run(globals: &Globals, args: &OffersArgs) -> Result<()> {
    let page = ask(&globals.client()?, &args.query()).await?;
    if globals.json {
        return output::json(&page);
    }
    if page.items.is_empty() {
        output::note(if page.found == 0 {
            "No offer fits: ask for less, or for a higher price."
        } else {
            "Every machine that fits is blacklisted."
        });
    } else {
        output::styled_table(&HEADER, &RIGHT, &rows(&page.items));
    }
    if !globals.quiet {
        after_words(&page);
    }
    Ok(())
}

/// One page of offers.
pub async fn ask(client: &Client, query: &OfferQuery) -> Result<OfferPage> {
    client.get(&format!("/instances/offers{}", query_of(query))).await
}

fn after_words(page: &OfferPage) {
    if page.blacklisted_hidden > 0 {
        output::note(&format!(
            "{} hidden; --include-blacklisted shows them.",
            output::count(page.blacklisted_hidden, "blacklisted machine")
        ));
    }
    if page.next.is_some() {
        output::note("There are more; a higher --limit shows them.");
    }
}

pub const HEADER: [&str; 9] = [
    "MACHINE", "STATUS", "HISTORY", "$/H", "READY", "GPU", "RAM", "REGION", "NOTE",
];
pub const RIGHT: [usize; 4] = [2, 3, 4, 6];

/// What both `offers` and the wizard show.
pub fn rows(offers: &[Offer]) -> Vec<Vec<Styled>> {
    offers.iter().map(row).collect()
}

fn row(o: &Offer) -> Vec<Styled> {
    vec![
        Styled::plain(format!("{}:{}", o.provider, o.machine_id)),
        badge::level(badge::level_of(&o.reliability_status)),
        badge::rate(o.successful_attempts, o.failed_attempts),
        Styled::plain(format!("{:.3}", o.dph_total)),
        Styled::plain(format!("{:.0} s", o.predicted_ready_seconds)),
        Styled::plain(gpu(&o.gpu_name, o.num_gpus)),
        Styled::plain(format!("{} GB", o.gpu_ram / 1000)),
        Styled::plain(output::or_dash(o.geolocation.as_ref())),
        note(o),
    ]
}

/// What a person must know before renting it.
fn note(o: &Offer) -> Styled {
    let level = badge::level_of(&o.reliability_status);
    let text = match level.action() {
        Action::Block => {
            let reason = o.blacklist_reason.as_deref().unwrap_or("no reason given");
            format!("blocked: {reason}")
        }
        Action::Alert => "low reliability".into(),
        Action::Warn => "some failures".into(),
        Action::Prefer | Action::Normal => String::new(),
    };
    Styled::new(text, level.colour())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn offer(machine: &str, successful: i64, failed: i64, status: &str) -> Offer {
        Offer {
            id: "29102584".into(),
            provider: "vast".into(),
            machine_id: machine.into(),
            host_id: None,
            gpu_name: "RTX 4090".into(),
            num_gpus: 1,
            gpu_ram: 24_564,
            dph_total: 0.25,
            disk_space: 100.0,
            geolocation: Some("Quebec, CA".into()),
            inet_down: 800.0,
            inet_up: 800.0,
            cuda_max_good: Some(12.8),
            driver_version: None,
            verified: true,
            datacenter: false,
            reliability: 0.99,
            is_blacklisted: status == "blacklisted",
            blacklist_reason: (status == "blacklisted").then(|| "ssh\u{1b}[31m_failed".into()),
            success_rate: None,
            total_attempts: successful + failed,
            successful_attempts: successful,
            failed_attempts: failed,
            reliability_status: status.into(),
            reliability_score: 0.85,
            predicted_ready_seconds: 74.6,
        }
    }

    fn market() -> Vec<Offer> {
        vec![
            offer("12345", 19, 1, "excellent"),
            offer("7", 17, 3, "good"),
            offer("88", 0, 0, "unknown"),
            offer("9", 5, 5, "fair"),
            offer("10", 3, 7, "poor"),
            offer("11", 0, 3, "blacklisted"),
        ]
    }

    #[test]
    fn the_table_without_colours() {
        let lines = output::styled_lines(&HEADER, &RIGHT, &rows(&market()), false);
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn the_table_in_colours() {
        let lines = output::styled_lines(&HEADER, &RIGHT, &rows(&market()), true);
        let text = lines.join("\n").replace('\u{1b}', "␛");
        insta::assert_snapshot!(text);
    }
}
