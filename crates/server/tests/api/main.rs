//! The API as a whole: its document, who is let in, and whether it keeps its word.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

#[path = "../world/mod.rs"]
mod world;

mod authorization;
mod conformance;
mod document;
mod tokens;
