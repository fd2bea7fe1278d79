//! `/machines/history`: what machines did, and which are not to be used.
//!
//! Whatever names a machine is checked here before anything is read or written: the provider
//! must be one that this server knows, lest a typo becomes an entry that never blocks.

pub mod attempts;
pub mod blacklist;
pub mod export;
pub mod import;
pub mod machines;
pub mod summary;

use super::error::{ApiError, ApiResult};
use super::params::limit;
use crate::app::App;
use axum::http::StatusCode;
use dumont_core::id::MachineRef;
use dumont_core::spec::Providers;
use dumont_core::time::Timestamp;
use dumont_store::Page as Rows;
use dumont_wire::rest::{Page, PageQuery};
use std::time::Duration;

/// The longest that a block or a period may be: ten years.
const LONGEST: Duration = Duration::from_secs(3_650 * 86_400);
/// Longest reason or message a client may send, in characters.
const TEXT: usize = 1_000;

/// A machine of a provider that this server knows.
fn machine(provider: &str, machine_id: &str) -> ApiResult<MachineRef> {
    let machine = MachineRef::new(provider, machine_id)?;
    known(provider)?;
    Ok(machine)
}

fn known(provider: &str) -> ApiResult<()> {
    // What was learnt of a provider's machines stays known without an account there.
    if Providers::of(provider).is_some() {
        return Ok(());
    }
    let given: String = provider.chars().take(80).collect();
    Err(ApiError::new(
        StatusCode::BAD_REQUEST,
        "unknown_provider",
        format!("{given:?} is not a provider of this server"),
        "use one of: ssh, vast",
    ))
}

/// A provider given as a filter.
fn provider(given: Option<&String>) -> ApiResult<Option<String>> {
    given.map(|p| known(p).map(|()| p.clone())).transpose()
}

/// `48h`, `7d`, `90m`: more than nothing, at most ten years.
fn duration(what: &str, text: &str) -> ApiResult<Duration> {
    let refused = |why: String| {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            "invalid_duration",
            format!("{what}: {why}"),
            "write a number and a unit, e.g. 90m, 48h or 7d",
        )
    };
    let shown: String = text.chars().take(80).collect();
    match humantime::parse_duration(text) {
        Err(_) => Err(refused(format!("{shown:?} is not a duration"))),
        Ok(Duration::ZERO) => Err(refused("it must be more than nothing".into())),
        Ok(d) if d > LONGEST => Err(refused(format!("{shown:?} is over ten years"))),
        Ok(d) => Ok(d),
    }
}

/// Where a period that ends now begins.
fn since(app: &App, period: Option<&String>) -> ApiResult<Option<Timestamp>> {
    let now = app.now();
    period
        .map(|text| duration("period", text).map(|d| now.minus(d)))
        .transpose()
}

/// A text of a client's: not empty, bounded, and one line of printable characters, since it
/// ends in terminals, logs and pages.
fn text(what: &str, given: &str) -> ApiResult<String> {
    let clean: String = given.trim().chars().filter(|c| !c.is_control()).collect();
    match clean.chars().count() {
        0 => Err(ApiError::invalid(
            format!("{what} is empty"),
            format!("say the {what} in a few words"),
        )),
        n if n > TEXT => Err(ApiError::invalid(
            format!("{what} has {n} characters"),
            format!("keep it under {TEXT}"),
        )),
        _ => Ok(clean),
    }
}

/// The place a page begins at.
fn after<T: std::str::FromStr>(given: Option<&String>) -> ApiResult<Option<T>> {
    let refused = |text: &String| {
        ApiError::invalid(
            format!(
                "after={:?} is not a place in this list",
                text.chars().take(80).collect::<String>()
            ),
            "pass `next` of the page before, unchanged",
        )
    };
    given.map(|t| t.parse().map_err(|_| refused(t))).transpose()
}

/// What every list of the history is filtered and paged by, checked.
struct Listed<C> {
    provider: Option<String>,
    since: Option<Timestamp>,
    after: Option<C>,
    limit: u32,
}

impl<C: std::str::FromStr> Listed<C> {
    fn of(
        app: &App,
        provider_given: Option<&String>,
        period: Option<&String>,
        page: &PageQuery,
    ) -> ApiResult<Self> {
        Ok(Self {
            provider: provider(provider_given)?,
            since: since(app, period)?,
            after: after(page.after.as_ref())?,
            limit: limit(page)?,
        })
    }
}

/// Rows as the API shows them. A page that begins where the list has ended is an error: who
/// asks for it has lost its place.
fn page<R, T>(rows: Rows<R>, asked_after: bool, shown: impl Fn(R) -> T) -> ApiResult<Page<T>> {
    if rows.items.is_empty() && asked_after {
        return Err(ApiError::new(
            StatusCode::NOT_FOUND,
            "page_past_end",
            "the list has no page there",
            "begin again without after=; the last page has no `next`",
        ));
    }
    Ok(Page {
        items: rows.items.into_iter().map(shown).collect(),
        next: rows.next,
    })
}
