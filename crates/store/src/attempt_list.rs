//! Attempts as lists and counts: newest first by their own time, which reports and imports
//! bring along.

use crate::attempt::AttemptRow;
use crate::column::{args, record};
use crate::engine::statements;
use crate::{Page, Result, Store};
use dumont_core::id::MachineRef;
use dumont_core::time::Timestamp;
use std::fmt;
use std::str::FromStr;

statements! {
    LIST: ["SELECT * FROM machine_attempts WHERE (created_at, id) < ($1, $2) AND created_at >= $3 \
            AND ($4 < 0 OR $4 = CASE WHEN success IS NULL THEN 2 WHEN success THEN 1 ELSE 0 END) \
            AND provider = COALESCE($5, provider) ORDER BY created_at DESC, id DESC LIMIT $6"];
    OF_MACHINE: ["SELECT * FROM machine_attempts WHERE (created_at, id) < ($1, $2) AND created_at >= $3 \
            AND ($4 < 0 OR $4 = CASE WHEN success IS NULL THEN 2 WHEN success THEN 1 ELSE 0 END) \
            AND provider = $5 AND machine_id = $6 ORDER BY created_at DESC, id DESC LIMIT $7"];
    REASONS_OF: ["SELECT reason, CAST(SUM(n) AS BIGINT) AS n FROM (\
                  SELECT reason, COUNT(*) AS n FROM machine_attempts WHERE provider = $1 AND machine_id = $2 \
                  AND success = FALSE GROUP BY reason UNION ALL \
                  SELECT NULLIF(reason, '') AS reason, attempts AS n FROM machine_rollups \
                  WHERE provider = $1 AND machine_id = $2 AND verdict = 'failure') AS r \
                  GROUP BY reason ORDER BY n DESC, reason"];
    DAYS_OF: ["SELECT day, CAST(SUM(successful) AS BIGINT) AS successful, \
               CAST(SUM(failed) AS BIGINT) AS failed FROM (\
               SELECT created_at / 86400000000 AS day, CASE WHEN success THEN 1 ELSE 0 END AS successful, \
               CASE WHEN success THEN 0 ELSE 1 END AS failed FROM machine_attempts \
               WHERE provider = $1 AND machine_id = $2 AND success IS NOT NULL UNION ALL \
               SELECT day, CASE WHEN verdict = 'success' THEN attempts ELSE 0 END AS successful, \
               CASE WHEN verdict = 'failure' THEN attempts ELSE 0 END AS failed FROM machine_rollups \
               WHERE provider = $1 AND machine_id = $2 AND verdict <> 'uncounted') AS d \
               GROUP BY day ORDER BY day DESC LIMIT $3"];
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

impl Store {
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
}
