use crate::fake::{Fake, Reply, class};
use dumont_server::providers::{ErrorClass, Provider};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAItest me@x";
const PATH: &str = "/api/v0/ssh/";

async fn with_keys(status: u16, keys: Value) -> Fake {
    Fake::start(move |s| match s.method.as_str() {
        "GET" => Reply::Json(status, keys.clone()),
        _ => Reply::Json(200, json!({"success": true, "key": {"id": 1}})),
    })
    .await
}

#[tokio::test]
async fn a_key_is_registered_once() {
    let other = json!([{"id": 1, "key": "ssh-ed25519 BBBB x", "deleted_at": null}]);
    for (status, keys) in [
        (404, json!({"error": "not_found"})),
        (200, json!([])),
        (200, other),
    ] {
        let fake = with_keys(status, keys).await;
        fake.client().register_key(KEY).await.unwrap();
        let last = fake.seen().pop().unwrap();
        assert!(last.is("POST", PATH));
        assert_eq!(last.body, json!({"ssh_key": KEY}));
    }
    let held = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAItest other comment\n";
    for field in ["key", "public_key"] {
        let fake = with_keys(200, json!([{"id": 1, field: held, "deleted_at": null}])).await;
        fake.client().register_key(&format!("{KEY}\n")).await.unwrap();
        assert_eq!(
            fake.count("POST", PATH),
            0,
            "the comment does not make it another key"
        );
    }
    let fake = with_keys(200, json!([{"key": held, "deleted_at": "2026-01-01T00:00:00Z"}])).await;
    fake.client().register_key(KEY).await.unwrap();
    assert_eq!(fake.count("POST", PATH), 1, "a deleted key is none");
}

#[tokio::test]
async fn failures_to_read_the_keys_are_not_taken_for_none() {
    let cases = [
        (404, json!({"error": "auth_error"}), ErrorClass::Auth),
        (200, json!({"success": true}), ErrorClass::Protocol),
    ];
    for (status, keys, expected) in cases {
        let fake = with_keys(status, keys).await;
        assert_eq!(class(fake.client().register_key(KEY).await), expected);
        assert_eq!(fake.count("POST", PATH), 0);
    }
}

#[tokio::test]
async fn a_lost_reply_to_the_registration_is_looked_up() {
    let there = AtomicBool::new(false);
    let fake = Fake::start(move |s| match s.method.as_str() {
        "GET" if there.load(Ordering::SeqCst) => Reply::Json(200, json!([{"key": KEY}])),
        "GET" => Reply::Json(404, json!({"error": "not_found"})),
        _ => {
            there.store(true, Ordering::SeqCst);
            Reply::Cut
        }
    })
    .await;
    fake.client().register_key(KEY).await.unwrap();
    assert_eq!(fake.count("POST", PATH), 1);
}

#[tokio::test]
async fn attaching_may_be_repeated() {
    let fake = Fake::start(|s| match s.nth {
        0 => Reply::Json(
            200,
            json!({"success": true, "msg": "SSH key attached successfully"}),
        ),
        _ => Reply::Json(
            400,
            json!({"success": false, "error": "invalid_args", "msg": "Key already associated"}),
        ),
    })
    .await;
    let client = fake.client();
    client.attach_key("7", KEY).await.unwrap();
    client.attach_key("7", KEY).await.unwrap();
    assert!(fake.seen()[0].is("POST", "/api/v0/instances/7/ssh/"));
    assert_eq!(fake.seen()[0].body, json!({"ssh_key": KEY}));
}

#[tokio::test]
async fn only_a_public_key_leaves() {
    let fake = with_keys(200, json!([])).await;
    let client = fake.client();
    for bad in [
        "",
        "ssh-ed25519",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl",
        "ssh-ed25519 AAAA\nssh-rsa BBBB",
        "x y z",
    ] {
        assert_eq!(
            class(client.register_key(bad).await),
            ErrorClass::Invalid,
            "{bad}"
        );
        assert_eq!(
            class(client.attach_key("7", bad).await),
            ErrorClass::Invalid,
            "{bad}"
        );
    }
    assert!(fake.seen().is_empty());
}
