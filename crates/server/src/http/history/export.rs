//! `/machines/history/export`: what was learned as JSON lines, so that a team can share it. It is
//! written as it is read, page by page, whatever its length.

use super::{provider, since};
use crate::app::App;
use crate::http::error::ApiResult;
use crate::http::params::Params;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use dumont_core::time::Timestamp;
use dumont_store::{AttemptRow, BlacklistFilter, BlacklistRow, Error as StoreError, Rollup};
use dumont_wire::history::{ExportLine, ExportQuery, ExportedAttempt, ExportedBlock, ExportedRollup};
use futures::stream;
use std::sync::Arc;

/// Rows read at a time.
const PAGE: u32 = 500;

/// What is only counted any more, every attempt that is kept, then every block in force, one
/// JSON object a line.
#[utoipa::path(
    get,
    path = "/machines/history/export",
    tag = "history",
    params(ExportQuery),
    responses((status = 200, description = "JSON lines", body = String, content_type = "application/x-ndjson")),
)]
pub async fn export(State(app): State<Arc<App>>, Params(query): Params<ExportQuery>) -> ApiResult<Response> {
    let place = Place {
        provider: provider(query.provider.as_ref())?,
        since: since(&app, query.period.as_ref())?,
        next: Some(Next::Rollups(None)),
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
    /// After this one.
    Rollups(Option<Box<Rollup>>),
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
        let provider = self.provider.as_deref();
        match next {
            Next::Rollups(after) => {
                let store = &self.app.store;
                let rows = store
                    .export_rollups(provider, self.since, after.as_deref(), PAGE)
                    .await?;
                for row in &rows {
                    line(&mut out, &ExportLine::Rollup(self.counted(row).await?));
                }
                self.next = Some(match rows.into_iter().next_back() {
                    Some(last) => Next::Rollups(Some(Box::new(last))),
                    None => Next::Attempts(0),
                });
            }
            Next::Attempts(after) => {
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
                    .for_each(|row| line(&mut out, &ExportLine::Attempt(Box::new(exported(&self.app, row)))));
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

    /// Counts of another server that we were sent keep its name; we have counted ourselves what
    /// came one by one and has grown old here.
    async fn counted(&self, row: &Rollup) -> Result<ExportedRollup, StoreError> {
        let store = &self.app.store;
        let until = store.rolled_up_until().await?;
        let until = until.max(store.counted_until(&row.source).await?);
        Ok(ExportedRollup {
            source: if row.source.is_empty() {
                self.app.controller_id.clone()
            } else {
                row.source.clone()
            },
            until: until.unwrap_or(row.last_at),
            provider: row.machine.provider.clone(),
            machine_id: row.machine.machine_id.clone(),
            day: row.day,
            success: row.success(),
            reason: Some(row.reason.clone()).filter(|r| !r.is_empty()),
            attempts: row.attempts,
            ready_attempts: row.ready_attempts,
            ready_total_ms: row.ready_total_ms,
            last_at: row.last_at,
        })
    }
}

fn line(out: &mut Vec<u8>, line: &ExportLine) {
    if serde_json::to_writer(&mut *out, line).is_ok() {
        out.push(b'\n');
    }
}

fn exported(app: &App, row: AttemptRow) -> ExportedAttempt {
    let (a, c) = (row.attempt.clone(), row.attempt.conditions);
    ExportedAttempt {
        key: a.attempt_key,
        source: Some(c.source.unwrap_or_else(|| app.controller_id.clone())),
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
