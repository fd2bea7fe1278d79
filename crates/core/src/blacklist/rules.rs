//! The rules: which failure, after which others, blocks for how long.
//!
//! | rule | `default` | `literal` |
//! |---|---|---|
//! | rate below 30 % from 3 attempts | automatic | automatic |
//! | 3 failures in a row | automatic | automatic |
//! | hardware error | automatic | automatic |
//! | boot timeout | counts as a failure | critical: automatic |
//! | driver too old for the CUDA version asked for | automatic, for that version only; the machine is not charged | counts as a failure |
//! | GPU not ready in a running container, or a driver that serves nobody | temporary | counts as a failure |
//! | 3 losses after ready in 7 days | temporary | temporary |
//! | failure during an incident | nothing; it is not charged later either | as any other |
//!
//! Rules look through a [`Window`] that a removed or expired block starts anew: what a person
//! has pardoned, or a machine has served for, is not held against it a second time.

use super::{BlacklistType, CudaVersion, Proposal, Rule, RuleSet, Scope, Settings};
use crate::history::{Attempt, Outcome, Reason, success_of};
use crate::time::Timestamp;
use crate::words;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The counts that the rules judge: a fold over the counted attempts since the watermark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Window {
    /// The end of the last block that was removed or ran out; earlier attempts are settled.
    pub since: Option<Timestamp>,
    pub successful: i64,
    pub failed: i64,
    /// Failures since the last success.
    pub consecutive_failures: i64,
}

/// What stood around an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Circumstances {
    /// The incident guard suspected failures of this moment and image
    /// ([`crate::guard::Guard::suspects`]).
    pub suspect: bool,
    /// The CUDA version that the workload asked for.
    pub cuda: Option<CudaVersion>,
}

impl Circumstances {
    /// What a driver that does not fit is blocked for: the version asked for. Where none was
    /// asked for the driver serves nobody, and the failure is the machine's.
    pub fn scope_of(&self, reason: Option<&Reason>) -> Option<Scope> {
        self.cuda
            .filter(|_| reason == Some(&Reason::DriverMismatch))
            .map(Scope::Cuda)
    }
}

/// Whether an attempt counts for or against its machine. The literal rules know neither
/// incidents nor drivers.
pub fn counts(
    outcome: Outcome,
    reason: Option<&Reason>,
    around: &Circumstances,
    rules: RuleSet,
) -> Option<bool> {
    let excused = rules == RuleSet::Default && (around.suspect || around.scope_of(reason).is_some());
    success_of(outcome).filter(|success| *success || !excused)
}

impl Window {
    /// A block has ended at `at`, by a person or by itself: nothing up to then is judged again.
    /// Call it before the next attempt is judged; the same end twice changes nothing.
    pub fn restart(&mut self, at: Timestamp) {
        if self.since.is_none_or(|since| at > since) {
            *self = Self {
                since: Some(at),
                ..Self::default()
            };
        }
    }

    fn record(&mut self, success: bool) {
        if success {
            self.successful += 1;
            self.consecutive_failures = 0;
        } else {
            self.failed += 1;
            self.consecutive_failures += 1;
        }
    }

    /// Old attempts that are only counted; where they reach back past the watermark they are
    /// settled. They judge nothing by themselves.
    pub fn record_counted(&mut self, success: Option<bool>, attempts: i64, last: Timestamp) {
        match success.filter(|_| !self.settled(last)) {
            Some(true) => self.successful += attempts,
            Some(false) => self.failed += attempts,
            None => {}
        }
    }

    fn success_rate(&self) -> Option<f64> {
        let counted = self.successful + self.failed;
        (counted > 0).then(|| self.successful as f64 / counted as f64)
    }

    /// What the rules say after `last`, which the window already includes if it is charged.
    fn decide(&self, last: &Attempt, around: &Circumstances, settings: &Settings) -> Option<Proposal> {
        if success_of(last.outcome) != Some(false) || self.settled(last.at) {
            return None;
        }
        let literal = settings.rules == RuleSet::Literal;
        if !literal && around.suspect {
            return None;
        }
        if let (false, Some(scope)) = (literal, around.scope_of(last.reason.as_ref())) {
            let proposal = proposal(Rule::DriverMismatch, last, settings);
            return Some(Proposal {
                scope: Some(scope),
                ..proposal
            });
        }
        self.rule(last, settings)
            .map(|rule| proposal(rule, last, settings))
    }

    fn rule(&self, last: &Attempt, settings: &Settings) -> Option<Rule> {
        let at_least = |n: i64, setting: u32| n >= i64::from(setting.max(1));
        let reason = last.reason.as_ref();
        let counted = self.successful + self.failed;
        let low = self
            .success_rate()
            .is_some_and(|rate| rate < settings.min_success_rate);
        if reason.is_some_and(|r| settings.is_critical(r)) {
            let timeout = reason == Some(&Reason::BootTimeout);
            Some(if timeout {
                Rule::Timeout
            } else {
                Rule::HardwareError
            })
        } else if at_least(self.consecutive_failures, settings.consecutive_failures) {
            Some(Rule::ConsecutiveFailures)
        } else if at_least(counted, settings.min_attempts) && low {
            Some(Rule::LowSuccessRate)
        } else if settings.rules == RuleSet::Default && reason.is_some_and(is_suspected_fault) {
            Some(Rule::SuspectedFault)
        } else {
            None
        }
    }

    fn settled(&self, at: Timestamp) -> bool {
        self.since.is_some_and(|since| at <= since)
    }
}

/// Charges `last` to the window where it may be charged, and says what follows. Attempts that
/// do not count, are settled, or (by default) are suspect or a driver's, change nothing.
pub fn judge(
    window: &mut Window,
    last: &Attempt,
    around: &Circumstances,
    settings: &Settings,
) -> Option<Proposal> {
    let counted = counts(last.outcome, last.reason.as_ref(), around, settings.rules);
    if let Some(success) = counted.filter(|_| !window.settled(last.at)) {
        window.record(success);
    }
    window.decide(last, around, settings)
}

/// Our program ran in the container and the GPU could not be used from there: the host's doing,
/// most likely, and often over after its next restart.
fn is_suspected_fault(reason: &Reason) -> bool {
    matches!(reason, Reason::GpuNotReady | Reason::DriverMismatch)
}

fn proposal(rule: Rule, last: &Attempt, settings: &Settings) -> Proposal {
    let blacklist_type = match rule {
        Rule::SuspectedFault | Rule::FrequentInterrupts => BlacklistType::Temporary,
        _ => BlacklistType::Automatic,
    };
    Proposal {
        blacklist_type,
        rule,
        reason: last
            .reason
            .as_ref()
            .map_or(rule.as_str(), Reason::as_str)
            .to_owned(),
        duration: settings.duration(blacklist_type),
        scope: None,
    }
}

words! {
    /// Why a machine was lost after it was ready.
    pub enum LossCause: "loss cause" {
        /// It vanished, stopped or was taken by its operator.
        Host => "host",
        /// The account's own: a person stopped it, or its credit ran out.
        UserStop => "user_stop",
        /// Its own, as it was told to: no controller was there for long.
        Abandoned => "abandoned",
        /// A higher bid took an interruptible machine: our own bid was too low.
        Outbid => "outbid",
    }
}

impl LossCause {
    /// It counts toward `frequent_interrupts`.
    pub const fn counts(self) -> bool {
        matches!(self, Self::Host)
    }
}

/// What follows from the losses of one machine after it was ready, at the moment of the last.
/// Those before the window's watermark are settled.
pub fn judge_losses(
    losses: &[(Timestamp, LossCause)],
    window: &Window,
    suspect: bool,
    now: Timestamp,
    settings: &Settings,
) -> Option<Proposal> {
    if settings.rules == RuleSet::Default && suspect {
        return None;
    }
    let from = now.minus(Duration::from_secs(u64::from(settings.interrupt_days) * 86_400));
    let counted = losses
        .iter()
        .filter(|(at, cause)| cause.counts() && *at > from && *at <= now && !window.settled(*at))
        .count();
    (counted >= settings.interrupts.max(1) as usize).then(|| Proposal {
        blacklist_type: BlacklistType::Temporary,
        rule: Rule::FrequentInterrupts,
        reason: Reason::FrequentInterrupts.as_str().to_owned(),
        duration: settings.duration(BlacklistType::Temporary),
        scope: None,
    })
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
