//! The Vast protocol as the official client speaks it.

// Helpers of tests are tests, which clippy cannot see.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{recorded, world, world_with};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

fn same_kind(path: &str, real: &Value, ours: &Value) {
    match (real, ours) {
        (Value::Null, _) | (_, Value::Null) => {}
        (Value::Object(real), Value::Object(ours)) => {
            for (key, value) in real {
                let Some(mine) = ours.get(key) else {
                    panic!("{path}.{key} is missing")
                };
                // Maps by label or port have keys of their own.
                if key != "label_counts" && key != "ports" {
                    same_kind(&format!("{path}.{key}"), value, mine);
                }
            }
        }
        (Value::Array(real), Value::Array(ours)) => {
            if let (Some(real), Some(ours)) = (real.first(), ours.first()) {
                same_kind(&format!("{path}[0]"), real, ours);
            }
        }
        (real, ours) => {
            let kind = std::mem::discriminant(real) == std::mem::discriminant(ours);
            assert!(kind, "{path}: {real} is not of the kind of {ours}");
        }
    }
}

/// Sends a recorded request with its ids replaced; checks the answer's shape against the recorded one.
async fn replay(
    world: &common::World,
    name: &str,
    path: Option<String>,
    change: impl FnOnce(&mut Value),
) -> Value {
    let exchange = recorded(name);
    let request = &exchange["request"];
    let method: Method = request["method"].as_str().unwrap().parse().unwrap();
    let mut path = path.unwrap_or_else(|| request["path"].as_str().unwrap().to_owned());
    let query: Vec<String> = request["query"]
        .as_object()
        .unwrap()
        .iter()
        // The recording's server sent whole rows whatever columns were asked for.
        .filter(|(k, _)| *k != "select_cols")
        .map(|(k, v)| {
            let encode = |b: u8| {
                if b.is_ascii_alphanumeric() {
                    (b as char).to_string()
                } else {
                    format!("%{b:02X}")
                }
            };
            format!(
                "{k}={}",
                v.as_str().unwrap().bytes().map(encode).collect::<String>()
            )
        })
        .collect();
    if !query.is_empty() {
        path = format!("{path}?{}", query.join("&"));
    }
    let mut body = request["body"].clone();
    change(&mut body);
    let (status, answer) = world.api(method, &path, (!body.is_null()).then_some(body)).await;
    assert_eq!(
        status.as_u16(),
        exchange["response"]["status"],
        "{name}: {answer}"
    );
    same_kind(name, &exchange["response"]["body"], &answer);
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_clients_requests_are_understood() {
    let world = world_with(|c| c.machines = 2000).await;
    let found = replay(&world, "01-search-offers-01-POST", None, |_| {}).await;
    let offers = found["offers"].as_array().unwrap();
    assert!(!offers.is_empty() && offers.len() <= 20);
    for row in offers {
        assert_eq!(
            (&row["gpu_name"], &row["num_gpus"]),
            (&json!("RTX 4090"), &json!(1))
        );
        assert!(row["cuda_max_good"].as_f64().unwrap() >= 12.4 && row["inet_down"].as_f64().unwrap() > 200.0);
        assert!(
            row["geolocation"].as_str().unwrap().ends_with("CA")
                || row["geolocation"].as_str().unwrap().ends_with("US")
        );
    }
    assert!(offers.is_sorted_by_key(|r| r["dph_total"].as_f64().unwrap()));
    replay(&world, "04-search-offers-new-01-PUT", None, |_| {}).await;

    let ask = format!("/api/v0/asks/{}/", offers[0]["id"]);
    let id = replay(&world, "05-create-instance-01-PUT", Some(ask), |_| {}).await["new_contract"].clone();
    let one = id.as_u64().unwrap();
    world.until_status(one, "running").await;
    let bid = format!("/api/v0/asks/{}/", offers[1]["id"]);
    let two =
        replay(&world, "06-create-instance-bid-01-PUT", Some(bid), |_| {}).await["new_contract"].clone();
    world.until_status(two.as_u64().unwrap(), "running").await;

    let list = replay(&world, "10-show-instances-02-GET", None, |_| {}).await;
    assert_eq!(list["label_counts"], json!({"unit-a": 1, "": 1}));
    let show = replay(
        &world,
        "14-show-instance-01-GET",
        Some(format!("/api/v0/instances/{one}/")),
        |_| {},
    )
    .await;
    assert_eq!(show["instances"]["image_runtype"], "ssh ssh_direc ssh_proxy");
    assert_eq!(show["instances"]["ports"]["8000/tcp"][0]["HostPort"], "8000");
    replay(
        &world,
        "17-attach-ssh-01-POST",
        Some(format!("/api/v0/instances/{one}/ssh/")),
        |_| {},
    )
    .await;
    replay(
        &world,
        "20-detach-ssh-01-DELETE",
        Some(format!("/api/v0/instances/{one}/ssh/2/")),
        |_| {},
    )
    .await;
    replay(&world, "18-create-ssh-key-01-POST", None, |_| {}).await;
    replay(&world, "19-show-ssh-keys-01-GET", None, |_| {}).await;
    replay(
        &world,
        "23-label-01-PUT",
        Some(format!("/api/v0/instances/{one}/")),
        |_| {},
    )
    .await;
    assert_eq!(world.show(one).await["label"], "newlabel");
    replay(&world, "26-stop-many-01-PUT", None, |b| b["ids"] = json!([one])).await;
    assert_eq!(world.show(one).await["actual_status"], "exited");
    replay(
        &world,
        "30-destroy-01-DELETE",
        Some(format!("/api/v0/instances/{one}/")),
        |_| {},
    )
    .await;
    replay(&world, "31-destroy-many-01-DELETE", None, |b| {
        b["instance_ids"] = json!([two, 99])
    })
    .await;
    assert_eq!(world.ledger().await["alive"], 0);
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_the_shapes_that_clients_match_on() {
    let world = world_with(|c| c.api_keys = vec!["some-key".to_owned()]).await;
    let api = |method: Method, path: &'static str, body: Option<Value>| world.api(method, path, body);
    let (status, body) = api(Method::GET, "/api/v0/instances/", None).await;
    assert_eq!(
        (status, &body["error"]),
        (StatusCode::GONE, &json!("deprecated_endpoint"))
    );
    let (status, body) = api(Method::PUT, "/api/v0/asks/5/", Some(json!({"image": "x"}))).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(body["msg"].as_str().unwrap().contains("no_such_ask"), "{body}");
    for bad in [
        json!({}),
        json!({"image": "x", "disk": 1}),
        json!({"image": "x", "price": 1e6}),
        json!({"image": "x", "label": "l".repeat(300)}),
    ] {
        assert_eq!(
            api(Method::PUT, "/api/v0/asks/5/", Some(bad)).await.0,
            StatusCode::BAD_REQUEST
        );
    }
    let (status, body) = api(Method::DELETE, "/api/v0/instances/5/", Some(json!({}))).await;
    assert_eq!(
        (status, &body["error"]),
        (StatusCode::NOT_FOUND, &json!("no_such_instance"))
    );
    assert_eq!(
        api(Method::GET, "/api/v0/instances/5", None).await,
        (StatusCode::OK, json!({"instances": null}))
    );
    assert_eq!(
        api(Method::GET, "/api/v0/nonsense", None).await.0,
        StatusCode::NOT_FOUND
    );
    let (status, body) = api(
        Method::GET,
        "/api/v1/instances/?select_filters=%7B%22num_gpus%22%3A1%7D",
        None,
    )
    .await;
    assert_eq!(
        (status, &body["error"]),
        (StatusCode::BAD_REQUEST, &json!("invalid_request"))
    );

    for (url, key) in [
        ("/api/v1/instances/", "wrong"),
        ("/api/v1/instances/", ""),
        ("/api/v0/users/current?api_key=no", ""),
    ] {
        let response = world
            .http
            .get(format!("{}{url}", world.url()))
            .header("authorization", format!("Bearer {key}"));
        let response = response.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        let body: Value = response.json().await.unwrap();
        assert_eq!(
            (&body["error"], &body["msg"]),
            (&json!("auth_error"), &json!("Invalid user key"))
        );
    }
    let legacy = world
        .http
        .get(format!("{}/api/v0/users/current?api_key=some-key", world.url()));
    assert_eq!(legacy.send().await.unwrap().status(), StatusCode::OK);
    let open = world
        .http
        .get(format!("{}/api/v0/gpu_names/unique", world.url()))
        .send()
        .await
        .unwrap();
    assert_eq!(open.status(), StatusCode::OK);
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rented_offer_is_gone_for_the_next_one() {
    let world = world().await;
    let offer = world.offers(json!({"limit": 1})).await[0]["id"].clone();
    let path = format!("/api/v0/asks/{offer}/");
    let order = || Some(json!({"image": "x", "label": "a"}));
    let (first, second) = tokio::join!(
        world.api(Method::PUT, &path, order()),
        world.api(Method::PUT, &path, order())
    );
    let (won, lost) = if first.0 == StatusCode::OK {
        (first, second)
    } else {
        (second, first)
    };
    assert_eq!((won.0, lost.0), (StatusCode::OK, StatusCode::GONE));
    assert_eq!(lost.1["error"], "no_such_ask");
    assert!(world.offers(json!({})).await.iter().all(|o| o["id"] != offer));
    assert_eq!(
        world.destroy(won.1["new_contract"].as_u64().unwrap()).await,
        StatusCode::OK
    );
    assert!(
        world
            .offers(json!({"order": [["score", "desc"]]}))
            .await
            .iter()
            .any(|o| o["id"] == offer)
    );
    assert!(world.offers(json!({"limit": 500})).await.len() <= 64);
    let counts = world.admin(Method::GET, "/admin/requests", None).await["counts"].take();
    assert_eq!(
        (
            &counts["PUT /api/v0/asks/{id}/"],
            &counts["POST /api/v0/bundles/"]
        ),
        (&json!(2), &json!(4))
    );
    world.shutdown().await;
}

#[tokio::test]
async fn the_admin_port_is_for_loopback_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = dumont_market::MarketConfig::new(dir.path());
    config.admin_listen = "0.0.0.0:0".parse().unwrap();
    assert!(matches!(
        dumont_market::start(config).await,
        Err(dumont_market::MarketError::AdminNotLoopback(_))
    ));
}
