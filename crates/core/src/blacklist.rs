//! When a machine is not to be used any more.
//!
//! The document calls a timeout a critical failure. Taken literally, with a timeout learned
//! from the fleet, that blocks four good machines in five and starves the search, so here a
//! timeout is a failure like another: three in a row block, one does not. Only a hardware
//! error is critical. A block is only ever proposed by a counted failure, never by an attempt
//! that says nothing about the machine, and a rule never touches what a person has decided.

use crate::history::{Attempt, Outcome, Reason, Stats, success_of};
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
        HardwareError => "hardware_error",
        ConsecutiveFailures => "consecutive_failures",
        LowSuccessRate => "low_success_rate",
    }
}

/// Thresholds and durations.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// `MIN_ATTEMPTS_FOR_BLACKLIST`: counted attempts before the rate says anything; also the
    /// row of failures that blocks.
    pub min_attempts: u32,
    /// `MIN_SUCCESS_RATE`: below it, not at it, a machine is blocked.
    pub min_success_rate: f64,
    /// `AUTOMATIC_BLACKLIST_DAYS`
    pub automatic_days: u32,
    /// `TEMPORARY_BLACKLIST_HOURS`
    pub temporary_hours: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            min_attempts: 3,
            min_success_rate: 0.3,
            automatic_days: 7,
            temporary_hours: 24,
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
}

/// An entry that a rule asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    pub blacklist_type: BlacklistType,
    pub rule: Rule,
    /// The word of the failure that tipped it, or of the rule when the failure has none.
    pub reason: String,
    pub duration: Option<Duration>,
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

/// What the rules say after `last`, which `stats` already include.
pub fn verdict(stats: &Stats, last: &Attempt, settings: &Settings) -> Option<Proposal> {
    if success_of(last.outcome) != Some(false) {
        return None;
    }
    debug_assert_eq!(last.outcome, Outcome::Failed);
    let enough = i64::from(settings.min_attempts.max(1));
    let low_rate = stats
        .success_rate()
        .is_some_and(|rate| rate < settings.min_success_rate);
    let rule = if last.reason == Some(Reason::HardwareError) {
        Rule::HardwareError
    } else if stats.consecutive_failures >= enough {
        Rule::ConsecutiveFailures
    } else if stats.counted() >= enough && low_rate {
        Rule::LowSuccessRate
    } else {
        return None;
    };
    let blacklist_type = BlacklistType::Automatic;
    Some(Proposal {
        blacklist_type,
        rule,
        reason: last
            .reason
            .as_ref()
            .map_or(rule.as_str(), Reason::as_str)
            .to_owned(),
        duration: settings.duration(blacklist_type),
    })
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

/// Sets a proposal against the machine's open entry.
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

    fn attempt(outcome: Outcome, reason: Option<Reason>) -> Attempt {
        Attempt {
            outcome,
            reason,
            ready_seconds: None,
            at: Timestamp(0),
        }
    }

    fn after(attempts: &[(Outcome, Option<Reason>)]) -> Option<Proposal> {
        let mut stats = Stats::default();
        let mut last = None;
        for (outcome, reason) in attempts {
            let a = attempt(*outcome, reason.clone());
            stats.record(&a);
            last = verdict(&stats, &a, &Settings::default());
        }
        last
    }

    #[test]
    fn each_rule_of_the_document() {
        use Outcome::{Failed, LostRace, Won};
        let rule = |a: &[(Outcome, Option<Reason>)]| after(a).map(|p| p.rule);
        assert_eq!(rule(&[(Failed, None), (Failed, None)]), None);
        assert_eq!(
            rule(&[(Failed, None), (Failed, None), (Failed, None)]),
            Some(Rule::ConsecutiveFailures)
        );
        assert_eq!(
            rule(&[(Failed, Some(Reason::HardwareError))]),
            Some(Rule::HardwareError)
        );
        assert_eq!(
            rule(&[(Failed, Some(Reason::BootTimeout))]),
            None,
            "a timeout is not critical"
        );
        assert_eq!(rule(&[(Failed, None), (Failed, None), (LostRace, None)]), None);
        // 1 of 3 is 33 %: stays. 1 of 4 with two failures in a row only: the rate alone blocks.
        assert_eq!(rule(&[(Failed, None), (Won, None), (Failed, None)]), None);
        assert_eq!(
            rule(&[(Failed, None), (Won, None), (Failed, None), (Failed, None)]),
            Some(Rule::LowSuccessRate)
        );
        let p = after(&[
            (Failed, Some(Reason::SshFailed)),
            (Failed, None),
            (Failed, Some(Reason::SshFailed)),
        ]);
        let p = p.expect("three in a row");
        assert_eq!(
            (p.reason.as_str(), p.blacklist_type),
            ("ssh_failed", BlacklistType::Automatic)
        );
        assert_eq!(p.duration, Some(Duration::from_secs(7 * 86_400)));
    }

    #[test]
    fn three_in_ten_is_not_below_thirty_percent() {
        let mut stats = Stats {
            total: 9,
            successful: 3,
            failed: 6,
            ..Stats::default()
        };
        let last = attempt(Outcome::Failed, None);
        stats.record(&last);
        stats.consecutive_failures = 1;
        assert_eq!(stats.success_rate(), Some(0.3));
        assert_eq!(verdict(&stats, &last, &Settings::default()), None);
    }

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
            };
            let got = change(Some(&entry), &proposal, Timestamp(0));
            prop_assert_eq!(got == Change::Replace, seconds as i64 > old);
        }

        #[test]
        fn only_a_counted_failure_blocks(failed in 0..50_i64, row in 0..50_i64, i in 0..Outcome::ALL.len()) {
            let stats = Stats { failed, consecutive_failures: row.min(failed), ..Stats::default() };
            let last = attempt(Outcome::ALL[i], Some(Reason::HardwareError));
            let blocked = verdict(&stats, &last, &Settings::default()).is_some();
            prop_assert_eq!(blocked, Outcome::ALL[i] == Outcome::Failed);
        }
    }
}
