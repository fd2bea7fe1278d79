//! A race whose controller stops in the middle: what it has waited and what it was refused still
//! counts as it did.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its world fails")]

mod world;

use serde_json::{Value, json};
use std::time::{Duration, Instant};
use world::{World, spec};

/// One racer at a time, and waits that a test can afford.
async fn world(ssh_grace: u64, max_rents: usize) -> World {
    let world = World::instant().await;
    world
        .reconfigured(|w| {
            w.timing.ssh_grace = Duration::from_secs(ssh_grace);
            w.timing.second_look = Duration::from_secs(1);
            w.race.max_rents = max_rents;
        })
        .await
}

async fn begin(world: &World) -> Value {
    let mut wanted = spec("train");
    wanted["failover"] = json!({ "racers": 1 });
    world.post("/workspaces", json!({ "spec": wanted })).await["workflow_id"].clone()
}

/// Waits until a machine is up that nobody gets into.
async fn hangs(world: &World) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let ledger = world.admin("GET", "/admin/ledger", None).await;
        let mut all = ledger["instances"].as_array().unwrap().iter();
        if let Some(id) = all.next().map(|i| i["id"].to_string()) {
            let row = world.admin("GET", &format!("/admin/instances/{id}"), None).await;
            if row["state"] == "running" {
                return;
            }
        }
        assert!(Instant::now() < deadline, "{ledger:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_does_not_open_gets_no_second_grace() {
    let mut world = world(14, 15).await;
    world.arm(json!({ "fault": "ssh_dead" })).await;
    let id = begin(&world).await;
    hangs(&world).await;
    tokio::time::sleep(Duration::from_secs(9)).await;
    world.stop_server().await;
    world.start_server().await;
    world.done(&id).await;
    let attempts = world.attempts(id.as_str().unwrap()).await;
    let first = &attempts[0].attempt;
    let reason = first.reason.as_ref().map(|r| r.as_str());
    assert_eq!(reason, Some("ssh_failed"), "{first:#?}");
    assert!((14.0..20.0).contains(&first.duration_seconds), "{first:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_uses_up_no_rents() {
    let mut world = world(6, 2).await;
    world.arm(json!({ "fault": "create_refused", "count": 2 })).await;
    world.arm(json!({ "fault": "ssh_dead" })).await;
    let id = begin(&world).await;
    hangs(&world).await;
    world.stop_server().await;
    world.start_server().await;
    world.done(&id).await;
    let attempts = world.attempts(id.as_str().unwrap()).await;
    let reasons: Vec<_> = attempts
        .iter()
        .map(|a| a.attempt.reason.as_ref().map(|r| r.as_str()))
        .collect();
    let expected = [Some("no_such_ask"), Some("no_such_ask"), Some("ssh_failed"), None];
    assert_eq!(reasons, expected, "{attempts:#?}");
}
