//! A store in a temporary directory, served on loopback, with a clock that tests turn.

use dumont_core::id::Digest;
use dumont_core::snapshot::ObjectKind;
use dumont_core::time::Timestamp;
use dumont_server::objects::ObjectStore;
use dumont_server::objects::file::FileStore;
use dumont_wire::agent::UploadWanted;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;

pub const SECRET: [u8; 32] = [7; 32];

pub struct Scene {
    pub store: Arc<FileStore>,
    pub base: String,
    pub now: Arc<AtomicI64>,
    pub http: reqwest::Client,
    pub dir: tempfile::TempDir,
}

impl Scene {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let now = Arc::new(AtomicI64::new(1_800_000_000_000_000));
        let clock = Arc::clone(&now);
        let store = FileStore::open(dir.path(), SECRET)
            .unwrap()
            .with_clock(Arc::new(move || Timestamp(clock.load(Ordering::SeqCst))))
            .with_upload_idle(Duration::from_millis(500));
        let store = Arc::new(store);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let router = Arc::clone(&store).router();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self {
            store,
            base,
            now,
            http,
            dir,
        }
    }

    pub fn pass(&self, time: Duration) {
        self.now
            .fetch_add(i64::try_from(time.as_micros()).unwrap(), Ordering::SeqCst);
    }

    pub async fn upload_url(&self, key: &str, bytes: &[u8]) -> String {
        self.store
            .grant_upload(&self.base, key, &wanted(bytes))
            .await
            .unwrap()
            .grant
            .url
    }

    pub async fn download_url(&self, key: &str) -> String {
        self.store
            .grant_download(&self.base, key)
            .await
            .unwrap()
            .url
            .unwrap()
    }

    /// The status and the JSON error, if there is one.
    pub async fn put(&self, url: &str, bytes: &[u8]) -> (u16, Value) {
        let answer = self.http.put(url).body(bytes.to_vec()).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap_or(Value::Null))
    }

    pub async fn get(&self, url: &str, range: Option<&str>) -> reqwest::Response {
        let request = self.http.get(url);
        let request = match range {
            Some(range) => request.header("range", range),
            None => request,
        };
        request.send().await.unwrap()
    }

    pub fn object(&self, key: &str) -> PathBuf {
        self.dir.path().join("objects").join(key)
    }

    /// Waits until nothing is being received any more: removal follows the broken connection.
    pub async fn settled(&self) {
        for _ in 0..100 {
            if names(&self.dir.path().join("incoming")).is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("leftovers: {:?}", names(&self.dir.path().join("incoming")));
    }
}

pub fn names(dir: &Path) -> Vec<String> {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect()
}

pub fn digest(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}

pub fn wanted(bytes: &[u8]) -> UploadWanted {
    UploadWanted {
        kind: ObjectKind::Pack,
        size: bytes.len() as u64,
        digest: digest(bytes),
    }
}

/// Bytes that differ by seed and do not repeat.
pub fn content(seed: u8, size: usize) -> Vec<u8> {
    let mut out = vec![0; size];
    blake3::Hasher::new_keyed(&[seed; 32])
        .finalize_xof()
        .fill(&mut out);
    out
}

#[track_caller]
pub fn refused(answer: &(u16, Value), status: u16, code: &str) {
    assert_eq!(
        (answer.0, answer.1["code"].as_str()),
        (status, Some(code)),
        "{answer:?}"
    );
    for field in ["message", "hint"] {
        assert!(
            answer.1[field].as_str().is_some_and(|s| !s.is_empty()),
            "{field}: {answer:?}"
        );
    }
}
