//! The Vast.ai client against a server that says what Vast.ai is documented or reported to
//! say, and against one that misbehaves.

mod errors;
mod fake;
mod instances;
mod keys;
mod market;
mod rent;
mod search;
mod transport;
