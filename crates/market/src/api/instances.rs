//! One instance: show, change, destroy; and the same for many.

use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::create::{env, label_too_long, no_credit};
use super::guard::{FromInside, unauthorized};
use super::{Shared, fail, ids, no_such_instance, number, object, ok};
use crate::market::{Inner, now_ms};
use crate::rows::InstanceView;
use crate::state::Refusal;
use crate::switches::{QueuedStart, SingleRead};

/// Longer than at create (Vast.ai docs).
const MAX_LABEL_CHANGE: usize = 1024;

/// $/h (Vast.ai docs).
const MIN_BID: f64 = 0.001;
const MAX_BID_PER_GPU: f64 = 32.0;

/// A destroyed one reads as null with 200.
pub async fn show(State(inner): Shared, id: Path<String>) -> Response {
    let state = inner.state();
    let instance = state.alive(number(&id));
    let view = instance.and_then(|i| InstanceView::new(&state, i, now_ms()));
    let mut row = view.map(|view| json!(view));
    if let (Some(Value::Object(row)), SingleRead::NoVolumes) = (&mut row, state.switches.single_read) {
        row.remove("volume_info");
    }
    ok(json!({"instances": row}))
}

pub async fn destroy(State(inner): Shared, id: Path<String>) -> Response {
    if inner.destroy(number(&id)).await {
        ok(json!({"success": true}))
    } else {
        no_such_instance(&inner, &id.0)
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

pub async fn change(
    State(inner): Shared,
    id: Path<String>,
    inside: Option<Extension<FromInside>>,
    body: Bytes,
) -> Response {
    match object(&body) {
        Ok(body) if inside.is_some() && body.keys().any(|key| key != "state") => {
            unauthorized(&inner, "", "Unable to authorize instance API key")
        }
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

async fn apply(inner: &Arc<Inner>, id: u64, body: &Map<String, Value>) -> Response {
    if inner.state().alive(id).is_none() {
        return no_such_instance(inner, id);
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
                no_such_instance(inner, id)
            }
        }
        Some("running") => match inner.start_instance(id) {
            Ok(()) => ok(json!({"success": true})),
            Err(Refusal::NoCredit) => no_credit(inner.config.switches),
            Err(Refusal::NoSuchAsk | Refusal::NoVolume | Refusal::LowBid) => no_such_instance(inner, id),
            // 200, as observed: only the body tells.
            Err(Refusal::Taken) => {
                let persists = inner.config.switches.queued_start == QueuedStart::Persists;
                if let Some(instance) = inner.state().alive_mut(id) {
                    instance.queued = persists;
                }
                ok(json!({
                    "success": false, "error": "resources_unavailable",
                    "msg": "Required resources are currently unavailable, state change queued.",
                }))
            }
        },
        Some(_) => fail(
            StatusCode::BAD_REQUEST,
            "invalid_args",
            "state is running or stopped.",
        ),
    }
}

pub async fn reboot(State(inner): Shared, id: Path<String>) -> Response {
    restart(&inner, number(&id), false).await
}

/// Its container is made anew, from the image.
pub async fn recycle(State(inner): Shared, id: Path<String>) -> Response {
    restart(&inner, number(&id), true).await
}

/// What becomes of one that is not running is not documented: nothing, and no error.
async fn restart(inner: &Arc<Inner>, id: u64, anew: bool) -> Response {
    if inner.state().alive(id).is_none() {
        return no_such_instance(inner, id);
    }
    inner.restart(id, anew).await;
    ok(json!({"success": true}))
}

/// Another image, environment or start script, and the container made anew with it.
pub async fn update(State(inner): Shared, id: Path<String>, body: Bytes) -> Response {
    let (id, body) = match object(&body) {
        Ok(body) => (number(&id), body),
        Err(refused) => return *refused,
    };
    if let Some(instance) = inner.state().alive_mut(id) {
        let text = |key: &str| body.get(key).and_then(Value::as_str).map(str::to_owned);
        let order = &mut instance.order;
        if let Some(image) = text("image") {
            order.image = image;
        }
        if let Some(onstart) = text("onstart") {
            order.onstart = Some(onstart);
        }
        if let Some(template) = text("template_hash_id") {
            order.template = Some(template);
        }
        if body.contains_key("env") {
            match env(body.get("env"), inner.config.switches) {
                Ok(env) => order.env = env,
                Err(why) => return fail(StatusCode::BAD_REQUEST, "invalid_args", &why),
            }
        }
    }
    restart(&inner, id, true).await
}

pub async fn change_bid(State(inner): Shared, id: Path<String>, body: Bytes) -> Response {
    let (id, body) = match object(&body) {
        Ok(body) => (number(&id), body),
        Err(refused) => return *refused,
    };
    let Some(gpus) = inner.state().alive(id).map(|i| i.gpus.len()) else {
        return no_such_instance(&inner, id);
    };
    let most = MAX_BID_PER_GPU * gpus as f64;
    let price = match body.get("price") {
        None | Some(Value::Null) => None,
        Some(value) => match value.as_f64().filter(|p| (MIN_BID..=most).contains(p)) {
            Some(price) => Some(price),
            None => {
                let why = format!("price is between {MIN_BID} and {most} $/h");
                return fail(StatusCode::BAD_REQUEST, "invalid_price", &why);
            }
        },
    };
    match inner.change_bid(id, price) {
        Some(()) => ok(json!({"success": true})),
        None => fail(
            StatusCode::BAD_REQUEST,
            "invalid_args",
            &format!("Instance {id} is not interruptible."),
        ),
    }
}
