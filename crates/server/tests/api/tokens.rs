//! Tokens: shown once, revoked at once, never the last one.

use super::world::World;
use serde_json::{Value, json};

async fn as_user(world: &World, token: &str) -> (u16, Value) {
    let url = format!("{}/api/v1/workspaces", world.url());
    let response = world
        .http
        .get(url)
        .bearer_auth(token)
        .send()
        .await
        .expect("an answer");
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_revoked_while_in_use_is_refused_at_its_next_request() {
    let world = World::instant().await;
    let made = world.post("/tokens", json!({ "name": "ci" })).await;
    let token = made["token"].as_str().expect("a token");
    let id = made["id"].as_str().expect("an id");
    assert_eq!(as_user(&world, token).await.0, 200);
    assert_eq!(as_user(&world, token).await.0, 200);

    let (status, revoked) = world.call("DELETE", &format!("/tokens/{id}"), None).await;
    assert_eq!(status, 200, "{revoked}");
    let (status, body) = as_user(&world, token).await;
    assert_eq!((status, &body["code"]), (401, &json!("token_revoked")));

    // Repeated, it keeps the first time.
    let (status, again) = world.call("DELETE", &format!("/tokens/{id}"), None).await;
    assert_eq!((status, &again["revoked_at"]), (200, &revoked["revoked_at"]));

    // Neither the list nor the row has the secret.
    let list = world.get("/tokens").await;
    assert!(!list.to_string().contains(token), "{list}");
    let row = list["items"]
        .as_array()
        .expect("items")
        .iter()
        .find(|t| t["id"] == id);
    let row = row.expect("revoked ones are listed");
    assert!(
        row["revoked_at"].is_i64() && row["last_used_at"].is_i64(),
        "{row}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_use_of_a_token_is_not_a_write_per_request() {
    let world = World::instant().await;
    let made = world.post("/tokens", json!({ "name": "busy" })).await;
    let token = made["token"].as_str().expect("a token");
    let used_at = async || {
        let list = world.get("/tokens").await;
        let rows = list["items"].as_array().expect("items").clone();
        let row = rows
            .into_iter()
            .find(|t| t["id"] == made["id"])
            .expect("it is listed");
        row["last_used_at"].clone()
    };
    assert!(used_at().await.is_null());
    as_user(&world, token).await;
    let first = used_at().await.as_i64().expect("a time");
    for _ in 0..20 {
        as_user(&world, token).await;
    }
    // Written down again only a minute later; a machine so slow that it has passed says nothing.
    let last = used_at().await.as_i64().expect("a time");
    assert!(last == first || last - first >= 60_000_000, "{first} {last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_locks_everybody_out() {
    let mut world = World::instant().await;
    let list = world.get("/tokens").await;
    let admin = list["items"][0]["id"].as_str().expect("an id").to_owned();
    let (status, body) = world.call("DELETE", &format!("/tokens/{admin}"), None).await;
    assert_eq!((status, &body["code"]), (409, &json!("last_token")), "{body}");

    // With another one in force it may go, and whoever starts the server gets in again.
    let other = world.post("/tokens", json!({ "name": "other" })).await;
    assert_eq!(
        world.call("DELETE", &format!("/tokens/{admin}"), None).await.0,
        200
    );
    world.stop_server().await;
    world.start_server().await;
    assert_eq!(world.call("GET", "/workspaces", None).await.0, 200);
    assert_eq!(
        as_user(&world, other["token"].as_str().expect("a token")).await.0,
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_and_name_nobody() {
    let world = World::instant().await;
    world.deployed("secret-project").await;
    let response = world
        .http
        .get(format!("{}/metrics", world.url()))
        .bearer_auth(world.token());
    let response = response.send().await.expect("an answer");
    assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4");
    let text = response.text().await.expect("text");
    for line in [
        r#"dumont_workflows_total{kind="deploy",status="done"} 1"#,
        r#"dumont_workspaces{state="running"} 1"#,
        r#"dumont_instances{state="owned"} 1"#,
        r#"dumont_attempts_total{outcome="won",stage="ready",reason=""} 1"#,
        "dumont_ssh_ready_seconds_count 1",
        "dumont_ssh_ready_seconds_bucket{le=",
        r#"endpoint="PUT /api/v0/asks/{id}/",status="200"}"#,
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let resident = text
        .lines()
        .find_map(|l| l.strip_prefix("process_resident_memory_bytes "));
    assert!(
        resident.is_some_and(|n| n.parse::<f64>().is_ok_and(|n| n > 1e6)),
        "{text}"
    );
    assert!(!text.contains("secret-project"), "{text}");
}
