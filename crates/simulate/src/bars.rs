//! What the shipped policy is held to.

use crate::policy::{
    LITERAL, ORACLE, Policy, REPAIRED_3, REPAIRED_5, REPAIRED_300_3, REPAIRED_300_5, SCORE_5, SHIPPED,
};
use crate::report::MarketReport;
use serde::Serialize;

/// One requirement and what came out.
#[derive(Debug, Clone, Serialize)]
pub struct Bar {
    pub requirement: String,
    pub measured: String,
    pub held: bool,
}

/// Seeds below which an interval says too little.
const ENOUGH_SEEDS: u64 = 16;

/// All requirements that these reports can answer.
pub fn judge(base: &MarketReport, sensitivity: &[MarketReport]) -> Vec<Bar> {
    let mut bars = vec![Bar {
        requirement: format!("at least {ENOUGH_SEEDS} seeds"),
        measured: base.seeds.to_string(),
        held: base.seeds >= ENOUGH_SEEDS,
    }];
    for rival in [REPAIRED_3, REPAIRED_300_3, REPAIRED_5, REPAIRED_300_5] {
        bars.extend(better_than(base, &rival));
    }
    bars.extend(gap(base));
    if let Some(shipped) = base.of(&SHIPPED) {
        bars.push(Bar {
            requirement: "under 0.5 % of deploys without a machine".into(),
            measured: format!("{:.2} %", shipped.unready * 100.0),
            held: shipped.unready < 0.005,
        });
    }
    for row in sensitivity {
        bars.extend(not_much_worse(row));
    }
    bars
}

fn better_than(base: &MarketReport, rival: &Policy) -> Option<Bar> {
    let d = base.difference(&SHIPPED, rival)?;
    Some(Bar {
        requirement: format!("J below \"{}\", interval clear of zero", rival.name),
        measured: format!("{:+.2} [{:+.2}, {:+.2}]", d.mean, d.low(), d.high()),
        held: d.high() < 0.0,
    })
}

fn gap(base: &MarketReport) -> Option<Bar> {
    let closed = base.gap_closed(&SHIPPED, &LITERAL, &ORACLE)?;
    Some(Bar {
        requirement: "95 % of the gap from the literal rules to the oracle closed".into(),
        measured: format!("{:.1} %", closed * 100.0),
        held: closed >= 0.95,
    })
}

/// Against the best of the policies of fixed width 5.
fn not_much_worse(row: &MarketReport) -> Option<Bar> {
    let shipped = row.of(&SHIPPED)?.cost.mean;
    let best = [REPAIRED_5, REPAIRED_300_5, SCORE_5]
        .iter()
        .filter_map(|p| row.of(p))
        .min_by(|a, b| a.cost.mean.total_cmp(&b.cost.mean))?;
    let over = shipped / best.cost.mean - 1.0;
    Some(Bar {
        requirement: format!("{}: at most 5 % worse than the best fixed width 5", row.name),
        measured: format!(
            "{:+.1} % ({:.1} against {:.1}, \"{}\")",
            over * 100.0,
            shipped,
            best.cost.mean,
            best.policy.name
        ),
        held: over <= 0.05,
    })
}
