//! A machine that stands still: getting it back before another is looked for.
//!
//! Its disk is kept, so nothing has to be restored and no work is lost; its memory is not, so the
//! workload is started as after a reboot. A start at its own price is free and comes first: it
//! brings back what stopped itself and what a person stopped. Where a higher bid has it, one of
//! ours may be worth it, which is `dumont_core::bid`'s to say. Where none of it helps in time, the
//! failover goes on to another machine.
//!
//! What is tried is kept before it is done, and all of it is safe to repeat: whoever goes on after
//! a crash does the same once more, and finds what came of it.

use super::abandoned::ABANDONED;
use super::ready::{Promise, StageCell, make_ready};
use super::state::{Loss, Placement, Remedy};
use super::{Run, StepError};
use crate::history;
use crate::link::Link;
use crate::providers::{Access, ErrorClass, InstanceStatus, ProviderInstance};
use dumont_core::bid::{Allowed, raise};
use dumont_core::blacklist::LossCause;
use dumont_core::detect::Cause;
use dumont_core::offer::Offer;
use dumont_core::workflow::Step;
use dumont_store::{InstanceRow, InstanceState};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How long it may take to be back.
const PATIENCE: Duration = Duration::from_secs(90);
/// The same, where nobody but our own absence stopped it: its image is there, but its host may be
/// busy.
const LONG: Duration = Duration::from_secs(300);
/// For how long the provider may go on to say that it stands still, though it took the start.
const EFFECT: Duration = Duration::from_secs(20);
/// How long the provider may take to say how it is.
const ANSWER: Duration = Duration::from_secs(3);
/// Between two looks at a machine that is still the other's.
const AGAIN: Duration = Duration::from_secs(2);

/// What a start came to.
pub enum Started {
    /// It is ours again.
    Back,
    /// A higher bid has it; the lowest that would win, if the provider says so.
    Outbid { wins: Option<f64> },
    /// It is not to be had.
    Gone,
}

/// A machine that was to be left, and by the provider's word stands still: there is nothing to take
/// along, so it is lost like any other. Asked only where no session says that it lives.
pub async fn note(run: &Run, loss: &mut Loss) -> Result<(), StepError> {
    let Some(key) = loss.instance_key.as_deref().filter(|_| !loss.dead) else {
        return Ok(());
    };
    let row = run.app.store.instance(key).await?;
    let Some(row) = row.filter(|_| run.app.sessions.get(key).is_none()) else {
        return Ok(());
    };
    let seen = asked(run, &row).await?;
    loss.dead = seen.is_some_and(|i| i.status.stands_still());
    Ok(())
}

/// The lost machine, where it only stands still.
pub struct Halted {
    row: InstanceRow,
    cause: LossCause,
    seen: Option<ProviderInstance>,
}

/// Whether the machine that was lost only stands still, by the provider's word. A provider that takes long
/// does not hold up the search for another.
pub async fn look(run: &Run, state: &Placement) -> Result<Option<Halted>, StepError> {
    let Some((loss, row)) = lost(run, state).await? else {
        return Ok(None);
    };
    let gone = [Cause::ProviderSaysOffline, Cause::ProviderSaysGone];
    if gone.iter().any(|said| said.as_str() == loss.trigger) {
        // The provider was asked a moment ago, and a second question would have to wait.
        return Ok(None);
    }
    if matches!(state.remedy, Some(Remedy::Bid(_))) {
        let (cause, seen) = (LossCause::Outbid, None);
        return Ok(Some(Halted { row, cause, seen }));
    }
    let seen = timeout(ANSWER, asked(run, &row)).await.unwrap_or(Ok(None))?;
    let cause = cause(state, &loss, seen.as_ref());
    Ok(cause.map(|cause| Halted { row, cause, seen }))
}

/// Starts it.
pub async fn start(run: &mut Run, state: &mut Placement, standing: Halted) -> Result<Started, StepError> {
    let Halted { row, cause, seen } = standing;
    if matches!(state.remedy, Some(Remedy::Bid(_))) {
        return Ok(Started::Outbid { wins: None });
    }
    note_cause(state, cause);
    let wins = seen.as_ref().and_then(|i| i.min_bid);
    let is_outbid = |i: &ProviderInstance| i.status == InstanceStatus::Outbid;
    let unless_back = match cause == LossCause::Outbid || seen.as_ref().is_some_and(is_outbid) {
        true => Started::Outbid { wins },
        false => Started::Gone,
    };
    if cause == LossCause::Outbid && wins > row.offer.bid {
        // Said by the provider: no start at our bid would help.
        stands_still(run, &row, seen.as_ref()).await?;
        run.keep(state);
        return Ok(unless_back);
    }
    remember(run, state, Remedy::Start).await?;
    let Some(link) = started(run, &row, seen.as_ref(), cause).await? else {
        return Ok(unless_back);
    };
    if cause == LossCause::Outbid {
        // The same bid has it: nobody's was higher.
        note_cause(state, LossCause::UserStop);
    }
    take(run, state, &row, link).await?;
    Ok(Started::Back)
}

/// Why it stands still, by the provider's word; `None` where it does not, as far as that says.
fn cause(state: &Placement, loss: &Loss, seen: Option<&ProviderInstance>) -> Option<LossCause> {
    if loss.trigger == ABANDONED {
        return Some(LossCause::Abandoned);
    }
    if state.remedy == Some(Remedy::Start) {
        // It was started before a crash, and says something else by now.
        return loss.cause;
    }
    match seen?.status {
        InstanceStatus::Stopped => Some(LossCause::UserStop),
        // A person's stop looks the same, until a start at the same bid is taken.
        InstanceStatus::Outbid => Some(LossCause::Outbid),
        _ => None,
    }
}

/// Raises the bid for a machine that a higher one took, if that is better than what the best other
/// one costs `elsewhere`. Whether it is ours again.
pub async fn outbid(
    run: &mut Run,
    state: &mut Placement,
    wins: Option<f64>,
    elsewhere: Option<f64>,
) -> Result<bool, StepError> {
    let Some((_, row)) = lost(run, state).await? else {
        return Ok(false);
    };
    let offer = match state.remedy {
        Some(Remedy::Bid(bid)) => Some(at_bid(&row, bid)),
        _ => worth_it(run, &row, wins, elsewhere).await?,
    };
    let Some(offer) = offer else {
        return Ok(false);
    };
    let bid = offer.bid.unwrap_or_default();
    remember(run, state, Remedy::Bid(bid)).await?;
    run.say(format!("raising the bid for {} to ${bid:.4}/h", offer.machine))
        .await;
    // From here on it may cost that, whatever becomes of us.
    run.app
        .store
        .set_instance_offer(&row.key, &offer, run.app.now())
        .await?;
    let row = InstanceRow { offer, ..row };
    let provider = &run.market(&row.machine.provider)?.provider;
    let id = row.instance_id.as_deref().unwrap_or_default();
    let back = match provider.raise_bid(id, bid).await {
        Ok(()) => waited(run, &row, PATIENCE, PATIENCE).await,
        Err(error) => {
            run.say(format!("the bid could not be raised: {error}")).await;
            None
        }
    };
    match back {
        Some(link) => {
            take(run, state, &row, link).await?;
            Ok(true)
        }
        None => {
            let seen = asked(run, &row).await?;
            stands_still(run, &row, seen.as_ref()).await?;
            Ok(false)
        }
    }
}

/// The machine that was lost and that nothing has replaced yet; none where a person asked for a
/// snapshot, which its files are not.
async fn lost(run: &Run, state: &Placement) -> Result<Option<(Loss, InstanceRow)>, StepError> {
    let open = state.winner.is_none() && state.snapshot_id.is_none();
    let Some(loss) = state.loss.clone().filter(|l| l.dead && open) else {
        return Ok(None);
    };
    let row = match &loss.instance_key {
        Some(key) => run.app.store.instance(key).await?,
        None => None,
    };
    let row = row.filter(|r| r.state == InstanceState::Owned && r.instance_id.is_some());
    Ok(row.map(|row| (loss, row)))
}

/// What the provider says of it; nothing where it does not answer.
async fn asked(run: &Run, row: &InstanceRow) -> Result<Option<ProviderInstance>, StepError> {
    let id = row.instance_id.as_deref().unwrap_or_default();
    let answer = run.market(&row.machine.provider)?.provider.get(id).await;
    Ok(answer.ok().flatten())
}

fn note_cause(state: &mut Placement, cause: LossCause) {
    if let Some(loss) = &mut state.loss {
        loss.cause = Some(cause);
    }
}

/// Keeps what is about to be done, for whoever goes on after a crash.
async fn remember(run: &mut Run, state: &mut Placement, remedy: Remedy) -> Result<(), StepError> {
    state.remedy = Some(remedy);
    run.keep(state);
    let (store, now) = (&run.app.store, run.app.now());
    store
        .save_workflow_state(&run.id, run.fence, Step::Search, &run.state, now)
        .await?;
    Ok(())
}

/// Its disk alone is paid for, if the provider says that it stands still.
async fn stands_still(
    run: &Run,
    row: &InstanceRow,
    seen: Option<&ProviderInstance>,
) -> Result<(), StepError> {
    let now = run.app.now();
    if let Some(price) = seen.filter(|i| i.status.stands_still()).and_then(|i| i.storage) {
        run.app.store.set_instance_price(&row.key, price, now).await?;
    }
    Ok(())
}

async fn started(
    run: &Run,
    row: &InstanceRow,
    seen: Option<&ProviderInstance>,
    cause: LossCause,
) -> Result<Option<Link>, StepError> {
    run.say(format!("starting {} again", row.offer.machine)).await;
    let provider = &run.market(&row.machine.provider)?.provider;
    let id = row.instance_id.as_deref().unwrap_or_default();
    // From here on it may cost that, whatever becomes of us.
    let (store, now) = (&run.app.store, run.app.now());
    store.set_instance_price(&row.key, row.offer.price, now).await?;
    if let Err(error) = provider.start(id).await {
        let taken = error.class == ErrorClass::OfferGone;
        let why = match taken {
            true => "its GPUs are somebody else's by now".to_owned(),
            false => error.to_string(),
        };
        run.say(format!("{} cannot be started: {why}", row.offer.machine))
            .await;
        if taken {
            stands_still(run, row, seen).await?;
        }
        return Ok(None);
    }
    let (effect, patience) = match cause {
        LossCause::Abandoned => (LONG, LONG),
        _ => (EFFECT, PATIENCE),
    };
    let back = waited(run, row, effect, patience).await;
    if back.is_none() {
        stands_still(run, row, asked(run, row).await?.as_ref()).await?;
    }
    Ok(back)
}

fn at_bid(row: &InstanceRow, bid: f64) -> Offer {
    Offer {
        bid: Some(bid),
        price: bid + storage(row),
        ..row.offer.clone()
    }
}

fn storage(row: &InstanceRow) -> f64 {
    (row.offer.price - row.offer.bid.unwrap_or_default()).max(0.0)
}

/// The machine at the price at which it is worth having back.
async fn worth_it(
    run: &Run,
    row: &InstanceRow,
    wins: Option<f64>,
    elsewhere: Option<f64>,
) -> Result<Option<Offer>, StepError> {
    let Some(bid) = row.offer.bid else {
        return Ok(None);
    };
    let spec = &run.workspace.spec;
    let allowed = Allowed {
        fixed: spec.interruptible.and_then(|i| i.bid),
        max_price: spec.max_price,
    };
    let raised = raise(bid, wins.unwrap_or(bid), storage(row), elsewhere, &allowed);
    let Some(offer) = raised.map(|bid| at_bid(row, bid)) else {
        let line = format!(
            "a higher bid took {}; moving is the better way",
            row.offer.machine
        );
        run.say(line).await;
        return Ok(None);
    };
    let spent = run.app.store.spent(run.app.now()).await?;
    let now = run.app.store.instance(&row.key).await?.map_or(0.0, |r| r.price);
    // What it costs already is in the sum.
    if let Err(over) = run.app.config.caps.allow(&spent, offer.price - now) {
        run.say(format!("the bid is not raised: {over}")).await;
        return Ok(None);
    }
    Ok(Some(offer))
}

/// The machine, if it is back in time.
async fn waited(run: &Run, row: &InstanceRow, effect: Duration, patience: Duration) -> Option<Link> {
    let machine = &row.offer.machine;
    let why = match timeout(patience, back(run, row, effect)).await {
        Ok(Ok(link)) => return Some(link),
        Ok(Err(why)) => format!("{machine} does not come back: {why}"),
        Err(_) => format!("{machine} is not back after {} s", patience.as_secs()),
    };
    run.say(why).await;
    None
}

/// Waits until it runs again and our agent answers from inside.
async fn back(run: &Run, row: &InstanceRow, effect: Duration) -> Result<Link, String> {
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
    let begun = Instant::now();
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
            Err(not_yet) if not_yet.is_stopped() && begun.elapsed() < effect => sleep(AGAIN).await,
            Err(why) => return Err(why.message),
        }
    }
}

/// It is the workspace's machine again. Its loss is written down first: later it is over.
async fn take(run: &mut Run, state: &mut Placement, row: &InstanceRow, link: Link) -> Result<(), StepError> {
    let app = run.app.clone();
    if let Some(loss) = &state.loss {
        history::lost(&app, loss).await;
    }
    let now = app.now();
    app.store
        .set_instance_endpoint(&row.key, &link.reached_at(), now)
        .await?;
    app.store.set_instance_back(&row.key, now).await?;
    let link = Arc::new(link);
    app.sessions.put(&row.key, link.clone());
    run.link = Some(link);
    run.say(format!("{} is back, its disk as it was", row.offer.machine))
        .await;
    state.winner = Some(row.key.clone());
    run.keep(state);
    Ok(())
}
