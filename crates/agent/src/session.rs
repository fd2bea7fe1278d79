//! One SSH session: frames in, frames out, and the end of input is the end of everything.
//!
//! The thread that reads stdin never waits for anything else: a request that takes time runs
//! on a thread of its own, so that pings, cancellations and granted URLs get through while a
//! snapshot runs. And when stdin ends, the process exits there and then, whatever its threads
//! are doing: an SSH connection that is gone means that another controller, or another
//! machine, may already be working on the same workspace.

use crate::clock::{self, Clock};
use crate::engine;
use crate::facts;
use crate::home::Home;
use crate::job::{Job, lock};
use crate::out::{Out, failure};
use crate::probe;
use crate::tls::Trust;
use crate::workload;
use dumont_core::time::Timestamp;
use dumont_wire::agent::{Event, Failure, FailureCode, Outcome, PROTOCOL, Request, SESSION, ToAgent};
use dumont_wire::frame::{Decoder, FrameError};
use serde_json::Value;
use std::collections::HashMap;
use std::ffi::CString;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A controller has a handful of requests in flight; more is a controller gone wrong.
const MAX_JOBS: usize = 32;

struct Session {
    home: Home,
    clock: Box<dyn Clock>,
    out: Arc<Out>,
    jobs: Mutex<HashMap<u64, Arc<Job>>>,
    /// Set by the first Hello, for probes before there is a workload.
    path: Mutex<Option<String>>,
    /// Whom to believe about the store: the controller's clock and its authority.
    trust: Mutex<Trust>,
    heartbeat_ms: AtomicU64,
    beating: AtomicBool,
}

/// `dumont-agent session`: returns when stdin ends.
pub fn run(clock: Box<dyn Clock>) -> io::Result<()> {
    // What watches over the instance's lease looks for this name.
    rustix::thread::set_name(&CString::new(SESSION)?)?;
    let session = Arc::new(Session {
        home: Home::locate(),
        clock,
        out: Arc::new(Out::start()?),
        jobs: Mutex::default(),
        path: Mutex::default(),
        trust: Mutex::default(),
        heartbeat_ms: AtomicU64::new(0),
        beating: AtomicBool::new(false),
    });
    let mut stdin = std::fs::File::from(rustix::io::dup(rustix::stdio::stdin())?);
    let mut decoder = Decoder::plain();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stdin.read(&mut buffer) {
            Ok(0) | Err(_) => std::process::exit(0),
            Ok(n) => decoder.push(&buffer[..n]),
        }
        session.take_frames(&mut decoder)?;
    }
}

impl Session {
    /// An error means that the stream itself cannot be read any further.
    fn take_frames(self: &Arc<Self>, decoder: &mut Decoder) -> io::Result<()> {
        loop {
            // First any JSON, so that a message from a newer peer is answered under its id.
            match decoder.next_frame::<Value>() {
                Ok(None) => return Ok(()),
                Ok(Some(value)) => self.take(value),
                Err(FrameError::Malformed(e)) => self.invalid(0, &format!("not JSON: {e}")),
                Err(e) => {
                    self.invalid(0, &e.to_string());
                    self.out.drain();
                    return Err(io::Error::other(e));
                }
            }
        }
    }

    fn invalid(&self, id: u64, what: &str) {
        let what: String = what.chars().take(300).collect();
        let hint = "the agent and the controller differ; install the agent again";
        self.out.fail(id, failure(FailureCode::Invalid, what, hint));
    }

    fn take(self: &Arc<Self>, value: Value) {
        let id = value.get("id").and_then(Value::as_u64).unwrap_or(0);
        match serde_json::from_value(value) {
            Ok(ToAgent { id: 0, .. }) => self.invalid(0, "a request's id is never 0"),
            Ok(message) => self.dispatch(message.id, message.body),
            Err(e) => self.invalid(id, &format!("not a known request: {e}")),
        }
    }

    fn dispatch(self: &Arc<Self>, id: u64, request: Request) {
        let job = || lock(&self.jobs).get(&id).cloned();
        match request {
            Request::Hello { protocol, .. } if protocol > PROTOCOL => {
                let message = format!("the controller speaks protocol {protocol}, this agent {PROTOCOL}");
                let hint = "install the agent that comes with the controller";
                self.out.fail(id, failure(FailureCode::Version, message, hint));
            }
            Request::Hello {
                now: theirs,
                path,
                heartbeat_ms,
                store_ca,
                ..
            } => {
                *lock(&self.path) = Some(path.clone());
                *lock(&self.trust) = Trust::new(theirs, store_ca.as_deref());
                self.heartbeat_ms.store(heartbeat_ms, Ordering::Relaxed);
                let received = self.clock.now();
                self.beat();
                let home = self.home.clone();
                // Its commands may take their time; nobody waits for them.
                let tidy = std::thread::Builder::new().name("tidy".into());
                if let Err(e) = tidy.spawn(move || engine::after_a_death(&home)) {
                    eprintln!("dumont-agent: no thread: {e}");
                }
                self.work(id, move |s, _| Ok(s.hello(&path, received, theirs)));
            }
            _ if lock(&self.path).is_none() => {
                self.out.fail(
                    id,
                    failure(FailureCode::Invalid, "the first request must be Hello", "send it"),
                );
            }
            Request::Ping => self.out.send(id, Event::Done(Outcome::Pong)),
            // An answer or a cancellation for a job that has just ended crossed its end.
            Request::Cancel => job().iter().for_each(|j| j.cancel()),
            Request::Uploads { grants } => job().iter().for_each(|j| j.deliver_uploads(grants.clone())),
            Request::Downloads { grants } => job().iter().for_each(|j| j.deliver_downloads(grants.clone())),
            Request::Snapshot(r) => self.work(id, move |s, job| engine::take_snapshot(job, &s.home, r)),
            Request::Restore(r) => self.work(id, move |s, job| engine::do_restore(job, &s.home, &r)),
            Request::CompareModels(r) => self.work(id, move |_, job| engine::models(job, &r)),
            Request::StartWorkload(w) => self.work(id, move |s, _| {
                let supervisor_pid = workload::start(&s.home.workload(), w)?;
                Ok(Outcome::WorkloadStarted { supervisor_pid })
            }),
            Request::StopWorkload => self.work(id, |s, _| {
                workload::stop(&s.home.workload()).map(|()| Outcome::WorkloadStopped)
            }),
            Request::WorkloadStatus => self.work(id, |s, _| {
                Ok(Outcome::WorkloadStatus {
                    status: workload::status(&s.home.workload()),
                })
            }),
            Request::Probe { probe, timeout_ms } => self.work(id, move |s, job| {
                let path = lock(&s.path).clone().unwrap_or_default();
                probe::run(
                    job,
                    &s.home.workload(),
                    &path,
                    &probe,
                    Duration::from_millis(timeout_ms),
                )
            }),
        }
    }

    /// Runs one request on a thread of its own and answers it exactly once.
    fn work<F>(self: &Arc<Self>, id: u64, what: F)
    where
        F: FnOnce(&Self, &Job) -> Result<Outcome, Failure> + Send + 'static,
    {
        let job = Arc::new(Job::new(id, Arc::clone(&self.out), &lock(&self.trust)));
        {
            let mut jobs = lock(&self.jobs);
            if jobs.contains_key(&id) {
                return self.invalid(id, "a request with this id is still running");
            }
            if jobs.len() >= MAX_JOBS {
                let message = format!("{MAX_JOBS} requests are running already");
                return self
                    .out
                    .fail(id, failure(FailureCode::Busy, message, "wait until one ends"));
            }
            jobs.insert(id, Arc::clone(&job));
        }
        let session = Arc::clone(self);
        let thread = std::thread::Builder::new()
            .name(format!("request {id}"))
            .spawn(move || {
                let result = what(&session, &job);
                // Off the list first: who has the answer may use the id again.
                lock(&session.jobs).remove(&id);
                session
                    .out
                    .send(id, result.map_or_else(Event::Failed, Event::Done));
            });
        if let Err(e) = thread {
            lock(&self.jobs).remove(&id);
            let hint = "the machine may be out of processes or memory";
            self.out.fail(
                id,
                failure(FailureCode::Internal, format!("no thread: {e}"), hint),
            );
        }
    }

    /// Starts the heartbeats with the first Hello; a later one changes their interval.
    fn beat(self: &Arc<Self>) {
        if self.beating.swap(true, Ordering::Relaxed) {
            return;
        }
        let session = Arc::clone(self);
        let thread = std::thread::Builder::new()
            .name("heartbeat".into())
            .spawn(move || {
                loop {
                    let ms = session.heartbeat_ms.load(Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(if ms == 0 { 500 } else { ms }));
                    if ms > 0 {
                        let workload = workload::status(&session.home.workload());
                        let now = session.clock.now();
                        session.out.send_if_read(0, Event::Heartbeat { now, workload });
                    }
                }
            });
        if thread.is_err() {
            self.beating.store(false, Ordering::Relaxed);
        }
    }

    fn hello(&self, path: &str, received: Timestamp, theirs: Timestamp) -> Outcome {
        let status = workload::status(&self.home.workload());
        let fix = clock::correct(self.clock.as_ref(), received, theirs);
        Outcome::Hello(Box::new(facts::collect(path, received, theirs, fix, status)))
    }
}
