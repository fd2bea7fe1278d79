//! `/machines/history/attempts`: every try, ours and reported ones.

use super::{Listed, machine, page, text};
use crate::app::App;
use crate::http::auth::Caller;
use crate::http::body::Body;
use crate::http::error::{ApiError, ApiResult};
use crate::http::params::Params;
use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use dumont_core::blacklist::Circumstances;
use dumont_core::history::{Outcome, Reason, Stage};
use dumont_core::id::MachineRef;
use dumont_core::reliability::{Counts, Exit};
use dumont_core::time::Timestamp;
use dumont_store::{AttemptFilter, AttemptRow, Conditions, Counted, NewAttempt};
use dumont_wire::history::{AttemptsQuery, MachineAttempt, ReportAttempt, Reported};
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
        (Some(provider), Some(id)) => Some(machine(provider, id)?),
        (None, Some(_)) => {
            return Err(ApiError::invalid(
                "machine_id without provider names no machine",
                "add provider=, e.g. provider=vast",
            ));
        }
        _ => None,
    };
    let paging = PageQuery {
        limit: query.limit,
        after: query.after,
    };
    let listed = Listed::of(&app, query.provider.as_ref(), query.period.as_ref(), &paging)?;
    let filter = AttemptFilter {
        provider: listed.provider,
        since: listed.since,
        counted: query.success.as_deref().map(counted).transpose()?,
    };
    let rows = app
        .store
        .list_attempts(machine.as_ref(), &filter, listed.after, listed.limit)
        .await?;
    Ok(Json(page(rows, listed.after.is_some(), shown)?))
}

/// Reports of one token on one machine that are kept in a day beside the first: what is said
/// again and again may not grow the history without end.
const REPEATS: u32 = 9;

/// Tells what happened on a machine. The first report of a token, machine and day counts in its
/// rate; a few more are kept without counting. A report alone never blocks.
#[utoipa::path(
    post,
    path = "/machines/history/attempts",
    tag = "attempts",
    request_body = ReportAttempt,
    responses(
        (status = 201, description = "Recorded", body = Reported),
        (status = 429, description = "This token has said enough about this machine today", body = ErrorBody),
    ),
)]
pub async fn report(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Body(wanted): Body<ReportAttempt>,
) -> ApiResult<(StatusCode, Json<Reported>)> {
    let machine = machine(&wanted.provider, &wanted.machine_id)?;
    let reason = reason(&wanted)?;
    let now = app.now();
    // The keys make "so many a day" hold however many requests come at once. This server's own
    // id is in them: a colleague's report of the same day is another one when it is imported.
    let day = now.0.div_euclid(86_400_000_000);
    let key = format!("report/{}/{}/{machine}/{day}", app.controller_id, caller.name);
    let new = reported(&wanted, machine, &caller, reason, key, now)?;
    let (key, note) = keep(&app, new).await?;
    let row = app
        .store
        .attempt_by_key(&key)
        .await?
        .ok_or_else(|| ApiError::internal("the report is not there"))?;
    let answer = Reported {
        counted: row.success.is_some(),
        attempt: shown(row),
        note: note.map(str::to_owned),
    };
    Ok((StatusCode::CREATED, Json(answer)))
}

/// Writes a report down, as one that counts or as something that was said; under which key, and
/// why it does not count.
async fn keep(app: &App, new: NewAttempt) -> ApiResult<(String, Option<&'static str>)> {
    let settings = &app.config.blacklist;
    let about_machine = new.counts(settings).is_some();
    if about_machine && app.store.record_foreign_attempt(&new, settings).await?.first {
        return Ok((new.attempt_key, None));
    }
    let note = if about_machine {
        "this token has reported this machine today already; the first report counts"
    } else {
        "this reason says nothing about the machine"
    };
    let repeat = |n: u32| format!("{}/{n}", new.attempt_key);
    // Filled in order: where the last is taken, all are.
    if app.store.attempt_by_key(&repeat(REPEATS)).await?.is_none() {
        for n in 1..=REPEATS {
            let again = NewAttempt {
                attempt_key: repeat(n),
                outcome: Outcome::NotHost,
                conditions: Conditions {
                    counts: Counts::default(),
                    ..new.conditions.clone()
                },
                ..new.clone()
            };
            if app.store.record_foreign_attempt(&again, settings).await?.first {
                return Ok((again.attempt_key, Some(note)));
            }
        }
    }
    Err(ApiError::new(
        StatusCode::TOO_MANY_REQUESTS,
        "too_many_reports",
        format!("this token has reported {} often enough today", new.machine),
        "the first report of a day counts, so nothing is lost; to keep the machine away now: `dumont history blacklist add`",
    ))
}

/// A failure needs a word; a success has none.
fn reason(wanted: &ReportAttempt) -> ApiResult<Option<Reason>> {
    let Some(word) = wanted.reason.as_deref().map(str::trim).filter(|w| !w.is_empty()) else {
        return if wanted.success {
            Ok(None)
        } else {
            Err(ApiError::invalid(
                "a failure without a reason says nothing",
                "send a reason, e.g. ssh_failed, boot_timeout, gpu_not_ready or driver_mismatch",
            ))
        };
    };
    let plain = word
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if wanted.success || !plain || word.len() > 50 {
        return Err(ApiError::invalid(
            "reason is not a word for a failure",
            "use up to 50 of a-z, 0-9 and _, e.g. ssh_failed; leave it out where success is true",
        ));
    }
    Ok(Some(Reason::from(word)))
}

fn reported(
    wanted: &ReportAttempt,
    machine: MachineRef,
    caller: &Caller,
    reason: Option<Reason>,
    attempt_key: String,
    now: Timestamp,
) -> ApiResult<NewAttempt> {
    let seconds = wanted.ready_seconds;
    if seconds.is_some_and(|s| !s.is_finite() || !(0.0..=86_400.0).contains(&s)) {
        return Err(ApiError::invalid(
            "ready_seconds is not between 0 and 86400",
            "send the seconds from the request to ready, or leave it out",
        ));
    }
    let outcome = reason.as_ref().map_or(Outcome::Won, Reason::outcome);
    let around = Circumstances {
        suspect: false,
        cuda: wanted.cuda,
    };
    let counts = match Exit::of(outcome, reason.as_ref(), wanted.success, &around) {
        Exit::Ready => Counts::new(1.0, 0.0),
        // A time-out, too: whoever reports it has waited long enough to call it one.
        Exit::Explicit { .. } | Exit::GaveUp { .. } => Counts::new(0.0, 1.0),
        Exit::LostRace | Exit::NotHost => Counts::default(),
    };
    let optional = |what, given: Option<&String>| given.map(|t| text(what, t)).transpose();
    Ok(NewAttempt {
        attempt_key,
        machine,
        attempt_type: "report".into(),
        workflow_id: None,
        workspace_id: None,
        host_id: None,
        offer_id: None,
        instance_id: None,
        gpu_name: optional("gpu_name", wanted.gpu_name.as_ref())?.unwrap_or_default(),
        price: 0.0,
        region: None,
        image: None,
        stage: if wanted.success { Stage::Ready } else { Stage::Boot },
        outcome,
        reason,
        error_message: optional("error_message", wanted.error_message.as_ref())?,
        duration_seconds: seconds.unwrap_or(0.0),
        ready_seconds: seconds.filter(|_| wanted.success),
        created_at: now,
        conditions: Conditions {
            reporter: Some(caller.name.clone()),
            cuda: wanted.cuda,
            counts,
            ..Conditions::default()
        },
    })
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
        reporter: a.conditions.reporter,
    }
}
