//! A store that lost something, its server, and a machine that still has the files.

#![allow(clippy::unwrap_used, reason = "test code")]

mod world;

use serde_json::json;
use std::fs;
use std::path::PathBuf;
use world::World;

fn files(world: &World, workspace: &str, kind: &str) -> Vec<PathBuf> {
    let dir = world
        .data_dir()
        .join(format!("objects/objects/workspaces/{workspace}/{kind}"));
    let mut out: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    out.sort();
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_is_named_and_comes_back_with_the_next_snapshot() {
    let world = World::instant().await;
    let workspace = world.deployed("mend").await;
    let id = workspace["id"].as_str().unwrap().to_owned();
    let instance = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let dir = world.workspace_dir(&instance).await;
    fs::write(dir.join("weights"), vec![9_u8; 2 << 20]).unwrap();
    fs::write(dir.join("note"), "a note").unwrap();
    let taken = world.post("/workspaces/mend/snapshots", json!({})).await;
    world.done(&taken["workflow_id"]).await;

    let whole = world.post("/workspaces/mend/repair", json!({})).await;
    assert_eq!(
        (&whole["pointed"], &whole["damaged"]),
        (&json!(0), &json!([])),
        "{whole:#}"
    );

    // The index goes: it is rebuilt, and nothing is lost.
    for index in files(&world, &id, "indexes") {
        fs::remove_file(index).unwrap();
    }
    let rebuilt = world.post("/workspaces/mend/repair", json!({})).await;
    assert_eq!(
        (&rebuilt["pointed"], &rebuilt["lost"]),
        (&json!(1), &json!([])),
        "{rebuilt:#}"
    );
    let back = world.post("/workspaces/mend/restore", json!({})).await;
    world.done(&back["workflow_id"]).await;

    // Both files' pack goes: they are named.
    let packs = files(&world, &id, "packs");
    let largest = packs
        .iter()
        .max_by_key(|p| fs::metadata(p).unwrap().len())
        .unwrap();
    fs::remove_file(largest).unwrap();
    let lost = world.post("/workspaces/mend/repair", json!({})).await;
    assert_eq!(lost["lost"][0]["files"], 2, "{lost:#}");
    assert!(
        lost["lost"][0]["names"].to_string().contains("weights"),
        "{lost:#}"
    );

    // The machine has them still, and does not think that the store has.
    let taken = world.post("/workspaces/mend/snapshots", json!({})).await;
    let taken = world.done(&taken["workflow_id"]).await;
    assert_eq!(taken["result"]["snapshot_type"], "full", "{taken:#}");
    fs::write(dir.join("weights"), "spoilt").unwrap();
    let back = world.post("/workspaces/mend/restore", json!({})).await;
    world.done(&back["workflow_id"]).await;
    assert_eq!(fs::read(dir.join("weights")).unwrap(), vec![9_u8; 2 << 20]);
    world.settles_at(1).await;
}
