//! `dumont history summary|reliable|problematic`: many machines at once.

use crate::badge;
use crate::client::query_of;
use crate::config::Globals;
use crate::output::{self, Styled, paint};
use anyhow::Result;
use clap::Args;
use dumont_core::level::Level;
use dumont_wire::history::{HistorySummary, MachineStats, MachinesQuery, SummaryQuery};
use dumont_wire::rest::Page;

#[derive(Debug, Args)]
pub struct MachinesArgs {
    /// Tried within this long only, e.g. 7d
    #[arg(long, value_name = "TIME")]
    pub period: Option<String>,
    /// With at least this many counted attempts [default: 1]
    #[arg(long, value_name = "N")]
    pub min_attempts: Option<u32>,
    /// Show at most this many
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub limit: u32,
}

pub async fn run(globals: &Globals, which: &str, args: MachinesArgs) -> Result<()> {
    let query = MachinesQuery {
        period: args.period,
        min_attempts: args.min_attempts,
        limit: Some(args.limit),
        ..MachinesQuery::default()
    };
    let path = format!("/machines/history/{which}{}", query_of(&query));
    let page: Page<MachineStats> = globals.client()?.get(&path).await?;
    if globals.json {
        return output::json(&page.items);
    }
    if page.items.is_empty() {
        output::note("No machine fits.");
        return Ok(());
    }
    output::styled_table(&HEADER, &RIGHT, &page.items.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

const HEADER: [&str; 7] = [
    "MACHINE", "STATUS", "HISTORY", "SCORE", "BOOT", "LAST TRY", "BLOCKED",
];
const RIGHT: [usize; 3] = [2, 3, 4];

fn row(s: &MachineStats) -> Vec<Styled> {
    vec![
        Styled::plain(format!("{}:{}", s.provider, s.machine_id)),
        badge::level(s.reliability_status),
        badge::rate(s.successful_attempts, s.failed_attempts),
        Styled::plain(format!("{:.2}", s.reliability_score)),
        Styled::plain(output::or_dash(s.avg_boot_time.map(|t| format!("{t:.0} s")))),
        Styled::plain(output::or_dash(s.last_attempt_at.map(output::ago))),
        Styled::plain(s.blacklist_reason.as_deref().unwrap_or_default()),
    ]
}

pub async fn summary(globals: &Globals, period: Option<String>) -> Result<()> {
    let query = query_of(&SummaryQuery {
        provider: None,
        period,
    });
    let s: HistorySummary = globals
        .client()?
        .get(&format!("/machines/history/summary{query}"))
        .await?;
    if globals.json {
        return output::json(&s);
    }
    let m = &s.machines;
    let levels = [
        (Level::Excellent, m.excellent),
        (Level::Good, m.good),
        (Level::Fair, m.fair),
        (Level::Poor, m.poor),
        (Level::Blacklisted, m.blacklisted),
        (Level::Unknown, m.unknown),
    ];
    let rows: Vec<_> = levels
        .into_iter()
        .map(|(level, n)| vec![badge::level(level), Styled::plain(n.to_string())])
        .collect();
    output::styled_table(&["STATUS", "MACHINES"], &[1], &rows);
    output::line("");
    output::facts(&[
        ("machines", s.total_machines.to_string()),
        (
            "attempts",
            format!(
                "{}  ({} ready, {} failed, {} not counted)",
                s.total_attempts, s.successful_attempts, s.failed_attempts, s.uncounted_attempts
            ),
        ),
        (
            "rate",
            paint(&badge::rate(s.successful_attempts, s.failed_attempts)),
        ),
        (
            "blocked",
            format!(
                "{} automatic, {} manual, {} temporary",
                s.blacklist.automatic, s.blacklist.manual, s.blacklist.temporary
            ),
        ),
    ]);
    if !s.top_reasons.is_empty() {
        output::line("");
        let rows: Vec<_> = s
            .top_reasons
            .iter()
            .map(|r| vec![r.reason.clone(), r.count.to_string()])
            .collect();
        output::table(&["FAILED BECAUSE", "TIMES"], &[1], &rows);
    }
    Ok(())
}
