//! What compares the wanted with the observed, over and over, without input.

pub mod history;
pub mod leases;
pub mod models;
pub mod monitor;
pub mod prices;
pub mod reaper;
pub mod retention;
pub mod schedule;
pub mod uploads;
