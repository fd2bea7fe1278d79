//! The Vast.ai client against a server that says what Vast.ai is documented or reported to
//! say, and against one that misbehaves.

// Helpers of tests are tests, which clippy cannot see.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod budget;
mod cuts;
mod errors;
mod fake;
mod instances;
mod keys;
mod mangled;
mod market;
mod rent;
mod search;
mod transport;
