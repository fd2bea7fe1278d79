//! `/healthz` for load balancers and supervisors, `/metrics` for Prometheus.
//!
//! Health needs no token and says nothing but whether we work: not why not, which could name
//! hosts and paths to strangers; the log has it. Metrics need a token like every other route:
//! they carry no names, but tell what is rented, for how much, and how often it fails.

use super::error::ApiResult;
use crate::app::App;
use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, StatusCode};
use dumont_wire::rest::{Health, HealthStatus};
use std::sync::Arc;
use std::time::Duration;

/// A probe that hangs is worse than one that fails: its callers have time-outs of seconds.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether the server works. Needs no token.
#[utoipa::path(
    get,
    path = "/healthz",
    tag = "health",
    responses(
        (status = 200, description = "It works", body = Health),
        (status = 503, description = "It runs, but its database does not answer", body = Health),
    ),
)]
pub async fn show(State(app): State<Arc<App>>) -> (StatusCode, Json<Health>) {
    let answered = match tokio::time::timeout(PATIENCE, app.store.database_time()).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => {
            tracing::warn!(%error, "health: the database does not answer");
            false
        }
        Err(_) => {
            tracing::warn!("health: the database does not answer within {PATIENCE:?}");
            false
        }
    };
    let (code, status) = match answered {
        true => (StatusCode::OK, HealthStatus::Ok),
        false => (StatusCode::SERVICE_UNAVAILABLE, HealthStatus::DatabaseUnavailable),
    };
    let version = env!("CARGO_PKG_VERSION").into();
    (code, Json(Health { status, version }))
}

/// Counters, gauges and histograms in Prometheus' text format.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "health",
    responses((status = 200, description = "The text format, version 0.0.4", body = String, content_type = "text/plain; version=0.0.4")),
)]
pub async fn metrics(State(app): State<Arc<App>>) -> ApiResult<([(HeaderName, &'static str); 1], String)> {
    let text = crate::metrics::render(&app).await?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4")], text))
}
