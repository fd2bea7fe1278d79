//! `GET /instances/offers` of a real server, asked of the emulated marketplace.
#![allow(clippy::unwrap_used, reason = "tests")]

mod world;

use serde_json::Value;
use world::World;

async fn offers(world: &World, query: &str) -> Vec<Value> {
    let page = world.get(&format!("/instances/offers{query}")).await;
    page["items"].as_array().unwrap().clone()
}

#[tokio::test]
async fn every_filter_and_order_reaches_the_market() {
    let world = World::with(0.0, 120).await;
    let all = offers(&world, "").await;
    assert!(all.len() > 5, "{all:#?}");
    for offer in &all {
        assert!(offer["id"].is_u64() && offer["machine_id"].is_string(), "{offer}");
        assert_eq!(offer["success_rate"], Value::Null, "{offer}");
        assert_eq!(
            (&offer["total_attempts"], &offer["num_gpus"]),
            (&0.into(), &1.into()),
            "{offer}"
        );
        assert_eq!(offer["reliability_status"], "unknown");
        assert_eq!(offer["is_blacklisted"], false);
        assert_eq!(offer["verified"], true, "the account's own rule holds: {offer}");
        assert!(offer["predicted_ready_seconds"].as_f64().unwrap() > 0.0);
    }
    type Check = (&'static str, fn(&Value) -> bool);
    let checks: [Check; 9] = [
        ("?gpu=RTX_4090", |o| o["gpu_name"] == "RTX 4090"),
        ("?gpu_count=2", |o| o["num_gpus"] == 2),
        ("?min_ram_gb=40", |o| o["gpu_ram"].as_u64().unwrap() >= 40_000),
        ("?max_price=0.4", |o| o["dph_total"].as_f64().unwrap() <= 0.4),
        ("?region=us", |o| {
            o["geolocation"].as_str().unwrap().ends_with(", US")
        }),
        ("?region=Ontario", |o| o["geolocation"] == "Ontario, CA"),
        ("?min_down_mbps=1000&min_up_mbps=800", |o| {
            o["inet_down"].as_f64().unwrap() >= 1000.0 && o["inet_up"].as_f64().unwrap() >= 800.0
        }),
        ("?datacenter=true&verified=any", |o| o["datacenter"] == true),
        ("?cuda=12.7", |o| o["cuda_max_good"].as_f64().unwrap() >= 12.7),
    ];
    for (query, holds) in checks {
        let found = offers(&world, query).await;
        assert!(!found.is_empty(), "{query}");
        assert!(found.iter().all(holds), "{query}: {found:#?}");
    }
    assert!(
        offers(&world, "?verified=false")
            .await
            .iter()
            .all(|o| o["verified"] == false)
    );
    let priced = offers(&world, "?order=price").await;
    assert!(priced.is_sorted_by_key(|o| (o["dph_total"].as_f64().unwrap() * 1e9) as u64));
    let dearer = offers(&world, "?order=price&disk_gb=200").await;
    assert!(dearer[0]["dph_total"].as_f64().unwrap() > priced[0]["dph_total"].as_f64().unwrap());

    let machine = all[0]["machine_id"].as_str().unwrap();
    let one = offers(&world, &format!("?machine=vast:{machine}&all_offers=true")).await;
    assert!(one.iter().all(|o| o["machine_id"] == machine) && !one.is_empty());

    let page = world.get("/instances/offers?limit=2").await;
    let next = page["next"].as_str().unwrap();
    let second = offers(&world, &format!("?limit=2&after={next}")).await;
    assert_eq!(second[..], all[2..4]);
}

#[tokio::test]
async fn bad_queries_are_refused_with_a_next_step() {
    let world = World::instant().await;
    for query in [
        "?gpus=1",
        "?gpu_count=0",
        "?gpu_count=two",
        "?max_price=-1",
        "?max_price=NaN",
        "?disk_gb=0",
        "?region=",
        "?verified=maybe",
        "?datacenter=perhaps",
        "?cuda=new",
        "?order=luck",
        "?limit=0",
        "?limit=501",
        "?machine=12345",
        "?machine=other:1",
        "?include_blacklisted=yes",
    ] {
        let (status, body) = world
            .call("GET", &format!("/instances/offers{query}"), None)
            .await;
        assert_eq!(
            (status, body["code"].as_str()),
            (400, Some("invalid_request")),
            "{query}: {body}"
        );
        assert!(!body["message"].as_str().unwrap().is_empty() && !body["hint"].as_str().unwrap().is_empty());
    }
    let (status, body) = world.call("GET", "/instances/offers?after=1", None).await;
    assert_eq!((status, body["code"].as_str()), (409, Some("offers_changed")));
}
