//! A small market, every policy: the ratios that the long run prints, with a wide margin.

use dumont_simulate::policy::{self, LITERAL, ORACLE, REPAIRED_3, REPAIRED_5, SHIPPED};
use dumont_simulate::report::{MarketReport, Report};
use dumont_simulate::{Parameters, Plan};
use std::sync::atomic::{AtomicUsize, Ordering};

fn plan(policies: &[policy::Policy]) -> Plan {
    Plan {
        parameters: Parameters {
            days: 16.0,
            warm_up_days: 6.0,
            ..Parameters::default()
        },
        policies: policies.to_vec(),
        first_seed: 1,
        seeds: 2,
    }
}

fn cost(report: &MarketReport, policy: &policy::Policy) -> f64 {
    report.of(policy).map_or(f64::NAN, |r| r.cost.mean)
}

#[test]
fn shipped_is_near_the_oracle_and_far_from_the_literal_rules() {
    let plan = plan(&[LITERAL, REPAIRED_3, REPAIRED_5, SHIPPED, ORACLE]);
    let report = MarketReport::make("short", &plan, &|| {});
    let closed = report.gap_closed(&SHIPPED, &LITERAL, &ORACLE).expect("all ran");
    assert!(closed > 0.8, "{closed}");
    let shipped = cost(&report, &SHIPPED);
    assert!(shipped < 1.02 * cost(&report, &REPAIRED_3), "{report:#?}");
    assert!(shipped < 1.02 * cost(&report, &REPAIRED_5), "{report:#?}");
    assert!(shipped < 1.3 * cost(&report, &ORACLE), "{report:#?}");
    let of = |p| report.of(p).expect("it ran");
    assert!(of(&SHIPPED).unready < 0.005);
    // The collapse that the repaired rules repair.
    assert!(of(&LITERAL).good_blocked > 10.0 * of(&REPAIRED_3).good_blocked);
    assert!(of(&LITERAL).blocks_on_good.expect("it blocks") > 0.5);
}

#[test]
fn a_seed_is_one_market_whoever_asks_and_however_many_threads() {
    let plan = Plan {
        parameters: Parameters {
            days: 8.0,
            warm_up_days: 2.0,
            ..Parameters::default()
        },
        ..plan(&[policy::CHEAPEST, SHIPPED])
    };
    let runs = AtomicUsize::new(0);
    let make = |plan: &Plan| {
        MarketReport::make("twice", plan, &|| {
            runs.fetch_add(1, Ordering::Relaxed);
        })
    };
    let (a, b) = (make(&plan), make(&plan));
    let text = |r: &MarketReport| serde_json::to_string(r).expect("plain numbers");
    assert_eq!(text(&a), text(&b));
    assert_eq!(runs.load(Ordering::Relaxed), 2 * plan.runs());
    // Alone it fares as it does in company.
    let alone = make(&Plan {
        policies: vec![SHIPPED],
        ..plan
    });
    assert_eq!(cost(&alone, &SHIPPED).to_bits(), cost(&a, &SHIPPED).to_bits());
}

#[test]
fn a_report_names_every_bar_and_every_row() {
    let plan = Plan {
        parameters: Parameters {
            days: 2.0,
            warm_up_days: 0.5,
            deploys_per_day: 10.0,
            ..Parameters::default()
        },
        ..plan(&policy::ALL)
    };
    let done = AtomicUsize::new(0);
    let report = Report::make(&plan, 2, &|| {
        done.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!(done.load(Ordering::Relaxed), Report::runs(&plan, 2));
    assert_eq!(report.sensitivity.len(), 11);
    // Seeds, four rivals, the gap, deploys without a machine, and one for each row.
    assert_eq!(report.bars.len(), 7 + 11);
    assert!(!report.bars[0].held, "two seeds are not enough, and it says so");
    for policy in &report.base.policies {
        assert!(policy.p50 > 0.0 && policy.p50 <= policy.p99, "{policy:?}");
        assert!(policy.cost.half_width.is_finite());
    }
}
