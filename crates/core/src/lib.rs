//! The words and the pure decisions of dumont.
//!
//! Nothing here does I/O, reads a clock or knows a runtime: every decision takes what it
//! needs, `now` included, and returns a value. That is what lets the race, the ranking and
//! the detection be property-tested and simulated in virtual time with the very code that
//! runs in production.

pub mod bid;
pub mod blacklist;
pub mod boot;
pub mod budget;
pub mod detect;
pub mod driver;
pub mod guard;
pub mod history;
pub mod id;
pub mod key;
pub mod lease;
pub mod level;
pub mod offer;
#[cfg(feature = "openapi")]
pub mod openapi;
pub mod own_machine;
pub mod plan;
pub mod probe;
pub mod rank;
pub mod reliability;
pub mod retention;
pub mod schedule;
pub mod snapshot;
pub mod spec;
pub mod spending;
pub mod time;
pub mod workflow;
