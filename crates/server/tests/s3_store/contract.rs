//! One suite, run on both servers.

use crate::bucket::{InProcess, Weed};
use dumont_core::id::Digest;
use dumont_core::snapshot::ObjectKind;
use dumont_server::objects::s3::{S3Config, S3Store};
use dumont_server::objects::{Level, ObjectError, ObjectStore, Ticket};
use dumont_store::Store;
use dumont_wire::agent::UploadWanted;

pub async fn open(config: S3Config) -> S3Store {
    let db = Store::open_in_memory().await.unwrap();
    S3Store::new(config, Some(db)).unwrap()
}

pub fn wanted(bytes: &[u8]) -> UploadWanted {
    UploadWanted {
        kind: ObjectKind::Pack,
        size: bytes.len() as u64,
        digest: Digest(*blake3::hash(bytes).as_bytes()),
    }
}

/// What a machine does with a grant: the store's tags for the parts.
pub async fn send(ticket: &Ticket, mut body: &[u8]) -> Vec<String> {
    let mut tags = Vec::new();
    for part in &ticket.grant.parts {
        let (piece, rest) = body.split_at(part.size as usize);
        body = rest;
        let answer = reqwest::Client::new()
            .put(&part.url)
            .body(piece.to_vec())
            .send()
            .await
            .unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
        tags.push(answer.headers()["etag"].to_str().unwrap().to_owned());
    }
    tags
}

pub async fn upload(store: &S3Store, key: &str, body: &[u8]) -> Option<String> {
    let ticket = store.grant_upload("", key, &wanted(body)).await.unwrap();
    let tags = send(&ticket, body).await;
    let id = ticket.upload_id.unwrap();
    store.complete(key, &id, body.len() as u64, &tags).await.unwrap()
}

async fn objects_live_and_die(store: &S3Store) {
    store.put("workspaces/a/x", b"one").await.unwrap();
    store.put("workspaces/a/x", b"one").await.unwrap();
    let other = store.put("workspaces/a/x", b"two").await.unwrap_err();
    assert!(matches!(other, ObjectError::Exists(_)), "{other}");
    assert_eq!(store.get("workspaces/a/x").await.unwrap(), b"one");
    let head = store.head("workspaces/a/x").await.unwrap().unwrap();
    assert_eq!((head.key.as_str(), head.size), ("workspaces/a/x", 3));
    let missing = store.get("workspaces/a/none").await.unwrap_err();
    assert!(matches!(missing, ObjectError::Missing(_)), "{missing}");
    assert_eq!(store.head("workspaces/a/none").await.unwrap(), None);
    store.delete("workspaces/a/x").await.unwrap();
    store.delete("workspaces/a/x").await.unwrap();
    assert_eq!(store.head("workspaces/a/x").await.unwrap(), None);
}

async fn an_upload_is_nothing_until_it_is_completed(store: &S3Store) {
    let body: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let key = "workspaces/a/packs/p1";
    let ticket = store.grant_upload("", key, &wanted(&body)).await.unwrap();
    let tags = send(&ticket, &body).await;
    assert_eq!(store.head(key).await.unwrap(), None);
    assert!(store.list("workspaces/a/packs/").await.unwrap().is_empty());
    let id = ticket.upload_id.unwrap();
    store.complete(key, &id, body.len() as u64, &tags).await.unwrap();
    // Its answer may have been lost: asked again, it is done.
    store.complete(key, &id, body.len() as u64, &tags).await.unwrap();
    assert_eq!(store.get(key).await.unwrap(), body);

    let grant = store.grant_download("", key).await.unwrap();
    let answer = reqwest::Client::new()
        .get(grant.url.unwrap())
        .header("range", "bytes=1000-1999")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 206);
    assert_eq!(answer.bytes().await.unwrap(), body[1000..2000]);
}

async fn what_was_abandoned_leaves_nothing(store: &S3Store) {
    let key = "workspaces/a/packs/never";
    let ticket = store.grant_upload("", key, &wanted(b"never")).await.unwrap();
    let tags = send(&ticket, b"never").await;
    let id = ticket.upload_id.unwrap();
    store.abandon(key, &id).await.unwrap();
    let error = store.complete(key, &id, 5, &tags).await.unwrap_err();
    // Stores name it differently.
    assert!(
        ["upload_incomplete", "access_denied"].contains(&error.code()),
        "{error}"
    );
    assert_eq!(store.head(key).await.unwrap(), None);
    // A part that was never sent completes nothing.
    let ticket = store.grant_upload("", key, &wanted(b"never")).await.unwrap();
    let id = ticket.upload_id.unwrap();
    let error = store
        .complete(key, &id, 5, &["\"0123456789abcdef0123456789abcdef\"".into()])
        .await;
    assert!(error.is_err());
    assert_eq!(store.head(key).await.unwrap(), None);
}

async fn the_doctor_finds_it_well(store: &S3Store) {
    let checks = store.examine().await;
    let names: Vec<_> = checks.iter().map(|c| c.name).collect();
    assert_eq!(
        names,
        [
            "store list",
            "store put",
            "store get",
            "store delete",
            "store clock",
            "store reach",
            "store conditions",
            "store versions",
            "store lengths"
        ]
    );
    assert!(checks.iter().all(|c| c.level != Level::Failed), "{checks:#?}");
    // These servers are on this very machine, where no rented one could reach them.
    assert_eq!(checks[5].level, Level::Warning);
    assert!(
        store.list("doctor/").await.unwrap().is_empty(),
        "the doctor left something behind"
    );
}

async fn suite(store: &S3Store) {
    let can = store.abilities().await.unwrap();
    assert!(can.create_only && can.signed_lengths, "{can:?}");
    objects_live_and_die(store).await;
    an_upload_is_nothing_until_it_is_completed(store).await;
    what_was_abandoned_leaves_nothing(store).await;
    the_doctor_finds_it_well(store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_holds_on_s3s_fs() {
    let server = InProcess::start().await;
    suite(&open(server.config()).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_holds_on_seaweedfs() {
    let server = Weed::start().await;
    let store = open(server.config()).await;
    suite(&store).await;
    crate::hostile::nothing_that_a_machine_saw_changes_a_snapshot(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn listings_are_read_to_their_end() {
    let server = InProcess::start().await;
    let folder = server.dir.path().join("snapshots/workspaces/many");
    std::fs::create_dir_all(&folder).unwrap();
    for n in 0..1_234 {
        std::fs::write(folder.join(format!("{n:05}")), "x").unwrap();
    }
    let store = open(server.config()).await;
    let listed = store.list("workspaces/many/").await.unwrap();
    assert_eq!(listed.len(), 1_234);
    assert_eq!(listed[1_233].key, "workspaces/many/01233");
    let pages = server
        .requests
        .lock()
        .unwrap()
        .iter()
        .filter(|r| r.contains("list-type=2"))
        .count();
    assert!(pages >= 2, "{pages} pages");
}

/// The plan's last fix: a listing that takes longer than 10 s is waited for, page after page.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_bucket_that_answers_slowly_is_listed() {
    let server = InProcess::start().await;
    let folder = server.dir.path().join("snapshots/workspaces/many");
    std::fs::create_dir_all(&folder).unwrap();
    for n in 0..3_500 {
        std::fs::write(folder.join(format!("{n:05}")), "x").unwrap();
    }
    let store = open(server.config()).await;
    server.slow.store(2_600, std::sync::atomic::Ordering::SeqCst);
    let listed = store.list("workspaces/many/").await.unwrap();
    assert_eq!(listed.len(), 3_500);
    let pages = server.requests.lock().unwrap().len();
    assert_eq!(pages, 4, "no page was asked for twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_objects_go_up_in_several_parts() {
    let server = InProcess::start().await;
    let store = open(server.config()).await;
    let body: Vec<u8> = (0..(6_u32 << 20) / 4).flat_map(u32::to_le_bytes).collect();
    let ticket = store
        .grant_upload("", "workspaces/a/packs/big", &wanted(&body))
        .await
        .unwrap();
    assert_eq!(ticket.grant.parts.len(), 2);
    let sizes: u64 = ticket.grant.parts.iter().map(|p| p.size).sum();
    assert_eq!(sizes, body.len() as u64);
    let tags = send(&ticket, &body).await;
    let id = ticket.upload_id.unwrap();
    store
        .complete("workspaces/a/packs/big", &id, sizes, &tags)
        .await
        .unwrap();
    assert!(store.get("workspaces/a/packs/big").await.unwrap() == body);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_store_can_do_is_tried_once() {
    let server = InProcess::start().await;
    let db = Store::open_in_memory().await.unwrap();
    let first = S3Store::new(server.config(), Some(db.clone())).unwrap();
    let found = first.abilities().await.unwrap();
    let asked = server.requests.lock().unwrap().len();
    let again = S3Store::new(server.config(), Some(db)).unwrap();
    assert_eq!(again.abilities().await.unwrap(), found);
    assert_eq!(server.requests.lock().unwrap().len(), asked);
}
