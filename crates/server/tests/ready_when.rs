//! A failover whose workload starts before the last byte.

mod world;

use serde_json::json;
use std::fs;
use std::sync::atomic::Ordering;
use world::World;
use world::bucket::InProcess;

/// Without an end that repeats: what repeats is stored once, and nothing would be left to come late.
fn noise(bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new().finalize_xof().fill(&mut out);
    out
}

/// The rest comes long after what the workload needs, however fast this machine is.
fn trickle(bucket: &InProcess) {
    bucket.in_turn.store(true, Ordering::SeqCst);
    bucket.slow.store(400, Ordering::SeqCst);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workload_starts_while_the_rest_is_restored() {
    let bucket = InProcess::start().await;
    let world = World::on_bucket(bucket.config()).await;
    let spec = json!({
        "name": "early",
        "disk_gb": 20,
        // Files that are not complete have mode 600.
        "start": "(stat -c %a weights || echo none) > seen; echo changed >> app.txt; exec sleep 100000",
        "snapshot": { "ready_when": ["app.txt", "seen"] },
    });
    let made = world.post("/workspaces", json!({ "spec": spec })).await;
    world.done(&made["workflow_id"]).await;
    let workspace = world.get("/workspaces/early").await;
    let first = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let dir = world.workspace_dir(&first).await;
    let noise = noise(96 << 20);
    fs::write(dir.join("weights"), &noise).unwrap();
    fs::write(dir.join("app.txt"), "app\n").unwrap();
    let taken = world.post("/workspaces/early/snapshots", json!({})).await;
    world.done(&taken["workflow_id"]).await;

    trickle(&bucket);
    world.kill(&first).await;
    let moving = world.working_on("early").await;
    world.reaches(&moving, "complete").await;
    bucket.slow.store(0, Ordering::SeqCst);
    let event = world.failed_over("early").await;
    assert_eq!(event["success"], true, "{event:#}");
    assert_eq!(
        event["validation"],
        json!({"validation": "ok", "files_restored": 3, "files_expected": 3}),
        "all of it was judged"
    );
    let complete = event["complete_ms"].as_i64().unwrap();
    assert!(complete >= event["total_ms"].as_i64().unwrap(), "{event:#}");

    let workspace = world.get("/workspaces/early").await;
    let second = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    assert_ne!(first, second);
    let dir = world.workspace_dir(&second).await;
    assert!(fs::read(dir.join("weights")).unwrap() == noise);
    assert_eq!(fs::read_to_string(dir.join("seen")).unwrap().trim(), "600");
    // What it wrote while the rest came is its own, and is in the next snapshot.
    assert_eq!(fs::read_to_string(dir.join("app.txt")).unwrap(), "app\nchanged\n");
    let taken = world.post("/workspaces/early/snapshots", json!({})).await;
    world.done(&taken["workflow_id"]).await;
    fs::write(dir.join("app.txt"), "spoilt").unwrap();
    let back = world.post("/workspaces/early/restore", json!({})).await;
    world.done(&back["workflow_id"]).await;
    let text = fs::read_to_string(dir.join("app.txt")).unwrap();
    assert!(text.starts_with("app\nchanged\n"), "{text}");
    world.settles_at(1).await;
}

/// The workload runs, files are still to come, and the machine dies: what is on it is a half, and
/// the next one begins with the snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_dies_before_the_rest_has_come_is_replaced() {
    let bucket = InProcess::start().await;
    let world = World::on_bucket(bucket.config()).await;
    let spec = json!({
        "name": "twice",
        "disk_gb": 20,
        "start": "exec sleep 100000",
        "snapshot": { "ready_when": ["app.txt"] },
    });
    let made = world.post("/workspaces", json!({ "spec": spec })).await;
    world.done(&made["workflow_id"]).await;
    let workspace = world.get("/workspaces/twice").await;
    let first = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let dir = world.workspace_dir(&first).await;
    let noise = noise(64 << 20);
    fs::write(dir.join("weights"), &noise).unwrap();
    fs::write(dir.join("app.txt"), "app\n").unwrap();
    let taken = world.post("/workspaces/twice/snapshots", json!({})).await;
    let taken = world.done(&taken["workflow_id"]).await;

    trickle(&bucket);
    world.kill(&first).await;
    let moving = world.working_on("twice").await;
    world.reaches(&moving, "complete").await;
    let workspace = world.get("/workspaces/twice").await;
    assert_eq!(workspace["state"], "running", "it serves already");
    let second = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    assert_ne!(first, second);
    world.kill(&second).await;
    bucket.slow.store(0, Ordering::SeqCst);

    let moved = world.done(&moving).await;
    let event = world
        .get(&format!("/failovers/{}", moving.as_str().unwrap()))
        .await;
    assert_eq!(event["success"], true, "{event:#}");
    assert_eq!(event["snapshot_id"], taken["result"]["snapshot_id"]);
    assert_eq!(event["original_instance_id"], *first);
    assert_eq!(event["validation"]["validation"], "ok", "{event:#}");
    let workspace = world.get("/workspaces/twice").await;
    assert_eq!(workspace["state"], "running");
    let third = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    assert!(third != first && third != second, "{moved:#}");
    assert_eq!(event["new_instance_id"], *third);
    let dir = world.workspace_dir(&third).await;
    assert!(fs::read(dir.join("weights")).unwrap() == noise);
    let taken = world.post("/workspaces/twice/snapshots", json!({})).await;
    world.done(&taken["workflow_id"]).await;
    world.settles_at(1).await;
    let all = world.get("/failovers?workspace=twice").await;
    assert_eq!(all["items"].as_array().unwrap().len(), 1, "{all:#}");
}
