//! The embedded object store behind a real server, as agents and attackers see it.

// Helpers of tests are tests, which clippy cannot see.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod http;
mod scene;
mod trait_side;
