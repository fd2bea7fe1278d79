//! Attempts: each recorded exactly once, with its statistics and the rules, in one
//! transaction.
//!
//! A workflow that is taken over records its attempts again; the unique key makes the second
//! time a no-op *before* the statistics are touched, which is why the writes cannot be
//! apart. The machine's row is locked before it is read: two racers of one machine that end
//! together are counted one after the other, in the order of their ids.
//!
//! What does not count (not the host's doing, an incident, a driver that is too old for what
//! was asked) has `success` NULL, so that plain SQL over `success` gives the statistics.

use crate::column::{Column, args, record};
use crate::engine::{Row, Tx, statements, transact};
use crate::machine::Locked;
use crate::standing::Conditions;
use crate::{BlacklistRow, Result, Store, blacklist, sums};
use dumont_core::blacklist::{Circumstances, Settings, counts, judge};
use dumont_core::history::{Attempt, Outcome, Reason, Stage, Stats};
use dumont_core::id::MachineRef;
use dumont_core::time::Timestamp;

statements! {
    INSERT: ["INSERT INTO machine_attempts (provider, machine_id, attempt_type, success, error_message, \
              duration_seconds, created_at, attempt_key, workflow_id, workspace_id, host_id, offer_id, \
              instance_id, gpu_name, price, region, image, stage, outcome, reason, ready_seconds, \
              image_digest, reporter, cuda, provider_reliability, inet_down_mbps, warm, suspect, score, \
              prior_mean, score_s, score_f, source) \
              VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, \
              $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33) \
              ON CONFLICT (attempt_key) DO NOTHING"];
    OF_WORKFLOW: ["SELECT * FROM machine_attempts WHERE workflow_id = $1 ORDER BY id"];
    BY_KEY: ["SELECT * FROM machine_attempts WHERE attempt_key = $1"];
    RECOUNT: ["SELECT success, ready_seconds, created_at FROM machine_attempts \
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
    pub conditions: Conditions,
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
    created_at,
    conditions
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

    fn around(&self) -> Circumstances {
        Circumstances {
            suspect: self.conditions.suspect,
            cuda: self.conditions.cuda,
        }
    }

    /// Whether it counts for or against the machine under these rules.
    pub fn counts(&self, settings: &Settings) -> Option<bool> {
        counts(self.outcome, self.reason.as_ref(), &self.around(), settings.rules)
    }
}

/// What the statistics see of an attempt whose success is decided.
fn seen(success: Option<bool>, ready_seconds: Option<f64>, at: Timestamp) -> Attempt {
    let outcome = match success {
        Some(true) => Outcome::Won,
        Some(false) => Outcome::Failed,
        None => Outcome::NotHost,
    };
    Attempt {
        outcome,
        reason: None,
        ready_seconds,
        at,
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
    fn read(row: &Row) -> Result<Self> {
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

struct Seen(Attempt);
impl crate::column::Record for Seen {
    fn read(row: &Row) -> Result<Self> {
        Ok(Self(seen(
            row.get("success")?,
            row.get("ready_seconds")?,
            Column::read(row, "created_at")?,
        )))
    }
}

/// Who may block because of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    /// Our own: the rules decide.
    ByRules,
    /// Reported or imported: it counts, but blocks nothing by itself.
    Never,
}

/// The attempt, the machine's statistics and the rules' verdict, within a transaction.
pub(crate) async fn record_in(
    tx: &mut Tx,
    new: &NewAttempt,
    judged: Judged,
    settings: &Settings,
) -> Result<Recorded> {
    let mut machine = Locked::get(tx, &new.machine).await?;
    let success = new.counts(settings);
    let first = insert(tx, new, success).await?;
    let mut blocked = None;
    if first {
        let attempt = new.core();
        machine.settle(new.created_at);
        machine
            .stats
            .record(&seen(success, new.ready_seconds, new.created_at));
        machine.learn(new);
        let proposal = judge(&mut machine.window, &attempt, &new.around(), settings);
        if let Some(p) = proposal.filter(|_| judged == Judged::ByRules) {
            blocked = blacklist::propose(tx, &new.machine, p, &mut machine, new.created_at).await?;
        }
        machine.save(tx).await?;
        sums::add(tx, new).await?;
    }
    Ok(Recorded {
        first,
        stats: machine.stats,
        blocked,
    })
}

async fn insert(tx: &mut Tx, new: &NewAttempt, success: Option<bool>) -> Result<bool> {
    let c = &new.conditions;
    let args = args![
        &new.machine.provider,
        &new.machine.machine_id,
        &new.attempt_type,
        success,
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
        c.image_digest.as_deref(),
        c.reporter.as_deref(),
        c.cuda.map(|v| v.to_string()),
        c.provider_reliability,
        c.inet_down_mbps,
        c.warm,
        c.suspect,
        c.score,
        c.prior_mean,
        c.counts.s,
        c.counts.f,
        c.source.as_deref(),
    ];
    Ok(tx.run(INSERT, args).await? == 1)
}

impl Store {
    /// The attempt, the machine's statistics and the rules' verdict, all or nothing.
    pub async fn record_attempt(&self, new: &NewAttempt, settings: &Settings) -> Result<Recorded> {
        transact!(self.db, |tx| {
            record_in(tx, new, Judged::ByRules, settings).await
        })
    }

    /// Like `record_attempt` for what others say: it counts, and blocks nothing by itself.
    pub async fn record_foreign_attempt(&self, new: &NewAttempt, settings: &Settings) -> Result<Recorded> {
        transact!(self.db, |tx| {
            record_in(tx, new, Judged::Never, settings).await
        })
    }

    /// In the order they were recorded.
    pub async fn attempts_of_workflow(&self, workflow_id: &str) -> Result<Vec<AttemptRow>> {
        self.db.all(OF_WORKFLOW, args![workflow_id]).await
    }

    pub async fn attempt_by_key(&self, key: &str) -> Result<Option<AttemptRow>> {
        self.db.first(BY_KEY, args![key]).await
    }

    /// The machine's record counted anew from its attempts: what the stored one must equal,
    /// where none was rolled up.
    pub async fn recount_stats(&self, machine: &MachineRef) -> Result<Stats> {
        let args = args![&machine.provider, &machine.machine_id];
        let attempts: Vec<Seen> = self.db.all(RECOUNT, args).await?;
        let mut stats = Stats::default();
        attempts.iter().for_each(|a| stats.record(&a.0));
        Ok(stats)
    }
}
