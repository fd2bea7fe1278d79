//! The operator's side: the ledger, the killing, the faults and their rules.
//!
//! No authentication, so it is only ever served on loopback.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::faults::{Fault, Rule};
use crate::machine;
use crate::market::{Inner, now_ms};
use crate::state::{Instance, State as MarketState, Status};
use crate::webhook::Webhook;

type Shared = State<Arc<Inner>>;

pub fn router(inner: Arc<Inner>) -> Router {
    Router::new()
        .route("/admin/market", get(market))
        .route("/admin/ledger", get(ledger))
        .route("/admin/requests", get(requests))
        .route("/admin/requests/log", get(request_log))
        .route("/admin/faults", get(armed).post(arm).delete(clear))
        .route("/admin/instances/{id}", get(instance))
        .route("/admin/rules", get(rules).put(set_rules))
        .route("/admin/instances/{id}/kill", post(kill))
        .route("/admin/instances/{id}/outbid", post(outbid))
        .route("/admin/instances/{id}/offline", post(offline))
        .route("/admin/credit", put(credit))
        .route("/admin/webhook", put(webhook))
        .route("/admin/instances/{id}/end", post(end))
        .route("/admin/instances/{id}/silent", post(silent))
        .route("/admin/instances/{id}/freeze", post(freeze))
        .route("/admin/instances/{id}/online", post(online))
        .fallback(|| async { not_found("no such endpoint") })
        .with_state(inner)
}

fn not_found(why: &str) -> Response {
    (
        StatusCode::NOT_FOUND,
        Json(json!({"error": "not_found", "msg": why})),
    )
        .into_response()
}

async fn market(State(inner): Shared) -> Json<Value> {
    Json(json!({
        "seed": inner.config.seed, "machines": inner.config.machines, "isolation": inner.kind.as_str(),
        "time_scale": inner.config.time_scale, "data_dir": inner.config.data_dir,
    }))
}

async fn ledger(State(inner): Shared) -> Json<Value> {
    let (state, now) = (inner.state(), now_ms());
    let all = || state.instances.values();
    let sum = |what: fn(&Instance, i64) -> f64| -> f64 { total(all().map(|i| what(i, now))) };
    let alive = all().filter(|i| i.alive()).count();
    let (gpu, storage) = (sum(gpu_cost), sum(storage_cost));
    let bandwidth = sum(|i, _| i.bandwidth_cost());
    Json(json!({
        "instances": all().map(|i| entry(&state, i, now)).collect::<Vec<_>>(),
        "labels": labels(&state, now),
        "volumes": volumes(&state, now),
        "alive": alive,
        "totals": {
            "created": state.instances.len(), "destroyed": state.instances.len() - alive, "alive": alive,
            "killed": all().filter(|i| i.killed_ms.is_some()).count(),
            "gpu_seconds_billed": sum(gpu_seconds), "gpu_cost": gpu, "storage_cost": storage,
            "bandwidth_cost": bandwidth, "cost": gpu + storage + bandwidth,
        },
    }))
}

/// Who has spent what, and who has left something behind: what is alive costs on.
fn labels(state: &MarketState, now: i64) -> Value {
    let mut labels: BTreeMap<&str, Vec<&Instance>> = BTreeMap::new();
    for instance in state.instances.values() {
        let label = instance.order.label.as_deref().unwrap_or_default();
        labels.entry(label).or_default().push(instance);
    }
    let row = |(label, all): (&str, Vec<&Instance>)| {
        let sum = |what: fn(&Instance, i64) -> f64| -> f64 { total(all.iter().map(|i| what(i, now))) };
        let alive: Vec<&&Instance> = all.iter().filter(|i| i.alive()).collect();
        let row = json!({
            "created": all.len(), "destroyed": all.len() - alive.len(),
            "alive": alive.iter().map(|i| i.id).collect::<Vec<_>>(),
            "oldest_alive_ms": alive.iter().map(|i| i.created_ms).min(),
            "costs_per_hour": total(alive.iter().map(|i| i.price.storage_total_cost
                + if i.status == Status::Running { i.price.dph_base } else { 0.0 })),
            "gpu_cost": sum(gpu_cost), "storage_cost": sum(storage_cost),
            "bandwidth_cost": sum(|i, _| i.bandwidth_cost()), "cost": sum(Instance::cost),
        });
        (label.to_owned(), row)
    };
    Value::Object(labels.into_iter().map(row).collect())
}

fn volumes(state: &MarketState, now: i64) -> Value {
    let entry = |v: &crate::volumes::Volume| {
        json!({"id": v.id, "name": v.name(), "size_gb": v.size_gb, "created_ms": v.created_ms,
            "deleted_ms": v.deleted_ms, "cost": v.cost(&state.universe, now)})
    };
    state.volumes.all().map(entry).collect()
}

/// Of nothing it is 0; `sum` makes that -0.
fn total(dollars: impl Iterator<Item = f64>) -> f64 {
    dollars.fold(0.0, |sum, more| sum + more)
}

fn gpu_cost(i: &Instance, now: i64) -> f64 {
    i.meter.gpu_cost(i.price, now)
}

fn storage_cost(i: &Instance, now: i64) -> f64 {
    i.meter.storage_cost(i.price, now)
}

fn gpu_seconds(i: &Instance, now: i64) -> f64 {
    i.meter.running_seconds(now) * i.gpus.len() as f64
}

fn entry(state: &MarketState, i: &Instance, now: i64) -> Value {
    let machine = state.universe.machines.get(i.machine);
    json!({
        "id": i.id, "offer_id": i.offer_id, "machine_id": machine.map(|m| m.machine_id),
        "host_id": machine.map(|m| m.host_id), "label": i.order.label, "num_gpus": i.gpus.len(),
        "state": if i.alive() { i.status.word() } else { "destroyed" },
        "created_ms": i.created_ms, "started_ms": i.started_ms, "destroyed_ms": i.destroyed_ms,
        "killed_ms": i.killed_ms, "running_seconds": i.meter.running_seconds(now),
        "gpu_seconds_billed": gpu_seconds(i, now), "dph_base": i.price.dph_base,
        "gpu_cost": gpu_cost(i, now), "storage_cost": storage_cost(i, now),
        "bandwidth_cost": i.bandwidth_cost(), "cost": i.cost(now), "ends_ms": i.ends_ms,
        "traffic": {"inwards": i.traffic.inwards, "outwards": i.traffic.outwards},
    })
}

async fn instance(State(inner): Shared, Path(id): Path<u64>) -> Response {
    let (state, now) = (inner.state(), now_ms());
    let Some(i) = state.instances.get(&id) else {
        return not_found("no such instance");
    };
    let mut entry = entry(&state, i, now);
    let dir = inner.instance_dir(id);
    if let Value::Object(map) = &mut entry {
        map.insert("dir".to_owned(), json!(dir));
        map.insert("workspace_dir".to_owned(), json!(machine::workspace(&dir)));
        map.insert("ssh_port".to_owned(), json!(i.ssh_port()));
        map.insert(
            "init_pid".to_owned(),
            json!(i.live.as_ref().map(|m| m.init_pid())),
        );
        map.insert("isolation".to_owned(), json!(inner.kind.as_str()));
        let order = &i.order;
        let order =
            json!({"image": order.image, "label": order.label, "env": order.env, "onstart": order.onstart});
        map.insert("order".to_owned(), order);
        map.insert("faults".to_owned(), json!(i.faults));
        map.insert("refused_logins".to_owned(), json!(i.refused_logins));
    }
    Json(entry).into_response()
}

async fn kill(
    State(inner): Shared,
    Path(id): Path<u64>,
    Query(query): Query<HashMap<String, u64>>,
) -> Response {
    let after = Duration::from_millis(query.get("status_after_ms").copied().unwrap_or(0));
    match inner.kill(id, after).await {
        Some(died) => Json(json!({"id": id, "killed_ms": died, "gone_ms": now_ms()})).into_response(),
        None => not_found("no such instance, or destroyed already"),
    }
}

fn done(id: u64, done: bool) -> Response {
    if done {
        Json(json!({"id": id})).into_response()
    } else {
        not_found("no such instance, or no machine of it is up")
    }
}

async fn outbid(State(inner): Shared, Path(id): Path<u64>) -> Response {
    done(id, inner.outbid(id, None).await)
}

/// With `for_ms` it comes back by itself.
async fn offline(
    State(inner): Shared,
    Path(id): Path<u64>,
    Query(query): Query<HashMap<String, u64>>,
) -> Response {
    let length = query.get("for_ms").copied().map(Duration::from_millis);
    done(id, inner.offline(id, length))
}

/// Its contract is over.
async fn end(State(inner): Shared, Path(id): Path<u64>) -> Response {
    let ended = inner.state().end(id, now_ms());
    done(id, ended)
}

/// So many dollars are left from now on: `{"credit": 0}`.
async fn credit(State(inner): Shared, Json(body): Json<Value>) -> Response {
    let Some(left) = body["credit"].as_f64() else {
        let body = json!({"error": "invalid_args", "msg": "credit is a number of dollars"});
        return (StatusCode::BAD_REQUEST, Json(body)).into_response();
    };
    let mut state = inner.state();
    state.credit = left + state.spent(now_ms());
    Json(json!({"credit": left})).into_response()
}

/// Where notifications go from now on: `{"url": …, "secret": …}`.
async fn webhook(State(inner): Shared, Json(hook): Json<Webhook>) -> Json<Value> {
    let shown = json!({"url": hook.url});
    *machine::lock(&inner.webhook) = Some(hook);
    Json(shown)
}

/// Its host stops to report; `online` ends that, too.
async fn silent(State(inner): Shared, Path(id): Path<u64>) -> Response {
    let done_so = inner.state().silence(id, now_ms());
    done(id, done_so)
}

/// Paused; `online` ends that, too.
async fn freeze(State(inner): Shared, Path(id): Path<u64>) -> Response {
    done(id, inner.freeze(id))
}

async fn online(State(inner): Shared, Path(id): Path<u64>) -> Response {
    done(id, inner.plug(id, true))
}

async fn rules(State(inner): Shared) -> Json<Value> {
    Json(json!({"rules": inner.state().faults.rules()}))
}

/// Replaces them all.
async fn set_rules(State(inner): Shared, Json(rules): Json<Vec<Rule>>) -> Response {
    if let Some(bad) = rules.iter().find(|r| !(0.0..=1.0).contains(&r.chance)) {
        let msg = format!("chance is between 0 and 1, not {}", bad.chance);
        let body = json!({"error": "invalid_args", "msg": msg});
        return (StatusCode::BAD_REQUEST, Json(body)).into_response();
    }
    inner.state().faults.set_rules(rules);
    Json(json!({"rules": inner.state().faults.rules()})).into_response()
}

async fn armed(State(inner): Shared) -> Json<Value> {
    Json(json!({"faults": inner.state().faults.armed()}))
}

async fn arm(State(inner): Shared, Json(fault): Json<Fault>) -> Json<Value> {
    inner.state().faults.arm(fault);
    Json(json!({"faults": inner.state().faults.armed()}))
}

async fn clear(State(inner): Shared) -> Json<Value> {
    inner.state().faults.clear();
    Json(json!({"faults": []}))
}

async fn request_log(State(inner): Shared) -> Json<Value> {
    let log = inner.state().asked.clone();
    Json(json!({"requests": log}))
}

async fn requests(State(inner): Shared) -> Json<Value> {
    let (counts, refused) = {
        let state = inner.state();
        (state.requests.clone(), state.refused.clone())
    };
    Json(json!({"total": counts.values().sum::<u64>(), "counts": counts, "refused": refused}))
}
