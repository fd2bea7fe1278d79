//! What workflows remember between steps, as it stands in the database.

use crate::history::Expected;
use dumont_core::blacklist::LossCause;
use dumont_core::id::MachineRef;
use dumont_core::offer::Offer;
use dumont_core::snapshot::{RestoreReport, SnapshotReport};
use dumont_core::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is done to have the machine back that was lost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remedy {
    /// A start at the price it had.
    Start,
    /// This bid, dollars per hour.
    Bid(f64),
}

/// Deploy, failover and restore: putting a workspace on a machine.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Placement {
    /// Failover: what was lost and how we know.
    pub loss: Option<Loss>,
    /// Failover: what is tried to have the lost machine back, kept before it is done.
    pub remedy: Option<Remedy>,
    /// Deploy: this machine and no other, asked for by name.
    pub machine: Option<MachineRef>,
    /// That machine, though it is blacklisted.
    pub allow_blacklisted: bool,
    /// Ranked, best first; one per machine.
    pub offers: Vec<Offer>,
    /// When they were asked for.
    pub searched_at: Timestamp,
    /// What was expected of their machines then, by machine.
    pub expected: BTreeMap<MachineRef, Expected>,
    /// Key of the instance that won the race.
    pub winner: Option<String>,
    /// The snapshot to restore; chosen once, so that a resumed workflow restores the same.
    pub snapshot_id: Option<String>,
    /// Whether `snapshot_id` was chosen (a workspace may have none).
    pub chosen: bool,
    /// A move that was asked for: the old machine's last snapshot is taken again, with its
    /// workload stopped, when the new machine is ready.
    pub parting: bool,
    /// Whether the old machine's workload was stopped for that.
    pub parted: bool,
    /// Restore in place: remove what the snapshot does not have.
    pub delete: bool,
    /// Restore in place: only what these globs name, and what those do not.
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    /// The workload was let start with so many files there; the rest was still to come.
    pub ready_files: Option<u64>,
    /// The workspace was switched to the winner, complete or not.
    pub switched: bool,
    pub restored: Option<RestoreReport>,
    /// Restore in place: what the workspace was marked with when it began.
    pub half_before: Option<String>,
    /// What was asked for cannot be, which was clear before a file changed.
    pub refused: bool,
    /// The same, before anything was stopped.
    pub untouched: bool,
}

impl Placement {
    /// The machine that a failover leaves.
    pub fn lost_machine(&self) -> Option<&MachineRef> {
        self.loss.as_ref()?.machine.as_ref()
    }

    /// Does it restore only a part of the snapshot?
    pub fn is_part(&self) -> bool {
        !(self.include.is_empty() && self.exclude.is_empty())
    }
}

/// The machine a failover moves away from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Which evidence decided, or "requested".
    pub trigger: String,
    /// What became of it, as soon as that is known.
    #[serde(default)]
    pub cause: Option<LossCause>,
    /// Whether the machine is known to be dead; a requested failover's may still run.
    pub dead: bool,
    pub lost_at: Timestamp,
    pub detected_at: Timestamp,
    pub instance_key: Option<String>,
    pub instance_id: Option<String>,
    #[serde(default)]
    pub machine: Option<MachineRef>,
    pub ssh_host: Option<String>,
    pub ssh_port: Option<u16>,
}

/// Snapshot: between the upload and the commit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Capture {
    pub full: bool,
    /// Although the last restore broke off.
    pub as_it_is: bool,
    pub instance_key: String,
    /// Last snapshot of this very instance: parent of the new one.
    pub parent: Option<String>,
    /// Why there is no parent although one was recorded.
    pub full_because: Option<String>,
    pub stamp: String,
    pub began_at: Timestamp,
    pub report: Option<SnapshotReport>,
}
