//! Snapshots that nobody asked for.

#![allow(clippy::unwrap_used, reason = "test code")]

mod world;

use serde_json::{Value, json};
use std::fs;
use std::time::{Duration, Instant};
use world::World;

const EVERY: Duration = Duration::from_secs(2);

async fn often(world: World) -> World {
    world
        .reconfigured(|w| {
            w.snapshot_every = EVERY;
            w.timing.schedule = Duration::from_millis(100);
        })
        .await
}

async fn snapshots(world: &World, name: &str) -> Vec<Value> {
    let page = world.get(&format!("/workspaces/{name}/snapshots")).await;
    page["items"].as_array().unwrap().clone()
}

/// Waits until the workspace has more than `n`.
async fn more_than(world: &World, name: &str, n: usize) -> Vec<Value> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let all = snapshots(world, name).await;
        if all.len() > n {
            return all;
        }
        let shown = world.get(&format!("/workspaces/{name}")).await;
        assert!(Instant::now() < deadline, "no snapshot after {n}: {shown:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn problem(world: &World, name: &str, code: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let shown = world.get(&format!("/workspaces/{name}")).await;
        if shown["snapshot_problem"]["code"] == code {
            return;
        }
        assert!(Instant::now() < deadline, "it is not said: {shown:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_workspace_is_snapshotted_by_itself_whatever_becomes_of_the_server() {
    let mut world = often(World::instant().await).await;
    let quiet = json!({ "name": "quiet", "snapshot": { "every_minutes": 0 } });
    let made = world.post("/workspaces", json!({ "spec": quiet })).await;
    world.done(&made["workflow_id"]).await;
    let workspace = world.deployed("busy").await;
    assert!(workspace["next_snapshot_at"].is_i64(), "{workspace:#}");
    assert!(workspace["snapshot_problem"].is_null());
    let instance = workspace["instance"]["instance_id"].as_str().unwrap();
    let dir = world.workspace_dir(instance).await;
    fs::write(dir.join("a"), "one").unwrap();
    more_than(&world, "busy", 1).await;

    world.stop_server().await;
    tokio::time::sleep(EVERY).await;
    world.start_server().await;
    let before = snapshots(&world, "busy").await.len();
    let all = more_than(&world, "busy", before).await;
    // Newest first, and none sooner than nine tenths after the one before it.
    for pair in all.windows(2) {
        let at = |s: &Value| s["created_at"].as_i64().unwrap();
        let between = at(&pair[0]) - at(&pair[1]);
        assert!(between as u128 >= EVERY.as_micros() * 9 / 10, "{all:#?}");
    }
    assert!(snapshots(&world, "quiet").await.is_empty(), "it wants none");
    let quiet = world.get("/workspaces/quiet").await;
    assert!(quiet["next_snapshot_at"].is_null(), "{quiet:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_fails_is_told_and_tried_again() {
    let world = often(World::instant().await).await;
    let spec = json!({
        "name": "flushing",
        "snapshot": { "before": "test -e may || { echo not now; false; }" },
    });
    let made = world.post("/workspaces", json!({ "spec": spec })).await;
    world.done(&made["workflow_id"]).await;
    problem(&world, "flushing", "hook").await;
    assert!(snapshots(&world, "flushing").await.is_empty());
    let workspace = world.get("/workspaces/flushing").await;
    let instance = workspace["instance"]["instance_id"].as_str().unwrap();
    fs::write(world.workspace_dir(instance).await.join("may"), "").unwrap();
    more_than(&world, "flushing", 0).await;
    let workspace = world.get("/workspaces/flushing").await;
    assert!(workspace["snapshot_problem"].is_null(), "{workspace:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mixture_is_never_taken_unasked() {
    let world = often(World::instant().await).await;
    let workspace = world.deployed("half").await;
    let instance = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let dir = world.workspace_dir(&instance).await;
    fs::write(dir.join("a"), "as it was").unwrap();
    more_than(&world, "half", 0).await;
    let packs = world.data_dir().join(format!(
        "objects/objects/workspaces/{}/packs",
        workspace["id"].as_str().unwrap()
    ));
    fs::rename(&packs, packs.with_extension("away")).unwrap();
    // One that is under way may be in the way.
    let failed = loop {
        let (status, back) = world
            .call("POST", "/workspaces/half/restore", Some(json!({})))
            .await;
        if status == 202 {
            break world.ended(back["workflow_id"].as_str().unwrap()).await;
        }
        assert_eq!(back["code"], "workspace_busy", "{back:#}");
        assert_eq!(back["workflow"]["kind"], "snapshot", "{back:#}");
    };
    assert_eq!(failed["status"], "failed", "{failed:#}");
    problem(&world, "half", "half_restored").await;
    let before = snapshots(&world, "half").await.len();
    tokio::time::sleep(EVERY * 3).await;
    assert_eq!(snapshots(&world, "half").await.len(), before);
    let shown = world.get("/workspaces/half").await;
    assert!(shown["next_snapshot_at"].is_null(), "{shown:#}");

    fs::rename(packs.with_extension("away"), &packs).unwrap();
    let back = world.post("/workspaces/half/restore", json!({})).await;
    world.done(&back["workflow_id"]).await;
    more_than(&world, "half", before).await;
}
