//! Faults that a machine has or meets, as a renter sees them.

// Helpers of tests are tests, which clippy cannot see.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{LIMIT, World, exec, exec_with, port, world, world_with};
use dumont_market::ClockHook;
use reqwest::Method;
use serde_json::{Value, json};

async fn arm(world: &World, fault: Value) {
    world.admin(Method::POST, "/admin/faults", Some(fault)).await;
}

async fn about(world: &World, id: u64) -> Value {
    world
        .admin(Method::GET, &format!("/admin/instances/{id}"), None)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn sick_gpus_say_what_real_ones_say() {
    let world = world().await;
    for (fault, says, code) in [
        ("driver_mismatch", "Driver/library version mismatch", 18),
        ("gpu_missing", "No devices were found", 6),
    ] {
        arm(&world, json!({"fault": fault})).await;
        let (id, ssh) = world.machine(json!({})).await;
        let out = exec(&ssh, "nvidia-smi").await;
        assert!(out.text().contains(says), "{}", out.text());
        assert_eq!(out.status, Some(code));
        assert_eq!(about(&world, id).await["faults"][0]["fault"], fault);
    }
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_disk_is_small() {
    let world = world().await;
    arm(&world, json!({"fault": "disk_small", "size_mb": 3})).await;
    let (id, ssh) = world.machine(json!({})).await;
    let fault = about(&world, id).await["faults"][0].clone();
    if fault["without_effect"].is_null() {
        let out = exec_with(&ssh, "cat > /workspace/big", vec![7; 5 << 20]).await;
        assert!(
            String::from_utf8_lossy(&out.stderr).contains("No space left"),
            "{:?}",
            out.status
        );
    } else {
        assert!(
            fault["without_effect"].as_str().unwrap().contains("namespaces"),
            "{fault}"
        );
    }
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_takes_its_time() {
    let world = world().await;
    arm(&world, json!({"fault": "key_lag", "for_ms": 0})).await;
    let id = world.rent(json!({})).await;
    let row = world.until_status(id, "running").await;
    assert!(
        world.login(port(&row)).await.is_err(),
        "the first login is refused"
    );
    assert!(world.login(port(&row)).await.is_ok());
    assert_eq!(about(&world, id).await["refused_logins"], 1);
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_ends_with_the_file_that_ends_it() {
    let world = world().await;
    arm(&world, json!({"fault": "tmux_noise"})).await;
    let (_, ssh) = world.machine(json!({})).await;
    let said = exec(&ssh, "echo word").await.text();
    assert!(
        said.starts_with("Welcome to vast.ai.") && said.ends_with("word\n"),
        "{said}"
    );
    exec(&ssh, "touch ~/.no_auto_tmux").await;
    assert_eq!(exec(&ssh, "echo word").await.text(), "word\n");
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_clock_reaches_programs_that_take_one() {
    let world = world_with(|config| {
        config.clock_hook = Some(ClockHook {
            find: "what time".to_owned(),
            replace: "what time --offset-ms={ms}".to_owned(),
        });
    })
    .await;
    arm(&world, json!({"fault": "clock_off", "offset_s": -7200})).await;
    for said in ["what time --offset-ms=-7200000\n", "what time\n"] {
        let (_, ssh) = world.machine(json!({})).await;
        assert_eq!(exec(&ssh, "echo 'what time'").await.text(), said);
    }
    world.shutdown().await;
}

/// Who could would set this very host's clock.
#[tokio::test(flavor = "multi_thread")]
async fn no_machine_can_set_the_clock() {
    let world = world().await;
    let (_, ssh) = world.machine(json!({})).await;
    let out = exec(&ssh, "date -s \"$(date)\"").await;
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("Operation not permitted"),
        "{}",
        out.text()
    );
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbid_instance_is_stopped_and_cannot_come_back() {
    let world = world().await;
    arm(&world, json!({"fault": "outbid", "after_ms": 0})).await;
    let id = world.rent(json!({})).await;
    let row = world.until_status(id, "exited").await;
    for field in ["intended_status", "cur_state", "next_state"] {
        assert_eq!(row[field], "stopped", "{row}");
    }
    let again = json!({"state": "running"});
    let (_, answer) = world
        .api(Method::PUT, &format!("/api/v0/instances/{id}/"), Some(again))
        .await;
    assert_eq!(answer["error"], "resources_unavailable", "{answer}");
    assert_eq!(world.ledger().await["alive"], 1, "its disk is still rented");
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unplugged_host_is_silent_and_its_sessions_go_on_when_it_is_back() {
    let world = world().await;
    let (id, ssh) = world.machine(json!({})).await;
    let admin = |what: &str| format!("/admin/instances/{id}/{what}");
    world.admin(Method::POST, &admin("offline"), None).await;
    assert_eq!(world.show(id).await["actual_status"], "offline");
    let asked = tokio::spawn(async move { exec(&ssh, "echo back").await.text() });
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(!asked.is_finished(), "nothing gets through");
    world.admin(Method::POST, &admin("online"), None).await;
    let said = tokio::time::timeout(LIMIT, asked).await.unwrap().unwrap();
    assert_eq!(said, "back\n");
    assert_eq!(world.show(id).await["actual_status"], "running");
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, for a network namespace with a token bucket"]
async fn every_byte_of_a_slow_network_passes_its_bucket() {
    let world = world().await;
    arm(&world, json!({"fault": "slow_network", "mbit": 80})).await;
    let (id, ssh) = world.machine(json!({})).await;
    let details = about(&world, id).await;
    assert_eq!(details["faults"][0]["without_effect"], Value::Null, "{details}");
    assert!(
        world.show(id).await["ssh_host"]
            .as_str()
            .unwrap()
            .starts_with("198.1")
    );
    let data = vec![7; 3 << 20];
    assert!(exec_with(&ssh, "cat", data.clone()).await.stdout == data);
    // What it sees as its loopback is its own.
    let listening = exec(&ssh, "cat /proc/net/tcp | wc -l").await.text();
    assert!(listening.trim().parse::<u32>().unwrap() < 10, "{listening}");
    let stats = std::process::Command::new("tc")
        .args([
            "-s",
            "qdisc",
            "show",
            "dev",
            &format!("mach{}", details["init_pid"]),
        ])
        .output()
        .unwrap();
    let stats = String::from_utf8(stats.stdout).unwrap();
    let sent = stats
        .split("Sent ")
        .nth(1)
        .and_then(|s| s.split(' ').next())
        .unwrap();
    assert!(sent.parse::<usize>().unwrap() > data.len(), "{stats}");
    world.destroy(id).await;
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_are_kept_and_checked() {
    let world = world().await;
    let rules = json!([{"fault": "gpu_missing", "chance": 1.0, "scope": "machine"}]);
    world.admin(Method::PUT, "/admin/rules", Some(rules)).await;
    let (_, ssh) = world.machine(json!({})).await;
    assert_eq!(exec(&ssh, "nvidia-smi").await.status, Some(6));
    world.admin(Method::PUT, "/admin/rules", Some(json!([]))).await;
    let (_, ssh) = world.machine(json!({})).await;
    assert_eq!(exec(&ssh, "nvidia-smi").await.status, Some(0));
    world.shutdown().await;
}
