//! The detached process that keeps the workload running when SSH is gone.
//!
//! It has a session and a process group of its own, so that no hang-up reaches it, and one
//! lock, so that there is never a second one. It is the subreaper of everything below it:
//! containers often have a first process that never reaps, and a stopped workload must be
//! gone, not a zombie. What detaches itself from the process group is found by the mark in
//! its environment. The workload in turn dies with its supervisor (`exec::shell`), so that
//! a workspace has at most one live writer even after `kill -9`.

use crate::environment::environment;
use crate::exec;
use crate::facts::now;
use crate::home::write_private;
use crate::job::lock;
use crate::lock::try_hold;
use crate::logfile::LogFile;
use crate::procs::{self, Process};
use crate::workload::{Files, Spec, State};
use dumont_wire::agent::WorkloadStatus;
use rustix::process::{Signal, WaitOptions, WaitStatus, wait};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::{self, PipeWriter, Read};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A run this long was healthy: the next failure is a new one.
const HEALTHY: Duration = Duration::from_secs(60);
/// Between asking the workload to end and ending it.
pub const STOP_GRACE: Duration = Duration::from_secs(5);

enum Event {
    Exited { pid: u32, code: i32 },
    Stop,
}

/// `dumont-agent supervise DIR`.
pub fn run(dir: &Path) -> io::Result<()> {
    // Fails only if we lead a session already, which is as good.
    let _ = rustix::process::setsid();
    let files = Files::new(dir);
    std::env::set_current_dir("/")?;
    let _held = hold(&files)?;
    let spec: Spec = serde_json::from_slice(&std::fs::read(files.spec())?)?;
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    let (events, inbox) = channel();
    watch_signals(events.clone())?;
    let log = Arc::new(Mutex::new(LogFile::open(&files.log())));
    let pipe = collect_output(Arc::clone(&log))?;
    let status = WorkloadStatus {
        running: false,
        pid: None,
        restarts: 0,
        last_exit: None,
        started_at: None,
    };
    let state = State {
        supervisor: Process::current(),
        mark: spec.mark.clone(),
        workload: None,
        status,
    };
    Supervisor {
        files,
        spec,
        state,
        log,
        pipe,
        events,
        inbox,
    }
    .run();
    Ok(())
}

/// A session that looks whether we are there takes the lock for a moment, so try for a while.
fn hold(files: &Files) -> io::Result<crate::lock::Held> {
    for _ in 0..100 {
        if let Some(held) = try_hold(&files.lock())? {
            return Ok(held);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(io::Error::other("another supervisor is running"))
}

fn watch_signals(events: Sender<Event>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if signal != SIGHUP && events.send(Event::Stop).is_err() {
                    return;
                }
            }
        })?;
    Ok(())
}

fn collect_output(log: Arc<Mutex<LogFile>>) -> io::Result<PipeWriter> {
    let (mut reader, writer) = io::pipe()?;
    std::thread::Builder::new().name("log".into()).spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(n @ 1..) = reader.read(&mut buffer) {
            lock(&log).write(&buffer[..n]);
        }
    })?;
    Ok(writer)
}

struct Supervisor {
    files: Files,
    spec: Spec,
    state: State,
    log: Arc<Mutex<LogFile>>,
    pipe: PipeWriter,
    events: Sender<Event>,
    inbox: Receiver<Event>,
}

impl Supervisor {
    fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let began = Instant::now();
            let Some(code) = self.run_once() else { break };
            procs::kill_marked(&self.spec.mark, STOP_GRACE);
            reap();
            if began.elapsed() >= HEALTHY {
                pause = FIRST_PAUSE;
            }
            self.ended(Some(code));
            self.say(&format!(
                "ended with {code}; starts again in {:.1} s",
                pause.as_secs_f64()
            ));
            if matches!(self.inbox.recv_timeout(pause), Ok(Event::Stop)) {
                break;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
            self.state.status.restarts += 1;
        }
        self.ended(self.state.status.last_exit);
        self.say("stopped on request");
    }

    /// The code with which the workload ended, or `None` if it was stopped on request.
    fn run_once(&mut self) -> Option<i32> {
        let pid = match self.start() {
            Ok(pid) => pid,
            Err(e) => {
                self.say(&format!("cannot be started: {e}"));
                self.record();
                return Some(127);
            }
        };
        self.state.workload = Some(Process::new(pid));
        let status = &mut self.state.status;
        (status.running, status.pid, status.started_at) = (true, Some(pid), Some(now()));
        self.record();
        loop {
            match self.inbox.recv() {
                Ok(Event::Exited { pid: ended, code }) if ended == pid => return Some(code),
                Ok(Event::Exited { .. }) => {}
                Ok(Event::Stop) | Err(_) => {
                    self.stop(pid);
                    return None;
                }
            }
        }
    }

    /// Runs on the main thread: the kernel takes the end of the *thread* that forked for the
    /// parent's death.
    fn start(&self) -> io::Result<u32> {
        let workload = &self.spec.workload;
        let mut command = exec::shell(&workload.start);
        command.env_clear().envs(environment(Some(workload)));
        if let Some((name, value)) = self.spec.mark.split_once('=') {
            command.env(name, value);
        }
        command.current_dir(&workload.path).stdin(Stdio::null());
        command
            .stdout(self.pipe.try_clone()?)
            .stderr(self.pipe.try_clone()?);
        let pid = command.spawn()?.id();
        let events = self.events.clone();
        std::thread::Builder::new()
            .name("wait".into())
            .spawn(move || wait_for(pid, &events))?;
        Ok(pid)
    }

    fn stop(&mut self, pid: u32) {
        exec::kill_group(pid, Signal::TERM);
        let until = Instant::now() + STOP_GRACE;
        let mut leader_ended = false;
        while Instant::now() < until {
            match self.inbox.recv_timeout(Duration::from_millis(20)) {
                Ok(Event::Exited { pid: ended, code }) if ended == pid => {
                    self.state.status.last_exit = Some(code);
                    leader_ended = true;
                }
                _ => {}
            }
            if leader_ended && procs::marked(&self.spec.mark).is_empty() {
                break;
            }
        }
        exec::kill_group(pid, Signal::KILL);
        procs::kill_marked(&self.spec.mark, STOP_GRACE);
        reap();
    }

    fn ended(&mut self, code: Option<i32>) {
        self.state.workload = None;
        let status = &mut self.state.status;
        (status.running, status.pid, status.last_exit) = (false, None, code);
        self.record();
    }

    /// A full disk must not stop the workload, so this never fails.
    fn record(&self) {
        if let Ok(bytes) = serde_json::to_vec(&self.state) {
            let _ = write_private(&self.files.status(), &bytes);
        }
    }

    fn say(&self, what: &str) {
        lock(&self.log).write(format!("[dumont] {what}\n").as_bytes());
    }
}

/// Reaps whatever ends below us until `leader` does. (`wait`, because `waitpid(None)` means our
/// own process group only, and the workload has left it.)
fn wait_for(leader: u32, events: &Sender<Event>) {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) => {
                let pid = pid.as_raw_nonzero().get().unsigned_abs();
                if events
                    .send(Event::Exited {
                        pid,
                        code: code_of(status),
                    })
                    .is_err()
                    || pid == leader
                {
                    return;
                }
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => {
                // No child at all: somebody else reaped it, and its code is lost.
                let _ = events.send(Event::Exited {
                    pid: leader,
                    code: -1,
                });
                return;
            }
        }
    }
}

fn code_of(status: WaitStatus) -> i32 {
    status
        .exit_status()
        .or_else(|| status.terminating_signal().map(|s| -s))
        .unwrap_or(-1)
}

fn reap() {
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}
