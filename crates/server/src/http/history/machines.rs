//! `/machines/history/stats`, `…/problematic`, `…/reliable`: machines by their record.

use super::{Listed, blacklist, machine, page};
use crate::app::App;
use crate::http::error::{ApiError, ApiResult};
use crate::http::params::{Params, Path};
use axum::Json;
use axum::extract::State;
use dumont_core::time::Timestamp;
use dumont_store::{
    DayCount, Extreme, Interrupt, MachineFilter, MachineRow, ReasonCount as ReasonRow, ScoreCursor,
};
use dumont_wire::history::{
    DayRate, MachineHistory, MachineInterrupt, MachineStats, MachinesQuery, ReasonCount,
};
use dumont_wire::rest::{ErrorBody, Page, PageQuery};
use std::sync::Arc;
use std::time::Duration;

/// Days of the rate over time.
const DAYS: u32 = 30;
/// Earlier entries shown.
const ENTRIES: u32 = 50;

/// One machine: its record, why it failed, its rate over time, its blocks.
#[utoipa::path(
    get,
    path = "/machines/history/stats/{provider}/{machine_id}",
    tag = "history",
    params(
        ("provider" = String, Path, description = "As the provider is called here, e.g. vast"),
        ("machine_id" = String, Path, description = "As the provider names the machine"),
    ),
    responses((status = 200, description = "The record", body = MachineHistory)),
)]
pub async fn stats(
    State(app): State<Arc<App>>,
    Path((provider, machine_id)): Path<(String, String)>,
) -> ApiResult<Json<MachineHistory>> {
    let machine = machine(&provider, &machine_id)?;
    let now = app.now();
    let row = app.store.machine(&machine, now).await?.ok_or_else(|| {
        ApiError::not_found(
            "machine",
            &machine.to_string(),
            "it was never tried nor blocked; unknown machines may be used",
        )
    })?;
    let reasons = app.store.failure_reasons(&machine).await?;
    let mut days = app.store.counted_days(&machine, DAYS).await?;
    days.reverse();
    let month = now.minus(Duration::from_secs(u64::from(DAYS) * 86_400));
    let interrupts = app.store.interrupts_of(&machine, month, ENTRIES).await?;
    let entries = app.store.blacklist_ever(&machine, ENTRIES).await?;
    Ok(Json(MachineHistory {
        stats: shown(row),
        reasons: reasons.into_iter().map(reason).collect(),
        days: days.into_iter().map(day).collect(),
        interrupts: interrupts.into_iter().map(interrupt).collect(),
        blacklist: entries.into_iter().map(|e| blacklist::shown(e, now)).collect(),
    }))
}

/// Machines that are blocked or have a rate under 50 %, worst score first.
#[utoipa::path(
    get,
    path = "/machines/history/problematic",
    tag = "history",
    params(MachinesQuery),
    responses(
        (status = 200, description = "One page", body = Page<MachineStats>),
        (status = 404, description = "The list ends before that page", body = ErrorBody),
    ),
)]
pub async fn problematic(
    State(app): State<Arc<App>>,
    Params(query): Params<MachinesQuery>,
) -> ApiResult<Json<Page<MachineStats>>> {
    extreme(&app, Extreme::Problematic, &query).await
}

/// Machines with a rate of 70 % or more that nothing blocks, best score first.
#[utoipa::path(
    get,
    path = "/machines/history/reliable",
    tag = "history",
    params(MachinesQuery),
    responses(
        (status = 200, description = "One page", body = Page<MachineStats>),
        (status = 404, description = "The list ends before that page", body = ErrorBody),
    ),
)]
pub async fn reliable(
    State(app): State<Arc<App>>,
    Params(query): Params<MachinesQuery>,
) -> ApiResult<Json<Page<MachineStats>>> {
    extreme(&app, Extreme::Reliable, &query).await
}

async fn extreme(app: &App, which: Extreme, query: &MachinesQuery) -> ApiResult<Json<Page<MachineStats>>> {
    let paging = PageQuery {
        limit: query.limit,
        after: query.after.clone(),
    };
    let listed: Listed<ScoreCursor> =
        Listed::of(app, query.provider.as_ref(), query.period.as_ref(), &paging)?;
    // One blocked by hand is problematic though it was never tried.
    let least = u32::from(which == Extreme::Reliable);
    let filter = MachineFilter {
        provider: listed.provider,
        since: listed.since,
        min_attempts: query.min_attempts.unwrap_or(least),
    };
    // Each is a pass over every machine: whoever asks for many at once waits for their own.
    let _turn = app.passes.acquire().await;
    let rows = app
        .store
        .extreme_machines(which, &filter, listed.after.as_ref(), listed.limit, app.now())
        .await?;
    Ok(Json(page(rows, listed.after.is_some(), shown)?))
}

pub fn reason(row: ReasonRow) -> ReasonCount {
    ReasonCount {
        reason: row.reason.unwrap_or_else(|| "unknown".into()),
        count: row.n,
    }
}

fn interrupt(row: Interrupt) -> MachineInterrupt {
    MachineInterrupt {
        at: row.created_at,
        cause: row.cause,
        trigger: row.trigger_name,
        lived_seconds: row.lived_seconds,
    }
}

fn day(row: DayCount) -> DayRate {
    DayRate {
        day: Timestamp(row.day * 86_400_000_000),
        successful: row.successful,
        failed: row.failed,
    }
}

pub fn shown(row: MachineRow) -> MachineStats {
    let level = row.level();
    let (stats, block) = (row.stats, row.block);
    MachineStats {
        provider: row.machine.provider,
        machine_id: row.machine.machine_id,
        total_attempts: stats.total,
        successful_attempts: stats.successful,
        failed_attempts: stats.failed,
        uncounted_attempts: stats.uncounted,
        consecutive_failures: stats.consecutive_failures,
        success_rate: stats.success_rate(),
        reliability_status: level,
        reliability_score: row.reliability_score,
        avg_boot_time: stats.avg_boot_time(),
        ready_attempts: stats.ready,
        last_attempt_at: stats.last_attempt_at,
        last_success_at: stats.last_success_at,
        last_failure_at: stats.last_failure_at,
        is_blacklisted: block.is_some(),
        blacklist_type: block.as_ref().map(|b| b.blacklist_type),
        blacklist_expires_at: block.as_ref().and_then(|b| b.expires_at),
        blacklist_reason: block.map(|b| b.reason),
    }
}
