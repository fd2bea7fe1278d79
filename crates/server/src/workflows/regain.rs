//! An interruptible machine that a higher bid took: getting it back by a bid of ours.
//!
//! Its disk is kept, so nothing has to be restored and no work is lost; its memory is not, so the
//! workload is started as after a reboot. Whether that is worth it is `dumont_core::bid`'s to say;
//! where it is not, or does not help in time, the failover goes on to another machine.

use super::ready::{Promise, StageCell, make_ready};
use super::state::{Loss, Placement};
use super::{Run, StepError};
use crate::history;
use crate::link::Link;
use crate::providers::{Access, InstanceStatus};
use dumont_core::bid::{Allowed, raise};
use dumont_core::blacklist::LossCause;
use dumont_core::offer::Offer;
use dumont_store::{InstanceRow, InstanceState};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How long a raised bid may take to bring the machine back.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks at a machine that is still the other's.
const AGAIN: Duration = Duration::from_secs(2);

/// Whether the machine that was lost is ours again. `elsewhere` is what the best other one costs.
/// A crash repeats it with the same bid.
pub async fn run(run: &mut Run, state: &mut Placement, elsewhere: Option<f64>) -> Result<bool, StepError> {
    let Some(loss) = state.loss.clone().filter(|l| l.dead && state.winner.is_none()) else {
        return Ok(false);
    };
    let row = match &loss.instance_key {
        Some(key) => run.app.store.instance(key).await?,
        None => None,
    };
    let Some(row) = row.filter(|r| r.offer.bid.is_some() && r.state == InstanceState::Owned) else {
        return Ok(false);
    };
    let Some(offer) = worth_it(run, &row, elsewhere).await? else {
        return Ok(false);
    };
    let spent = run.app.store.spent(run.app.now()).await?;
    // What it costs already is in the sum.
    if let Err(over) = run.app.config.caps.allow(&spent, offer.price - row.price) {
        run.say(format!("the bid is not raised: {over}")).await;
        return Ok(false);
    }
    let bid = offer.bid.unwrap_or_default();
    run.say(format!("raising the bid for {} to ${bid:.4}/h", offer.machine))
        .await;
    let id = row.instance_id.as_deref().unwrap_or_default();
    if let Err(error) = run
        .market(&row.machine.provider)?
        .provider
        .raise_bid(id, bid)
        .await
    {
        run.say(format!("the bid could not be raised: {error}")).await;
        return Ok(false);
    }
    run.app
        .store
        .set_instance_offer(&row.key, &offer, run.app.now())
        .await?;
    match timeout(PATIENCE, back(run, &row)).await {
        Ok(Ok(link)) => {
            take(run, state, &loss, &row, link, LossCause::Outbid).await?;
            Ok(true)
        }
        Ok(Err(why)) => {
            run.say(format!("{} does not come back: {why}", offer.machine))
                .await;
            Ok(false)
        }
        Err(_) => {
            let waited = PATIENCE.as_secs();
            run.say(format!("{} is not back after {waited} s", offer.machine))
                .await;
            Ok(false)
        }
    }
}

/// The machine at the price at which it is worth having back, if it was outbid at all.
async fn worth_it(run: &Run, row: &InstanceRow, elsewhere: Option<f64>) -> Result<Option<Offer>, StepError> {
    let (Some(id), Some(bid)) = (&row.instance_id, row.offer.bid) else {
        return Ok(None);
    };
    // Another answer, or none, is for the failover to deal with.
    let Ok(Some(instance)) = run.market(&row.machine.provider)?.provider.get(id).await else {
        return Ok(None);
    };
    if instance.status != InstanceStatus::Outbid {
        return Ok(None);
    }
    let spec = &run.workspace.spec;
    let allowed = Allowed {
        fixed: spec.interruptible.and_then(|i| i.bid),
        max_price: spec.max_price,
    };
    let storage = (row.offer.price - bid).max(0.0);
    let raised = raise(bid, instance.min_bid.unwrap_or(bid), storage, elsewhere, &allowed);
    if raised.is_none() {
        let line = format!(
            "a higher bid took {}; moving is the better way",
            row.offer.machine
        );
        run.say(line).await;
    }
    Ok(raised.map(|bid| Offer {
        bid: Some(bid),
        price: bid + storage,
        ..row.offer.clone()
    }))
}

/// Waits until it runs again and our agent answers from inside.
pub(super) async fn back(run: &Run, row: &InstanceRow) -> Result<Link, String> {
    let app = &run.app;
    let market = app
        .market(&row.machine.provider)
        .ok_or("its provider is not configured")?;
    let promise = Promise {
        offer: row.offer.clone(),
        disk_bytes: 0,
        cuda: run.workspace.spec.gpu.cuda,
        ssh_grace: app.config.timing.ssh_grace,
        key_grace: app.config.timing.key_grace,
        public_key: app.public_key.clone(),
    };
    let id = row.instance_id.as_deref().unwrap_or_default();
    loop {
        // A container that is started anew may have new keys: as at its first start, its address
        // is the provider's word.
        let access = Access {
            host_key: None,
            ..Access::of(row)
        };
        let target = app.target(Vec::new(), access, &run.workspace.spec.path);
        match make_ready(market, id, target, &promise, &StageCell::default()).await {
            Ok(link) => return Ok(link),
            // One that is started again says what it said until its container is there.
            Err(not_yet) if not_yet.is_stopped() => sleep(AGAIN).await,
            Err(why) => return Err(why.message),
        }
    }
}

pub(super) async fn take(
    run: &mut Run,
    state: &mut Placement,
    loss: &Loss,
    row: &InstanceRow,
    link: Link,
    cause: LossCause,
) -> Result<(), StepError> {
    let app = run.app.clone();
    app.store
        .set_instance_endpoint(&row.key, &link.reached_at(), app.now())
        .await?;
    history::interrupted(&app, row, &loss.trigger, cause, loss.detected_at).await;
    let link = Arc::new(link);
    app.sessions.put(&row.key, link.clone());
    run.link = Some(link);
    run.say(format!("{} is back, its disk as it was", row.offer.machine))
        .await;
    state.winner = Some(row.key.clone());
    run.keep(state);
    Ok(())
}
