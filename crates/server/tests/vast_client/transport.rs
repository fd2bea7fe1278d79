use crate::fake::{Fake, KEY, Reply, class, query, request};
use dumont_server::providers::vast::{ApiKey, Vast, VastConfig};
use dumont_server::providers::{ErrorClass, Provider};
use serde_json::json;
use std::time::{Duration, Instant};

#[tokio::test]
async fn floods_are_cut_off() {
    let fake = Fake::start(|_| Reply::Flood(100 << 20)).await;
    let client = fake.client();
    assert_eq!(class(client.search(&query()).await), ErrorClass::Protocol);
    assert_eq!(class(client.list().await), ErrorClass::Protocol);
    assert_eq!(class(client.get("7").await), ErrorClass::Protocol);
}

#[tokio::test]
async fn bodies_that_never_end_end() {
    let fake = Fake::start(|_| Reply::Hang).await;
    let mut config = fake.config();
    config.timeout = Duration::from_millis(200);
    let started = Instant::now();
    assert_eq!(
        class(Vast::new(config).unwrap().search(&query()).await),
        ErrorClass::Transient
    );
    assert!(started.elapsed() < Duration::from_secs(2));
    assert_eq!(fake.seen().len(), 1, "a timeout is not repeated");
}

#[tokio::test]
async fn redirects_are_neither_followed_nor_read() {
    for status in [301, 302, 307, 308] {
        let fake = Fake::start(move |_| {
            Reply::Header(status, "location", "/elsewhere".into(), json!({"offers": []}))
        })
        .await;
        assert_eq!(class(fake.client().search(&query()).await), ErrorClass::Protocol);
        assert_eq!(fake.seen().len(), 1);
    }
}

#[tokio::test]
async fn a_broken_connection_is_tried_once_more_where_that_is_harmless() {
    let fake = Fake::start(|s| match s.nth {
        0 => Reply::Cut,
        _ => Reply::Json(200, json!({"offers": []})),
    })
    .await;
    assert!(fake.client().search(&query()).await.unwrap().is_empty());

    let fake = Fake::start(|_| Reply::Text(503, "busy".into())).await;
    assert_eq!(class(fake.client().destroy("7").await), ErrorClass::Transient);
    assert_eq!(fake.seen().len(), 2);
}

#[tokio::test]
async fn nobody_there_means_that_nothing_was_done() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = Vast::new(VastConfig::new(&url, ApiKey::new(KEY).unwrap()).unwrap()).unwrap();
    let started = Instant::now();
    let error = client.rent(&request()).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Transient);
    assert!(error.message.contains("cannot be reached"), "{error}");
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "there is nothing to look up"
    );
}

#[tokio::test]
async fn the_key_is_shown_nowhere() {
    let fake = Fake::start(|s| {
        let echoed = s.headers["authorization"].clone();
        Reply::Json(
            401,
            json!({"error": "auth_error", "msg": format!("Invalid user key: {echoed}\u{7}")}),
        )
    })
    .await;
    let client = fake.client();
    let error = client.list().await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Auth);
    assert!(
        error.message.contains("[key]") && !error.message.contains(KEY),
        "{error}"
    );
    assert!(!format!("{client:?}").contains(KEY));
    assert!(!format!("{error:?}").contains(KEY));
}
