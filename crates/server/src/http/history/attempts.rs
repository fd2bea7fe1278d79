//! `/machines/history/attempts`: every try, ours and reported ones.

use super::{after, machine, page, provider, since};
use crate::app::App;
use crate::http::error::{ApiError, ApiResult};
use crate::http::params::{Params, limit};
use axum::Json;
use axum::extract::State;
use dumont_store::{AttemptFilter, AttemptRow, Counted};
use dumont_wire::history::{AttemptsQuery, MachineAttempt};
use dumont_wire::rest::{ErrorBody, Page, PageQuery};
use std::sync::Arc;

/// Every try on every machine, newest first.
#[utoipa::path(
    get,
    path = "/machines/history/attempts",
    tag = "attempts",
    params(AttemptsQuery),
    responses(
        (status = 200, description = "One page", body = Page<MachineAttempt>),
        (status = 404, description = "The list ends before that page", body = ErrorBody),
    ),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    Params(query): Params<AttemptsQuery>,
) -> ApiResult<Json<Page<MachineAttempt>>> {
    let machine = match (&query.provider, &query.machine_id) {
        (Some(provider), Some(id)) => Some(machine(&app, provider, id)?),
        (None, Some(_)) => {
            return Err(ApiError::invalid(
                "machine_id without provider names no machine",
                "add provider=, e.g. provider=vast",
            ));
        }
        _ => None,
    };
    let filter = AttemptFilter {
        provider: provider(&app, query.provider.as_ref())?,
        since: since(&app, query.period.as_ref())?,
        counted: query.success.as_deref().map(counted).transpose()?,
    };
    let from = after(query.after.as_ref())?;
    let most = limit(&PageQuery {
        limit: query.limit,
        after: None,
    })?;
    let rows = app
        .store
        .list_attempts(machine.as_ref(), &filter, from, most)
        .await?;
    Ok(Json(page(rows, from.is_some(), shown)?))
}

fn counted(word: &str) -> ApiResult<Counted> {
    match word {
        "true" => Ok(Counted::Succeeded),
        "false" => Ok(Counted::Failed),
        "uncounted" => Ok(Counted::Uncounted),
        other => Err(ApiError::invalid(
            format!(
                "success={:?} is not a filter",
                other.chars().take(80).collect::<String>()
            ),
            "use true, false or uncounted",
        )),
    }
}

pub fn shown(row: AttemptRow) -> MachineAttempt {
    let a = row.attempt;
    MachineAttempt {
        id: row.id,
        provider: a.machine.provider,
        machine_id: a.machine.machine_id,
        attempt_type: a.attempt_type,
        success: row.success,
        outcome: a.outcome.as_str().to_owned(),
        stage: a.stage.as_str().to_owned(),
        reason: a.reason.map(String::from),
        error_message: a.error_message,
        duration_seconds: a.duration_seconds,
        ready_seconds: a.ready_seconds,
        created_at: a.created_at,
        host_id: a.host_id,
        offer_id: a.offer_id,
        gpu_name: a.gpu_name,
        price: a.price,
        region: a.region,
        image: a.image,
        workflow_id: a.workflow_id,
        reporter: None,
    }
}
