//! A controller in miniature: it spawns the agent, speaks frames and grants URLs of a store
//! that runs in the test.

#![allow(dead_code, reason = "every test file uses another part of it")]

pub mod store;

use dumont_core::probe::Probe;
use dumont_core::time::Timestamp;
use dumont_wire::agent::{
    DownloadGrant, Event, Facts, Failure, FromAgent, Outcome, PROTOCOL, Request, ToAgent, UploadGrant,
    Workload, WorkloadStatus,
};
use dumont_wire::frame::{Decoder, encode};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant, SystemTime};
use store::Store;

pub const BINARY: &str = env!("CARGO_BIN_EXE_dumont-agent");
/// Long enough for a loaded machine; no passing test waits for it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A probe that is a shell command.
pub fn shell(command: &str) -> Probe {
    Probe::Command {
        command: command.into(),
        timeout_s: 60,
    }
}

pub struct Agent {
    pub child: Child,
    stdin: Option<ChildStdin>,
    frames: Receiver<FromAgent>,
    store: Option<Arc<Store>>,
    pub seen: Vec<FromAgent>,
    next: u64,
}

impl Agent {
    /// `home` stands for the machine: agents with the same one are on the same machine.
    pub fn spawn(home: &Path) -> Self {
        // A clock that cannot be set: a test may tell the agent any time, and run as root.
        Self::spawn_as(
            Command::new(BINARY)
                .env("HOME", home)
                .args(["session", "--clock-offset-ms", "0"]),
        )
    }

    pub fn spawn_as(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let (frames, inbox) = channel();
        std::thread::spawn(move || {
            let (mut decoder, mut buffer) = (Decoder::after_marker(), [0; 4096]);
            while let Ok(n @ 1..) = stdout.read(&mut buffer) {
                decoder.push(&buffer[..n]);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    let _ = frames.send(frame);
                }
            }
        });
        let stdin = child.stdin.take();
        Self {
            child,
            stdin,
            frames: inbox,
            store: None,
            seen: Vec::new(),
            next: 1,
        }
    }

    /// Spawned and greeted.
    pub fn ready(home: &Path) -> Self {
        let mut agent = Self::spawn(home);
        agent.hello(0);
        agent
    }

    pub fn with_store(mut self, store: &Arc<Store>) -> Self {
        self.store = Some(Arc::clone(store));
        self
    }

    pub fn hello(&mut self, heartbeat_ms: u64) -> Facts {
        match self.ask(Request::Hello {
            protocol: PROTOCOL,
            now: now(),
            path: "/".into(),
            heartbeat_ms,
            store_ca: None,
        }) {
            Ok(Outcome::Hello(facts)) => *facts,
            other => panic!("{other:?}"),
        }
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    pub fn send(&mut self, id: u64, body: Request) {
        self.raw(&encode(&ToAgent { id, body }).unwrap());
    }

    /// Sends under a new id, which is returned.
    pub fn begin(&mut self, body: Request) -> u64 {
        let id = self.next;
        self.next += 1;
        self.send(id, body);
        id
    }

    pub fn ask(&mut self, body: Request) -> Result<Outcome, Failure> {
        let id = self.begin(body);
        self.finish(id)
    }

    /// Serves grants until request `id` ends.
    pub fn finish(&mut self, id: u64) -> Result<Outcome, Failure> {
        loop {
            let frame = self.frame();
            match frame.body {
                Event::Done(outcome) if frame.id == id => return Ok(outcome),
                Event::Failed(failure) if frame.id == id => return Err(failure),
                _ => {}
            }
        }
    }

    /// The next frame; questions for URLs are answered on the way.
    pub fn frame(&mut self) -> FromAgent {
        self.frame_within(PATIENCE).expect("a frame in time")
    }

    pub fn frame_within(&mut self, limit: Duration) -> Result<FromAgent, RecvTimeoutError> {
        let frame = self.frames.recv_timeout(limit)?;
        if let Some(store) = self.store.clone() {
            match &frame.body {
                Event::UploadsWanted { objects } => {
                    let grants: Vec<UploadGrant> = objects.iter().map(|o| store.grant_upload(o)).collect();
                    self.send(frame.id, Request::Uploads { grants });
                }
                Event::DownloadsWanted { keys } => {
                    let grants: Vec<DownloadGrant> = keys.iter().map(|k| store.grant_download(k)).collect();
                    self.send(frame.id, Request::Downloads { grants });
                }
                _ => {}
            }
        }
        self.seen.push(frame.clone());
        Ok(frame)
    }

    /// The SSH session ends: the agent's stdin closes.
    pub fn hang_up(&mut self) {
        self.stdin = None;
    }

    /// Whether the process ended within the limit.
    pub fn ended_within(&mut self, limit: Duration) -> bool {
        eventually(limit, || self.child.try_wait().unwrap().is_some())
    }

    pub fn start(&mut self, path: &Path, start: &str) -> Result<u32, Failure> {
        let env = [("GREETING".into(), "good day".into())].into();
        let workload = Workload {
            start: start.into(),
            path: path.to_str().unwrap().into(),
            env,
        };
        self.ask(Request::StartWorkload(workload))
            .map(|outcome| match outcome {
                Outcome::WorkloadStarted { supervisor_pid } => supervisor_pid,
                other => panic!("{other:?}"),
            })
    }

    pub fn stop(&mut self) {
        assert_eq!(self.ask(Request::StopWorkload), Ok(Outcome::WorkloadStopped));
    }

    pub fn status(&mut self) -> Option<WorkloadStatus> {
        match self.ask(Request::WorkloadStatus) {
            Ok(Outcome::WorkloadStatus { status }) => status,
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Stops the workload when a test ends, however it ends.
pub struct Machine {
    pub home: tempfile::TempDir,
}

impl Machine {
    pub fn new() -> Self {
        Self {
            home: tempfile::tempdir().unwrap(),
        }
    }
    pub fn path(&self) -> &Path {
        self.home.path()
    }
    pub fn workspace(&self) -> std::path::PathBuf {
        let path = self.path().join("workspace");
        std::fs::create_dir_all(&path).unwrap();
        path
    }
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path().join(".dumont/workload/log")).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let lock = self.path().join(".dumont/workload/lock");
        let text = std::fs::read_to_string(lock).unwrap_or_default();
        let pid = text.split(&[':', ','][..]).nth(1).unwrap_or_default().to_owned();
        if !pid.is_empty() && program_of(&pid).ends_with("dumont-agent") {
            let _ = Command::new("kill").args(["-9", &pid]).status();
        }
    }
}

fn program_of(pid: &str) -> String {
    std::fs::read_link(format!("/proc/{pid}/exe"))
        .map(|p| p.display().to_string())
        .unwrap_or_default()
}

pub fn now() -> Timestamp {
    Timestamp::from_system(SystemTime::now())
}

pub fn eventually(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + limit;
    while Instant::now() < until {
        if holds() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    holds()
}

/// Neither gone nor a zombie.
pub fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}
