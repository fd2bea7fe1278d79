use crate::scene::{Scene, content, digest, refused};
use dumont_server::objects::ObjectStore;
use dumont_server::objects::file::GRANT_LIFETIME;
use futures::{StreamExt, stream};
use std::io;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const KEY: &str = "w/1/packs/01ABC";

#[tokio::test]
async fn an_object_goes_up_once_and_comes_down_whole() {
    let scene = Scene::new().await;
    let bytes = content(1, 3_000_000);
    let url = scene.upload_url(KEY, &bytes).await;
    assert_eq!(scene.put(&url, &bytes).await.0, 201);
    assert_eq!(
        scene.put(&url, &bytes).await.0,
        200,
        "a repetition is answered alike"
    );
    assert_eq!(
        std::fs::read(scene.object(KEY)).unwrap(),
        bytes,
        "plain files under their own names"
    );

    let url = scene.download_url(KEY).await;
    let answer = scene.get(&url, None).await;
    assert_eq!(
        (answer.status().as_u16(), answer.content_length()),
        (200, Some(3_000_000))
    );
    assert_eq!(answer.headers()["accept-ranges"], "bytes");
    assert_eq!(answer.headers()["etag"], format!("\"{}\"", digest(&bytes)));
    assert_eq!(answer.bytes().await.unwrap(), bytes);
    let head = scene.http.head(&url).send().await.unwrap();
    assert_eq!(
        (
            head.status().as_u16(),
            head.headers()["content-length"].to_str().unwrap()
        ),
        (200, "3000000")
    );
    scene.settled().await;
}

#[tokio::test]
async fn empty_objects_are_objects() {
    let scene = Scene::new().await;
    let url = scene.upload_url(KEY, b"").await;
    let answer = scene
        .http
        .put(&url)
        .header("content-length", "0")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 201);
    let answer = scene.get(&scene.download_url(KEY).await, None).await;
    assert_eq!(
        (answer.status().as_u16(), answer.bytes().await.unwrap().len()),
        (200, 0)
    );
}

#[tokio::test]
async fn a_key_is_never_written_twice() {
    let scene = Scene::new().await;
    let (first, second) = (content(1, 5_000_000), content(2, 5_000_000));
    assert_eq!(
        scene.put(&scene.upload_url(KEY, &first).await, &first).await.0,
        201
    );
    refused(
        &scene.put(&scene.upload_url(KEY, &second).await, &second).await,
        409,
        "object_exists",
    );
    assert_eq!(scene.store.get(KEY).await.unwrap(), first);
    scene.settled().await;
}

#[tokio::test]
async fn of_many_writers_of_one_key_one_wins() {
    let scene = Scene::new().await;
    for round in 0..5 {
        let (key, scene) = (&format!("race/{round}"), &scene);
        let bodies: Vec<_> = (0..8).map(|seed| content(seed / 2, 300_000)).collect();
        let puts = bodies.iter().map(|bytes| async move {
            let url = scene.upload_url(key, bytes).await;
            (scene.put(&url, bytes).await.0, bytes)
        });
        let answers = futures::future::join_all(puts).await;
        let held = scene.store.get(key).await.unwrap();
        assert_eq!(answers.iter().filter(|(s, _)| *s == 201).count(), 1);
        for (status, bytes) in answers {
            // Everyone who had the winner's content has succeeded, all others were told.
            assert_eq!(status == 409, *bytes != held, "{status}");
        }
    }
    scene.settled().await;
}

#[tokio::test]
async fn what_does_not_match_its_grant_leaves_nothing() {
    let scene = Scene::new().await;
    let bytes = content(1, 200_000);
    let url = scene.upload_url(KEY, &bytes).await;

    let mut flipped = bytes.clone();
    flipped[100_000] ^= 1;
    refused(&scene.put(&url, &flipped).await, 422, "digest_mismatch");
    refused(&scene.put(&url, &bytes[1..]).await, 400, "size_mismatch");
    refused(&scene.put(&url, &content(1, 200_001)).await, 400, "size_mismatch");
    let chunks = stream::iter([Ok::<_, io::Error>(bytes.clone())]);
    let answer = scene
        .http
        .put(&url)
        .body(reqwest::Body::wrap_stream(chunks))
        .send()
        .await
        .unwrap();
    refused(
        &(answer.status().as_u16(), answer.json().await.unwrap()),
        411,
        "length_required",
    );

    assert!(scene.store.list("").await.unwrap().is_empty());
    scene.settled().await;
    assert_eq!(scene.put(&url, &bytes).await.0, 201, "and the grant still serves");
}

#[tokio::test]
async fn a_large_refused_upload_still_sees_why() {
    let scene = Scene::new().await;
    let bytes = content(1, 20 << 20);
    let url = scene.upload_url(KEY, &bytes).await;
    scene.pass(GRANT_LIFETIME);
    refused(&scene.put(&url, &bytes).await, 403, "grant_expired");
}

#[tokio::test]
async fn any_change_of_a_url_is_refused() {
    let scene = Scene::new().await;
    let bytes = content(1, 1000);
    let up = scene.upload_url(KEY, &bytes).await;
    let tampered = [
        up.replace("size=1000", "size=1001"),
        up.replace("01ABC", "01ABD"),
        up.replace("01ABC", "x%2F..%2F01ABC"),
        up.replace("op=put", "op=get"),
        up.replace("expires=1", "expires=2"),
        up.replace("sig=", "sig=00"),
        up.replace("sig=", "nosig="),
        up.clone() + "&size=1000",
        up.clone() + "&x=1",
        up.split('?').next().unwrap().to_owned(),
        {
            let (head, sig) = up.split_once("sig=").unwrap();
            let flipped = if sig.starts_with('0') { '1' } else { '0' };
            format!("{head}sig={flipped}{}", &sig[1..])
        },
    ];
    for url in tampered {
        refused(&scene.put(&url, &bytes).await, 403, "bad_signature");
    }
    assert!(scene.store.list("").await.unwrap().is_empty());

    assert_eq!(scene.put(&up, &bytes).await.0, 201);
    let down = scene.download_url(KEY).await;
    refused(&scene.put(&down, &bytes).await, 403, "bad_signature");
    for url in [
        up,
        down.replace("01ABC", "01ABD"),
        down.replace("op=get", "op=put"),
    ] {
        assert_eq!(scene.get(&url, None).await.status(), 403, "{url}");
    }
    let post = scene.http.post(&down).send().await.unwrap();
    assert_eq!(post.status(), 405);
}

#[tokio::test]
async fn grants_end_with_their_time() {
    let scene = Scene::new().await;
    let bytes = content(1, 1000);
    let up = scene.upload_url(KEY, &bytes).await;
    scene.pass(GRANT_LIFETIME - Duration::from_secs(1));
    assert_eq!(scene.put(&up, &bytes).await.0, 201);
    let down = scene.download_url(KEY).await;
    scene.pass(Duration::from_secs(1));
    refused(&scene.put(&up, &bytes).await, 403, "grant_expired");
    assert_eq!(scene.get(&down, None).await.status(), 200);
    scene.pass(GRANT_LIFETIME);
    assert_eq!(scene.get(&down, None).await.status(), 403);
}

#[tokio::test]
async fn ranges_are_served() {
    let scene = Scene::new().await;
    let bytes = content(1, 3_500_000);
    scene.store.put(KEY, &bytes).await.unwrap();
    let url = scene.download_url(KEY).await;
    let cases = [
        ("bytes=0-0", 0..1),
        ("bytes=1000000-2999999", 1_000_000..3_000_000),
        ("bytes=3499990-", 3_499_990..3_500_000),
        ("bytes=-10", 3_499_990..3_500_000),
        ("bytes=3400000-9999999", 3_400_000..3_500_000),
    ];
    for (range, expected) in cases {
        let answer = scene.get(&url, Some(range)).await;
        assert_eq!(answer.status(), 206, "{range}");
        let told = format!("bytes {}-{}/3500000", expected.start, expected.end - 1);
        assert_eq!(answer.headers()["content-range"], told);
        assert_eq!(
            answer.content_length(),
            Some((expected.end - expected.start) as u64)
        );
        assert!(answer.bytes().await.unwrap() == bytes[expected], "{range}");
    }
    let answer = scene.get(&url, Some("bytes=3500000-")).await;
    assert_eq!(
        (
            answer.status().as_u16(),
            answer.headers()["content-range"].to_str().unwrap()
        ),
        (416, "bytes */3500000")
    );
    let answer = scene.get(&url, Some("bytes=1-2,4-5")).await;
    assert_eq!(
        (answer.status().as_u16(), answer.content_length()),
        (200, Some(3_500_000))
    );
}

#[tokio::test]
async fn a_deleted_object_is_a_clear_error() {
    let scene = Scene::new().await;
    scene.store.put(KEY, b"x").await.unwrap();
    let url = scene.download_url(KEY).await;
    scene.store.delete(KEY).await.unwrap();
    let answer = scene.get(&url, None).await;
    refused(
        &(answer.status().as_u16(), answer.json().await.unwrap()),
        404,
        "object_missing",
    );
}

/// Opens an upload by hand and sends a part of it.
async fn begin(scene: &Scene, url: &str, size: usize, part: &[u8]) -> TcpStream {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut peer = TcpStream::connect(host).await.unwrap();
    let head = format!("PUT /{path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {size}\r\n\r\n");
    peer.write_all(head.as_bytes()).await.unwrap();
    peer.write_all(part).await.unwrap();
    for _ in 0..100 {
        if !crate::scene::names(&scene.dir.path().join("incoming")).is_empty() {
            return peer;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the upload never began");
}

#[tokio::test]
async fn an_upload_cut_in_the_middle_leaves_nothing() {
    let scene = Scene::new().await;
    let bytes = content(1, 6_000_000);
    let url = scene.upload_url(KEY, &bytes).await;
    let peer = begin(&scene, &url, bytes.len(), &bytes[..4_000_000]).await;
    assert!(
        scene.store.list("").await.unwrap().is_empty(),
        "not visible while it comes in"
    );
    drop(peer);
    scene.settled().await;
    assert!(scene.store.head(KEY).await.unwrap().is_none());
    assert_eq!(scene.put(&url, &bytes).await.0, 201);
}

#[tokio::test]
async fn an_upload_that_stalls_is_given_up() {
    let scene = Scene::new().await;
    let bytes = content(1, 100_000);
    let url = scene.upload_url(KEY, &bytes).await;
    let mut peer = begin(&scene, &url, bytes.len(), &bytes[..50_000]).await;
    let mut answer = [0; 32];
    let read = tokio::time::timeout(Duration::from_secs(15), peer.read_exact(&mut answer)).await;
    read.unwrap().unwrap();
    assert!(
        answer.starts_with(b"HTTP/1.1 408"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    scene.settled().await;
}

#[tokio::test]
async fn many_slow_readers_do_not_stop_the_store() {
    let scene = Scene::new().await;
    let bytes = content(1, 4_000_000);
    scene.store.put(KEY, &bytes).await.unwrap();
    let url = scene.download_url(KEY).await;
    // More than tokio's blocking threads: were each download to hold one, nothing else would move.
    let mut stalled = Vec::new();
    for _ in 0..600 {
        let mut stream = scene.get(&url, None).await.bytes_stream();
        stream.next().await.unwrap().unwrap();
        stalled.push(stream);
    }
    let answer = tokio::time::timeout(Duration::from_secs(10), async {
        scene.get(&url, None).await.bytes().await.unwrap()
    });
    assert_eq!(answer.await.unwrap(), bytes);
}

/// Prints, does not judge: the machine is not ours alone.
#[tokio::test(flavor = "multi_thread")]
async fn throughput() {
    let scene = Scene::new().await;
    let bytes = content(1, 256 << 20);
    let url = scene.upload_url(KEY, &bytes).await;
    let rate = |started: Instant| bytes.len() as f64 / 1e6 / started.elapsed().as_secs_f64();
    let body = bytes::Bytes::from(bytes.clone());
    let started = Instant::now();
    assert_eq!(
        scene.http.put(&url).body(body).send().await.unwrap().status(),
        201
    );
    println!("upload, hashed and synced: {:.0} MB/s", rate(started));
    let url = scene.download_url(KEY).await;
    for _ in 0..3 {
        let started = Instant::now();
        let mut stream = scene.get(&url, None).await.bytes_stream();
        let mut seen = 0;
        while let Some(chunk) = stream.next().await {
            seen += chunk.unwrap().len();
        }
        println!("download: {:.0} MB/s", rate(started));
        assert_eq!(seen, bytes.len());
    }
}
