//! `dumont simulate`: the decisions of this very program in a market whose truth is known.

use crate::config::Globals;
use crate::fail::{silent, usage};
use crate::output;
use anyhow::Result;
use clap::{Args, Subcommand};
use dumont_simulate::report::{MarketReport, PolicyReport, Report};
use dumont_simulate::{Parameters, Plan, policy};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::Instant;

#[derive(Debug, Subcommand)]
pub enum SimulateCommand {
    /// Compare ways to choose machines: cheapest, the rules, the score, and an oracle
    ///
    /// Every policy meets the same simulated market, deploy for deploy; the rules, the score and
    /// the race plans are the code of dumont itself. What is assumed about the market
    /// stands in crates/simulate/src/parameters.rs. Nothing is rented and no server is asked.
    History(HistoryArgs),
}

#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// First seed; the policies were developed on seeds 1 to 16
    #[arg(long, default_value_t = 1001)]
    seed: u64,
    /// Seeds to run, one market each
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(2..=1_000))]
    seeds: u64,
    /// Length of each run; the first 10 days are not scored
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(11..=1_000))]
    days: u32,
    /// Deploys a day
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    deploys: u32,
    /// Also vary the assumptions, one at a time
    #[arg(long)]
    sensitivity: bool,
    /// Seeds for each varied assumption [default: 8, at most --seeds]
    #[arg(long, value_name = "N", requires = "sensitivity", value_parser = clap::value_parser!(u64).range(2..=1_000))]
    row_seeds: Option<u64>,
    /// Exit with 1 if the shipped policy misses a bar
    #[arg(long)]
    check: bool,
}

pub async fn run(globals: &Globals, command: SimulateCommand) -> Result<()> {
    let SimulateCommand::History(args) = command;
    let plan = Plan {
        parameters: Parameters {
            days: f64::from(args.days),
            deploys_per_day: f64::from(args.deploys),
            ..Parameters::default()
        },
        policies: policy::ALL.to_vec(),
        first_seed: args.seed,
        seeds: args.seeds,
    };
    if args.seed.checked_add(args.seeds).is_none() {
        return Err(usage("--seed is too large", "take a smaller one, e.g. 1001"));
    }
    let row_seeds = if args.sensitivity {
        args.row_seeds.unwrap_or(args.seeds.min(8))
    } else {
        0
    };
    let quiet = globals.quiet;
    let started = Instant::now();
    let report = tokio::task::spawn_blocking(move || simulate(&plan, row_seeds, quiet)).await?;
    if globals.json {
        output::json(&report)?;
    } else {
        print(&report);
        if !quiet {
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            output::note(&format!(
                "{:.0} s on {}",
                started.elapsed().as_secs_f64(),
                output::count(threads as u64, "core")
            ));
        }
    }
    if args.check && report.bars.iter().any(|b| !b.held) {
        return Err(silent());
    }
    Ok(())
}

fn simulate(plan: &Plan, row_seeds: u64, quiet: bool) -> Report {
    let bar = if quiet || !std::io::stderr().is_terminal() {
        ProgressBar::hidden()
    } else {
        ProgressBar::new(Report::runs(plan, row_seeds) as u64)
    };
    if let Ok(style) = ProgressStyle::with_template("  simulating [{bar:28}] {pos}/{len} runs  {elapsed}") {
        bar.set_style(style.progress_chars("=> "));
    }
    let report = Report::make(plan, row_seeds, &|| bar.inc(1));
    bar.finish_and_clear();
    report
}

fn print(report: &Report) {
    let base = &report.base;
    let p = &base.parameters;
    output::line(&format!(
        "{} machines, {:.0} deploys a day for {:.0} days, seeds {} to {}; {} deploys scored",
        p.machines,
        p.deploys_per_day,
        p.days,
        base.first_seed,
        base.first_seed + base.seeds - 1,
        base.deploys,
    ));
    output::line(&format!(
        "a machine never used before boots in {:.0} s (p50), {:.0} s (p90)\n",
        base.cold_boot[0], base.cold_boot[1]
    ));
    policies(base);
    output::line(&output::dim(
        "\nJ = mean seconds to ready (600 more where there is no machine) + 0.1 per wasted GPU second; \
         intervals are 95 % over seeds.\nvs shipped: J minus the shipped policy's on the same seeds. \
         good, lemons blocked: share of machines blocked, mean over days (false positives, recall).",
    ));
    blocked(base);
    if !report.sensitivity.is_empty() {
        sensitivity(&report.sensitivity);
    }
    output::line("");
    for bar in &report.bars {
        let mark = if bar.held {
            output::green("held  ")
        } else {
            output::red("missed")
        };
        output::line(&format!("{mark}  {}: {}", bar.requirement, bar.measured));
    }
}

fn policies(base: &MarketReport) {
    let row = |p: &PolicyReport| {
        let shipped = p.policy == policy::SHIPPED;
        let over = &p.cost_over_shipped;
        vec![
            p.policy.name.to_owned(),
            format!("{:.2}", p.failed_per_deploy),
            format!("{:.0}/{:.0}/{:.0}", p.p50, p.p90, p.p99),
            format!("{:.0}", p.wasted_gpu_seconds),
            format!("{:.2} %", p.unready * 100.0),
            format!("{:.1} ± {:.1}", p.cost.mean, p.cost.half_width),
            if shipped {
                "-".into()
            } else {
                format!("{:+.2} ± {:.2}", over.mean, over.half_width)
            },
        ]
    };
    let rows: Vec<_> = base.policies.iter().map(row).collect();
    output::table(
        &[
            "POLICY",
            "FAILED/DEPLOY",
            "READY p50/90/99 s",
            "WASTED GPU-S",
            "NO MACHINE",
            "J",
            "VS SHIPPED",
        ],
        &[1, 2, 3, 4, 5, 6],
        &rows,
    );
}

fn blocked(base: &MarketReport) {
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let row = |p: &PolicyReport| {
        vec![
            p.policy.name.to_owned(),
            percent(p.good_blocked),
            percent(p.lemons_blocked),
            output::or_dash(p.blocks_on_good.map(percent)),
            format!("{:.2}", p.dropped_per_deploy),
        ]
    };
    let with_rules = base.policies.iter().filter(|p| p.policy.rules.is_some());
    let rows: Vec<_> = with_rules.map(row).collect();
    output::line("");
    output::table(
        &[
            "BLACKLIST",
            "GOOD BLOCKED",
            "LEMONS BLOCKED",
            "BLOCKS ON GOOD",
            "LET GO/DEPLOY",
        ],
        &[1, 2, 3, 4],
        &rows,
    );
}

fn sensitivity(markets: &[MarketReport]) {
    let j = |m: &MarketReport, p: &policy::Policy| {
        output::or_dash(m.of(p).map(|r| format!("{:.1}", r.cost.mean)))
    };
    let closed = |m: &MarketReport, from: &policy::Policy| {
        let share = m.gap_closed(&policy::SHIPPED, from, &policy::ORACLE);
        output::or_dash(share.map(|s| format!("{:.0} %", s * 100.0)))
    };
    let row = |m: &MarketReport| {
        let mut cells = vec![m.name.clone()];
        cells.extend(policy::SENSITIVE.iter().map(|p| j(m, p)));
        cells.push(closed(m, &policy::LITERAL));
        cells.push(closed(m, &policy::REPAIRED_300_3));
        cells
    };
    let rows: Vec<_> = markets.iter().map(row).collect();
    output::line(
        "\nJ with one assumption changed; at the end the share of the way to the oracle that shipped goes, from the literal and from the repaired rules (300 s, 3)\n",
    );
    output::table(
        &[
            "CHANGED",
            "LITERAL",
            "RULES 300 s 3",
            "RULES 3",
            "RULES 300 s 5",
            "RULES 5",
            "SCORE 5",
            "SHIPPED",
            "ORACLE",
            "OF LITERAL",
            "OF RULES",
        ],
        &(1..11).collect::<Vec<_>>(),
        &rows,
    );
}
