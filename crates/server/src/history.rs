//! The history as workflows use it: what is expected of a machine before it is rented, and
//! what is written down when its attempt has ended.
//!
//! Everything is judged by `core`; this file only fetches what the judgement needs. The boot
//! curves are fitted anew for every deploy: it takes a few milliseconds. Who only looks at
//! offers is told by the curves that were fitted last, at most a minute ago or one page behind.

use crate::app::App;
use crate::providers::InstanceStatus;
use crate::workflows::abandoned::{self, ABANDONED};
use crate::workflows::state::Loss;
use dumont_core::blacklist::{Circumstances, CudaVersion, LossCause};
use dumont_core::boot::{BootCurves, Curve, Stratum};
use dumont_core::detect::Cause;
use dumont_core::guard::{Guard, Vote, WINDOW};
use dumont_core::history::{Outcome, Reason, Stage};
use dumont_core::offer::Offer;
use dumont_core::plan::adaptive::Odds;
use dumont_core::reliability::{Exit, FLEET_MEAN, contribution};
use dumont_core::time::Timestamp;
use dumont_core::workflow::Kind;
use dumont_store::{BlacklistRow, Conditions, Error as StoreError, InstanceRow, Interrupt, NewAttempt};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// How long a machine's copy of an image is taken to stay.
pub const WARM: Duration = Duration::from_secs(7 * 86_400);
/// How long the provider may take to say what became of an instance.
const PATIENCE: Duration = Duration::from_secs(15);
/// Boot curves younger than this are not fitted again for a list of offers.
const FRESH: Duration = Duration::from_secs(60);

/// What was known of one machine when it was chosen; kept with the offer, so that a race that
/// is resumed judges by the same.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Expected {
    pub score: f64,
    pub prior_mean: f64,
    pub stratum: Stratum,
}

impl Expected {
    /// Of a machine that nobody looked up.
    pub fn unknown(offer: &Offer) -> Self {
        Self {
            score: FLEET_MEAN,
            prior_mean: FLEET_MEAN,
            stratum: Stratum::of(offer.inet_down_mbps, false),
        }
    }

    pub fn odds(self, curves: &BootCurves) -> Odds<'_> {
        Odds {
            score: self.score,
            curve: curves.curve(self.stratum),
        }
    }
}

/// Fitted to the last attempts.
pub async fn curves(app: &App) -> Result<Arc<BootCurves>, StoreError> {
    let fitted = Arc::new(BootCurves::fit(&app.store.boot_observations().await?));
    *app.curves.lock() = Some((Instant::now(), fitted.clone()));
    Ok(fitted)
}

/// Those that were fitted last. Older than [`FRESH`], they are fitted again behind the caller's
/// back: only the first one ever waits.
pub async fn recent_curves(app: &Arc<App>) -> Result<Arc<BootCurves>, StoreError> {
    let last = app.curves.lock().clone();
    let Some((at, curves)) = last else {
        return self::curves(app).await;
    };
    if at.elapsed() > FRESH {
        // Said before it is done: of many at once, one reads.
        *app.curves.lock() = Some((Instant::now(), curves.clone()));
        let app = app.clone();
        tokio::spawn(async move {
            if let Err(error) = self::curves(&app).await {
                tracing::warn!(%error, "cannot read the boot times; the last curves stay in use");
            }
        });
    }
    Ok(curves)
}

/// The boot curves that were fitted last, and when.
#[derive(Debug, Default)]
pub struct Curves(Mutex<Option<(Instant, Arc<BootCurves>)>>);

impl Curves {
    fn lock(&self) -> MutexGuard<'_, Option<(Instant, Arc<BootCurves>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How an attempt ended, as far as its weight depends on it.
#[derive(Debug, Clone, Copy)]
pub struct Ended<'a> {
    pub offer: &'a Offer,
    pub image: &'a str,
    /// The CUDA version asked for.
    pub cuda: Option<CudaVersion>,
    pub outcome: Outcome,
    pub reason: Option<&'a Reason>,
    pub was_ready: bool,
    pub seconds: f64,
    pub at: Timestamp,
}

impl Ended<'_> {
    /// What to write down beside it.
    pub async fn conditions(&self, app: &App, expected: Expected, curve: &Curve) -> Conditions {
        let suspect = self.outcome == Outcome::Failed && self.suspected(app, expected.score).await;
        let around = Circumstances {
            suspect,
            cuda: self.cuda,
        };
        let exit = Exit::of(self.outcome, self.reason, self.was_ready, &around);
        Conditions {
            image_digest: digest(self.image),
            reporter: None,
            source: None,
            cuda: self.cuda,
            provider_reliability: Some(self.offer.provider_reliability),
            inet_down_mbps: Some(self.offer.inet_down_mbps),
            warm: expected.stratum.warm,
            suspect,
            score: Some(expected.score),
            prior_mean: Some(expected.prior_mean),
            counts: contribution(exit, curve.g(self.seconds), expected.score),
        }
    }

    /// Whether so much fails at this moment, or with this image, that it is hardly the machine.
    /// This very failure has its vote. A history that cannot be read suspects nothing.
    async fn suspected(&self, app: &App, score: f64) -> bool {
        let machine = &self.offer.machine;
        let operator = self.offer.host_id.as_ref().map_or_else(
            || machine.to_string(),
            |host| format!("{}/{host}", machine.provider),
        );
        let votes = match app.store.guard_votes(self.at.minus(WINDOW)).await {
            Ok(votes) => votes,
            Err(error) => {
                tracing::warn!(%error, "cannot look for an incident");
                return false;
            }
        };
        let this = Vote {
            operator: &operator,
            image: Some(self.image),
            at: self.at,
            ready: false,
            score,
        };
        let all: Vec<Vote> = votes.iter().map(|v| v.as_vote()).chain([this]).collect();
        Guard::of(&all, self.at).suspects(Some(self.image))
    }
}

/// Whether losses of this moment are suspect, whatever the image.
async fn incident(app: &App, now: Timestamp) -> bool {
    let Ok(votes) = app.store.guard_votes(now.minus(WINDOW)).await else {
        return false;
    };
    let all: Vec<Vote> = votes.iter().map(|v| v.as_vote()).collect();
    Guard::of(&all, now).incident()
}

/// Whose doing a loss was. A session that was reset and a port that refuses look the same
/// whether the host died or somebody stopped the contract; only the account's own people do
/// that, and the provider then calls it stopped. To be asked before it is destroyed, and not
/// while somebody waits for another machine: it costs a call.
async fn whose(app: &App, row: &InstanceRow, trigger: &str) -> LossCause {
    if trigger == ABANDONED || abandoned::stopped_itself(app, row).await {
        return LossCause::Abandoned;
    }
    if trigger == Cause::ProviderSaysStopped.as_str() {
        return LossCause::UserStop;
    }
    if trigger == Cause::ProviderSaysOutbid.as_str() {
        return LossCause::Outbid;
    }
    let (Some(market), Some(id)) = (app.market(&row.machine.provider), &row.instance_id) else {
        return LossCause::Host;
    };
    match timeout(PATIENCE, market.provider.get(id)).await {
        Ok(Ok(Some(instance))) => match instance.status {
            InstanceStatus::Stopped => LossCause::UserStop,
            InstanceStatus::Outbid => LossCause::Outbid,
            _ => LossCause::Host,
        },
        _ => LossCause::Host,
    }
}

/// Writes down that the workspace's machine was lost, and by whom, which it gives. Safe to repeat.
pub async fn lost(app: &App, loss: &Loss) -> Option<LossCause> {
    let row = match app.store.instance(loss.instance_key.as_deref()?).await {
        Ok(row) => row?,
        Err(error) => {
            tracing::warn!(%error, "a loss could not be recorded");
            return loss.cause;
        }
    };
    let cause = match loss.cause {
        Some(cause) => cause,
        None => whose(app, &row, &loss.trigger).await,
    };
    interrupted(app, &row, &loss.trigger, cause, loss.detected_at).await;
    Some(cause)
}

/// Writes down that a machine was lost after it was ready. Whatever comes of it, the caller's
/// own work goes on: a history that cannot be written must not hold up a failover.
pub async fn interrupted(app: &App, row: &InstanceRow, trigger: &str, cause: LossCause, at: Timestamp) {
    let Some(interrupt_key) = row.loss_key(at) else {
        return;
    };
    let began = row.back_at.or(row.ready_at);
    let interrupt = Interrupt {
        interrupt_key,
        machine: row.machine.clone(),
        cause,
        trigger_name: trigger.to_owned(),
        workspace_id: Some(row.workspace_id.clone()),
        lived_seconds: began.map(|began| at.millis_since(began).max(0) as f64 / 1_000.0),
        suspect: incident(app, at).await,
        created_at: at,
    };
    match app
        .store
        .record_interrupt(&interrupt, &app.config.blacklist)
        .await
    {
        Ok(recorded) => {
            if let Some(entry) = recorded.blocked {
                tracing::warn!("{}", blocked(&entry, at));
            }
        }
        Err(error) => tracing::warn!(machine = %row.machine, %error, "the loss could not be recorded"),
    }
}

/// Writes down the attempt of a rent that ends without its race: the workspace was deleted
/// meanwhile, or the race died. The key keeps the word of a race that was quicker.
pub async fn cancelled(app: &App, row: &InstanceRow) -> Result<(), StoreError> {
    let rolled_up = app.store.rolled_up_until().await?;
    if rolled_up.is_some_and(|until| row.created_at < until)
        || app.store.attempt_by_key(&row.key).await?.is_some()
    {
        return Ok(());
    }
    let workspace = app.store.workspace(&row.workspace_id).await?;
    let kind = match &row.workflow_id {
        Some(id) => app.store.workflow(id).await?.map(|w| w.kind),
        None => None,
    };
    let (now, offer) = (app.now(), &row.offer);
    let seconds = |at: Timestamp| at.millis_since(row.created_at).max(0) as f64 / 1_000.0;
    let attempt = NewAttempt {
        attempt_key: row.key.clone(),
        machine: row.machine.clone(),
        attempt_type: kind.unwrap_or(Kind::Deploy).as_str().to_owned(),
        workflow_id: row.workflow_id.clone(),
        workspace_id: Some(row.workspace_id.clone()),
        host_id: offer.host_id.clone(),
        offer_id: Some(offer.offer_id.clone()),
        instance_id: row.instance_id.clone(),
        gpu_name: offer.gpu_name.clone(),
        price: offer.price,
        region: offer.region.clone(),
        image: workspace.as_ref().map(|w| w.spec.image.clone()),
        stage: match (&row.instance_id, row.ready_at) {
            (_, Some(_)) => Stage::Ready,
            (Some(_), None) => Stage::Boot,
            (None, None) => Stage::Rent,
        },
        outcome: Reason::Cancelled.outcome(),
        reason: Some(Reason::Cancelled),
        error_message: Some("the race ended before this machine was ready or had failed".into()),
        duration_seconds: seconds(now),
        ready_seconds: row.ready_at.map(seconds),
        created_at: now,
        conditions: Conditions {
            cuda: workspace.and_then(|w| w.spec.gpu.cuda),
            provider_reliability: Some(offer.provider_reliability),
            inet_down_mbps: Some(offer.inet_down_mbps),
            ..Conditions::default()
        },
    };
    let recorded = app.store.record_attempt(&attempt, &app.config.blacklist).await?;
    if recorded.first {
        crate::metrics::attempt(&attempt);
    }
    Ok(())
}

/// A new block in a person's words.
pub fn blocked(entry: &BlacklistRow, now: Timestamp) -> String {
    let what = entry
        .scope
        .as_ref()
        .map_or(String::new(), |s| format!(" for {s}"));
    let end = entry.expires_at.map_or_else(
        || "for good".to_owned(),
        |end| format!("for {} h", hours_left(end, now)),
    );
    let rule = entry.rule.map_or("", |r| r.as_str());
    format!(
        "{} is blacklisted{what} {end}: {} ({rule})",
        entry.machine, entry.reason
    )
}

/// Whole hours until then, begun ones included: a block of a day is one of 24 h.
pub fn hours_left(end: Timestamp, now: Timestamp) -> i64 {
    (end.millis_since(now).max(1) + 3_599_999) / 3_600_000
}

/// The digest of an image that is named by one.
fn digest(image: &str) -> Option<String> {
    let (_, digest) = image.split_once("@sha256:")?;
    let hex = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
    hex.then(|| format!("sha256:{digest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_a_day_lasts_24_hours_and_never_none() {
        let end = Timestamp(86_400_000_000);
        for (now, hours) in [(0, 24), (5_000, 24), (3_600_000_001, 23), (86_399_999_000, 1)] {
            assert_eq!(hours_left(end, Timestamp(now)), hours, "{now}");
        }
    }

    #[test]
    fn only_an_image_named_by_its_digest_has_one() {
        let hex = "a".repeat(64);
        assert_eq!(
            digest(&format!("pytorch/pytorch@sha256:{hex}")),
            Some(format!("sha256:{hex}"))
        );
        assert_eq!(digest("pytorch/pytorch:latest"), None);
        assert_eq!(digest("x@sha256:short"), None);
    }
}
