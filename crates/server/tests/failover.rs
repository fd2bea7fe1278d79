//! One workspace's life: deploy, snapshot, loss, failover, end.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up its world fails")]

mod world;

use serde_json::{Value, json};
use std::fs;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use world::World;
use world::bucket::InProcess;

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_machine_is_replaced_and_every_byte_is_back() {
    let world = World::instant().await;
    let workspace = world.deployed("train").await;
    assert_eq!(workspace["state"], "running");
    let first = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let dir = world.workspace_dir(&first).await;
    fs::create_dir_all(dir.join("models/empty")).unwrap();
    fs::write(dir.join("models/w.bin"), vec![7_u8; 3 << 20]).unwrap();
    fs::write(dir.join("a.txt"), "one").unwrap();

    let base = world.post("/workspaces/train/snapshots", json!({})).await;
    let base = world.done(&base["workflow_id"]).await["result"].clone();
    assert_eq!(base["snapshot_type"], "full");
    fs::write(dir.join("a.txt"), "two, longer").unwrap();
    let incr = world.post("/workspaces/train/snapshots", json!({})).await;
    let incr = world.done(&incr["workflow_id"]).await;
    assert_eq!(incr["result"]["snapshot_type"], "incremental", "{incr:#}");
    assert_eq!(incr["result"]["files_changed"], 1);
    assert_eq!(incr["result"]["base_snapshot_id"], base["snapshot_id"]);
    assert!(
        incr["log"]
            .to_string()
            .contains("Incremental: 1 files changed out of 2 total"),
        "{incr:#}"
    );

    world.kill(&first).await;
    let event = world.failed_over("train").await;
    assert_eq!(event["success"], true, "{event:#}");
    assert_eq!(event["trigger"], "session_reset_and_redial_refused");
    assert_eq!(event["snapshot_id"], incr["result"]["snapshot_id"]);
    assert_eq!(
        event["validation"],
        json!({"validation": "ok", "files_restored": 2, "files_expected": 2})
    );

    // The document's MD5 of model files comes when nobody waits for it any more.
    let models = compared(&world, &event).await;
    assert_eq!(models["validation"], "ok", "{models:#}");
    assert_eq!(
        (&models["files_checked"], &models["files_expected"]),
        (&json!(1), &json!(1))
    );

    let workspace = world.get("/workspaces/train").await;
    let second = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    assert_ne!(first, second);
    let dir = world.workspace_dir(&second).await;
    assert_eq!(fs::read(dir.join("models/w.bin")).unwrap(), vec![7_u8; 3 << 20]);
    assert_eq!(fs::read_to_string(dir.join("a.txt")).unwrap(), "two, longer");
    assert!(dir.join("models/empty").is_dir());
    world.settles_at(1).await;

    let store = dumont_store::Store::open(world.data_dir().join("dumont.db"))
        .await
        .unwrap();
    let attempts = store
        .attempts_of_workflow(event["id"].as_str().unwrap())
        .await
        .unwrap();
    let won: Vec<_> = attempts.iter().filter(|a| a.success == Some(true)).collect();
    assert_eq!(won.len(), 1, "{attempts:#?}");
    assert_eq!(won[0].attempt.instance_id.as_deref(), Some(second.as_str()));

    let (status, started) = world.call("DELETE", "/workspaces/train", None).await;
    assert_eq!(status, 202);
    world.done(&started["workflow_id"]).await;
    world.settles_at(0).await;
}

/// What the comparison of model files found, once there is an answer.
async fn compared(world: &World, event: &Value) -> Value {
    let path = format!("/failovers/{}", event["id"].as_str().unwrap());
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let models = world.get(&path).await["model_files"].clone();
        if !models.is_null() {
            return models;
        }
        assert!(Instant::now() < deadline, "model files were never compared");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn model_files_are_compared_although_the_server_was_restarted() {
    let bucket = InProcess::start().await;
    let mut world = World::on_bucket(bucket.config()).await;
    let workspace = world.deployed("late").await;
    let first = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let dir = world.workspace_dir(&first).await;
    fs::write(dir.join("w.safetensors"), vec![7_u8; 1 << 20]).unwrap();
    let taken = world.post("/workspaces/late/snapshots", json!({})).await;
    world.done(&taken["workflow_id"]).await;
    // No comparison ends before the server does.
    bucket.slow.store(1_500, Ordering::SeqCst);
    world.kill(&first).await;
    let event = world.failed_over("late").await;
    assert!(event["model_files"].is_null(), "{event:#}");
    world.stop_server().await;
    bucket.slow.store(0, Ordering::SeqCst);
    world.start_server().await;
    let models = compared(&world, &event).await;
    assert_eq!(
        (&models["validation"], &models["files_checked"]),
        (&json!("ok"), &json!(1)),
        "{models:#}"
    );
}

/// `AllowTcpForwarding no`: the agent carries the embedded store's bytes itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_forwards_nothing_serves_as_well() {
    let world = World::on_market(|config| {
        config.time_scale = 0.0;
        config.machines = 12;
        config.forwarding = false;
    })
    .await;
    let workspace = world.deployed("closed").await;
    let first = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let dir = world.workspace_dir(&first).await;
    // Several windows of several streams at once, and nothing that compresses.
    let noise = |seed: u32| -> Vec<u8> {
        (0..6_u32 << 20)
            .map(|n| (n.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect()
    };
    for seed in 0..8 {
        fs::write(dir.join(format!("w{seed}.bin")), noise(seed * 7_919)).unwrap();
    }
    let taken = world.post("/workspaces/closed/snapshots", json!({})).await;
    world.done(&taken["workflow_id"]).await;

    world.kill(&first).await;
    let event = world.failed_over("closed").await;
    assert_eq!(event["success"], true, "{event:#}");
    let workspace = world.get("/workspaces/closed").await;
    let second = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let dir = world.workspace_dir(&second).await;
    for seed in 0..8 {
        assert!(fs::read(dir.join(format!("w{seed}.bin"))).unwrap() == noise(seed * 7_919));
    }
    world.settles_at(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_was_asked_for_loses_nothing() {
    let world = World::instant().await;
    let workspace = world.deployed("mover").await;
    let first = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let dir = world.workspace_dir(&first).await;
    fs::write(dir.join("never-snapshotted.txt"), "late").unwrap();

    let started = world
        .post("/workspaces/mover/failover", json!({ "reason": "maintenance" }))
        .await;
    world.done(&started["workflow_id"]).await;
    let event = world.failed_over("mover").await;
    assert_eq!(event["success"], true, "{event:#}");
    assert_eq!(event["trigger"], "maintenance");
    assert_eq!(event["data_loss_ms"], 0);

    let workspace = world.get("/workspaces/mover").await;
    let second = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    assert_ne!(first, second);
    let dir = world.workspace_dir(&second).await;
    assert_eq!(
        fs::read_to_string(dir.join("never-snapshotted.txt")).unwrap(),
        "late"
    );
    world.settles_at(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_stays_rolled_back() {
    let world = World::instant().await;
    let workspace = world.deployed("back").await;
    let first = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let dir = world.workspace_dir(&first).await;
    let mut ids = Vec::new();
    for state in ["good", "broken"] {
        fs::write(dir.join("state"), state).unwrap();
        let started = world.post("/workspaces/back/snapshots", json!({})).await;
        let done = world.done(&started["workflow_id"]).await;
        ids.push(done["result"]["snapshot_id"].clone());
    }
    let started = world
        .post("/workspaces/back/restore", json!({ "snapshot_id": ids[0] }))
        .await;
    world.done(&started["workflow_id"]).await;
    assert_eq!(fs::read_to_string(dir.join("state")).unwrap(), "good");

    world.kill(&first).await;
    let event = world.failed_over("back").await;
    assert_eq!(event["snapshot_id"], ids[0], "{event:#}");
    let workspace = world.get("/workspaces/back").await;
    let second = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let dir = world.workspace_dir(&second).await;
    assert_eq!(fs::read_to_string(dir.join("state")).unwrap(), "good");
}
