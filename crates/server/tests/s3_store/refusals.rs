//! What a store refuses, and what it cannot do just now.

use crate::bucket::InProcess;
use crate::contract::open;
use dumont_server::objects::{Level, ObjectStore};

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_is_tried_again() {
    let server = InProcess::start().await;
    let store = open(server.config()).await;
    store.abilities().await.unwrap();
    server.fail_next(&[
        (503, "<Error><Code>SlowDown</Code></Error>"),
        (500, "<Error><Code>InternalError</Code></Error>"),
        (502, ""),
    ]);
    store.put("workspaces/a/x", b"x").await.unwrap();
    server.fail_next(&[(504, "")]);
    assert_eq!(store.get("workspaces/a/x").await.unwrap(), b"x");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_store_lacks_is_asked_for_once() {
    let server = InProcess::start().await;
    let store = open(server.config()).await;
    store.abilities().await.unwrap();
    let before = server.requests.lock().unwrap().len();
    server.fail_next(&[(501, "<Error><Code>NotImplemented</Code></Error>")]);
    let error = store.list("workspaces/").await.unwrap_err();
    assert_eq!(error.code(), "not_implemented", "{error}");
    assert_eq!(server.requests.lock().unwrap().len(), before + 1);
}

/// B2's answers: no conditions, and this must not be taken for a failure.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_conditions_is_used_without_them() {
    let server = InProcess::start().await;
    let store = open(server.config()).await;
    // The probe's first PUT goes through, its conditional one is not implemented.
    let put = store.abilities();
    server.requests.lock().unwrap().clear();
    let refuse_second = async {
        loop {
            if !server.requests.lock().unwrap().is_empty() {
                server.fail_next(&[(501, "<Error><Code>NotImplemented</Code></Error>")]);
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let (can, ()) = tokio::join!(put, refuse_second);
    assert!(!can.unwrap().create_only);
    store.put("workspaces/a/x", b"x").await.unwrap();
    store.put("workspaces/a/x", b"x").await.unwrap();
    assert!(store.put("workspaces/a/x", b"y").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mistake_is_named() {
    let server = InProcess::start().await;
    let mut config = server.config();
    config.bucket = "no-such-bucket".into();
    let error = open(config).await.ping().await.unwrap_err();
    assert_eq!(error.code(), "bucket_missing", "{error}");
    assert!(error.hint().contains("B2_BUCKET"), "{}", error.hint());

    let mut config = server.config();
    config.secret = "wrong".into();
    let error = open(config).await.ping().await.unwrap_err();
    assert_eq!(error.code(), "bad_credentials", "{error}");
    let mut config = server.config();
    config.key_id = "nobody".into();
    let error = open(config).await.ping().await.unwrap_err();
    assert!(
        ["bad_credentials", "access_denied"].contains(&error.code()),
        "{error}"
    );

    let store = open(server.config()).await;
    let body = "<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region 'us-east-1' is wrong; expecting \
                'eu-west-1'</Message><Region>eu-west-1</Region></Error>";
    server.fail_next(&[(400, body)]);
    let error = store.ping().await.unwrap_err();
    assert_eq!(error.code(), "wrong_region", "{error}");
    assert!(error.hint().contains("eu-west-1"));

    server.die();
    let checks = store.examine().await;
    assert_eq!(checks.len(), 1, "{checks:#?}");
    assert!(
        checks[0].level == Level::Failed && checks[0].detail.contains("store_unreachable"),
        "{checks:#?}"
    );
    let mut config = server.config();
    config.endpoint = "http://no-such-host.invalid".parse().unwrap();
    let error = open(config).await.ping().await.unwrap_err();
    assert_eq!(error.code(), "store_unreachable", "{error}");
}

/// A trial that meets a bad moment is no trial: nothing of it is remembered.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_moment_says_nothing_about_a_store() {
    let server = InProcess::start().await;
    for trouble in [
        (503, "<Error><Code>SlowDown</Code></Error>"),
        (403, "<Error><Code>AccessDenied</Code></Error>"),
    ] {
        let store = open(server.config()).await;
        server.requests.lock().unwrap().clear();
        let refuse_all_but_the_first = async {
            while server.requests.lock().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
            server.fail_next(&[trouble; 64]);
        };
        let (can, ()) = tokio::join!(store.abilities(), refuse_all_but_the_first);
        assert!(can.is_err(), "{trouble:?}: {can:?}");
        server.faults.lock().unwrap().clear();
        let can = store.abilities().await.unwrap();
        assert!(can.create_only && can.signed_lengths, "{trouble:?}: {can:?}");
    }
}

/// What comes in place of the parts of a pack: only what was asked for, whatever the server does.
#[tokio::test(flavor = "multi_thread")]
async fn parts_are_what_they_should_be() {
    let server = InProcess::start().await;
    let store = open(server.config()).await;
    let body: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    store.put("workspaces/a/x", &body).await.unwrap();
    for range in [0..1, 1_000..2_000, 399_990..400_010, 400_000..400_001, 5..5] {
        let expected = &body[range.start as usize..(range.end as usize).min(body.len())];
        assert_eq!(
            store.get_range("workspaces/a/x", range.clone()).await.unwrap(),
            expected,
            "{range:?}"
        );
    }
    let missing = store.get_range("workspaces/a/none", 0..1).await.unwrap_err();
    assert_eq!(missing.code(), "object_missing");
}
