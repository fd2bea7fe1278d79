//! What a snapshot builds on, and what a restore tells on its way.

#![allow(clippy::unwrap_used, reason = "test code")]

mod world;

use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;
use world::World;
use world::bucket::InProcess;

async fn snapshot(world: &World, name: &str) -> Value {
    let started = world
        .post(&format!("/workspaces/{name}/snapshots"), json!({}))
        .await;
    world.done(&started["workflow_id"]).await
}

fn objects(world: &World, workspace: &Value, kind: &str) -> Vec<PathBuf> {
    let id = workspace["id"].as_str().unwrap();
    let mut todo = vec![
        world
            .data_dir()
            .join(format!("objects/objects/workspaces/{id}/{kind}")),
    ];
    let mut out = Vec::new();
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else {
                out.push(path);
            }
        }
    }
    out.sort();
    out
}

fn lines(workflow: &Value) -> Vec<String> {
    let log = workflow["log"].as_array().unwrap();
    log.iter()
        .map(|l| l.as_str().map_or_else(|| l.to_string(), Into::into))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_without_changes_refers_to_its_parents_metadata() {
    let world = World::instant().await;
    let workspace = world.deployed("still").await;
    let instance = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let dir = world.workspace_dir(&instance).await;
    for n in 0..5 {
        fs::write(dir.join(format!("f{n}")), format!("file {n}")).unwrap();
    }
    let first = snapshot(&world, "still").await["result"].clone();
    let second = snapshot(&world, "still").await;
    assert!(
        lines(&second)
            .iter()
            .any(|l| l.contains("Incremental: 0 files changed out of 5 total")),
        "{second:#}"
    );
    assert_eq!(second["result"]["uploaded_bytes"], 0);
    let metadata: Vec<_> = objects(&world, &workspace, "snapshots")
        .into_iter()
        .filter(|p| p.ends_with("metadata.json"))
        .collect();
    assert_eq!(metadata.len(), 1, "{metadata:?}");
    let store = dumont_store::Store::open(world.data_dir().join("dumont.db"))
        .await
        .unwrap();
    let mut keys = Vec::new();
    for id in [&first["snapshot_id"], &second["result"]["snapshot_id"]] {
        let row = store.snapshot(id.as_str().unwrap()).await.unwrap().unwrap();
        keys.push(row.metadata_key.unwrap());
    }
    assert_eq!(keys[0], keys[1]);
    assert!(metadata[0].ends_with(&keys[0]), "{metadata:?}: {keys:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_whole_base_it_is_a_full_one_that_says_why() {
    let world = World::instant().await;
    let workspace = world.deployed("base").await;
    let instance = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let dir = world.workspace_dir(&instance).await;
    fs::write(dir.join("a"), "one").unwrap();
    snapshot(&world, "base").await;

    let index = objects(&world, &workspace, "indexes").remove(0);
    let bytes = fs::read(&index).unwrap();
    fs::write(&index, &bytes[..bytes.len() - 1]).unwrap();
    let damaged = snapshot(&world, "base").await;
    assert_eq!(damaged["result"]["snapshot_type"], "full", "{damaged:#}");
    let why = damaged["result"]["full_because"].as_str().unwrap();
    assert!(
        why.contains("of its base base-") && why.ends_with("is damaged"),
        "{why}"
    );
    let said = format!("Full snapshot: {why}");
    assert!(lines(&damaged).iter().any(|l| l.contains(&said)), "{damaged:#}");

    for index in objects(&world, &workspace, "indexes") {
        fs::remove_file(index).unwrap();
    }
    let missing = snapshot(&world, "base").await;
    let why = missing["result"]["full_because"].as_str().unwrap();
    assert!(why.ends_with("is missing"), "{why}");
    // Then all is well again, and it restores.
    fs::write(dir.join("b"), "two").unwrap();
    let next = snapshot(&world, "base").await;
    assert_eq!(next["result"]["snapshot_type"], "incremental", "{next:#}");
    fs::remove_file(dir.join("a")).unwrap();
    let back = world.post("/workspaces/base/restore", json!({})).await;
    world.done(&back["workflow_id"]).await;
    assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_tells_each_tenth_and_its_end_in_the_plans_words() {
    let world = World::instant().await;
    let workspace = world.deployed("tells").await;
    let instance = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let dir = world.workspace_dir(&instance).await;
    let noise: Vec<u8> = (0..24_u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8)
        .collect();
    fs::write(dir.join("data"), &noise).unwrap();
    snapshot(&world, "tells").await;
    fs::remove_file(dir.join("data")).unwrap();
    let back = world.post("/workspaces/tells/restore", json!({})).await;
    let back = world.done(&back["workflow_id"]).await;
    assert!(fs::read(dir.join("data")).unwrap() == noise);
    let lines = lines(&back);
    let tenths: Vec<&String> = lines.iter().filter(|l| l.contains("Downloading: ")).collect();
    // Chunks are up to 4 MiB of 24: a line may stand for two tenths, but never fewer than these.
    assert!((6..=10).contains(&tenths.len()), "{lines:#?}");
    let mut before = 0;
    for line in tenths {
        // `Downloading: 45% (450MB/1GB) - 12MB/s`
        let rest = line.split("Downloading: ").nth(1).unwrap();
        let (percent, rest) = rest.split_once("% (").unwrap();
        let percent: u32 = percent.parse().unwrap();
        assert!(percent / 10 > before / 10, "{lines:#?}");
        before = percent;
        let (sizes, rate) = rest.split_once(") - ").unwrap();
        let (done, total) = sizes.split_once('/').unwrap();
        assert!(done.ends_with('B') && total == "25MB", "{line}");
        assert!(rate.trim_end_matches('"').ends_with("MB/s"), "{line}");
    }
    assert_eq!(before, 100);
    // `✓ Restored X files (Y MB) in Z seconds`
    let end = lines.iter().find(|l| l.contains("✓ Restored ")).unwrap();
    assert!(
        end.contains("✓ Restored 1 files (25 MB) in ") && end.contains(" seconds"),
        "{end}"
    );
}

/// A restore that breaks off leaves a mixture; the next failover must not restore that one.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_broken_restore_left_is_snapshotted_only_when_asked_for() {
    let world = World::instant().await;
    let workspace = world.deployed("half").await;
    let instance = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let dir = world.workspace_dir(&instance).await;
    fs::write(dir.join("a"), "as it was").unwrap();
    let good = snapshot(&world, "half").await["result"]["snapshot_id"].clone();

    let packs: Vec<(PathBuf, Vec<u8>)> = objects(&world, &workspace, "packs")
        .into_iter()
        .map(|p| (p.clone(), fs::read(p).unwrap()))
        .collect();
    let broken_restore = async || {
        packs.iter().for_each(|(p, _)| fs::remove_file(p).unwrap());
        fs::write(dir.join("a"), "changed").unwrap();
        let wanted = json!({ "snapshot_id": good });
        let back = world.post("/workspaces/half/restore", wanted).await;
        let ended = world.ended(back["workflow_id"].as_str().unwrap()).await;
        assert_eq!(ended["status"], "failed", "{ended:#}");
        packs.iter().for_each(|(p, bytes)| fs::write(p, bytes).unwrap());
        let (status, refused) = world
            .call("POST", "/workspaces/half/snapshots", Some(json!({})))
            .await;
        assert_eq!(
            (status, &refused["code"]),
            (409, &json!("half_restored")),
            "{refused:#}"
        );
        assert!(
            refused["message"]
                .as_str()
                .unwrap()
                .contains(good.as_str().unwrap())
        );
    };

    broken_restore().await;
    let why = async || world.get("/workspaces/half").await["message"].clone();
    assert!(why().await.as_str().unwrap().contains("restore failed"));
    let back = world.post("/workspaces/half/restore", json!({})).await;
    world.done(&back["workflow_id"]).await;
    assert!(why().await.is_null(), "what went wrong is over");
    assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "as it was");
    snapshot(&world, "half").await;

    broken_restore().await;
    let wanted = json!({ "as_it_is": true });
    let kept = world.post("/workspaces/half/snapshots", wanted).await;
    world.done(&kept["workflow_id"]).await;
    snapshot(&world, "half").await;

    // On another machine everything is whole, whatever broke off here.
    broken_restore().await;
    world.kill(&instance).await;
    let event = world.failed_over("half").await;
    assert_eq!(event["success"], true, "{event:#}");
    snapshot(&world, "half").await;
}

/// A move may take over a restore in place and then fail: what lies there is a mixture all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_gave_way_to_a_move_that_failed_left_a_mixture() {
    let bucket = InProcess::start().await;
    let world = World::on_bucket(bucket.config()).await;
    let workspace = world.deployed("mix").await;
    let instance = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let dir = world.workspace_dir(&instance).await;
    fs::write(dir.join("a"), "as it was").unwrap();
    snapshot(&world, "mix").await;
    fs::write(dir.join("a"), "changed").unwrap();
    // No machine will do any more.
    let id = workspace["id"].as_str().unwrap();
    let store = world.store().await;
    let mut spec = store.workspace(id).await.unwrap().unwrap().spec;
    spec.gpu.name = Some("Abacus 9000".into());
    store.set_workspace_spec(id, &spec).await.unwrap();

    bucket.slow.store(3_000, Ordering::SeqCst);
    let back = world.post("/workspaces/mix/restore", json!({})).await;
    world.reaches(&back["workflow_id"], "restore").await;
    let moved = world.post("/workspaces/mix/failover", json!({})).await;
    bucket.slow.store(0, Ordering::SeqCst);
    let moved = world.ended(moved["workflow_id"].as_str().unwrap()).await;
    assert_eq!(moved["error"]["code"], "no_offers", "{moved:#}");
    let back = world.ended(back["workflow_id"].as_str().unwrap()).await;
    assert_eq!(back["error"]["code"], "preempted", "{back:#}");

    let left = world.get("/workspaces/mix").await;
    assert_eq!(left["state"], "running");
    assert_eq!(left["instance"]["instance_id"], *instance);
    assert!(
        left["message"].as_str().unwrap().contains("is a mixture"),
        "{left:#}"
    );
    let (status, refused) = world
        .call("POST", "/workspaces/mix/snapshots", Some(json!({})))
        .await;
    assert_eq!((status, &refused["code"]), (409, &json!("half_restored")));

    // A part of a snapshot makes the rest no better.
    let part = json!({ "include": ["a"] });
    let back = world.post("/workspaces/mix/restore", part).await;
    world.done(&back["workflow_id"]).await;
    let (status, _) = world
        .call("POST", "/workspaces/mix/snapshots", Some(json!({})))
        .await;
    assert_eq!(status, 409);
    let back = world.post("/workspaces/mix/restore", json!({})).await;
    world.done(&back["workflow_id"]).await;
    assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "as it was");
    snapshot(&world, "mix").await;
    // Nor any worse.
    let part = json!({ "include": ["a"] });
    let back = world.post("/workspaces/mix/restore", part).await;
    world.done(&back["workflow_id"]).await;
    snapshot(&world, "mix").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_cannot_be_leaves_everything_as_it_was() {
    let world = World::instant().await;
    let start = "echo >> starts; while true; do date +%N > beat; sleep 0.1; done";
    let spec = json!({ "name": "wrong", "start": start });
    let made = world.post("/workspaces", json!({ "spec": spec })).await;
    world.done(&made["workflow_id"]).await;
    let workspace = world.get("/workspaces/wrong").await;
    let instance = workspace["instance"]["instance_id"].as_str().unwrap();
    let beat = world.workspace_dir(instance).await.join("beat");
    snapshot(&world, "wrong").await;
    let nothing = json!({ "include": ["no/such/**"] });
    let back = world.post("/workspaces/wrong/restore", nothing).await;
    let back = world.ended(back["workflow_id"].as_str().unwrap()).await;
    let error = &back["error"];
    assert_eq!(error["code"], "invalid", "{back:#}");
    assert!(
        error["message"].as_str().unwrap().contains("no/such/**"),
        "{error:#}"
    );
    assert!(
        error["hint"]
            .as_str()
            .unwrap()
            .contains("dumont snapshot ls wrong"),
        "{error:#}"
    );
    let starts = fs::read_to_string(beat.with_file_name("starts")).unwrap();
    assert_eq!(starts.lines().count(), 1, "its workload was stopped for nothing");
    let before = fs::read_to_string(&beat).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_ne!(
        fs::read_to_string(&beat).unwrap(),
        before,
        "its workload works on"
    );
    snapshot(&world, "wrong").await;
}
