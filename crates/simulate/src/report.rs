//! What a plan's tallies come to, policy by policy.

use crate::parameters::{self, Parameters};
use crate::policy::{self, Policy};
use crate::run::{Plan, Progress, Tally, run};
use crate::statistics::{Estimate, quantile};
use crate::world::World;
use serde::Serialize;

/// One policy in one market.
#[derive(Debug, Clone, Serialize)]
pub struct PolicyReport {
    pub policy: Policy,
    pub failed_per_deploy: f64,
    pub dropped_per_deploy: f64,
    /// Seconds to ready, of the deploys that got a machine.
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub wasted_gpu_seconds: f64,
    /// Share of deploys without a machine.
    pub unready: f64,
    pub cost: Estimate,
    /// J minus the shipped policy's, seed by seed; negative is better than shipped.
    pub cost_over_shipped: Estimate,
    /// Shares of machines, averaged over days: good ones that are blocked (false positives),
    /// tried lemons that are (recall).
    pub good_blocked: f64,
    pub lemons_blocked: f64,
    /// Of all blocks set, the share on good machines; `None` without a block.
    pub blocks_on_good: Option<f64>,
}

/// All policies in one market.
#[derive(Debug, Clone, Serialize)]
pub struct MarketReport {
    pub name: String,
    pub parameters: Parameters,
    pub first_seed: u64,
    pub seeds: u64,
    /// Scored deploys of each policy.
    pub deploys: u64,
    /// Boots of machines never used before: p50 and p90, seconds, mean over seeds.
    pub cold_boot: [f64; 2],
    pub policies: Vec<PolicyReport>,
    #[serde(skip)]
    costs: Vec<Vec<f64>>,
}

/// The market as assumed, and each row of the sensitivity table where it was asked for.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub base: MarketReport,
    pub sensitivity: Vec<MarketReport>,
    pub bars: Vec<crate::bars::Bar>,
}

impl Report {
    /// Runs everything. `row_seeds` is how many seeds each sensitivity row gets; 0 leaves the
    /// table out.
    pub fn make(plan: &Plan, row_seeds: u64, progress: Progress) -> Self {
        let base = MarketReport::make("as assumed", plan, progress);
        let rows = if row_seeds > 0 {
            parameters::sensitivity(plan.parameters)
        } else {
            Vec::new()
        };
        let sensitivity: Vec<MarketReport> = rows
            .iter()
            .map(|row| {
                let plan = plan.in_row(row, &policy::SENSITIVE, row_seeds);
                MarketReport::make(row.name, &plan, progress)
            })
            .collect();
        let bars = crate::bars::judge(&base, &sensitivity);
        Self {
            base,
            sensitivity,
            bars,
        }
    }

    /// Runs that [`Report::make`] will take.
    pub fn runs(plan: &Plan, row_seeds: u64) -> usize {
        let rows = parameters::sensitivity(plan.parameters).len() as u64;
        plan.runs() + (rows * row_seeds) as usize * policy::SENSITIVE.len()
    }
}

impl MarketReport {
    pub fn make(name: &str, plan: &Plan, progress: Progress) -> Self {
        let tallies = run(plan, progress);
        let of = |at: usize| tallies.iter().filter(move |t| t.policy == at);
        let costs: Vec<Vec<f64>> = (0..plan.policies.len())
            .map(|at| of(at).map(|t| t.cost(&plan.parameters)).collect())
            .collect();
        let shipped = plan.policies.iter().position(|p| *p == policy::SHIPPED);
        let policies = plan.policies.iter().enumerate().map(|(at, policy)| {
            let over = match shipped {
                Some(s) => differences(&costs[at], &costs[s]),
                None => vec![f64::NAN],
            };
            one(*policy, of(at), &costs[at], &over)
        });
        Self {
            name: name.to_owned(),
            parameters: plan.parameters,
            first_seed: plan.first_seed,
            seeds: plan.seeds,
            deploys: of(0).map(|t| t.deploys).sum(),
            cold_boot: cold_boot(plan),
            policies: policies.collect(),
            costs,
        }
    }

    pub fn of(&self, policy: &Policy) -> Option<&PolicyReport> {
        self.policies.iter().find(|p| p.policy == *policy)
    }

    fn costs_of(&self, policy: &Policy) -> Option<&[f64]> {
        let at = self.policies.iter().position(|p| p.policy == *policy)?;
        Some(&self.costs[at])
    }

    /// J of `a` minus J of `b`, paired by seed.
    pub fn difference(&self, a: &Policy, b: &Policy) -> Option<Estimate> {
        Some(Estimate::of(&differences(self.costs_of(a)?, self.costs_of(b)?)))
    }

    /// The share of the distance from `worse` to `best` that `policy` covers, of mean J.
    pub fn gap_closed(&self, policy: &Policy, worse: &Policy, best: &Policy) -> Option<f64> {
        let j = |p: &Policy| self.of(p).map(|r| r.cost.mean);
        Some((j(worse)? - j(policy)?) / (j(worse)? - j(best)?))
    }
}

fn cold_boot(plan: &Plan) -> [f64; 2] {
    let seeds = plan.first_seed..plan.first_seed + plan.seeds;
    let boots = seeds.map(|seed| World::new(seed, plan.parameters).cold_boot([0.5, 0.9]));
    let sum = boots.fold([0.0, 0.0], |sum, b| [sum[0] + b[0], sum[1] + b[1]]);
    sum.map(|s| s / plan.seeds.max(1) as f64)
}

fn differences(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

fn one<'a>(
    policy: Policy,
    tallies: impl Iterator<Item = &'a Tally>,
    costs: &[f64],
    over: &[f64],
) -> PolicyReport {
    let mut sum = Tally::default();
    for t in tallies {
        sum.deploys += t.deploys;
        sum.ready.extend(&t.ready);
        sum.failed += t.failed;
        sum.dropped += t.dropped;
        sum.wasted += t.wasted;
        sum.days += t.days;
        sum.good_blocked += t.good_blocked;
        sum.lemons_blocked += t.lemons_blocked;
        sum.blocks += t.blocks;
        sum.blocks_on_good += t.blocks_on_good;
    }
    sum.ready.sort_by(f64::total_cmp);
    let deploys = sum.deploys.max(1) as f64;
    let days = sum.days.max(1) as f64;
    PolicyReport {
        policy,
        failed_per_deploy: sum.failed as f64 / deploys,
        dropped_per_deploy: sum.dropped as f64 / deploys,
        p50: quantile(&sum.ready, 0.5),
        p90: quantile(&sum.ready, 0.9),
        p99: quantile(&sum.ready, 0.99),
        wasted_gpu_seconds: sum.wasted / deploys,
        unready: sum.unready() as f64 / deploys,
        cost: Estimate::of(costs),
        cost_over_shipped: Estimate::of(over),
        good_blocked: sum.good_blocked / days,
        lemons_blocked: sum.lemons_blocked / days,
        blocks_on_good: (sum.blocks > 0).then(|| sum.blocks_on_good as f64 / sum.blocks as f64),
    }
}
