//! A workspace's life on PostgreSQL, and what happens when the database dies in the middle.

#![allow(clippy::unwrap_used, reason = "what goes wrong here fails its test")]

mod world;

use dumont_server::{Database, ServerError, StoreError};
use dumont_temp_postgres::{Cluster, Stop};
use serde_json::{Value, json};
use std::fs;
use std::time::Duration;
use world::World;

/// A world whose state is in the cluster.
async fn on(cluster: &Cluster) -> World {
    let url = cluster.create_database("dumont").unwrap();
    World::on_database(Database::Postgres { url }).await
}

/// Kills the database hard, sees that the API says so, and starts it again.
async fn restart_the_database(cluster: &Cluster, world: &World) {
    cluster.stop(Stop::Immediate);
    let (status, body) = world.call("GET", "/workspaces", None).await;
    assert_eq!(
        (status, &body["code"]),
        (503, &json!("database_unavailable")),
        "{body}"
    );
    assert!(body["hint"].as_str().unwrap().contains("repeat"), "{body}");
    cluster.resume().unwrap();
}

/// Waits until the workflow has left its first step, by the database's own word.
async fn under_way(cluster: &Cluster, kind: &str) {
    let sql = format!("SELECT COUNT(*) FROM workflows WHERE kind = '{kind}' AND steps_json <> '[]'");
    while cluster.sql("dumont", &sql).unwrap() == "0" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_dies_in_the_middle_costs_nothing_but_time() {
    let cluster = Cluster::start().unwrap();
    let world = on(&cluster).await;
    let created = world
        .post("/workspaces", json!({ "spec": world::spec("train") }))
        .await;
    under_way(&cluster, "deploy").await;
    restart_the_database(&cluster, &world).await;
    world.done(&created["workflow_id"]).await;
    world.settles_at(1).await;

    let first = instance(&world).await;
    let dir = world.workspace_dir(&first).await;
    fs::write(dir.join("a.txt"), "kept").unwrap();
    let taken = world.post("/workspaces/train/snapshots", json!({})).await;
    world.done(&taken["workflow_id"]).await;
    world.kill(&first).await;
    under_way(&cluster, "failover").await;
    restart_the_database(&cluster, &world).await;
    let event = world.failed_over("train").await;
    assert_eq!(event["success"], true, "{event:#}");
    let dir = world.workspace_dir(&instance(&world).await).await;
    assert_eq!(fs::read_to_string(dir.join("a.txt")).unwrap(), "kept");
    world.settles_at(1).await;
}

async fn instance(world: &World) -> String {
    let workspace: Value = world.get("/workspaces/train").await;
    workspace["instance"]["instance_id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn health_says_503_while_the_database_is_away_and_nothing_of_why() {
    let cluster = Cluster::start().unwrap();
    let world = on(&cluster).await;
    let health = async || {
        // As a load balancer asks: without a token.
        let url = format!("{}/healthz", world.url());
        let answer = world.http.get(url).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let well = health().await;
    assert_eq!((well.0, &well.1["status"]), (200, &json!("ok")), "{well:?}");
    cluster.stop(Stop::Immediate);
    let (status, body) = health().await;
    assert_eq!(
        (status, &body["status"]),
        (503, &json!("database_unavailable")),
        "{body}"
    );
    let mut names: Vec<_> = body.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["status", "version"]);
    cluster.resume().unwrap();
    assert_eq!(health().await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_there_at_the_start_is_said_so() {
    let cluster = Cluster::start().unwrap();
    let mut world = on(&cluster).await;
    world.stop_server().await;
    cluster.stop(Stop::Fast);
    let refused = dumont_server::start(world.server_config()).await.err();
    assert!(
        matches!(refused, Some(ServerError::Store(StoreError::Unavailable(_)))),
        "{refused:?}"
    );
    cluster.resume().unwrap();
    world.start_server().await;
    assert_eq!(world.get("/workspaces").await["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_frees_its_own_predecessor_and_nobody_else() {
    let cluster = Cluster::start().unwrap();
    let mut world = on(&cluster).await;
    world.stop_server().await;
    let own = fs::read_to_string(world.data_dir().join("process.id")).unwrap();
    // Two workflows in hands that hold them for long: our dead predecessor's, and those of
    // another controller that lives.
    for (id, owner) in [("mine", own.trim()), ("theirs", "01OTHER")] {
        let sql = format!(
            "INSERT INTO workspaces (id, name, spec_json, state, fence, created_at) \
             VALUES ('{id}', '{id}', '{{\"name\":\"{id}\"}}', 'draft', 0, 0); \
             INSERT INTO workflows (id, kind, workspace_id, step, step_started_at, state_json, status, \
             owner, lease_until, fence, steps_json, log_json, created_at, updated_at) \
             VALUES ('{id}', 'teardown', '{id}', 'destroy', 0, '{{}}', 'running', '{owner}', \
             9000000000000000, 1, '[]', '[]', 0, 0)"
        );
        cluster.sql("dumont", &sql).unwrap();
    }
    world.start_server().await;
    let fence = |id: &str| {
        let sql = format!("SELECT fence FROM workflows WHERE id = '{id}'");
        cluster.sql("dumont", &sql).unwrap()
    };
    while fence("mine") == "1" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(fence("theirs"), "1", "it is not ours to take");
}
