//! Search: offers, less the blacklisted, best first.

use super::state::Placement;
use super::{Flow, Run, StepError, StepResult, named};
use crate::providers::{ErrorClass, OfferQuery, ProviderError};
use dumont_core::id::MachineRef;
use dumont_core::offer::Offer;
use dumont_core::rank::{Standing, rank};
use dumont_store::MachineRow;
use std::time::Duration;
use tokio::time::sleep;

/// Offers kept: more than a race may ever rent.
const KEPT: usize = 40;
/// Tries when the provider itself fails, with doubling pauses.
const TRIES: u32 = 6;

pub async fn run(run: &mut Run) -> StepResult {
    let mut state: Placement = run.load();
    if let Some(machine) = state.machine.clone() {
        return named::run(run, state, &machine).await;
    }
    let offers = ask(run, None).await?;
    let found = offers.len();
    let machines: Vec<&str> = offers.iter().map(|o| o.machine.machine_id.as_str()).collect();
    let known = run.app.store.standings("vast", &machines, run.app.now()).await?;
    let ranking = rank(offers, |machine| {
        known
            .get(&machine.machine_id)
            .map_or_else(Standing::default, MachineRow::standing)
    });
    let lost = state.loss.as_ref().and_then(|l| l.machine_id.clone());
    let usable: Vec<Offer> = ranking
        .offers
        .into_iter()
        .map(|r| r.offer)
        .filter(|o| Some(&o.machine.machine_id) != lost.as_ref())
        .take(KEPT)
        .collect();
    if usable.is_empty() {
        return Err(StepError::failed(
            "no_offers",
            format!(
                "no offer fits: {found} found, {} of their machines blacklisted",
                ranking.blacklisted.len()
            ),
            "raise the price, take another GPU (names as the marketplace writes them, e.g. \"RTX 4090\") or less disk, or try again in a minute; `dumont machines` shows the blacklist",
        ));
    }
    run.say(format!(
        "{found} offers, {} machines to choose from, {} blacklisted",
        usable.len(),
        ranking.blacklisted.len()
    ))
    .await;
    state.offers = usable;
    run.keep(&state);
    Ok(Flow::Next)
}

pub(super) async fn ask(run: &Run, machine: Option<&MachineRef>) -> Result<Vec<Offer>, StepError> {
    let spec = &run.workspace.spec;
    let query = OfferQuery {
        gpu_name: spec.gpu.name.clone(),
        gpu_count: spec.gpu.count,
        min_gpu_ram_mb: spec.gpu.min_ram_gb.map(|gb| (gb * 1000.0) as u64),
        max_price: spec.max_price,
        disk_gb: spec.disk_gb,
        machine_id: machine.map(|m| m.machine_id.clone()),
        ..OfferQuery::default()
    };
    let market = run.market("vast")?;
    let mut pause = Duration::from_millis(500);
    for attempt in 1.. {
        match market.provider.search(&query).await {
            Ok(offers) => return Ok(offers),
            Err(e) if attempt == TRIES || !passing(&e) => return Err(provider_failure(&e)),
            Err(e) => {
                run.say(format!("the search failed, trying again: {e}")).await;
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
pub fn provider_failure(error: &ProviderError) -> StepError {
    let (code, hint) = provider_words(error);
    StepError::failed(code, error.to_string(), hint)
}

/// The code and the next step of a provider error.
pub fn provider_words(error: &ProviderError) -> (&'static str, &'static str) {
    match error.class {
        ErrorClass::Auth => (
            "provider_auth",
            "set VAST_API_KEY to a key of your account and start the server again",
        ),
        ErrorClass::Credit => (
            "no_credit",
            "add credit to the provider's account, then try again",
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
