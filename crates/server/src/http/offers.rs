//! `/instances/offers`: what can be rented now, beside what we know of each machine.
//!
//! The provider is asked live and answers at most some dozens, so filters, order and pages are
//! made here, of one answer. What is known of the machines comes in two queries, however many
//! offers there are; the boot curves that predict when one is ready are those fitted last. A page
//! is found again by the last offer shown; the market moves in between, and an offer that is gone
//! is said to be gone instead of a page being skipped in silence.

use super::error::{ApiError, ApiResult};
use super::params::{Params, limit};
use crate::app::App;
use crate::history::recent_curves;
use crate::providers::{OfferQuery, ProviderError, Verified, own};
use crate::workflows::search::{NO_VAST, provider_words};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use dumont_core::blacklist::CudaVersion;
use dumont_core::boot::{BootCurves, Speed, Stratum};
use dumont_core::id::MachineRef;
use dumont_core::level::Level;
use dumont_core::offer::Offer;
use dumont_core::reliability::FLEET_MEAN;
use dumont_core::spec::Providers;
use dumont_core::time::Timestamp;
use dumont_store::{MachineRow, Standings};
use dumont_wire::offers::{self as wire, OfferOrder, OfferPage, OfferVerified};
use dumont_wire::rest::{ErrorBody, PageQuery};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// As a workspace's specification has it.
const DEFAULT_DISK_GB: u32 = 20;

/// What can be rented now, the most reliable machines first.
#[utoipa::path(
    get,
    path = "/instances/offers",
    tag = "offers",
    params(wire::OfferQuery),
    responses(
        (status = 200, description = "One page", body = OfferPage),
        (status = 409, description = "The offer that `after` names is gone, or the server has no account with the provider", body = ErrorBody),
        (status = 502, description = "The provider refuses or does not answer", body = ErrorBody),
    ),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    Params(query): Params<wire::OfferQuery>,
) -> ApiResult<Json<OfferPage>> {
    let wanted = checked(&query)?;
    let page = PageQuery {
        limit: query.limit,
        after: query.after.clone(),
    };
    let most = limit(&page)? as usize;
    let found = app.search(among(&app, &query)?, &wanted).await;
    match found.failed.first() {
        // What others offer is worth showing.
        Some((provider, error)) if found.offers.is_empty() => return Err(provider_failed(provider, error)),
        Some((provider, error)) => tracing::warn!(provider, %error, "offers are shown without its own"),
        None => {}
    }
    let now = app.now();
    let curves = recent_curves(&app).await?;
    let mut by_provider: BTreeMap<String, Vec<Offer>> = BTreeMap::new();
    for offer in found.offers {
        by_provider
            .entry(offer.machine.provider.clone())
            .or_default()
            .push(offer);
    }
    let mut offers = Vec::new();
    for (provider, found) in &by_provider {
        let standings = app.store.standings(provider, found, now).await?;
        let known = Known::of(found, &standings, query.cuda, &curves, now);
        offers.extend(found.iter().map(|offer| annotated(offer, &known)));
    }
    Ok(Json(cut(arranged(offers, &query), most, page.after.as_deref())?))
}

/// Whose offers are meant; a machine says it by itself.
fn among(app: &App, query: &wire::OfferQuery) -> ApiResult<Providers> {
    let machine: Option<MachineRef> = query.machine.as_deref().map(str::parse).transpose()?;
    let among = match &machine {
        Some(machine) => Providers::of(&machine.provider).ok_or_else(|| no_provider(machine))?,
        None => query.provider.unwrap_or_default(),
    };
    known(app, among).map(|()| among)
}

/// Refuses what this server has no account for.
pub fn known(app: &App, among: Providers) -> ApiResult<()> {
    if app.knows(among) {
        return Ok(());
    }
    let (code, message, hint) = NO_VAST;
    Err(ApiError::conflict(code, message, hint))
}

pub fn no_provider(machine: &MachineRef) -> ApiError {
    ApiError::invalid(
        format!("{:?} is not a provider of this server", machine.provider),
        "write the machine as vast:12345 or ssh:NAME",
    )
}

/// The provider's query, with every number and name checked.
fn checked(query: &wire::OfferQuery) -> ApiResult<OfferQuery> {
    let number = |name: &str, value: Option<f64>| match value {
        Some(n) if !n.is_finite() || n < 0.0 => Err(ApiError::invalid(
            format!("{name}={n} is not a number of 0 or more"),
            format!("leave {name} out, or give a plain number like 24"),
        )),
        fine => Ok(fine),
    };
    let name = |what: &str, value: &Option<String>| match value.as_deref().map(str::trim) {
        Some(text) if text.is_empty() || text.len() > 100 || text.chars().any(char::is_control) => {
            Err(ApiError::invalid(
                format!("{what} is empty, over 100 bytes, or holds control characters"),
                format!("leave {what} out, or write it as the marketplace does"),
            ))
        }
        text => Ok(text.map(str::to_owned)),
    };
    let within = |what: &str, n: u32, most: u32| match n {
        0 => Err(ApiError::invalid(
            format!("{what}=0 finds nothing"),
            format!("give 1 to {most}"),
        )),
        n if n > most => Err(ApiError::invalid(
            format!("{what}={n} is over {most}"),
            format!("give 1 to {most}"),
        )),
        n => Ok(n),
    };
    let price = number("max_price", query.max_price)?;
    if price == Some(0.0) {
        return Err(ApiError::invalid(
            "max_price=0 finds nothing",
            "give dollars per hour, e.g. 0.50",
        ));
    }
    let machine: Option<MachineRef> = query.machine.as_deref().map(str::parse).transpose()?;
    if let Some(machine) = machine.as_ref().filter(|m| Providers::of(&m.provider).is_none()) {
        return Err(no_provider(machine));
    }
    Ok(OfferQuery {
        gpu_name: name("gpu", &query.gpu)?,
        gpu_count: within("gpu_count", query.gpu_count.unwrap_or(1), 16)?,
        min_gpu_ram_mb: number("min_ram_gb", query.min_ram_gb)?.map(|gb| (gb * 1000.0) as u64),
        max_price: price,
        disk_gb: within("disk_gb", query.disk_gb.unwrap_or(DEFAULT_DISK_GB), 16_384)?,
        machine_id: machine.map(|m| m.machine_id),
        region: name("region", &query.region)?,
        min_inet_down_mbps: number("min_down_mbps", query.min_down_mbps)?,
        min_inet_up_mbps: number("min_up_mbps", query.min_up_mbps)?,
        // As the provider writes it: 12.8 is a number there, and 12.10 is not 12.1 to anyone.
        min_cuda: query.cuda.and_then(|v| v.to_string().parse().ok()),
        verified: match query.verified {
            None => Verified::AsConfigured,
            Some(OfferVerified::Any) => Verified::Any,
            Some(which) => Verified::Only(which == OfferVerified::True),
        },
        datacenter: query.datacenter,
        interruptible: None,
    })
}

fn provider_failed(provider: &str, error: &ProviderError) -> ApiError {
    let (code, hint) = provider_words(provider, error);
    ApiError::new(StatusCode::BAD_GATEWAY, code, error.to_string(), hint)
}

/// What we know of the machines on offer, by machine id.
#[derive(Default)]
struct Known<'a> {
    machines: HashMap<&'a str, &'a MachineRow>,
    /// Why one is blocked for the CUDA version that was asked for.
    scoped: HashMap<&'a str, &'a str>,
    /// What the ranking goes by, read now.
    scores: HashMap<&'a str, f64>,
    /// Mean seconds to ready by download speed, without the image: nobody has said which.
    ready: [f64; Speed::ALL.len()],
}

/// Nothing is pulled on a machine of one's own.
fn pulls_nothing(offers: &[Offer]) -> bool {
    offers.iter().all(|o| o.machine.provider == own::NAME)
}

impl<'a> Known<'a> {
    fn of(
        offers: &'a [Offer],
        standings: &'a Standings,
        cuda: Option<CudaVersion>,
        curves: &BootCurves,
        now: Timestamp,
    ) -> Self {
        let mut known = Self::default();
        let warm = pulls_nothing(offers);
        for speed in Speed::ALL {
            let stratum = Stratum { speed: *speed, warm };
            known.ready[*speed as usize] = curves.curve(stratum).mean();
        }
        for offer in offers {
            let id = offer.machine.machine_id.as_str();
            let score = standings.posterior(offer, now).score();
            if known.scores.insert(id, score).is_some() {
                continue;
            }
            if let Some(row) = standings.machine(&offer.machine) {
                known.machines.insert(id, row);
            }
            // Only a search that says what it needs can be in the way of such a block.
            let scoped = standings.blocks(&offer.machine).iter();
            let mut scoped = scoped.filter(|b| b.entry().1.is_some_and(|s| s.covers(cuda)));
            if let Some(block) = scoped.next() {
                known.scoped.insert(id, &block.reason);
            }
        }
        known
    }
}

fn annotated(offer: &Offer, known: &Known<'_>) -> wire::Offer {
    let id = offer.machine.machine_id.as_str();
    let row = known.machines.get(id);
    let stats = row.map(|r| r.stats).unwrap_or_default();
    let block = row
        .and_then(|r| r.block.as_ref().map(|b| b.reason.as_str()))
        .or_else(|| known.scoped.get(id).copied());
    wire::Offer {
        id: offer.offer_id.as_str().into(),
        provider: offer.machine.provider.clone(),
        machine_id: offer.machine.machine_id.clone(),
        host_id: offer.host_id.clone(),
        gpu_name: offer.gpu_name.clone(),
        num_gpus: offer.gpu_count,
        gpu_ram: offer.gpu_ram_mb,
        dph_total: offer.price,
        disk_space: offer.disk_gb,
        geolocation: offer.region.clone(),
        inet_down: offer.inet_down_mbps,
        inet_up: offer.inet_up_mbps,
        cuda_max_good: offer.cuda_max,
        driver_version: offer.driver_version.clone(),
        verified: offer.verified,
        datacenter: offer.datacenter,
        reliability: offer.provider_reliability,
        is_blacklisted: block.is_some(),
        blacklist_reason: block.map(str::to_owned),
        success_rate: stats.success_rate(),
        total_attempts: stats.total,
        successful_attempts: stats.successful,
        failed_attempts: stats.failed,
        reliability_status: Level::of(stats.success_rate(), block.is_some()).to_string(),
        reliability_score: known.scores.get(id).copied().unwrap_or(FLEET_MEAN),
        predicted_ready_seconds: known.ready[Stratum::of(offer.inet_down_mbps, false).speed as usize],
    }
}

/// Hides, orders, and shows each machine once with the offer that comes first.
fn arranged(mut offers: Vec<wire::Offer>, query: &wire::OfferQuery) -> OfferPage {
    let found = offers.len() as u64;
    let mut blacklisted_hidden = 0;
    if !query.include_blacklisted.unwrap_or(false) {
        let hidden: BTreeSet<&String> = offers
            .iter()
            .filter(|o| o.is_blacklisted)
            .map(|o| &o.machine_id)
            .collect();
        blacklisted_hidden = hidden.len() as u64;
        offers.retain(|o| !o.is_blacklisted);
    }
    offers.sort_by(|a, b| order(query.order.unwrap_or_default(), a, b));
    if !query.all_offers.unwrap_or(false) {
        let mut seen = HashSet::new();
        let first = |o: &wire::Offer| seen.insert((o.provider.clone(), o.machine_id.clone()));
        offers.retain(first);
    }
    OfferPage {
        items: offers,
        next: None,
        found,
        blacklisted_hidden,
    }
}

/// The order that was asked for, then the ranking's own. A blocked machine is never first.
fn order(by: OfferOrder, a: &wire::Offer, b: &wire::Offer) -> Ordering {
    let score = || b.reliability_score.total_cmp(&a.reliability_score);
    let price = || a.dph_total.total_cmp(&b.dph_total);
    let asked = match by {
        OfferOrder::Score => a.is_blacklisted.cmp(&b.is_blacklisted).then_with(score),
        OfferOrder::Price => price(),
        OfferOrder::Ready => a.predicted_ready_seconds.total_cmp(&b.predicted_ready_seconds),
    };
    asked
        .then_with(score)
        .then_with(|| b.reliability.total_cmp(&a.reliability))
        .then_with(price)
        .then_with(|| a.machine_id.cmp(&b.machine_id))
        .then_with(|| a.id.to_string().cmp(&b.id.to_string()))
}

/// One page of it, after the offer that `after` names.
fn cut(mut page: OfferPage, most: usize, after: Option<&str>) -> ApiResult<OfferPage> {
    if let Some(after) = after {
        let at = page
            .items
            .iter()
            .position(|o| o.id.to_string() == after)
            .ok_or_else(|| {
                ApiError::conflict(
                    "offers_changed",
                    format!(
                        "the offer {:?} is not on the market any more",
                        after.chars().take(80).collect::<String>()
                    ),
                    "the market moved: start again without after=",
                )
            })?;
        page.items.drain(..=at);
    }
    if page.items.len() > most {
        page.items.truncate(most);
        page.next = page.items.last().map(|o| o.id.to_string());
    }
    Ok(page)
}

#[cfg(test)]
#[path = "offers_tests.rs"]
mod tests;
