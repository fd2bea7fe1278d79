//! An agent that is the test itself: what lies on the machine is a wire to here.
//!
//! The controller installs a program, starts it over SSH and speaks frames with it. Here that
//! program is a few lines of Python which carry those bytes to a socket of the test. So a machine
//! can be as hostile as a test can write, and nothing of the controller is replaced.

use dumont_core::id::Digest;
use dumont_core::snapshot::{ObjectKind, ObjectRef, RestoreReport, SnapshotReport};
use dumont_core::time::Timestamp;
use dumont_server::AgentBinary;
use dumont_snapshot::{
    NoEvents, ObjectSink, ObjectSource, RestoreOptions, SnapshotOptions, StoreError, restore, snapshot,
};
use dumont_wire::agent::{
    DownloadGrant, Event, Facts, Failure, FailureCode, FromAgent, GpuFact, Outcome, PROTOCOL, ProbeAnswer,
    Request, RestoreRequest, SnapshotRequest, ToAgent, UploadGrant, UploadWanted,
};
use dumont_wire::frame::{Decoder, MARKER, encode};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

static NEVER: AtomicBool = AtomicBool::new(false);

const RELAY: &str = r#"#!/usr/bin/python3
import os, socket, threading
wire = socket.create_connection(("127.0.0.1", PORT))
def down():
    while data := wire.recv(65536):
        while data:
            data = data[os.write(1, data):]
    os._exit(0)
threading.Thread(target=down, daemon=True).start()
while data := os.read(0, 65536):
    wire.sendall(data)
os._exit(0)
"#;

/// What the machine does when it is asked for a snapshot.
pub type Plot = Box<dyn FnOnce(&Talk, &SnapshotRequest) -> Result<SnapshotReport, Failure> + Send>;

/// Every machine's agent, and what it has seen so far.
pub struct Puppet {
    pub agent: AgentBinary,
    pub dir: tempfile::TempDir,
    /// For the next snapshot, instead of an honest one.
    plot: Mutex<Option<Plot>>,
    pub uploads: Mutex<Vec<UploadGrant>>,
    pub downloads: Mutex<Vec<DownloadGrant>>,
    /// What was said to be uploaded, for saying it again.
    pub said: Mutex<Vec<(String, Vec<String>)>>,
}

impl Puppet {
    pub fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let script = RELAY.replace("PORT", &port.to_string());
        let mut gzip = Command::new("gzip")
            .args(["-c", "-n"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        gzip.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let gz = gzip.wait_with_output().unwrap().stdout;
        let digest = blake3::hash(script.as_bytes()).to_hex().to_string();
        let puppet = Arc::new(Self {
            // As those that are built in; a test has one or two.
            agent: AgentBinary {
                gz: gz.leak(),
                digest: digest.leak(),
            },
            dir: tempfile::tempdir().unwrap(),
            plot: Mutex::default(),
            uploads: Mutex::default(),
            downloads: Mutex::default(),
            said: Mutex::default(),
        });
        std::fs::create_dir(puppet.tree()).unwrap();
        let shared = Arc::clone(&puppet);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || shared.session(stream));
            }
        });
        puppet
    }

    /// The workspace's files, whichever machine it is on.
    pub fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    pub fn next_snapshot(&self, plot: Plot) {
        *self.plot.lock().unwrap() = Some(plot);
    }

    fn session(self: &Arc<Self>, mut stream: TcpStream) {
        let out = Arc::new(Mutex::new(stream.try_clone().unwrap()));
        if out.lock().unwrap().write_all(MARKER).is_err() {
            return;
        }
        let beat = Arc::clone(&out);
        std::thread::spawn(move || {
            let event = || Event::Heartbeat {
                now: now(),
                workload: None,
            };
            while say(&beat, 0, event()) {
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        let (mut decoder, mut buffer) = (Decoder::plain(), vec![0; 64 << 10]);
        // One transfer at a time is all that a controller asks for.
        let mut grants: Option<Sender<Request>> = None;
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            decoder.push(&buffer[..n]);
            while let Some(ToAgent { id, body }) = decoder.next_frame().unwrap() {
                match body {
                    Request::Uploads { .. } | Request::Downloads { .. } => {
                        if let Some(grants) = &grants {
                            let _ = grants.send(body);
                        }
                    }
                    Request::Snapshot(_) | Request::Restore(_) => {
                        let (sender, inbox) = channel();
                        grants = Some(sender);
                        let talk = Talk {
                            puppet: Arc::clone(self),
                            out: Arc::clone(&out),
                            id,
                            inbox: Mutex::new(inbox),
                        };
                        std::thread::spawn(move || talk.work(&body));
                    }
                    other => {
                        if let Some(outcome) = answer(&other) {
                            say(&out, id, Event::Done(outcome));
                        }
                    }
                }
            }
        }
    }
}

fn answer(request: &Request) -> Option<Outcome> {
    Some(match request {
        Request::Hello { now: theirs, .. } => Outcome::Hello(Box::new(facts(*theirs))),
        Request::StartWorkload(_) => Outcome::WorkloadStarted { supervisor_pid: 1 },
        Request::StopWorkload => Outcome::WorkloadStopped,
        Request::WorkloadStatus => Outcome::WorkloadStatus { status: None },
        Request::Probe { .. } => Outcome::Probe(ProbeAnswer {
            healthy: true,
            verdict: "trust me".into(),
            output: String::new(),
            elapsed_ms: 1,
        }),
        Request::Ping => Outcome::Pong,
        _ => return None,
    })
}

/// Whatever was promised, it says that it has it.
fn facts(theirs: Timestamp) -> Facts {
    let models = [
        "RTX 3090",
        "RTX 4090",
        "RTX 5090",
        "RTX A6000",
        "A100 PCIE",
        "A100 SXM4",
        "H100 SXM",
    ];
    let gpu = |name: &str| GpuFact {
        name: name.into(),
        memory_mb: 200_000,
        driver_version: "999.0".into(),
    };
    Facts {
        protocol: PROTOCOL,
        agent_version: "0".into(),
        now: theirs,
        clock_skew_ms: 0,
        clock_fix: None,
        hostname: "puppet".into(),
        kernel: "6".into(),
        cpus: 64,
        memory_total_bytes: 1 << 40,
        memory_available_bytes: 1 << 40,
        disk_total_bytes: 1 << 45,
        disk_free_bytes: 1 << 45,
        gpus: std::iter::once(models.join(" "))
            .map(|all| gpu(&all))
            .cycle()
            .take(16)
            .collect(),
        gpu_error: None,
        workload: None,
    }
}

fn now() -> Timestamp {
    Timestamp::from_system(SystemTime::now())
}

fn say(out: &Mutex<TcpStream>, id: u64, body: Event) -> bool {
    let frame = encode(&FromAgent { id, body }).unwrap();
    out.lock().unwrap().write_all(&frame).is_ok()
}

/// One request of the controller's that moves objects.
pub struct Talk {
    puppet: Arc<Puppet>,
    out: Arc<Mutex<TcpStream>>,
    id: u64,
    inbox: Mutex<Receiver<Request>>,
}

impl Talk {
    fn work(&self, request: &Request) {
        let done = match request {
            Request::Snapshot(request) => {
                let plot = self.puppet.plot.lock().unwrap().take();
                let report = match plot {
                    Some(plot) => plot(self, request),
                    None => self.honest(request),
                };
                report.map(|r| Outcome::Snapshot(Box::new(r)))
            }
            Request::Restore(request) => self.restore(request).map(|r| Outcome::Restore(Box::new(r))),
            other => panic!("{other:?}"),
        };
        say(&self.out, self.id, done.map_or_else(Event::Failed, Event::Done));
    }

    /// What a good machine does.
    pub fn honest(&self, request: &SnapshotRequest) -> Result<SnapshotReport, Failure> {
        let options = SnapshotOptions {
            key: None,
            model_files: Vec::new(),
            path: self.puppet.tree(),
            stamp: request.stamp.clone(),
            parent: request.parent.clone(),
            full: request.full,
            cache_path: self.puppet.dir.path().join("cache"),
            workers: 1,
            cancelled: &NEVER,
        };
        snapshot(&options, self, &NoEvents).map_err(failure)
    }

    fn restore(&self, request: &RestoreRequest) -> Result<RestoreReport, Failure> {
        let options = RestoreOptions {
            delete: true,
            cache_path: Some(self.puppet.dir.path().join("cache")),
            ..RestoreOptions::new(self.puppet.tree(), &NEVER)
        };
        restore(&options, &request.head, self, &NoEvents).map_err(failure)
    }

    pub fn send(&self, event: Event) {
        say(&self.out, self.id, event);
    }

    /// `None` if the controller gives none.
    pub fn ask_upload(&self, wanted: UploadWanted) -> Option<UploadGrant> {
        // Held while it asks: answers come in the order of the questions.
        let inbox = self.inbox.lock().unwrap();
        self.send(Event::UploadsWanted {
            objects: vec![wanted],
        });
        let answer = inbox.recv_timeout(Duration::from_secs(20)).ok()?;
        let Request::Uploads { mut grants } = answer else {
            panic!("{answer:?}")
        };
        self.puppet.uploads.lock().unwrap().extend(grants.iter().cloned());
        grants.pop()
    }

    /// Sends an object as it was announced, or other bytes of the same length.
    pub fn upload(&self, kind: ObjectKind, digest: Digest, body: &[u8]) -> Option<ObjectRef> {
        let size = body.len() as u64;
        let grant = self.ask_upload(UploadWanted { kind, size, digest })?;
        let (mut rest, mut parts) = (body, Vec::new());
        for part in &grant.parts {
            let (piece, after) = rest.split_at(part.size as usize);
            rest = after;
            let (status, tag) = crate::http("PUT", &part.url, piece.to_vec());
            assert!(status < 300, "{status}");
            parts.push(tag);
        }
        self.puppet
            .said
            .lock()
            .unwrap()
            .push((grant.key.clone(), parts.clone()));
        self.send(Event::Uploaded {
            key: grant.key.clone(),
            parts,
        });
        Some(ObjectRef {
            key: grant.key,
            size,
            digest,
            version: None,
        })
    }
}

impl ObjectSink for Talk {
    fn put(&self, kind: ObjectKind, digest: Digest, body: &[u8]) -> Result<ObjectRef, StoreError> {
        self.upload(kind, digest, body)
            .ok_or_else(|| StoreError::Transfer("no URL".into()))
    }
}

impl ObjectSource for Talk {
    fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Vec<u8>, StoreError> {
        self.send(Event::DownloadsWanted {
            keys: vec![key.into()],
        });
        let answer = self.inbox.lock().unwrap().recv_timeout(Duration::from_secs(20));
        let Ok(Request::Downloads { grants }) = answer else {
            return Err(StoreError::Transfer(format!("no URL for {key}")));
        };
        self.puppet
            .downloads
            .lock()
            .unwrap()
            .extend(grants.iter().cloned());
        let url = grants[0]
            .url
            .clone()
            .ok_or_else(|| StoreError::Missing(key.into()))?;
        crate::fetch(&url, range).map_err(|status| match status {
            404 => StoreError::Missing(key.into()),
            _ => StoreError::Transfer(format!("{key}: {status}")),
        })
    }
}

fn failure(e: dumont_snapshot::Error) -> Failure {
    Failure {
        code: FailureCode::Internal,
        message: e.to_string(),
        hint: String::new(),
    }
}
