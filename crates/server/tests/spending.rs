//! Caps on spending, and instances that nobody owns.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up its world fails")]

#[path = "../../dumont/tests/proxy/mod.rs"]
mod proxy;
mod world;

use proxy::{Fault, Proxy, Request, Weather};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use world::{World, spec};

async fn deploy(world: &World, name: &str) -> Value {
    let created = world.post("/workspaces", json!({ "spec": spec(name) })).await;
    world.ended(created["workflow_id"].as_str().unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cap_ends_renting_and_says_so() {
    let world = World::with(0.0, 12).await;
    let world = world.reconfigured(|w| w.caps.per_day = 0.01).await;
    let refused = deploy(&world, "dear").await;
    assert_eq!(refused["status"], "failed", "{refused:#}");
    assert_eq!(refused["error"]["code"], "spending_cap", "{refused:#}");
    let ledger = world.admin("GET", "/admin/ledger", None).await;
    assert_eq!(ledger["totals"]["created"], 0, "{ledger:#}");

    let world = world.reconfigured(|w| w.caps.per_day = 50.0).await;
    let deployed = deploy(&world, "cheap").await;
    assert_eq!(deployed["status"], "done", "{deployed:#}");
    world.settles_at(1).await;
    let spending = world.get("/spending").await;
    let price = world.get("/instances").await["items"][0]["price"]
        .as_f64()
        .unwrap();
    assert!(
        (spending["per_hour"].as_f64().unwrap() - price).abs() < 1e-9,
        "{spending:#}"
    );
    assert_eq!(
        (&spending["cap_per_day"], &spending["cap_per_month"]),
        (&50.0.into(), &1000.0.into())
    );
    assert_eq!(spending["workspaces"][0]["workspace"], "cheap");
    assert!(spending["today"].as_f64().unwrap() > 0.0, "{spending:#}");

    // What runs goes on, and a second one does not fit beside it.
    let world = world.reconfigured(|w| w.caps.per_day = price * 1.5).await;
    assert_eq!(deploy(&world, "second").await["error"]["code"], "spending_cap");
    assert_eq!(world.alive().await, 1);
}

/// Rents behind the server's back, under a label of its own making: what a lost database leaves.
async fn strays(world: &World, count: usize) {
    let label = world.get("/instances").await["items"][0]["label"]
        .as_str()
        .unwrap()
        .to_owned();
    let (ours, _) = label.rsplit_once('/').unwrap();
    let http = reqwest::Client::new();
    let ask = |method: reqwest::Method, path: String, body: Value| {
        let request = http.request(method, format!("{}{path}", world.market.url()));
        let request = request.bearer_auth("test-key").json(&body);
        async move { request.send().await.unwrap().json::<Value>().await.unwrap() }
    };
    let offers = ask(
        reqwest::Method::POST,
        "/api/v0/bundles/".into(),
        json!({ "rentable": { "eq": true } }),
    )
    .await;
    let mut rented = 0;
    for offer in offers["offers"].as_array().unwrap() {
        // A machine may have several offers and be taken with the first.
        let path = format!("/api/v0/asks/{}/", offer["id"]);
        let body = json!({ "image": "alpine", "disk": 10, "runtype": "ssh_proxy",
            "label": format!("{ours}/01ARZ3NDEKTSV4RRFFQ69G5FA{rented}") });
        if ask(reqwest::Method::PUT, path, body).await["success"] == true {
            rented += 1;
        }
        if rented == count {
            return;
        }
    }
    panic!("only {rented} could be rented: {offers:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_orphans_than_the_ceiling_wait_for_a_person() {
    let world = World::with(0.0, 12).await;
    let world = world
        .reconfigured(|w| {
            w.reaper_ceiling = 2;
            w.timing.sweep = Duration::from_millis(200);
            w.timing.reap = Duration::from_millis(200);
        })
        .await;
    assert_eq!(deploy(&world, "owner").await["status"], "done");
    world.settles_at(1).await;
    strays(&world, 3).await;
    while world.get("/spending").await["orphans"] != 3 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(world.alive().await, 4, "above the ceiling nothing is destroyed");
    let first = world.get("/instances/orphans?limit=2").await;
    assert_eq!(first["items"].as_array().unwrap().len(), 2, "{first:#}");
    let after = first["next"].as_str().unwrap();
    let last = world.get(&format!("/instances/orphans?after={after}")).await;
    assert_eq!(
        (last["items"].as_array().unwrap().len(), &last["next"]),
        (1, &Value::Null)
    );

    let (status, gone) = world.call("DELETE", "/instances/orphans", None).await;
    assert_eq!((status, gone.as_array().unwrap().len()), (200, 3), "{gone:#}");
    world.settles_at(1).await;
    assert_eq!(world.get("/instances/orphans").await["items"], json!([]));
    assert_eq!(world.get("/spending").await["orphans"], 0);

    // Below it they go by themselves, and the workspace's own stays.
    strays(&world, 2).await;
    world.settles_at(1).await;
    assert_eq!(world.get("/workspaces/owner").await["state"], "running");
}

/// Of a create that was doubled on its way, the answer that comes is the second's: the offer is gone.
/// What the first one rented has a label whose row says that nothing was rented, so the sweep need
/// not wait until it is old.
#[tokio::test(flavor = "multi_thread")]
async fn the_twin_of_a_refused_create_is_destroyed_by_the_next_sweep() {
    let world = World::with(0.0, 12).await;
    let market: reqwest::Url = world.market.url().parse().unwrap();
    let proxy = Proxy::start(market.socket_addrs(|| None).unwrap()[0]).await;
    let world = world
        .reconfigured(|w| {
            w.vast_url = Some(format!("http://{}", proxy.addr));
            w.timing.sweep = Duration::from_secs(1);
            w.timing.reap = Duration::from_millis(200);
        })
        .await;
    let mut left = 1;
    let doubles_the_first = move |_: &mut _, request: &Request| {
        let create = request.method == "PUT" && request.target.starts_with("/api/v0/asks/");
        let doubled = create && left > 0;
        left -= i32::from(doubled);
        doubled.then_some(Fault::Double)
    };
    proxy.set(Some(Weather::new(1, 1000, doubles_the_first)));
    let began = Instant::now();
    assert_eq!(deploy(&world, "owner").await["status"], "done");
    world.settles_at(1).await;
    let took = began.elapsed();
    assert!(took < world.timing.orphan_grace / 4, "{took:?}");

    let attempts = world.get("/machines/history/attempts").await;
    let refused = |a: &&Value| a["reason"] == "no_such_ask";
    let refused = attempts["items"].as_array().unwrap().iter().filter(refused);
    assert_eq!(refused.count(), 1, "{attempts:#}");
    let ledger = world.admin("GET", "/admin/ledger", None).await;
    let labels = ledger["labels"].as_object().unwrap();
    assert!(labels.values().all(|l| l["created"] == 1), "{labels:#?}");
    let on = world.get("/workspaces/owner").await["instance"]["instance_id"].clone();
    assert!(on.is_string(), "the workspace's own stays");
}
