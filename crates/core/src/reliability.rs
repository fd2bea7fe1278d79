//! The reliability score: what an attempt on a machine is expected to be worth now.
//!
//! A raw rate says nothing before the third attempt, forgets nothing, and knows nothing of who
//! operates the machine. The score is the mean of a Beta posterior instead. Its prior is what
//! the operator's *other* machines did, and theirs is what machines of the same provider-given
//! uptime did; every count halves in 14 days.
//!
//! The hard part is an attempt that we ended ourselves. A racer that was cut off after `e`
//! seconds is neither a success nor a failure: it would have come later with probability
//! `p(1-G)/(1-pG)`, where `G` is the share of good boots that are over by `e`. So it counts for
//! a fraction `G` of an attempt, split in these proportions. Cut off at once, it counts for
//! nothing; after the slowest boots, as the failure that it is; and a machine is not punished
//! for racing against faster ones.
//!
//! Counts are stored as sums with the time they are as of. Reading them at `now` decays them,
//! so nothing has to be rewritten as time passes and a stored score cannot be stale. Sums are
//! linear: attempts may be added in any order, and subtracted (an operator's other machines).

use crate::blacklist::Circumstances;
use crate::history::{Outcome, Reason};
use crate::time::Timestamp;
use crate::words;
use serde::{Deserialize, Serialize};

/// Days in which a count halves.
pub const HALF_LIFE_DAYS: f64 = 14.0;
/// What a machine of unknown uptime and operator is taken to be worth, and how many attempts
/// that is worth against the bucket's own record: (8.5 + s) / (10 + s + f).
pub const FLEET_MEAN: f64 = 0.85;
pub const FLEET_WEIGHT: f64 = 10.0;
/// Attempts that the bucket's mean is worth against the operator's other machines.
pub const OPERATOR_WEIGHT: f64 = 5.0;
/// Attempts that the operator's mean is worth against the machine's own record.
pub const MACHINE_WEIGHT: f64 = 3.0;
/// What a failure during an incident still counts.
pub const SUSPECT_WEIGHT: f64 = 0.1;
/// The soft block: the upper 95 % bound of the score is below this.
pub const SOFT_BLOCK_BELOW: f64 = 0.3;

words! {
    /// The provider's own uptime figure in four classes, each with a record of its own.
    pub enum Bucket: "reliability bucket" {
        Low => "low",
        Medium => "medium",
        High => "high",
        Top => "top",
    }
}

impl Bucket {
    /// Below 0.95, 0.985, 0.997, or above. A figure that is no number reads as the lowest.
    pub fn of(provider_reliability: f64) -> Self {
        match provider_reliability {
            r if r >= 0.997 => Self::Top,
            r if r >= 0.985 => Self::High,
            r if r >= 0.95 => Self::Medium,
            _ => Self::Low,
        }
    }
}

/// How an attempt ended, as the score sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Exit {
    Ready,
    /// The machine itself showed that it will not come; `suspect` while the guard is on.
    Explicit {
        suspect: bool,
    },
    /// We stopped waiting: a timeout, or other machines were the better bet.
    GaveUp {
        suspect: bool,
    },
    LostRace,
    NotHost,
}

impl Exit {
    /// `was_ready`: it came, be it after the winner. A boot timeout is us giving up, however
    /// late: what it counts is then the curve's to say. A driver too old for the CUDA version
    /// asked for says nothing about other images, and blocks by its own rule; one that serves
    /// nobody is a failure like others.
    pub fn of(outcome: Outcome, reason: Option<&Reason>, was_ready: bool, around: &Circumstances) -> Self {
        let suspect = around.suspect;
        match (outcome, reason) {
            (Outcome::NotHost, _) => Self::NotHost,
            (Outcome::Failed, _) if around.scope_of(reason).is_some() => Self::NotHost,
            (Outcome::Won, _) => Self::Ready,
            (Outcome::LostRace | Outcome::GaveUp, _) if was_ready => Self::Ready,
            (Outcome::Failed, Some(Reason::BootTimeout)) | (Outcome::GaveUp, _) => Self::GaveUp { suspect },
            (Outcome::Failed, _) => Self::Explicit { suspect },
            (Outcome::LostRace, _) => Self::LostRace,
        }
    }
}

/// Fractional successes and failures: what one attempt adds, or a sum read at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Counts {
    pub s: f64,
    pub f: f64,
}

impl Counts {
    pub const fn new(s: f64, f: f64) -> Self {
        Self { s, f }
    }

    fn scaled(self, by: f64) -> Self {
        Self::new(self.s * by, self.f * by)
    }

    fn plus(self, other: Self) -> Self {
        Self::new(self.s + other.s, self.f + other.f)
    }

    /// Without `part`, which is contained in it; rounding never makes it negative.
    pub fn without(self, part: Self) -> Self {
        Self::new((self.s - part.s).max(0.0), (self.f - part.f).max(0.0))
    }
}

/// What an attempt adds to the sums of its machine, its operator and its bucket. `g` is the
/// share of good boots that are over by the elapsed time ([`crate::boot::Curve::g`]), `p` the
/// machine's score when the attempt ended. Store the result with the attempt: `p` and `g` move
/// on, and a recount must give the same sums.
pub fn contribution(exit: Exit, g: f64, p: f64) -> Counts {
    let weight = |suspect: bool| if suspect { SUSPECT_WEIGHT } else { 1.0 };
    match exit {
        Exit::Ready => Counts::new(1.0, 0.0),
        Exit::Explicit { suspect } => Counts::new(0.0, weight(suspect)),
        Exit::GaveUp { suspect } => censored(g, p).scaled(weight(suspect)),
        Exit::LostRace => censored(g, p),
        Exit::NotHost => Counts::default(),
    }
}

/// `G` of an attempt, split by what it would have become: D = 1 - pG,
/// s = G p (1 - G) / D, f = G (1 - p) / D.
fn censored(g: f64, p: f64) -> Counts {
    let (g, p) = (unit(g), unit(p));
    let d = 1.0 - p * g;
    if d <= f64::EPSILON {
        // It was certain to be up by now and is not: the limit of a sure machine.
        return Counts::new(0.0, g);
    }
    Counts::new(g * p * (1.0 - g) / d, g * (1.0 - p) / d)
}

fn unit(x: f64) -> f64 {
    if x.is_finite() { x.clamp(0.0, 1.0) } else { 0.0 }
}

/// Decayed counts as of a moment: what the database keeps of a machine, an operator or a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Sums {
    pub counts: Counts,
    pub as_of: Timestamp,
}

impl Sums {
    /// Adds an attempt that ended at `at`, which may lie before what was added last.
    pub fn add(&mut self, counts: Counts, at: Timestamp) {
        let as_of = self.as_of.max(at);
        self.counts = self
            .counts
            .scaled(decay(self.as_of, as_of))
            .plus(counts.scaled(decay(at, as_of)));
        self.as_of = as_of;
    }

    /// The counts as they weigh at `now`. Before `as_of` (a clock set back) they do not grow.
    pub fn read(&self, now: Timestamp) -> Counts {
        self.counts.scaled(decay(self.as_of, now))
    }
}

/// 2^(-dt / 14 d), never above 1.
fn decay(from: Timestamp, to: Timestamp) -> f64 {
    let days = to.0.saturating_sub(from.0).max(0) as f64 / 86_400e6;
    (-days / HALF_LIFE_DAYS).exp2()
}

/// Everything the score of one machine depends on. Each level is optional in the sense that
/// empty sums are "nothing known"; an operator that the provider does not name is that.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Evidence {
    pub machine: Sums,
    /// All machines of the operator, this one included.
    pub operator: Sums,
    /// All machines of the uptime bucket.
    pub bucket: Sums,
}

impl Evidence {
    pub fn posterior(&self, now: Timestamp) -> Posterior {
        let machine = self.machine.read(now);
        Posterior::new(
            self.bucket.read(now),
            self.operator.read(now).without(machine),
            machine,
        )
    }

    /// [`Posterior::score`] at `now`.
    pub fn score(&self, now: Timestamp) -> f64 {
        self.posterior(now).score()
    }
}

/// What is believed of a machine's chance to become ready: Beta(alpha, beta).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Posterior {
    pub alpha: f64,
    pub beta: f64,
}

impl Posterior {
    pub fn new(bucket: Counts, operator_others: Counts, machine: Counts) -> Self {
        let bucket_mean = drawn(bucket, FLEET_MEAN, FLEET_WEIGHT);
        let operator_mean = drawn(operator_others, bucket_mean, OPERATOR_WEIGHT);
        Self {
            alpha: MACHINE_WEIGHT * operator_mean + machine.s,
            beta: MACHINE_WEIGHT * (1.0 - operator_mean) + machine.f,
        }
    }

    /// The posterior's mean, in [0, 1].
    pub fn score(&self) -> f64 {
        self.alpha / self.weight()
    }

    /// Attempts it stands on, the prior's three included.
    pub fn weight(&self) -> f64 {
        self.alpha + self.beta
    }

    /// The score's upper 95 % bound (normal approximation).
    pub fn upper(&self) -> f64 {
        let p = self.score();
        p + 1.64 * (p * (1.0 - p) / (self.weight() + 1.0)).sqrt()
    }

    /// Even read kindly it is a bad machine. Ignored where too few others remain
    /// ([`crate::blacklist::select`]).
    pub fn soft_blocked(&self) -> bool {
        self.weight() > 5.0 && self.upper() < SOFT_BLOCK_BELOW
    }
}

/// The rate of `counts`, drawn to `mean` by `weight` attempts.
fn drawn(counts: Counts, mean: f64, weight: f64) -> f64 {
    (weight * mean + counts.s) / (weight + counts.s + counts.f)
}

#[cfg(test)]
#[path = "reliability_tests.rs"]
mod tests;
