//! What we remember of a machine, and which of it counts.
//!
//! The hard decision is attribution. A failure counts against a machine only if the machine
//! can have caused it: losing a race, giving up early, a wrong image or a refused account
//! say nothing about it. Counting them blacklists most good machines (measured: 82 %), so
//! they are recorded and shown, but are neither success nor failure. A racer that was ready
//! a second after the winner stays uncounted too, else the rate would depend on how many
//! machines we happened to race; its boot time is kept, as that much was really seen.
//!
//! Counters are integers folded one attempt at a time, so any order of the same attempts
//! gives the same counts, and the stored row equals a recount from the attempts.

pub use crate::level::Level;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

/// A text that is none of the words an enum knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a known {what}")]
pub struct UnknownWord {
    pub what: &'static str,
    pub value: String,
}

/// An enum whose variants are words in the database and in the API: `as_str`, `parse`,
/// `Display`, serde and `ALL`, from one list, so that the four cannot drift apart.
#[macro_export]
macro_rules! words {
    ($(#[$meta:meta])* $vis:vis enum $name:ident: $what:literal {
        $($(#[$vmeta:meta])* $variant:ident => $word:literal),+ $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        $vis enum $name {
            $($(#[$vmeta])* #[serde(rename = $word)] $variant),+
        }

        impl $name {
            /// Every variant, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word in the database and in the API.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::history::UnknownWord;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                Self::ALL.iter().copied().find(|v| v.as_str() == s).ok_or_else(|| {
                    $crate::history::UnknownWord { what: $what, value: s.chars().take(80).collect() }
                })
            }
        }

        $crate::words_schema!($name, $what);
    };
}

/// Its namesake in `openapi` gives the words a schema, where schemas are wanted.
#[cfg(not(feature = "openapi"))]
#[macro_export]
macro_rules! words_schema {
    ($name:ident, $what:literal) => {};
}

words! {
    /// How an attempt ended.
    pub enum Outcome: "outcome" {
        /// It became ready and is the one we kept.
        Won => "won",
        /// Another machine of the same race was ready first.
        LostRace => "lost_race",
        /// The machine failed, and can have caused it.
        Failed => "failed",
        /// We stopped waiting before the machine had shown that it would not come.
        GaveUp => "gave_up",
        /// Not the host's doing: offer gone, account, image, our network, cancelled.
        NotHost => "not_host",
    }
}

words! {
    /// The last stage an attempt reached.
    pub enum Stage: "stage" {
        /// Asking the marketplace for the contract.
        Rent => "rent",
        /// Contract made, container not running yet.
        Boot => "boot",
        /// Running, no SSH session yet.
        Ssh => "ssh",
        /// Logged in, the agent has not answered yet.
        Hello => "hello",
        /// The agent answers, the GPU is not shown to be there yet.
        Gpu => "gpu",
        Ready => "ready",
    }
}

/// Why an attempt failed. Words of other tools and of later versions are kept as they are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Reason {
    DriverMismatch,
    BootTimeout,
    SshFailed,
    HelloFailed,
    GpuNotReady,
    FrequentInterrupts,
    HardwareError,
    DiskTooSmall,
    /// The provider lost its host before it was ready.
    HostOffline,
    NoSuchAsk,
    RateLimited,
    NoMoney,
    ImageError,
    Cancelled,
    ProviderError,
    /// A higher bid took it: our bid was too low.
    Outbid,
    Other(String),
}

impl Reason {
    const KNOWN: [(Self, &'static str); 16] = [
        (Self::DriverMismatch, "driver_mismatch"),
        (Self::BootTimeout, "boot_timeout"),
        (Self::SshFailed, "ssh_failed"),
        (Self::HelloFailed, "hello_failed"),
        (Self::GpuNotReady, "gpu_not_ready"),
        (Self::FrequentInterrupts, "frequent_interrupts"),
        (Self::HardwareError, "hardware_error"),
        (Self::DiskTooSmall, "disk_too_small"),
        (Self::HostOffline, "host_offline"),
        (Self::NoSuchAsk, "no_such_ask"),
        (Self::RateLimited, "rate_limited"),
        (Self::NoMoney, "no_money"),
        (Self::ImageError, "image_error"),
        (Self::Cancelled, "cancelled"),
        (Self::ProviderError, "provider_error"),
        (Self::Outbid, "outbid"),
    ];

    /// The word in the database and in the API.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Other(word) => word,
            known => Self::KNOWN
                .iter()
                .find(|(r, _)| r == known)
                .map_or("", |(_, word)| word),
        }
    }

    /// `Failed` where the machine can have caused it, else `NotHost`. An unknown word counts
    /// for nothing: we cannot say who is to blame.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::DriverMismatch
            | Self::BootTimeout
            | Self::SshFailed
            | Self::HelloFailed
            | Self::GpuNotReady
            | Self::FrequentInterrupts
            | Self::HardwareError
            | Self::DiskTooSmall
            | Self::HostOffline => Outcome::Failed,
            Self::NoSuchAsk
            | Self::RateLimited
            | Self::NoMoney
            | Self::ImageError
            | Self::Cancelled
            | Self::ProviderError
            | Self::Outbid
            | Self::Other(_) => Outcome::NotHost,
        }
    }
}

impl From<&str> for Reason {
    fn from(s: &str) -> Self {
        let known = Self::KNOWN.into_iter().find(|(_, word)| *word == s);
        known.map_or_else(|| Self::Other(s.to_owned()), |(reason, _)| reason)
    }
}

impl From<String> for Reason {
    fn from(s: String) -> Self {
        Self::from(s.as_str())
    }
}

impl From<Reason> for String {
    fn from(r: Reason) -> Self {
        r.as_str().to_owned()
    }
}

impl FromStr for Reason {
    type Err = Infallible;
    fn from_str(s: &str) -> Result<Self, Infallible> {
        Ok(Self::from(s))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `Some` where the attempt counts for or against its machine.
pub const fn success_of(outcome: Outcome) -> Option<bool> {
    match outcome {
        Outcome::Won => Some(true),
        Outcome::Failed => Some(false),
        Outcome::LostRace | Outcome::GaveUp | Outcome::NotHost => None,
    }
}

/// What the statistics need to know of one attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    pub outcome: Outcome,
    pub reason: Option<Reason>,
    /// From renting to ready; set for every attempt that became ready, won or not.
    pub ready_seconds: Option<f64>,
    pub at: Timestamp,
}

/// One machine's record: a fold over its attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// All attempts: successful + failed + uncounted.
    pub total: i64,
    pub successful: i64,
    pub failed: i64,
    pub uncounted: i64,
    /// Counted failures since the last success; uncounted attempts do not end the row.
    pub consecutive_failures: i64,
    /// Attempts that became ready, and the sum of their boot times: integers, so that the
    /// average does not depend on the order of adding.
    pub ready: i64,
    pub ready_total_ms: i64,
    pub last_attempt_at: Option<Timestamp>,
    pub last_success_at: Option<Timestamp>,
    pub last_failure_at: Option<Timestamp>,
}

impl Stats {
    /// Folds in one attempt.
    pub fn record(&mut self, attempt: &Attempt) {
        self.total += 1;
        self.last_attempt_at = self.last_attempt_at.max(Some(attempt.at));
        match success_of(attempt.outcome) {
            Some(true) => {
                self.successful += 1;
                self.consecutive_failures = 0;
                self.last_success_at = self.last_success_at.max(Some(attempt.at));
            }
            Some(false) => {
                self.failed += 1;
                self.consecutive_failures += 1;
                self.last_failure_at = self.last_failure_at.max(Some(attempt.at));
            }
            None => self.uncounted += 1,
        }
        if let Some(seconds) = attempt.ready_seconds.filter(|s| s.is_finite() && *s >= 0.0) {
            self.ready += 1;
            // A saturating cast: an absurd boot time must not wrap the sum.
            self.ready_total_ms = self
                .ready_total_ms
                .saturating_add((seconds * 1_000.0).round() as i64);
        }
    }

    /// Folds in old attempts of one verdict that are only counted: how many, how many of them
    /// became ready with their boot times together, and the last one's time. A row of failures
    /// is of the newest attempts, so these neither lengthen nor end it.
    pub fn record_counted(
        &mut self,
        success: Option<bool>,
        attempts: i64,
        ready: (i64, i64),
        last: Timestamp,
    ) {
        self.total += attempts;
        self.last_attempt_at = self.last_attempt_at.max(Some(last));
        match success {
            Some(true) => {
                self.successful += attempts;
                self.last_success_at = self.last_success_at.max(Some(last));
            }
            Some(false) => {
                self.failed += attempts;
                self.last_failure_at = self.last_failure_at.max(Some(last));
            }
            None => self.uncounted += attempts,
        }
        self.ready += ready.0;
        self.ready_total_ms = self.ready_total_ms.saturating_add(ready.1);
    }

    /// Attempts that say something about the machine.
    pub const fn counted(&self) -> i64 {
        self.successful + self.failed
    }

    /// `None` before the first counted attempt.
    pub fn success_rate(&self) -> Option<f64> {
        (self.counted() > 0).then(|| self.successful as f64 / self.counted() as f64)
    }

    /// The document's level; see [`Level::of`].
    pub fn level(&self, blacklisted: bool) -> Level {
        Level::of_counts(self.successful, self.counted(), blacklisted)
    }

    /// `None` before the first counted attempt.
    pub fn failure_rate(&self) -> Option<f64> {
        (self.counted() > 0).then(|| self.failed as f64 / self.counted() as f64)
    }

    /// Seconds, over attempts that became ready.
    pub fn avg_boot_time(&self) -> Option<f64> {
        (self.ready > 0).then(|| self.ready_total_ms as f64 / self.ready as f64 / 1_000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attempts() -> impl Strategy<Value = Vec<Attempt>> {
        let one = (
            0..Outcome::ALL.len(),
            proptest::option::of(0.0..2_000.0_f64),
            0..1_000_000_i64,
        )
            .prop_map(|(outcome, ready_seconds, at)| Attempt {
                outcome: Outcome::ALL[outcome],
                reason: None,
                ready_seconds,
                at: Timestamp(at),
            });
        proptest::collection::vec(one, 0..60)
    }

    fn fold(attempts: &[Attempt]) -> Stats {
        let mut stats = Stats::default();
        attempts.iter().for_each(|a| stats.record(a));
        stats
    }

    proptest! {
        #[test]
        fn any_order_gives_the_counts_of_a_recount(
            (plain, mixed) in attempts().prop_flat_map(|a| (Just(a.clone()), Just(a).prop_shuffle()))
        ) {
            let (a, b) = (fold(&plain), fold(&mixed));
            let count = |o: Option<bool>| plain.iter().filter(|x| success_of(x.outcome) == o).count() as i64;
            prop_assert_eq!((a.total, a.successful), (plain.len() as i64, count(Some(true))));
            prop_assert_eq!((a.failed, a.uncounted), (count(Some(false)), count(None)));
            // Only the row of failures depends on the order, by its nature.
            prop_assert_eq!(Stats { consecutive_failures: 0, ..a }, Stats { consecutive_failures: 0, ..b });
            prop_assert!(a.success_rate().is_none_or(|r| (0.0..=1.0).contains(&r)));
        }

        #[test]
        fn counting_in_groups_gives_what_one_by_one_gives(all in attempts()) {
            let mut groups = Stats::default();
            for verdict in [Some(true), Some(false), None] {
                let of: Vec<_> = all.iter().filter(|a| success_of(a.outcome) == verdict).cloned().collect();
                let one = fold(&of);
                if let Some(last) = one.last_attempt_at {
                    groups.record_counted(verdict, one.total, (one.ready, one.ready_total_ms), last);
                }
            }
            prop_assert_eq!(groups, Stats { consecutive_failures: 0, ..fold(&all) });
        }

        #[test]
        fn reasons_survive_their_word(word in "[a-z_]{0,30}") {
            let reason = Reason::from(word.as_str());
            prop_assert_eq!(reason.as_str(), word.as_str());
        }
    }

    #[test]
    fn a_loser_that_was_ready_keeps_its_boot_time_and_stays_uncounted() {
        let ready_loser = Attempt {
            outcome: Outcome::LostRace,
            reason: None,
            ready_seconds: Some(12.5),
            at: Timestamp(1),
        };
        let stats = fold(&[ready_loser]);
        assert_eq!(
            (stats.counted(), stats.uncounted, stats.success_rate()),
            (0, 1, None)
        );
        assert_eq!(stats.avg_boot_time(), Some(12.5));
    }

    #[test]
    fn uncounted_attempts_do_not_end_a_row_of_failures() {
        let of = |outcome| Attempt {
            outcome,
            reason: None,
            ready_seconds: None,
            at: Timestamp(1),
        };
        use Outcome::{Failed, LostRace, Won};
        assert_eq!(
            fold(&[of(Won), of(Failed), of(LostRace), of(Failed)]).consecutive_failures,
            2
        );
        assert_eq!(fold(&[of(Failed), of(Failed), of(Won)]).consecutive_failures, 0);
    }

    #[test]
    fn every_known_reason_has_a_word_of_its_own() {
        let mut words: Vec<_> = Reason::KNOWN.iter().map(|(r, _)| r.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Reason::KNOWN.len());
    }
}
