//! What the drill found, for people and as JSON.

use super::world::Totals;
use crate::cli::failover;
use crate::output;
use dumont_wire::rest::{FailoverEvent, Snapshot};
use serde::Serialize;

/// One promise, held or not.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub ok: bool,
    pub detail: String,
}

/// Our own steps and how long they took.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    pub name: String,
    pub elapsed_ms: i64,
}

#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Everything held.
    pub ok: bool,
    pub checks: Vec<Check>,
    pub steps: Vec<Step>,
    pub seed: u64,
    /// Where the server kept its state.
    pub database: &'static str,
    pub isolation: String,
    pub files: u64,
    pub bytes: u64,
    pub snapshots: Vec<Snapshot>,
    /// When the machine died by the market's word, Unix milliseconds.
    pub killed_unix_ms: Option<i64>,
    pub server_killed: bool,
    pub event: Option<FailoverEvent>,
    /// From the machine's death to a validated workload.
    pub mttr_from_death_ms: Option<i64>,
    /// From our noticing it to a validated workload.
    pub mttr_from_detection_ms: Option<i64>,
    pub plan_mttr_ms: i64,
    pub uploaded_bytes: u64,
    pub downloaded_bytes: u64,
    /// The market's books.
    pub ledger: Option<Totals>,
    /// Why it ended early.
    pub error: Option<String>,
}

impl Report {
    pub fn check(&mut self, name: &'static str, ok: bool, detail: impl Into<String>) {
        self.checks.push(Check {
            name,
            ok,
            detail: detail.into(),
        });
    }

    /// Decides, once everything was looked at.
    pub fn close(&mut self) {
        self.ok = self.error.is_none() && !self.checks.is_empty() && self.checks.iter().all(|c| c.ok);
    }

    /// Takes over what the failover's row says.
    pub fn take_event(&mut self, event: FailoverEvent, killed_ms: i64) {
        let back = event.lost_at.0 / 1_000 + event.total_ms;
        self.mttr_from_death_ms = Some(back - killed_ms);
        self.mttr_from_detection_ms = Some(event.total_ms - event.detection_ms);
        self.downloaded_bytes += event.bytes_downloaded;
        self.killed_unix_ms = Some(killed_ms);
        self.event = Some(event);
    }

    pub fn print(&self) {
        if let Some(event) = &self.event {
            self.print_failover(event);
        }
        self.print_totals();
        output::line("");
        for check in &self.checks {
            let mark = if check.ok {
                output::green("ok  ")
            } else {
                output::red("FAIL")
            };
            output::line(&format!("{mark}  {}: {}", check.name, check.detail));
        }
        if let Some(error) = &self.error {
            output::line(&format!("{}  {error}", output::red("FAIL")));
        }
        output::line("");
        let failed = self.checks.iter().filter(|c| !c.ok).count() as u64 + u64::from(self.error.is_some());
        output::line(&if self.ok {
            output::green(&format!(
                "The drill held: {} of {} checks.",
                self.checks.len(),
                self.checks.len()
            ))
        } else {
            output::red(&format!(
                "The drill did not hold: {}.",
                output::count(failed, "failure")
            ))
        });
    }

    fn print_failover(&self, event: &FailoverEvent) {
        let mut rows: Vec<Vec<String>> = failover::phase_rows(event)
            .iter()
            .map(|(name, ms)| vec![(*name).into(), ms.to_string(), String::new()])
            .collect();
        for (name, ms) in [
            ("MTTR from death", self.mttr_from_death_ms),
            ("MTTR from detection", self.mttr_from_detection_ms),
        ] {
            let ms = ms.unwrap_or_default();
            rows.push(vec![name.into(), ms.to_string(), failover::beside_plan()]);
        }
        output::line("");
        output::table(&["PHASE", "MS", "THE PLAN'S MS"], &[1], &rows);
        output::line("");
        failover::attempts(&event.attempts);
    }

    fn print_totals(&self) {
        let mut pairs = self.event.as_ref().map(failover::what_moved).unwrap_or_default();
        pairs.push((
            "bytes",
            format!(
                "{} up, {} down, all snapshots and the failover together",
                output::bytes(self.uploaded_bytes),
                output::bytes(self.downloaded_bytes)
            ),
        ));
        if let Some(l) = &self.ledger {
            pairs.push((
                "ledger",
                format!(
                    "{} rented, {} destroyed, {} alive",
                    l.created, l.destroyed, l.alive
                ),
            ));
            // Adding zero turns the sum of nothing, -0, into 0.
            pairs.push(("dollars", format!("{:.4}", l.cost + 0.0)));
        }
        output::line("");
        output::facts(&pairs);
    }
}
