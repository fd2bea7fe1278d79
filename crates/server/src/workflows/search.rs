//! Search: offers, less the blacklisted, best first.
//!
//! Best is who is expected to be up soon: the score of the machine's history times the boot
//! curve of machines like it. Where blocks would leave less than a race needs, `core` lets some
//! in, and the workflow's log says so.

use super::regain::{self, Halted, Started};
use super::state::Placement;
use super::{Flow, Run, StepError, StepResult, named};
use crate::history::{self, Expected};
use crate::providers::{ErrorClass, OfferQuery, ProviderError, own};
use dumont_core::blacklist::{Bar, Selection, select};
use dumont_core::boot::Stratum;
use dumont_core::history::{Level, Stats};
use dumont_core::id::MachineRef;
use dumont_core::offer::Offer;
use dumont_core::rank::{Standing, rank};
use dumont_core::spec::Providers;
use dumont_core::time::Timestamp;
use dumont_core::workflow::Step;
use dumont_store::Block;
use futures::future::{Either, select as either};
use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;
use tokio::time::sleep;

/// Offers kept: more than a race may ever rent.
const KEPT: usize = 40;
/// Machines that must be left to choose from where no width was asked for.
const RACE: usize = 3;
/// Tries when the provider itself fails, with doubling pauses.
const TRIES: u32 = 6;

/// Where a bid is fixed, that is the likeliest reason.
const BID: &str = "bid more with --bid, or leave it out and the bid is chosen for each machine; else raise the price, or take another GPU or less disk";
/// Where the market has nothing that fits.
const WIDEN: &str = "raise the price, take another GPU (names as the marketplace writes them, e.g. \"RTX 4090\") or less disk, or try again in a minute; `dumont history blacklist list` shows what is blocked";

pub async fn run(run: &mut Run) -> StepResult {
    let mut state: Placement = run.load();
    if let Some(machine) = state.machine.clone() {
        return named::run(run, state, &machine).await;
    }
    state.searched_at = run.app.now();
    let mut started = Started::Gone;
    let mut offers = match lost_or_offers(run, &state).await? {
        Found::Offers(offers) => offers,
        Found::Halted(halted) => {
            started = regain::start(run, &mut state, *halted).await?;
            if matches!(started, Started::Back) {
                return Ok(Flow::Goto(Step::Start));
            }
            // It may have taken a minute.
            state.searched_at = run.app.now();
            ask(run, None).await?
        }
    };
    let found = offers.len();
    offers.retain(|o| Some(&o.machine) != state.lost_machine());
    let candidates = candidates(run, offers).await?;
    let now = run.app.now();
    let bars: Vec<Bar> = candidates.iter().map(|c| c.bar).collect();
    let blocked = bars.iter().filter(|b| b.entry.is_some()).count();
    let width = run.workspace.spec.failover.racers.map_or(RACE, |n| n as usize);
    let selection = select(&bars, run.app.config.blacklist.keep(width), now);
    let elsewhere = selection.usable.first().map(|at| candidates[*at].offer.price);
    if let Started::Outbid { wins } = started
        && regain::outbid(run, &mut state, wins, elsewhere).await?
    {
        return Ok(Flow::Goto(Step::Start));
    }
    if selection.usable.is_empty() {
        let spec = &run.workspace.spec;
        let hint = match spec.provider {
            _ if spec.interruptible.is_some_and(|wish| wish.bid.is_some()) => BID,
            Providers::Ssh => {
                "`dumont machine list` shows which of your machines are free and what they have; add one (`dumont machine add`), or ask for less"
            }
            _ => WIDEN,
        };
        return Err(StepError::failed(
            "no_offers",
            format!("no offer fits: {found} found, {blocked} of their machines blacklisted"),
            hint,
        ));
    }
    run.say(format!(
        "{found} offers, {} machines to choose from, {blocked} blacklisted",
        selection.usable.len().min(KEPT),
    ))
    .await;
    if let Some(line) = below_the_bar(&candidates, &selection, now) {
        run.say(line).await;
    }
    if let Some(best) = selection.usable.first().map(|at| &candidates[*at]) {
        warn_of(run, best).await?;
    }
    let chosen = selection.usable.iter().take(KEPT).map(|at| &candidates[*at]);
    choose(&mut state, chosen);
    run.keep(&state);
    Ok(Flow::Next)
}

/// For a race that has tried all it had: what is offered now beside those, best first. Blocked ones
/// had their chance in the first search.
pub(super) async fn again(
    run: &Run,
    known: impl Fn(&MachineRef) -> bool,
) -> Result<Vec<Candidate>, StepError> {
    let mut offers = ask(run, None).await?;
    offers.retain(|o| !known(&o.machine));
    let mut candidates = candidates(run, offers).await?;
    candidates.retain(|c| c.bar.entry.is_none() && !c.bar.soft);
    candidates.truncate(KEPT);
    Ok(candidates)
}

/// Keeps offers for the race, with what is expected of each.
pub(super) fn choose<'a>(state: &mut Placement, chosen: impl Iterator<Item = &'a Candidate> + Clone) {
    let expected = |c: &Candidate| (c.offer.machine.clone(), c.expected);
    state.expected = chosen.clone().map(expected).collect();
    state.offers = chosen.map(|c| c.offer.clone()).collect();
}

/// One machine to choose, by its best offer.
pub(super) struct Candidate {
    pub offer: Offer,
    pub expected: Expected,
    bar: Bar,
    /// The entry's own words, and the record behind the level.
    reason: Option<String>,
    stats: Stats,
    promise: f64,
}

/// One per machine, best promise first: the time that it is expected to be up soon.
pub(super) async fn candidates(run: &Run, offers: Vec<Offer>) -> Result<Vec<Candidate>, StepError> {
    // Equal promises stand in this order: the provider's own uptime, then the price.
    let ranked = rank(offers, |_| Standing::default()).offers;
    let offers: Vec<Offer> = ranked.into_iter().map(|r| r.offer).collect();
    let mut by_provider: BTreeMap<String, Vec<Offer>> = BTreeMap::new();
    for offer in offers {
        by_provider
            .entry(offer.machine.provider.clone())
            .or_default()
            .push(offer);
    }
    let mut all = Vec::new();
    for (provider, offers) in by_provider {
        all.extend(candidates_of(run, &provider, &offers).await?);
    }
    all.sort_by(|a, b| b.promise.total_cmp(&a.promise));
    Ok(all)
}

async fn candidates_of(run: &Run, provider: &str, offers: &[Offer]) -> Result<Vec<Candidate>, StepError> {
    let (app, now) = (&run.app, run.app.now());
    let ids: Vec<&str> = offers.iter().map(|o| o.machine.machine_id.as_str()).collect();
    let known = app.store.standings(provider, offers, now).await?;
    let image = &run.workspace.spec.image;
    let since = now.minus(history::WARM);
    let warm = app.store.warm_machines(provider, &ids, image, since).await?;
    let curves = history::curves(app).await?;
    // Nothing is pulled on a machine of one's own.
    let bare = provider == own::NAME;
    let one = |offer: &Offer| {
        let posterior = known.posterior(offer, now);
        let blocks = known.blocks(&offer.machine);
        let expected = Expected {
            score: posterior.score(),
            prior_mean: known.prior_mean(offer, now),
            stratum: Stratum::of(
                offer.inet_down_mbps,
                bare || warm.contains(&offer.machine.machine_id),
            ),
        };
        let entry = Bar::entry(blocks.iter().map(Block::entry), run.workspace.spec.gpu.cuda, now);
        Candidate {
            expected,
            bar: Bar {
                soft: posterior.soft_blocked(),
                entry,
            },
            reason: blocks.first().map(|b| b.reason.clone()),
            stats: known.machine(&offer.machine).map(|m| m.stats).unwrap_or_default(),
            promise: expected.odds(&curves).promise(),
            offer: offer.clone(),
        }
    };
    Ok(offers.iter().map(one).collect())
}

/// Which blocks a lack of others passes over.
fn below_the_bar(candidates: &[Candidate], selection: &Selection, now: Timestamp) -> Option<String> {
    if selection.released.is_empty() {
        return None;
    }
    let free = selection.usable.len() - selection.released.len();
    let named = selection.released.iter().take(5).map(|at| {
        let c = &candidates[*at];
        let why = c.reason.as_deref().unwrap_or("a bad record");
        let until = c.bar.entry.and_then(|e| e.expires_at);
        let left = until.map_or_else(String::new, |end| {
            format!(", for {} h more", history::hours_left(end, now))
        });
        format!("{} ({why}{left})", c.offer.machine)
    });
    Some(format!(
        "went below the bar: only {free} machines are free, so blocked ones are tried too: {}",
        named.collect::<Vec<_>>().join(", ")
    ))
}

/// Says so where even the best to choose from is fair or poor, with the numbers and why it failed.
async fn warn_of(run: &Run, best: &Candidate) -> Result<(), StepError> {
    let (stats, machine) = (&best.stats, &best.offer.machine);
    let level = stats.level(false);
    if !matches!(level, Level::Fair | Level::Poor) {
        return Ok(());
    }
    let reasons = run.app.store.failure_reasons(machine).await?;
    let most = reasons.first().and_then(|r| r.reason.as_deref());
    let mostly = most.map_or_else(String::new, |word| format!(", mostly {word}"));
    run.say(format!(
        "the best that is left is {level}: {machine} failed in {} of {} attempts{mostly}",
        stats.failed,
        stats.counted()
    ))
    .await;
    Ok(())
}

enum Found {
    /// The machine that was lost stands still: it is to be had back first.
    Halted(Box<Halted>),
    Offers(Vec<Offer>),
}

/// Looks at what was lost and for something else at once, for most that are lost do not come back.
async fn lost_or_offers(run: &Run, state: &Placement) -> Result<Found, StepError> {
    let (look, search) = (pin!(regain::look(run, state)), pin!(ask(run, None)));
    let (halted, offers) = match either(look, search).await {
        Either::Left((halted, search)) => match halted? {
            None => (None, search.await),
            Some(halted) => return Ok(Found::Halted(Box::new(halted))),
        },
        Either::Right((offers, look)) => (look.await?, offers),
    };
    match halted {
        Some(halted) => Ok(Found::Halted(Box::new(halted))),
        None => offers.map(Found::Offers),
    }
}

pub(super) async fn ask(run: &Run, machine: Option<&MachineRef>) -> Result<Vec<Offer>, StepError> {
    let spec = &run.workspace.spec;
    let query = OfferQuery {
        gpu_name: spec.gpu.name.clone(),
        gpu_count: spec.gpu.count,
        min_gpu_ram_mb: spec.gpu.min_ram_gb.map(|gb| (gb * 1000.0) as u64),
        max_price: spec.max_price,
        interruptible: spec.interruptible,
        disk_gb: spec.disk_gb,
        machine_id: machine.map(|m| m.machine_id.clone()),
        // As the provider writes it: a number.
        min_cuda: spec.gpu.cuda.and_then(|v| v.to_string().parse().ok()),
        ..OfferQuery::default()
    };
    let among = match machine {
        Some(machine) => Providers::of(&machine.provider).unwrap_or(Providers::Any),
        None => spec.provider,
    };
    if !run.app.knows(among) {
        let (code, message, hint) = NO_VAST;
        return Err(StepError::failed(code, message, hint));
    }
    let mut pause = Duration::from_millis(500);
    for attempt in 1.. {
        let found = run.app.search(among, &query).await;
        let again = attempt < TRIES && found.failed.iter().any(|(_, e)| passing(e));
        for (provider, error) in &found.failed {
            let and = if again && found.offers.is_empty() {
                ", trying again"
            } else {
                ""
            };
            run.say(format!("the search at {provider} failed{and}: {error}"))
                .await;
        }
        match found.failed.first() {
            // One that fails does not hold up what others offer.
            _ if !found.offers.is_empty() => return Ok(found.offers),
            None => return Ok(found.offers),
            Some((provider, error)) if !again => return Err(provider_failure(provider, error)),
            Some(_) => {
                sleep(pause).await;
                pause *= 2;
            }
        }
    }
    Err(StepError::failed(
        "internal",
        "the search ended without an answer",
        "try again",
    ))
}

fn passing(error: &ProviderError) -> bool {
    matches!(
        error.class,
        ErrorClass::Transient | ErrorClass::RateLimited { .. } | ErrorClass::Protocol
    )
}

/// A provider error in the API's words.
pub fn provider_failure(provider: &str, error: &ProviderError) -> StepError {
    let (code, hint) = provider_words(provider, error);
    StepError::failed(code, error.to_string(), hint)
}

/// What a server says that was started without a key, asked for what only Vast.ai has.
pub const NO_VAST: (&str, &str, &str) = (
    "provider_not_configured",
    "this server has no key of Vast.ai, and knows only machines of your own",
    "say --provider ssh to use those (`dumont machine add` makes them known), or set VAST_API_KEY and start the server again",
);

/// The code and the next step of a provider error.
pub fn provider_words(provider: &str, error: &ProviderError) -> (&'static str, &'static str) {
    let own = provider == own::NAME;
    match error.class {
        ErrorClass::Auth if own => (
            "provider_auth",
            "put dumont's public key into authorized_keys there; `dumont machine list` shows what each machine answers",
        ),
        _ if own => (
            "provider_failed",
            "`dumont machine list` shows what each of your machines answers",
        ),
        ErrorClass::Auth => (
            "provider_auth",
            "set VAST_API_KEY to a key of your account and start the server again",
        ),
        ErrorClass::Credit => (
            "no_credit",
            "add credit to the provider's account, then try again",
        ),
        ErrorClass::QuotaUsedUp { .. } => (
            "search_quota_used_up",
            "the provider allows so many searches a day; wait until it begins anew, or use another account",
        ),
        ErrorClass::RateLimited { .. } => ("provider_busy", "the account asks too often; wait a minute"),
        ErrorClass::Invalid => (
            "provider_refused",
            "change the workspace's image, disk, ports or environment",
        ),
        _ => (
            "provider_failed",
            "see whether the provider is reachable (VAST_URL), then try again",
        ),
    }
}
