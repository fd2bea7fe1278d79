//! How fast the agent restores from a real S3 server, next to a raw parallel download of the
//! same files to the same disk: `scripts/bench-restore-s3`.
//!
//! The agent is the one that machines get, started as they start it and spoken to in frames;
//! it reads presigned URLs of SeaweedFS on loopback, decodes, verifies every chunk and walks
//! the tree at the end. The raw download (`raw_download.py`) takes the files as they are, by
//! ranges of 16 MiB on as many connections, and verifies nothing. Runs alternate; medians.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark that cannot run ends"
)]

#[path = "../tests/world/bucket.rs"]
#[allow(dead_code, reason = "its other parts are for tests")]
mod bucket;

use bucket::Weed;
use dumont_core::id::Digest;
use dumont_core::snapshot::{ObjectKind, RestoreReport, SnapshotHead, SnapshotReport, Verdict};
use dumont_core::time::Timestamp;
use dumont_server::objects::ObjectStore;
use dumont_server::objects::s3::S3Store;
use dumont_wire::agent::{
    Event, FromAgent, Outcome, PROTOCOL, Request, RestoreRequest, SnapshotRequest, ToAgent, UploadWanted,
};
use dumont_wire::frame::{Decoder, encode};
use std::collections::HashMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout};

/// What both use; four saturate two cores.
const CONNECTIONS: u32 = 4;
const FILES: u64 = 4;

fn option(name: &str, default: u64) -> u64 {
    let args: Vec<String> = std::env::args().collect();
    let at = args.iter().position(|a| a == name);
    at.and_then(|at| args.get(at + 1))
        .map_or(default, |v| v.parse().expect("a number"))
}

#[tokio::main]
async fn main() {
    let (megabytes, rounds) = (option("--size-mb", 3072), option("--rounds", 3));
    let least = option("--at-least-percent", 0);
    let dir =
        tempfile::tempdir_in(std::env::var_os("BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from))
            .unwrap();
    let weed = Weed::start().await;
    let store = S3Store::new(weed.config(), None).unwrap();
    let agent = unpack_agent(dir.path());
    let tree = dir.path().join("tree");
    make_weights(&tree, megabytes << 20);

    let mut session = Session::start(&agent, &dir.path().join("home-1")).await;
    let report = session.snapshot(&store, &tree).await;
    let stored: u64 = report.packs.iter().map(|p| p.size).sum();
    drop(session);
    let list = dir.path().join("raw.json");
    fs::write(&list, upload_raw(&store, &tree).await).unwrap();
    println!(
        "{megabytes} MiB of bf16 weights in {FILES} files, {:.1} % of it stored; SeaweedFS, this agent and the raw \
         download share {} cores",
        stored as f64 * 100.0 / (megabytes << 20) as f64,
        std::thread::available_parallelism().map_or(0, usize::from),
    );

    let (mut raw, mut ours) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let to = dir.path().join(format!("raw-{round}"));
        fs::create_dir(&to).unwrap();
        raw.push(download_raw(&list, &to));
        check_same(&tree, &to);
        fs::remove_dir_all(&to).unwrap();
        settle();
        let to = dir.path().join(format!("restored-{round}"));
        let mut session = Session::start(&agent, &dir.path().join(format!("home-{}", round + 2))).await;
        let begin = Instant::now();
        let restored = session.restore(&store, &to, &report).await;
        ours.push(begin.elapsed());
        assert_eq!(restored.validation.validation, Verdict::Ok);
        check_same(&tree, &to);
        fs::remove_dir_all(&to).unwrap();
        settle();
        println!(
            "round {}: raw {:.2} s, restore {:.2} s (validation {:.2} s of it; agent's peak memory {} MB)",
            round + 1,
            raw[raw.len() - 1].as_secs_f64(),
            ours[ours.len() - 1].as_secs_f64(),
            restored.validation_ms as f64 / 1000.0,
            session.peak_mb(),
        );
    }
    let (raw, ours) = (median(raw), median(ours));
    let speed = |time: Duration| (megabytes << 20) as f64 / 1e6 / time.as_secs_f64();
    let percent = raw.as_secs_f64() * 100.0 / ours.as_secs_f64();
    println!(
        "median: raw {:.2} s ({:.0} MB/s), restore {:.2} s ({:.0} MB/s): {percent:.0} % of the raw speed",
        raw.as_secs_f64(),
        speed(raw),
        ours.as_secs_f64(),
        speed(ours),
    );
    if percent < least as f64 {
        eprintln!("bench-restore-s3: less than {least} % of the raw speed");
        std::process::exit(1);
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// What one run wrote must not be written back during the next.
fn settle() {
    let _ = Command::new("sync").status();
}

fn unpack_agent(dir: &Path) -> PathBuf {
    let path = dir.join("agent");
    let mut gzip = Command::new("gzip")
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(fs::File::create(&path).unwrap())
        .spawn()
        .expect("gzip runs");
    std::io::Write::write_all(&mut gzip.stdin.take().unwrap(), dumont_agent_embed::AGENT_GZ).unwrap();
    assert!(gzip.wait().unwrap().success());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// 16-bit floats, normally distributed, as a model's weights are.
fn make_weights(to: &Path, bytes: u64) {
    fs::create_dir(to).unwrap();
    for file in 0..FILES {
        let mut out =
            std::io::BufWriter::new(fs::File::create(to.join(format!("{file}.safetensors"))).unwrap());
        let mut random = blake3::Hasher::new().update(&file.to_le_bytes()).finalize_xof();
        let mut block = vec![0_u8; 1 << 20];
        let mut left = bytes / FILES;
        while left > 0 {
            random.fill(&mut block);
            let floats: Vec<u8> = block
                .as_chunks::<4>()
                .0
                .iter()
                .flat_map(|r| {
                    // The sum of four uniform bytes is near enough to a normal distribution.
                    let sum: i32 = r.iter().map(|b| i32::from(*b)).sum::<i32>() - 510;
                    let value = sum as f32 * 1e-4 + f32::from(r[0] ^ r[3]) * 1e-7;
                    let [_, _, low, high] = value.to_bits().to_le_bytes();
                    [low, high]
                })
                .collect();
            let take = floats.len().min(left as usize);
            std::io::Write::write_all(&mut out, &floats[..take]).unwrap();
            left -= take as u64;
        }
    }
}

fn names(tree: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(tree)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn check_same(a: &Path, b: &Path) {
    assert_eq!(names(a), names(b));
    for name in names(a) {
        let (mut a, mut b) = (
            fs::File::open(a.join(&name)).unwrap(),
            fs::File::open(b.join(&name)).unwrap(),
        );
        let (mut x, mut y) = (vec![0; 4 << 20], vec![0; 4 << 20]);
        loop {
            let n = a.read(&mut x).unwrap();
            b.read_exact(&mut y[..n]).unwrap();
            assert!(x[..n] == y[..n], "{name} differs");
            if n == 0 {
                break;
            }
        }
    }
}

/// The same files as they are, and where the raw download finds them.
async fn upload_raw(store: &S3Store, tree: &Path) -> String {
    let http = reqwest::Client::new();
    let mut list = Vec::new();
    for name in names(tree) {
        let key = format!("workspaces/raw/{name}");
        let path = tree.join(&name);
        let size = fs::metadata(&path).unwrap().len();
        let wanted = UploadWanted {
            kind: ObjectKind::Pack,
            size,
            digest: Digest([0; 32]),
        };
        let ticket = store.grant_upload("", &key, &wanted).await.unwrap();
        let mut file = fs::File::open(&path).unwrap();
        let mut tags = Vec::new();
        for part in &ticket.grant.parts {
            let mut body = vec![0; part.size as usize];
            file.read_exact(&mut body).unwrap();
            let answer = http.put(&part.url).body(body).send().await.unwrap();
            tags.push(answer.headers()["etag"].to_str().unwrap().to_owned());
        }
        store
            .complete(&key, &ticket.upload_id.unwrap(), size, &tags)
            .await
            .unwrap();
        let url = store.grant_download("", &key).await.unwrap().url;
        list.push(serde_json::json!({ "url": url, "name": name, "size": size }));
    }
    serde_json::to_string(&list).unwrap()
}

fn download_raw(list: &Path, to: &Path) -> Duration {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/raw_download.py");
    let begin = Instant::now();
    let status = Command::new("python3")
        .arg(script)
        .arg(list)
        .arg(to)
        .arg(CONNECTIONS.to_string())
        .status()
        .expect("python3 runs");
    assert!(status.success());
    begin.elapsed()
}

/// The agent, as a controller talks to it.
struct Session {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    decoder: Decoder,
    uploads: HashMap<String, (String, u64)>,
}

impl Session {
    async fn start(agent: &Path, home: &Path) -> Self {
        fs::create_dir(home).unwrap();
        let mut child = tokio::process::Command::new(agent)
            .arg("session")
            .env("HOME", home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut session = Self {
            child,
            stdin,
            stdout,
            decoder: Decoder::after_marker(),
            uploads: HashMap::new(),
        };
        session
            .send(
                1,
                Request::Hello {
                    protocol: PROTOCOL,
                    now: Timestamp::from_system(SystemTime::now()),
                    path: "/".into(),
                    heartbeat_ms: 0,
                    store_ca: None,
                },
            )
            .await;
        assert!(matches!(
            session.frame().await.body,
            Event::Done(Outcome::Hello(_))
        ));
        session
    }

    async fn send(&mut self, id: u64, body: Request) {
        let bytes = encode(&ToAgent { id, body }).unwrap();
        self.stdin.write_all(&bytes).await.unwrap();
        self.stdin.flush().await.unwrap();
    }

    async fn frame(&mut self) -> FromAgent {
        let mut buffer = vec![0; 64 << 10];
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return frame;
            }
            let n = self.stdout.read(&mut buffer).await.unwrap();
            assert!(n > 0, "the agent ended");
            self.decoder.push(&buffer[..n]);
        }
    }

    async fn run(&mut self, store: &S3Store, request: Request) -> Outcome {
        self.send(2, request).await;
        loop {
            match self.frame().await.body {
                Event::Done(outcome) => return outcome,
                Event::Failed(failure) => panic!("{failure}"),
                Event::UploadsWanted { objects } => {
                    let mut grants = Vec::new();
                    for want in &objects {
                        let key = format!("workspaces/bench/{}", ulid::Ulid::generate());
                        let ticket = store.grant_upload("", &key, want).await.unwrap();
                        self.uploads.insert(key, (ticket.upload_id.unwrap(), want.size));
                        grants.push(ticket.grant);
                    }
                    self.send(2, Request::Uploads { grants }).await;
                }
                Event::Uploaded { key, parts } => {
                    let (id, size) = self.uploads.remove(&key).unwrap();
                    store.complete(&key, &id, size, &parts).await.unwrap();
                }
                Event::DownloadsWanted { keys } => {
                    let mut grants = Vec::new();
                    for key in &keys {
                        grants.push(store.grant_download("", key).await.unwrap());
                    }
                    self.send(2, Request::Downloads { grants }).await;
                }
                _ => {}
            }
        }
    }

    async fn snapshot(&mut self, store: &S3Store, tree: &Path) -> SnapshotReport {
        let request = SnapshotRequest {
            model_files: Vec::new(),
            key: None,
            path: tree.to_str().unwrap().into(),
            stamp: "1-1".into(),
            parent: None,
            full: true,
            hooks: None,
        };
        match self.run(store, Request::Snapshot(request)).await {
            Outcome::Snapshot(report) => *report,
            other => panic!("{other:?}"),
        }
    }

    async fn restore(&mut self, store: &S3Store, to: &Path, report: &SnapshotReport) -> RestoreReport {
        let request = RestoreRequest {
            ready_when: Vec::new(),
            started: false,
            include: Vec::new(),
            exclude: Vec::new(),
            key: None,
            path: to.to_str().unwrap().into(),
            head: SnapshotHead {
                snapshot_id: report.snapshot_id.clone(),
                root: report.root,
                indexes: report.index.iter().cloned().collect(),
                files: report.files_total,
                bytes: report.total_bytes,
            },
            delete: false,
            priority: Vec::new(),
        };
        match self.run(store, Request::Restore(request)).await {
            Outcome::Restore(report) => *report,
            other => panic!("{other:?}"),
        }
    }

    fn peak_mb(&self) -> u64 {
        let pid = self.child.id().unwrap_or(0);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let kb = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
        kb.unwrap_or(0) / 1024
    }
}
