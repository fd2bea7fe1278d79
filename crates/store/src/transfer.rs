//! The history on its way out and in.
//!
//! An attempt keeps its key wherever it travels, so importing a file twice, or two files that
//! overlap, changes nothing the second time. What this installation has rolled up already is
//! left out for the same reason.
//!
//! What another server has rolled up comes as counts without keys. They say how many attempts
//! of one server, machine, day, verdict and reason there were; some of them may be here, sent
//! one by one when they were young. So an import takes the difference to what is here of the
//! same source, and never less than nothing: the same counts twice, or counts that have grown
//! since, are never added twice. That needs the source beside every attempt and every count.

use crate::attempt::{AttemptRow, Judged, NewAttempt, record_in};
use crate::column::{args, record};
use crate::engine::{Tx, statements, transact};
use crate::machine::Locked;
use crate::rollup::{self, Rollup};
use crate::{Result, Store};
use dumont_core::blacklist::Settings;
use dumont_core::reliability::Counts;
use dumont_core::time::Timestamp;
use std::collections::BTreeMap;

const DAY: i64 = 86_400_000_000;

statements! {
    NEXT: ["SELECT * FROM machine_attempts WHERE id > $1 AND created_at >= $2 \
            AND provider = COALESCE($3, provider) ORDER BY id LIMIT $4"];
    ROLLUPS: ["SELECT * FROM machine_rollups WHERE day >= $1 AND provider = COALESCE($2, provider) \
               AND (provider, machine_id, day, verdict, reason, source) > ($3, $4, $5, $6, $7, $8) \
               ORDER BY provider, machine_id, day, verdict, reason, source LIMIT $9"];
    HERE: ["SELECT CAST(COALESCE(SUM(n), 0) AS BIGINT) AS attempts, \
            CAST(COALESCE(SUM(ready), 0) AS BIGINT) AS ready_attempts, \
            CAST(COALESCE(SUM(ms), 0) AS BIGINT) AS ready_total_ms FROM (\
            SELECT attempts AS n, ready_attempts AS ready, ready_total_ms AS ms FROM machine_rollups \
            WHERE provider = $1 AND machine_id = $2 AND day = $3 AND verdict = $4 AND reason = $5 \
            AND source = $6 UNION ALL \
            SELECT 1 AS n, CASE WHEN ready_seconds >= 0 THEN 1 ELSE 0 END AS ready, \
            CASE WHEN ready_seconds >= 0 THEN CAST(ROUND(ready_seconds * 1000) AS BIGINT) ELSE 0 END AS ms \
            FROM machine_attempts WHERE provider = $1 AND machine_id = $2 AND created_at >= $7 \
            AND created_at < $8 AND COALESCE(reason, '') = $5 AND COALESCE(source, '') = $6 \
            AND CASE WHEN success IS NULL THEN 'uncounted' WHEN success THEN 'success' \
            ELSE 'failure' END = $4) AS t"];
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Imported {
    pub new: u64,
    /// Here already.
    pub known: u64,
    /// Made before what this installation still keeps.
    pub too_old: u64,
}

/// Counts of another server, and the moment up to which it has counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignRollup {
    pub rollup: Rollup,
    pub until: Timestamp,
}

struct Here {
    attempts: i64,
    ready_attempts: i64,
    ready_total_ms: i64,
}
record!(Here {
    attempts,
    ready_attempts,
    ready_total_ms
});

impl Store {
    /// Attempts in the order they were recorded here, after the one with this id.
    pub async fn export_attempts(
        &self,
        provider: Option<&str>,
        since: Option<Timestamp>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<AttemptRow>> {
        let since = since.unwrap_or(Timestamp(i64::MIN));
        self.db.all(NEXT, args![after, since, provider, limit]).await
    }

    /// What is only counted any more, of days from `since` on, after that one.
    pub async fn export_rollups(
        &self,
        provider: Option<&str>,
        since: Option<Timestamp>,
        after: Option<&Rollup>,
        limit: u32,
    ) -> Result<Vec<Rollup>> {
        let since = since.map_or(i64::MIN, |t| t.0.div_euclid(DAY));
        let text = |of: fn(&Rollup) -> &str| after.map_or("", of);
        let args = args![
            since,
            provider,
            text(|r| &r.machine.provider),
            text(|r| &r.machine.machine_id),
            after.map_or(i64::MIN, |r| r.day),
            text(|r| &r.verdict),
            text(|r| &r.reason),
            text(|r| &r.source),
            limit,
        ];
        self.db.all(ROLLUPS, args).await
    }

    /// Records attempts of elsewhere, all or nothing. They count, and block nothing.
    pub async fn import_attempts(&self, attempts: &[NewAttempt], settings: &Settings) -> Result<Imported> {
        let ours = self.rolled_up_until().await?;
        let mut theirs: BTreeMap<&str, Option<Timestamp>> = BTreeMap::new();
        for source in attempts.iter().filter_map(|a| a.conditions.source.as_deref()) {
            if !theirs.contains_key(source) {
                theirs.insert(source, self.counted_until(source).await?);
            }
        }
        let counted = |new: &NewAttempt| {
            let source = new.conditions.source.as_deref();
            let until = source.and_then(|s| theirs.get(s).copied().flatten());
            until.is_some_and(|until| new.created_at < until)
        };
        transact!(self.db, |tx| {
            let mut done = Imported::default();
            // In one order whoever imports, so that two imports never wait in a circle.
            let mut order: Vec<&NewAttempt> = attempts.iter().collect();
            order.sort_by(|a, b| (&a.machine, a.created_at).cmp(&(&b.machine, b.created_at)));
            for new in order {
                if counted(new) {
                    // Among the counts that its own server has sent.
                    done.known += 1;
                } else if ours.is_some_and(|until| new.created_at < until) {
                    done.too_old += 1;
                } else if record_in(tx, new, Judged::Never, settings).await?.first {
                    done.new += 1;
                } else {
                    done.known += 1;
                }
            }
            Ok(done)
        })
    }

    /// Takes over counts of other servers, all or nothing; how many attempts were new by them.
    pub async fn import_rollups(&self, rollups: &[ForeignRollup]) -> Result<u64> {
        transact!(self.db, |tx| {
            let mut new = 0;
            let mut order: Vec<&ForeignRollup> = rollups.iter().collect();
            order.sort_by(|a, b| a.rollup.machine.cmp(&b.rollup.machine));
            let mut until: BTreeMap<&str, Timestamp> = BTreeMap::new();
            for one in order {
                new += take_over(tx, one).await?;
                let latest = until.entry(&one.rollup.source).or_insert(one.until);
                *latest = one.until.max(*latest);
            }
            for (source, until) in until {
                rollup::mark(tx, source, until).await?;
            }
            Ok(new)
        })
    }
}

/// Adds what is not here of it. The machine's row is locked before anything is counted, so two
/// imports of the same counts follow one another.
async fn take_over(tx: &mut Tx, foreign: &ForeignRollup) -> Result<u64> {
    let r = &foreign.rollup;
    let mut machine = Locked::get(tx, &r.machine).await?;
    let (from, to) = (r.day * DAY, ((r.day + 1) * DAY).min(foreign.until.0));
    let args = args![
        &r.machine.provider,
        &r.machine.machine_id,
        r.day,
        &r.verdict,
        &r.reason,
        &r.source,
        from,
        to,
    ];
    let here: Here = tx.first(HERE, args).await?.unwrap_or(Here {
        attempts: 0,
        ready_attempts: 0,
        ready_total_ms: 0,
    });
    let missing = Rollup {
        attempts: (r.attempts - here.attempts).max(0),
        ready_attempts: (r.ready_attempts - here.ready_attempts).max(0),
        ready_total_ms: (r.ready_total_ms - here.ready_total_ms).max(0),
        ..r.clone()
    };
    if missing.attempts == 0 {
        return Ok(0);
    }
    rollup::add(tx, &missing).await?;
    let success = r.success();
    let (n, ready) = (missing.attempts, (missing.ready_attempts, missing.ready_total_ms));
    machine.settle(r.last_at);
    machine.stats.record_counted(success, n, ready, r.last_at);
    machine.window.record_counted(success, n, r.last_at);
    // As the score weighs attempts that ended by themselves; what is censored is not known.
    let worth = match success {
        Some(true) => Counts::new(n as f64, 0.0),
        Some(false) => Counts::new(0.0, n as f64),
        None => Counts::default(),
    };
    machine.sums.add(worth, r.last_at);
    machine.save(tx).await?;
    Ok(n.unsigned_abs())
}
