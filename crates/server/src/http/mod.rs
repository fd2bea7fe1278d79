//! The REST API under `/api/v1`: one file per noun, every route behind a token but `/healthz`.

pub mod auth;
pub mod body;
pub mod error;
pub mod failovers;
pub mod imports;
pub mod instances;
pub mod machines;
pub mod params;
pub mod snapshots;
pub mod workflows;
pub mod workspaces;

use crate::app::App;
use axum::extract::Request;
use axum::http::{StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use dumont_wire::rest::Health;
use error::ApiError;
use std::sync::Arc;

/// The whole HTTP surface of the server.
pub fn router(app: Arc<App>) -> Router {
    let api = Router::new()
        .route("/workspaces", get(workspaces::list).post(workspaces::create))
        .route(
            "/workspaces/{name}",
            get(workspaces::show).delete(workspaces::delete),
        )
        .route("/workspaces/{name}/deploy", post(workspaces::deploy))
        .route("/workspaces/{name}/ssh", post(workspaces::ssh))
        .route(
            "/workspaces/{name}/snapshots",
            get(snapshots::list).post(snapshots::create),
        )
        .route("/workspaces/{name}/restore", post(snapshots::restore))
        .route("/workspaces/{name}/failover", post(failovers::run))
        .route("/workspaces/{name}/imports", post(imports::begin))
        .route("/imports/{id}/uploads", post(imports::upload))
        .route("/imports/{id}/commit", post(imports::commit))
        .route("/workflows", get(workflows::list))
        .route("/workflows/{id}", get(workflows::show))
        .route("/failovers", get(failovers::list))
        .route("/failovers/{id}", get(failovers::show))
        .route("/machines", get(machines::list))
        .route("/instances", get(instances::list))
        .layer(from_fn_with_state(app.clone(), auth::require))
        .fallback(unknown_path);
    Router::new()
        .route("/healthz", get(health))
        .nest("/api/v1", api)
        .method_not_allowed_fallback(wrong_method)
        .fallback(unknown_path)
        .with_state(app.clone())
        // The embedded store checks its own signatures: its URLs are the permission.
        .merge(app.object_routes.clone())
        .layer(axum::middleware::from_fn(log))
}

async fn health() -> Json<Health> {
    Json(Health {
        status: "ok".into(),
        version: env!("CARGO_PKG_VERSION").into(),
    })
}

async fn unknown_path(uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "unknown_path",
        format!("there is nothing at {}", uri.path()),
        "the API lives under /api/v1",
    )
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!("{} does not take {}", request.uri().path(), request.method()),
        "see the API's documentation for the methods of this path",
    )
}

/// One line per request, without queries: signed URLs carry their permission there.
async fn log(request: Request, next: Next) -> Response {
    let began = std::time::Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    let elapsed_ms = began.elapsed().as_millis() as u64;
    tracing::debug!(%method, path, status = response.status().as_u16(), elapsed_ms, "request");
    response
}
