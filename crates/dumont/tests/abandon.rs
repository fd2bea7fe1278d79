//! A server that is killed for good, and the machine that it leaves: the real binary, `kill -9`, and the
//! market's own ledger. `server/tests/abandon.rs` looks at the cases one by one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot run the binary fails"
)]

mod world;

use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use world::World;

const LEASE: &[&str] = &["--abandon-after-s", "4"];

fn admin(world: &World, path: &str) -> Value {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = format!("{}{path}", world.admin_url);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async { reqwest::get(url).await.unwrap().json().await.unwrap() })
}

fn deployed(world: &World) -> String {
    let args = ["deploy", "train", "--start", "exec sleep 100000"];
    let run = world.run(&args);
    assert_eq!(run.code, 0, "{run:?}");
    let workspace = world.json(&["workspace", "show", "train"]);
    workspace["instance"]["instance_id"].as_str().unwrap().to_owned()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "it never comes: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn the_machine_of_a_killed_server_ends_its_own_cost_and_is_had_back() {
    let mut world = World::without_server(4, Vec::new());
    if admin(&world, "/admin/market")["isolation"] == "directory" {
        eprintln!("machines are plain directories here: not tested");
        return;
    }
    assert!(world.try_serve(LEASE), "{}", world.log("serve"));
    let id = deployed(&world);
    let about = |world: &World| admin(world, &format!("/admin/instances/{id}"));
    let file = PathBuf::from(about(&world)["workspace_dir"].as_str().unwrap()).join("work");
    std::fs::write(&file, "in no snapshot").unwrap();

    // Longer than the lease, with a server that is killed and is back in time.
    std::thread::sleep(Duration::from_secs(6));
    world.kill_server();
    assert!(world.try_serve(LEASE), "{}", world.log("serve"));
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(about(&world)["state"], "running");

    world.kill_server();
    let killed = Instant::now();
    until("the machine stops itself", || about(&world)["state"] == "exited");
    assert!(
        killed.elapsed() >= Duration::from_secs(4),
        "{:?}",
        killed.elapsed()
    );
    let billed = admin(&world, "/admin/ledger")["totals"].clone();
    std::thread::sleep(Duration::from_secs(2));
    let later = admin(&world, "/admin/ledger")["totals"].clone();
    assert_eq!(
        later["gpu_seconds_billed"], billed["gpu_seconds_billed"],
        "{later:#}"
    );
    assert_eq!(later["alive"], 1, "stopped, not destroyed: {later:#}");

    assert!(world.try_serve(LEASE), "{}", world.log("serve"));
    until("the workspace runs", || {
        let event = world.json(&["failover", "list"])[0].clone();
        event["trigger"] == "abandoned" && event["success"] == true
    });
    let workspace = world.json(&["workspace", "show", "train"]);
    assert_eq!(workspace["instance"]["instance_id"], id.as_str(), "{workspace:#}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "in no snapshot");
    let machine = workspace["instance"]["machine"].as_str().unwrap();
    let record = world.json(&["history", "show", machine]);
    assert_eq!(record["interrupts"][0]["cause"], "abandoned", "{record:#}");
    assert_eq!(record["blacklist"].as_array().unwrap().len(), 0, "{record:#}");
}
