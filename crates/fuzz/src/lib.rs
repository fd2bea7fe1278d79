//! Every parser that reads what a store or a machine sends, as one list of targets.
//!
//! Two drivers use the list: `fuzz/` (libFuzzer, needs nightly; `scripts/fuzz`) and this crate's
//! test, which replays the corpus and mutates it by a seed on the pinned compiler. A target panics
//! where a parser does, or where what was read does not come back the same when it is written:
//! encodings are canonical, so that equal directories have equal ids.

use dumont_core::snapshot::{SnapshotHead, SnapshotReport};
use dumont_snapshot::fuzzing as snapshot;
use dumont_wire::agent::{Facts, FromAgent, ToAgent};
use dumont_wire::{frame, mux};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
}

pub const TARGETS: &[Target] = &[
    target("pack", snapshot::pack),
    target("pack_sealed", snapshot::pack_sealed),
    target("index", snapshot::index),
    target("index_payload", snapshot::index_payload),
    target("tree", snapshot::tree),
    target("manifest", snapshot::manifest),
    target("chunk", snapshot::chunk),
    target("chunk_back", snapshot::chunk_back),
    target("cache", snapshot::cache),
    target("frames", frames),
    target("from_agent", json::<FromAgent>),
    target("to_agent", json::<ToAgent>),
    target("hello", json::<Facts>),
    target("report", json::<SnapshotReport>),
    target("head", json::<SnapshotHead>),
    target("mux", streams),
];

const fn target(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run }
}

/// For a driver that has one target a program.
///
/// # Panics
/// If there is no such target; and where the target does.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|t| t.name == name);
    let Some(target) = target else {
        panic!("there is no target {name}");
    };
    (target.run)(data);
}

/// What a message says is what it says again.
fn json<T: Serialize + DeserializeOwned + PartialEq + Debug>(data: &[u8]) {
    if let Ok(message) = serde_json::from_slice::<T>(data)
        && let Ok(again) = serde_json::to_vec(&message)
    {
        assert_eq!(serde_json::from_slice::<T>(&again).ok(), Some(message));
    }
}

/// The controller's end of a session: noise, the marker, frames, in pieces as they come.
fn frames(data: &[u8]) {
    let (first, data) = data.split_first().unwrap_or((&0, &[]));
    let step = usize::from(*first).max(1);
    for mut decoder in [frame::Decoder::after_marker(), frame::Decoder::plain()] {
        for piece in data.chunks(step) {
            decoder.push(piece);
            // A frame that is no message is dropped; a broken length ends the stream.
            loop {
                match decoder.next_frame::<FromAgent>() {
                    Ok(Some(_)) | Err(frame::FrameError::Malformed(_)) => {}
                    Ok(None) => break,
                    Err(_) => return,
                }
            }
        }
    }
}

/// Streams over stdio: what was read in pieces is what is read at once.
fn streams(data: &[u8]) {
    let read = |step: usize| {
        let (mut decoder, mut out) = (mux::Decoder::default(), Vec::new());
        for piece in data.chunks(step) {
            decoder.push(piece);
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => out.push(frame),
                    Ok(None) => break,
                    Err(_) => return out,
                }
            }
        }
        out
    };
    assert_eq!(read(7), read(data.len().max(1)));
}
