//! `/machines/history/summary`: the whole history in a few numbers.

use super::machines::reason;
use super::{provider, since};
use crate::app::App;
use crate::http::error::ApiResult;
use crate::http::params::Params;
use axum::Json;
use axum::extract::State;
use dumont_core::blacklist::BlacklistType;
use dumont_core::history::Level;
use dumont_wire::history::{HistorySummary, LevelCounts, SummaryQuery, TypeCounts};
use std::sync::Arc;

/// Machines per level, attempts, rate, entries in force, top reasons.
#[utoipa::path(
    get,
    path = "/machines/history/summary",
    tag = "history",
    params(SummaryQuery),
    responses((status = 200, description = "The numbers", body = HistorySummary)),
)]
pub async fn summary(
    State(app): State<Arc<App>>,
    Params(query): Params<SummaryQuery>,
) -> ApiResult<Json<HistorySummary>> {
    let provider = provider(query.provider.as_ref())?;
    let from = since(&app, query.period.as_ref())?;
    let s = app
        .store
        .history_summary(provider.as_deref(), from, app.now())
        .await?;
    let level = |l: Level| s.levels.get(&l).copied().unwrap_or(0);
    let block = |t: BlacklistType| s.blocks.get(&t).copied().unwrap_or(0);
    let counted = s.successful + s.failed;
    Ok(Json(HistorySummary {
        machines: LevelCounts {
            excellent: level(Level::Excellent),
            good: level(Level::Good),
            fair: level(Level::Fair),
            poor: level(Level::Poor),
            blacklisted: level(Level::Blacklisted),
            unknown: level(Level::Unknown),
        },
        total_machines: s.levels.values().sum(),
        total_attempts: counted + s.uncounted,
        successful_attempts: s.successful,
        failed_attempts: s.failed,
        uncounted_attempts: s.uncounted,
        success_rate: (counted > 0).then(|| s.successful as f64 / counted as f64),
        blacklist: TypeCounts {
            automatic: block(BlacklistType::Automatic),
            manual: block(BlacklistType::Manual),
            temporary: block(BlacklistType::Temporary),
        },
        top_reasons: s.reasons.into_iter().map(reason).collect(),
    }))
}
