//! Moves frames between the SSH channel and the requests that wait for them.
//!
//! The channel is always drained, whatever the requests do: an undrained channel stalls its
//! connection. A request whose queue is full is a bug of ours and loses its call, not the link.

use super::LinkError;
use super::install::Started;
use dumont_core::time::Timestamp;
use dumont_wire::agent::{Event, FromAgent, Request, ToAgent};
use dumont_wire::frame::{self, Decoder};
use russh::ChannelMsg;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use tokio::sync::{mpsc, watch};

/// Longest text taken from a machine, in characters.
const LONGEST_TEXT: usize = 4096;

/// What the reader hands events to.
pub struct Pending;

impl Pending {
    /// Progress comes at most ten times a second, so this is a minute and a half of a stall.
    pub const CAPACITY: usize = 1024;
}

/// The state of a session that its requests, its reader and its writer share.
pub struct Shared {
    outgoing: mpsc::Sender<Vec<u8>>,
    waiting: Mutex<HashMap<u64, mpsc::Sender<Event>>>,
    next_id: AtomicU64,
    last_heard: AtomicI64,
    ended: watch::Sender<Option<(Timestamp, String)>>,
}

fn now() -> Timestamp {
    Timestamp::from_system(SystemTime::now())
}

/// Starts the reader and the writer of a fresh session.
pub fn run(started: Started) -> Arc<Shared> {
    let (outgoing, mut queue) = mpsc::channel::<Vec<u8>>(64);
    let shared = Arc::new(Shared {
        outgoing,
        waiting: Mutex::default(),
        next_id: AtomicU64::new(1),
        last_heard: AtomicI64::new(now().0),
        ended: watch::Sender::new(None),
    });
    let Started {
        channel, mut decoder, ..
    } = started;
    let (mut reader, writer) = channel.split();
    tokio::spawn(async move {
        while let Some(bytes) = queue.recv().await {
            if writer.data_bytes(bytes).await.is_err() {
                return;
            }
        }
        // Every handle is gone: the end of input is what tells the agent to stop.
        let _ = writer.eof().await;
        let _ = writer.close().await;
    });
    let weak = Arc::downgrade(&shared);
    tokio::spawn(async move {
        let mut stderr = String::new();
        let why = loop {
            let Some(shared) = weak.upgrade() else { return };
            match shared.take_in(&mut decoder) {
                Ok(()) => {}
                Err(error) => break error.to_string(),
            }
            drop(shared);
            match reader.wait().await {
                None => break format!("connection lost{stderr}"),
                Some(ChannelMsg::Data { data }) => decoder.push(&data),
                Some(ChannelMsg::ExtendedData { data, .. }) => note_stderr(&mut stderr, &data),
                Some(ChannelMsg::ExitStatus { exit_status }) => {
                    break format!("the agent exited with {exit_status}{stderr}");
                }
                Some(ChannelMsg::Eof | ChannelMsg::Close) => break format!("the agent ended{stderr}"),
                Some(_) => {}
            }
        };
        if let Some(shared) = weak.upgrade() {
            shared.end(why);
        }
    });
    shared
}

fn note_stderr(kept: &mut String, data: &[u8]) {
    if kept.len() < 600 {
        kept.push_str(": ");
        kept.extend(
            String::from_utf8_lossy(data)
                .chars()
                .filter(|c| !c.is_control())
                .take(300),
        );
    }
}

/// Texts of an untrusted machine end in terminals, logs and rows: no control characters, and
/// no longer than a person would read. Here, once, for every field there is or will be.
fn scrub(value: &mut Value) {
    match value {
        Value::String(text) => {
            let hostile = |c: char| c.is_control() && c != '\n';
            if text.len() > LONGEST_TEXT || text.chars().any(hostile) {
                *text = text.chars().filter(|c| !hostile(*c)).take(LONGEST_TEXT).collect();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(scrub),
        Value::Object(fields) => fields.values_mut().for_each(scrub),
        _ => {}
    }
}

impl Shared {
    /// Hands every whole frame to the request it belongs to.
    fn take_in(&self, decoder: &mut Decoder) -> Result<(), LinkError> {
        loop {
            let mut value: Value = match decoder.next_frame() {
                Ok(Some(value)) => value,
                Ok(None) => return Ok(()),
                Err(error) => return Err(LinkError::Protocol(error.to_string())),
            };
            scrub(&mut value);
            let frame: FromAgent =
                serde_json::from_value(value).map_err(|e| LinkError::Protocol(e.to_string()))?;
            self.last_heard.store(now().0, Ordering::Relaxed);
            if matches!(frame.body, Event::Heartbeat { .. }) {
                continue;
            }
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(queue) = waiting.get(&frame.id)
                && queue.try_send(frame.body).is_err()
            {
                waiting.remove(&frame.id);
            }
        }
    }

    fn end(&self, why: String) {
        let why = if why.is_empty() {
            "connection lost".into()
        } else {
            why
        };
        self.ended.send_replace(Some((now(), why)));
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    pub fn register(&self, capacity: usize) -> (u64, mpsc::Receiver<Event>) {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (queue, events) = mpsc::channel(capacity);
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, queue);
        if self.ended().is_some() {
            self.forget(id);
        }
        (id, events)
    }

    pub fn forget(&self, id: u64) {
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id);
    }

    pub async fn send(&self, message: &ToAgent) -> Result<(), LinkError> {
        if self.ended().is_some() {
            return Err(LinkError::Closed(self.why_closed()));
        }
        let bytes = frame::encode(message).map_err(|e| LinkError::Protocol(e.to_string()))?;
        self.outgoing
            .send(bytes)
            .await
            .map_err(|_| LinkError::Closed(self.why_closed()))
    }

    /// For goodbyes from `Drop`: sent if there is room, else not needed.
    pub fn send_soon(&self, message: &ToAgent) {
        debug_assert!(matches!(message.body, Request::Cancel));
        if let Ok(bytes) = frame::encode(message) {
            let _ = self.outgoing.try_send(bytes);
        }
    }

    pub fn last_heard(&self) -> Timestamp {
        Timestamp(self.last_heard.load(Ordering::Relaxed))
    }

    pub fn ended(&self) -> Option<(Timestamp, String)> {
        self.ended.borrow().clone()
    }

    pub fn why_closed(&self) -> String {
        self.ended()
            .map_or_else(|| "connection lost".into(), |(_, why)| why)
    }

    pub async fn closed(&self) {
        let mut ended = self.ended.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = ended.wait_for(Option::is_some).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_a_machine_are_bounded_and_cannot_drive_a_terminal() {
        let mut value =
            serde_json::json!({ "a": ["ok\nline", "\u{1b}]52;c;evil\u{7}"], "b": "x".repeat(9000) });
        scrub(&mut value);
        assert_eq!(value["a"][0], "ok\nline");
        assert_eq!(value["a"][1], "]52;c;evil");
        assert_eq!(value["b"].as_str().map(str::len), Some(LONGEST_TEXT));
    }
}
