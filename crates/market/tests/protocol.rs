//! The Vast protocol as the official client speaks it.

// Helpers of tests are tests, which clippy cannot see.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{world, world_with};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// Every operator, with values as JSON has them and as strings, as the official client sends them.
#[tokio::test(flavor = "multi_thread")]
async fn every_operator_takes_numbers_and_strings() {
    let world = world_with(|c| c.machines = 200).await;
    type Holds = fn(f64) -> bool;
    let cases: [(&str, Value, Value, Holds); 8] = [
        ("eq", json!(2), json!("2"), |n| n == 2.0),
        ("neq", json!(1), json!("1"), |n| n != 1.0),
        ("gt", json!(1), json!("1"), |n| n > 1.0),
        ("gte", json!(2.0), json!("2.0"), |n| n >= 2.0),
        ("lt", json!(4), json!("4"), |n| n < 4.0),
        ("lte", json!(4), json!("4"), |n| n <= 4.0),
        ("in", json!([1, 4]), json!(["1", "4"]), |n| n == 1.0 || n == 4.0),
        ("notin", json!([1, 4]), json!("[1,4]"), |n| n != 1.0 && n != 4.0),
    ];
    for (op, number, string, holds) in cases {
        let find = async |value: &Value| {
            let query = json!({"num_gpus": {op: value}, "order": [["machine_id", "asc"], ["ask_contract_id", "asc"]]});
            world.offers(query).await
        };
        let ids = |rows: &[Value]| {
            rows.iter()
                .map(|r| r["ask_contract_id"].clone())
                .collect::<Vec<_>>()
        };
        let (rows, again) = (find(&number).await, find(&string).await);
        assert!(
            !rows.is_empty() && ids(&rows) == ids(&again),
            "{op}: {number} and {string}"
        );
        assert!(
            rows.iter().all(|r| holds(r["num_gpus"].as_f64().unwrap())),
            "{op}"
        );
        let legacy = format!(
            "{}/api/v0/bundles?q=%7B%22num_gpus%22:%7B%22{op}%22:{}%7D,%22order%22:[[%22machine_id%22,%22asc%22],\
             [%22ask_contract_id%22,%22asc%22]]%7D&api_key=some-key",
            world.url(),
            string.to_string().replace('"', "%22")
        );
        let answer: Value = world.http.get(legacy).send().await.unwrap().json().await.unwrap();
        assert_eq!(
            ids(answer["offers"].as_array().unwrap()),
            ids(&rows),
            "{op} by query"
        );
    }
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
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
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
    let log = world.admin(Method::GET, "/admin/requests/log", None).await["requests"].take();
    let creates = log
        .as_array()
        .unwrap()
        .iter()
        .filter(|r| r["endpoint"] == "create");
    let refused: Vec<&Value> = creates.map(|r| &r["refused"]).collect();
    assert_eq!(refused, [false, false], "taken is not too frequent");
    world.shutdown().await;
}

/// Sums of nothing are 0 to whoever reads them.
#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_of_an_empty_market_is_plain_zeros() {
    let world = world().await;
    let ledger = world.ledger().await.to_string();
    assert!(
        ledger.contains(r#""cost":0.0"#) && !ledger.contains("-0"),
        "{ledger}"
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
