//! Limits, and the answers that nobody knows for sure, each in every position.

// Helpers of tests are tests, which clippy cannot see.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{World, world_with};
use dumont_market::{Limits, MarketConfig};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

async fn switched(switch: &str) -> World {
    world_with(|c| {
        c.isolation = dumont_market::Isolation::Directory;
        c.switches.set(switch).unwrap();
    })
    .await
}

async fn get(world: &World, path: &str) -> reqwest::Response {
    let request = world.http.get(format!("{}{path}", world.url()));
    request.bearer_auth("some-key").send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn too_frequent_is_refused_in_every_shape() {
    let world = world_with(|c| c.limits = Some(Limits::DOCUMENTED)).await;
    assert_eq!(get(&world, "/api/v1/instances/").await.status(), StatusCode::OK);
    let mut bodies = Vec::new();
    for _ in 0..4 {
        let refused = get(&world, "/api/v1/instances").await;
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(refused.headers().get("retry-after").is_none());
        bodies.push(refused.text().await.unwrap());
    }
    assert_eq!(bodies[0], "API requests too frequent");
    assert!(bodies[1].ends_with("endpoint threshold=1.0"), "{}", bodies[1]);
    let parsed = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert!(parsed(&bodies[2])["detail"].is_string());
    assert_eq!(parsed(&bodies[3])["error"], "rate_limit_exceeded");
    // Another key, another endpoint: limits of their own.
    let other = world
        .http
        .get(format!("{}/api/v1/instances/?api_key=other", world.url()));
    assert_eq!(other.send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(get(&world, "/api/v0/instances/5/").await.status(), StatusCode::OK);

    for n in 0..11 {
        let (status, _) = search(&world).await;
        assert_eq!(status == StatusCode::OK, n < 10, "search {n}: {status}");
    }
    world.shutdown().await;
}

async fn search(world: &World) -> (StatusCode, Option<String>) {
    let url = format!("{}/api/v0/bundles/", world.url());
    let answer = world
        .http
        .post(url)
        .bearer_auth("k")
        .json(&json!({"limit": 1}))
        .send()
        .await
        .unwrap();
    let reset = answer
        .headers()
        .get("x-ratelimit-reset")
        .map(|v| v.to_str().unwrap().to_owned());
    (answer.status(), reset)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_days_searches_are_used_up() {
    let quota = Limits {
        factor: 0.0,
        searches_per_day: Some(3),
    };
    let world = world_with(|c| c.limits = Some(quota)).await;
    for _ in 0..3 {
        assert_eq!(search(&world).await, (StatusCode::OK, None));
    }
    let (status, reset) = search(&world).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(
        reset.unwrap().parse::<u64>().unwrap() % 86_400,
        0,
        "midnight, UTC"
    );
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_creates_is_punished() {
    let world = world_with(|c| {
        c.limits = Some(Limits::DOCUMENTED);
        c.switches.set("rate_limit_headers=retry-after").unwrap();
    })
    .await;
    let create = async || {
        let request = world
            .http
            .put(format!("{}/api/v0/asks/5/", world.url()))
            .bearer_auth("k");
        request.json(&json!({"image": "x"})).send().await.unwrap()
    };
    assert_eq!(create().await.status(), StatusCode::NOT_FOUND);
    let refused = create().await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let wait: u64 = refused.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((12..=13).contains(&wait), "{wait}");
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_and_a_missing_instance() {
    for (value, list, search) in [("404", 404, 404), ("401", 401, 401), ("documented", 401, 404)] {
        let world = world_with(|c| {
            c.api_keys = vec!["some-key".to_owned()];
            c.switches.set(&format!("auth_failure={value}")).unwrap();
        })
        .await;
        let wrong = async |path: &str| {
            let request = world
                .http
                .get(format!("{}{path}", world.url()))
                .bearer_auth("wrong");
            request.send().await.unwrap().status().as_u16()
        };
        assert_eq!(wrong("/api/v1/instances/").await, list, "{value}");
        assert_eq!(wrong("/api/v0/bundles/").await, search, "{value}");
        world.shutdown().await;
    }
    for value in ["no_such_instance", "not_found"] {
        let world = switched(&format!("no_such_instance={value}")).await;
        let (status, body) = world
            .api(Method::DELETE, "/api/v0/instances/5/", Some(json!({})))
            .await;
        assert_eq!((status, &body["error"]), (StatusCode::NOT_FOUND, &json!(value)));
        world.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn creates_that_are_refused() {
    for (value, status, error) in [
        ("code", 400, json!("insufficient_credit")),
        ("message", 400, Value::Null),
        ("402", 402, json!("insufficient_credit")),
    ] {
        let world = switched(&format!("insufficient_credit={value}")).await;
        world
            .admin(Method::PUT, "/admin/credit", Some(json!({"credit": 0})))
            .await;
        let (answered, body) = create(&world, json!({})).await;
        assert_eq!((answered.as_u16(), &body["error"]), (status, &error), "{body}");
        assert!(body.to_string().contains("credit"));
        world.shutdown().await;
    }
    for (value, status) in [("410", 410), ("404", 404), ("400", 400)] {
        let world = switched(&format!("stale_offer={value}")).await;
        world
            .admin(
                Method::POST,
                "/admin/faults",
                Some(json!({"fault": "create_refused"})),
            )
            .await;
        let (answered, body) = create(&world, json!({})).await;
        assert_eq!(answered.as_u16(), status);
        assert!(body["msg"].as_str().unwrap().contains("no_such_ask"), "{body}");
        world.shutdown().await;
    }
    for (value, status) in [("stopped", 200), ("refused", 400)] {
        let world = switched(&format!("low_bid={value}")).await;
        let (answered, body) = create(&world, json!({"price": 0.001})).await;
        assert_eq!(
            (answered.as_u16(), &body["success"]),
            (status, &json!(false)),
            "{body}"
        );
        assert_eq!(body["new_contract"].is_u64(), value == "stopped");
        assert_eq!(world.ledger().await["alive"], u64::from(value == "stopped"));
        world.shutdown().await;
    }
    for (value, status) in [("16384", 200), ("4096", 400)] {
        let world = switched(&format!("onstart_limit={value}")).await;
        let (answered, body) = create(&world, json!({"onstart": "#".repeat(5000)})).await;
        assert_eq!(answered.as_u16(), status, "{body}");
        world.shutdown().await;
    }
    for (value, status) in [("ignored", 200), ("refused", 400)] {
        let world = switched(&format!("env_string={value}")).await;
        let (answered, body) = create(&world, json!({"env": "-e A=b"})).await;
        assert_eq!(answered.as_u16(), status, "{body}");
        world.shutdown().await;
    }
}

async fn create(world: &World, order: Value) -> (StatusCode, Value) {
    let offer = world.offers(json!({"limit": 1})).await[0]["id"].clone();
    let mut body = json!({"image": "x", "cancel_unavail": false});
    body.as_object_mut()
        .unwrap()
        .extend(order.as_object().unwrap().clone());
    world
        .api(Method::PUT, &format!("/api/v0/asks/{offer}/"), Some(body))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_states() {
    for (switch, field, value) in [
        ("padding=newline", "public_ipaddr", json!("127.0.0.1\n")),
        ("padding=none", "public_ipaddr", json!("127.0.0.1")),
        ("single_read=whole", "volume_info", json!([])),
        ("single_read=no-volumes", "volume_info", Value::Null),
    ] {
        let world = switched(switch).await;
        let id = world.rent(json!({})).await;
        assert_eq!(world.until_status(id, "running").await[field], value, "{switch}");
        world.shutdown().await;
    }
    for (value, direct) in [("both", true), ("documented", false)] {
        let world = switched(&format!("direct_word={value}")).await;
        let id = world.rent(json!({"runtype": "ssh_direc ssh_proxy"})).await;
        let row = world.until_status(id, "running").await;
        assert_eq!(row["ports"].get("22/tcp").is_some(), direct, "{value}");
        world.shutdown().await;
    }
    for word in ["exited", "stopped"] {
        let world = switched(&format!("stopped_status={word}")).await;
        let id = world.rent(json!({})).await;
        world.until_status(id, "running").await;
        let path = format!("/api/v0/instances/{id}/");
        world
            .api(Method::PUT, &path, Some(json!({"state": "stopped"})))
            .await;
        assert_eq!(world.show(id).await["actual_status"], word);
        world.shutdown().await;
    }
    for word in ["offline", "unknown"] {
        let world = switched(&format!("host_loss={word}")).await;
        let id = world.rent(json!({})).await;
        world.until_status(id, "running").await;
        world
            .admin(Method::POST, &format!("/admin/instances/{id}/kill"), None)
            .await;
        assert_eq!(world.show(id).await["actual_status"], word);
        world.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transport() {
    let world = switched("content_type=charset").await;
    let kind = |answer: &reqwest::Response| answer.headers()["content-type"].to_str().unwrap().to_owned();
    let list = get(&world, "/api/v1/instances/").await;
    assert_eq!(kind(&list), "application/json; charset=utf-8");
    assert_eq!(kind(&get(&world, "/api/v0/bundles/").await), "application/json");
    let redirected = world_with(|c: &mut MarketConfig| c.switches.set("bare_path=redirect").unwrap()).await;
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap();
    let url = format!("{}/api/v0/instances?owner=me", redirected.url());
    let moved = client.get(url).bearer_auth("k").send().await.unwrap();
    assert_eq!(moved.status(), StatusCode::MOVED_PERMANENTLY);
    assert_eq!(moved.headers()["location"], "/api/v0/instances/?owner=me");
    assert_eq!(
        moved.json::<Value>().await.unwrap()["success"],
        true,
        "data that is none"
    );
    redirected.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn account_keys_reach_running_instances_or_not() {
    for (value, reaches) in [("new", false), ("all", true)] {
        let world = switched(&format!("account_keys={value}")).await;
        let id = world.rent(json!({})).await;
        let row = world.until_status(id, "running").await;
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        let late =
            russh::keys::PrivateKey::random(&mut rand::rng(), russh::keys::Algorithm::Ed25519).unwrap();
        let text = late.public_key().to_openssh().unwrap();
        let add = json!({"ssh_key": text});
        world.api(Method::POST, "/api/v0/ssh/", Some(add.clone())).await;
        let login = async || {
            world
                .login_with(common::port(&row), &late, Default::default())
                .await
                .is_ok()
        };
        assert_eq!(login().await, reaches, "{value}");
        world
            .api(Method::POST, &format!("/api/v0/instances/{id}/ssh/"), Some(add))
            .await;
        assert!(login().await, "an attached key gets in at once");
        world.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_start_happens_or_is_forgotten() {
    for (value, happens) in [("persists", true), ("forgotten", false)] {
        let world = switched(&format!("queued_start={value}")).await;
        let first = world.rent(json!({})).await;
        world.until_status(first, "running").await;
        let start = |state: &str| {
            let body = json!({"state": state});
            let path = format!("/api/v0/instances/{first}/");
            let world = &world;
            async move { world.api(Method::PUT, &path, Some(body)).await }
        };
        start("stopped").await;
        let second = world.rent(json!({})).await;
        let (status, body) = start("running").await;
        assert_eq!(
            (status, &body["error"]),
            (StatusCode::OK, &json!("resources_unavailable"))
        );
        let wanted = if happens { "running" } else { "stopped" };
        assert_eq!(world.show(first).await["intended_status"], wanted);
        world.destroy(second).await;
        if happens {
            world.until_status(first, "running").await;
        } else {
            tokio::time::sleep(std::time::Duration::from_millis(600)).await;
            assert_eq!(world.show(first).await["actual_status"], "exited");
        }
        world.shutdown().await;
    }
}

/// The only way in which a rented machine can act on the marketplace: on itself.
#[tokio::test(flavor = "multi_thread")]
async fn the_key_inside_an_instance_stops_it_or_does_not() {
    for (value, acts) in [("acts", true), ("refused", false)] {
        let world = switched(&format!("instance_key={value}")).await;
        let (id, key) = with_key(&world).await;
        world.until_status(id, "running").await;
        let other = world.rent(json!({})).await;
        let ask = async |method: Method, path: String, body: Value| {
            let request = world.http.request(method, format!("{}{path}", world.url()));
            let answer = request.bearer_auth(&key).json(&body).send().await.unwrap();
            let status = answer.status();
            (status, answer.json::<Value>().await.unwrap()["msg"].clone())
        };
        let denied = (
            StatusCode::NOT_FOUND,
            json!("Unable to authorize instance API key"),
        );
        let own = format!("/api/v0/instances/{id}/");
        for (method, path, body) in [
            (Method::GET, "/api/v1/instances/".to_owned(), json!({})),
            (Method::GET, "/api/v0/users/current/".to_owned(), json!({})),
            (
                Method::POST,
                format!("{own}ssh/"),
                json!({"ssh_key": "ssh-ed25519 AAAA"}),
            ),
            (
                Method::PUT,
                format!("/api/v0/instances/bid_price/{id}/"),
                json!({"price": 9}),
            ),
            (
                Method::PUT,
                format!("/api/v0/instances/{other}/"),
                json!({"state": "stopped"}),
            ),
            (Method::DELETE, format!("/api/v0/instances/{other}/"), json!({})),
            (Method::PUT, own.clone(), json!({"label": "mine"})),
            (
                Method::PUT,
                own.clone(),
                json!({"state": "stopped", "label": "mine"}),
            ),
        ] {
            let said = ask(method.clone(), path.clone(), body).await;
            assert_eq!(said, denied, "{value}: {method} {path}");
        }
        let stopped = ask(Method::PUT, own.clone(), json!({"state": "stopped"})).await;
        if acts {
            assert_eq!(stopped, (StatusCode::OK, Value::Null));
            let row = world.show(id).await;
            assert_eq!(
                (&row["actual_status"], &row["intended_status"]),
                (&json!("exited"), &json!("stopped"))
            );
            assert_eq!(ask(Method::GET, own, json!({})).await.0, StatusCode::OK);
        } else {
            assert_eq!(stopped, denied);
            assert_eq!(world.show(id).await["actual_status"], "running");
        }
        assert_eq!(world.show(other).await["intended_status"], "running");
        world.shutdown().await;
    }
}

/// Rents one and keeps the key that its container gets.
async fn with_key(world: &World) -> (u64, String) {
    let offer = world.offers(json!({"limit": 1})).await[0]["id"].clone();
    let path = format!("/api/v0/asks/{offer}/");
    let order = json!({"image": "x", "disk": 10, "runtype": "ssh_proxy"});
    let (status, body) = world.api(Method::PUT, &path, Some(order)).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let key = body["instance_api_key"].as_str().unwrap().to_owned();
    (body["new_contract"].as_u64().unwrap(), key)
}
