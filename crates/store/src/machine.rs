//! Machines as we know them: `machine_stats` beside the block that is in force.
//!
//! The stored row is the fold of `core` after every attempt, never arithmetic in SQL, so that
//! rules, simulator and database cannot disagree. A machine that only ever was blocked by
//! hand has a row of zeros, which lets every list read one table.

use crate::column::{Column, args, json, record};
use crate::engine::{Row, Tx, statements};
use crate::{Page, Result, Store};
use dumont_core::blacklist::BlacklistType;
use dumont_core::history::{Level, Stats};
use dumont_core::id::MachineRef;
use dumont_core::rank::Standing;
use dumont_core::time::Timestamp;
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

statements! {
    TOUCH: ["INSERT INTO machine_stats (provider, machine_id, total_attempts, successful_attempts, \
             failed_attempts, uncounted_attempts, consecutive_failures, ready_attempts, ready_total_ms, \
             reliability_score) VALUES ($1, $2, 0, 0, 0, 0, 0, 0, 0, $3) \
             ON CONFLICT (provider, machine_id) DO NOTHING"];
    STATS_FOR_UPDATE: ["SELECT * FROM machine_stats WHERE provider = $1 AND machine_id = $2" FOR_UPDATE];
    SAVE: ["UPDATE machine_stats SET total_attempts = $3, successful_attempts = $4, failed_attempts = $5, \
            uncounted_attempts = $6, consecutive_failures = $7, ready_attempts = $8, ready_total_ms = $9, \
            success_rate = $10, avg_boot_time = $11, last_attempt_at = $12, last_success_at = $13, \
            last_failure_at = $14, reliability_score = $15 WHERE provider = $1 AND machine_id = $2"];
    ONE: ["SELECT s.*, b.blacklist_type, b.reason AS block_reason, b.blacklisted_at, b.expires_at \
           FROM machine_stats s LEFT JOIN machine_blacklist b ON b.provider = s.provider \
           AND b.machine_id = s.machine_id AND b.is_active AND b.scope IS NULL \
           AND (b.expires_at IS NULL OR b.expires_at > $3) \
           WHERE s.provider = $1 AND s.machine_id = $2"];
    LIST: ["SELECT s.*, b.blacklist_type, b.reason AS block_reason, b.blacklisted_at, b.expires_at \
            FROM machine_stats s LEFT JOIN machine_blacklist b ON b.provider = s.provider \
            AND b.machine_id = s.machine_id AND b.is_active AND b.scope IS NULL \
            AND (b.expires_at IS NULL OR b.expires_at > $3) \
            WHERE (s.provider, s.machine_id) > ($1, $2) ORDER BY s.provider, s.machine_id LIMIT $4"];
    PROBLEMATIC: ["SELECT s.*, b.blacklist_type, b.reason AS block_reason, b.blacklisted_at, b.expires_at \
            FROM machine_stats s LEFT JOIN machine_blacklist b ON b.provider = s.provider \
            AND b.machine_id = s.machine_id AND b.is_active AND b.scope IS NULL \
            AND (b.expires_at IS NULL OR b.expires_at > $1) \
            WHERE (b.id IS NOT NULL OR s.success_rate < 0.5) \
            AND s.successful_attempts + s.failed_attempts >= $2 AND s.provider = COALESCE($3, s.provider) \
            AND COALESCE(s.last_attempt_at, 0) >= COALESCE($4, 0) \
            AND (s.reliability_score, s.provider, s.machine_id) > ($5, $6, $7) \
            ORDER BY s.reliability_score, s.provider, s.machine_id LIMIT $8"];
    RELIABLE: ["SELECT s.*, b.blacklist_type, b.reason AS block_reason, b.blacklisted_at, b.expires_at \
            FROM machine_stats s LEFT JOIN machine_blacklist b ON b.provider = s.provider \
            AND b.machine_id = s.machine_id AND b.is_active AND b.scope IS NULL \
            AND (b.expires_at IS NULL OR b.expires_at > $1) \
            WHERE b.id IS NULL AND s.success_rate >= 0.7 \
            AND s.successful_attempts + s.failed_attempts >= $2 AND s.provider = COALESCE($3, s.provider) \
            AND COALESCE(s.last_attempt_at, 0) >= COALESCE($4, 0) \
            AND (s.reliability_score, s.provider, s.machine_id) < ($5, $6, $7) \
            ORDER BY s.reliability_score DESC, s.provider DESC, s.machine_id DESC LIMIT $8"];
    MANY: ["SELECT s.*, b.blacklist_type, b.reason AS block_reason, b.blacklisted_at, b.expires_at \
            FROM " EACH_2 " JOIN machine_stats s ON s.provider = $1 AND s.machine_id = each.value \
            LEFT JOIN machine_blacklist b ON b.provider = s.provider \
            AND b.machine_id = s.machine_id AND b.is_active AND b.scope IS NULL \
            AND (b.expires_at IS NULL OR b.expires_at > $3)"];
}

/// The block that is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    pub blacklist_type: BlacklistType,
    pub reason: String,
    pub blacklisted_at: Timestamp,
    /// `None` is for good.
    pub expires_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct MachineRow {
    pub machine: MachineRef,
    pub stats: Stats,
    /// The raw rate drawn toward the prior, as the ranking uses it.
    pub reliability_score: f64,
    pub block: Option<Block>,
}
record!(MachineRow {
    machine,
    stats,
    reliability_score,
    block
});

impl MachineRow {
    pub fn level(&self) -> Level {
        Level::of(self.stats.success_rate(), self.block.is_some())
    }

    /// For `dumont_core::rank::rank`.
    pub fn standing(&self) -> Standing {
        Standing {
            blacklisted: self.block.is_some(),
            ..standing(&self.stats)
        }
    }
}

/// Of a machine that nothing blocks.
fn standing(stats: &Stats) -> Standing {
    Standing {
        successful: stats.successful,
        counted: stats.counted(),
        blacklisted: false,
    }
}

/// Which end of the ranking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extreme {
    /// Blocked now, or a rate under fair; worst score first.
    Problematic,
    /// Not blocked, and a rate of good or better; best score first.
    Reliable,
}

/// Which machines a list of extremes shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MachineFilter {
    pub provider: Option<String>,
    /// Tried at or after.
    pub since: Option<Timestamp>,
    /// Counted attempts, at least.
    pub min_attempts: u32,
}

/// Where a page of machines ordered by score begins. The score travels as its bits: a
/// rounded one would repeat or skip a machine.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreCursor {
    pub score: f64,
    pub machine: MachineRef,
}

impl fmt::Display for ScoreCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}:{}", self.score.to_bits(), self.machine)
    }
}

impl FromStr for ScoreCursor {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let parts = s.split_once(':').and_then(|(bits, machine)| {
            let score = f64::from_bits(u64::from_str_radix(bits, 16).ok()?);
            let machine = machine.parse().ok()?;
            score.is_finite().then_some(Self { score, machine })
        });
        parts.ok_or_else(|| {
            format!(
                "{:?} is no place in a list of machines",
                s.chars().take(80).collect::<String>()
            )
        })
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
        }))
    }
}

struct StatsOnly {
    stats: Stats,
}
record!(StatsOnly { stats });

/// The machine's row, made if need be, locked until the transaction ends.
pub(crate) async fn stats_for_update(tx: &mut Tx, machine: &MachineRef) -> Result<Stats> {
    let (provider, id) = (&machine.provider, &machine.machine_id);
    tx.run(TOUCH, args![provider, id, Standing::default().score()])
        .await?;
    let row: Option<StatsOnly> = tx.first(STATS_FOR_UPDATE, args![provider, id]).await?;
    Ok(row.map(|r| r.stats).unwrap_or_default())
}

pub(crate) async fn save_stats(tx: &mut Tx, machine: &MachineRef, stats: &Stats) -> Result<()> {
    let args = args![
        &machine.provider,
        &machine.machine_id,
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
        standing(stats).score(),
    ];
    tx.run(SAVE, args).await.map(drop)
}

impl Store {
    /// `None` for a machine never met.
    pub async fn machine(&self, machine: &MachineRef, now: Timestamp) -> Result<Option<MachineRow>> {
        self.db
            .first(ONE, args![&machine.provider, &machine.machine_id, now])
            .await
    }

    /// By provider, then machine id as text; `after` is a machine (`vast:12345`).
    pub async fn list_machines(
        &self,
        after: Option<&MachineRef>,
        limit: u32,
        now: Timestamp,
    ) -> Result<Page<MachineRow>> {
        let (provider, id) = after.map_or(("", ""), |m| (m.provider.as_str(), m.machine_id.as_str()));
        let rows = self
            .db
            .all(LIST, args![provider, id, now, u64::from(limit) + 1])
            .await?;
        Ok(Page::cut(rows, limit, |m: &MachineRow| m.machine.to_string()))
    }

    /// By score; see [`Extreme`].
    pub async fn extreme_machines(
        &self,
        which: Extreme,
        filter: &MachineFilter,
        after: Option<&ScoreCursor>,
        limit: u32,
        now: Timestamp,
    ) -> Result<Page<MachineRow>> {
        // Scores lie in [0, 1]; no machine sorts before an empty name or after a '~'.
        let (sql, edge, name) = match which {
            Extreme::Problematic => (PROBLEMATIC, -1.0, ""),
            Extreme::Reliable => (RELIABLE, 2.0, "~"),
        };
        let (score, provider, id) = after.map_or((edge, name, name), |c| {
            (
                c.score,
                c.machine.provider.as_str(),
                c.machine.machine_id.as_str(),
            )
        });
        let args = args![
            now,
            filter.min_attempts,
            filter.provider.as_deref(),
            filter.since,
            score,
            provider,
            id,
            u64::from(limit) + 1,
        ];
        let rows = self.db.all(sql, args).await?;
        Ok(Page::cut(rows, limit, |m: &MachineRow| {
            let (score, machine) = (m.reliability_score, m.machine.clone());
            ScoreCursor { score, machine }.to_string()
        }))
    }

    /// Of many machines of one provider in one query, by machine id. One that is missing was
    /// never met: `Standing::default()`.
    pub async fn standings(
        &self,
        provider: &str,
        machine_ids: &[&str],
        now: Timestamp,
    ) -> Result<HashMap<String, MachineRow>> {
        let rows: Vec<MachineRow> = self
            .db
            .all(MANY, args![provider, json(&machine_ids)?, now])
            .await?;
        Ok(rows
            .into_iter()
            .map(|m| (m.machine.machine_id.clone(), m))
            .collect())
    }
}
