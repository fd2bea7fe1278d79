//! Renting an offer.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::{Shared, fail, number, object, ok};
use crate::market::Inner;
use crate::net::Peer;
use crate::state::{Order, Refusal, Rented};
use crate::switches::{DirectWord, EnvString, InsufficientCredit, OnstartLimit, StaleOffer, Switches};
use crate::volumes::Wish;

/// Limits as the Vast.ai docs state them.
const MAX_IMAGE: usize = 1024;
pub const MAX_LABEL: usize = 256;
const MIN_DISK_GB: f64 = 8.0;
const DEFAULT_DISK_GB: f64 = 10.0;
/// What the official client asks for when it names no size.
pub const DEFAULT_VOLUME_GB: f64 = 15.0;
/// What a template stands for here: its other contents are not public.
const TEMPLATE_IMAGE: &str = "vastai/base-image:latest";
const PRICES: std::ops::RangeInclusive<f64> = 0.001..=128.0;

pub async fn create(
    State(inner): Shared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    id: Path<String>,
    body: Bytes,
) -> Response {
    match object(&body) {
        Ok(body) => match one(&inner, number(&id), &body) {
            Some(answer) => answer,
            None => unheard(&peer).await,
        },
        Err(response) => *response,
    }
}

/// Several asks at once, with one order: `{"ids": [..], ..}`. The shape of the answer is not
/// documented; the official client only prints it.
pub async fn create_many(
    State(inner): Shared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    body: Bytes,
) -> Response {
    let body = match object(&body) {
        Ok(body) => body,
        Err(response) => return *response,
    };
    let (mut made, mut failed) = (Vec::new(), Vec::new());
    for id in super::ids(body.get("ids")) {
        match order(&body, inner.config.switches).map(|order| inner.create(id, order)) {
            Ok(Ok((rented, _))) if rented.reply_lost => return unheard(&peer).await,
            Ok(Ok((rented, _))) => made.push(rented.id),
            Ok(Err(_)) => failed.push(json!({"ask_id": id, "error": "no_such_ask"})),
            Err((code, why)) => failed.push(json!({"ask_id": id, "error": code, "msg": why})),
        }
    }
    ok(json!({"success": failed.is_empty(), "new_contracts": made, "failed": failed}))
}

/// Done, but nobody will hear of it: the connection goes before the answer.
async fn unheard(peer: &Peer) -> Response {
    peer.cut.cancel();
    std::future::pending().await
}

/// `None` where the answer is lost.
fn one(inner: &Arc<Inner>, offer: u64, body: &Map<String, Value>) -> Option<Response> {
    let bad = |code, why: &str| Some(refused(StatusCode::BAD_REQUEST, code, 3467, why, offer));
    let switches = inner.config.switches;
    let order = match order(body, switches) {
        Ok(order) => order,
        Err((code, why)) => return bad(code, &why),
    };
    match inner.create(offer, order) {
        Ok((rented, _)) if rented.reply_lost => None,
        // Not a success, but a contract: who does not destroy it pays for its disk.
        Ok((
            Rented {
                id, stopped: true, ..
            },
            key,
        )) => Some(ok(json!({
            "success": false, "error": "bid_too_low", "msg": "The bid is too low: created stopped.",
            "new_contract": id, "instance_api_key": key,
        }))),
        Ok((Rented { id, .. }, key)) => Some(ok(
            json!({"success": true, "new_contract": id, "instance_api_key": key}),
        )),
        Err(Refusal::Taken) => Some(gone(offer, switches)),
        Err(Refusal::LowBid) => bad("invalid_price", "The bid is lower than the lowest."),
        Err(Refusal::NoCredit) => Some(no_credit(switches)),
        Err(Refusal::NoVolume) => bad(
            "invalid_args",
            "volume_info names no volume of this machine, or more space than it has",
        ),
        Err(Refusal::NoSuchAsk) => {
            let why = format!("no_such_ask Instance type by id {offer} is not available.");
            Some(refused(StatusCode::NOT_FOUND, "invalid_args", 3603, &why, offer))
        }
    }
}

fn gone(offer: u64, switches: Switches) -> Response {
    let why = format!("no_such_ask Instance type by id {offer} is no longer available.");
    let (status, error, line) = match switches.stale_offer {
        StaleOffer::Gone => (StatusCode::GONE, "no_such_ask", 3907),
        StaleOffer::NotFound => (StatusCode::NOT_FOUND, "invalid_args", 3603),
        StaleOffer::BadRequest => (StatusCode::BAD_REQUEST, "no_such_ask", 3467),
    };
    refused(status, error, line, &why, offer)
}

pub fn no_credit(switches: Switches) -> Response {
    const WHY: &str = "Your account lacks credit; see the billing page.";
    match switches.insufficient_credit {
        InsufficientCredit::Code => fail(StatusCode::BAD_REQUEST, "insufficient_credit", WHY),
        InsufficientCredit::Message => {
            let body = json!({"success": false, "msg": format!("insufficient_credit: {WHY}")});
            (StatusCode::BAD_REQUEST, Json(body)).into_response()
        }
        InsufficientCredit::Payment => fail(StatusCode::PAYMENT_REQUIRED, "insufficient_credit", WHY),
    }
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

fn order(body: &Map<String, Value>, switches: Switches) -> Result<Order, Bad> {
    let invalid = |why: &str| ("invalid_args", why.to_owned());
    let text = |key: &str| body.get(key).and_then(Value::as_str).map(str::to_owned);
    let template = text("template_hash_id");
    let image = match text("image").filter(|image| !image.is_empty()) {
        Some(image) => image,
        None if template.is_some() => TEMPLATE_IMAGE.to_owned(),
        None => return Err(invalid("image is missing")),
    };
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
    if disk_gb < MIN_DISK_GB {
        return Err(invalid("disk is at least 8 GB"));
    }
    let env = env(body.get("env"), switches).map_err(|why| invalid(&why))?;
    let runtype = text("runtype").unwrap_or_default();
    let args = words(body.get("args"));
    let said = args.iter().map(String::len).sum::<usize>() + onstart.as_ref().map_or(0, String::len);
    let most = match switches.onstart_limit {
        OnstartLimit::Long => 16 * 1024,
        OnstartLimit::Short => 4096,
    };
    if said > most {
        return Err(invalid("args and onstart are too long"));
    }
    let direct = match switches.direct_word {
        // The misspelt word is what the official client sends.
        DirectWord::Both => runtype.contains("ssh_direc"),
        DirectWord::Documented => runtype.contains("ssh_direct"),
    };
    Ok(Order {
        direct,
        cancel_unavail: body
            .get("cancel_unavail")
            .and_then(Value::as_bool)
            .unwrap_or(bid.is_none()),
        args,
        template,
        volume: wish(body.get("volume_info")).map_err(|why| invalid(&why))?,
        image,
        label,
        env,
        onstart,
        disk_gb,
        runtype,
        bid,
    })
}

fn words(list: Option<&Value>) -> Vec<String> {
    let words = list.and_then(Value::as_array).into_iter().flatten();
    words.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn wish(info: Option<&Value>) -> Result<Option<Wish>, String> {
    let Some(info) = info.filter(|v| !v.is_null()) else {
        return Ok(None);
    };
    let path = info["mount_path"].as_str().unwrap_or_default();
    let parts = path.strip_prefix('/').unwrap_or_default();
    // It becomes a path of this host: only down, and only plain names.
    if parts.is_empty() || parts.split('/').any(|p| p == "." || p == "..") || path.contains(['\0', '\n']) {
        return Err("volume_info.mount_path is an absolute path".to_owned());
    }
    Ok(Some(Wish {
        id: info["volume_id"]
            .as_u64()
            .ok_or("volume_info.volume_id is a number")?,
        create: info["create_new"].as_bool().unwrap_or(false),
        mount_path: path.to_owned(),
        size_gb: info["size"].as_f64().unwrap_or(DEFAULT_VOLUME_GB),
        name: info["name"].as_str().map(str::to_owned),
    }))
}

/// An object of variables and docker options. A flag string is accepted and not
/// applied, as on the real market (Vast.ai docs).
pub fn env(env: Option<&Value>, switches: Switches) -> Result<Vec<(String, String)>, String> {
    match env {
        Some(Value::String(_)) if switches.env_string == EnvString::Refused => {
            Err("env is an object, no string of flags".to_owned())
        }
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
