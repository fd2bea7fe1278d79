//! A machine that stopped itself because no controller was there: starting it again.
//!
//! Nothing happened to it, and its disk is as it was: started again, it loses no work, which no
//! other machine could say. So that comes before any search, and only where its GPUs are somebody
//! else's by now does the failover move on.

use super::regain::{self, take};
use super::state::{Loss, Placement};
use super::{Run, StepError};
use crate::app::App;
use crate::link::Link;
use crate::providers::InstanceStatus;
use dumont_core::blacklist::LossCause;
use dumont_core::lease;
use dumont_store::{InstanceRow, InstanceState};
use std::time::Duration;
use tokio::time::timeout;

/// The trigger of a loss that this was.
pub const ABANDONED: &str = "abandoned";

/// How long a start may take: its image is there, but its host may be busy.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long the provider may take to say what became of it.
const ANSWER: Duration = Duration::from_secs(15);

/// Whether the instance did what its lease told it to. Costs a call only where it may have.
pub async fn stopped_itself(app: &App, row: &InstanceRow) -> bool {
    if !row.may_have_ended(app.now()) {
        return false;
    }
    let (Some(market), Some(id)) = (app.market(&row.machine.provider), &row.instance_id) else {
        return false;
    };
    let answer = timeout(ANSWER, market.provider.get(id)).await;
    // A stopped interruptible one looks the same, whoever stopped it. One that starts was stopped: a
    // start of ours waited for its GPUs, or a person was quicker.
    let stopped = [
        InstanceStatus::Stopped,
        InstanceStatus::Outbid,
        InstanceStatus::Starting,
    ];
    matches!(answer, Ok(Ok(Some(instance))) if stopped.contains(&instance.status))
}

/// What a person is told.
pub fn words(row: &InstanceRow) -> String {
    let after = row.lease().map_or_else(String::new, lease::in_words);
    format!(
        "{} stopped itself: no controller was there for {after}",
        row.offer.machine
    )
}

/// Writes it into the loss, so that a crash after the start still knows.
pub async fn note(run: &Run, loss: &mut Loss) -> Result<(), StepError> {
    let row = match &loss.instance_key {
        Some(key) => run.app.store.instance(key).await?,
        None => None,
    };
    if let Some(row) = row
        && stopped_itself(&run.app, &row).await
    {
        run.say(words(&row)).await;
        loss.trigger = ABANDONED.to_owned();
        loss.dead = true;
    }
    Ok(())
}

/// Whether it is ours again. A start is safe to repeat, and so is all of this.
pub async fn run(run: &mut Run, state: &mut Placement) -> Result<bool, StepError> {
    let Some(loss) = state.loss.clone().filter(|l| l.trigger == ABANDONED) else {
        return Ok(false);
    };
    let row = match &loss.instance_key {
        Some(key) => run.app.store.instance(key).await?,
        None => None,
    };
    let Some(row) = row.filter(|r| r.state == InstanceState::Owned && state.winner.is_none()) else {
        return Ok(false);
    };
    run.say(format!("starting {} again", row.offer.machine)).await;
    match timeout(PATIENCE, started(run, &row)).await {
        Ok(Ok(link)) => {
            take(run, state, &loss, &row, link, LossCause::Abandoned).await?;
            Ok(true)
        }
        Ok(Err(why)) => {
            run.say(format!("{} does not come back: {why}", row.offer.machine))
                .await;
            Ok(false)
        }
        Err(_) => {
            let waited = PATIENCE.as_secs();
            run.say(format!("{} is not back after {waited} s", row.offer.machine))
                .await;
            Ok(false)
        }
    }
}

async fn started(run: &Run, row: &InstanceRow) -> Result<Link, String> {
    let id = row.instance_id.as_deref().unwrap_or_default();
    let market = run
        .app
        .market(&row.machine.provider)
        .ok_or("its provider is not configured")?;
    market.provider.start(id).await.map_err(|e| e.to_string())?;
    regain::back(run, row).await
}
