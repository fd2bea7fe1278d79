//! Bodies that are almost what Vast.ai sends: every answer is typed, bounded and without panic.
//! The originals are what the real client was recorded with.

use crate::fake::{Fake, KEY, LABEL, Reply, instance, query, request};
use dumont_server::providers::{ErrorClass, Provider, ProviderError};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

/// What a body is turned into.
#[derive(Debug, Clone)]
enum Mangle {
    Cut(usize),
    Byte(usize, u8),
    Html,
    Status(u16),
    /// Every value of this field.
    Field(&'static str, Value),
    /// Numbers become text.
    Strings,
    NotANumber(&'static str),
    Nothing,
}

fn mangle() -> impl Strategy<Value = Mangle> {
    let fields = prop::sample::select(vec![
        "id",
        "instances",
        "offers",
        "ports",
        "HostPort",
        "ssh_port",
        "dph_total",
        "actual_status",
        "next_token",
        "instances_found",
        "new_contract",
        "success",
        "machine_id",
        "label",
        "key",
    ]);
    let values = prop::sample::select(vec![
        Value::Null,
        json!(-1),
        json!(-22),
        json!("x"),
        json!([]),
        json!({}),
        json!(1e300),
        json!(70_000),
        json!(true),
        json!("7"),
        json!([null]),
        json!({"22/tcp": null}),
    ]);
    prop_oneof![
        (0usize..2_000).prop_map(Mangle::Cut),
        (0usize..2_000, any::<u8>()).prop_map(|(at, byte)| Mangle::Byte(at, byte)),
        Just(Mangle::Html),
        prop_oneof![100u16..600, Just(999)]
            .prop_filter("no body", |s| *s >= 200 && *s != 204 && *s != 304)
            .prop_map(Mangle::Status),
        (fields.clone(), values).prop_map(|(field, value)| Mangle::Field(field, value)),
        Just(Mangle::Strings),
        fields.prop_map(Mangle::NotANumber),
        Just(Mangle::Nothing),
    ]
}

fn each(value: &mut Value, change: &mut impl FnMut(Option<&str>, &mut Value)) {
    match value {
        Value::Object(map) => {
            for (name, inner) in map.iter_mut() {
                change(Some(name), inner);
                each(inner, change);
            }
        }
        Value::Array(all) => {
            for inner in all {
                change(None, inner);
                each(inner, change);
            }
        }
        _ => {}
    }
}

impl Mangle {
    fn apply(&self, (status, mut body): (u16, Value)) -> (u16, Vec<u8>) {
        match self {
            Self::Field(field, with) => each(&mut body, &mut |name, value| {
                if name == Some(field) {
                    *value = with.clone();
                }
            }),
            Self::NotANumber(field) => each(&mut body, &mut |name, value| {
                if name == Some(field) {
                    *value = json!("\u{0}NaN");
                }
            }),
            Self::Strings => each(&mut body, &mut |_, value| {
                if value.is_number() {
                    *value = json!(value.to_string());
                }
            }),
            _ => {}
        }
        // As Python writes it, which is no JSON.
        let mut bytes = body.to_string().replace(r#""\u0000NaN""#, "NaN").into_bytes();
        match self {
            Self::Cut(at) => bytes.truncate(*at),
            Self::Byte(at, byte) => {
                let at = at % bytes.len();
                bytes[at] = *byte;
            }
            Self::Html => bytes = b"<html><body>no_such_ask: instance not found</body></html>".to_vec(),
            _ => {}
        }
        (
            if let Self::Status(status) = self {
                *status
            } else {
                status
            },
            bytes,
        )
    }
}

fn recorded(name: &str) -> (u16, Value) {
    let path = format!(
        "{}/../market/tests/recorded/{name}.json",
        env!("CARGO_MANIFEST_DIR")
    );
    let all: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let response = &all["response"];
    (
        response["status"].as_u64().unwrap() as u16,
        response["body"].clone(),
    )
}

fn checked<T: std::fmt::Debug>(result: &Result<T, ProviderError>) {
    if let Err(error) = result {
        assert!(
            error.message.chars().count() < 1_000 && !error.message.chars().any(char::is_control),
            "{error}"
        );
        assert!(!error.message.contains(KEY), "{error}");
    }
}

async fn every_call(answers: Arc<Mutex<(u16, Vec<u8>)>>, fake: &Fake, original: &str, what: &Mangle) {
    *answers.lock().unwrap() = what.apply(recorded(original));
    let client = fake.client();
    let listed = client.list().await;
    checked(&listed);
    let (status, _) = *answers.lock().unwrap();
    if !(200..300).contains(&status) {
        assert!(listed.is_err(), "{status} is no data");
    }
    checked(&client.search(&query()).await);
    let read = client.get("7").await;
    checked(&read);
    // `None` is proof that an instance is gone: only the service's own word is.
    if let Ok(None) = read {
        let body = answers.lock().unwrap().1.clone();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let said = body["error"] == "no_such_instance" || body.get("instances") == Some(&Value::Null);
        assert!(said, "{what:?}");
    }
    let rented = client.rent(&request()).await;
    checked(&rented);
    if let Err(error) = &rented
        && (status >= 500 || matches!(what, Mangle::Html) && status < 300)
    {
        assert!(
            matches!(
                error.class,
                ErrorClass::Uncertain | ErrorClass::Transient | ErrorClass::Protocol
            ),
            "{error:?}"
        );
    }
    checked(&client.destroy("7").await);
    checked(
        &client
            .knows_key("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDummy t")
            .await,
    );
    checked(&client.account().await);
}

#[test]
fn answers_that_are_almost_right_are_typed_errors() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let answers = Arc::new(Mutex::new((200, Vec::new())));
    let shared = answers.clone();
    let fake = runtime.block_on(Fake::start(move |_| {
        let (status, body) = shared.lock().unwrap().clone();
        Reply::Bytes(status, body)
    }));
    let originals = prop::sample::select(vec![
        "10-show-instances-02-GET",
        "14-show-instance-01-GET",
        "01-search-offers-01-POST",
        "05-create-instance-01-PUT",
        "30-destroy-01-DELETE",
        "19-show-ssh-keys-01-GET",
        "25-start-01-PUT",
    ]);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 120,
        ..Default::default()
    });
    runner
        .run(&(originals, mangle()), |(original, what)| {
            runtime.block_on(every_call(answers.clone(), &fake, original, &what));
            Ok(())
        })
        .unwrap();
}

/// Only `null` says that an instance is gone, and that a listing has come to its end.
#[tokio::test]
async fn pythons_nan_is_no_null() {
    for body in [
        br#"{"instances": NaN}"#.as_slice(),
        br#"{"success": true, "instances": [], "next_token": NaN}"#,
    ] {
        let fake = Fake::start(move |_| Reply::Bytes(200, body.to_vec())).await;
        let client = fake.client();
        assert!(client.get("7").await.is_err());
        assert!(client.list().await.is_err());
    }
}

/// Each of these was seen to break some client of Vast.ai.
#[tokio::test]
async fn rows_that_broke_others_are_read() {
    let odd = [
        ("ports", Value::Null),
        ("ports", json!({"22/tcp": [{"HostPort": "-22"}]})),
        ("ssh_port", json!(-1)),
        ("dph_total", json!("NaN")),
        ("machine_id", Value::Null),
        ("actual_status", json!({"x": 1})),
    ];
    for (field, value) in odd {
        let mut row = instance(7, LABEL);
        row[field] = value.clone();
        let body = json!({"success": true, "instances_found": 1, "total_instances": 1, "instances": [row]});
        let fake = Fake::start(move |_| Reply::Json(200, body.clone())).await;
        let all = fake.client().list().await.unwrap();
        assert_eq!(all.len(), 1, "{field}: {value}");
        assert!(
            all[0].price.is_finite() && all[0].ssh.iter().all(|e| e.port > 0),
            "{field}"
        );
    }
}
