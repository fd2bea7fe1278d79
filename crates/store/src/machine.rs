//! Machines as we know them: `machine_stats` beside the block that is in force.
//!
//! The stored row is the fold of `core` after every attempt, never arithmetic in SQL, so that
//! rules, simulator and database cannot disagree. A machine that only ever was blocked by
//! hand has a row of zeros, which lets every list read one table.

use crate::attempt::NewAttempt;
use crate::column::{Column, args, record};
use crate::engine::{Row, Tx, statements};
use crate::{Error, Page, Result, Store};
use dumont_core::blacklist::{BlacklistType, Entry, Scope, Window};
use dumont_core::history::{Level, Stats};
use dumont_core::id::MachineRef;
use dumont_core::reliability::{Bucket, Counts, FLEET_MEAN, MACHINE_WEIGHT, Sums};
use dumont_core::time::Timestamp;

statements! {
    TOUCH: ["INSERT INTO machine_stats (provider, machine_id, total_attempts, successful_attempts, \
             failed_attempts, uncounted_attempts, consecutive_failures, ready_attempts, ready_total_ms, \
             reliability_score) VALUES ($1, $2, 0, 0, 0, 0, 0, 0, 0, $3) \
             ON CONFLICT (provider, machine_id) DO NOTHING"];
    LOCK: ["SELECT * FROM machine_stats WHERE provider = $1 AND machine_id = $2" FOR_UPDATE];
    SAVE: ["UPDATE machine_stats SET total_attempts = $3, successful_attempts = $4, failed_attempts = $5, \
            uncounted_attempts = $6, consecutive_failures = $7, ready_attempts = $8, ready_total_ms = $9, \
            success_rate = $10, avg_boot_time = $11, last_attempt_at = $12, last_success_at = $13, \
            last_failure_at = $14, reliability_score = $15, sum_s = $16, sum_f = $17, sums_at = $18, \
            prior_mean = $19, host_id = $20, bucket = $21, window_since = $22, window_successful = $23, \
            window_failed = $24, window_consecutive = $25, blocked_until = $26 \
            WHERE provider = $1 AND machine_id = $2"];
    ONE: ["SELECT s.*, b.blacklist_type, b.reason AS block_reason, b.blacklisted_at, b.expires_at, b.scope \
           FROM machine_stats s LEFT JOIN machine_blacklist b ON b.provider = s.provider \
           AND b.machine_id = s.machine_id AND b.is_active AND b.scope IS NULL \
           AND (b.expires_at IS NULL OR b.expires_at > $3) \
           WHERE s.provider = $1 AND s.machine_id = $2"];
    LIST: ["SELECT s.*, b.blacklist_type, b.reason AS block_reason, b.blacklisted_at, b.expires_at, b.scope \
            FROM machine_stats s LEFT JOIN machine_blacklist b ON b.provider = s.provider \
            AND b.machine_id = s.machine_id AND b.is_active AND b.scope IS NULL \
            AND (b.expires_at IS NULL OR b.expires_at > $3) \
            WHERE (s.provider, s.machine_id) > ($1, $2) ORDER BY s.provider, s.machine_id LIMIT $4"];
}

/// The block that is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    pub blacklist_type: BlacklistType,
    pub reason: String,
    pub blacklisted_at: Timestamp,
    /// `None` is for good.
    pub expires_at: Option<Timestamp>,
    /// What it is blocked for, e.g. `cuda=12.8`; `None` is everything.
    pub scope: Option<String>,
}

impl Block {
    /// As `dumont_core::blacklist::Bar::entry` takes it.
    pub fn entry(&self) -> (Entry, Option<Scope>) {
        let entry = Entry {
            blacklist_type: self.blacklist_type,
            expires_at: self.expires_at,
            open: true,
        };
        (entry, self.scope.as_deref().and_then(|s| s.parse().ok()))
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct MachineRow {
    pub machine: MachineRef,
    pub stats: Stats,
    /// The machine's own decayed counts.
    pub sums: Sums,
    /// Who operated it, and its uptime bucket, when it was tried last.
    pub host_id: Option<String>,
    pub bucket: Option<Bucket>,
    /// `dumont_core::reliability`: read now where one machine or a list of them is asked for.
    pub reliability_score: f64,
    /// The unscoped one.
    pub block: Option<Block>,
}
record!(MachineRow {
    machine,
    stats,
    sums,
    host_id,
    bucket,
    reliability_score,
    block
});

impl MachineRow {
    pub fn level(&self) -> Level {
        Level::of(self.stats.success_rate(), self.block.is_some())
    }
}

impl Column for Stats {
    fn read(row: &Row, _: &'static str) -> Result<Self> {
        Ok(Self {
            total: row.get("total_attempts")?,
            successful: row.get("successful_attempts")?,
            failed: row.get("failed_attempts")?,
            uncounted: row.get("uncounted_attempts")?,
            consecutive_failures: row.get("consecutive_failures")?,
            ready: row.get("ready_attempts")?,
            ready_total_ms: row.get("ready_total_ms")?,
            last_attempt_at: Column::read(row, "last_attempt_at")?,
            last_success_at: Column::read(row, "last_success_at")?,
            last_failure_at: Column::read(row, "last_failure_at")?,
        })
    }
}

impl Column for Sums {
    fn read(row: &Row, _: &'static str) -> Result<Self> {
        Ok(Self {
            counts: Counts::new(row.get("sum_s")?, row.get("sum_f")?),
            as_of: Column::read(row, "sums_at")?,
        })
    }
}

impl Column for Window {
    fn read(row: &Row, _: &'static str) -> Result<Self> {
        Ok(Self {
            since: Column::read(row, "window_since")?,
            successful: row.get("window_successful")?,
            failed: row.get("window_failed")?,
            consecutive_failures: row.get("window_consecutive")?,
        })
    }
}

impl Column for Option<Block> {
    fn read(row: &Row, _: &'static str) -> Result<Self> {
        let Some(blacklist_type) = Column::read(row, "blacklist_type")? else {
            return Ok(None);
        };
        Ok(Some(Block {
            blacklist_type,
            reason: Column::read(row, "block_reason")?,
            blacklisted_at: Column::read(row, "blacklisted_at")?,
            expires_at: Column::read(row, "expires_at")?,
            scope: Column::read(row, "scope")?,
        }))
    }
}

/// A machine's row, locked until its transaction ends. What is changed in it counts once it is
/// saved.
pub(crate) struct Locked {
    machine: MachineRef,
    pub stats: Stats,
    pub sums: Sums,
    pub window: Window,
    /// The end of the unscoped entry in force; `None` also where it is for good.
    pub blocked_until: Option<Timestamp>,
    host_id: Option<String>,
    bucket: Option<Bucket>,
    prior_mean: Option<f64>,
}
record!(Locked {
    machine,
    stats,
    sums,
    window,
    blocked_until,
    host_id,
    bucket,
    prior_mean
});

impl Locked {
    /// Made if need be. Machines are met far more often than made, so it is looked for first.
    pub(crate) async fn get(tx: &mut Tx, machine: &MachineRef) -> Result<Self> {
        let (provider, id) = (&machine.provider, &machine.machine_id);
        if let Some(row) = tx.first(LOCK, args![provider, id]).await? {
            return Ok(row);
        }
        tx.run(TOUCH, args![provider, id, FLEET_MEAN]).await?;
        tx.first(LOCK, args![provider, id])
            .await?
            .ok_or_else(|| Error::not_found("machine", &machine.to_string()))
    }

    /// A block that has run out by `now` starts the rules' window anew.
    pub(crate) fn settle(&mut self, now: Timestamp) {
        if let Some(end) = self.blocked_until.filter(|end| *end <= now) {
            self.window.restart(end);
            self.blocked_until = None;
        }
    }

    /// What an attempt says beyond the statistics.
    pub(crate) fn learn(&mut self, new: &NewAttempt) {
        let c = &new.conditions;
        self.sums.add(c.counts, new.created_at);
        if new.host_id.is_some() {
            self.host_id.clone_from(&new.host_id);
        }
        self.bucket = c.provider_reliability.map(Bucket::of).or(self.bucket);
        self.prior_mean = c.prior_mean.or(self.prior_mean);
    }

    /// The posterior's mean under the prior that the last attempt knew, as of that attempt.
    fn score(&self) -> f64 {
        let mean = self.prior_mean.unwrap_or(FLEET_MEAN);
        let Counts { s, f } = self.sums.counts;
        (MACHINE_WEIGHT * mean + s) / (MACHINE_WEIGHT + s + f)
    }

    pub(crate) async fn save(&self, tx: &mut Tx) -> Result<()> {
        let (stats, window) = (&self.stats, &self.window);
        let args = args![
            &self.machine.provider,
            &self.machine.machine_id,
            stats.total,
            stats.successful,
            stats.failed,
            stats.uncounted,
            stats.consecutive_failures,
            stats.ready,
            stats.ready_total_ms,
            stats.success_rate(),
            stats.avg_boot_time(),
            stats.last_attempt_at,
            stats.last_success_at,
            stats.last_failure_at,
            self.score(),
            self.sums.counts.s,
            self.sums.counts.f,
            self.sums.as_of,
            self.prior_mean,
            self.host_id.as_deref(),
            self.bucket,
            window.since,
            window.successful,
            window.failed,
            window.consecutive_failures,
            self.blocked_until,
        ];
        tx.run(SAVE, args).await.map(drop)
    }
}

impl Store {
    /// `None` for a machine never met.
    pub async fn machine(&self, machine: &MachineRef, now: Timestamp) -> Result<Option<MachineRow>> {
        let mut rows = self
            .db
            .all(ONE, args![&machine.provider, &machine.machine_id, now])
            .await?;
        self.score_now(&mut rows, now).await?;
        Ok(rows.into_iter().next())
    }

    /// By provider, then machine id as text; `after` is a machine (`vast:12345`).
    pub async fn list_machines(
        &self,
        after: Option<&MachineRef>,
        limit: u32,
        now: Timestamp,
    ) -> Result<Page<MachineRow>> {
        let (provider, id) = after.map_or(("", ""), |m| (m.provider.as_str(), m.machine_id.as_str()));
        let mut rows = self
            .db
            .all(LIST, args![provider, id, now, u64::from(limit) + 1])
            .await?;
        self.score_now(&mut rows, now).await?;
        Ok(Page::cut(rows, limit, |m: &MachineRow| m.machine.to_string()))
    }
}
