//! Long work as named steps.
//!
//! A step's name is stored before the step is begun, so whoever takes the workflow over
//! knows where it stood. Steps may therefore be *started* more than once; only their commit
//! is unique. The order of steps is data here, apart from what they do, so that a stored row
//! can be checked and shown by code that could not run it.

use crate::time::Timestamp;
use crate::words;

words! {
    /// All of these are exclusive: one at a time per workspace.
    pub enum Kind: "workflow kind" {
        Deploy => "deploy",
        Failover => "failover",
        Snapshot => "snapshot",
        Restore => "restore",
        Teardown => "teardown",
    }
}

words! {
    pub enum Status: "workflow status" {
        Running => "running",
        Done => "done",
        Failed => "failed",
    }
}

words! {
    /// Steps of all kinds; each kind uses some, in the order of [`Kind::steps`].
    pub enum Step: "workflow step" {
        /// Confirm the loss by a second source.
        Detect => "detect",
        /// Find offers, drop blacklisted, rank.
        Search => "search",
        /// Rent several; the first ready wins, the losers go, attempts are recorded.
        Race => "race",
        /// Stop the workload before its files change.
        Stop => "stop",
        /// Upload what changed.
        Capture => "capture",
        /// Check every object, then make the snapshot visible.
        Commit => "commit",
        Restore => "restore",
        /// Compare the files with the snapshot.
        Validate => "validate",
        Start => "start",
        /// Wait until the workload serves.
        Probe => "probe",
        /// Make the new instance the workspace's; the old one is fenced out.
        Switch => "switch",
        /// Wait for the rest of the files, where the workload started before the last byte.
        Complete => "complete",
        /// Destroy the old instance.
        Cleanup => "cleanup",
        /// Write the event row.
        Record => "record",
        /// Destroy everything the workspace rents.
        Destroy => "destroy",
        Done => "done",
    }
}

impl Kind {
    /// In order; the last is always `done`.
    pub const fn steps(self) -> &'static [Step] {
        use Step::{
            Capture, Cleanup, Commit, Complete, Destroy, Detect, Done, Probe, Race, Record, Restore, Search,
            Start, Stop, Switch, Validate,
        };
        match self {
            Self::Deploy => &[
                Search, Race, Restore, Validate, Start, Probe, Switch, Complete, Done,
            ],
            Self::Failover => &[
                Detect, Search, Race, Restore, Validate, Start, Probe, Switch, Cleanup, Complete, Record,
                Done,
            ],
            Self::Snapshot => &[Capture, Commit, Done],
            Self::Restore => &[Stop, Restore, Validate, Start, Probe, Done],
            Self::Teardown => &[Destroy, Done],
        }
    }

    /// Where a new workflow begins.
    pub const fn first(self) -> Step {
        self.steps()[0]
    }

    /// `None` after `done`, and for a step this kind does not have.
    pub fn next(self, step: Step) -> Option<Step> {
        let steps = self.steps();
        let here = steps.iter().position(|s| *s == step)?;
        steps.get(here + 1).copied()
    }
}

/// May another process take this work over? A lease ends at its microsecond, not after it;
/// work that nobody owns is free. `now` must be the clock that wrote `lease_until`: the
/// database's, never a controller's.
pub fn claimable(owner: Option<&str>, lease_until: Option<Timestamp>, now: Timestamp) -> bool {
    owner.is_none() || lease_until.is_none_or(|end| end <= now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_walks_from_its_first_step_to_done() {
        for kind in Kind::ALL {
            let mut step = kind.first();
            let mut seen = vec![step];
            while let Some(next) = kind.next(step) {
                assert!(!seen.contains(&next), "{kind} comes back to {next}");
                seen.push(next);
                step = next;
            }
            assert_eq!(step, Step::Done);
            assert_eq!(seen, kind.steps());
        }
        assert_eq!(Kind::Snapshot.next(Step::Race), None);
    }

    #[test]
    fn words_round_trip() {
        for step in Step::ALL {
            assert_eq!(step.as_str().parse(), Ok(*step));
        }
        let err = "Race".parse::<Step>().expect_err("words are lower case");
        assert_eq!(err.to_string(), "\"Race\" is not a known workflow step");
    }

    #[test]
    fn a_lease_is_free_from_its_end_on() {
        let t = Timestamp;
        assert!(claimable(None, Some(t(9)), t(0)));
        assert!(!claimable(Some("a"), Some(t(9)), t(8)));
        assert!(claimable(Some("a"), Some(t(9)), t(9)));
        assert!(claimable(Some("a"), None, t(0)));
    }
}
