//! What Vast.ai tells by itself, from the emulated market to the failover.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its world fails")]

mod world;

use dumont_market::Webhook;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};
use world::{WEBHOOK_SECRET, World};

fn address(world: &World) -> String {
    format!("{}/api/v1/providers/vast/webhook", world.url())
}

async fn subscribed(world: &World) {
    let hook = json!({ "url": address(world), "secret": WEBHOOK_SECRET });
    world.admin("PUT", "/admin/webhook", Some(hook)).await;
}

/// A delivery as the market signs it.
async fn deliver(world: &World, secret: &str, body: &str) -> (u16, Value) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let hook = Webhook {
        url: address(world),
        secret: secret.into(),
    };
    let mut request = world.http.post(&hook.url).body(body.to_owned());
    for (name, value) in hook.headers(body.as_bytes(), now as i64) {
        request = request.header(name, value);
    }
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap_or_default())
}

async fn instance(world: &World, name: &str) -> String {
    let workspace = world.get(&format!("/workspaces/{name}")).await;
    workspace["instance"]["instance_id"].as_str().unwrap().to_owned()
}

/// Questions about single instances.
async fn asked(world: &World) -> u64 {
    let counts = world.admin("GET", "/admin/requests", None).await["counts"].clone();
    let all = counts.as_object().unwrap().iter();
    let of = all.filter(|(route, _)| route.starts_with("GET /api/v0/instances/{id}"));
    of.filter_map(|(_, n)| n.as_u64()).sum()
}

/// A host goes silent. Untold, nothing but six seconds of silence decides. Told by the market, dumont
/// asks at once and leaves before they are over.
#[tokio::test(flavor = "multi_thread")]
async fn a_notification_is_worth_the_rest_of_the_silence() {
    let world = World::instant().await;
    world.deployed("told").await;
    let first = instance(&world, "told").await;
    let offline = async |id: &str| {
        let path = format!("/admin/instances/{id}/offline");
        world.admin("POST", &path, None).await;
    };
    offline(&first).await;
    let untold = world.failed_over_since("told", &first).await;
    assert_eq!(untold["success"], true, "{untold:#}");
    world.settles_at(1).await;

    subscribed(&world).await;
    let second = instance(&world, "told").await;
    let before = asked(&world).await;
    offline(&second).await;
    world.working_on("told").await;
    let questions = asked(&world).await - before;
    let told = world.failed_over_since("told", &second).await;
    assert_eq!(
        (&told["success"], &told["trigger"]),
        (&json!(true), &json!("provider_says_offline")),
        "{told:#}"
    );
    let ms = |event: &Value| event["detection_ms"].as_i64().unwrap();
    println!(
        "from the loss to the decision: {} ms untold, {} ms told, after {questions} questions",
        ms(&untold),
        ms(&told)
    );
    let silence = i64::try_from(dumont_core::detect::SILENCE.as_millis()).unwrap();
    assert!(ms(&untold) >= silence, "{untold:#}");
    assert!(ms(&told) < silence, "it waited as if nobody had told: {told:#}");
    // At the hint, and while the second heartbeat is missing.
    assert!((1..=6).contains(&questions), "{questions}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbid_and_a_stopped_machine_are_left() {
    let world = World::instant().await;
    world.deployed("bid").await;
    subscribed(&world).await;
    let first = instance(&world, "bid").await;
    world
        .admin("POST", &format!("/admin/instances/{first}/outbid"), None)
        .await;
    let event = world.failed_over_since("bid", &first).await;
    assert_eq!(event["success"], true, "{event:#}");
    println!(
        "outbid: from the loss to the decision: {} ms",
        event["detection_ms"]
    );
    let second = instance(&world, "bid").await;
    world
        .admin("POST", &format!("/admin/instances/{second}/end"), None)
        .await;
    let event = world.failed_over_since("bid", &second).await;
    assert_eq!(event["success"], true, "{event:#}");
    world.settles_at(1).await;
}

/// A lie with a true signature costs a question, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_hint_is_never_the_truth_by_itself() {
    let world = World::instant().await;
    world.deployed("well").await;
    let lives = instance(&world, "well").await;
    let before = asked(&world).await;
    let about = |id: &str, event: &str| {
        json!({ "event_id": event, "notif_type": "outbid", "data": { "instance_id": id } }).to_string()
    };
    for body in [
        about(&lives, "1"),
        about(&lives, "1"),
        json!({ "event_id": "2", "notif_type": "client:instance_offline", "data": null }).to_string(),
        about("999999999", "3"),
        json!({ "event_id": "4", "notif_type": "low_credit", "data": { "balance": 1 } }).to_string(),
        json!({ "event_id": "5", "notif_type": "something_new" }).to_string(),
    ] {
        assert_eq!(
            deliver(&world, WEBHOOK_SECRET, &body).await,
            (202, Value::Null),
            "{body}"
        );
    }
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    let workspace = world.get("/workspaces/well").await;
    assert_eq!(
        (&workspace["state"], instance(&world, "well").await),
        (&json!("running"), lives.clone())
    );
    assert_eq!(world.get("/failovers").await["items"], json!([]));
    let more = asked(&world).await - before;
    assert!(
        (1..=6).contains(&more),
        "{more} questions for two events, each at most three times"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_and_nonsense_are_refused() {
    let world = World::instant().await;
    let unsigned = world.http.post(address(&world)).body("{}").send().await.unwrap();
    assert_eq!(unsigned.status(), 401);
    let (status, body) = deliver(&world, "another secret", "{}").await;
    assert_eq!((status, &body["code"]), (401, &json!("signature_invalid")));
    for nonsense in ["", "[]", "{}", "no json", r#"{"notif_type": 5}"#] {
        let (status, body) = deliver(&world, WEBHOOK_SECRET, nonsense).await;
        assert_eq!(
            (status, &body["code"]),
            (400, &json!("invalid_request")),
            "{nonsense:?}"
        );
    }
    let (status, _) = deliver(&world, WEBHOOK_SECRET, &"x".repeat(65 << 10)).await;
    assert_eq!(status, 413);
}
