//! `/machines/history/export` and `…/import`: JSON lines, so that a team can share what it
//! learned.
//!
//! An export is written as it is read, page by page, whatever its length. An import checks
//! every line before it writes the first; what it writes is batches that repeat safely, so a
//! broken connection is mended by sending the same file again.

use super::{LONGEST, known, provider, since, text};
use crate::app::App;
use crate::http::auth::Caller;
use crate::http::error::{ApiError, ApiResult};
use crate::http::params::Params;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use dumont_core::id::MachineRef;
use dumont_core::reliability::Counts;
use dumont_core::time::Timestamp;
use dumont_store::{
    AttemptRow, BlacklistFilter, BlacklistRow, Conditions, Error as StoreError, NewAttempt, NewBlacklist,
};
use dumont_wire::history::{
    ExportLine, ExportQuery, ExportedAttempt, ExportedBlock, ImportQuery, ImportReport,
};
use dumont_wire::rest::ErrorBody;
use futures::stream;
use std::sync::Arc;
use std::time::Duration;

/// Rows read at a time.
const PAGE: u32 = 500;
/// Attempts written in one transaction.
const BATCH: usize = 100;
/// Largest import in one request, bytes; the command line sends longer files in parts.
const LARGEST: usize = 32 << 20;

/// Every attempt that is kept, then every block in force, one JSON object a line.
#[utoipa::path(
    get,
    path = "/machines/history/export",
    tag = "history",
    params(ExportQuery),
    responses((status = 200, description = "JSON lines", body = String, content_type = "application/x-ndjson")),
)]
pub async fn export(State(app): State<Arc<App>>, Params(query): Params<ExportQuery>) -> ApiResult<Response> {
    let place = Place {
        provider: provider(&app, query.provider.as_ref())?,
        since: since(&app, query.period.as_ref())?,
        next: Some(Next::Attempts(0)),
        app,
    };
    let pages = stream::try_unfold(place, |mut place| async move {
        let lines = place.page().await?;
        Ok::<_, StoreError>(lines.map(|lines| (lines, place)))
    });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(pages)).into_response())
}

/// Where an export is.
struct Place {
    app: Arc<App>,
    provider: Option<String>,
    since: Option<Timestamp>,
    next: Option<Next>,
}

enum Next {
    /// After the attempt with this id.
    Attempts(i64),
    /// After the entry with this id.
    Entries(Option<i64>),
}

impl Place {
    /// The next lines; `None` at the end.
    async fn page(&mut self) -> Result<Option<Bytes>, StoreError> {
        let Some(next) = self.next.take() else {
            return Ok(None);
        };
        let mut out = Vec::new();
        match next {
            Next::Attempts(after) => {
                let provider = self.provider.as_deref();
                let rows = self
                    .app
                    .store
                    .export_attempts(provider, self.since, after, PAGE)
                    .await?;
                self.next = Some(match rows.last() {
                    Some(last) => Next::Attempts(last.id),
                    None => Next::Entries(None),
                });
                rows.into_iter()
                    .for_each(|row| line(&mut out, &ExportLine::Attempt(Box::new(exported(row)))));
            }
            Next::Entries(after) => {
                let filter = BlacklistFilter {
                    provider: self.provider.clone(),
                    ..BlacklistFilter::default()
                };
                let now = self.app.now();
                let page = self.app.store.list_blacklist(&filter, after, PAGE, now).await?;
                self.next = page
                    .next
                    .and_then(|n| n.parse().ok())
                    .map(|id| Next::Entries(Some(id)));
                page.items
                    .into_iter()
                    .for_each(|row| line(&mut out, &ExportLine::Blacklist(entry(row))));
            }
        }
        Ok(Some(out.into()))
    }
}

fn line(out: &mut Vec<u8>, line: &ExportLine) {
    if serde_json::to_writer(&mut *out, line).is_ok() {
        out.push(b'\n');
    }
}

fn exported(row: AttemptRow) -> ExportedAttempt {
    let (a, c) = (row.attempt.clone(), row.attempt.conditions);
    ExportedAttempt {
        key: a.attempt_key,
        provider: a.machine.provider,
        machine_id: a.machine.machine_id,
        attempt_type: a.attempt_type,
        outcome: a.outcome.as_str().to_owned(),
        stage: a.stage.as_str().to_owned(),
        reason: a.reason.map(String::from),
        error_message: a.error_message,
        duration_seconds: a.duration_seconds,
        ready_seconds: a.ready_seconds,
        created_at: a.created_at,
        host_id: a.host_id,
        gpu_name: a.gpu_name,
        price: a.price,
        region: a.region,
        image: a.image,
        image_digest: c.image_digest,
        cuda: c.cuda,
        provider_reliability: c.provider_reliability,
        inet_down_mbps: c.inet_down_mbps,
        suspect: c.suspect,
        score: c.score,
        prior_mean: c.prior_mean,
        score_s: c.counts.s,
        score_f: c.counts.f,
    }
}

fn entry(row: BlacklistRow) -> ExportedBlock {
    ExportedBlock {
        provider: row.machine.provider,
        machine_id: row.machine.machine_id,
        blacklist_type: row.blacklist_type,
        reason: row.reason,
        scope: row.scope,
        blacklisted_at: row.blacklisted_at,
        expires_at: row.expires_at,
    }
}

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
    let (attempts, blocks) = parse(&app, &caller, &bytes)?;
    let mut report = ImportReport::default();
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

/// Every line, or the first that is wrong.
fn parse(app: &App, caller: &Caller, bytes: &[u8]) -> ApiResult<(Vec<NewAttempt>, Vec<NewBlacklist>)> {
    let (mut attempts, mut blocks) = (Vec::new(), Vec::new());
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
            ExportLine::Attempt(a) => {
                attempts.push(attempt(app, caller, *a).map_err(|e| wrong(e.body.message))?);
            }
            ExportLine::Blacklist(b) => {
                blocks.push(block(app, caller, b).map_err(|e| wrong(e.body.message))?);
            }
        }
    }
    Ok((attempts, blocks))
}

fn attempt(app: &App, caller: &Caller, a: ExportedAttempt) -> ApiResult<NewAttempt> {
    let machine = MachineRef::new(&a.provider, &a.machine_id)?;
    known(app, &a.provider)?;
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
    // A clock that runs ahead must not outweigh every attempt to come.
    if a.created_at > app.now().plus(Duration::from_secs(86_400)) || a.created_at < Timestamp(0) {
        return Err(ApiError::invalid("created_at is not a time of the past", ""));
    }
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
        created_at: a.created_at,
        conditions: Conditions {
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

fn block(app: &App, caller: &Caller, b: ExportedBlock) -> ApiResult<NewBlacklist> {
    let machine = MachineRef::new(&b.provider, &b.machine_id)?;
    known(app, &b.provider)?;
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
