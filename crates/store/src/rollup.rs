//! Old attempts become counts, so that the history does not grow for ever and nothing is lost
//! from the statistics.
//!
//! Deleting and counting are one transaction over the very rows that the deletion returns, so
//! whatever dies or runs beside it, an attempt is either there or counted. The moment up to
//! which this was done is kept: an import must not bring back what is counted already.

use crate::column::{Column, args, record};
use crate::engine::{Row, Tx, statements, transact};
use crate::{Result, Store};
use dumont_core::id::MachineRef;
use dumont_core::time::Timestamp;
use std::collections::BTreeMap;

/// Attempts in one transaction.
const BATCH: u32 = 1_000;
const UNTIL: &str = "history_rolled_up_until";

statements! {
    TAKE: ["DELETE FROM machine_attempts WHERE id IN (SELECT id FROM machine_attempts \
            WHERE created_at < $1 ORDER BY created_at, id LIMIT $2) \
            RETURNING provider, machine_id, success, reason, ready_seconds, created_at, source"];
    ADD: ["INSERT INTO machine_rollups (provider, machine_id, day, verdict, reason, attempts, \
           ready_attempts, ready_total_ms, last_at, source) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
           ON CONFLICT (provider, machine_id, day, verdict, reason, source) DO UPDATE SET \
           attempts = machine_rollups.attempts + excluded.attempts, \
           ready_attempts = machine_rollups.ready_attempts + excluded.ready_attempts, \
           ready_total_ms = machine_rollups.ready_total_ms + excluded.ready_total_ms, \
           last_at = CASE WHEN excluded.last_at > machine_rollups.last_at THEN excluded.last_at \
           ELSE machine_rollups.last_at END"];
    MARK: ["INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = \
            CASE WHEN CAST(excluded.value AS BIGINT) > CAST(meta.value AS BIGINT) THEN excluded.value \
            ELSE meta.value END"];
    OF_MACHINE: ["SELECT * FROM machine_rollups WHERE provider = $1 AND machine_id = $2 \
                  ORDER BY day, verdict, reason, source"];
}

/// Attempts of one machine, day, verdict and reason that are only counted any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollup {
    pub machine: MachineRef,
    /// Days since the epoch, UTC.
    pub day: i64,
    /// `success`, `failure` or `uncounted`.
    pub verdict: String,
    /// Empty where there was none.
    pub reason: String,
    pub attempts: i64,
    pub ready_attempts: i64,
    pub ready_total_ms: i64,
    pub last_at: Timestamp,
    /// The server whose attempts they were; empty for our own.
    pub source: String,
}
record!(Rollup {
    machine,
    day,
    verdict,
    reason,
    attempts,
    ready_attempts,
    ready_total_ms,
    last_at,
    source
});

/// One deleted attempt as a rollup of one.
struct Taken(Rollup);
impl crate::column::Record for Taken {
    fn read(row: &Row) -> Result<Self> {
        let at: Timestamp = Column::read(row, "created_at")?;
        let success: Option<bool> = row.get("success")?;
        let reason: Option<String> = row.get("reason")?;
        let ready: Option<f64> = row.get("ready_seconds")?;
        let ready = ready.filter(|s| s.is_finite() && *s >= 0.0);
        let source: Option<String> = row.get("source")?;
        Ok(Self(Rollup {
            machine: Column::read(row, "machine_id")?,
            day: at.0.div_euclid(86_400_000_000),
            verdict: word_of(success).to_owned(),
            reason: reason.unwrap_or_default(),
            attempts: 1,
            ready_attempts: i64::from(ready.is_some()),
            // As `Stats::record` rounds it.
            ready_total_ms: ready.map_or(0, |s| (s * 1_000.0).round() as i64),
            last_at: at,
            source: source.unwrap_or_default(),
        }))
    }
}

fn until_key(source: &str) -> String {
    if source.is_empty() {
        UNTIL.to_owned()
    } else {
        format!("{UNTIL}/{source}")
    }
}

/// The word for whether attempts counted.
pub const fn word_of(success: Option<bool>) -> &'static str {
    match success {
        Some(true) => "success",
        Some(false) => "failure",
        None => "uncounted",
    }
}

/// And back.
fn verdict_of(word: &str) -> Option<bool> {
    [Some(true), Some(false)]
        .into_iter()
        .find(|success| word_of(*success) == word)
        .flatten()
}

impl Rollup {
    /// Whether these count for or against the machine.
    pub fn success(&self) -> Option<bool> {
        verdict_of(&self.verdict)
    }
}

/// Adds counts to those of the same machine, day, verdict, reason and source.
pub(crate) async fn add(tx: &mut Tx, r: &Rollup) -> Result<()> {
    let args = args![
        &r.machine.provider,
        &r.machine.machine_id,
        r.day,
        &r.verdict,
        &r.reason,
        r.attempts,
        r.ready_attempts,
        r.ready_total_ms,
        r.last_at,
        &r.source,
    ];
    tx.run(ADD, args).await.map(drop)
}

/// Attempts of `source` from before `until` are counted; never goes back.
pub(crate) async fn mark(tx: &mut Tx, source: &str, until: Timestamp) -> Result<()> {
    tx.run(MARK, args![until_key(source), until.0.to_string()])
        .await
        .map(drop)
}

impl Store {
    /// Counts and deletes what was made before `before`, a batch at a time; how many there
    /// were. Safe to interrupt and to repeat.
    pub async fn roll_up_attempts(&self, before: Timestamp) -> Result<u64> {
        let mut rolled = 0;
        loop {
            let taken = self.roll_up_batch(before).await?;
            rolled += taken;
            if taken < u64::from(BATCH) {
                return Ok(rolled);
            }
        }
    }

    async fn roll_up_batch(&self, before: Timestamp) -> Result<u64> {
        transact!(self.db, |tx| {
            let taken: Vec<Taken> = tx.all(TAKE, args![before, BATCH]).await?;
            let count = taken.len() as u64;
            let mut groups: BTreeMap<_, Rollup> = BTreeMap::new();
            for Taken(one) in taken {
                let key = (
                    one.machine.clone(),
                    one.day,
                    one.verdict.clone(),
                    one.reason.clone(),
                    one.source.clone(),
                );
                let Some(sum) = groups.get_mut(&key) else {
                    groups.insert(key, one);
                    continue;
                };
                sum.attempts += 1;
                sum.ready_attempts += one.ready_attempts;
                sum.ready_total_ms = sum.ready_total_ms.saturating_add(one.ready_total_ms);
                sum.last_at = sum.last_at.max(one.last_at);
            }
            for r in groups.values() {
                add(tx, r).await?;
            }
            mark(tx, "", before).await?;
            Ok(count)
        })
    }

    /// What was made before this is counted, not kept.
    pub async fn rolled_up_until(&self) -> Result<Option<Timestamp>> {
        self.counted_until("").await
    }

    /// Attempts of this source (empty: our own) from before this are among the counts.
    pub async fn counted_until(&self, source: &str) -> Result<Option<Timestamp>> {
        let text = self.meta(&until_key(source)).await?;
        Ok(text.and_then(|t| t.parse().ok()).map(Timestamp))
    }

    pub async fn rollups_of(&self, machine: &MachineRef) -> Result<Vec<Rollup>> {
        self.db
            .all(OF_MACHINE, args![&machine.provider, &machine.machine_id])
            .await
    }
}
