//! The last attempts as the boot curve and the incident guard take them.

use crate::column::{Column, args, json};
use crate::engine::{Row, statements};
use crate::{Result, Store};
use dumont_core::boot::{LAST_ATTEMPTS, Observation, Stratum, Wait};
use dumont_core::guard::Vote;
use dumont_core::history::{Outcome, Reason};
use dumont_core::time::Timestamp;
use std::collections::HashSet;

statements! {
    // Our own only: nobody else's waiting is known. An attempt that ended while renting says
    // nothing of boots, nor does an incident.
    BOOTS: ["SELECT inet_down_mbps, warm, outcome, reason, ready_seconds, duration_seconds \
             FROM machine_attempts WHERE reporter IS NULL AND NOT suspect AND stage <> 'rent' \
             AND outcome <> 'not_host' AND inet_down_mbps IS NOT NULL \
             ORDER BY created_at DESC, id DESC LIMIT $1"];
    VOTES: ["SELECT provider, machine_id, host_id, image, created_at, ready_seconds, score \
             FROM machine_attempts WHERE created_at > $1 AND reporter IS NULL \
             AND (ready_seconds IS NOT NULL OR outcome = 'failed') ORDER BY created_at DESC, id DESC LIMIT 1000"];
    WARM: ["SELECT DISTINCT a.machine_id FROM " EACH_2 " JOIN machine_attempts a ON a.provider = $1 \
            AND a.machine_id = each.value AND a.created_at > $3 \
            WHERE a.image = $4 AND a.ready_seconds IS NOT NULL"];
}

struct Boot(Observation);
impl crate::column::Record for Boot {
    fn read(row: &Row) -> Result<Self> {
        let ready: Option<f64> = row.get("ready_seconds")?;
        let outcome: Outcome = Column::read(row, "outcome")?;
        let reason: Option<Reason> = Column::read(row, "reason")?;
        let wait = match (ready, outcome, reason) {
            (Some(_), ..) | (None, Outcome::Won, _) => Wait::Ready,
            // A timeout is us giving up, however late.
            (None, Outcome::Failed, reason) if reason != Some(Reason::BootTimeout) => Wait::Failed,
            _ => Wait::Censored,
        };
        let waited: f64 = row.get("duration_seconds")?;
        Ok(Self(Observation {
            stratum: Stratum::of(row.get("inet_down_mbps")?, row.get("warm")?),
            seconds: ready.unwrap_or(waited),
            wait,
        }))
    }
}

/// A vote that owns its names.
#[derive(Debug, Clone, PartialEq)]
pub struct GuardVote {
    pub operator: String,
    pub image: Option<String>,
    pub at: Timestamp,
    pub ready: bool,
    pub score: f64,
}

impl GuardVote {
    pub fn as_vote(&self) -> Vote<'_> {
        Vote {
            operator: &self.operator,
            image: self.image.as_deref(),
            at: self.at,
            ready: self.ready,
            score: self.score,
        }
    }
}

impl crate::column::Record for GuardVote {
    fn read(row: &Row) -> Result<Self> {
        let (provider, machine_id): (String, String) = (row.get("provider")?, row.get("machine_id")?);
        let host: Option<String> = row.get("host_id")?;
        let ready: Option<f64> = row.get("ready_seconds")?;
        let score: Option<f64> = row.get("score")?;
        Ok(Self {
            // The machine itself where the provider names no operator.
            operator: host.map_or_else(
                || format!("{provider}:{machine_id}"),
                |h| format!("{provider}/{h}"),
            ),
            image: row.get("image")?,
            at: Column::read(row, "created_at")?,
            ready: ready.is_some(),
            score: score.unwrap_or(dumont_core::reliability::FLEET_MEAN),
        })
    }
}

struct MachineId {
    machine_id: String,
}
crate::column::record!(MachineId { machine_id });

impl Store {
    /// What the boot curve is fitted to, oldest first.
    pub async fn boot_observations(&self) -> Result<Vec<Observation>> {
        let most = u64::try_from(LAST_ATTEMPTS).unwrap_or(u64::MAX);
        let rows: Vec<Boot> = self.db.all(BOOTS, args![most]).await?;
        Ok(rows.into_iter().rev().map(|b| b.0).collect())
    }

    /// Outcomes after `since`, newest first, at most a thousand: far more than operators.
    pub async fn guard_votes(&self, since: Timestamp) -> Result<Vec<GuardVote>> {
        self.db.all(VOTES, args![since]).await
    }

    /// Which of these machines became ready with this image after `since`.
    pub async fn warm_machines(
        &self,
        provider: &str,
        machine_ids: &[&str],
        image: &str,
        since: Timestamp,
    ) -> Result<HashSet<String>> {
        let args = args![provider, json(&machine_ids)?, since, image];
        let rows: Vec<MachineId> = self.db.all(WARM, args).await?;
        Ok(rows.into_iter().map(|r| r.machine_id).collect())
    }
}
