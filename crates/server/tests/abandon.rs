//! Machines whose controller is gone: they stop themselves, and come back with it.
//!
//! Leases of seconds instead of a day; everything else is as a user has it. Where machines are
//! plain directories they see each other's sessions, so there is nothing to test there.

// Helpers of tests are tests, which clippy cannot see.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod world;

use dumont_core::blacklist::LossCause;
use dumont_server::providers::SshEndpoint;
use dumont_server::ssh;
use dumont_store::AttemptRow;
use serde_json::{Value, json};
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};
use world::{World, spec};

const LEASE: Duration = Duration::from_secs(3);

/// With leases of `LEASE`; none where machines cannot tell their own processes from others'.
async fn world(machines: usize, shape: impl FnOnce(&mut dumont_market::MarketConfig)) -> Option<World> {
    let world = World::on_market(|config| {
        config.time_scale = 0.0;
        config.machines = machines;
        shape(config);
    })
    .await;
    if world.market.isolation() == "directory" {
        eprintln!("machines are plain directories here: not tested");
        return None;
    }
    Some(world.reconfigured(|w| w.abandon_after = Some(LEASE)).await)
}

async fn deployed(world: &World, changes: Value) -> String {
    let mut wanted = spec("train");
    wanted
        .as_object_mut()
        .unwrap()
        .extend(changes.as_object().unwrap().clone());
    let created = world.post("/workspaces", json!({ "spec": wanted })).await;
    world.done(&created["workflow_id"]).await;
    let workspace = world.get("/workspaces/train").await;
    workspace["instance"]["instance_id"].as_str().unwrap().to_owned()
}

/// Waits until the market says so.
async fn becomes(world: &World, id: &str, state: &str) -> Value {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let row = world.admin("GET", &format!("/admin/instances/{id}"), None).await;
        if row["state"] == state {
            return row;
        }
        assert!(Instant::now() < deadline, "not {state}: {row:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The server goes, its machine stops itself, the server comes back.
async fn abandoned(world: &mut World, id: &str) {
    // No snapshot holds this.
    fs::write(
        world.workspace_dir(id).await.join("new.txt"),
        "not in any snapshot",
    )
    .unwrap();
    world.stop_server().await;
    becomes(world, id, "exited").await;
}

async fn kept(world: &World, id: &str) -> bool {
    let file = world.workspace_dir(id).await.join("new.txt");
    fs::read_to_string(file).is_ok_and(|text| text == "not in any snapshot")
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_started_again_and_nobody_is_blamed() {
    // One that is started again says `exited` for a while.
    let Some(mut world) = world(3, |c| c.time_scale = 0.02).await else {
        return;
    };
    let id = deployed(&world, json!({})).await;
    abandoned(&mut world, &id).await;
    world.start_server().await;
    let event = world.failed_over("train").await;
    let workflow = world
        .get(&format!("/workflows/{}", event["id"].as_str().unwrap()))
        .await;
    assert_eq!(event["success"], true, "{workflow:#}");
    assert_eq!(event["trigger"], "abandoned", "{event:#}");
    assert_eq!(event["new_instance_id"], id.as_str(), "{workflow:#}");
    let said = "stopped itself: no controller was there for 3 s";
    assert!(workflow["log"].to_string().contains(said), "{workflow:#}");
    assert!(kept(&world, &id).await);
    assert_eq!(world.losses(&id).await, [LossCause::Abandoned]);
    assert_eq!(world.get("/workspaces/train").await["state"], "running");
    world.settles_at(1).await;
}

/// A lease of the controller's own time: longer than it, with a restart in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_there_keeps_it_running() {
    let Some(mut world) = world(3, |_| ()).await else {
        return;
    };
    let id = deployed(&world, json!({})).await;
    let before = becomes(&world, &id, "running").await["init_pid"].clone();
    for _ in 0..3 {
        tokio::time::sleep(LEASE).await;
        world.stop_server().await;
        tokio::time::sleep(LEASE / 3).await;
        world.start_server().await;
    }
    tokio::time::sleep(LEASE).await;
    let after = becomes(&world, &id, "running").await;
    assert_eq!(after["init_pid"], before, "{after:#}");
    assert_eq!(world.get("/failovers?workspace=train").await["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_provider_refuses_it_goes_on_and_says_so() {
    let refused = |c: &mut dumont_market::MarketConfig| c.switches.set("instance_key=refused").unwrap();
    let Some(mut world) = world(3, refused).await else {
        return;
    };
    let id = deployed(&world, json!({})).await;
    let row = becomes(&world, &id, "running").await;
    world.stop_server().await;
    let log = std::path::Path::new(row["dir"].as_str().unwrap()).join("root/.dumont/abandon.log");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !fs::read_to_string(&log)
        .unwrap_or_default()
        .contains("not stopped: Vast.ai refused")
    {
        assert!(Instant::now() < deadline, "{:?}", fs::read_to_string(&log));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.start_server().await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    let after = becomes(&world, &id, "running").await;
    assert_eq!(after["init_pid"], row["init_pid"]);
    assert_eq!(world.get("/failovers?workspace=train").await["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bid_that_nobody_outbid_is_not_raised() {
    let Some(mut world) = world(1, |_| ()).await else {
        return;
    };
    let id = deployed(&world, json!({"interruptible": {}})).await;
    let price = world.get("/workspaces/train").await["instance"]["price"].clone();
    abandoned(&mut world, &id).await;
    world.start_server().await;
    let event = world.failed_over("train").await;
    assert_eq!(
        (&event["success"], &event["trigger"]),
        (&json!(true), &json!("abandoned")),
        "{event:#}"
    );
    assert_eq!(world.get("/workspaces/train").await["instance"]["price"], price);
    assert_eq!(world.losses(&id).await, [LossCause::Abandoned]);
    assert!(kept(&world, &id).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_automatic_failover_a_person_is_told_and_starts_it() {
    let Some(mut world) = world(3, |_| ()).await else {
        return;
    };
    let id = deployed(&world, json!({"failover": {"automatic": false}})).await;
    abandoned(&mut world, &id).await;
    world.start_server().await;
    let deadline = Instant::now() + Duration::from_secs(30);
    let told = loop {
        let workspace = world.get("/workspaces/train").await;
        if workspace["state"] == "failed" {
            break workspace["message"].as_str().unwrap().to_owned();
        }
        assert!(Instant::now() < deadline, "{workspace:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(
        told.contains("stopped itself: no controller was there for 3 s; its disk is kept"),
        "{told}"
    );
    let started = world.post("/workspaces/train/failover", json!({})).await;
    world.done(&started["workflow_id"]).await;
    let workspace = world.get("/workspaces/train").await;
    assert_eq!(workspace["instance"]["instance_id"], id.as_str(), "{workspace:#}");
    assert!(kept(&world, &id).await);
    assert_eq!(world.losses(&id).await, [LossCause::Abandoned]);
}

/// Somebody else rents what it had.
async fn take_gpus(world: &World, id: &str) -> u64 {
    let row = world.admin("GET", &format!("/admin/instances/{id}"), None).await;
    let url = format!("{}/api/v0/asks/{}/", world.market.url(), row["offer_id"]);
    let order = json!({"image": "x", "disk": 10, "runtype": "ssh_proxy", "label": "another's"});
    let request = reqwest::Client::new()
        .put(url)
        .bearer_auth("test-key")
        .json(&order);
    let answer: Value = request.send().await.unwrap().json().await.unwrap();
    answer["new_contract"]
        .as_u64()
        .unwrap_or_else(|| panic!("{answer:#}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_meanwhile_is_kept_for_later() {
    let forgets = |c: &mut dumont_market::MarketConfig| c.switches.set("queued_start=forgotten").unwrap();
    let Some(mut world) = world(1, forgets).await else {
        return;
    };
    let id = deployed(&world, json!({})).await;
    abandoned(&mut world, &id).await;
    let other = take_gpus(&world, &id).await;
    world.start_server().await;
    let event = world.failed_over("train").await;
    assert_eq!(event["success"], false, "{event:#}");
    let workspace = world.get("/workspaces/train").await;
    let told = workspace["message"].as_str().unwrap();
    assert!(told.ends_with("the disk of its machine is kept"), "{told}");
    assert_eq!(workspace["state"], "failed", "{workspace:#}");
    // The reaper has had its rounds, and leaves it alone.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(kept(&world, &id).await);
    let url = format!("{}/api/v0/instances/{other}/", world.market.url());
    reqwest::Client::new()
        .delete(url)
        .bearer_auth("test-key")
        .send()
        .await
        .unwrap();
    let started = world.post("/workspaces/train/failover", json!({})).await;
    world.done(&started["workflow_id"]).await;
    let workspace = world.get("/workspaces/train").await;
    assert_eq!(workspace["instance"]["instance_id"], id.as_str(), "{workspace:#}");
    assert!(kept(&world, &id).await);
    world.settles_at(1).await;
}

/// Back, but its workload is not: the files are still nowhere else.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_back_is_not_destroyed_over_its_workload() {
    let Some(mut world) = world(1, |_| ()).await else {
        return;
    };
    let once =
        "[ -e /tmp/second ] && exit 1; touch /tmp/second /tmp/ready; echo up > /tmp/ready; exec sleep 100000";
    let probe = json!({ "kind": "command", "command": "[ -s /tmp/ready ] && kill -0 $(pgrep -o sleep)", "timeout_s": 3 });
    let id = deployed(
        &world,
        json!({"start": format!("rm -f /tmp/ready; {once}"), "probe": probe}),
    )
    .await;
    abandoned(&mut world, &id).await;
    world.start_server().await;
    let event = world.failed_over("train").await;
    assert_eq!(event["success"], false, "{event:#}");
    let workspace = world.get("/workspaces/train").await;
    let told = workspace["message"].as_str().unwrap();
    assert!(
        told.ends_with("its machine is back, with its files as they were"),
        "{told}"
    );
    assert_eq!(workspace["state"], "running", "{workspace:#}");
    assert!(kept(&world, &id).await);
    world.settles_at(1).await;
}

/// From the first start on, before our agent is there: a race whose controller dies.
#[tokio::test(flavor = "multi_thread")]
async fn machines_that_were_booting_stop_and_are_not_blamed() {
    let slow = |c: &mut dumont_market::MarketConfig| c.time_scale = 0.0;
    let Some(mut world) = world(6, slow).await else {
        return;
    };
    // Up, and nobody gets in.
    for _ in 0..6 {
        world.arm(json!({ "fault": "ssh_dead" })).await;
    }
    let mut wanted = spec("train");
    wanted["failover"] = json!({ "racers": 2 });
    let created = world.post("/workspaces", json!({ "spec": wanted })).await;
    let id = created["workflow_id"].as_str().unwrap().to_owned();
    world.settles_at(2).await;
    let ledger = world.admin("GET", "/admin/ledger", None).await;
    let rented: Vec<String> = ledger["instances"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["id"].to_string())
        .collect();
    for instance in &rented {
        becomes(&world, instance, "running").await;
    }
    world.stop_server().await;
    for instance in &rented {
        becomes(&world, instance, "exited").await;
    }
    world.admin("DELETE", "/admin/faults", None).await;
    world.start_server().await;
    world.ended(&id).await;
    let first: Vec<AttemptRow> = world.attempts(&id).await.into_iter().take(2).collect();
    for row in &first {
        let reason = row.attempt.reason.clone().map(String::from);
        assert_eq!(reason.as_deref(), Some("cancelled"), "{row:#?}");
        assert_eq!(row.success, None, "{row:#?}");
    }
}

/// Whatever of the three an image has.
#[tokio::test(flavor = "multi_thread")]
async fn each_program_that_it_may_find_does_it() {
    let Some(mut world) = world(6, |_| ()).await else {
        return;
    };
    let id = deployed(&world, json!({})).await;
    let row = becomes(&world, &id, "running").await;
    let script = row["order"]["onstart"].as_str().unwrap().to_owned();
    let world_dir = world.data_dir();
    // These have none of their own.
    world = world.reconfigured(|w| w.abandon_after = None).await;
    let tools = ["curl", "wget", "python3"];
    let mut machines = Vec::new();
    for tool in tools {
        machines.push(world.deployed(tool).await["instance"].clone());
    }
    world.stop_server().await;
    let key = Arc::new(ssh::load_or_create(&world_dir.join("id_ed25519")).unwrap());
    for (tool, instance) in tools.iter().zip(&machines) {
        let at = SshEndpoint {
            host: instance["ssh_host"].as_str().unwrap().to_owned(),
            port: instance["ssh_port"].as_u64().unwrap() as u16,
        };
        let connection = ssh::connect(&at, "root", &key, None, None).await.unwrap();
        let line = format!(
            "mkdir ~/only && for p in sh sleep mkdir touch {tool}; do ln -s $(command -v $p) ~/only/; done; \
             PATH=$HOME/only setsid sh -c {}",
            ssh::quoted(&script)
        )
        .replace("setsid", "/usr/bin/setsid");
        let mut channel = connection.exec(&line).await.unwrap();
        while channel.wait().await.is_some() {}
        let id = instance["instance_id"].as_str().unwrap();
        becomes(&world, id, "exited").await;
    }
}
