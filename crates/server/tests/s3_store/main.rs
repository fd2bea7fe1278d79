//! The bucket store against real S3 servers: what it does for us, and what it lets nobody do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot set up its store fails"
)]

#[path = "../world/bucket.rs"]
#[allow(dead_code, reason = "each test file uses a part")]
mod bucket;

mod contract;
mod hostile;
mod refusals;
