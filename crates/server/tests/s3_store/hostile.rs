//! A machine with every URL it ever saw, and the wish to do harm.

use crate::bucket::{InProcess, VERSIONED, Weed, keep_versions};
use crate::contract::{open, send, upload, wanted};
use dumont_server::objects::ObjectStore;
use dumont_server::objects::s3::S3Store;
use reqwest::{Client, Method};

/// Every method on every URL, with other bytes: afterwards the objects are what they were.
pub async fn nothing_that_a_machine_saw_changes_a_snapshot(store: &S3Store) {
    let (key, body) = ("workspaces/h/packs/good", vec![7_u8; 300_000]);
    let ticket = store.grant_upload("", key, &wanted(&body)).await.unwrap();
    let tags = send(&ticket, &body).await;
    let id = ticket.upload_id.clone().unwrap();
    store.complete(key, &id, body.len() as u64, &tags).await.unwrap();
    let read = store.grant_download("", key).await.unwrap().url.unwrap();
    let part = ticket.grant.parts[0].url.clone();

    // A connection each: a server that refuses a body unread closes the one it came on.
    let http = Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let evil = vec![6_u8; body.len()];
    for url in [&part, &read] {
        for method in [Method::PUT, Method::DELETE, Method::POST] {
            let _ = http
                .request(method.clone(), url)
                .body(evil.clone())
                .send()
                .await
                .unwrap();
            // The same without the upload in it, so that it names the object itself.
            let bare = url.split('?').next().unwrap();
            let answer = http
                .request(method, bare)
                .body(evil.clone())
                .send()
                .await
                .unwrap();
            assert!(!answer.status().is_success(), "{}", answer.status());
        }
    }
    for (from, to) in [
        ("partNumber=1", "partNumber=2"),
        ("packs/good", "packs/other"),
        ("X-Amz-Expires=600", "X-Amz-Expires=6000"),
    ] {
        assert!(part.contains(from), "{part}");
        let forged = part.replace(from, to);
        let answer = http.put(&forged).body(evil.clone()).send().await.unwrap();
        assert!(answer.status().is_client_error(), "{forged}: {}", answer.status());
    }
    // Completing again, as nobody but us could, brings back nothing of what was sent since.
    let _ = store.complete(key, &id, body.len() as u64, &tags).await;
    assert!(store.get(key).await.unwrap() == body);
    let answer = http.get(&read).send().await.unwrap();
    assert!(answer.bytes().await.unwrap() == body);
    assert_eq!(store.list("workspaces/h/").await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_url_changes_what_is_there() {
    let server = InProcess::start().await;
    let store = open(server.config()).await;
    nothing_that_a_machine_saw_changes_a_snapshot(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_was_granted_is_refused() {
    let server = InProcess::start().await;
    let store = open(server.config()).await;
    let ticket = store
        .grant_upload("", "workspaces/h/packs/x", &wanted(b"short"))
        .await
        .unwrap();
    for body in ["shorter", "tiny"] {
        let sent = Client::new()
            .put(&ticket.grant.parts[0].url)
            .body(body)
            .send()
            .await
            .unwrap();
        assert_eq!(sent.status(), 403, "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_ends() {
    let server = InProcess::start().await;
    let mut config = server.config();
    config.url_lifetime = std::time::Duration::from_secs(1);
    let store = open(config).await;
    store.put("workspaces/h/x", b"x").await.unwrap();
    let url = store
        .grant_download("", "workspaces/h/x")
        .await
        .unwrap()
        .url
        .unwrap();
    // Its time is counted in whole seconds.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let answer = Client::new().get(&url).send().await.unwrap();
        if answer.status() == 403 {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{}", answer.status());
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(store.get("workspaces/h/x").await.unwrap(), b"x");
}

/// Another holder of the bucket's key overwrites an object: what is restored stays.
#[tokio::test(flavor = "multi_thread")]
async fn an_overwrite_changes_nothing_where_versions_are_kept() {
    let mut server = Weed::start().await;
    server.make_bucket(VERSIONED).await;
    let mut config = server.config();
    config.bucket = VERSIONED.into();
    keep_versions(&config).await;
    let store = open(config.clone()).await;
    assert!(store.abilities().await.unwrap().versions);
    let version = upload(&store, "workspaces/h/packs/v", b"the good one").await;
    assert!(version.is_some());

    let bucket = rusty_s3::Bucket::new(
        config.endpoint.clone(),
        rusty_s3::UrlStyle::Path,
        VERSIONED,
        "us-east-1",
    )
    .unwrap();
    let key = rusty_s3::Credentials::new(config.key_id, config.secret);
    use rusty_s3::S3Action;
    let url = bucket
        .put_object(Some(&key), "workspaces/h/packs/v")
        .sign(std::time::Duration::from_secs(60));
    let answer = Client::new().put(url).body("the evil one").send().await.unwrap();
    assert!(answer.status().is_success());

    assert_eq!(store.get("workspaces/h/packs/v").await.unwrap(), b"the good one");
    let head = store.head("workspaces/h/packs/v").await.unwrap().unwrap();
    assert_eq!(head.version, version);
    let url = store
        .grant_download("", "workspaces/h/packs/v")
        .await
        .unwrap()
        .url
        .unwrap();
    let answer = Client::new().get(url).send().await.unwrap();
    assert_eq!(answer.bytes().await.unwrap(), "the good one");
}
