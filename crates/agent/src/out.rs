//! The way out: one thread owns stdout, everybody else queues frames.
//!
//! A queue and not a mutex around stdout, because a peer that stops reading would otherwise
//! block whoever writes next, and if that is the thread that reads stdin, the end of the
//! session goes unnoticed. What may be lost (heartbeats, progress) is dropped while the
//! queue is long; the rest is bounded by the number of requests.

use dumont_wire::agent::{Event, Failure, FailureCode, FromAgent};
use dumont_wire::frame;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

/// Above this many frames waiting, the peer is not reading.
const BACKLOG: usize = 64;

#[derive(Debug)]
pub struct Out {
    queue: Sender<FromAgent>,
    waiting: Arc<AtomicUsize>,
}

impl Out {
    /// Prints the marker and starts the writing thread.
    pub fn start() -> io::Result<Self> {
        let mut stdout = File::from(rustix::io::dup(rustix::stdio::stdout())?);
        stdout.write_all(frame::MARKER)?;
        let (queue, frames) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let left = Arc::clone(&waiting);
        std::thread::Builder::new()
            .name("stdout".into())
            .spawn(move || write_all(stdout, &frames, &left))?;
        Ok(Self { queue, waiting })
    }

    pub fn send(&self, id: u64, body: Event) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // The receiver lives as long as the process does.
        let _ = self.queue.send(FromAgent { id, body });
    }

    /// For what a slow peer can do without.
    pub fn send_if_read(&self, id: u64, body: Event) {
        if self.waiting.load(Ordering::Relaxed) < BACKLOG {
            self.send(id, body);
        }
    }

    pub fn fail(&self, id: u64, failure: Failure) {
        self.send(id, Event::Failed(failure));
    }

    /// Waits a moment until everything queued is written, before an exit that we choose.
    pub fn drain(&self) {
        for _ in 0..100 {
            if self.waiting.load(Ordering::Acquire) == 0 {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

fn write_all(mut stdout: File, frames: &Receiver<FromAgent>, left: &AtomicUsize) {
    for message in frames {
        let bytes = frame::encode(&message).or_else(|e| {
            let failure = failure(
                FailureCode::Internal,
                format!("answer: {e}"),
                "report this as a bug",
            );
            frame::encode(&FromAgent {
                id: message.id,
                body: Event::Failed(failure),
            })
        });
        let written = bytes
            .map_err(|e| e.to_string())
            .and_then(|b| stdout.write_all(&b).map_err(|e| e.to_string()));
        if written.is_err() {
            // Nobody listens any more: transfers must not go on behind the controller's back.
            std::process::exit(0);
        }
        left.fetch_sub(1, Ordering::Release);
    }
}

/// A failure in one line.
pub fn failure(code: FailureCode, message: impl Into<String>, hint: impl Into<String>) -> Failure {
    Failure {
        code,
        message: message.into(),
        hint: hint.into(),
    }
}
