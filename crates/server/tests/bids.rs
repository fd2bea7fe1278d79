//! Interruptible machines: rented for a bid, lost to a higher one, had back or left.

// Helpers of tests are tests, which clippy cannot see.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../dumont/tests/proxy/mod.rs"]
mod proxy;
mod world;

use dumont_core::blacklist::LossCause;
use dumont_core::time::Timestamp;
use proxy::{Fault, Proxy, Request, Weather};
use serde_json::{Value, json};
use std::fs;
use std::time::{Duration, Instant};
use world::{World, spec};

async fn deployed(world: &World, interruptible: Value) -> (String, Value) {
    deployed_as(world, json!({ "interruptible": interruptible })).await
}

async fn deployed_as(world: &World, changes: Value) -> (String, Value) {
    let mut wanted = spec("train");
    wanted
        .as_object_mut()
        .unwrap()
        .extend(changes.as_object().unwrap().clone());
    let created = world.post("/workspaces", json!({ "spec": wanted })).await;
    world.done(&created["workflow_id"]).await;
    let workspace = world.get("/workspaces/train").await;
    let id = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let row = world.admin("GET", &format!("/admin/instances/{id}"), None).await;
    (id, row)
}

/// Its event, when the workspace's one failover ended on the machine that was lost.
async fn had_back(world: &World, id: &str) -> Value {
    let event = world.failed_over("train").await;
    let path = format!("/workflows/{}", event["id"].as_str().unwrap());
    let log = &world.get(&path).await["log"];
    assert_eq!(event["success"], true, "{log:#}");
    assert_eq!(event["new_instance_id"], id, "{log:#}");
    event
}

async fn outbid(world: &World, id: &str) {
    world
        .admin("POST", &format!("/admin/instances/{id}/outbid"), None)
        .await;
}

/// As a person does in the provider's console.
async fn stop(world: &World, id: &str) {
    let url = format!("{}/api/v0/instances/{id}/", world.market.url());
    let request = reqwest::Client::new().put(url).bearer_auth("test-key");
    let answer = request.json(&json!({ "state": "stopped" })).send().await.unwrap();
    assert_eq!(answer.json::<Value>().await.unwrap()["success"], true);
}

async fn price(world: &World) -> f64 {
    let workspace = world.get("/workspaces/train").await;
    workspace["instance"]["price"].as_f64().unwrap()
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-6
}

/// Waits until all that is rented costs so much an hour.
async fn costs(world: &World, per_hour: f64) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let spending = world.get("/spending").await;
        if near(spending["per_hour"].as_f64().unwrap(), per_hour) {
            return;
        }
        assert!(Instant::now() < deadline, "not {per_hour}: {spending:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_machine_is_had_back_by_a_higher_bid_with_all_its_files() {
    let world = World::with(0.0, 1).await;
    let (id, _) = deployed(&world, json!({})).await;
    // No snapshot holds this.
    fs::write(
        world.workspace_dir(&id).await.join("new.txt"),
        "since the last snapshot",
    )
    .unwrap();
    let before = world.get("/workspaces/train").await["instance"]["price"]
        .as_f64()
        .unwrap();
    outbid(&world, &id).await;
    let event = world.failed_over("train").await;
    let workflow = world
        .get(&format!("/workflows/{}", event["id"].as_str().unwrap()))
        .await;
    assert_eq!(event["success"], true, "{:#}", workflow["log"]);
    let after = world.get("/workspaces/train").await;
    assert_eq!(
        after["instance"]["instance_id"].as_str().unwrap(),
        id,
        "{after:#}"
    );
    assert!(after["instance"]["price"].as_f64().unwrap() > before, "{after:#}");
    let kept = fs::read_to_string(world.workspace_dir(&id).await.join("new.txt")).unwrap();
    assert_eq!(kept, "since the last snapshot");
    assert_eq!(world.alive().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bid_is_not_raised_over_a_cap() {
    let world = World::with(0.0, 1).await;
    let (id, _) = deployed(&world, json!({})).await;
    let price = world.get("/workspaces/train").await["instance"]["price"]
        .as_f64()
        .unwrap();
    let world = world.reconfigured(|w| w.caps.per_day = price * 1.001).await;
    outbid(&world, &id).await;
    let event = world.failed_over("train").await;
    assert_eq!(event["success"], false, "{event:#}");
    let workflow = world
        .get(&format!("/workflows/{}", event["id"].as_str().unwrap()))
        .await;
    let log = workflow["log"].to_string();
    assert!(log.contains("the bid is not raised: $"), "{log}");
    assert!(!log.contains("raising the bid"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_others_are_cheaper_it_moves_and_the_machine_is_not_blamed() {
    let world = World::instant().await;
    let (id, row) = deployed(&world, json!({"bid": 0.9})).await;
    let machine: u64 = row["machine_id"].as_u64().unwrap();
    outbid(&world, &id).await;
    let event = world.failed_over("train").await;
    assert_eq!(event["success"], true, "{event:#}");
    assert_ne!(event["new_instance_id"].as_str().unwrap(), id);
    // Whatever decided: a session that was reset says nothing of it.
    assert_eq!(event["cause"], "outbid", "{event:#}");
    let machine = format!("vast:{machine}").parse().unwrap();
    let losses = world
        .store()
        .await
        .interrupts_of(&machine, Timestamp(0), 10)
        .await
        .unwrap();
    assert_eq!(
        losses.iter().map(|l| l.cause).collect::<Vec<_>>(),
        [LossCause::Outbid]
    );
    assert!(losses.iter().all(|l| !l.cause.counts()));
    world.settles_at(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bid_that_nobody_takes_is_named_as_the_likely_reason() {
    let world = World::instant().await;
    let mut wanted = spec("train");
    wanted["interruptible"] = json!({ "bid": 0.001 });
    let created = world.post("/workspaces", json!({ "spec": wanted })).await;
    let ended = world.ended(created["workflow_id"].as_str().unwrap()).await;
    assert_eq!(ended["error"]["code"], "no_offers", "{ended:#}");
    assert!(
        ended["error"]["hint"].as_str().unwrap().contains("--bid"),
        "{ended:#}"
    );
}

/// Nobody looks after it, so that it stands until it is back by itself.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_outbid_costs_its_disk_until_it_is_back() {
    let world = World::with(0.0, 3).await;
    let world = world
        .reconfigured(|w| {
            w.timing.sweep = Duration::from_millis(100);
            w.timing.reap = Duration::from_millis(100);
        })
        .await;
    let wanted = json!({ "interruptible": { "bid": 0.9 }, "failover": { "automatic": false } });
    let (id, row) = deployed_as(&world, wanted).await;
    let whole = price(&world).await;
    costs(&world, whole).await;
    outbid(&world, &id).await;
    costs(&world, whole - 0.9).await;
    // The other one goes, and the provider starts it again.
    let url = format!("{}/api/v0/instances/bid_price/{id}/", world.market.url());
    let request = reqwest::Client::new().put(url).bearer_auth("test-key");
    let won = json!({ "client_id": "me", "price": 2.0 });
    request.json(&won).send().await.unwrap();
    costs(&world, whole).await;
    assert!(row["machine_id"].is_u64());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raise_that_dies_with_its_server_is_found_again() {
    let world = World::with(0.0, 1).await;
    let market: reqwest::Url = world.market.url().parse().unwrap();
    let proxy = Proxy::numbering(market.socket_addrs(|| None).unwrap()[0]).await;
    let mut world = world
        .reconfigured(|w| w.vast_url = Some(format!("http://{}", proxy.addr)))
        .await;
    let (id, _) = deployed(&world, json!({})).await;
    let before = price(&world).await;
    // The provider has done it, and nobody here knows.
    let hold = |_: &mut _, request: &Request| {
        request
            .target
            .contains("/bid_price/")
            .then_some(Fault::HoldAnswer)
    };
    proxy.set(Some(Weather::new(1, 1000, hold)));
    outbid(&world, &id).await;
    let raised = |proxy: &Proxy| {
        let sent = proxy.sent();
        sent.iter().filter(|r| r.target.contains("/bid_price/")).count()
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    let bid = loop {
        let row = world.admin("GET", &format!("/admin/instances/{id}"), None).await;
        if raised(&proxy) > 0 && row["state"] == "running" {
            break row["dph_base"].as_f64().unwrap();
        }
        assert!(Instant::now() < deadline, "{row:#}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    world.stop_server().await;
    proxy.set(None);
    world.start_server().await;
    had_back(&world, &id).await;
    let row = world.admin("GET", &format!("/admin/instances/{id}"), None).await;
    assert!(
        near(row["dph_base"].as_f64().unwrap(), bid),
        "raised twice: {row:#}"
    );
    let known = price(&world).await;
    assert!(known > before, "{known} {before}");
    costs(&world, known).await;
    assert_eq!(world.losses(&id).await, [LossCause::Outbid]);
    world.settles_at(1).await;
}

/// No different on demand and for a bid: nothing happened to it, and its disk is as it was.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_person_stopped_is_started_again_at_its_price() {
    for changes in [json!({ "interruptible": {} }), json!({})] {
        let world = World::with(0.0, 3).await;
        let (id, _) = deployed_as(&world, changes).await;
        let before = price(&world).await;
        fs::write(world.workspace_dir(&id).await.join("new.txt"), "kept").unwrap();
        stop(&world, &id).await;
        let event = had_back(&world, &id).await;
        assert_eq!(event["cause"], "user_stop", "{event:#}");
        assert_eq!(event["data_loss_ms"], 0, "{event:#}");
        assert!(near(price(&world).await, before));
        assert_eq!(world.losses(&id).await, [LossCause::UserStop]);
        let kept = fs::read_to_string(world.workspace_dir(&id).await.join("new.txt")).unwrap();
        assert_eq!(kept, "kept");
        world.settles_at(1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_loss_of_a_machine_that_was_had_back_is_recorded() {
    let world = World::with(0.0, 1).await;
    let (id, _) = deployed(&world, json!({})).await;
    outbid(&world, &id).await;
    let first = world.failed_over("train").await;
    assert_eq!(first["success"], true, "{first:#}");
    stop(&world, &id).await;
    let second = world
        .failed_over_again("train", first["id"].as_str().unwrap())
        .await;
    assert_eq!(second["success"], true, "{second:#}");
    assert_eq!(world.losses(&id).await, [LossCause::UserStop, LossCause::Outbid]);
}

/// Waits until the workspace is given up, and says why.
async fn gives_up(world: &World) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let workspace = world.get("/workspaces/train").await;
        if workspace["state"] == "failed" {
            return workspace["message"].as_str().unwrap().to_owned();
        }
        assert!(Instant::now() < deadline, "{workspace:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_that_a_person_starts_has_it_back_as_well() {
    let world = World::with(0.0, 3).await;
    let (id, _) = deployed_as(&world, json!({ "failover": { "automatic": false } })).await;
    fs::write(world.workspace_dir(&id).await.join("new.txt"), "kept").unwrap();
    stop(&world, &id).await;
    let why = gives_up(&world).await;
    assert!(why.contains("is lost (stopped in the account)"), "{why}");
    let started = world.post("/workspaces/train/failover", json!({})).await;
    world.done(&started["workflow_id"]).await;
    let workspace = world.get("/workspaces/train").await;
    assert_eq!(workspace["instance"]["instance_id"], id.as_str(), "{workspace:#}");
    let kept = fs::read_to_string(world.workspace_dir(&id).await.join("new.txt")).unwrap();
    assert_eq!(kept, "kept");
    assert_eq!(world.losses(&id).await, [LossCause::UserStop], "one loss");
    world.settles_at(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_else_is_to_be_had_its_disk_is_kept() {
    let world = World::with(0.0, 1).await;
    let (id, _) = deployed(&world, json!({ "bid": 5.0 })).await;
    fs::write(world.workspace_dir(&id).await.join("new.txt"), "kept").unwrap();
    outbid(&world, &id).await;
    let why = gives_up(&world).await;
    assert!(why.ends_with("the disk of its machine is kept"), "{why}");
    // The reaper has had its rounds.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let kept = fs::read_to_string(world.workspace_dir(&id).await.join("new.txt")).unwrap();
    assert_eq!(kept, "kept");
    let (status, started) = world.call("DELETE", "/workspaces/train", None).await;
    assert_eq!(status, 202, "{started}");
    world.settles_at(0).await;
}
