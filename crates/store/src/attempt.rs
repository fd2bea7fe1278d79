//! Attempts: each recorded exactly once, with its statistics and the rules, in one
//! transaction.
//!
//! A workflow that is taken over records its attempts again; the unique key makes the second
//! time a no-op *before* the statistics are touched, which is why the three writes cannot be
//! apart. The machine's row is locked before it is read: two racers of one machine that end
//! together are counted one after the other, in the order of their ids.

use crate::column::{args, record};
use crate::engine::{statements, transact};
use crate::{BlacklistRow, Page, Result, Store, blacklist, machine};
use dumont_core::blacklist::{Settings, verdict};
use dumont_core::history::{Attempt, Outcome, Reason, Stage, Stats, success_of};
use dumont_core::id::MachineRef;
use dumont_core::time::Timestamp;
use std::fmt;
use std::str::FromStr;

statements! {
    INSERT: ["INSERT INTO machine_attempts (provider, machine_id, attempt_type, success, error_message, \
              duration_seconds, created_at, attempt_key, workflow_id, workspace_id, host_id, offer_id, \
              instance_id, gpu_name, price, region, image, stage, outcome, reason, ready_seconds) \
              VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, \
              $19, $20, $21) ON CONFLICT (attempt_key) DO NOTHING"];
    OF_WORKFLOW: ["SELECT * FROM machine_attempts WHERE workflow_id = $1 ORDER BY id"];
    LIST: ["SELECT * FROM machine_attempts WHERE (created_at, id) < ($1, $2) AND created_at >= $3 \
            AND ($4 < 0 OR $4 = CASE WHEN success IS NULL THEN 2 WHEN success THEN 1 ELSE 0 END) \
            AND provider = COALESCE($5, provider) ORDER BY created_at DESC, id DESC LIMIT $6"];
    OF_MACHINE: ["SELECT * FROM machine_attempts WHERE (created_at, id) < ($1, $2) AND created_at >= $3 \
            AND ($4 < 0 OR $4 = CASE WHEN success IS NULL THEN 2 WHEN success THEN 1 ELSE 0 END) \
            AND provider = $5 AND machine_id = $6 ORDER BY created_at DESC, id DESC LIMIT $7"];
    REASONS_OF: ["SELECT reason, COUNT(*) AS n FROM machine_attempts WHERE provider = $1 AND machine_id = $2 \
                  AND success = FALSE GROUP BY reason ORDER BY n DESC, reason"];
    DAYS_OF: ["SELECT created_at / 86400000000 AS day, \
               CAST(SUM(CASE WHEN success THEN 1 ELSE 0 END) AS BIGINT) AS successful, \
               CAST(SUM(CASE WHEN success THEN 0 ELSE 1 END) AS BIGINT) AS failed \
               FROM machine_attempts WHERE provider = $1 AND machine_id = $2 AND success IS NOT NULL \
               GROUP BY created_at / 86400000000 ORDER BY day DESC LIMIT $3"];
    RECOUNT: ["SELECT outcome, reason, ready_seconds, created_at FROM machine_attempts \
               WHERE provider = $1 AND machine_id = $2 ORDER BY id"];
}

/// One try on one machine, as it ended.
#[derive(Debug, Clone, PartialEq)]
pub struct NewAttempt {
    /// Unique for ever: the instance's key (the attempt's ULID).
    pub attempt_key: String,
    pub machine: MachineRef,
    /// `deploy`, `failover`, …
    pub attempt_type: String,
    pub workflow_id: Option<String>,
    pub workspace_id: Option<String>,
    pub host_id: Option<String>,
    pub offer_id: Option<String>,
    /// The provider's id of the contract, if there was one.
    pub instance_id: Option<String>,
    pub gpu_name: String,
    /// Dollars per hour.
    pub price: f64,
    pub region: Option<String>,
    pub image: Option<String>,
    pub stage: Stage,
    pub outcome: Outcome,
    pub reason: Option<Reason>,
    pub error_message: Option<String>,
    /// From the request to the end of the attempt.
    pub duration_seconds: f64,
    /// From the request to ready, for every attempt that came so far, won or not.
    pub ready_seconds: Option<f64>,
    pub created_at: Timestamp,
}
record!(NewAttempt {
    attempt_key,
    machine,
    attempt_type,
    workflow_id,
    workspace_id,
    host_id,
    offer_id,
    instance_id,
    gpu_name,
    price,
    region,
    image,
    stage,
    outcome,
    reason,
    error_message,
    duration_seconds,
    ready_seconds,
    created_at
});

impl NewAttempt {
    fn core(&self) -> Attempt {
        Attempt {
            outcome: self.outcome,
            reason: self.reason.clone(),
            ready_seconds: self.ready_seconds,
            at: self.created_at,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct AttemptRow {
    pub id: i64,
    /// `None` where it does not count.
    pub success: Option<bool>,
    pub attempt: NewAttempt,
}

impl crate::column::Record for AttemptRow {
    fn read(row: &crate::engine::Row) -> Result<Self> {
        Ok(Self {
            id: row.get("id")?,
            success: row.get("success")?,
            attempt: NewAttempt::read(row)?,
        })
    }
}

/// What recording an attempt did.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    /// False if the attempt was recorded before; nothing was changed then.
    pub first: bool,
    /// The machine's record, this attempt included.
    pub stats: Stats,
    /// The block that the rules set because of it.
    pub blocked: Option<BlacklistRow>,
}

/// Whether an attempt counted, as a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    Failed,
    Succeeded,
    Uncounted,
}

/// Which attempts a list shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AttemptFilter {
    pub provider: Option<String>,
    /// Made at or after.
    pub since: Option<Timestamp>,
    pub counted: Option<Counted>,
}

impl AttemptFilter {
    fn counted_arg(&self) -> i64 {
        match self.counted {
            None => -1,
            Some(Counted::Failed) => 0,
            Some(Counted::Succeeded) => 1,
            Some(Counted::Uncounted) => 2,
        }
    }
}

/// Where a page of attempts begins: they are in the order of their time, which imports and
/// reports bring along, so that an id alone says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttemptCursor {
    pub at: Timestamp,
    pub id: i64,
}

impl AttemptCursor {
    const FIRST: Self = Self {
        at: Timestamp(i64::MAX),
        id: i64::MAX,
    };
}

impl fmt::Display for AttemptCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.at.0, self.id)
    }
}

impl FromStr for AttemptCursor {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let parts = s.split_once('.').and_then(|(at, id)| {
            Some(Self {
                at: Timestamp(at.parse().ok()?),
                id: id.parse().ok()?,
            })
        });
        parts.ok_or_else(|| {
            format!(
                "{:?} is no place in a list of attempts",
                s.chars().take(80).collect::<String>()
            )
        })
    }
}

/// How often something was the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReasonCount {
    /// `None` where a failure has no word.
    pub reason: Option<String>,
    pub n: i64,
}
record!(ReasonCount { reason, n });

/// Counted attempts of one day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DayCount {
    /// Days since the epoch, UTC.
    pub day: i64,
    pub successful: i64,
    pub failed: i64,
}
record!(DayCount {
    day,
    successful,
    failed
});

struct CoreAttempt(Attempt);
impl crate::column::Record for CoreAttempt {
    fn read(row: &crate::engine::Row) -> Result<Self> {
        use crate::column::Column;
        Ok(Self(Attempt {
            outcome: Column::read(row, "outcome")?,
            reason: Column::read(row, "reason")?,
            ready_seconds: Column::read(row, "ready_seconds")?,
            at: Column::read(row, "created_at")?,
        }))
    }
}

impl Store {
    /// The attempt, the machine's statistics and the rules' verdict, all or nothing.
    pub async fn record_attempt(&self, new: &NewAttempt, settings: &Settings) -> Result<Recorded> {
        let args = args![
            &new.machine.provider,
            &new.machine.machine_id,
            &new.attempt_type,
            success_of(new.outcome),
            new.error_message.as_deref(),
            new.duration_seconds,
            new.created_at,
            &new.attempt_key,
            new.workflow_id.as_deref(),
            new.workspace_id.as_deref(),
            new.host_id.as_deref(),
            new.offer_id.as_deref(),
            new.instance_id.as_deref(),
            &new.gpu_name,
            new.price,
            new.region.as_deref(),
            new.image.as_deref(),
            new.stage,
            new.outcome,
            new.reason.as_ref(),
            new.ready_seconds,
        ];
        transact!(self.db, |tx| {
            let mut stats = machine::stats_for_update(tx, &new.machine).await?;
            let first = tx.run(INSERT, args.clone()).await? == 1;
            let mut blocked = None;
            if first {
                let attempt = new.core();
                stats.record(&attempt);
                machine::save_stats(tx, &new.machine, &stats).await?;
                if let Some(p) = verdict(&stats, &attempt, settings) {
                    blocked = blacklist::propose(tx, &new.machine, p, &stats, new.created_at).await?;
                }
            }
            Ok(Recorded {
                first,
                stats,
                blocked,
            })
        })
    }

    /// In the order they were recorded.
    pub async fn attempts_of_workflow(&self, workflow_id: &str) -> Result<Vec<AttemptRow>> {
        self.db.all(OF_WORKFLOW, args![workflow_id]).await
    }

    /// Newest first, of one machine or of all.
    pub async fn list_attempts(
        &self,
        machine: Option<&MachineRef>,
        filter: &AttemptFilter,
        after: Option<AttemptCursor>,
        limit: u32,
    ) -> Result<Page<AttemptRow>> {
        let after = after.unwrap_or(AttemptCursor::FIRST);
        let (since, counted) = (filter.since.unwrap_or(Timestamp(i64::MIN)), filter.counted_arg());
        let most = u64::from(limit) + 1;
        let rows = if let Some(m) = machine {
            let (provider, id) = (&m.provider, &m.machine_id);
            let args = args![after.at, after.id, since, counted, provider, id, most];
            self.db.all(OF_MACHINE, args).await?
        } else {
            let args = args![
                after.at,
                after.id,
                since,
                counted,
                filter.provider.as_deref(),
                most
            ];
            self.db.all(LIST, args).await?
        };
        Ok(Page::cut(rows, limit, |a: &AttemptRow| {
            let (at, id) = (a.attempt.created_at, a.id);
            AttemptCursor { at, id }.to_string()
        }))
    }

    /// Why the machine's counted failures failed, most frequent first.
    pub async fn failure_reasons(&self, machine: &MachineRef) -> Result<Vec<ReasonCount>> {
        self.db
            .all(REASONS_OF, args![&machine.provider, &machine.machine_id])
            .await
    }

    /// The last days with counted attempts, newest first.
    pub async fn counted_days(&self, machine: &MachineRef, days: u32) -> Result<Vec<DayCount>> {
        self.db
            .all(DAYS_OF, args![&machine.provider, &machine.machine_id, days])
            .await
    }

    /// The machine's record counted anew from its attempts: what the stored one must equal.
    pub async fn recount_stats(&self, machine: &MachineRef) -> Result<Stats> {
        let args = args![&machine.provider, &machine.machine_id];
        let attempts: Vec<CoreAttempt> = self.db.all(RECOUNT, args).await?;
        let mut stats = Stats::default();
        attempts.iter().for_each(|a| stats.record(&a.0));
        Ok(stats)
    }
}
