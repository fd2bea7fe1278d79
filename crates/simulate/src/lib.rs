//! What would the decisions of `core` have done in a market whose truth is known?
//!
//! The rules, the score, the boot curve and the race plan are the very code that runs in
//! production; only machines, boots and failures are drawn. Policies are compared in the same
//! world: whether machine 17 would have booted for deploy 4,031, and how fast, depends on the
//! seed alone and not on who asks (common random numbers), so that differences between
//! policies are not drowned by luck.
//!
//! [`parameters`] holds everything that is assumed about the market, with its source. It must
//! not be tuned until a policy looks good.

pub mod bars;
mod learner;
pub mod parameters;
pub mod policy;
mod race;
pub mod report;
mod run;
mod statistics;
mod world;

pub use parameters::Parameters;
pub use run::{Plan, Progress, run};
