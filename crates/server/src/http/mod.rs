//! The REST API under `/api/v1`: one file per noun, every route behind a token but `/healthz`,
//! the documentation, and notifications, which are signed.

pub mod auth;
pub mod body;
pub mod docs;
pub mod error;
pub mod failovers;
pub mod health;
pub mod history;
pub mod imports;
pub mod instances;
pub mod machines;
pub mod offers;
pub mod openapi;
pub mod own_machines;
pub mod params;
pub mod snapshots;
pub mod spending;
pub mod tokens;
pub mod webhooks;
pub mod workflows;
pub mod workspaces;

use crate::app::App;
use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::get;
use error::ApiError;
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The whole HTTP surface of the server.
pub fn router(app: Arc<App>) -> Router {
    let (open, _) = open_routes().split_for_parts();
    let (guarded, _) = guarded_routes().split_for_parts();
    Router::new()
        .merge(open)
        .merge(guarded.layer(from_fn_with_state(app.clone(), auth::require)))
        .route("/api/openapi.json", get(openapi::serve))
        .route("/api/docs", get(docs::serve))
        .method_not_allowed_fallback(wrong_method)
        .fallback(unknown_path)
        .with_state(app.clone())
        // The embedded store checks its own signatures: its URLs are the permission.
        .merge(app.object_routes.clone().unwrap_or_default())
        .layer(axum::middleware::from_fn(log))
}

/// Everything that needs a token.
fn guarded_routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .nest("/api/v1", api_routes())
        .routes(routes!(health::metrics))
}

/// Every route under `/api/v1`: written here once, it is served behind a token, documented,
/// and walked by the tests of authorization and of conformance.
fn api_routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(workspaces::list, workspaces::create))
        .routes(routes!(workspaces::show, workspaces::delete))
        .routes(routes!(workspaces::deploy))
        .routes(routes!(workspaces::ssh))
        .routes(routes!(workspaces::key))
        .routes(routes!(snapshots::list, snapshots::create))
        .routes(routes!(snapshots::restore))
        .routes(routes!(snapshots::open))
        .routes(routes!(snapshots::pin))
        .routes(routes!(snapshots::prune))
        .routes(routes!(snapshots::repair))
        .routes(routes!(failovers::run))
        .routes(routes!(imports::begin))
        .routes(routes!(imports::upload))
        .routes(routes!(imports::uploaded))
        .routes(routes!(imports::commit))
        .routes(routes!(workflows::list))
        .routes(routes!(workflows::show))
        .routes(routes!(failovers::list))
        .routes(routes!(failovers::show))
        .routes(routes!(machines::list))
        .routes(routes!(history::blacklist::list, history::blacklist::add))
        .routes(routes!(history::blacklist::check))
        .routes(routes!(history::blacklist::remove))
        .routes(routes!(history::summary::summary))
        .routes(routes!(history::attempts::list, history::attempts::report))
        .routes(routes!(history::export::export))
        .routes(routes!(history::import::import))
        .routes(routes!(history::machines::stats))
        .routes(routes!(history::machines::problematic))
        .routes(routes!(history::machines::reliable))
        .routes(routes!(instances::list))
        .routes(routes!(instances::orphans, instances::destroy_orphans))
        .routes(routes!(spending::show))
        .routes(routes!(offers::list))
        .routes(routes!(own_machines::list, own_machines::add))
        .routes(routes!(own_machines::remove))
        .routes(routes!(tokens::list, tokens::create))
        .routes(routes!(tokens::revoke))
}

/// What answers without a token.
fn open_routes() -> OpenApiRouter<Arc<App>> {
    let signed = OpenApiRouter::new().routes(routes!(webhooks::vast));
    OpenApiRouter::new()
        .routes(routes!(health::show))
        .nest("/api/v1", signed)
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
