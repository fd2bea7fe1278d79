//! Failovers in a row within the limits that Vast.ai documents.

mod world;

use dumont_core::budget::Limits;
use dumont_market::Limits as MarketLimits;
use std::fs;
use world::World;

/// Answers of this status, all endpoints together.
fn answered(metrics: &str, status: &str) -> u64 {
    metrics
        .lines()
        .filter(|line| line.starts_with("dumont_provider_requests_total") && line.contains(status))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
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
        let now = world.get("/workspaces/train").await;
        on = now["instance"]["instance_id"].as_str().unwrap().to_owned();
    }
    let metrics = reqwest::Client::new()
        .get(format!("{}/metrics", world.url()))
        .bearer_auth(world.token())
        .send()
        .await
        .unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(answered(&metrics, "status=\"200\"") > 10, "{metrics}");
    // None on a machine that has time. On one that has not, a request may leave later than its turn
    // by more than the distances have to spare, and the next one comes too near.
    assert!(answered(&metrics, "status=\"429\"") <= 2, "{metrics}");
}
