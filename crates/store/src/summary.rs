//! The whole history in a few numbers.
//!
//! Levels are counted in SQL, a million machines being too many to fetch; the boundaries are
//! those of `core`'s `Level::of`, and the contract suite holds the two against each other.

use crate::attempt_list::ReasonCount;
use crate::column::{args, record};
use crate::engine::statements;
use crate::{Result, Store};
use dumont_core::blacklist::BlacklistType;
use dumont_core::history::Level;
use dumont_core::time::Timestamp;
use std::collections::BTreeMap;

/// Reasons named at most.
const REASONS: u32 = 10;

statements! {
    LEVELS: ["SELECT level, COUNT(*) AS n FROM (SELECT CASE \
              WHEN EXISTS (SELECT 1 FROM machine_blacklist b WHERE b.provider = s.provider \
              AND b.machine_id = s.machine_id AND b.is_active AND b.scope IS NULL \
              AND (b.expires_at IS NULL OR b.expires_at > $1)) THEN 'blacklisted' \
              WHEN success_rate IS NULL THEN 'unknown' WHEN success_rate >= 0.9 THEN 'excellent' \
              WHEN success_rate >= 0.7 THEN 'good' WHEN success_rate >= 0.5 THEN 'fair' \
              ELSE 'poor' END AS level FROM machine_stats s WHERE provider = COALESCE($2, provider)) AS l \
              GROUP BY level"];
    TOTALS: ["SELECT CAST(COALESCE(SUM(successful_attempts), 0) AS BIGINT) AS successful, \
              CAST(COALESCE(SUM(failed_attempts), 0) AS BIGINT) AS failed, \
              CAST(COALESCE(SUM(uncounted_attempts), 0) AS BIGINT) AS uncounted \
              FROM machine_stats WHERE provider = COALESCE($1, provider)"];
    TOTALS_SINCE: ["SELECT CAST(COALESCE(SUM(successful), 0) AS BIGINT) AS successful, \
              CAST(COALESCE(SUM(failed), 0) AS BIGINT) AS failed, \
              CAST(COALESCE(SUM(uncounted), 0) AS BIGINT) AS uncounted FROM (\
              SELECT CASE WHEN success THEN 1 ELSE 0 END AS successful, \
              CASE WHEN success = FALSE THEN 1 ELSE 0 END AS failed, \
              CASE WHEN success IS NULL THEN 1 ELSE 0 END AS uncounted \
              FROM machine_attempts WHERE created_at >= $2 AND provider = COALESCE($1, provider) UNION ALL \
              SELECT CASE WHEN verdict = 'success' THEN attempts ELSE 0 END AS successful, \
              CASE WHEN verdict = 'failure' THEN attempts ELSE 0 END AS failed, \
              CASE WHEN verdict = 'uncounted' THEN attempts ELSE 0 END AS uncounted \
              FROM machine_rollups WHERE day >= $3 AND provider = COALESCE($1, provider)) AS t"];
    BLOCKS: ["SELECT blacklist_type, COUNT(*) AS n FROM machine_blacklist WHERE is_active \
              AND (expires_at IS NULL OR expires_at > $1) AND provider = COALESCE($2, provider) \
              GROUP BY blacklist_type"];
    REASONS_SINCE: ["SELECT reason, CAST(SUM(n) AS BIGINT) AS n FROM (\
              SELECT reason, COUNT(*) AS n FROM machine_attempts WHERE success = FALSE \
              AND created_at >= $1 AND provider = COALESCE($2, provider) GROUP BY reason UNION ALL \
              SELECT NULLIF(reason, '') AS reason, attempts AS n FROM machine_rollups \
              WHERE verdict = 'failure' AND day >= $3 AND provider = COALESCE($2, provider)) AS r \
              GROUP BY reason ORDER BY n DESC, reason LIMIT $4"];
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Machines per level, of now.
    pub levels: BTreeMap<Level, i64>,
    pub successful: i64,
    pub failed: i64,
    pub uncounted: i64,
    /// Entries in force, of now; scoped ones too.
    pub blocks: BTreeMap<BlacklistType, i64>,
    pub reasons: Vec<ReasonCount>,
}

struct LevelCount {
    level: Level,
    n: i64,
}
record!(LevelCount { level, n });

struct TypeCount {
    blacklist_type: BlacklistType,
    n: i64,
}
record!(TypeCount { blacklist_type, n });

struct Totals {
    successful: i64,
    failed: i64,
    uncounted: i64,
}
record!(Totals {
    successful,
    failed,
    uncounted
});

impl Store {
    /// Of one provider or all; attempts and reasons `since` then, or ever.
    pub async fn history_summary(
        &self,
        provider: Option<&str>,
        since: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Summary> {
        let from = since.unwrap_or(Timestamp(i64::MIN));
        // What is rolled up is known by its day only.
        let day = from.0.div_euclid(86_400_000_000);
        let levels: Vec<LevelCount> = self.db.all(LEVELS, args![now, provider]).await?;
        let totals: Option<Totals> = match since {
            None => self.db.first(TOTALS, args![provider]).await?,
            Some(_) => self.db.first(TOTALS_SINCE, args![provider, from, day]).await?,
        };
        let blocks: Vec<TypeCount> = self.db.all(BLOCKS, args![now, provider]).await?;
        let reasons = self
            .db
            .all(REASONS_SINCE, args![from, provider, day, REASONS])
            .await?;
        let (successful, failed, uncounted) =
            totals.map_or((0, 0, 0), |t| (t.successful, t.failed, t.uncounted));
        Ok(Summary {
            levels: levels.into_iter().map(|l| (l.level, l.n)).collect(),
            successful,
            failed,
            uncounted,
            blocks: blocks.into_iter().map(|b| (b.blacklist_type, b.n)).collect(),
            reasons,
        })
    }
}
