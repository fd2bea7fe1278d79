//! `/machines/history/import`: takes over what another server has exported.
//!
//! Every line is checked before the first is written; what is written is batches that repeat
//! safely, so a broken connection is mended by sending the same file again.

use super::{LONGEST, known, text};
use crate::app::App;
use crate::http::auth::Caller;
use crate::http::error::{ApiError, ApiResult};
use crate::http::params::Params;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use dumont_core::id::MachineRef;
use dumont_core::reliability::Counts;
use dumont_core::time::Timestamp;
use dumont_store::{
    Conditions, Error as StoreError, ForeignRollup, NewAttempt, NewBlacklist, Rollup, word_of,
};
use dumont_wire::history::{
    ExportLine, ExportedAttempt, ExportedBlock, ExportedRollup, ImportQuery, ImportReport,
};
use dumont_wire::rest::ErrorBody;
use std::sync::Arc;
use std::time::Duration;

/// Attempts written in one transaction.
const BATCH: usize = 100;
/// Largest import in one request, bytes; the command line sends longer files in parts.
const LARGEST: usize = 32 << 20;

/// Takes over an export. What is here already is left alone, so it may be sent again.
#[utoipa::path(
    post,
    path = "/machines/history/import",
    tag = "history",
    params(ImportQuery),
    request_body(content = String, content_type = "application/x-ndjson", description = "Lines of an export"),
    responses(
        (status = 200, description = "What came of it", body = ImportReport),
        (status = 413, description = "Too much at once; send it in parts", body = ErrorBody),
    ),
)]
pub async fn import(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Params(query): Params<ImportQuery>,
    request: Request,
) -> ApiResult<Json<ImportReport>> {
    let bytes = to_bytes(request.into_body(), LARGEST).await.map_err(|_| {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("the body is over {LARGEST} bytes or broke off"),
            "send the file in parts; lines may be split anywhere and sent twice",
        )
    })?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(ApiError::invalid(
            "there is nothing to import",
            "send lines as `GET /api/v1/machines/history/export` writes them",
        ));
    }
    let Parsed {
        rollups,
        attempts,
        blocks,
    } = parse(&app, &caller, &bytes)?;
    let mut report = ImportReport::default();
    // Counts first: they say which attempts are among them.
    for batch in rollups.chunks(BATCH) {
        report.counted += app.store.import_rollups(batch).await?;
    }
    for batch in attempts.chunks(BATCH) {
        let done = app.store.import_attempts(batch, &app.config.blacklist).await?;
        report.attempts += done.new;
        report.known += done.known;
        report.too_old += done.too_old;
    }
    let now = app.now();
    for block in blocks {
        let wanted = query.blacklist == Some(true) && block.expires_at.is_none_or(|end| end > now);
        if wanted && take_over(&app, &block, now).await? {
            report.blacklisted += 1;
        } else {
            report.entries_skipped += 1;
        }
    }
    Ok(Json(report))
}

/// False where something as strong stands already: an import changes no block of ours.
async fn take_over(app: &App, block: &NewBlacklist, now: Timestamp) -> ApiResult<bool> {
    let standing = app.store.blocks_of(&block.machine, now).await?;
    if standing.iter().any(|b| b.scope == block.scope) {
        return Ok(false);
    }
    match app.store.add_blacklist(block, now).await {
        Ok(_) => Ok(true),
        Err(StoreError::Conflict { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[derive(Default)]
struct Parsed {
    rollups: Vec<ForeignRollup>,
    attempts: Vec<NewAttempt>,
    blocks: Vec<NewBlacklist>,
}

/// Every line, or the first that is wrong.
fn parse(app: &App, caller: &Caller, bytes: &[u8]) -> ApiResult<Parsed> {
    let mut all = Parsed::default();
    for (n, line) in bytes.split(|b| *b == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let wrong = |why: String| {
            ApiError::new(
                StatusCode::BAD_REQUEST,
                "invalid_line",
                format!("line {}: {why}; nothing was imported", n + 1),
                "send lines as `dumont history export` writes them",
            )
        };
        let parsed: ExportLine = serde_json::from_slice(line).map_err(|e| wrong(e.to_string()))?;
        match parsed {
            ExportLine::Rollup(r) => {
                all.rollups
                    .push(rollup(app, r).map_err(|e| wrong(e.body.message))?);
            }
            ExportLine::Attempt(a) => {
                all.attempts
                    .push(attempt(app, caller, *a).map_err(|e| wrong(e.body.message))?);
            }
            ExportLine::Blacklist(b) => {
                all.blocks
                    .push(block(caller, b).map_err(|e| wrong(e.body.message))?);
            }
        }
    }
    Ok(all)
}

/// The name of another server; empty where it is this one's own.
fn source(app: &App, given: &str) -> ApiResult<String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if given.is_empty() || given.len() > 64 || !given.bytes().all(plain) {
        return Err(ApiError::invalid("source is not the id of a server", ""));
    }
    Ok(Some(given)
        .filter(|s| *s != app.controller_id)
        .unwrap_or_default()
        .to_owned())
}

/// Not after tomorrow: a clock that runs ahead must not outweigh every attempt to come.
fn past(app: &App, what: &str, at: Timestamp) -> ApiResult<Timestamp> {
    let until = app.now().plus(Duration::from_secs(86_400));
    if (Timestamp(0)..=until).contains(&at) {
        return Ok(at);
    }
    Err(ApiError::invalid(format!("{what} is not a time of the past"), ""))
}

fn rollup(app: &App, r: ExportedRollup) -> ApiResult<ForeignRollup> {
    let machine = MachineRef::new(&r.provider, &r.machine_id)?;
    known(&r.provider)?;
    let last_at = past(app, "last_at", r.last_at)?;
    let until = past(app, "until", r.until)?;
    let day = last_at.0.div_euclid(86_400_000_000);
    let longest = i128::from(r.ready_attempts) * LONGEST.as_millis().cast_signed();
    let fits = r.day == day
        && last_at < until
        && (1..=1_000_000_000).contains(&r.attempts)
        && (0..=r.attempts).contains(&r.ready_attempts)
        && (0..=longest).contains(&i128::from(r.ready_total_ms));
    if !fits {
        return Err(ApiError::invalid(
            "its counts, day and times do not fit together",
            "",
        ));
    }
    Ok(ForeignRollup {
        until,
        rollup: Rollup {
            machine,
            day,
            verdict: word_of(r.success).to_owned(),
            reason: r.reason.map_or(Ok(String::new()), |t| text("reason", &t))?,
            attempts: r.attempts,
            ready_attempts: r.ready_attempts,
            ready_total_ms: r.ready_total_ms,
            last_at,
            source: source(app, &r.source)?,
        },
    })
}

fn attempt(app: &App, caller: &Caller, a: ExportedAttempt) -> ApiResult<NewAttempt> {
    let machine = MachineRef::new(&a.provider, &a.machine_id)?;
    known(&a.provider)?;
    let short = |what: &str, t: String| text(what, &t);
    let optional = |what: &str, t: Option<String>| t.map(|t| text(what, &t)).transpose();
    let seconds = 0.0..=LONGEST.as_secs_f64();
    let share = 0.0..=1.0;
    let within = |what: &str, v: Option<f64>, range: &std::ops::RangeInclusive<f64>| match v {
        Some(v) if !range.contains(&v) => Err(ApiError::invalid(format!("{what} is out of range"), "")),
        v => Ok(v),
    };
    let word = |e: dumont_core::history::UnknownWord| ApiError::invalid(e.to_string(), "");
    let required =
        |what: &str, v: f64, range: &std::ops::RangeInclusive<f64>| within(what, Some(v), range).map(|_| v);
    let source = a.source.map(|s| source(app, &s)).transpose()?;
    Ok(NewAttempt {
        attempt_key: short("key", a.key)?,
        machine,
        attempt_type: short("attempt_type", a.attempt_type)?,
        workflow_id: None,
        workspace_id: None,
        host_id: optional("host_id", a.host_id)?,
        offer_id: None,
        instance_id: None,
        gpu_name: if a.gpu_name.is_empty() {
            String::new()
        } else {
            short("gpu_name", a.gpu_name)?
        },
        price: required("price", a.price, &(0.0..=1e6))?,
        region: optional("region", a.region)?,
        image: optional("image", a.image)?,
        stage: a.stage.parse().map_err(word)?,
        outcome: a.outcome.parse().map_err(word)?,
        reason: optional("reason", a.reason)?.map(Into::into),
        error_message: optional("error_message", a.error_message)?,
        duration_seconds: required("duration_seconds", a.duration_seconds, &seconds)?,
        ready_seconds: within("ready_seconds", a.ready_seconds, &seconds)?,
        created_at: past(app, "created_at", a.created_at)?,
        conditions: Conditions {
            source: source.filter(|s| !s.is_empty()),
            image_digest: optional("image_digest", a.image_digest)?,
            // Not ours: it teaches rates and scores, not how long we may wait.
            reporter: Some(format!("import:{}", caller.name)),
            cuda: a.cuda,
            provider_reliability: within("provider_reliability", a.provider_reliability, &share)?,
            inet_down_mbps: within("inet_down_mbps", a.inet_down_mbps, &(0.0..=1e7))?,
            warm: false,
            suspect: a.suspect,
            score: within("score", a.score, &share)?,
            prior_mean: within("prior_mean", a.prior_mean, &share)?,
            counts: Counts::new(
                required("score_s", a.score_s, &share)?,
                required("score_f", a.score_f, &share)?,
            ),
        },
    })
}

fn block(caller: &Caller, b: ExportedBlock) -> ApiResult<NewBlacklist> {
    let machine = MachineRef::new(&b.provider, &b.machine_id)?;
    known(&b.provider)?;
    let scope = b
        .scope
        .map(|s| s.parse::<dumont_core::blacklist::Scope>().map(|s| s.to_string()))
        .transpose()
        .map_err(|e| ApiError::invalid(e.to_string(), ""))?;
    Ok(NewBlacklist {
        machine,
        blacklist_type: b.blacklist_type,
        reason: text("reason", &b.reason)?,
        expires_at: b.expires_at,
        actor: Some(format!("import:{}", caller.name)),
        scope,
    })
}
