//! `/machines`: every physical machine we have met, and what became of it.

use super::error::ApiResult;
use super::params::{Params, limit};
use crate::app::App;
use axum::Json;
use axum::extract::State;
use dumont_core::id::MachineRef;
use dumont_store::MachineRow;
use dumont_wire::rest::{Machine, Page, PageQuery};
use std::sync::Arc;

/// Physical machines that were tried, with what became of it.
#[utoipa::path(
    get,
    path = "/machines",
    tag = "machines",
    params(PageQuery),
    responses((status = 200, description = "One page", body = Page<Machine>)),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    Params(page): Params<PageQuery>,
) -> ApiResult<Json<Page<Machine>>> {
    let after: Option<MachineRef> = page
        .after
        .as_deref()
        .filter(|a| !a.is_empty())
        .map(str::parse)
        .transpose()?;
    let rows = app
        .store
        .list_machines(after.as_ref(), limit(&page)?, app.now())
        .await?;
    Ok(Json(Page {
        items: rows.items.into_iter().map(shown).collect(),
        next: rows.next,
    }))
}

fn shown(row: MachineRow) -> Machine {
    Machine {
        reliability_status: row.level().as_str().to_owned(),
        machine: row.machine,
        total_attempts: row.stats.total,
        successful_attempts: row.stats.successful,
        failed_attempts: row.stats.failed,
        uncounted_attempts: row.stats.uncounted,
        success_rate: row.stats.success_rate(),
        avg_boot_time: row.stats.avg_boot_time(),
        is_blacklisted: row.block.is_some(),
        blacklist_reason: row.block.map(|b| b.reason),
        last_attempt_at: row.stats.last_attempt_at,
    }
}
