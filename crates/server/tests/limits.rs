//! Failovers in a row within the limits that Vast.ai documents.

// Helpers of tests are tests, which clippy cannot see.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../dumont/tests/proxy/mod.rs"]
mod proxy;
mod world;

use dumont_core::budget::{Endpoint, Limits};
use dumont_core::workflow::Step;
use dumont_market::Limits as MarketLimits;
use proxy::{Fault, Proxy, Request, Weather};
use std::fs;
use std::time::Duration;
use world::World;

/// Answers of this status, all endpoints together.
fn answered(metrics: &str, status: &str) -> u64 {
    metrics
        .lines()
        .filter(|line| line.starts_with("dumont_provider_requests_total") && line.contains(status))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

async fn metrics(world: &World) -> String {
    let url = format!("{}/metrics", world.url());
    let asked = reqwest::Client::new().get(url).bearer_auth(world.token());
    asked.send().await.unwrap().text().await.unwrap()
}

/// From the begin of a workflow's race to its first contract, as the market saw it.
async fn first_create(world: &World, workflow: &str) -> i64 {
    let began = world.store().await.workflow(workflow).await.unwrap().unwrap();
    let race = began.steps.iter().find(|s| s.step == Step::Race).unwrap();
    let ledger = world.admin("GET", "/admin/ledger", None).await;
    let created = ledger["instances"].as_array().unwrap().iter();
    let created = created.filter_map(|i| i["created_ms"].as_i64());
    let began = race.started_at.0 / 1_000;
    created
        .filter(|ms| *ms >= began)
        .min()
        .map_or(-1, |ms| ms - began)
}

#[tokio::test(flavor = "multi_thread")]
async fn three_failovers_in_a_row_keep_the_limits() {
    let world = World::on_market(|market| {
        (market.time_scale, market.machines) = (0.0, 12);
        market.limits = Some(MarketLimits::DOCUMENTED);
    })
    .await;
    // The first server knew of no limits: what it asked last must be over.
    let keeps_them = |world: &mut World| {
        world.limits = Limits::default();
        std::thread::sleep(std::time::Duration::from_secs(5));
    };
    let world = world.reconfigured(keeps_them).await;
    let workspace = world.deployed("train").await;
    let mut on = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    fs::write(world.workspace_dir(&on).await.join("a.txt"), "one").unwrap();
    let snapshot = world
        .post("/workspaces/train/snapshots", serde_json::json!({}))
        .await;
    world.done(&snapshot["workflow_id"]).await;
    let mut last = String::new();
    for _ in 0..3 {
        world.kill(&on).await;
        let event = world.failed_over_again("train", &last).await;
        assert_eq!(event["success"], true, "{event:#}");
        last = event["id"].as_str().unwrap().to_owned();
        println!(
            "first create {} ms after the race began",
            first_create(&world, &last).await
        );
        let now = world.get("/workspaces/train").await;
        on = now["instance"]["instance_id"].as_str().unwrap().to_owned();
    }
    let metrics = metrics(&world).await;
    assert!(answered(&metrics, "status=\"200\"") > 10, "{metrics}");
    // None on a machine that has time. On one that has not, a request may leave later than its turn
    // by more than the distances have to spare, and the next one comes too near.
    assert!(answered(&metrics, "status=\"429\"") <= 2, "{metrics}");
}

/// A create that was refused as too frequent goes out again for a race that is under way, and for no other: its
/// machine would be nobody's.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_workspace_rents_nothing_more() {
    let world = World::instant().await;
    let market: reqwest::Url = world.market.url().parse().unwrap();
    let proxy = Proxy::numbering(market.socket_addrs(|| None).unwrap()[0]).await;
    let through = |world: &mut World| world.vast_url = Some(format!("http://{}", proxy.addr));
    let world = world.reconfigured(through).await;
    let is_create = |target: &str| target.starts_with("/api/v0/asks/");
    let refuse = move |_: &mut _, request: &Request| {
        is_create(&request.target).then_some(Fault::Refuse(429, "TooFrequent"))
    };
    proxy.set(Some(Weather::new(1, 1000, refuse)));
    let mut spec = world::spec("train");
    spec["failover"] = serde_json::json!({ "racers": 1 });
    let body = serde_json::json!({ "spec": spec });
    let created = world.post("/workspaces", body).await;
    world.reaches(&created["workflow_id"], "race").await;
    let creates = || proxy.sent().iter().filter(|s| is_create(&s.target)).count();
    let wait = |n: usize| async move {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while creates() < n && std::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        creates()
    };
    assert_eq!(wait(2).await, 2, "a refused create goes out again");
    let (_, deleted) = world.call("DELETE", "/workspaces/train", None).await;
    world.ended(deleted["workflow_id"].as_str().unwrap()).await;
    // The next would go out two seconds after the last.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(creates(), 2);
    world.settles_at(0).await;
}

/// The losers of a race are being given back when the workspace is deleted, which gives all back.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_destroyed_once_whoever_wants_it() {
    let world = World::with(0.03, 24).await;
    let slowly = |world: &mut World| {
        world.limits = Limits::off().at_least(Endpoint::Destroy, Duration::from_millis(500));
        world.race.width = 4;
    };
    let world = world.reconfigured(slowly).await;
    let mut spec = world::spec("train");
    spec["failover"] = serde_json::json!({ "racers": 4 });
    let created = world
        .post("/workspaces", serde_json::json!({ "spec": spec }))
        .await;
    world.done(&created["workflow_id"]).await;
    let (_, deleted) = world.call("DELETE", "/workspaces/train", None).await;
    world.done(&deleted["workflow_id"]).await;
    world.settles_at(0).await;
    let ledger = world.admin("GET", "/admin/ledger", None).await;
    let asked = world.admin("GET", "/admin/requests", None).await;
    assert_eq!(
        asked["counts"]["DELETE /api/v0/instances/{id}/"], ledger["totals"]["destroyed"],
        "{asked:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_without_credit_stops_at_once_and_says_so() {
    let world = World::instant().await;
    world
        .admin("PUT", "/admin/credit", Some(serde_json::json!({"credit": 0})))
        .await;
    let created = world
        .post("/workspaces", serde_json::json!({ "spec": world::spec("train") }))
        .await;
    let workflow = world.ended(created["workflow_id"].as_str().unwrap()).await;
    assert_eq!(workflow["error"]["code"], "no_credit", "{workflow:#}");
    let workspace = world.get("/workspaces/train").await;
    assert!(
        workspace["message"].as_str().unwrap().contains("add credit"),
        "{workspace:#}"
    );
    let ledger = world.admin("GET", "/admin/ledger", None).await;
    assert_eq!(ledger["alive"], 0, "{ledger:#}");
    let metrics = metrics(&world).await;
    let creates = metrics
        .lines()
        .filter(|l| l.contains("PUT /api/v0/asks") && l.starts_with("dumont_provider_requests_total"))
        .filter_map(|l| l.rsplit(' ').next()?.parse::<u64>().ok())
        .sum::<u64>();
    assert_eq!(creates, 1, "one refusal is enough: {metrics}");
}

/// All see the same best machine, and a refused create costs the account as long as another.
#[tokio::test(flavor = "multi_thread")]
async fn deploys_at_once_do_not_ask_for_the_same_offer() {
    let world = World::with(0.0, 60).await;
    let deploy = async |n: usize| {
        let mut spec = world::spec(&format!("w{n}"));
        spec["failover"] = serde_json::json!({ "racers": 1 });
        let created = world
            .post("/workspaces", serde_json::json!({ "spec": spec }))
            .await;
        world.done(&created["workflow_id"]).await;
    };
    futures::future::join_all((0..8).map(deploy)).await;
    let requests = world.admin("GET", "/admin/requests", None).await;
    let ledger = world.admin("GET", "/admin/ledger", None).await;
    assert_eq!(
        requests["counts"]["PUT /api/v0/asks/{id}/"], ledger["totals"]["created"],
        "{requests:#}"
    );
}
