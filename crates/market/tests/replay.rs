//! What the official client really sent, sent again: the recorded requests as they are but for
//! the numbers in them, the answers compared with the recorded ones by shape.

// Helpers of tests are tests, which clippy cannot see.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeSet;

use common::{World, recorded, world_with};
use reqwest::StatusCode;
use serde_json::{Value, json};

/// The numbers of the recording's world, and ours for them.
#[derive(Default)]
struct Replay {
    numbers: Vec<(&'static str, String)>,
    sent: BTreeSet<String>,
}

impl Replay {
    fn number(&mut self, theirs: &'static str, ours: &Value) {
        self.numbers.retain(|(known, _)| *known != theirs);
        self.numbers.push((theirs, ours.to_string()));
    }

    /// Sends one; its answer has the recorded one's shape.
    async fn send(&mut self, world: &World, name: &str) -> Value {
        self.sent.insert(name.to_owned());
        let exchange = recorded(name);
        let mut text = exchange["request"].to_string();
        for (theirs, ours) in &self.numbers {
            text = text.replace(theirs, ours);
        }
        let request: Value = serde_json::from_str(&text).unwrap();
        let url = format!("{}{}", world.url(), request["path"].as_str().unwrap());
        let mut sent = world
            .http
            .request(request["method"].as_str().unwrap().parse().unwrap(), url);
        sent = sent.query(&request["query"].as_object().unwrap().iter().collect::<Vec<_>>());
        for (header, value) in request["headers"].as_object().unwrap() {
            sent = sent.header(header, value.as_str().unwrap());
        }
        if !request["body"].is_null() {
            sent = sent.body(request["body"].to_string());
        }
        let answer = sent.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{name}");
        let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
        assert_eq!(kind, "application/json", "{name}");
        let answer: Value = answer.json().await.unwrap();
        let mut real = exchange["response"]["body"].clone();
        if let Some(columns) = request["query"]["select_cols"].as_str() {
            only(&mut real["instances"][0], columns);
        }
        same_shape(name, &real, &answer);
        answer
    }
}

/// The recording's server sent whole rows whatever columns were asked for.
fn only(row: &mut Value, columns: &str) {
    let columns: Vec<String> = serde_json::from_str(columns).unwrap();
    row.as_object_mut()
        .unwrap()
        .retain(|field, _| columns.contains(field));
}

fn same_shape(path: &str, real: &Value, ours: &Value) {
    match (real, ours) {
        (Value::Null, _) | (_, Value::Null) => {}
        (Value::Object(real), Value::Object(ours)) => {
            for (key, value) in real {
                let Some(mine) = ours.get(key) else {
                    panic!("{path}.{key} is missing")
                };
                // Maps by label or port have keys of their own.
                if key != "label_counts" && key != "ports" {
                    same_shape(&format!("{path}.{key}"), value, mine);
                }
            }
        }
        (Value::Array(real), Value::Array(ours)) => {
            if let (Some(real), Some(ours)) = (real.first(), ours.first()) {
                same_shape(&format!("{path}[0]"), real, ours);
            }
        }
        (real, ours) => {
            let kind = std::mem::discriminant(real) == std::mem::discriminant(ours);
            assert!(kind, "{path}: {real} is not of the kind of {ours}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_recorded_exchange_happens_again() {
    let world = world_with(|c| c.machines = 2000).await;
    let mut replay = Replay::default();
    for name in [
        "00-first-call-01-GET",
        "00-first-call-02-GET",
        "00-first-call-03-GET",
    ] {
        replay.send(&world, name).await;
    }
    let found = replay.send(&world, "01-search-offers-01-POST").await;
    let offers = found["offers"].as_array().unwrap().clone();
    assert!(offers.len() > 4 && offers.len() <= 20, "{}", offers.len());
    for row in &offers {
        let country = row["geolocation"].as_str().unwrap();
        assert_eq!(
            (&row["gpu_name"], &row["num_gpus"]),
            (&json!("RTX 4090"), &json!(1))
        );
        assert!(row["cuda_max_good"].as_f64().unwrap() >= 12.4 && row["inet_down"].as_f64().unwrap() > 200.0);
        assert!(country.ends_with("CA") || country.ends_with("US"), "{country}");
    }
    assert!(offers.is_sorted_by_key(|r| r["dph_total"].as_f64().unwrap()));
    let bids = replay.send(&world, "02-search-offers-bid-01-POST").await;
    assert_eq!(bids["offers"][0]["dph_base"], bids["offers"][0]["min_bid"]);
    replay.number("88888", &offers[0]["machine_id"]);
    let same = replay.send(&world, "03-search-offers-nodef-01-POST").await;
    assert_eq!(same["offers"][0]["machine_id"], offers[0]["machine_id"]);
    replay.send(&world, "04-search-offers-new-01-PUT").await;
    instances(&world, &mut replay, &offers).await;

    let files = std::fs::read_dir(format!("{}/tests/recorded", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let all: BTreeSet<String> = files
        .map(|f| {
            f.unwrap()
                .path()
                .file_stem()
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let missing: Vec<_> = all.difference(&replay.sent).collect();
    assert!(missing.is_empty(), "not sent: {missing:?}");
    world.shutdown().await;
}

async fn instances(world: &World, replay: &mut Replay, offers: &[Value]) {
    let mut created = Vec::new();
    let affordable = world
        .offers(json!({"gpu_name": {"eq": "RTX 4090"}, "num_gpus": {"eq": 1}, "min_bid": {"lt": 0.12}, "limit": 2}))
        .await;
    let args = world
        .offers(json!({"gpu_name": {"eq": "RTX 3090"}, "num_gpus": {"eq": 1}, "limit": 3}))
        .await;
    // The volume lies on the machine that the last of them is rented on.
    let ask = &args[2];
    let volume = json!({"id": ask["avail_vol_ask_id"], "size": 10});
    let (_, answer) = world
        .api(reqwest::Method::PUT, "/api/v0/volumes/", Some(volume))
        .await;
    let volume: u64 = answer["volume_name"].as_str().unwrap()[2..].parse().unwrap();
    replay.number("\"volume_id\":77", &json!(0));
    replay.numbers.last_mut().unwrap().1 = format!("\"volume_id\":{volume}");
    for (name, offer) in [
        ("05-create-instance-01-PUT", &offers[0]),
        ("06-create-instance-bid-01-PUT", &affordable[0]),
        ("07-create-instance-args-01-PUT", &args[0]),
        ("08-create-instance-tmpl-01-PUT", &args[1]),
        ("09-create-instance-vol-01-PUT", ask),
    ] {
        replay.number("12345678", &offer["id"]);
        let id = replay.send(world, name).await["new_contract"].clone();
        world.until_status(id.as_u64().unwrap(), "running").await;
        created.push(id);
    }
    replay.number("7654321", &created[0]);
    replay.number("7654322", &created[4]);
    for name in [
        "10-show-instances-01-GET",
        "10-show-instances-02-GET",
        "11-show-instances-raw-01-GET",
    ] {
        replay.send(world, name).await;
    }
    replay.send(world, "12-show-instances-q-01-GET").await;
    replay.send(world, "13-show-instances-v-01-GET").await;
    let labelled = replay.send(world, "13-show-instances-v-02-GET").await;
    assert_eq!(labelled["instances"].as_array().unwrap().len(), 1);
    let show = replay.send(world, "14-show-instance-01-GET").await;
    assert_eq!(show["instances"]["image_runtype"], "ssh ssh_direc ssh_proxy");
    assert_eq!(show["instances"]["ports"]["8000/tcp"][0]["HostPort"], "8000");
    replay.send(world, "15-ssh-url-01-GET").await;
    replay.send(world, "17-attach-ssh-01-POST").await;
    replay.send(world, "18-create-ssh-key-01-POST").await;
    replay.send(world, "19-show-ssh-keys-01-GET").await;
    replay.send(world, "20-detach-ssh-01-DELETE").await;
    let first = created[0].clone();
    replay.number("7654321", &created[1]);
    replay.send(world, "21-change-bid-01-PUT").await;
    replay.send(world, "22-change-bid-noprice-01-PUT").await;
    replay.number("7654321", &first);
    let id = first.as_u64().unwrap();
    replay.send(world, "23-label-01-PUT").await;
    assert_eq!(world.show(id).await["label"], "newlabel");
    replay.send(world, "24-stop-01-PUT").await;
    assert_eq!(world.show(id).await["actual_status"], "exited");
    replay.send(world, "25-start-01-PUT").await;
    world.until_status(id, "running").await;
    replay.send(world, "27-reboot-01-PUT").await;
    world.until_status(id, "running").await;
    replay.send(world, "28-recycle-01-PUT").await;
    world.until_status(id, "running").await;
    let logs = replay.send(world, "29-logs-01-PUT").await;
    replay.sent.insert("29-logs-02-GET".to_owned());
    let url = logs["result_url"].as_str().unwrap();
    let text = world.http.get(url).send().await.unwrap();
    assert_eq!(text.status(), StatusCode::OK);
    replay.send(world, "26-stop-many-01-PUT").await;
    replay.send(world, "30-destroy-01-DELETE").await;
    replay.number("7654321", &created[1]);
    replay.send(world, "31-destroy-many-01-DELETE").await;
    assert_eq!(world.ledger().await["alive"], 2);
    replay.send(world, "32-search-volumes-01-POST").await;
    let volumes = replay.send(world, "33-show-volumes-01-GET").await;
    assert_eq!(volumes["volumes"][0]["id"], volume);
}
