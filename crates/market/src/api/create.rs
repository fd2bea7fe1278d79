//! Renting an offer.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::{Shared, fail, number, object, ok};
use crate::net::Peer;
use crate::state::{Order, Refusal, Rented};

/// Limits as the Vast.ai docs state them.
const MAX_IMAGE: usize = 1024;
pub const MAX_LABEL: usize = 256;
const MAX_ONSTART: usize = 16 * 1024;
const MIN_DISK_GB: f64 = 8.0;
const DEFAULT_DISK_GB: f64 = 10.0;
const PRICES: std::ops::RangeInclusive<f64> = 0.001..=128.0;

pub async fn create(
    State(inner): Shared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    id: Path<String>,
    body: Bytes,
) -> Response {
    let offer = number(&id);
    let order = match object(&body) {
        Ok(body) => match order(&body) {
            Ok(order) => order,
            Err((code, why)) => return refused(StatusCode::BAD_REQUEST, code, 3467, &why, offer),
        },
        Err(response) => return *response,
    };
    match inner.create(offer, order) {
        Ok((
            Rented {
                id,
                reply_lost: false,
            },
            key,
        )) => ok(json!({"success": true, "new_contract": id, "instance_api_key": key})),
        Ok(_) => {
            // Done, but nobody will hear of it: the connection goes before the answer.
            peer.cut.cancel();
            std::future::pending().await
        }
        Err(Refusal::Taken) => gone(offer),
        Err(Refusal::NoSuchAsk) => {
            let why = format!("no_such_ask Instance type by id {offer} is not available.");
            refused(StatusCode::NOT_FOUND, "invalid_args", 3603, &why, offer)
        }
    }
}

fn gone(offer: u64) -> Response {
    let why = format!("no_such_ask Instance type by id {offer} is no longer available.");
    refused(StatusCode::GONE, "no_such_ask", 3907, &why, offer)
}

fn refused(status: StatusCode, error: &str, line: u32, why: &str, offer: u64) -> Response {
    let msg = format!("error {}/{line}: {why}", status.as_u16());
    (
        status,
        Json(json!({"success": false, "error": error, "msg": msg, "ask_id": offer})),
    )
        .into_response()
}

type Bad = (&'static str, String);

fn order(body: &Map<String, Value>) -> Result<Order, Bad> {
    let invalid = |why: &str| ("invalid_args", why.to_owned());
    let text = |key: &str| body.get(key).and_then(Value::as_str).map(str::to_owned);
    let image = text("image").unwrap_or_default();
    if image.is_empty() && text("template_hash_id").is_none() {
        return Err(invalid("image is missing"));
    }
    let disk_gb = match body.get("disk") {
        None | Some(Value::Null) => DEFAULT_DISK_GB,
        Some(v) => v.as_f64().ok_or_else(|| invalid("disk is a number of GB"))?,
    };
    let bid = match body.get("price") {
        None | Some(Value::Null) => None,
        Some(v) => Some(v.as_f64().filter(|p| PRICES.contains(p)).ok_or_else(|| {
            (
                "invalid_price",
                format!("price is between {} and {} $/h", PRICES.start(), PRICES.end()),
            )
        })?),
    };
    let (label, onstart) = (text("label"), text("onstart"));
    if image.len() > MAX_IMAGE {
        return Err(invalid("image is too long"));
    }
    if label.as_ref().is_some_and(|l| l.len() > MAX_LABEL) {
        return Err(invalid("label is too long"));
    }
    if onstart.as_ref().is_some_and(|o| o.len() > MAX_ONSTART) {
        return Err(invalid("onstart is too long"));
    }
    if disk_gb < MIN_DISK_GB {
        return Err(invalid("disk is at least 8 GB"));
    }
    let env = env(body.get("env")).map_err(|why| invalid(&why))?;
    let runtype = text("runtype").unwrap_or_default();
    Ok(Order {
        image,
        label,
        env,
        onstart,
        disk_gb,
        runtype,
        bid,
    })
}

/// An object of variables and docker options. A flag string is accepted and not
/// applied, as on the real market (Vast.ai docs).
fn env(env: Option<&Value>) -> Result<Vec<(String, String)>, String> {
    match env {
        None | Some(Value::Null | Value::String(_)) => Ok(Vec::new()),
        Some(Value::Object(map)) => Ok(map
            .iter()
            .map(|(k, v)| (k.clone(), v.as_str().map_or_else(|| v.to_string(), str::to_owned)))
            .collect()),
        Some(_) => Err("env is an object".to_owned()),
    }
}

pub fn label_too_long() -> Response {
    fail(
        StatusCode::BAD_REQUEST,
        "label_too_long",
        "The label is too long.",
    )
}
