//! `/machines/history/blacklist`: who blocks what, since when and until when.

use super::{Listed, duration, machine, page, text};
use crate::app::App;
use crate::http::auth::Caller;
use crate::http::body::Body;
use crate::http::error::{ApiError, ApiResult};
use crate::http::params::{Params, Path};
use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use dumont_core::blacklist::{BlacklistType, Scope};
use dumont_core::time::Timestamp;
use dumont_store::{BlacklistFilter, BlacklistRow, Error as StoreError, NewBlacklist, in_the_way};
use dumont_wire::history::{
    AddBlacklist, BlacklistCheck, BlacklistEntry, BlacklistQuery, CheckQuery, Removed,
};
use dumont_wire::rest::{ErrorBody, Page, PageQuery};
use std::sync::Arc;

/// Machines that are not to be used, newest entry first.
#[utoipa::path(
    get,
    path = "/machines/history/blacklist",
    tag = "blacklist",
    params(BlacklistQuery),
    responses(
        (status = 200, description = "One page", body = Page<BlacklistEntry>),
        (status = 404, description = "The list ends before that page", body = ErrorBody),
    ),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    Params(query): Params<BlacklistQuery>,
) -> ApiResult<Json<Page<BlacklistEntry>>> {
    let paging = PageQuery {
        limit: query.limit,
        after: query.after,
    };
    let listed = Listed::of(&app, query.provider.as_ref(), query.period.as_ref(), &paging)?;
    let filter = BlacklistFilter {
        provider: listed.provider,
        blacklist_type: query.blacklist_type.as_deref().map(kind).transpose()?,
        since: listed.since,
        closed: query.include_closed.unwrap_or(false),
    };
    let now = app.now();
    let rows = app
        .store
        .list_blacklist(&filter, listed.after, listed.limit, now)
        .await?;
    Ok(Json(page(rows, listed.after.is_some(), |row| shown(row, now))?))
}

/// Blocks a machine, or changes the entry that is in force.
#[utoipa::path(
    post,
    path = "/machines/history/blacklist",
    tag = "blacklist",
    request_body = AddBlacklist,
    responses(
        (status = 201, description = "A new entry", body = BlacklistEntry),
        (status = 200, description = "The entry that was in force, changed", body = BlacklistEntry),
        (status = 409, description = "A manual entry stands, which another type does not change", body = ErrorBody),
    ),
)]
pub async fn add(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Body(wanted): Body<AddBlacklist>,
) -> ApiResult<(StatusCode, Json<BlacklistEntry>)> {
    let machine = machine(&wanted.provider, &wanted.machine_id)?;
    let blacklist_type = wanted
        .blacklist_type
        .as_deref()
        .map_or(Ok(BlacklistType::Manual), kind)?;
    let lasts = match &wanted.duration {
        Some(given) => Some(duration("for", given)?),
        None => app.config.blacklist.duration(blacklist_type),
    };
    let now = app.now();
    let new = NewBlacklist {
        machine: machine.clone(),
        blacklist_type,
        reason: text("reason", &wanted.reason)?,
        expires_at: lasts.map(|d| now.plus(d)),
        actor: Some(caller.name),
        scope: wanted.cuda.map(|v| Scope::Cuda(v).to_string()),
    };
    let (row, is_new) = match app.store.add_blacklist(&new, now).await {
        Err(StoreError::Conflict { .. }) => {
            return Err(ApiError::conflict(
                "manual_entry_stands",
                format!("{machine} is blocked by hand, which an {blacklist_type} entry does not change"),
                "send blacklist_type manual to change it, or remove it first",
            ));
        }
        other => other?,
    };
    let status = if is_new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok((status, Json(shown(row, now))))
}

/// Whether a machine is blocked now.
#[utoipa::path(
    get,
    path = "/machines/history/blacklist/check/{provider}/{machine_id}",
    tag = "blacklist",
    params(
        ("provider" = String, Path, description = "As the provider is called here, e.g. vast"),
        ("machine_id" = String, Path, description = "As the provider names the machine"),
        CheckQuery,
    ),
    responses((status = 200, description = "The answer; a machine never met is free", body = BlacklistCheck)),
)]
pub async fn check(
    State(app): State<Arc<App>>,
    Path((provider, machine_id)): Path<(String, String)>,
    Params(query): Params<CheckQuery>,
) -> ApiResult<Json<BlacklistCheck>> {
    let machine = machine(&provider, &machine_id)?;
    let now = app.now();
    let blocks = app.store.blocks_of(&machine, now).await?;
    let block = in_the_way(&blocks, query.cuda);
    Ok(Json(BlacklistCheck {
        provider,
        machine_id,
        is_blacklisted: block.is_some(),
        blacklist_type: block.map(|b| b.blacklist_type),
        reason: block.map(|b| b.reason.clone()),
        scope: block.and_then(|b| b.scope.clone()),
        blacklisted_at: block.map(|b| b.blacklisted_at),
        expires_at: block.and_then(|b| b.expires_at),
        scoped: blocks
            .iter()
            .filter(|b| b.scope.is_some())
            .map(|b| shown(b.clone(), now))
            .collect(),
    }))
}

/// Lifts every block on a machine. Old failures do not bring it back.
#[utoipa::path(
    delete,
    path = "/machines/history/blacklist/{provider}/{machine_id}",
    tag = "blacklist",
    params(
        ("provider" = String, Path, description = "As the provider is called here, e.g. vast"),
        ("machine_id" = String, Path, description = "As the provider names the machine"),
    ),
    responses((status = 200, description = "What was lifted", body = Removed)),
)]
pub async fn remove(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path((provider, machine_id)): Path<(String, String)>,
) -> ApiResult<Json<Removed>> {
    let machine = machine(&provider, &machine_id)?;
    let now = app.now();
    match app.store.remove_blacklist(&machine, &caller.name, now).await {
        Ok(rows) => Ok(Json(Removed {
            removed: rows.into_iter().map(|row| shown(row, now)).collect(),
        })),
        Err(StoreError::NotFound { .. }) => Err(ApiError::new(
            StatusCode::NOT_FOUND,
            "not_blacklisted",
            format!("{machine} is not on the blacklist"),
            "nothing to do; `dumont history blacklist list` shows what is",
        )),
        Err(other) => Err(other.into()),
    }
}

fn kind(word: &str) -> ApiResult<BlacklistType> {
    word.parse().map_err(|_| {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            "unknown_blacklist_type",
            format!(
                "{:?} is not a blacklist type",
                word.chars().take(80).collect::<String>()
            ),
            "use manual (for good), automatic (7 days) or temporary (24 hours)",
        )
    })
}

pub fn shown(row: BlacklistRow, now: Timestamp) -> BlacklistEntry {
    BlacklistEntry {
        is_active: row.blocks(now),
        id: row.id,
        provider: row.machine.provider,
        machine_id: row.machine.machine_id,
        blacklist_type: row.blacklist_type,
        reason: row.reason,
        scope: row.scope,
        rule: row.rule.map(|r| r.as_str().to_owned()),
        actor: row.actor,
        total_attempts: row.total_attempts,
        failed_attempts: row.failed_attempts,
        failure_rate: row.failure_rate,
        blacklisted_at: row.blacklisted_at,
        expires_at: row.expires_at,
        // An entry that ran out is closed for whoever looks, reconciled or not.
        closed_at: row.closed_at.or(row.expires_at.filter(|end| *end <= now)),
        closed_by: row
            .closed_by
            .or_else(|| row.expires_at.filter(|end| *end <= now).map(|_| "expired".into())),
    }
}
