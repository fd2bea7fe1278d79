//! When a machine is not to be used any more.
//!
//! The document calls a timeout a critical failure. Taken literally, with a timeout learned
//! from the fleet, that blocks four good machines in five and starves the search. So there are
//! two sets of rules over the same settings: `literal` is the document's word, `default` is
//! what it must have meant ([`rules`]). Both only ever propose a block after a failure that
//! counts, never judge the same failure twice (a removed or expired block starts a new
//! [`Window`]), and never touch what a person has decided ([`change`]). Where blocks would
//! leave too little to choose from, [`select`] lifts them for one search, soonest expiry first.

mod rules;
mod scope;
mod select;

pub use rules::{Circumstances, LossCause, Window, counts, judge, judge_losses};
pub use scope::{CudaVersion, InvalidScope, Scope};
pub use select::{Bar, Selection, select};

use crate::history::Reason;
use crate::time::Timestamp;
use crate::words;
use serde::{Deserialize, Serialize};
use std::time::Duration;

words! {
    /// The document's types.
    pub enum BlacklistType: "blacklist type" {
        /// The rules below; 7 days.
        Automatic => "automatic",
        /// A person; for good.
        Manual => "manual",
        /// A passing fault; 24 hours.
        Temporary => "temporary",
    }
}

words! {
    /// Which rule made an entry.
    pub enum Rule: "blacklist rule" {
        /// A critical reason: a hardware error, and under `literal` a timeout.
        HardwareError => "hardware_error",
        Timeout => "timeout",
        ConsecutiveFailures => "consecutive_failures",
        LowSuccessRate => "low_success_rate",
        /// Its driver cannot serve the CUDA version asked for; blocks for that version only.
        DriverMismatch => "driver_mismatch",
        /// The container ran, and the GPU could not be used in it.
        SuspectedFault => "suspected_fault",
        /// Lost too often after it was ready.
        FrequentInterrupts => "frequent_interrupts",
    }
}

words! {
    /// Which rules are in force.
    pub enum RuleSet: "rule set" {
        /// Repaired: attributed, suspended in incidents, released when too little is left.
        Default => "default",
        /// The document's own words: a timeout is critical, nothing is released.
        Literal => "literal",
    }
}

/// Thresholds and durations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    pub rules: RuleSet,
    /// `MIN_ATTEMPTS_FOR_BLACKLIST`: counted attempts before the rate says anything.
    pub min_attempts: u32,
    /// `MIN_SUCCESS_RATE`: below it, not at it, a machine is blocked.
    pub min_success_rate: f64,
    /// `AUTOMATIC_BLACKLIST_DAYS`
    pub automatic_days: u32,
    /// `TEMPORARY_BLACKLIST_HOURS`
    pub temporary_hours: u32,
    /// Failures in a row that block.
    pub consecutive_failures: u32,
    /// Losses after ready that block, within so many days.
    pub interrupts: u32,
    pub interrupt_days: u32,
    /// Reasons that block at the first failure. `literal` adds `boot_timeout`.
    pub critical: Vec<Reason>,
    /// Machines that must remain to choose from before blocks are released; `None` takes the
    /// race's width. Under `literal` nothing is released.
    pub release_when_below: Option<u32>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rules: RuleSet::Default,
            min_attempts: 3,
            min_success_rate: 0.3,
            automatic_days: 7,
            temporary_hours: 24,
            consecutive_failures: 3,
            interrupts: 3,
            interrupt_days: 7,
            critical: vec![Reason::HardwareError],
            release_when_below: None,
        }
    }
}

impl Settings {
    /// `None` means for good.
    pub fn duration(&self, blacklist_type: BlacklistType) -> Option<Duration> {
        let hours = |n: u32| Duration::from_secs(u64::from(n) * 3_600);
        match blacklist_type {
            BlacklistType::Automatic => Some(hours(self.automatic_days) * 24),
            BlacklistType::Temporary => Some(hours(self.temporary_hours)),
            BlacklistType::Manual => None,
        }
    }

    /// Blocks at the first failure.
    pub fn is_critical(&self, reason: &Reason) -> bool {
        let timeout = self.rules == RuleSet::Literal && *reason == Reason::BootTimeout;
        timeout || self.critical.contains(reason)
    }

    /// How many machines [`select`] must leave to a race of this width.
    pub fn keep(&self, width: usize) -> usize {
        match self.rules {
            RuleSet::Literal => 0,
            RuleSet::Default => self.release_when_below.map_or(width, |n| n as usize),
        }
    }
}

/// An entry that a rule asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    pub blacklist_type: BlacklistType,
    pub rule: Rule,
    /// The word of the failure that tipped it, or of the rule when the failure has none.
    pub reason: String,
    pub duration: Option<Duration>,
    /// What it blocks for; `None` is everything.
    pub scope: Option<Scope>,
}

/// What of an existing entry matters to the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub blacklist_type: BlacklistType,
    /// `None` is for good.
    pub expires_at: Option<Timestamp>,
    /// False once removed or closed.
    pub open: bool,
}

/// An entry stops counting at the second it expires, closed by a reconciler or not.
pub fn is_active(entry: &Entry, now: Timestamp) -> bool {
    entry.open && entry.expires_at.is_none_or(|end| end > now)
}

/// What becomes of a proposal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// No entry is active: make one.
    Insert,
    /// A rule's own entry is active and ends sooner: replace it.
    Replace,
    /// What stands is as strong, or a person's.
    Keep,
}

/// Sets a proposal against the machine's open entry of the same scope.
pub fn change(existing: Option<&Entry>, proposal: &Proposal, now: Timestamp) -> Change {
    let Some(entry) = existing.filter(|e| is_active(e, now)) else {
        return Change::Insert;
    };
    if entry.blacklist_type == BlacklistType::Manual {
        return Change::Keep;
    }
    let new_end = proposal.duration.map(|d| now.plus(d));
    match (entry.expires_at, new_end) {
        (Some(_), None) => Change::Replace,
        (Some(old), Some(new)) if new > old => Change::Replace,
        _ => Change::Keep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_entry_ends_at_its_second() {
        let entry = Entry {
            blacklist_type: BlacklistType::Temporary,
            expires_at: Some(Timestamp(10)),
            open: true,
        };
        assert!(is_active(&entry, Timestamp(9)));
        assert!(!is_active(&entry, Timestamp(10)));
        assert!(!is_active(&Entry { open: false, ..entry }, Timestamp(9)));
    }

    proptest! {
        #[test]
        fn rules_never_touch_an_active_manual_entry(
            end in proptest::option::of(1..1_000_000_i64),
            now in 0..1_000_000_i64,
            seconds in proptest::option::of(0..10_000_u64),
        ) {
            let entry = Entry {
                blacklist_type: BlacklistType::Manual,
                expires_at: end.map(Timestamp),
                open: true,
            };
            let proposal = Proposal {
                blacklist_type: BlacklistType::Automatic,
                rule: Rule::LowSuccessRate,
                reason: String::new(),
                duration: seconds.map(Duration::from_secs),
                scope: None,
            };
            let got = change(Some(&entry), &proposal, Timestamp(now));
            let active = is_active(&entry, Timestamp(now));
            prop_assert_eq!(got, if active { Change::Keep } else { Change::Insert });
        }

        #[test]
        fn a_rule_never_shortens_a_block(old in 1..1_000_i64, seconds in 0..1_000_u64) {
            let entry = Entry {
                blacklist_type: BlacklistType::Automatic,
                expires_at: Some(Timestamp(old * 1_000_000)),
                open: true,
            };
            let proposal = Proposal {
                blacklist_type: BlacklistType::Temporary,
                rule: Rule::LowSuccessRate,
                reason: String::new(),
                duration: Some(Duration::from_secs(seconds)),
                scope: None,
            };
            let got = change(Some(&entry), &proposal, Timestamp(0));
            prop_assert_eq!(got == Change::Replace, seconds as i64 > old);
        }
    }
}
