//! A machine whose address is corrected while a workspace lives on it.

use super::{Own, World, create, snapshot, spec, text};
use dumont_core::time::Timestamp;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// An address of a machine, until it is dropped.
struct Door {
    port: u16,
    task: JoinHandle<()>,
}

impl Door {
    async fn to(own: &Own) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let to = (own.host.clone(), own.port);
        let task = tokio::spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((mut outside, _)) = listener.accept().await {
                let to = to.clone();
                open.spawn(async move {
                    let mut inside = TcpStream::connect(to).await?;
                    copy_bidirectional(&mut outside, &mut inside).await
                });
            }
        });
        Self { port, task }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The same machine, by another way.
fn at(name: &str, port: u16) -> Value {
    json!({ "machine": format!("ssh:{name}"), "host": "127.0.0.1", "port": port })
}

/// What `dumont ssh` asks for.
async fn ssh(world: &World, name: &str) -> (u16, Value) {
    let key = dumont_server::ssh::load_or_create(&world.dir.path().join("my_key")).unwrap();
    let line = dumont_server::ssh::public_line(key.public_key()).unwrap();
    let path = format!("/workspaces/{name}/ssh");
    world
        .call("POST", &path, Some(json!({ "public_key": line })))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_with_another_address_keeps_what_lives_on_it() {
    let world = World::instant().await;
    let a = Own::new(&world, "a").await;
    let (before, after) = (Door::to(&a).await, Door::to(&a).await);
    world.post("/providers/ssh/machines", at("a", before.port)).await;
    let workspace = create(&world, spec("train", "ssh")).await;
    assert_eq!(workspace["instance"]["ssh_port"], before.port, "{workspace:#}");

    let told = world.post("/providers/ssh/machines", at("a", after.port)).await;
    assert_eq!(told["state"], "leased", "{told:#}");
    let workspace = world.get("/workspaces/train").await;
    assert_eq!(workspace["instance"]["ssh_port"], after.port, "{workspace:#}");
    let (status, target) = ssh(&world, "train").await;
    assert_eq!((status, &target["port"]), (200, &json!(after.port)), "{target:#}");

    // The old one is switched off: its session ends, and who dials it is refused.
    drop(before);
    tokio::time::sleep(Duration::from_secs(4)).await;
    snapshot(&world, "train").await;
    assert_eq!(world.get("/failovers?workspace=train").await["items"], json!([]));
    let now = world.get("/workspaces/train").await;
    assert_eq!(text(&now, "instance_id"), text(&workspace, "instance_id"));
}

/// The inventory was corrected while the machine was on its way to its new address.
#[tokio::test(flavor = "multi_thread")]
async fn the_monitor_finds_a_machine_where_the_inventory_says() {
    let mut world = World::instant().await;
    let a = Own::new(&world, "a").await;
    let before = Door::to(&a).await;
    world.post("/providers/ssh/machines", at("a", before.port)).await;
    create(&world, spec("train", "ssh")).await;
    world.stop_server().await;
    drop(before);
    let after = Door::to(&a).await;
    let told = serde_json::from_value(at("a", after.port)).unwrap();
    let store = world.store().await;
    store.put_own_machine(&told, Timestamp(1)).await.unwrap();
    store.close().await;
    world.start_server().await;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let workspace = world.get("/workspaces/train").await;
        if workspace["instance"]["ssh_port"] == after.port {
            break;
        }
        assert!(Instant::now() < deadline, "{workspace:#}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(world.get("/failovers?workspace=train").await["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_where_another_machine_answers_changes_nothing() {
    let world = World::instant().await;
    let (a, b) = (Own::new(&world, "a").await, Own::new(&world, "b").await);
    a.add(&world, "a").await;
    create(&world, spec("train", "ssh")).await;
    let told = world.post("/providers/ssh/machines", b.spec("a")).await;
    assert_eq!(told["state"], "refused", "{told:#}");
    let words = [
        "another machine answers there",
        "correct its address",
        "--host-key",
    ];
    let said = |answer: &Value| {
        let message = answer["message"].as_str().unwrap().to_owned();
        assert!(words.iter().all(|w| message.contains(w)), "{message}");
    };
    said(&told);
    let (status, refused) = ssh(&world, "train").await;
    assert_eq!(status, 502, "{refused:#}");
    said(&refused);
    let workspace = world.get("/workspaces/train").await;
    assert_eq!(
        (&workspace["instance"]["ssh_port"], &workspace["state"]),
        (&json!(a.port), &json!("running")),
        "{workspace:#}"
    );
    assert!(!b.leases().exists());

    let told = a.add(&world, "a").await;
    assert_eq!(told["state"], "leased", "{told:#}");
    assert_eq!(ssh(&world, "train").await.0, 200);
}
