//! A machine that turns hostile, against the whole controller and real S3 servers.
//!
//! Design decision 1: whatever it does with all URLs it ever saw, with its word about objects,
//! and with as many snapshots as it gets to take, what earlier snapshots restore stays as it is.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot set up its world fails"
)]

#[path = "../world/mod.rs"]
mod world;
use world::bucket;
mod puppet;

use bucket::{InProcess, VERSIONED, Weed, keep_versions};
use dumont_core::id::Digest;
use dumont_core::snapshot::{ObjectKind, ObjectRef, SnapshotHead, SnapshotReport};
use dumont_server::objects::ObjectStore;
use dumont_server::objects::s3::{S3Config, S3Store};
use dumont_snapshot::{
    CheckReport, Index, NoEvents, ObjectSource, RestoreOptions, StoreError, check, restore,
};
use dumont_wire::agent::{Event, Failure, FailureCode, UploadWanted};
use puppet::{Puppet, Talk};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use tokio::runtime::Handle;
use world::World;

static NEVER: AtomicBool = AtomicBool::new(false);

/// A plain request, on a thread that is no part of the runtime; status and tag.
pub fn http(method: &str, url: &str, body: Vec<u8>) -> (u16, String) {
    let (method, url): (reqwest::Method, String) = (method.parse().unwrap(), url.into());
    block(async move {
        // A connection each: a server that refuses a body unread closes the one it came on.
        let client = reqwest::Client::builder()
            .pool_max_idle_per_host(0)
            .build()
            .unwrap();
        // One that closes before it was told all of it has refused.
        let Ok(answer) = client.request(method, url).body(body).send().await else {
            return (499, String::new());
        };
        let tag = answer
            .headers()
            .get("etag")
            .and_then(|t| t.to_str().ok())
            .unwrap_or("");
        (answer.status().as_u16(), tag.to_owned())
    })
}

pub fn fetch(url: &str, range: Option<Range<u64>>) -> Result<Vec<u8>, u16> {
    let url = url.to_owned();
    block(async move {
        let mut request = reqwest::Client::new().get(url);
        if let Some(r) = range {
            request = request.header("range", format!("bytes={}-{}", r.start, r.end - 1));
        }
        let answer = request.send().await.unwrap();
        match answer.status().as_u16() {
            200..300 => Ok(answer.bytes().await.unwrap().to_vec()),
            416 => Ok(Vec::new()),
            status => Err(status),
        }
    })
}

fn block<T: Send>(work: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|s| {
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(work)
        };
        s.spawn(run).join().unwrap()
    })
}

/// A workspace whose machines are the puppet's, and its bucket.
struct Scene {
    world: World,
    puppet: Arc<Puppet>,
    config: S3Config,
}

impl Scene {
    async fn on(config: S3Config) -> Self {
        let puppet = Puppet::start();
        let world = World::with_agent(config.clone(), puppet.agent).await;
        world.deployed("w").await;
        Self {
            world,
            puppet,
            config,
        }
    }

    fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.puppet.tree().join(name), content).unwrap();
    }

    async fn try_snapshot(&self) -> Value {
        let taken = self.world.post("/workspaces/w/snapshots", json!({})).await;
        self.world.ended(taken["workflow_id"].as_str().unwrap()).await
    }

    async fn snapshot(&self) -> String {
        let done = self.try_snapshot().await;
        assert_eq!(done["status"], "done", "{done:#}");
        done["result"]["snapshot_id"].as_str().unwrap().to_owned()
    }

    async fn visible(&self) -> Vec<String> {
        let list = self.world.get("/workspaces/w/snapshots?limit=500").await;
        let ids = list["items"].as_array().unwrap().iter();
        ids.map(|s| s["snapshot_id"].as_str().unwrap().to_owned())
            .collect()
    }

    async fn head(&self, id: &str) -> SnapshotHead {
        let opened = self
            .world
            .post(&format!("/workspaces/w/snapshots/{id}/open"), json!({}))
            .await;
        serde_json::from_value(opened["head"].clone()).unwrap()
    }

    /// As any user reads it: by URLs that the server grants.
    async fn reader(&self, id: &str) -> Granted<'_> {
        Granted {
            scene: self,
            path: format!("/workspaces/w/snapshots/{id}/open"),
            urls: Mutex::default(),
            runtime: Handle::current(),
        }
    }

    /// The files of a snapshot, or why it does not come back.
    async fn restored(&self, id: &str) -> Result<BTreeMap<String, Vec<u8>>, String> {
        let (head, source) = (self.head(id).await, self.reader(id).await);
        tokio::task::block_in_place(|| {
            let out = tempfile::tempdir().unwrap();
            let options = RestoreOptions::new(out.path(), &NEVER);
            restore(&options, &head, &source, &NoEvents).map_err(|e| e.to_string())?;
            Ok(files(out.path()))
        })
    }

    async fn checked(&self) -> CheckReport {
        let mut heads = Vec::new();
        let ids = self.visible().await;
        for id in &ids {
            heads.push(self.head(id).await);
        }
        let source = self.reader(&ids[0]).await;
        tokio::task::block_in_place(|| check(&heads, &source, None, &NEVER).unwrap())
    }

    /// What the bucket holds, whoever asks.
    async fn stored(&self) -> Vec<(String, u64)> {
        let store = S3Store::new(self.config.clone(), None).unwrap();
        let all = store.list("workspaces/").await.unwrap();
        all.into_iter().map(|o| (o.key, o.size)).collect()
    }
}

struct Granted<'a> {
    scene: &'a Scene,
    path: String,
    urls: Mutex<HashMap<String, String>>,
    runtime: Handle,
}

impl ObjectSource for Granted<'_> {
    fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Vec<u8>, StoreError> {
        let known = self.urls.lock().unwrap().get(key).cloned();
        let url = known.map_or_else(
            || {
                let asked = self
                    .scene
                    .world
                    .call("POST", &self.path, Some(json!({ "keys": [key] })));
                let (status, opened) = self.runtime.block_on(asked);
                match opened["grants"][0]["url"].as_str() {
                    Some(url) if status == 200 => Ok(url.to_owned()),
                    _ => Err(StoreError::Missing(key.into())),
                }
            },
            Ok,
        )?;
        self.urls.lock().unwrap().insert(key.into(), url.clone());
        fetch(&url, range).map_err(|status| match status {
            404 => StoreError::Missing(key.into()),
            _ => StoreError::Transfer(format!("{key}: {status}")),
        })
    }
}

fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(root).unwrap().map(|e| e.unwrap());
    entries
        .map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap()))
        .collect()
}

fn noise(n: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; n];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut out);
    out
}

fn digest(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}

async fn versioned() -> (Weed, S3Config) {
    let mut server = Weed::start().await;
    server.make_bucket(VERSIONED).await;
    let mut config = server.config();
    config.bucket = VERSIONED.into();
    keep_versions(&config).await;
    (server, config)
}

/// Every method on every URL it ever saw, and everything it ever said, said again.
async fn urls_change_nothing(config: S3Config) {
    let scene = Scene::on(config).await;
    scene.write("a", &noise(3_000_000, 1));
    scene.write("b", b"one");
    let first = scene.snapshot().await;
    let then = files(&scene.puppet.tree());
    scene.write("b", b"two");
    let second = scene.snapshot().await;
    let later = files(&scene.puppet.tree());
    let rollback = scene
        .world
        .post(
            "/workspaces/w/restore",
            json!({ "snapshot_id": first, "delete": true }),
        )
        .await;
    scene.world.done(&rollback["workflow_id"]).await;
    let before = scene.stored().await;

    let parts = scene.puppet.uploads.lock().unwrap().clone();
    let parts = parts
        .iter()
        .flat_map(|g| g.parts.iter().map(|p| (p.url.clone(), p.size)));
    let reads = scene.puppet.downloads.lock().unwrap().clone();
    let reads = reads.iter().filter_map(|g| Some((g.url.clone()?, 1_000)));
    let urls: Vec<(String, u64)> = parts.chain(reads).collect();
    assert!(urls.len() >= 6, "{urls:?}");
    for (url, size) in &urls {
        for method in ["PUT", "POST", "DELETE", "PATCH"] {
            let evil = vec![6; *size as usize];
            http(method, url, evil.clone());
            let (status, _) = http(method, url.split('?').next().unwrap(), evil);
            assert!(status >= 300, "{method} without a signature: {status}");
        }
    }
    // And while the next snapshot runs, everything it once said is said again.
    let said = scene.puppet.said.lock().unwrap().clone();
    for (key, tags) in said {
        scene.puppet.next_snapshot(Box::new(move |talk, request| {
            talk.send(Event::Uploaded { key, parts: tags });
            talk.honest(request)
        }));
        let ended = scene.try_snapshot().await;
        assert_eq!(ended["status"], "failed", "{ended:#}");
    }
    let after = scene.stored().await;
    for object in &before {
        assert!(after.contains(object), "{object:?} is gone or another");
    }
    assert_eq!(scene.restored(&first).await.unwrap(), then);
    assert_eq!(scene.restored(&second).await.unwrap(), later);
    assert_eq!(scene.checked().await.damaged, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_urls_it_ever_saw_change_nothing() {
    let server = InProcess::start().await;
    urls_change_nothing(server.config()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_where_versions_are_kept() {
    let (_server, config) = versioned().await;
    urls_change_nothing(config).await;
}

/// An index that says of each chunk of `victim` that it lies in a pack of ours, which holds
/// other bytes.
fn claims(victim: &Index, pack: &ObjectRef) -> Vec<u8> {
    let mut entries = victim.entries.clone();
    entries.retain(|(_, e)| e.offset + 48 + u64::from(e.stored_len) <= pack.size);
    entries.iter_mut().for_each(|(number, _)| *number = 0);
    let index = Index {
        packs: vec![pack.clone()],
        entries,
    };
    index.encode().unwrap()
}

/// Uploads a pack of rubbish and an index that claims `victim`'s chunks over it.
fn poison(talk: &Talk, victim: &Index) -> Option<(ObjectRef, ObjectRef)> {
    let longest = victim.packs.iter().map(|p| p.size).max().unwrap_or(0);
    let rubbish = noise(longest as usize, 666);
    let pack = talk.upload(ObjectKind::Pack, digest(&rubbish), &rubbish)?;
    let body = claims(victim, &pack);
    let index = talk.upload(ObjectKind::Index, digest(&body), &body)?;
    Some((pack, index))
}

fn given_up() -> Failure {
    Failure {
        code: FailureCode::Internal,
        message: "no URL".into(),
        hint: String::new(),
    }
}

async fn index_of(scene: &Scene, id: &str) -> Index {
    let (head, source) = (scene.head(id).await, scene.reader(id).await);
    let object = &head.indexes[0];
    let bytes = tokio::task::block_in_place(|| source.get(&object.key, None)).unwrap();
    Index::decode(&object.key, &bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_chunk_is_not_redefined() {
    let server = InProcess::start().await;
    let scene = Scene::on(server.config()).await;
    scene.write("a", &noise(2_000_000, 1));
    let good = scene.snapshot().await;
    let then = files(&scene.puppet.tree());
    let victim = index_of(&scene, &good).await;
    let root = scene.head(&good).await;
    scene.puppet.next_snapshot(Box::new(move |talk, request| {
        let (pack, index) = poison(talk, &victim).ok_or_else(given_up)?;
        Ok(SnapshotReport {
            packs: vec![pack],
            index: Some(index),
            root: root.root,
            ..talk.honest(request)?
        })
    }));
    let evil = scene.snapshot().await;
    assert_eq!(scene.restored(&good).await.unwrap(), then);
    // What it claims of known chunks is not even believed of its own snapshot.
    assert_eq!(scene.restored(&evil).await.unwrap(), then);
    scene.write("b", b"an honest one goes on");
    let next = scene.snapshot().await;
    assert_eq!(scene.restored(&next).await.unwrap(), files(&scene.puppet.tree()));
    assert_eq!(scene.restored(&good).await.unwrap(), then);
}

/// It knows what the user will have next (a model that everybody loads), and claims its chunks
/// in advance.
#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_is_still_to_come_is_not_spoilt() {
    let server = InProcess::start().await;
    let scene = Scene::on(server.config()).await;
    scene.write("a", b"mine");
    scene.snapshot().await;
    // The same file in a workspace of its own, to know its chunks.
    let weights = noise(6_000_000, 77);
    let known = {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("w")).unwrap();
        fs::write(temp.path().join("w/model"), &weights).unwrap();
        let store = dumont_snapshot::DirStore::new(temp.path().join("store"));
        let options = dumont_snapshot::SnapshotOptions {
            key: None,
            model_files: Vec::new(),
            path: temp.path().join("w"),
            stamp: "i-1".into(),
            parent: None,
            full: false,
            cache_path: temp.path().join("cache"),
            workers: 1,
            cancelled: &NEVER,
        };
        let report = dumont_snapshot::snapshot(&options, &store, &NoEvents).unwrap();
        let key = report.index.unwrap().key;
        Index::decode(&key, &store.get(&key, None).unwrap()).unwrap()
    };
    scene.puppet.next_snapshot(Box::new(move |talk, request| {
        let (pack, index) = poison(talk, &known).ok_or_else(given_up)?;
        let honest = talk.honest(request)?;
        Ok(SnapshotReport {
            packs: vec![pack],
            index: Some(index),
            ..honest
        })
    }));
    scene.snapshot().await;
    // The workspace moves to a good machine, and there the model is loaded.
    fs::remove_file(scene.puppet.dir.path().join("cache")).ok();
    let moved = scene.world.post("/workspaces/w/failover", json!({})).await;
    scene.world.done(&moved["workflow_id"]).await;
    scene.write("model", &weights);
    let loaded = scene.snapshot().await;
    assert_eq!(
        scene.restored(&loaded).await.unwrap(),
        files(&scene.puppet.tree())
    );
    let damage = scene.checked().await.damaged;
    assert!(
        damage.iter().all(|d| !d.snapshots.contains(&loaded)),
        "{damage:#?}"
    );
}

/// However many it takes, what its predecessors left stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_pushes_nothing_good_out() {
    let server = InProcess::start().await;
    let puppet = Puppet::start();
    let world = World::with_agent(server.config(), puppet.agent).await;
    let mut spec = world::spec("w");
    spec["snapshot"] = json!({ "keep": { "last": 2, "hourly": 0, "daily": 0, "weekly": 0 } });
    let created = world.post("/workspaces", json!({ "spec": spec })).await;
    world.done(&created["workflow_id"]).await;
    let scene = Scene {
        world,
        puppet,
        config: server.config(),
    };
    let mut good = Vec::new();
    for n in 0..3 {
        scene.write("a", &noise(100_000, n));
        good.push((scene.snapshot().await, files(&scene.puppet.tree())));
    }
    // Two machines follow, and both flood: the first must not be forgotten for the second.
    for machine in 0..2 {
        let moved = scene
            .world
            .post("/workspaces/w/failover", json!({ "snapshot_id": good[2].0 }))
            .await;
        scene.world.done(&moved["workflow_id"]).await;
        for n in 0..6 {
            scene.write("a", &noise(10, 100 + machine * 10 + n));
            scene.snapshot().await;
        }
        let pruned = scene
            .world
            .post("/workspaces/w/prune", json!({ "dry_run": false }))
            .await;
        assert!(!pruned["expired"].as_array().unwrap().is_empty(), "{pruned:#}");
        for (id, content) in &good {
            assert_eq!(&scene.restored(id).await.unwrap(), content, "{id}: {pruned:#}");
        }
    }
}

/// More than its disk could hold: not one byte more is granted, and what was sent is gone.
#[tokio::test(flavor = "multi_thread")]
async fn more_than_its_budget_is_not_taken() {
    let server = InProcess::start().await;
    let scene = Scene::on(server.config()).await;
    scene.write("a", &noise(200_000, 1));
    let good = scene.snapshot().await;
    let before = scene.stored().await;
    scene.puppet.next_snapshot(Box::new(|talk, _| {
        let wanted = |size: u64| UploadWanted {
            kind: ObjectKind::Pack,
            size,
            digest: Digest([7; 32]),
        };
        // 20 GB of disk make 40 GB of budget.
        for _ in 0..39 {
            assert!(talk.ask_upload(wanted(1_000_000_000)).is_some());
        }
        let small = talk.ask_upload(wanted(4)).unwrap();
        let url = &small.parts[0].url;
        let (status, _) = http("PUT", url, b"more than four".to_vec());
        assert_eq!(status, 403, "a longer body than was signed");
        assert_eq!(http("PUT", url, b"four".to_vec()).0, 200);
        assert!(talk.ask_upload(wanted(1_000_000_000)).is_none());
        Err(given_up())
    }));
    let ended = scene.try_snapshot().await;
    assert_eq!(ended["status"], "failed", "{ended:#}");
    assert!(ended["error"].to_string().contains("40000000000"), "{ended:#}");
    assert_eq!(scene.stored().await, before);
    assert_eq!(scene.visible().await, [good]);

    // It announces little, sends that, and reports another size or other bytes.
    for lie in [9_u64, 4_000_000] {
        scene.puppet.next_snapshot(Box::new(move |talk, request| {
            let honest = talk.honest(request)?;
            let object = talk
                .upload(ObjectKind::Pack, digest(b"12345678"), b"12345678")
                .ok_or_else(given_up)?;
            let packs = vec![ObjectRef { size: lie, ..object }];
            Ok(SnapshotReport { packs, ..honest })
        }));
        let ended = scene.try_snapshot().await;
        assert_eq!(ended["status"], "failed", "{ended:#}");
    }
    assert_eq!(scene.visible().await.len(), 1);
}

/// Neither versions nor conditions: an overwrite is not undone, but it is found and named, and
/// the doctor warns of it beforehand.
#[tokio::test(flavor = "multi_thread")]
async fn on_the_weakest_store_an_overwrite_is_named() {
    let server = InProcess::start().await;
    server
        .conditions
        .store(false, std::sync::atomic::Ordering::SeqCst);
    let scene = Scene::on(server.config()).await;
    scene.write("a", &noise(500_000, 1));
    let first = scene.snapshot().await;
    scene.write("b", &noise(500_000, 2));
    let second = scene.snapshot().await;
    urls_of_the_machine_only(&scene, &[&first, &second]).await;

    let store = S3Store::new(scene.config.clone(), None).unwrap();
    let checks = store.examine().await;
    let versions = checks.iter().find(|c| c.name == "store versions").unwrap();
    assert_eq!(
        versions.level,
        dumont_server::objects::Level::Warning,
        "{checks:#?}"
    );
    assert!(
        versions.detail.contains("neither versions nor conditions"),
        "{checks:#?}"
    );

    // Somebody with the bucket's key lays other bytes over what only the second needs.
    let head = scene.head(&second).await;
    let index = scene.reader(&second).await;
    let newest = head.indexes.last().unwrap().clone();
    let bytes = tokio::task::block_in_place(|| index.get(&newest.key, None)).unwrap();
    let pack = Index::decode(&newest.key, &bytes).unwrap().packs;
    let pack = pack.iter().max_by_key(|p| p.size).unwrap();
    let path = server.dir.path().join(bucket::BUCKET).join(&pack.key);
    fs::write(path, vec![6; pack.size as usize]).unwrap();
    let damage = scene.checked().await.damaged;
    assert_eq!(damage.len(), 1, "{damage:#?}");
    assert_eq!(
        (damage[0].object.as_str(), &damage[0].snapshots[..]),
        (pack.key.as_str(), &[second.clone()][..])
    );
    assert!(scene.restored(&second).await.is_err());
    assert!(scene.restored(&first).await.is_ok());
}

/// Even there a machine's own URLs change nothing: they were all of parts.
async fn urls_of_the_machine_only(scene: &Scene, ids: &[&str]) {
    let grants = scene.puppet.uploads.lock().unwrap().clone();
    for part in grants.iter().flat_map(|g| &g.parts) {
        http("PUT", &part.url, vec![6; part.size as usize]);
        http("DELETE", &part.url, Vec::new());
    }
    for id in ids {
        scene.restored(id).await.unwrap();
    }
    assert_eq!(scene.checked().await.damaged, []);
}
