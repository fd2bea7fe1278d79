//! Bodies of `/api/v1/machines/history/…` and what offers carry of it. Times are integers,
//! microseconds since the epoch, as everywhere in the API.

use dumont_core::blacklist::{BlacklistType, CudaVersion, LossCause};
use dumont_core::history::Level;
use dumont_core::time::Timestamp;
use serde::{Deserialize, Serialize};

/// One entry of the blacklist.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlacklistEntry {
    pub id: i64,
    pub provider: String,
    pub machine_id: String,
    pub blacklist_type: BlacklistType,
    pub reason: String,
    /// What it is blocked for only, e.g. `cuda=12.8`; null is everything.
    pub scope: Option<String>,
    /// The rule that made it; null for a person's.
    pub rule: Option<String>,
    /// Name of the token that added it.
    pub actor: Option<String>,
    /// The machine's record when it was blocked.
    pub total_attempts: i64,
    pub failed_attempts: i64,
    pub failure_rate: Option<f64>,
    pub blacklisted_at: Timestamp,
    /// Null is for good.
    pub expires_at: Option<Timestamp>,
    /// It blocks now.
    pub is_active: bool,
    pub closed_at: Option<Timestamp>,
    /// `expired`, or the name of the token that removed it.
    pub closed_by: Option<String>,
}

/// `GET /machines/history/blacklist`
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlacklistQuery {
    pub provider: Option<String>,
    pub blacklist_type: Option<String>,
    /// Blocked within this long, e.g. `7d`, `12h`.
    pub period: Option<String>,
    /// Removed and expired entries too.
    pub include_closed: Option<bool>,
    /// 1 to 500, default 100.
    #[cfg_attr(feature = "openapi", param(minimum = 1, maximum = 500))]
    pub limit: Option<u32>,
    /// `next` of the page before.
    pub after: Option<String>,
}

/// `POST /machines/history/blacklist`. Who adds it is the token's name.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddBlacklist {
    pub provider: String,
    pub machine_id: String,
    pub reason: String,
    /// `manual` (for good), `automatic` (7 days) or `temporary` (24 hours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blacklist_type: Option<String>,
    /// Instead of the type's own duration, e.g. `48h`, `7d`.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// Block it for this CUDA version and newer ones only, e.g. `12.8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda: Option<CudaVersion>,
}

/// `GET /machines/history/blacklist/check/{provider}/{machine_id}`
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlacklistCheck {
    pub provider: String,
    pub machine_id: String,
    pub is_blacklisted: bool,
    pub blacklist_type: Option<BlacklistType>,
    pub reason: Option<String>,
    pub scope: Option<String>,
    pub blacklisted_at: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
    /// Blocks for something else only; they do not make it blacklisted.
    pub scoped: Vec<BlacklistEntry>,
}

/// `?cuda=` of `check`.
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckQuery {
    /// The CUDA version the workload needs: blocks scoped to it count.
    pub cuda: Option<CudaVersion>,
}

/// `DELETE /machines/history/blacklist/{provider}/{machine_id}`: what was lifted.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Removed {
    pub removed: Vec<BlacklistEntry>,
}

/// `GET /machines/history/summary`
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HistorySummary {
    /// Machines per level.
    pub machines: LevelCounts,
    pub total_machines: i64,
    pub total_attempts: i64,
    pub successful_attempts: i64,
    pub failed_attempts: i64,
    pub uncounted_attempts: i64,
    pub success_rate: Option<f64>,
    /// Entries in force, per type.
    pub blacklist: TypeCounts,
    /// Why attempts failed, most frequent first.
    pub top_reasons: Vec<ReasonCount>,
}

#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LevelCounts {
    pub excellent: i64,
    pub good: i64,
    pub fair: i64,
    pub poor: i64,
    pub blacklisted: i64,
    pub unknown: i64,
}

#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TypeCounts {
    pub automatic: i64,
    pub manual: i64,
    pub temporary: i64,
}

#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonCount {
    pub reason: String,
    pub count: i64,
}

/// `?provider=&period=` of `summary`.
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SummaryQuery {
    pub provider: Option<String>,
    /// Attempts and reasons of this long only; levels are always of now.
    pub period: Option<String>,
}

/// One try on one machine, in full.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineAttempt {
    pub id: i64,
    pub provider: String,
    pub machine_id: String,
    pub attempt_type: String,
    /// Null when it does not count for or against the machine.
    pub success: Option<bool>,
    /// won, lost_race, failed, gave_up, not_host.
    pub outcome: String,
    /// How far it came: rent, boot, ssh, hello, gpu, ready.
    pub stage: String,
    pub reason: Option<String>,
    pub error_message: Option<String>,
    /// To ready or to its failure.
    pub duration_seconds: f64,
    pub ready_seconds: Option<f64>,
    pub created_at: Timestamp,
    pub host_id: Option<String>,
    pub offer_id: Option<String>,
    pub gpu_name: String,
    /// Dollars per hour.
    pub price: f64,
    pub region: Option<String>,
    pub image: Option<String>,
    pub workflow_id: Option<String>,
    /// Name of the token that reported it; null for our own.
    pub reporter: Option<String>,
}

/// `GET /machines/history/attempts`
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttemptsQuery {
    pub provider: Option<String>,
    /// Needs `provider`.
    pub machine_id: Option<String>,
    /// `true`, `false`, or `uncounted`.
    pub success: Option<String>,
    /// Made within this long, e.g. `7d`, `12h`.
    pub period: Option<String>,
    /// 1 to 500, default 100.
    #[cfg_attr(feature = "openapi", param(minimum = 1, maximum = 500))]
    pub limit: Option<u32>,
    /// `next` of the page before.
    pub after: Option<String>,
}

/// `POST /machines/history/attempts`: another tool or a person says what happened on a machine.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportAttempt {
    pub provider: String,
    pub machine_id: String,
    /// Default: false.
    #[serde(default)]
    pub success: bool,
    /// A word such as `ssh_failed`; needed where it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// From the request to ready, where it became ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_seconds: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_name: Option<String>,
    /// The CUDA version that was asked for: a `driver_mismatch` then says nothing against the
    /// machine as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda: Option<CudaVersion>,
}

/// What became of a report.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reported {
    pub attempt: MachineAttempt,
    /// Whether it changed the machine's rate: the first of a reporter, machine and day does.
    pub counted: bool,
    /// Why not.
    pub note: Option<String>,
}

/// One machine's record.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineStats {
    pub provider: String,
    pub machine_id: String,
    pub total_attempts: i64,
    pub successful_attempts: i64,
    pub failed_attempts: i64,
    /// Recorded, but neither for nor against the machine.
    pub uncounted_attempts: i64,
    pub consecutive_failures: i64,
    /// Null before the first counted attempt.
    pub success_rate: Option<f64>,
    pub reliability_status: Level,
    /// What the ranking goes by, 0 to 1; read now.
    pub reliability_score: f64,
    /// Seconds, over `ready_attempts`.
    pub avg_boot_time: Option<f64>,
    pub ready_attempts: i64,
    pub last_attempt_at: Option<Timestamp>,
    pub last_success_at: Option<Timestamp>,
    pub last_failure_at: Option<Timestamp>,
    pub is_blacklisted: bool,
    pub blacklist_type: Option<BlacklistType>,
    pub blacklist_reason: Option<String>,
    pub blacklist_expires_at: Option<Timestamp>,
}

/// `GET /machines/history/stats/{provider}/{machine_id}`
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineHistory {
    #[serde(flatten)]
    pub stats: MachineStats,
    /// Why its attempts failed, most frequent first.
    pub reasons: Vec<ReasonCount>,
    /// Rate over time: days with counted attempts, oldest first, the last 30 of them.
    pub days: Vec<DayRate>,
    /// Losses after it was ready, of the last 30 days, newest first, at most 50.
    pub interrupts: Vec<MachineInterrupt>,
    /// The entry in force and every earlier one, newest first, at most 50.
    pub blacklist: Vec<BlacklistEntry>,
}

/// The machine was ready, and was lost.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineInterrupt {
    pub at: Timestamp,
    /// `host` counts toward frequent_interrupts; `user_stop` (a person's, or an account out of
    /// credit) does not.
    pub cause: LossCause,
    /// The evidence that decided.
    pub trigger: String,
    /// From ready to lost.
    pub lived_seconds: Option<f64>,
}

/// Counted attempts of one day.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DayRate {
    /// Its first moment, UTC.
    pub day: Timestamp,
    pub successful: i64,
    pub failed: i64,
}

/// `GET /machines/history/problematic`, `…/reliable`
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachinesQuery {
    pub provider: Option<String>,
    /// Tried within this long, e.g. `7d`.
    pub period: Option<String>,
    /// Counted attempts behind the rate, at least; default 1.
    // utoipa's `int32` of a u32 ends at half of what is taken.
    #[cfg_attr(feature = "openapi", param(value_type = Option<u64>))]
    pub min_attempts: Option<u32>,
    /// 1 to 500, default 100.
    #[cfg_attr(feature = "openapi", param(minimum = 1, maximum = 500))]
    pub limit: Option<u32>,
    /// `next` of the page before.
    pub after: Option<String>,
}

/// `?provider=&period=` of `export`.
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportQuery {
    pub provider: Option<String>,
    /// Attempts made within this long, e.g. `30d`; entries are those in force.
    pub period: Option<String>,
}

/// `?blacklist=` of `import`.
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportQuery {
    /// Take over blacklist entries as well; an import never blocks anything otherwise.
    pub blacklist: Option<bool>,
}

/// One line of an export. Lines of a later version's kinds are refused, not skipped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ExportLine {
    /// First of all, as the attempts that follow are those that no count holds.
    Rollup(ExportedRollup),
    Attempt(Box<ExportedAttempt>),
    Blacklist(ExportedBlock),
}

/// Attempts that were rolled up, as they travel: counts of one server, machine, day, verdict and
/// reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportedRollup {
    /// The server whose attempts they were.
    pub source: String,
    /// Its attempts from before this are counted like these, not kept.
    pub until: Timestamp,
    pub provider: String,
    pub machine_id: String,
    /// Days since the epoch, UTC.
    pub day: i64,
    /// Null where they do not count for or against the machine.
    pub success: Option<bool>,
    pub reason: Option<String>,
    pub attempts: i64,
    pub ready_attempts: i64,
    pub ready_total_ms: i64,
    pub last_at: Timestamp,
}

/// An attempt as it travels: with what the score needs, without what only its own installation
/// understands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportedAttempt {
    /// Unique for ever; the same attempt is never counted twice.
    pub key: String,
    /// The server that recorded it.
    pub source: Option<String>,
    pub provider: String,
    pub machine_id: String,
    pub attempt_type: String,
    pub outcome: String,
    pub stage: String,
    pub reason: Option<String>,
    pub error_message: Option<String>,
    pub duration_seconds: f64,
    pub ready_seconds: Option<f64>,
    pub created_at: Timestamp,
    pub host_id: Option<String>,
    pub gpu_name: String,
    pub price: f64,
    pub region: Option<String>,
    pub image: Option<String>,
    pub image_digest: Option<String>,
    pub cuda: Option<CudaVersion>,
    pub provider_reliability: Option<f64>,
    pub inet_down_mbps: Option<f64>,
    #[serde(default)]
    pub suspect: bool,
    pub score: Option<f64>,
    pub prior_mean: Option<f64>,
    /// What it adds to the decayed successes and failures.
    pub score_s: f64,
    pub score_f: f64,
}

/// A blacklist entry as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportedBlock {
    pub provider: String,
    pub machine_id: String,
    pub blacklist_type: BlacklistType,
    pub reason: String,
    pub scope: Option<String>,
    pub blacklisted_at: Timestamp,
    pub expires_at: Option<Timestamp>,
}

/// What an import did.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImportReport {
    pub attempts: u64,
    /// Attempts taken over as counts: the other server keeps them only so.
    pub counted: u64,
    /// Attempts that were here already.
    pub known: u64,
    /// Attempts made before what this server still keeps; they are counted already or nobody's.
    pub too_old: u64,
    pub blacklisted: u64,
    /// Entries not taken over: not asked for, expired, or a manual one stands.
    pub entries_skipped: u64,
}
