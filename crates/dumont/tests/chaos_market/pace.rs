//! How often the account was asked, by the market's own log, against what it may be asked.

use crate::Chaos;
use crate::proxy::{Fault, Sent};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Milliseconds between two requests, as documented.
const INTERVALS: [(&str, i64); 7] = [
    ("list", 1_000),
    ("show", 2_000),
    ("change", 1_000),
    ("destroy", 3_000),
    ("create", 4_500),
    ("bid", 5_500),
    ("add_key", 1_000),
];
const SEARCHES: usize = 10;
const MINUTE: i64 = 60_000;

/// By how much a request may leave later than its turn, on a machine that is busy: those after it keep
/// their turns, and come the nearer.
const LATE: i64 = 250;

/// The most by which `times` are ever more than one each `interval` from any of them on, and which those are.
fn excess(times: &[i64], interval: i64, late: i64) -> (usize, &[i64]) {
    let after = |from: usize| {
        let span = move |to: usize| usize::try_from((times[to] - times[from] + late) / interval).unwrap_or(0);
        (from..times.len().min(from + 50)).map(move |to| ((to - from).saturating_sub(span(to)), from, to))
    };
    let worst = (0..times.len()).flat_map(after).max_by_key(|(over, ..)| *over);
    worst.map_or((0, &[]), |(over, from, to)| (over, &times[from..=to]))
}

/// The most in any window of this length.
fn crowd(times: &[i64], window: i64) -> usize {
    let within = |from: &i64| {
        times
            .iter()
            .filter(|t| (*from..from + window).contains(*t))
            .count()
    };
    times.iter().map(within).max().unwrap_or(0)
}

/// Who is late or comes twice by the weather's doing.
fn disturbed(sent: &Sent) -> bool {
    matches!(sent.fault, Some(Fault::Delay(_) | Fault::Double))
}

/// By their endpoint: when, and refused or not.
type Asked = BTreeMap<String, Vec<(i64, bool)>>;

impl Chaos {
    /// Never more than one request over the budget, in the market's eyes and with what the weather
    /// moved or doubled left out; each may be a quarter of a second late. With the documented limits, what was
    /// refused all the same was refused because of those; shorter distances have less to spare than a busy
    /// machine needs.
    pub fn judge_pace(&self, limits: &str) {
        let factor: f64 = match limits {
            "documented" => 1.0,
            other => other.parse().expect("a factor"),
        };
        let scaled = |ms: i64| (ms as f64 * factor) as i64;
        let (asked, moved) = self.asked();
        for (endpoint, all) in &asked {
            let times: Vec<i64> = all.iter().map(|(at, _)| *at).collect();
            let empty = Vec::new();
            let moved = moved.get(endpoint).unwrap_or(&empty);
            let (over, memory, crowded) = match INTERVALS.iter().find(|(name, _)| name == endpoint) {
                Some((_, interval)) => {
                    let (over, crowded) = excess(&times, scaled(*interval), LATE);
                    (over, scaled(interval * 4), crowded)
                }
                None => (
                    crowd(&times, scaled(MINUTE)).saturating_sub(SEARCHES),
                    scaled(MINUTE),
                    &[][..],
                ),
            };
            let refused = all.iter().filter(|(_, refused)| *refused).map(|(at, _)| *at);
            let (explained, own): (Vec<i64>, Vec<i64>) =
                refused.partition(|at| moved.iter().any(|m| (at - memory..=*at).contains(m)));
            println!(
                "{endpoint}: {} requests, {} moved or doubled, at most {over} over the budget, \
                 refused {} because of those and {} without",
                times.len(),
                moved.len(),
                explained.len(),
                own.len(),
            );
            assert!(
                over <= 1,
                "{endpoint} was asked {over} times too often: {crowded:?}"
            );
            let few = own.len() <= 2 + times.len() / 100;
            assert!(few || factor < 1.0, "{endpoint} was refused at {own:?}");
        }
    }

    /// What came as it was sent, and when the others came.
    fn asked(&self) -> (Asked, BTreeMap<String, Vec<i64>>) {
        let sent = self.proxy.sent();
        let log = self.admin("GET", "/admin/requests/log")["requests"].take();
        let (mut asked, mut moved) = (Asked::new(), BTreeMap::<String, Vec<i64>>::new());
        let mut seen = BTreeSet::new();
        for request in log.as_array().expect("a log") {
            let text = |key: &str| request[key].as_str().unwrap_or_default().to_owned();
            let at = request["at_ms"].as_i64().expect("a time");
            let id: usize = text("request_id").parse().expect("a number");
            let again = !seen.insert(id);
            if again || disturbed(&sent[id]) {
                moved.entry(text("endpoint")).or_default().push(at);
            } else {
                let refused = request["refused"] == Value::Bool(true);
                asked.entry(text("endpoint")).or_default().push((at, refused));
            }
        }
        (asked, moved)
    }
}

#[test]
fn one_over_is_seen() {
    let over = |times: &[i64], late| excess(times, 100, late).0;
    assert_eq!(over(&[0, 100, 200, 300], 0), 0);
    assert_eq!(over(&[0, 95, 195, 295], 0), 1);
    assert_eq!(excess(&[0, 10, 20, 300], 100, 0), (2, &[0, 10, 20][..]));
    assert_eq!(over(&[0, 10, 20, 300], 100), 1);
    assert_eq!(over(&[0, 10, 20, 30, 40], 250), 2);
    assert_eq!(crowd(&[0, 10, 20, 60, 61], 60), 4);
}
