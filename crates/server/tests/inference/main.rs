//! "Inference OK": the workload is a server that answers with the restored weights, and the
//! failover stands or falls with its answer.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../world/mod.rs"]
mod world;

use serde_json::{Value, json};
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use world::World;

const SERVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/inference/serve.py");
const PYTHON: &str = "/usr/bin/python3";
const PROMPT: &str = "What did the cat see?";

/// What the model says with these weights, by the same program, without a machine.
fn inference(weights: &Path) -> String {
    let ran = Command::new(PYTHON)
        .arg(SERVER)
        .arg(weights)
        .args(["ask", PROMPT])
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap().trim().to_owned()
}

fn weights() -> Vec<u8> {
    (0..32_768_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8)
        .collect()
}

/// The start command waits for the files, which are put there while the probe keeps asking.
async fn deployed(world: &World, expected: &str) -> Value {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let start = format!("until [ -e go ]; do sleep 0.1; done; exec {PYTHON} serve.py weights.bin {port}");
    let spec = json!({
        "name": "llm", "start": start,
        "probe": {
            "kind": "ollama", "model": "tiny", "prompt": PROMPT, "port": port,
            "contains": expected, "timeout_s": 20,
        },
    });
    let created = world.post("/workspaces", json!({ "spec": spec })).await;
    let path = format!("/workflows/{}", created["workflow_id"].as_str().unwrap());
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let workflow = world.get(&path).await;
        if workflow["step"] == "probe" {
            break;
        }
        assert!(
            workflow["status"] == "running" && Instant::now() < deadline,
            "{workflow:#}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for instance in world.get("/instances").await["items"].as_array().unwrap() {
        let Some(id) = instance["instance_id"].as_str() else {
            continue;
        };
        let dir = world.workspace_dir(id).await;
        fs::create_dir_all(&dir).unwrap();
        fs::copy(SERVER, dir.join("serve.py")).unwrap();
        fs::write(dir.join("weights.bin"), weights()).unwrap();
        fs::write(dir.join("go"), "").unwrap();
    }
    world.done(&created["workflow_id"]).await;
    world.get("/workspaces/llm").await
}

async fn snapshotted(world: &World) {
    let started = world.post("/workspaces/llm/snapshots", json!({})).await;
    world.done(&started["workflow_id"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_restored_weights_answer_and_one_wrong_byte_in_them_fails_the_failover() {
    let world = World::instant().await;
    let file = world.dir.path().join("weights.bin");
    fs::write(&file, weights()).unwrap();
    let expected = inference(&file);
    assert!(expected.split(' ').count() == 12, "{expected}");

    let workspace = deployed(&world, &expected).await;
    snapshotted(&world).await;
    let first = workspace["instance"]["instance_id"].as_str().unwrap();
    world.kill(first).await;
    let event = world.failed_over("llm").await;
    assert_eq!(event["success"], true, "{event:#}");
    let workflow = world
        .get(&format!("/workflows/{}", event["id"].as_str().unwrap()))
        .await;
    assert!(
        workflow["log"].to_string().contains("inference OK"),
        "{workflow:#}"
    );

    let workspace = world.get("/workspaces/llm").await;
    let second = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let on_machine = world.workspace_dir(&second).await.join("weights.bin");
    let mut bytes = fs::read(&on_machine).unwrap();
    assert_eq!(bytes, weights());
    bytes[12_345] ^= 1;
    fs::write(&on_machine, &bytes).unwrap();
    snapshotted(&world).await;
    world.kill(&second).await;
    let event = world
        .failed_over_again("llm", event["id"].as_str().unwrap())
        .await;
    assert_eq!(event["success"], false, "{event:#}");
    assert_eq!(
        event["validation"]["validation"], "ok",
        "every byte is as it was snapshotted"
    );
    let reason = event["failure_reason"].as_str().unwrap();
    assert!(
        reason.starts_with("probe_failed") && reason.contains("an inference without"),
        "{reason}"
    );
    assert_eq!(world.get("/workspaces/llm").await["state"], "failed");
    world.settles_at(0).await;
}
