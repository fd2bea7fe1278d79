//! What the drill checks: files against files, times against the clock, the server's words
//! against the market's books.

use super::compare::{self, Difference, How, Tree, What};
use super::script::{Drill, POLL};
use super::workspace::Edits;
use super::world::Ledger;
use crate::cli::snapshot;
use crate::cli::ssh::Access;
use crate::output;
use anyhow::Result;
use dumont_core::id::RentLabel;
use dumont_core::snapshot::{SnapshotType, Verdict};
use dumont_wire::rest::FailoverEvent;
use std::time::{Duration, Instant};

/// How long losers and the dead machine may take to be destroyed: the provider's pace.
const SETTLE: Duration = Duration::from_secs(45);

impl Drill<'_> {
    pub fn check_incremental(&mut self, source: &Tree, edits: &Edits) {
        let Some(s) = self.report.snapshots.last().cloned() else {
            return;
        };
        let total = source.files() + edits.added.len() as u64;
        // How special files are counted is the snapshot format's business.
        let counted = source.special_files() > 0 || s.files_total == total;
        let ok = s.snapshot_type == SnapshotType::Incremental && s.files_changed == 3 && counted;
        let torn = if s.torn.is_empty() {
            String::new()
        } else {
            format!(", torn: {:?}", s.torn)
        };
        self.report.check(
            "the incremental snapshot has the three files",
            ok && s.torn.is_empty(),
            format!("{} (of {total} there){torn}", snapshot::headline(&s)),
        );
    }

    /// The workload wrote its pid outside of the workspace, and that process lives.
    pub async fn workload(&mut self, name: &'static str) -> Result<()> {
        let access = Access::get(&self.world.client, self.world.dir(), &self.name).await?;
        let line = format!("pid=$(cat {}) && kill -0 $pid && echo $pid", self.ready_file);
        let said = access.output(&line).await?;
        let text = if said.status.success() {
            &said.stdout
        } else {
            &said.stderr
        };
        let text = String::from_utf8_lossy(text).trim().to_owned();
        let detail = if said.status.success() {
            format!("pid {text}")
        } else {
            text
        };
        self.report.check(name, said.status.success(), detail);
        Ok(())
    }

    /// The market's books agree that `wanted` machines are ours, after what is being destroyed.
    pub async fn owned(&mut self, name: &'static str, wanted: u64) -> Result<()> {
        let begin = Instant::now();
        let ledger = loop {
            let ledger = self.world.admin.ledger().await?;
            if ledger.alive == wanted || begin.elapsed() > SETTLE {
                break ledger;
            }
            tokio::time::sleep(POLL).await;
        };
        let waited = output::millis(i64::try_from(begin.elapsed().as_millis()).unwrap_or(i64::MAX));
        let labels_ok = foreign(&ledger).is_empty();
        self.report.check(
            name,
            ledger.alive == wanted && labels_ok,
            format!(
                "{} alive of {} ever rented (settled in {waited}){}",
                ledger.alive,
                ledger.totals.created,
                foreign(&ledger)
            ),
        );
        self.report.ledger = Some(ledger.totals);
        Ok(())
    }

    /// What the server says about time must fit what was seen from outside.
    pub fn told_and_seen(&mut self, event: &FailoverEvent, killed_ms: i64) {
        let lost = event.lost_at.0 / 1_000;
        let seen = output::now().0 / 1_000;
        let fits = lost >= killed_ms - 50 && event.detection_ms >= 0 && lost + event.total_ms <= seen + 50;
        self.report.check(
            "the times told fit the times seen",
            fits,
            format!(
                "lost {} ms after the kill, back {} ms after it, seen after {} ms",
                lost - killed_ms,
                lost + event.total_ms - killed_ms,
                seen - killed_ms
            ),
        );
    }

    pub fn judge(&mut self, event: &FailoverEvent) {
        let why = event.failure_reason.clone();
        self.report.check(
            "the failover succeeded",
            event.success,
            why.unwrap_or_else(|| event.trigger.clone()),
        );
        let v = event.validation.as_ref();
        self.report.check(
            "the restored files were validated",
            v.is_some_and(|v| v.validation == Verdict::Ok && v.files_restored == v.files_expected),
            v.map_or("no validation".into(), |v| {
                format!("{} of {} files", v.files_restored, v.files_expected)
            }),
        );
        let newest = self.report.snapshots.last().map(|s| s.snapshot_id.clone());
        self.report.check(
            "the newest snapshot was restored",
            newest.is_some() && newest == event.snapshot_id,
            output::or_dash(event.snapshot_id.as_ref()),
        );
        self.report.check(
            "the lost work is known",
            event.data_loss_ms.is_some_and(|ms| ms >= 0),
            event.data_loss_ms.map_or("unknown".into(), output::millis),
        );
        if self.crash {
            let killed = self.report.server_killed;
            self.report.check(
                "the server was killed on the way",
                killed,
                if killed { "yes" } else { "it never was" },
            );
        }
    }

    pub fn same(&mut self, name: &'static str, expected: &Tree, found: &Tree) {
        let differences = compare::diff(expected, found);
        let fine = format!(
            "{}, {}",
            output::count(found.files(), "file"),
            output::bytes(found.bytes())
        );
        self.report
            .check(name, differences.is_empty(), listed(&differences, &fine));
    }
}

/// Rentals whose label does not say that they are ours.
fn foreign(ledger: &Ledger) -> String {
    let bad = |label: &Option<String>| label.as_deref().and_then(RentLabel::parse).is_none();
    let ids: Vec<_> = ledger
        .instances
        .iter()
        .filter(|i| bad(&i.label))
        .map(|i| i.id.to_string())
        .collect();
    if ids.is_empty() {
        String::new()
    } else {
        format!("; without a label of ours: {}", ids.join(", "))
    }
}

pub fn listed(differences: &[Difference], fine: &str) -> String {
    if differences.is_empty() {
        return fine.into();
    }
    let first: Vec<_> = differences.iter().take(5).map(ToString::to_string).collect();
    format!(
        "{}: {}",
        output::count(differences.len() as u64, "difference"),
        first.join("; ")
    )
}

/// Everything that differs from the source and is not one of the three edits.
pub fn surprises(source: &Tree, found: &Tree, edits: &Edits) -> Vec<Difference> {
    let mut missing_edits: Vec<_> = edits.changed.iter().chain(&edits.added).cloned().collect();
    let mut out: Vec<_> = compare::diff(source, found)
        .into_iter()
        .filter(|d| {
            let is_dir = found.0.get(&d.path).is_some_and(|e| e.what == What::Directory);
            let planned = match d.how {
                How::Bytes { .. } => edits.changed.contains(&d.path),
                How::Extra => edits.added.contains(&d.path),
                How::Mtime { .. } => is_dir || edits.changed.contains(&d.path),
                _ => false,
            };
            if planned && !matches!(d.how, How::Mtime { .. }) {
                missing_edits.retain(|p| *p != d.path);
            }
            !planned
        })
        .collect();
    out.extend(missing_edits.into_iter().map(|path| Difference {
        path,
        how: How::Missing,
    }));
    out
}
