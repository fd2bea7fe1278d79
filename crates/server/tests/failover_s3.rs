//! One workspace's life with its objects in a bucket: machines reach it by signed URLs alone.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its world fails")]

mod world;

use serde_json::json;
use std::fs;
use std::sync::atomic::Ordering;
use world::World;
use world::bucket::{InProcess, Weed};

async fn a_failover_holds(world: &World) {
    let workspace = world.deployed("train").await;
    let first = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let dir = world.workspace_dir(&first).await;
    fs::create_dir_all(dir.join("models/empty")).unwrap();
    let weights: Vec<u8> = (0..3_u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    fs::write(dir.join("models/w.bin"), &weights).unwrap();
    fs::write(dir.join("a.txt"), "one").unwrap();
    for (content, kind) in [("one", "full"), ("two, longer", "incremental")] {
        fs::write(dir.join("a.txt"), content).unwrap();
        let taken = world.post("/workspaces/train/snapshots", json!({})).await;
        let taken = world.done(&taken["workflow_id"]).await;
        assert_eq!(taken["result"]["snapshot_type"], kind, "{taken:#}");
    }

    world.kill(&first).await;
    let event = world.failed_over("train").await;
    assert_eq!(event["success"], true, "{event:#}");
    let workspace = world.get("/workspaces/train").await;
    let second = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let dir = world.workspace_dir(&second).await;
    assert!(fs::read(dir.join("models/w.bin")).unwrap() == weights);
    assert_eq!(fs::read_to_string(dir.join("a.txt")).unwrap(), "two, longer");
    assert!(dir.join("models/empty").is_dir());
    world.settles_at(1).await;
    assert!(!world.data_dir().join("objects").exists(), "nothing is kept here");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_holds_on_s3s_fs() {
    let bucket = InProcess::start().await;
    let world = World::on_bucket(bucket.config()).await;
    a_failover_holds(&world).await;
    // No machine got more than URLs: every act of theirs was on a presigned one.
    let requests = bucket.requests.lock().unwrap().clone();
    assert!(
        requests.iter().all(|r| r.contains("X-Amz-Signature=")),
        "{requests:#?}"
    );
    assert!(
        requests
            .iter()
            .any(|r| r.starts_with("PUT ") && r.contains("partNumber=1"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_holds_on_seaweedfs() {
    let bucket = Weed::start().await;
    let world = World::on_bucket(bucket.config()).await;
    a_failover_holds(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_dies_takes_nothing_with_it() {
    let bucket = InProcess::start().await;
    let world = World::on_bucket(bucket.config()).await;
    let workspace = world.deployed("train").await;
    let first = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let dir = world.workspace_dir(&first).await;
    fs::write(dir.join("state"), "good").unwrap();
    let taken = world.post("/workspaces/train/snapshots", json!({})).await;
    let good = world.done(&taken["workflow_id"]).await["result"]["snapshot_id"].clone();

    // In the middle of the next snapshot: what was begun is never visible.
    fs::write(dir.join("state"), "newer").unwrap();
    bucket.down.store(true, Ordering::SeqCst);
    let taken = world.post("/workspaces/train/snapshots", json!({})).await;
    let failed = world.ended(taken["workflow_id"].as_str().unwrap()).await;
    assert_eq!(failed["status"], "failed", "{failed:#}");
    assert_eq!(failed["error"]["code"], "store_unavailable", "{failed:#}");
    let listed = world.get("/workspaces/train/snapshots").await;
    assert_eq!(listed["items"].as_array().unwrap().len(), 1, "{listed:#}");

    // A machine is lost meanwhile: the move fails for a clear reason and rents nothing for good.
    world.kill(&first).await;
    let event = world.failed_over("train").await;
    assert_eq!(event["success"], false, "{event:#}");
    let reason = event["failure_reason"].as_str().unwrap();
    assert!(reason.contains("503"), "{event:#}");
    world.settles_at(0).await;

    bucket.down.store(false, Ordering::SeqCst);
    let started = world.post("/workspaces/train/failover", json!({})).await;
    world.done(&started["workflow_id"]).await;
    let workspace = world.get("/workspaces/train").await;
    let second = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let dir = world.workspace_dir(&second).await;
    assert_eq!(fs::read_to_string(dir.join("state")).unwrap(), "good");
    let events = world.get("/failovers?workspace=train").await;
    assert_eq!(events["items"][0]["snapshot_id"], good, "{events:#}");
    world.settles_at(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_says_what_is_wrong_with_its_bucket() {
    let bucket = InProcess::start().await;
    let mut config = bucket.config();
    config.bucket = "no-such-bucket".into();
    let world = World::instant().await;
    let mut server = world.server_config();
    server.data_dir = world.dir.path().join("another");
    server.s3 = Some(config);
    let error = dumont_server::start(server).await.err().unwrap().to_string();
    assert!(
        error.contains("NoSuchBucket") && error.contains("no-such-bucket"),
        "{error}"
    );
}
