//! States that come by themselves, the market as it is known, and what all of it cost.

// Helpers of tests are tests, which clippy cannot see.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{World, exec, exec_with, port, world, world_with};
use dumont_market::{Limits, Preset};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

async fn lever(world: &World, id: u64, what: &str) {
    world
        .admin(Method::POST, &format!("/admin/instances/{id}/{what}"), None)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_state_of_the_way_up_is_seen() {
    let world = world_with(|c| c.time_scale = 0.05).await;
    let id = world.rent(json!({})).await;
    let mut seen: Vec<Value> = Vec::new();
    loop {
        let status = world.show(id).await["actual_status"].clone();
        if seen.last() != Some(&status) {
            seen.push(status.clone());
        }
        if status == "running" {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(
        seen,
        [json!(null), json!("created"), json!("loading"), json!("running")]
    );
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_loss_and_return() {
    let world = world().await;
    let id = world.rent(json!({})).await;
    let row = world.until_status(id, "running").await;
    lever(&world, id, "silent").await;
    let silent = world.show(id).await;
    assert_eq!(
        (&silent["actual_status"], &silent["intended_status"]),
        (&json!("unknown"), &json!("running"))
    );
    assert!(
        world.login(port(&row)).await.is_ok(),
        "only the heartbeat is gone"
    );
    lever(&world, id, "online").await;
    world.until_status(id, "running").await;
    lever(&world, id, "offline?for_ms=300").await;
    assert_eq!(world.show(id).await["actual_status"], "offline");
    world.until_status(id, "running").await;
    world.shutdown().await;
}

/// Paused with its memory: it says so, nothing answers, and it is paid for.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_one_is_billed_and_thaws() {
    let world = world().await;
    let id = world.rent(json!({})).await;
    let row = world.until_status(id, "running").await;
    assert!(world.login(port(&row)).await.is_ok());
    lever(&world, id, "freeze").await;
    let frozen = world.show(id).await;
    assert_eq!(
        (&frozen["actual_status"], &frozen["intended_status"]),
        (&json!("frozen"), &json!("frozen"))
    );
    let billed = async || {
        let path = format!("/admin/instances/{id}");
        let about = world.admin(Method::GET, &path, None).await;
        about["gpu_seconds_billed"].as_f64().unwrap()
    };
    let before = billed().await;
    tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    assert!(billed().await > before);
    lever(&world, id, "online").await;
    let row = world.until_status(id, "running").await;
    assert!(world.login(port(&row)).await.is_ok());
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn contracts_and_credit_end() {
    let world = world().await;
    let id = world.rent(json!({})).await;
    world.until_status(id, "running").await;
    lever(&world, id, "end").await;
    let row = world.until_status(id, "exited").await;
    assert_eq!(row["intended_status"], "stopped");
    let other = world.rent(json!({})).await;
    world.until_status(other, "running").await;
    world
        .admin(Method::PUT, "/admin/credit", Some(json!({"credit": 0})))
        .await;
    world.until_status(other, "exited").await;
    let path = format!("/api/v0/instances/{other}/");
    let (status, body) = world
        .api(Method::PUT, &path, Some(json!({"state": "running"})))
        .await;
    assert_eq!(
        (status, &body["error"]),
        (StatusCode::BAD_REQUEST, &json!("insufficient_credit"))
    );
    let user = world.api(Method::GET, "/api/v0/users/current/", None).await.1;
    assert!(user["credit"].as_f64().unwrap() <= 0.0);
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_cannot_be_made() {
    let world = world().await;
    world
        .admin(
            Method::POST,
            "/admin/faults",
            Some(json!({"fault": "boot_fails"})),
        )
        .await;
    let id = world.rent(json!({})).await;
    let row = loop {
        let row = world.show(id).await;
        if row["status_msg"].as_str().is_some_and(|m| !m.is_empty()) {
            break row;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    assert_eq!(row["actual_status"], "created");
    assert!(
        row["status_msg"]
            .as_str()
            .unwrap()
            .contains("OCI runtime create failed")
    );
    world.shutdown().await;
}

/// As Vast.ai is known to be, but fast, and with nothing that fails.
async fn lucky(preset: Preset) -> World {
    world_with(|c| {
        c.preset = preset;
        c.limits = Some(Limits::OFF);
        c.machines = 200;
    })
    .await
}

/// The first rental that comes to something.
async fn somebody(world: &World, label: &str) -> (u64, Value) {
    for offer in world.offers(json!({"num_gpus": {"eq": 1}})).await {
        let order =
            json!({"image": "pytorch/pytorch", "disk": 10, "label": label, "runtype": "ssh_direc ssh_proxy"});
        let path = format!("/api/v0/asks/{}/", offer["id"]);
        let (status, body) = world.api(Method::PUT, &path, Some(order)).await;
        let Some(id) = body["new_contract"].as_u64().filter(|_| status == StatusCode::OK) else {
            continue;
        };
        for _ in 0..200 {
            let row = world.show(id).await;
            let well = row["actual_status"] == "running";
            let about = world
                .admin(Method::GET, &format!("/admin/instances/{id}"), None)
                .await;
            let sick = about["faults"]
                .as_array()
                .unwrap()
                .iter()
                .any(|f| f["fault"] != "tmux_noise");
            if sick {
                break;
            }
            if well {
                return (id, row);
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        world.destroy(id).await;
    }
    panic!("nothing works on this market");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_shows_another_host_key_behind_a_reused_port() {
    let world = lucky(Preset::Vast).await;
    let (first, row) = somebody(&world, "proxied").await;
    let proxy = u16::try_from(row["ssh_port"].as_u64().unwrap()).unwrap();
    assert_ne!(proxy, port(&row), "the proxy is not the machine");
    let (key, direct) = (host_key(proxy).await, host_key(port(&row)).await);
    assert_eq!(key, direct, "it is the machine behind it");
    let ssh = world.login(proxy).await.unwrap();
    let out = exec(&ssh, "echo out").await.text();
    assert!(
        out.starts_with("Welcome to vast.ai.") && out.ends_with("out\n"),
        "{out}"
    );
    exec(&ssh, "touch ~/.no_auto_tmux").await;
    assert_eq!(exec(&ssh, "echo out").await.text(), "out\n");
    world.destroy(first).await;
    let (_, row) = somebody(&world, "proxied").await;
    assert_eq!(row["ssh_port"], u64::from(proxy), "the port is used again");
    assert_ne!(host_key(proxy).await, key);
    world.shutdown().await;
}

/// As a client sees it that does not log in.
async fn host_key(port: u16) -> String {
    use std::sync::{Arc, Mutex};
    struct Look(Arc<Mutex<String>>);
    impl russh::client::Handler for Look {
        type Error = russh::Error;

        async fn check_server_key(
            &mut self,
            key: &russh::keys::PublicKeyOrCertificate,
        ) -> Result<bool, Self::Error> {
            *self.0.lock().unwrap() = format!("{key:?}");
            Ok(true)
        }
    }
    let start = std::time::Instant::now();
    loop {
        let seen = Arc::new(Mutex::new(String::new()));
        let config = Arc::new(russh::client::Config::default());
        let connected = russh::client::connect(config, ("127.0.0.1", port), Look(Arc::clone(&seen))).await;
        if connected.is_ok() {
            return seen.lock().unwrap().clone();
        }
        assert!(start.elapsed() < common::LIMIT, "no ssh at {port}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn same_seed_same_market_and_hell_is_worse() {
    let refused = async |preset| {
        let world = lucky(preset).await;
        let offers = world
            .offers(json!({"order": [["machine_id", "asc"], ["id", "asc"]]}))
            .await;
        let mut fates = Vec::new();
        for offer in offers.iter().take(30) {
            let order = json!({"image": "x", "disk": 10});
            let url = format!("{}/api/v0/asks/{}/", world.url(), offer["id"]);
            let sent = world.http.put(url).bearer_auth("k").json(&order).send().await;
            fates.push(sent.map(|answer| answer.status().as_u16()).unwrap_or(0));
        }
        let faults = async |id: u64| {
            world
                .admin(Method::GET, &format!("/admin/instances/{id}"), None)
                .await["faults"]
                .to_string()
        };
        let ledger = world.ledger().await;
        let mut all = vec![json!(fates).to_string()];
        for instance in ledger["instances"].as_array().unwrap() {
            all.push(faults(instance["id"].as_u64().unwrap()).await);
        }
        world.shutdown().await;
        all
    };
    let (one, again, hell) = (
        refused(Preset::Vast).await,
        refused(Preset::Vast).await,
        refused(Preset::Hell).await,
    );
    assert_eq!(one, again);
    let bad = |all: &[String]| {
        let words = ["stuck_loading", "ssh_dead", "boot_fails", "gpu_missing", "410"];
        all.iter()
            .map(|f| words.iter().map(|w| f.matches(w).count()).sum::<usize>())
            .sum::<usize>()
    };
    assert!(
        bad(&hell) > bad(&one),
        "{} in hell, {} on Vast",
        bad(&hell),
        bad(&one)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_says_per_label_who_left_something() {
    let world = world().await;
    let (tidy, _) = world.machine(json!({"label": "tidy"})).await;
    let (leaky, ssh) = world.machine(json!({"label": "leaky"})).await;
    exec_with(&ssh, "cat", vec![7; 3 << 20]).await;
    world.destroy(tidy).await;
    let ledger = world.ledger().await;
    let labels = &ledger["labels"];
    assert_eq!(
        (&labels["tidy"]["alive"], &labels["tidy"]["destroyed"]),
        (&json!([]), &json!(1))
    );
    assert_eq!(labels["leaky"]["alive"], json!([leaky]));
    assert!(labels["leaky"]["costs_per_hour"].as_f64().unwrap() > 0.0);
    assert_eq!(labels["tidy"]["costs_per_hour"].as_f64().unwrap(), 0.0);
    let entry = ledger["instances"]
        .as_array()
        .unwrap()
        .iter()
        .find(|i| i["id"] == leaky)
        .unwrap();
    for way in ["inwards", "outwards"] {
        assert!(
            entry["traffic"][way].as_u64().unwrap() > 3 << 20,
            "{way}: {}",
            entry["traffic"]
        );
    }
    let num = |v: &Value| v.as_f64().unwrap();
    let sum: f64 = labels
        .as_object()
        .unwrap()
        .values()
        .map(|l| num(&l["cost"]))
        .sum();
    assert!(
        (sum - num(&ledger["totals"]["cost"])).abs() < 1e-6,
        "{sum} {}",
        ledger["totals"]
    );
    assert!(num(&labels["leaky"]["bandwidth_cost"]) > 0.0);
    world.shutdown().await;
}
