//! Interruptible machines: rented for a bid, lost to a higher one, had back or left.

// Helpers of tests are tests, which clippy cannot see.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod world;

use dumont_core::blacklist::LossCause;
use dumont_core::time::Timestamp;
use serde_json::{Value, json};
use std::fs;
use world::{World, spec};

async fn deployed(world: &World, interruptible: Value) -> (String, Value) {
    let mut wanted = spec("train");
    wanted["interruptible"] = interruptible;
    let created = world.post("/workspaces", json!({ "spec": wanted })).await;
    world.done(&created["workflow_id"]).await;
    let workspace = world.get("/workspaces/train").await;
    let id = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let row = world.admin("GET", &format!("/admin/instances/{id}"), None).await;
    (id, row)
}

async fn outbid(world: &World, id: &str) {
    world
        .admin("POST", &format!("/admin/instances/{id}/outbid"), None)
        .await;
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
