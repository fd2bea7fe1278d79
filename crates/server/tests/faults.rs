//! What goes wrong at the marketplace, in the store and in requests: a clear error, nothing
//! lost, nothing left rented.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its world fails")]

mod world;

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use world::{World, spec};

async fn attempts(world: &World, name: &str) -> Vec<Value> {
    let machines = world.get("/machines").await;
    assert!(machines["items"].is_array(), "{name}");
    machines["items"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_and_stuck_machines_lose_and_are_given_back() {
    let world = World::instant().await;
    for fault in ["create_refused", "stuck_loading", "ssh_dead"] {
        world
            .admin(
                "POST",
                "/admin/faults",
                Some(json!({ "fault": fault, "count": 1 })),
            )
            .await;
    }
    let workspace = world.deployed("stubborn").await;
    assert_eq!(workspace["state"], "running");
    world.settles_at(1).await;
    let met = attempts(&world, "stubborn").await;
    let won = met.iter().filter(|m| m["successful_attempts"] == 1).count();
    assert_eq!(won, 1, "{met:#?}");
    // A refused offer and a lost race say nothing about the machine.
    assert!(
        met.iter()
            .any(|m| m["uncounted_attempts"] == 1 && m["reliability_status"] == "unknown"),
        "{met:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_whose_reply_is_lost_is_found_and_not_repeated() {
    let world = World::instant().await;
    world
        .admin(
            "POST",
            "/admin/faults",
            Some(json!({ "fault": "create_uncertain", "count": 1 })),
        )
        .await;
    let mut wanted = spec("uncertain");
    wanted["failover"] = json!({ "racers": 1 });
    let created = world.post("/workspaces", json!({ "spec": wanted })).await;
    world.done(&created["workflow_id"]).await;
    let ledger = world.admin("GET", "/admin/ledger", None).await;
    assert_eq!(ledger["totals"]["created"], 1, "{ledger:#}");
    assert_eq!(ledger["alive"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_offers_a_deploy_says_so_and_rents_nothing() {
    let world = World::instant().await;
    let mut wanted = spec("nothing");
    wanted["gpu"] = json!({ "name": "Abacus 9000" });
    let created = world.post("/workspaces", json!({ "spec": wanted })).await;
    let workflow = world.ended(created["workflow_id"].as_str().unwrap()).await;
    assert_eq!(workflow["status"], "failed");
    assert_eq!(workflow["error"]["code"], "no_offers");
    assert!(
        workflow["error"]["hint"]
            .as_str()
            .unwrap()
            .contains("another GPU")
    );
    let workspace = world.get("/workspaces/nothing").await;
    assert_eq!(workspace["state"], "failed");
    assert_eq!(world.alive().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_provider_key_is_said_once_and_rents_nothing() {
    let world = World::on_market(|config| {
        config.time_scale = 0.0;
        config.api_keys = vec!["the-right-key".into()];
    })
    .await;
    let created = world
        .post("/workspaces", json!({ "spec": spec("keyless") }))
        .await;
    let workflow = world.ended(created["workflow_id"].as_str().unwrap()).await;
    assert_eq!(workflow["error"]["code"], "provider_auth", "{workflow:#}");
    assert!(
        workflow["error"]["hint"]
            .as_str()
            .unwrap()
            .contains("VAST_API_KEY")
    );
    assert!(
        !workflow.to_string().contains("test-key"),
        "the key is shown: {workflow:#}"
    );
    assert_eq!(world.alive().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_that_never_succeeds_fails_the_deploy_and_gives_the_machine_back() {
    let world = World::instant().await;
    let mut wanted = spec("sick");
    wanted["probe"] = json!({ "kind": "command", "command": "echo no model; false", "timeout_s": 1 });
    let created = world.post("/workspaces", json!({ "spec": wanted })).await;
    let workflow = world.ended(created["workflow_id"].as_str().unwrap()).await;
    assert_eq!(workflow["error"]["code"], "probe_failed", "{workflow:#}");
    assert!(
        workflow["error"]["message"]
            .as_str()
            .unwrap()
            .contains("no model")
    );
    world.settles_at(0).await;
}

fn packs(world: &World) -> Vec<PathBuf> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            if entry.is_dir() {
                walk(&entry, out);
            } else if entry.parent().is_some_and(|p| p.ends_with("packs")) {
                out.push(entry);
            }
        }
    }
    let mut out = Vec::new();
    walk(&world.data_dir().join("objects"), &mut out);
    out
}

async fn with_snapshot(world: &World, name: &str) -> String {
    let workspace = world.deployed(name).await;
    let id = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let dir = world.workspace_dir(&id).await;
    let noise: Vec<u8> = (0..2_000_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    fs::write(dir.join("weights.bin"), noise).unwrap();
    let started = world
        .post(&format!("/workspaces/{name}/snapshots"), json!({}))
        .await;
    world.done(&started["workflow_id"]).await;
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn one_flipped_bit_fails_the_failover_by_name() {
    let world = World::instant().await;
    let id = with_snapshot(&world, "flipped").await;
    for pack in packs(&world) {
        let mut bytes = fs::read(&pack).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        let mut mode = fs::metadata(&pack).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o600);
        fs::set_permissions(&pack, mode).unwrap();
        fs::write(&pack, bytes).unwrap();
    }
    world.kill(&id).await;
    let event = world.failed_over("flipped").await;
    assert_eq!(event["success"], false);
    let reason = event["failure_reason"].as_str().unwrap();
    assert!(reason.starts_with("corrupt"), "{reason}");
    let workspace = world.get("/workspaces/flipped").await;
    assert_eq!(workspace["state"], "failed");
    assert!(
        workspace["last_snapshot"].is_object(),
        "the snapshot is still known"
    );
    world.settles_at(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_pack_is_named() {
    let world = World::instant().await;
    let id = with_snapshot(&world, "missing").await;
    let gone = packs(&world);
    assert!(!gone.is_empty());
    gone.iter().for_each(|p| fs::remove_file(p).unwrap());
    world.kill(&id).await;
    let event = world.failed_over("missing").await;
    let reason = event["failure_reason"].as_str().unwrap();
    assert!(reason.starts_with("object_missing"), "{reason}");
    let name = gone[0].file_name().unwrap().to_str().unwrap();
    assert!(
        gone.iter()
            .any(|g| reason.contains(g.file_name().unwrap().to_str().unwrap())),
        "{reason} names {name}"
    );
    world.settles_at(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_not_there_cannot_be_snapshotted() {
    let world = World::instant().await;
    let mut wanted = spec("pathless");
    wanted["path"] = json!("/nowhere/at/all");
    wanted["start"] = json!(null);
    wanted["probe"] = json!(null);
    let created = world.post("/workspaces", json!({ "spec": wanted })).await;
    world.done(&created["workflow_id"]).await;
    let started = world.post("/workspaces/pathless/snapshots", json!({})).await;
    let workflow = world.ended(started["workflow_id"].as_str().unwrap()).await;
    assert_eq!(workflow["error"]["code"], "no_such_path", "{workflow:#}");
    assert!(
        workflow["error"]["message"]
            .as_str()
            .unwrap()
            .contains("/nowhere/at/all")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_server_goes_on_watching() {
    let mut world = World::instant().await;
    let id = with_snapshot(&world, "survivor").await;
    world.stop_server().await;
    world.start_server().await;
    world.kill(&id).await;
    let event = world.failed_over("survivor").await;
    assert_eq!(event["success"], true, "{event:#}");
    world.settles_at(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_get_clear_errors() {
    let world = World::instant().await;
    let cases = [
        (
            "POST",
            "/workspaces",
            json!({ "spec": { "name": "x", "colour": "red" } }),
            400,
            "invalid_request",
        ),
        (
            "POST",
            "/workspaces",
            json!({ "spec": { "name": "No Good" } }),
            400,
            "invalid_request",
        ),
        (
            "POST",
            "/workspaces",
            json!({ "spec": { "name": "x", "disk_gb": "many" } }),
            400,
            "invalid_request",
        ),
        (
            "POST",
            "/workspaces",
            json!({ "spec": { "name": "x", "path": "/a/../b" } }),
            400,
            "invalid_spec",
        ),
        (
            "POST",
            "/workspaces",
            json!({ "spec": { "name": "x", "max_price": -1 } }),
            400,
            "invalid_spec",
        ),
        (
            "GET",
            "/workspaces/absent",
            Value::Null,
            404,
            "workspace_not_found",
        ),
        (
            "POST",
            "/workspaces/absent/snapshots",
            json!({}),
            404,
            "workspace_not_found",
        ),
        ("GET", "/workspaces?limit=0", Value::Null, 400, "invalid_request"),
        (
            "GET",
            "/workspaces?colour=red",
            Value::Null,
            400,
            "invalid_request",
        ),
        ("GET", "/workflows/none", Value::Null, 404, "workflow_not_found"),
        ("GET", "/failovers/none", Value::Null, 404, "failover_not_found"),
        ("GET", "/nonsense", Value::Null, 404, "unknown_path"),
        ("PATCH", "/workspaces", Value::Null, 405, "method_not_allowed"),
    ];
    for (method, path, body, status, code) in cases {
        let body = (!body.is_null()).then_some(body);
        let (got, answer) = world.call(method, path, body).await;
        assert_eq!(
            (got, answer["code"].as_str()),
            (status, Some(code)),
            "{method} {path}: {answer}"
        );
        assert!(!answer["hint"].as_str().unwrap().is_empty());
    }
    let url = world.server.as_ref().unwrap().url().to_owned();
    for token in [None, Some("nonsense"), Some("dmt_x_y")] {
        let mut request = world.http.get(format!("{url}/api/v1/workspaces"));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        assert_eq!(request.send().await.unwrap().status().as_u16(), 401);
    }
    assert!(
        world
            .http
            .get(format!("{url}/healthz"))
            .send()
            .await
            .unwrap()
            .status()
            .is_success()
    );
}

/// Machines that can be rented now, each with an offer.
async fn on_offer(world: &World) -> Vec<(String, String)> {
    let offers = world.get("/instances/offers").await;
    let all = offers["items"].as_array().unwrap().iter();
    all.map(|o| (o["machine_id"].as_str().unwrap().to_owned(), o["id"].to_string()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_race_that_has_tried_all_it_found_looks_again() {
    let world = World::with(0.0, 2).await;
    let often = |w: &mut World| w.timing.search_again = std::time::Duration::from_secs(2);
    let world = world.reconfigured(often).await;
    let http = reqwest::Client::new();
    let first = on_offer(&world).await[0].0.clone();
    // Somebody else has the rest for now.
    let mut others = Vec::new();
    while let Some((_, offer)) = on_offer(&world).await.into_iter().find(|(m, _)| *m != first) {
        let url = format!("{}/api/v0/asks/{offer}/", world.market.url());
        let order = json!({"image": "x", "disk": 10, "runtype": "ssh_proxy", "label": "another's"});
        let request = http.put(url).bearer_auth("test-key").json(&order);
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        others.push(answer["new_contract"].as_u64().unwrap());
    }
    assert!(!others.is_empty());
    world.arm(json!({ "fault": "ssh_dead" })).await;
    let mut wanted = spec("patient");
    wanted["failover"] = json!({ "racers": 2 });
    let created = world.post("/workspaces", json!({ "spec": wanted })).await;
    world.settles_at(1 + others.len() as u64).await;
    for id in others {
        let url = format!("{}/api/v0/instances/{id}/", world.market.url());
        http.delete(url).bearer_auth("test-key").send().await.unwrap();
    }
    world.done(&created["workflow_id"]).await;
    let workspace = world.get("/workspaces/patient").await;
    let first = format!("vast:{first}");
    assert_ne!(workspace["instance"]["machine"], first, "{workspace:#}");
    world.settles_at(1).await;
}
