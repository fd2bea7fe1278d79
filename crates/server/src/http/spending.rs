//! `/spending`: what rented machines have cost, next to the caps.

use super::error::ApiResult;
use crate::app::App;
use axum::Json;
use axum::extract::State;
use dumont_store::SpentBy;
use dumont_wire::rest::{Spending, WorkspaceSpending};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Workspaces named at most.
const NAMED: usize = 500;

/// What was spent today and this month, by workspace, and the caps. Computed from the machines'
/// prices and times; the provider's own bill adds traffic.
#[utoipa::path(
    get,
    path = "/spending",
    tag = "instances",
    responses((status = 200, description = "The sums of now", body = Spending)),
)]
pub async fn show(State(app): State<Arc<App>>) -> ApiResult<Json<Spending>> {
    let rows = app.store.spending(app.now()).await?;
    let total = SpentBy::total(&rows);
    Ok(Json(Spending {
        today: total.today,
        this_month: total.this_month,
        per_hour: total.per_hour,
        cap_per_day: app.config.caps.per_day,
        cap_per_month: app.config.caps.per_month,
        orphans: app.orphans.load(Relaxed),
        workspaces: rows
            .into_iter()
            .take(NAMED)
            .map(|r| WorkspaceSpending {
                workspace: r.workspace,
                today: r.today,
                this_month: r.this_month,
                per_hour: r.per_hour,
            })
            .collect(),
    }))
}
