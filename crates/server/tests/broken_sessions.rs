//! Sessions that break off while files move, on machines that live on and on one that does not.

#![allow(clippy::unwrap_used, reason = "test code")]

mod world;

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use world::World;
use world::agents::kill_agents;
use world::bucket::InProcess;

/// A workspace whose trainer is paused while a snapshot is read.
struct Scene {
    bucket: InProcess,
    world: World,
    instance: String,
    dir: PathBuf,
}

impl Scene {
    async fn new(failover: Value) -> Self {
        let bucket = InProcess::start().await;
        let world = World::on_bucket(bucket.config()).await;
        let snapshot = json!({ "before": "echo >> pauses; touch paused", "after": "rm paused" });
        let spec = json!({ "name": "w", "snapshot": snapshot, "failover": failover });
        let made = world.post("/workspaces", json!({ "spec": spec })).await;
        world.done(&made["workflow_id"]).await;
        let workspace = world.get("/workspaces/w").await;
        let instance = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
        let dir = world.workspace_dir(&instance).await;
        fs::write(dir.join("a"), "as it was").unwrap();
        Self {
            bucket,
            world,
            instance,
            dir,
        }
    }

    fn paused(&self) -> bool {
        self.dir.join("paused").exists()
    }

    /// How often the trainer was paused.
    fn pauses(&self) -> usize {
        fs::read_to_string(self.dir.join("pauses")).map_or(0, |t| t.lines().count())
    }

    /// Begins a snapshot whose uploads do not get on.
    async fn begin(&self) -> Value {
        self.bucket.slow.store(5_000, Ordering::SeqCst);
        self.bucket.requests.lock().unwrap().clear();
        let begun = self.world.post("/workspaces/w/snapshots", json!({})).await;
        begun["workflow_id"].clone()
    }

    /// Waits until a machine sends the bucket something.
    async fn moves(&self, method: &str) {
        let sent = || {
            let mut requests = self.bucket.requests.lock().unwrap();
            let found = requests
                .iter()
                .any(|r| r.starts_with(method) && r.contains("/packs/"));
            requests.clear();
            found
        };
        until("a transfer", sent).await;
    }

    async fn snapshots(&self) -> usize {
        let page = self.world.get("/workspaces/w/snapshots").await;
        page["items"].as_array().unwrap().len()
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "no end in sight of waiting for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn says(workflow: &Value, what: &str) -> bool {
    let lines = workflow["log"].as_array().unwrap().iter();
    lines.filter_map(Value::as_str).any(|l| l.contains(what))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

/// An agent that was killed says nothing about its machine, nor does one whose session was cut.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_outlives_the_agent_that_it_began_with() {
    let scene = Scene::new(json!({})).await;
    let taken = scene.begin().await;
    scene.moves("PUT").await;
    assert!(scene.paused());
    // What the first agent saw of this file is in no snapshot.
    fs::write(scene.dir.join("a"), "as it became").unwrap();
    assert!(kill_agents(std::process::id()) > 0);
    scene.bucket.slow.store(0, Ordering::SeqCst);

    let taken = scene.world.done(&taken).await;
    assert!(says(&taken, "broke off, taking it again"), "{taken:#}");
    assert!(!scene.paused());
    assert_eq!(scene.pauses(), 2);
    assert_eq!(scene.snapshots().await, 1);
    fs::write(scene.dir.join("a"), "lost").unwrap();
    let back = scene.world.post("/workspaces/w/restore", json!({})).await;
    scene.world.done(&back["workflow_id"]).await;
    assert_eq!(read(&scene.dir.join("a")), "as it became");
    let workspace = scene.world.get("/workspaces/w").await;
    assert_eq!(workspace["instance"]["instance_id"], *scene.instance);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_breaks_off_again_and_again_ends_and_leaves_nothing_paused() {
    let scene = Scene::new(json!({})).await;
    let taken = scene.begin().await;
    for n in 1..=3 {
        scene.moves("PUT").await;
        until("a pause", || scene.pauses() == n && scene.paused()).await;
        assert!(kill_agents(std::process::id()) > 0);
    }
    let taken = scene.world.ended(taken.as_str().unwrap()).await;
    let error = &taken["error"];
    assert_eq!(error["code"], "agent_failed", "{taken:#}");
    assert!(
        error["message"].as_str().unwrap().contains("3 times"),
        "{error:#}"
    );
    assert_eq!(scene.snapshots().await, 0);
    // The watcher's next session does it.
    until("the end of the pause", || !scene.paused()).await;

    scene.bucket.slow.store(0, Ordering::SeqCst);
    let next = scene.world.post("/workspaces/w/snapshots", json!({})).await;
    scene.world.done(&next["workflow_id"]).await;
}

/// Trying again does not hold up the failover.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_gives_way_when_its_machine_is_lost() {
    let scene = Scene::new(json!({})).await;
    let first = scene.world.post("/workspaces/w/snapshots", json!({})).await;
    scene.world.done(&first["workflow_id"]).await;
    fs::write(scene.dir.join("a"), "changed").unwrap();
    let taken = scene.begin().await;
    scene.moves("PUT").await;
    scene.bucket.slow.store(0, Ordering::SeqCst);
    scene.world.kill(&scene.instance).await;
    let event = scene.world.failed_over("w").await;
    assert_eq!(event["success"], true, "{event:#}");
    assert!(
        event["detection_ms"].as_i64().is_some_and(|ms| ms < 5_000),
        "{event:#}"
    );
    let taken = scene.world.ended(taken.as_str().unwrap()).await;
    assert_eq!(taken["error"]["code"], "preempted", "{taken:#}");
    let workspace = scene.world.get("/workspaces/w").await;
    let instance = workspace["instance"]["instance_id"].as_str().unwrap();
    assert_ne!(instance, scene.instance);
    let dir = scene.world.workspace_dir(instance).await;
    assert_eq!(read(&dir.join("a")), "as it was");
    assert_eq!(scene.snapshots().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_machine_that_nobody_replaces_says_what_to_do() {
    let scene = Scene::new(json!({ "automatic": false })).await;
    let taken = scene.begin().await;
    scene.moves("PUT").await;
    scene.world.kill(&scene.instance).await;
    let taken = scene.world.ended(taken.as_str().unwrap()).await;
    let error = &taken["error"];
    assert_eq!(error["code"], "machine_lost", "{taken:#}");
    let hint = error["hint"].as_str().unwrap();
    assert!(hint.contains("dumont failover run w"), "{hint}");
    assert_eq!(scene.snapshots().await, 0);
}

/// It goes on with what is there already.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_outlives_the_agent_that_was_killed_while_files_moved() {
    let scene = Scene::new(json!({})).await;
    let first = scene.world.post("/workspaces/w/snapshots", json!({})).await;
    scene.world.done(&first["workflow_id"]).await;
    fs::write(scene.dir.join("a"), "changed").unwrap();
    scene.bucket.slow.store(5_000, Ordering::SeqCst);
    scene.bucket.requests.lock().unwrap().clear();
    let back = scene.world.post("/workspaces/w/restore", json!({})).await;
    scene.moves("GET").await;
    assert!(kill_agents(std::process::id()) > 0);
    scene.bucket.slow.store(0, Ordering::SeqCst);
    let back = scene.world.done(&back["workflow_id"]).await;
    assert!(says(&back, "broke off, trying again"), "{back:#}");
    assert_eq!(read(&scene.dir.join("a")), "as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_outlives_the_agent_that_was_killed_before_it() {
    let world = World::instant().await;
    let spec = json!({
        "name": "stubborn",
        // Its end takes the supervisor's whole patience.
        "start": "trap '' TERM; while true; do sleep 1; done",
    });
    let made = world.post("/workspaces", json!({ "spec": spec })).await;
    world.done(&made["workflow_id"]).await;
    let workspace = world.get("/workspaces/stubborn").await;
    let instance = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let dir = world.workspace_dir(&instance).await;
    fs::write(dir.join("a"), "as it was").unwrap();
    let taken = world.post("/workspaces/stubborn/snapshots", json!({})).await;
    world.done(&taken["workflow_id"]).await;
    fs::write(dir.join("a"), "changed").unwrap();

    let back = world.post("/workspaces/stubborn/restore", json!({})).await;
    world.reaches(&back["workflow_id"], "stop").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(kill_agents(std::process::id()) > 0);
    world.done(&back["workflow_id"]).await;
    assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "as it was");
    let workspace = world.get("/workspaces/stubborn").await;
    assert_eq!(workspace["instance"]["instance_id"], *instance);
}
