//! Retention and prune on real stores and a real database, with crashes at every step.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

#[path = "../world/bucket.rs"]
#[allow(dead_code, reason = "each test file uses a part")]
mod bucket;
mod scene;

use bucket::{InProcess, VERSIONED, Weed, keep_versions};
use dumont_core::key::WorkspaceKey;
use dumont_server::objects::engine::Bridge;
use dumont_server::objects::s3::S3Config;
use dumont_snapshot::ObjectSource;
use scene::{Dying, On, World, noise};
use std::fs;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_needs_goes_after_its_grace() {
    goes_after_its_grace(World::new(2, &On::Files).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_the_same_of_an_encrypted_workspace() {
    let key = Some(WorkspaceKey([3; 32]));
    goes_after_its_grace(World::with_key(2, &On::Files, key).await).await;
}

async fn goes_after_its_grace(mut world: World) -> World {
    world.busy().await;
    let before = world.stored("packs").await;
    let first = world.prune(world.objects.clone()).await.unwrap();
    assert_eq!(first.expired.len(), 4, "{first:?}");
    assert_eq!(first.deleted_objects, 0, "marked first: {first:?}");
    assert!(first.waiting_objects > 0);
    assert_eq!(world.all_restore().await, 2);
    let second = world.prune(world.objects.clone()).await.unwrap();
    assert_eq!(second.deleted_objects, first.waiting_objects);
    assert_eq!(second.waiting_objects, 0);
    assert!(world.stored("packs").await < before / 2);
    assert_eq!(world.all_restore().await, 2);
    // The machine goes on from what it knew.
    fs::write(world.file("new"), noise(50_000, 99)).unwrap();
    world.snapshot().await;
    assert_eq!(world.all_restore().await, 3);
    // Nothing more to do, and nothing is done.
    world.prune(world.objects.clone()).await.unwrap();
    world.prune(world.objects.clone()).await.unwrap();
    let idle = world.prune(world.objects.clone()).await.unwrap();
    assert_eq!((idle.deleted_objects, idle.expired.len()), (0, 0), "{idle:?}");
    assert_eq!(world.all_restore().await, 2);
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_the_same_in_a_bucket() {
    let server = InProcess::start().await;
    goes_after_its_grace(World::new(2, &On::Bucket(server.config().into())).await).await;
}

/// Nothing of what was pruned stays, and every read names the version that was written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_versions_go_with_their_object() {
    let mut server = Weed::start().await;
    server.make_bucket(VERSIONED).await;
    let mut config = server.config();
    config.bucket = VERSIONED.into();
    keep_versions(&config).await;
    let on = On::Bucket(config.clone().into());
    let mut world = goes_after_its_grace(World::new(2, &on).await).await;
    let listed = world.objects.list(&format!("{}/", world.prefix())).await.unwrap();
    let versions = versions_below(&config, &world.prefix()).await;
    assert_eq!(versions.len(), listed.len(), "{versions:#?}\n{listed:#?}");

    // Written anew by the controller, and pinned like all else.
    let rows = world
        .store
        .list_snapshots(&world.workspace.id, None, 10)
        .await
        .unwrap()
        .items;
    for row in &rows {
        assert!(
            row.head.indexes.iter().all(|i| i.version.is_some()),
            "{:#?}",
            row.head
        );
    }
    let facts = listed.iter().rfind(|o| o.key.contains("/snapshot-")).unwrap();
    let facts: serde_json::Value =
        serde_json::from_slice(&world.objects.get(&facts.key).await.unwrap()).unwrap();
    let packs = facts["packs"].as_array().unwrap();
    assert!(
        !packs.is_empty() && packs.iter().all(|p| p["version"].is_string()),
        "{facts:#}"
    );

    // Another holder of the bucket's key laid something over an object that is then pruned.
    let key = world
        .objects
        .list(&format!("{}/packs/", world.prefix()))
        .await
        .unwrap()[0]
        .key
        .clone();
    overwrite(&config, &key).await;
    assert_eq!(world.all_restore().await, 2);
    for n in 0..3u8 {
        for name in ["stays", "changes", "new"] {
            fs::write(world.file(name), noise(50_000, 200 + n)).unwrap();
        }
        world.snapshot().await;
    }
    for _ in 0..3 {
        world.prune(world.objects.clone()).await.unwrap();
    }
    assert!(world.objects.head(&key).await.unwrap().is_none());
    let left = versions_below(&config, &key).await;
    assert!(left.is_empty(), "{left:#?}");
    assert_eq!(world.all_restore().await, 2);
    crash_at_each(&on, 3).await;
}

/// All that a listing of versions shows below a prefix, markers too.
async fn versions_below(config: &S3Config, prefix: &str) -> Vec<String> {
    let mut url = config.endpoint.clone();
    url.set_path(&format!("/{}", config.bucket));
    let signed = rusty_s3::signing::sign(
        &jiff::Timestamp::now(),
        rusty_s3::Method::Get,
        url,
        &config.key_id,
        &config.secret,
        None,
        "us-east-1",
        60,
        [("prefix", prefix), ("versions", "")].into_iter(),
        std::iter::empty(),
    );
    let text = reqwest::get(signed).await.unwrap().text().await.unwrap();
    assert!(
        text.contains("ListVersionsResult") && !text.contains("<IsTruncated>true"),
        "{text}"
    );
    let parts = text.replace("<DeleteMarker>", "<Version><Marker/>");
    parts.split("<Version>").skip(1).map(str::to_owned).collect()
}

async fn overwrite(config: &S3Config, key: &str) {
    use rusty_s3::S3Action;
    let (endpoint, name) = (config.endpoint.clone(), config.bucket.clone());
    let bucket = rusty_s3::Bucket::new(endpoint, rusty_s3::UrlStyle::Path, name, "us-east-1").unwrap();
    let keys = rusty_s3::Credentials::new(&*config.key_id, &*config.secret);
    let url = bucket.put_object(Some(&keys), key).sign(Duration::from_secs(60));
    let put = reqwest::Client::new().put(url).body("evil").send().await.unwrap();
    assert!(put.status().is_success());
}

/// A pack of 24 MiB of which a tenth lives is not read whole for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_lives_is_read() {
    let mut world = World::new(1, &On::Files).await;
    for n in 0..24u8 {
        fs::write(world.file(&format!("f{n}")), noise(1 << 20, n)).unwrap();
    }
    world.snapshot().await;
    for n in 0..24u8 {
        if n % 12 != 5 {
            fs::remove_file(world.file(&format!("f{n}"))).unwrap();
        }
    }
    world.snapshot().await;
    let counting = Dying::after(i64::MAX, world.objects.clone());
    let pruned = world.prune(counting.clone()).await.unwrap();
    assert!(pruned.copied_bytes >= 2 << 20, "{pruned:?}");
    let read = counting.read.load(Relaxed);
    assert!(read < 5 << 20, "{read} bytes of packs were read for 2 MiB");
    assert_eq!(world.all_restore().await, 1);
}

/// A machine uploads while everything around its parent is written anew and the rest deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_runs_meanwhile_loses_nothing() {
    let server = InProcess::start().await;
    for on in [On::Files, On::Bucket(server.config().into())] {
        let mut world = World::new(2, &on).await;
        world.busy().await;
        start_work(&world).await;
        fs::write(world.file("changes"), noise(300_000, 42)).unwrap();
        let report = world.upload().await;
        for _ in 0..3 {
            world.prune(world.objects.clone()).await.unwrap();
        }
        assert_eq!(world.all_restore().await, 2);
        world.commit(report).await;
        assert_eq!(world.all_restore().await, 3);
        for _ in 0..3 {
            world.prune(world.objects.clone()).await.unwrap();
        }
        assert_eq!(world.all_restore().await, 2);
    }
}

/// An index is a machine's word: what it says of another workspace's objects is not read for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_leads_to_no_other_workspace() {
    let mut world = World::new(2, &On::Files).await;
    fs::write(world.file("secret"), noise(10_000, 9)).unwrap();
    world.snapshot().await;
    let key = world
        .objects
        .list(&format!("{}/packs/", world.prefix()))
        .await
        .unwrap()[0]
        .key
        .clone();
    for (prefix, theirs) in [
        (world.prefix(), true),
        ("workspaces/other".into(), false),
        ("work".into(), false),
    ] {
        let bridge = Bridge::new(world.objects.clone(), prefix);
        let key = key.clone();
        let got = tokio::task::spawn_blocking(move || bridge.get(&key, Some(0..8)))
            .await
            .unwrap();
        assert_eq!(got.is_ok(), theirs, "{got:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_act_costs_no_snapshot() {
    crash_at_each(&On::Files, 0).await;
    let server = InProcess::start().await;
    crash_at_each(&On::Bucket(server.config().into()), 1).await;
}

/// Dies after each number of acts, in steps that grow by `sparse`.
async fn crash_at_each(on: &On, sparse: i64) {
    let (mut crashes, mut acts) = (0, 0);
    loop {
        let mut world = World::new(2, on).await;
        world.busy().await;
        let dying = Dying::after(acts, world.objects.clone());
        let mut done = true;
        for _ in 0..2 {
            done &= world.prune(dying.clone()).await.is_ok();
            assert!(world.all_restore().await >= 2, "after {acts} acts");
        }
        // Whoever comes next finishes the work, with a snapshot in between.
        fs::write(world.file("between"), noise(10_000, 77)).unwrap();
        world.snapshot().await;
        for _ in 0..3 {
            world.prune(world.objects.clone()).await.unwrap();
        }
        assert_eq!(world.all_restore().await, 2, "after {acts} acts");
        // Two snapshots of half a megabyte that share most of it.
        let left = world.stored("packs").await;
        assert!(left < 1_100_000, "after {acts} acts: {left} bytes of packs");
        if done {
            break;
        }
        crashes += 1;
        // Each of the first, then some of the many deletions.
        acts += 1 + sparse + acts / 6;
    }
    assert!(crashes > 3, "{crashes}");
}

/// A snapshot that still uploads has no head: nothing of it may go, however old.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_of_running_work_stay() {
    let mut world = World::new(2, &On::Files).await;
    world.busy().await;
    let key = format!("{}/packs/{}", world.prefix(), ulid::Ulid::generate());
    world.objects.put(&key, b"uploaded a moment ago").await.unwrap();
    start_work(&world).await;
    for _ in 0..3 {
        world.prune(world.objects.clone()).await.unwrap();
    }
    assert!(world.objects.head(&key).await.unwrap().is_some());
}

/// A snapshot workflow that is under way from now on.
async fn start_work(world: &World) {
    let workflow = dumont_store::NewWorkflow {
        id: "wf".into(),
        kind: dumont_core::workflow::Kind::Snapshot,
        workspace_id: world.workspace.id.clone(),
        state: serde_json::json!({}),
        preempt: Vec::new(),
        preempt_error: None,
        expects_instance: None,
        effects: Vec::new(),
    };
    world.store.start_workflow(&workflow, world.now()).await.unwrap();
}
