//! Every fault of the market by its name: how the workflow ends, what is remembered of the
//! machine, and that the market's books balance.
//!
//! One machine races at a time, so that the one with the fault has to fail before the next is
//! rented, and everything that is compared is in the database.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up its world fails")]

mod world;

use dumont_core::history::{Outcome, Stage};
use dumont_market::ClockHook;
use dumont_server::link::AGENT_SESSION;
use serde_json::{Value, json};
use std::fs;
use std::time::Duration;
use world::{World, spec};

/// Deploys `name` with one racer at a time; gives the workflow.
async fn deploy(world: &World, name: &str) -> Value {
    let mut wanted = spec(name);
    wanted["failover"] = json!({ "racers": 1 });
    let created = world.post("/workspaces", json!({ "spec": wanted })).await;
    world.done(&created["workflow_id"]).await
}

fn id(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// The machine with the fault was tried first and is remembered so; another one won.
async fn fails_first(world: &World, workflow: &Value, outcome: Outcome, stage: Stage, reason: &str) {
    let attempts = world.attempts(workflow["id"].as_str().unwrap()).await;
    assert_eq!(attempts.len(), 2, "{attempts:#?}");
    let (first, second) = (&attempts[0].attempt, &attempts[1].attempt);
    assert_eq!(
        (
            first.outcome,
            first.stage,
            first.reason.as_ref().map(|r| r.as_str())
        ),
        (outcome, stage, Some(reason)),
        "{first:#?}"
    );
    assert_eq!((second.outcome, second.stage), (Outcome::Won, Stage::Ready));
    assert_ne!(first.machine, second.machine);
    world.settles_at(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_create_is_not_the_machines_fault() {
    let world = World::instant().await;
    world.arm(json!({ "fault": "create_refused" })).await;
    let workflow = deploy(&world, "w").await;
    fails_first(&world, &workflow, Outcome::NotHost, Stage::Rent, "no_such_ask").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uncertain_create_is_found_again_and_wins() {
    let world = World::instant().await;
    world.arm(json!({ "fault": "create_uncertain" })).await;
    let workflow = deploy(&world, "w").await;
    let attempts = world.attempts(workflow["id"].as_str().unwrap()).await;
    assert_eq!(attempts.len(), 1, "{attempts:#?}");
    assert_eq!(attempts[0].attempt.outcome, Outcome::Won);
    let ledger = world.admin("GET", "/admin/ledger", None).await;
    assert_eq!(
        (&ledger["totals"]["created"], &ledger["alive"]),
        (&json!(1), &json!(1))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_stuck_in_loading_is_given_up_in_time() {
    let world = World::instant().await;
    let world = world
        .reconfigured(|w| w.race.racer_timeout = Duration::from_secs(15))
        .await;
    world.arm(json!({ "fault": "stuck_loading" })).await;
    let workflow = deploy(&world, "w").await;
    fails_first(&world, &workflow, Outcome::Failed, Stage::Boot, "boot_timeout").await;
}

/// Its status says why, while it stays `created`: nobody waits for the end of the boot's time.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_cannot_be_made_is_given_up_at_the_providers_word() {
    let world = World::instant().await;
    world.arm(json!({ "fault": "boot_fails" })).await;
    let workflow = deploy(&world, "w").await;
    fails_first(&world, &workflow, Outcome::Failed, Stage::Boot, "hardware_error").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_ssh_port_counts_against_the_machine() {
    let world = World::instant().await;
    let world = world
        .reconfigured(|w| w.timing.ssh_grace = Duration::from_secs(4))
        .await;
    world.arm(json!({ "fault": "ssh_dead" })).await;
    let workflow = deploy(&world, "w").await;
    fails_first(&world, &workflow, Outcome::Failed, Stage::Ssh, "ssh_failed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_takes_longer_than_ssh_may_is_waited_for() {
    let world = World::instant().await;
    let world = world
        .reconfigured(|w| w.timing.ssh_grace = Duration::from_secs(2))
        .await;
    world.arm(json!({ "fault": "key_lag", "for_ms": 4_000 })).await;
    let workflow = deploy(&world, "w").await;
    let attempts = world.attempts(workflow["id"].as_str().unwrap()).await;
    assert_eq!(attempts.len(), 1, "{attempts:#?}");
    assert_eq!(attempts[0].attempt.outcome, Outcome::Won);
    let workspace = world.get("/workspaces/w").await;
    let instance = id(&workspace["instance"]["instance_id"]);
    let about = world
        .admin("GET", &format!("/admin/instances/{instance}"), None)
        .await;
    assert!(about["refused_logins"].as_u64().unwrap() > 1, "{about}");
    world.settles_at(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_does_not_fit_is_named() {
    let world = World::instant().await;
    world.arm(json!({ "fault": "driver_mismatch" })).await;
    let workflow = deploy(&world, "w").await;
    fails_first(&world, &workflow, Outcome::Failed, Stage::Gpu, "driver_mismatch").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_older_than_offered_blocks_for_the_version_asked_for_only() {
    let world = World::instant().await;
    world.arm(json!({ "fault": "old_driver" })).await;
    let mut wanted = spec("w");
    wanted["failover"] = json!({ "racers": 1 });
    wanted["gpu"] = json!({ "cuda": "12.1" });
    let created = world.post("/workspaces", json!({ "spec": wanted })).await;
    let workflow = world.done(&created["workflow_id"]).await;
    fails_first(&world, &workflow, Outcome::Failed, Stage::Gpu, "driver_mismatch").await;
    let attempts = world.attempts(workflow["id"].as_str().unwrap()).await;
    assert_eq!(attempts[0].success, None, "not charged to the machine");
    let message = attempts[0].attempt.error_message.clone().unwrap();
    assert!(
        message.contains("driver 470.256.02 (CUDA 11.4) is too old for CUDA 12.1"),
        "{message}"
    );
    let machine = attempts[0].attempt.machine.machine_id.clone();
    let check = format!("/machines/history/blacklist/check/vast/{machine}");
    let free = world.get(&check).await;
    assert_eq!(
        (&free["is_blacklisted"], &free["scoped"][0]["scope"]),
        (&json!(false), &json!("cuda=12.1"))
    );
    for (asked, blocked) in [("11.8", false), ("12.1", true), ("12.8", true)] {
        let answer = world.get(&format!("{check}?cuda={asked}")).await;
        assert_eq!(answer["is_blacklisted"], blocked, "{asked}: {answer}");
    }
    // The same by name: refused for that version, rented for an older one.
    let deploy = async |name: &str, cuda: &str| {
        let mut wanted = spec(name);
        wanted["gpu"] = json!({ "cuda": cuda });
        let body = json!({ "spec": wanted, "machine": format!("vast:{machine}") });
        world.call("POST", "/workspaces", Some(body)).await
    };
    let (status, error) = deploy("x", "12.1").await;
    assert_eq!(
        (status, &error["code"]),
        (409, &json!("machine_blacklisted")),
        "{error}"
    );
    assert!(
        error["message"].as_str().unwrap().contains("for cuda=12.1"),
        "{error}"
    );
    let (status, made) = deploy("y", "11.8").await;
    assert_eq!(status, 201, "{made}");
    world.done(&made["workflow_id"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_gpu_is_named() {
    let world = World::instant().await;
    world.arm(json!({ "fault": "gpu_missing" })).await;
    let workflow = deploy(&world, "w").await;
    fails_first(&world, &workflow, Outcome::Failed, Stage::Gpu, "gpu_not_ready").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_dies_while_it_starts_is_noticed_by_the_providers_word() {
    let world = World::instant().await;
    world.arm(json!({ "fault": "dies", "after_ms": 0 })).await;
    let workflow = deploy(&world, "w").await;
    let attempts = world.attempts(workflow["id"].as_str().unwrap()).await;
    let first = &attempts[0].attempt;
    // Boot or SSH: whichever stage saw it. It is never waited for as long as SSH may take.
    assert_eq!(
        first.reason.as_ref().map(|r| r.as_str()),
        Some("host_offline"),
        "{first:#?}"
    );
    assert_eq!(first.outcome, Outcome::Failed);
    world.settles_at(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_outbid_while_it_starts_is_not_to_blame() {
    let world = World::instant().await;
    world.arm(json!({ "fault": "outbid", "after_ms": 0 })).await;
    let workflow = deploy(&world, "w").await;
    let attempts = world.attempts(workflow["id"].as_str().unwrap()).await;
    let first = &attempts[0].attempt;
    assert_eq!(
        (first.outcome, first.reason.as_ref().map(|r| r.as_str())),
        (Outcome::NotHost, Some("stopped_while_booting")),
        "{first:#?}"
    );
    world.settles_at(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tmux_noise_does_not_get_between_us_and_the_agent() {
    let world = World::instant().await;
    world.arm(json!({ "fault": "tmux_noise" })).await;
    let workflow = deploy(&world, "w").await;
    let attempts = world.attempts(workflow["id"].as_str().unwrap()).await;
    assert_eq!(attempts.len(), 1, "{attempts:#?}");
    world.settles_at(1).await;
}

/// A workspace with files and one snapshot; gives the instance it lives on.
async fn with_snapshot(world: &World, name: &str) -> String {
    deploy(world, name).await;
    let workspace = world.get(&format!("/workspaces/{name}")).await;
    let instance = id(&workspace["instance"]["instance_id"]);
    let dir = world.workspace_dir(&instance).await;
    fs::write(dir.join("weights.bin"), vec![7_u8; 3 << 20]).unwrap();
    snapshot(world, name).await;
    instance
}

async fn snapshot(world: &World, name: &str) {
    let started = world
        .post(&format!("/workspaces/{name}/snapshots"), json!({}))
        .await;
    world.done(&started["workflow_id"]).await;
}

/// The bytes are on the machine the workspace lives on now, which is not `before`.
async fn moved_with_its_files(world: &World, name: &str, before: &str) {
    let workspace = world.get(&format!("/workspaces/{name}")).await;
    let now = id(&workspace["instance"]["instance_id"]);
    assert_ne!(now, before);
    let dir = world.workspace_dir(&now).await;
    assert_eq!(fs::read(dir.join("weights.bin")).unwrap(), vec![7_u8; 3 << 20]);
    world.settles_at(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_smaller_than_promised_is_seen_before_the_restore() {
    let world = World::instant().await;
    let lost = with_snapshot(&world, "w").await;
    world.arm(json!({ "fault": "disk_small", "size_mb": 2 })).await;
    world.kill(&lost).await;
    let event = world.failed_over("w").await;
    assert_eq!(event["success"], true, "{event:#}");
    let attempts = world.attempts(event["id"].as_str().unwrap()).await;
    let about = &attempts[0].attempt;
    if world.market.isolation() != "directory" {
        assert_eq!(
            (
                about.outcome,
                about.stage,
                about.reason.as_ref().map(|r| r.as_str())
            ),
            (Outcome::Failed, Stage::Gpu, Some("disk_too_small")),
            "{attempts:#?}"
        );
    }
    moved_with_its_files(&world, "w", &lost).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbid_machine_is_left_and_given_back() {
    let world = World::instant().await;
    let lost = with_snapshot(&world, "w").await;
    world
        .admin("POST", &format!("/admin/instances/{lost}/outbid"), None)
        .await;
    let event = world.failed_over("w").await;
    assert_eq!(event["success"], true, "{event:#}");
    let trigger = event["trigger"].as_str().unwrap();
    assert!(
        ["session_reset_and_redial_refused", "provider_says_stopped"].contains(&trigger),
        "{event:#}"
    );
    moved_with_its_files(&world, "w", &lost).await;
}

/// It is silent, the provider says offline, the workspace moves; then it is back with its
/// workload running. It is fenced, and given back.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_comes_back_finds_its_work_done_elsewhere() {
    let world = World::instant().await;
    let lost = with_snapshot(&world, "w").await;
    world
        .admin("POST", &format!("/admin/instances/{lost}/offline"), None)
        .await;
    let event = world.failed_over("w").await;
    assert_eq!(event["success"], true, "{event:#}");
    assert_eq!(event["trigger"], "provider_says_offline");
    let ledger = world.admin("GET", "/admin/ledger", None).await;
    let ours = |i: &&Value| i["id"].as_u64() == lost.parse().ok();
    let entry = ledger["instances"].as_array().unwrap().iter().find(ours).unwrap();
    if entry["state"] != "destroyed" {
        world
            .admin("POST", &format!("/admin/instances/{lost}/online"), None)
            .await;
    }
    moved_with_its_files(&world, "w", &lost).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, for a network namespace with a token bucket"]
async fn a_slow_network_only_takes_longer() {
    let world = World::instant().await;
    let lost = with_snapshot(&world, "w").await;
    world.arm(json!({ "fault": "slow_network", "mbit": 40 })).await;
    world.kill(&lost).await;
    let event = world.failed_over("w").await;
    assert_eq!(event["success"], true, "{event:#}");
    let workspace = world.get("/workspaces/w").await;
    let host = workspace["instance"]["ssh_host"].as_str().unwrap().to_owned();
    assert!(host.starts_with("198.1"), "it lives on the slow one: {host}");
    moved_with_its_files(&world, "w", &lost).await;
}

/// Deploy, snapshot and failover on machines whose clocks are off, and each other's too.
#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_are_hours_and_years_off_break_nothing_and_are_told() {
    const YEARS: i64 = 10 * 365 * 86_400;
    let world = World::on_market(|config| {
        config.time_scale = 0.0;
        config.machines = 12;
        config.clock_hook = Some(ClockHook {
            find: AGENT_SESSION.to_owned(),
            replace: format!("{AGENT_SESSION} --clock-offset-ms {{ms}}"),
        });
    })
    .await;
    let clock_off = |offset: i64| json!({ "fault": "clock_off", "offset_s": offset });
    world.arm(clock_off(YEARS)).await;
    let mut lost = with_snapshot(&world, "w").await;
    let deployed = world.get("/workflows?workspace=w").await;
    told_of(&deployed.to_string(), YEARS);
    for offset in [-YEARS, 7_200] {
        world.arm(clock_off(offset)).await;
        world.kill(&lost).await;
        let event = world.failed_over_since("w", &lost).await;
        assert_eq!(event["success"], true, "{event:#}");
        let workflow = world
            .get(&format!("/workflows/{}", event["id"].as_str().unwrap()))
            .await;
        told_of(&workflow["log"].to_string(), offset);
        moved_with_its_files(&world, "w", &lost).await;
        let workspace = world.get("/workspaces/w").await;
        let skew = workspace["instance"]["clock_skew_ms"].as_i64().unwrap();
        assert!((skew - offset * 1_000).abs() < 60_000, "{skew} for {offset}");
        snapshot(&world, "w").await;
        lost = id(&workspace["instance"]["instance_id"]);
    }
}

/// The line says the offset, give or take what the message took.
fn told_of(log: &str, offset: i64) {
    let said = |by: i64| log.contains(&format!("Clock skew: {:+} s, it shows ", offset + by));
    assert!(
        (-30..=30).any(said) && log.contains("(not settable)"),
        "{offset}: {log}"
    );
}
