//! One instance: show, change, destroy; and the same for many.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::create::label_too_long;
use super::{Shared, fail, no_such_instance, number, object, ok};
use crate::market::{Inner, now_ms};
use crate::rows::instance_row;
use crate::state::Refusal;

/// Longer than at create (Vast.ai docs).
const MAX_LABEL_CHANGE: usize = 1024;

/// A destroyed one reads as null with 200.
pub async fn show(State(inner): Shared, id: Path<String>) -> Response {
    let state = inner.state();
    let row = state
        .alive(number(&id))
        .map(|i| instance_row(&state.universe, i, now_ms()));
    ok(json!({"instances": row}))
}

pub async fn destroy(State(inner): Shared, id: Path<String>) -> Response {
    if inner.destroy(number(&id)).await {
        ok(json!({"success": true}))
    } else {
        no_such_instance(&id.0)
    }
}

pub async fn destroy_many(State(inner): Shared, body: Bytes) -> Response {
    let ids = match object(&body) {
        Ok(body) => ids(body.get("instance_ids")),
        Err(refused) => return *refused,
    };
    for id in ids {
        inner.destroy(id).await;
    }
    ok(json!({"success": true}))
}

pub async fn change(State(inner): Shared, id: Path<String>, body: Bytes) -> Response {
    match object(&body) {
        Ok(body) => apply(&inner, number(&id), &body).await,
        Err(refused) => *refused,
    }
}

pub async fn change_many(State(inner): Shared, body: Bytes) -> Response {
    let body = match object(&body) {
        Ok(body) => body,
        Err(refused) => return *refused,
    };
    for id in ids(body.get("ids")) {
        let answer = apply(&inner, id, &body).await;
        if answer.status() != StatusCode::OK {
            return answer;
        }
    }
    ok(json!({"success": true}))
}

fn ids(list: Option<&Value>) -> Vec<u64> {
    list.and_then(Value::as_array)
        .map(|a| a.iter().filter_map(Value::as_u64).collect())
        .unwrap_or_default()
}

async fn apply(inner: &Arc<Inner>, id: u64, body: &Map<String, Value>) -> Response {
    if inner.state().alive(id).is_none() {
        return no_such_instance(id);
    }
    if let Some(label) = body.get("label") {
        let label = label.as_str().map(str::to_owned);
        if label.as_ref().is_some_and(|l| l.len() > MAX_LABEL_CHANGE) {
            return label_too_long();
        }
        if let Some(instance) = inner.state().alive_mut(id) {
            instance.order.label = label;
        }
    }
    match body.get("state").and_then(Value::as_str) {
        None => ok(json!({"success": true})),
        Some("stopped") => {
            if inner.stop_instance(id).await {
                ok(json!({"success": true}))
            } else {
                no_such_instance(id)
            }
        }
        Some("running") => match inner.start_instance(id) {
            Ok(()) => ok(json!({"success": true})),
            Err(Refusal::NoSuchAsk) => no_such_instance(id),
            // 200, as observed: only the body tells.
            Err(Refusal::Taken) => ok(json!({
                "success": false, "error": "resources_unavailable",
                "msg": "Required resources are currently unavailable, state change queued.",
            })),
        },
        Some(_) => fail(
            StatusCode::BAD_REQUEST,
            "invalid_args",
            "state is running or stopped.",
        ),
    }
}
