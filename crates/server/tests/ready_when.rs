//! A failover whose workload starts before the last byte.

mod world;

use serde_json::json;
use std::fs;
use world::World;

#[tokio::test(flavor = "multi_thread")]
async fn the_workload_starts_while_the_rest_is_restored() {
    let world = World::instant().await;
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
    let noise: Vec<u8> = (0..96_u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 9) as u8)
        .collect();
    fs::write(dir.join("weights"), &noise).unwrap();
    fs::write(dir.join("app.txt"), "app\n").unwrap();
    let taken = world.post("/workspaces/early/snapshots", json!({})).await;
    world.done(&taken["workflow_id"]).await;

    world.kill(&first).await;
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
