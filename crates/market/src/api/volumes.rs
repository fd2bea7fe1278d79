//! Volumes: search, rent, list, delete.

use std::collections::HashMap;

use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::create::DEFAULT_VOLUME_GB;
use super::{Shared, fail, object, ok};
use crate::market::{now_ms, seconds};
use crate::query::OfferQuery;
use crate::volumes::{NoVolume, VolumeAsk, row};

/// A destroyed instance holds its volume for so many seconds more (public reports).
const RELEASE_S: f64 = 30.0;

pub async fn search(State(inner): Shared, body: Bytes) -> Response {
    let query = match object(&body) {
        Ok(body) => OfferQuery::parse(&body),
        Err(refused) => return *refused,
    };
    let query = match query {
        Ok(query) => query,
        Err(bad) => return fail(StatusCode::BAD_REQUEST, "invalid_args", &bad.to_string()),
    };
    let now = seconds(now_ms());
    let state = inner.state();
    let machines = state.universe.machines.iter().enumerate();
    let asks = machines.map(|(index, machine)| VolumeAsk {
        machine,
        free_gb: state.volumes.free_gb(&state.universe, index),
        storage_gb: query.storage_gb,
        now_s: now,
    });
    ok(json!({"offers": query.select(asks)}))
}

/// All are local: network volumes were withdrawn in July 2026 (public reports).
pub async fn list(State(inner): Shared, Query(query): Query<HashMap<String, String>>) -> Response {
    let state = inner.state();
    let network = query.get("type").is_some_and(|t| t == "network_volume");
    let volumes = state.volumes.all_alive().filter(|_| !network);
    let rows: Vec<Value> = volumes
        .map(|v| row(&state.universe, v, &state.users_of_volume(v.id, i64::MAX)))
        .collect();
    ok(json!({"volumes": rows}))
}

pub async fn rent(State(inner): Shared, body: Bytes) -> Response {
    let body = match object(&body) {
        Ok(body) => body,
        Err(refused) => return *refused,
    };
    let ask = body.get("id").and_then(Value::as_u64).unwrap_or(0);
    let size = body
        .get("size")
        .and_then(Value::as_f64)
        .unwrap_or(DEFAULT_VOLUME_GB);
    let name = body.get("name").and_then(Value::as_str).map(str::to_owned);
    let mut state = inner.state();
    match state.rent_volume(ask, size, name, now_ms()) {
        Ok(id) => {
            let name = state.volumes.alive(id).map(|v| v.name());
            ok(json!({"success": true, "volume_name": name}))
        }
        Err(NoVolume::NoSuchAsk) => fail(
            StatusCode::NOT_FOUND,
            "no_such_ask",
            &format!("Volume offer {ask} is not available."),
        ),
        Err(NoVolume::NoSpace) => fail(
            StatusCode::BAD_REQUEST,
            "invalid_args",
            "size is more than what is left of the offer.",
        ),
    }
}

/// The official client names it in the query, the documentation in the body.
pub async fn delete(
    State(inner): Shared,
    Query(query): Query<HashMap<String, String>>,
    body: Bytes,
) -> Response {
    let body = match object(&body) {
        Ok(body) => body,
        Err(refused) => return *refused,
    };
    let named = query.get("id").and_then(|id| id.parse().ok());
    let id = named
        .or_else(|| body.get("id").and_then(Value::as_u64))
        .unwrap_or(0);
    let now = now_ms();
    let since = now - i64::try_from(inner.scaled(RELEASE_S).as_millis()).unwrap_or(i64::MAX);
    let mut state = inner.state();
    if state.volumes.alive(id).is_none() {
        return fail(
            StatusCode::NOT_FOUND,
            "not_found",
            &format!("Volume {id} not found."),
        );
    }
    let users = state.users_of_volume(id, since);
    if !users.is_empty() {
        let why = format!("Volume {id} is in use by instances {users:?}.");
        return fail(StatusCode::BAD_REQUEST, "volume_in_use", &why);
    }
    state.volumes.delete(id, now);
    drop(state);
    let dir = inner.volume_dir(id);
    inner
        .tasks
        .spawn_blocking(move || drop(std::fs::remove_dir_all(dir)));
    ok(json!({"success": true}))
}
