//! Machines of the user's own: deploy, loss, the next one, and nothing left behind.
//!
//! The machines are the emulated market's, which are real ones behind SSH; that the test rented
//! them there is known to nobody else.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot set up its world fails"
)]

mod address;
#[path = "../world/mod.rs"]
mod world;

use dumont_server::providers::vast::Vast;
use dumont_server::providers::{InstanceStatus, OfferQuery, Provider, RentRequest};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use world::World;

/// A machine that belongs to nobody but the test.
struct Own {
    instance_id: String,
    /// Its root directory, as this host sees it.
    dir: PathBuf,
    host: String,
    port: u16,
}

impl Own {
    /// One is rented at the market, and lets dumont's key in.
    async fn new(world: &World, name: &str) -> Self {
        let key = dumont_server::ssh::load_or_create(&world.data_dir().join("id_ed25519")).unwrap();
        let line = dumont_server::ssh::public_line(key.public_key()).unwrap();
        let vast = Vast::new(world.vast()).unwrap();
        let query = OfferQuery {
            gpu_count: 1,
            disk_gb: 20,
            ..Default::default()
        };
        let offers = vast.search(&query).await.unwrap();
        let request = RentRequest {
            offer: offers.into_iter().next_back().expect("an offer"),
            label: format!("mine {name}"),
            image: "pytorch/pytorch:latest".into(),
            disk_gb: 20,
            env: BTreeMap::new(),
            ports: Vec::new(),
            onstart: String::new(),
            bid: None,
            lease: None,
            withdrawn: Default::default(),
        };
        let instance_id = vast.rent(&request).await.unwrap();
        vast.attach_key(&instance_id, &line).await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let ssh = loop {
            let seen = vast.get(&instance_id).await.unwrap().expect("it is there");
            if seen.status == InstanceStatus::Running && !seen.ssh.is_empty() {
                break seen.ssh[0].clone();
            }
            assert!(Instant::now() < deadline, "{seen:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        let about = world
            .admin("GET", &format!("/admin/instances/{instance_id}"), None)
            .await;
        Self {
            instance_id,
            dir: about["dir"].as_str().unwrap().into(),
            host: ssh.host,
            port: ssh.port,
        }
    }

    fn spec(&self, name: &str) -> Value {
        json!({ "machine": format!("ssh:{name}"), "host": self.host, "port": self.port })
    }

    async fn add(&self, world: &World, name: &str) -> Value {
        world.post("/providers/ssh/machines", self.spec(name)).await
    }

    fn leases(&self) -> PathBuf {
        self.dir.join("root/.dumont-leases")
    }

    fn workspace(&self, lease: &str) -> PathBuf {
        self.leases().join(lease).join("workspace")
    }
}

/// What lives on a lease, with words that fit any machine.
fn spec(name: &str, provider: &str) -> Value {
    json!({
        "name": name,
        "provider": provider,
        "start": "cat weights.bin > \"$HOME/served\"; echo \"$DUMONT_PATH\" >> \"$HOME/served\"; exec sleep 100000",
        "probe": { "kind": "command", "command": "test -s \"$HOME/served\"", "timeout_s": 20 },
        "failover": { "racers": 1 },
    })
}

async fn create(world: &World, spec: Value) -> Value {
    let name = spec["name"].as_str().unwrap().to_owned();
    let created = world.post("/workspaces", json!({ "spec": spec })).await;
    world.done(&created["workflow_id"]).await;
    world.get(&format!("/workspaces/{name}")).await
}

async fn snapshot(world: &World, name: &str) {
    let taken = world
        .post(&format!("/workspaces/{name}/snapshots"), json!({}))
        .await;
    world.done(&taken["workflow_id"]).await;
}

fn text<'a>(workspace: &'a Value, field: &str) -> &'a str {
    workspace["instance"][field]
        .as_str()
        .unwrap_or_else(|| panic!("{workspace:#}"))
}

/// The machine as the inventory shows it.
async fn machine(world: &World, name: &str) -> Value {
    let all = world.get("/providers/ssh/machines").await;
    let wanted = json!(format!("ssh:{name}"));
    let found = all["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|m| m["spec"]["machine"] == wanted);
    found.unwrap_or_else(|| panic!("{all:#}")).clone()
}

async fn becomes(world: &World, name: &str, state: &str) -> Value {
    let deadline = Instant::now() + Duration::from_secs(40);
    loop {
        let there = machine(world, name).await;
        if there["state"] == state {
            return there;
        }
        assert!(Instant::now() < deadline, "never {state}: {there:#}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Processes of this host that know of a lease.
fn processes_of(lease: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|e| e.file_name().into_string().ok());
    let knows = |pid: &String| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        String::from_utf8_lossy(&environ).contains(lease)
    };
    pids.filter(|pid| pid.parse::<u32>().is_ok())
        .filter(knows)
        .collect()
}

fn served(own: &Own, lease: &str) -> Vec<u8> {
    fs::read(own.leases().join(lease).join("served")).unwrap()
}

fn same(path: &Path, bytes: &[u8]) -> bool {
    fs::read(path).is_ok_and(|found| found == bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_of_ones_own_is_replaced_by_another_and_left_clean() {
    let world = World::instant().await;
    let (a, b) = (Own::new(&world, "a").await, Own::new(&world, "b").await);
    let added = a.add(&world, "a").await;
    assert_eq!(
        (&added["state"], &added["message"]),
        (&json!("free"), &Value::Null),
        "{added:#}"
    );

    let workspace = create(&world, spec("train", "ssh")).await;
    assert_eq!(text(&workspace, "machine"), "ssh:a");
    let first = text(&workspace, "instance_id").to_owned();
    let weights: Vec<u8> = (0..5_u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    fs::write(a.workspace(&first).join("weights.bin"), &weights).unwrap();
    fs::create_dir(a.workspace(&first).join("empty")).unwrap();
    snapshot(&world, "train").await;
    assert_eq!(machine(&world, "a").await["state"], "leased");

    b.add(&world, "b").await;
    world.kill(&a.instance_id).await;
    let event = world.failed_over("train").await;
    assert_eq!(event["success"], true, "{event:#}");
    assert_eq!(
        event["validation"],
        json!({"validation": "ok", "files_restored": 1, "files_expected": 1})
    );
    let workspace = world.get("/workspaces/train").await;
    assert_eq!(text(&workspace, "machine"), "ssh:b");
    let second = text(&workspace, "instance_id").to_owned();
    assert!(same(&b.workspace(&second).join("weights.bin"), &weights));
    assert!(b.workspace(&second).join("empty").is_dir());
    // The workload ran in the workspace's directory and was told where that is.
    let said = served(&b, &second);
    assert!(said.starts_with(&weights), "{} bytes", said.len());
    let path = format!("/root/.dumont-leases/{second}/workspace\n");
    assert_eq!(String::from_utf8_lossy(&said[weights.len()..]), path);

    // The dead one is remembered, and offered to nobody.
    let dead = machine(&world, "a").await;
    assert_eq!(dead["state"], "unreachable", "{dead:#}");
    assert_eq!(
        dead["leases"],
        json!([{ "instance_id": first, "workspace": "train", "cleaning": true }])
    );
    let (status, refused) = world.call("DELETE", "/providers/ssh/machines/a", None).await;
    assert_eq!(
        (status, &refused["code"]),
        (409, &json!("machine_leased")),
        "{refused}"
    );
    let (status, _) = world
        .call("DELETE", "/providers/ssh/machines/a?force=true", None)
        .await;
    assert_eq!(status, 200);

    // Its end leaves nothing on the living one.
    assert!(!processes_of(&second).is_empty());
    let (_, started) = world.call("DELETE", "/workspaces/train", None).await;
    world.done(&started["workflow_id"]).await;
    becomes(&world, "b", "free").await;
    assert!(!b.leases().exists(), "{:?}", b.leases());
    assert_eq!(processes_of(&second), Vec::<String>::new());
    // And no machine of the user's was given back to anybody.
    assert_eq!(world.alive().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_goes_from_ones_own_to_the_market_and_back() {
    let world = World::instant().await;
    let a = Own::new(&world, "a").await;
    a.add(&world, "a").await;
    let workspace = create(&world, spec("roam", "any")).await;
    assert_eq!(
        text(&workspace, "machine"),
        "ssh:a",
        "nothing is sooner there, or cheaper"
    );
    let first = text(&workspace, "instance_id").to_owned();
    let weights = vec![7_u8; 3 << 20];
    fs::write(a.workspace(&first).join("weights.bin"), &weights).unwrap();
    snapshot(&world, "roam").await;

    world.kill(&a.instance_id).await;
    let event = world.failed_over_since("roam", &first).await;
    assert_eq!(
        (&event["success"], &event["validation"]["validation"]),
        (&json!(true), &json!("ok"))
    );
    let workspace = world.get("/workspaces/roam").await;
    assert!(text(&workspace, "machine").starts_with("vast:"), "{workspace:#}");
    let rented = text(&workspace, "instance_id").to_owned();
    let dir = world.workspace_dir(&rented).await;
    assert!(same(&dir.join("weights.bin"), &weights));
    fs::write(dir.join("more.txt"), "written at the market").unwrap();
    snapshot(&world, "roam").await;

    let b = Own::new(&world, "b").await;
    b.add(&world, "b").await;
    // Whoever is first in the ranking, the market is sold out now.
    let sold_out = json!([{ "fault": "create_refused", "chance": 1.0 }]);
    world.admin("PUT", "/admin/rules", Some(sold_out)).await;
    world.kill(&rented).await;
    let event = world.failed_over_since("roam", &rented).await;
    assert_eq!(
        (&event["success"], &event["validation"]["validation"]),
        (&json!(true), &json!("ok"))
    );
    let workspace = world.get("/workspaces/roam").await;
    assert_eq!(text(&workspace, "machine"), "ssh:b");
    let third = text(&workspace, "instance_id").to_owned();
    assert!(same(&b.workspace(&third).join("weights.bin"), &weights));
    assert!(same(
        &b.workspace(&third).join("more.txt"),
        b"written at the market"
    ));
    assert!(served(&b, &third).starts_with(&weights));
    // Of what the market rents out only the test's own two are left; the history knows all three.
    world.settles_at(2).await;
    let machines = world.get("/machines").await.to_string();
    assert!(machines.contains("ssh:a") && machines.contains("ssh:b") && machines.contains("vast:"));
}

/// Two at once on one machine: each has its own directory, and one that is full is full.
#[tokio::test(flavor = "multi_thread")]
async fn places_are_counted_and_neighbours_live_apart() {
    let world = World::instant().await;
    let a = Own::new(&world, "a").await;
    let mut two = a.spec("a");
    two["workspaces"] = json!(2);
    world.post("/providers/ssh/machines", two).await;
    let (one, other) = (spec("one", "ssh"), spec("other", "ssh"));
    let (one, other) = tokio::join!(create(&world, one), create(&world, other));
    let (one, other) = (
        text(&one, "instance_id").to_owned(),
        text(&other, "instance_id").to_owned(),
    );
    fs::write(a.workspace(&one).join("mine"), "1").unwrap();
    assert!(!a.workspace(&other).join("mine").exists());

    let created = world
        .post("/workspaces", json!({ "spec": spec("third", "ssh") }))
        .await;
    let ended = world.ended(created["workflow_id"].as_str().unwrap()).await;
    assert_eq!(ended["error"]["code"], "no_offers", "{ended:#}");

    // One goes; the neighbour does not notice.
    let (_, started) = world.call("DELETE", "/workspaces/one", None).await;
    world.done(&started["workflow_id"]).await;
    becomes(&world, "a", "free").await;
    assert!(!a.leases().join(&one).exists() && a.workspace(&other).is_dir());
    assert_eq!(processes_of(&one), Vec::<String>::new());
    assert!(!processes_of(&other).is_empty());
    assert_eq!(world.get("/workspaces/other").await["state"], "running");
}

/// What cannot be given back is tried again at the reaper's pace, not as fast as it is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_stays_dead_is_asked_now_and_then() {
    let often = |world: &mut World| world.timing.reap = Duration::from_millis(500);
    let world = World::instant().await.reconfigured(often).await;
    let a = Own::new(&world, "a").await;
    a.add(&world, "a").await;
    create(&world, spec("train", "ssh")).await;
    world.kill(&a.instance_id).await;
    // Stands where it was and counts who comes.
    let door = tokio::net::TcpListener::bind((a.host.as_str(), a.port))
        .await
        .unwrap();
    let (_, started) = world.call("DELETE", "/workspaces/train", None).await;
    world.done(&started["workflow_id"]).await;
    let mut asked = 0;
    let watched = Instant::now() + Duration::from_secs(3);
    while let Ok(Ok(_)) = tokio::time::timeout_at(watched.into(), door.accept()).await {
        asked += 1;
    }
    assert!((1..=30).contains(&asked), "asked {asked} times in 3 s");
}
