//! The Vast protocol over HTTP: routes, keys, the shape of errors.

mod create;
mod guard;
mod instances;
mod listing;
mod logs;
mod offers;
mod ssh_keys;
mod users;
mod volumes;

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{MatchedPath, Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post, put};
use axum::{Json, Router};
use serde_json::{Map, Value, json};

use crate::market::Inner;
use crate::switches::NoSuchInstance;

type Shared = State<Arc<Inner>>;

pub fn router(inner: Arc<Inner>) -> Router {
    let mut router = Router::new();
    for (path, methods) in routes() {
        // Clients differ in the trailing slash; each counts as the same route.
        router = router
            .route(path, methods.clone())
            .route(&format!("{path}/"), methods);
    }
    router
        .fallback(|| async { fail(StatusCode::NOT_FOUND, "not_found", "No such endpoint.") })
        .method_not_allowed_fallback(|| async {
            fail(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "Method not allowed.",
            )
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&inner), guard::limit))
        .layer(middleware::from_fn_with_state(
            Arc::clone(&inner),
            guard::authorize,
        ))
        .layer(middleware::from_fn_with_state(Arc::clone(&inner), guard::dress))
        .layer(middleware::from_fn_with_state(Arc::clone(&inner), count))
        .with_state(inner)
}

fn routes() -> Vec<(&'static str, MethodRouter<Arc<Inner>>)> {
    vec![
        (
            "/api/v0/bundles",
            get(offers::search_by_query).post(offers::search),
        ),
        ("/api/v0/search/asks", put(offers::search_asks)),
        ("/api/v0/asks/{id}", put(create::create)),
        ("/api/v0/asks/bulk", post(create::create_many)),
        ("/api/v1/instances", get(listing::list)),
        (
            "/api/v0/instances",
            get(listing::deprecated)
                .put(instances::change_many)
                .delete(instances::destroy_many),
        ),
        ("/api/v0/instances/filters", get(listing::filters)),
        (
            "/api/v0/instances/{id}",
            get(instances::show)
                .put(instances::change)
                .delete(instances::destroy),
        ),
        ("/api/v0/instances/reboot/{id}", put(instances::reboot)),
        ("/api/v0/instances/recycle/{id}", put(instances::recycle)),
        ("/api/v0/instances/update_template/{id}", put(instances::update)),
        ("/api/v0/instances/bid_price/{id}", put(instances::change_bid)),
        ("/api/v0/instances/request_logs/{id}", put(logs::request)),
        ("/api/v0/instances/command/{id}", put(logs::execute)),
        ("/results/{token}", get(logs::result)),
        (
            "/api/v0/volumes",
            get(volumes::list).put(volumes::rent).delete(volumes::delete),
        ),
        ("/api/v0/volumes/search", post(volumes::search)),
        (
            "/api/v0/instances/{id}/ssh",
            get(ssh_keys::list_attached).post(ssh_keys::attach),
        ),
        ("/api/v0/instances/{id}/ssh/{key}", delete(ssh_keys::detach)),
        ("/api/v0/ssh", get(ssh_keys::list).post(ssh_keys::add)),
        (
            "/api/v0/ssh/{id}",
            put(ssh_keys::replace).delete(ssh_keys::remove),
        ),
        ("/api/v0/users/current", get(users::current)),
        ("/api/v0/gpu_names/unique", get(users::gpu_names)),
    ]
}

/// An error as Vast sends it.
fn fail(status: StatusCode, error: &str, msg: &str) -> Response {
    (
        status,
        Json(json!({"success": false, "error": error, "msg": msg})),
    )
        .into_response()
}

fn ok(value: Value) -> Response {
    Json(value).into_response()
}

fn no_such_instance(inner: &Inner, id: impl std::fmt::Display) -> Response {
    fail(
        StatusCode::NOT_FOUND,
        match inner.config.switches.no_such_instance {
            NoSuchInstance::Instance => "no_such_instance",
            NoSuchInstance::Found => "not_found",
        },
        &format!("Instance {id} not found."),
    )
}

/// A JSON object in a body, whatever its content type; empty counts as `{}`.
fn object(body: &Bytes) -> Result<Map<String, Value>, Box<Response>> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Ok(map),
        _ => Err(Box::new(fail(
            StatusCode::BAD_REQUEST,
            "invalid_args",
            "The body must be a JSON object.",
        ))),
    }
}

/// A list of numbers in a body; what is none is left out.
fn ids(list: Option<&Value>) -> Vec<u64> {
    let list = list.and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_u64).collect()
}

/// Instances and keys have numeric ids; anything else names nothing.
fn number(Path(text): &Path<String>) -> u64 {
    text.parse().unwrap_or(0)
}

/// Counts requests per method and route.
async fn count(State(inner): Shared, path: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let route = path
        .as_ref()
        .map_or("unknown", |p| p.as_str())
        .trim_end_matches('/')
        .to_owned();
    let key = format!("{} {route}/", request.method());
    *inner.state().requests.entry(key).or_insert(0) += 1;
    next.run(request).await
}
