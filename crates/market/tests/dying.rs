//! How machines and markets end, and what the ledger says about it.

// Helpers of tests are tests, which clippy cannot see.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::{Duration, Instant};

use common::{LIMIT, directory, exec, port, runs, world, world_with};
use reqwest::{Method, StatusCode};
use russh::ChannelMsg;
use serde_json::{Value, json};

async fn killing_leaves_nothing(world: common::World, mark: &str) {
    let (id, ssh) = world.machine(json!({"label": "doomed"})).await;
    let ssh_port = port(&world.show(id).await);
    exec(
        &ssh,
        &format!("setsid sleep {mark} >/dev/null 2>&1 </dev/null & echo"),
    )
    .await;
    let mut channel = ssh.channel_open_session().await.unwrap();
    channel
        .exec(true, format!("echo up; exec sleep {mark}"))
        .await
        .unwrap();
    while !matches!(channel.wait().await, Some(ChannelMsg::Data { .. })) {}
    assert!(runs(mark));

    let killed = world
        .admin(Method::POST, &format!("/admin/instances/{id}/kill"), None)
        .await;
    let died = killed["killed_ms"].as_i64().unwrap();
    assert!(killed["gone_ms"].as_i64().unwrap() - died < 5000);
    assert!(!runs(mark), "processes of a dead machine still run");
    assert!(
        tokio::net::TcpStream::connect(("127.0.0.1", ssh_port))
            .await
            .is_err()
    );
    let closed = async { while channel.wait().await.is_some() {} };
    tokio::time::timeout(LIMIT, closed)
        .await
        .expect("the connection drops");

    let row = world.show(id).await;
    assert_eq!(row["actual_status"], "offline");
    assert!(row.get("ports").is_none());
    let ledger = world.ledger().await;
    assert_eq!(
        (&ledger["alive"], &ledger["instances"][0]["killed_ms"]),
        (&json!(1), &json!(died))
    );
    assert_eq!(world.destroy(id).await, StatusCode::OK);
    assert_eq!(world.destroy(id).await, StatusCode::NOT_FOUND);
    assert_eq!(world.ledger().await["alive"], 0);
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_a_namespace_leaves_nothing() {
    killing_leaves_nothing(world().await, "31001.25").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_a_directory_leaves_nothing() {
    killing_leaves_nothing(world_with(directory).await, "31002.25").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_provider_may_learn_of_a_death_later() {
    let world = world().await;
    let (id, _ssh) = world.machine(json!({})).await;
    let path = format!("/admin/instances/{id}/kill?status_after_ms=600");
    let start = Instant::now();
    world.admin(Method::POST, &path, None).await;
    assert_eq!(world.show(id).await["actual_status"], "running");
    world.until_status(id, "offline").await;
    assert!(start.elapsed() >= Duration::from_millis(600));
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_the_market_ends_its_machines() {
    let world = world().await;
    let (_, ssh) = world.machine(json!({})).await;
    exec(&ssh, "setsid sleep 31003.25 >/dev/null 2>&1 </dev/null & echo").await;
    assert!(runs("31003.25"));
    world.shutdown().await;
    assert!(!runs("31003.25"));

    let mut world = common::world().await;
    let (_, ssh) = world.machine(json!({})).await;
    exec(&ssh, "setsid sleep 31004.25 >/dev/null 2>&1 </dev/null & echo").await;
    drop(world.market.take());
    let start = Instant::now();
    while runs("31004.25") {
        assert!(
            start.elapsed() < LIMIT,
            "dropping the market left processes behind"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn arm(world: &common::World, fault: Value) {
    world.admin(Method::POST, "/admin/faults", Some(fault)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_happen_as_often_as_armed() {
    let world = world().await;
    let offers = world.offers(json!({"limit": 4, "num_gpus": {"eq": 1}})).await;
    let create = |n: usize| {
        let path = format!("/api/v0/asks/{}/", offers[n]["id"]);
        let order = json!({"image": "x", "label": format!("fault-{n}"), "runtype": "ssh_direct"});
        let world = &world;
        async move { world.api(Method::PUT, &path, Some(order)).await }
    };
    arm(&world, json!({"fault": "create_refused", "count": 1})).await;
    assert_eq!(create(0).await.0, StatusCode::GONE);
    assert_eq!(world.ledger().await["totals"]["created"], 0);

    arm(
        &world,
        json!({"fault": "stuck_loading", "machine_id": offers[0]["machine_id"]}),
    )
    .await;
    arm(
        &world,
        json!({"fault": "ssh_dead", "machine_id": offers[1]["machine_id"]}),
    )
    .await;
    let stuck = create(0).await.1["new_contract"].as_u64().unwrap();
    let deaf = create(1).await.1["new_contract"].as_u64().unwrap();
    let row = world.until_status(deaf, "running").await;
    assert!(
        tokio::net::TcpStream::connect(("127.0.0.1", port(&row)))
            .await
            .is_err()
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.show(stuck).await["actual_status"], "loading");

    arm(&world, json!({"fault": "create_uncertain"})).await;
    let url = format!("{}/api/v0/asks/{}/", world.url(), offers[2]["id"]);
    let lost = world
        .http
        .put(url)
        .bearer_auth("k")
        .json(&json!({"image": "x", "label": "lost"}))
        .send()
        .await;
    assert!(lost.is_err(), "the answer should be lost");
    let found = world.api(
        Method::GET,
        "/api/v1/instances/?select_filters=%7B%22label%22%3A%7B%22eq%22%3A%22lost%22%7D%7D",
        None,
    );
    assert_eq!(found.await.1["instances_found"], 1);

    arm(&world, json!({"fault": "create_refused", "count": 9})).await;
    world.admin(Method::DELETE, "/admin/faults", None).await;
    assert_eq!(create(3).await.0, StatusCode::OK);
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_balances() {
    let world = world().await;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(world.rent(json!({"label": format!("n{n}")})).await);
    }
    for id in &ids {
        world.until_status(*id, "running").await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    for id in &ids[..4] {
        assert_eq!(world.destroy(*id).await, StatusCode::OK);
    }
    let ledger = world.ledger().await;
    assert_eq!(
        (
            &ledger["totals"]["created"],
            &ledger["totals"]["destroyed"],
            &ledger["alive"]
        ),
        (&json!(5), &json!(4), &json!(1))
    );
    let entries = ledger["instances"].as_array().unwrap();
    let mut sum = 0.0;
    for e in entries {
        let num = |k: &str| e[k].as_f64().unwrap();
        assert!((num("gpu_cost") - num("dph_base") * num("running_seconds") / 3600.0).abs() < 1e-12);
        if let Some(end) = e["destroyed_ms"].as_f64() {
            assert!(
                (num("running_seconds") - (end - num("started_ms")) / 1000.0).abs() < 1e-9,
                "{e}"
            );
        }
        sum += num("cost");
    }
    assert!((ledger["totals"]["cost"].as_f64().unwrap() - sum).abs() < 1e-9);
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_one_keeps_its_disk() {
    let world = world().await;
    let (id, ssh) = world.machine(json!({})).await;
    exec(&ssh, "echo kept > ~/file").await;
    let path = format!("/api/v0/instances/{id}/");
    world
        .api(Method::PUT, &path, Some(json!({"state": "stopped"})))
        .await;
    assert_eq!(world.show(id).await["actual_status"], "exited");
    world
        .api(Method::PUT, &path, Some(json!({"state": "running"})))
        .await;
    let row = world.until_status(id, "running").await;
    let ssh = world.login(port(&row)).await.unwrap();
    assert_eq!(exec(&ssh, "cat ~/file").await.text(), "kept\n");
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn boots_take_their_time_and_can_be_cut_short() {
    let world = world_with(|c| c.time_scale = 0.02).await;
    let start = Instant::now();
    let id = world.rent(json!({})).await;
    assert_ne!(world.show(id).await["actual_status"], "running");
    world.until_status(id, "running").await;
    assert!(start.elapsed() > Duration::from_millis(80));
    let other = world.rent(json!({})).await;
    assert_eq!(world.destroy(other).await, StatusCode::OK);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(world.ledger().await["instances"][1]["started_ms"], json!(null));
    world.shutdown().await;
}
