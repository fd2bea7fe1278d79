//! A machine that stopped itself because no controller was there: telling it from others.
//!
//! Nothing happened to it, so nothing on its disk is given up before a person says so; `regain`
//! starts it again.

use super::state::Loss;
use super::{Run, StepError};
use crate::app::App;
use crate::providers::InstanceStatus;
use dumont_core::lease;
use dumont_store::InstanceRow;
use std::time::Duration;
use tokio::time::timeout;

/// The trigger of a loss that this was.
pub const ABANDONED: &str = "abandoned";

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
