//! One request in flight: what cancels it, and where its granted URLs arrive.
//!
//! The controller answers `UploadsWanted` in the order of the objects in it, but may answer
//! two of them in either order; so a job asks one question at a time. Parallel uploads wait
//! for each other only while asking, never while sending.

use crate::http::Http;
use crate::out::{Out, failure};
use crate::tls::Trust;
use dumont_wire::agent::{DownloadGrant, Event, Failure, FailureCode, UploadGrant, UploadWanted};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The controller signs without asking anybody; this long means it is not there any more.
const GRANT_WAIT: Duration = Duration::from_secs(120);

pub struct Job {
    pub id: u64,
    pub out: Arc<Out>,
    pub http: Http,
    /// The same as `state.cancelled`, in the form that the engine looks at.
    pub stop: AtomicBool,
    asking: Mutex<()>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    cancelled: bool,
    uploads: VecDeque<Vec<UploadGrant>>,
    downloads: VecDeque<Vec<DownloadGrant>>,
    failure: Option<Failure>,
}

/// A lock whose holder panicked is taken all the same: the program aborts on panic anyway.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn cancelled() -> Failure {
    failure(
        FailureCode::Cancelled,
        "given up on request",
        "ask again when it is wanted",
    )
}

impl Job {
    pub fn new(id: u64, out: Arc<Out>, trust: &Trust) -> Self {
        let state = Mutex::new(State::default());
        Self {
            id,
            out,
            http: Http::new(trust),
            stop: AtomicBool::new(false),
            asking: Mutex::new(()),
            state,
            changed: Condvar::new(),
        }
    }

    /// Wakes every wait of this job and cuts its connections.
    pub fn cancel(&self) {
        lock(&self.state).cancelled = true;
        self.stop.store(true, Ordering::Relaxed);
        self.changed.notify_all();
        self.http.cut();
    }

    pub fn is_cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Keeps the first failure of a transfer: it knows more than what the engine, which has
    /// only its own words for the store, makes of it.
    pub fn remember(&self, failure: &Failure) {
        lock(&self.state).failure.get_or_insert_with(|| failure.clone());
    }

    pub fn remembered(&self) -> Option<Failure> {
        lock(&self.state).failure.clone()
    }

    /// False if the job was cancelled meanwhile.
    pub fn sleep(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut state = lock(&self.state);
        while !state.cancelled {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        false
    }

    pub fn deliver_uploads(&self, grants: Vec<UploadGrant>) {
        lock(&self.state).uploads.push_back(grants);
        self.changed.notify_all();
    }

    pub fn deliver_downloads(&self, grants: Vec<DownloadGrant>) {
        lock(&self.state).downloads.push_back(grants);
        self.changed.notify_all();
    }

    /// Every part of an object was sent; not answered.
    pub fn uploaded(&self, key: String, parts: Vec<String>) {
        self.out.send(self.id, Event::Uploaded { key, parts });
    }

    /// Permission to create one object.
    pub fn ask_upload(&self, wanted: UploadWanted) -> Result<UploadGrant, Failure> {
        let what = || format!("{:?} of {} bytes", wanted.kind, wanted.size);
        let event = Event::UploadsWanted {
            objects: vec![wanted.clone()],
        };
        let mut grants = self.ask(event, |s| s.uploads.pop_front())?;
        match (grants.pop(), grants.is_empty()) {
            (Some(grant), true) => Ok(grant),
            _ => Err(mismatch(&what())),
        }
    }

    /// URLs for `keys`, in their order.
    pub fn ask_downloads(&self, keys: &[String]) -> Result<Vec<DownloadGrant>, Failure> {
        let event = Event::DownloadsWanted { keys: keys.to_vec() };
        let grants = self.ask(event, |s| s.downloads.pop_front())?;
        if grants.len() != keys.len() || grants.iter().zip(keys).any(|(g, k)| g.key != *k) {
            return Err(mismatch(&format!("{} keys", keys.len())));
        }
        Ok(grants)
    }

    fn ask<T>(&self, question: Event, take: impl Fn(&mut State) -> Option<T>) -> Result<T, Failure> {
        let _one_at_a_time = lock(&self.asking);
        if self.is_cancelled() {
            return Err(cancelled());
        }
        self.out.send(self.id, question);
        let until = Instant::now() + GRANT_WAIT;
        let mut state = lock(&self.state);
        loop {
            if state.cancelled {
                return Err(cancelled());
            }
            if let Some(answer) = take(&mut state) {
                return Ok(answer);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let waited = format!("the controller gave no URL within {} s", GRANT_WAIT.as_secs());
                return Err(failure(
                    FailureCode::Transfer,
                    waited,
                    "look for errors in the controller's log",
                ));
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

fn mismatch(what: &str) -> Failure {
    let message = format!("the controller's URLs do not match what was asked for: {what}");
    failure(
        FailureCode::Internal,
        message,
        "the agent and the controller differ; install the agent again",
    )
}
