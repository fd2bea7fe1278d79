//! As many machines as pay, judged anew every few seconds.
//!
//! A second racer costs money for as long as the race lasts and shortens it by an amount that
//! depends on the first: much when that one is doubtful or late, little when it is known and
//! quick. So the plan asks, every five seconds, what the rest of the race is expected to cost
//! with the racers `A` it has:
//!
//! J(A) = [ integral over 600 s of S(t) dt + 150 S(600) ] (1 + c (|A| - 1))
//!
//! where S(t) is the chance that nobody is ready by then, from each racer's score and boot
//! curve *given how long it has waited already*, and `c` the price of a racer's second over the
//! value of a waiting second. It rents when the best machine that is left lowers J by more than
//! a second, beside the racers or in the place of one, and drops a racer when J is lower without
//! it. A racer that hangs is thus hedged as soon as it is late, long before any timeout, and also
//! where only machines are left that are not worth their price beside it. Where nothing is left to
//! rent, the last one is waited for as long as good boots take.
//!
//! Everything else is the fixed plan's: the first that is ready wins, and there are hard limits.

use super::{Move, Racer, may_rent};
use crate::boot::{Curve, HORIZON_SECONDS};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Seconds that a race is looked ahead, and what it costs beyond not to be ready by then.
const AHEAD_SECONDS: f64 = 600.0;
const UNREADY_COST_SECONDS: f64 = 150.0;
/// Step of the integral.
const STEP_SECONDS: f64 = 5.0;
const STEPS: usize = (AHEAD_SECONDS / STEP_SECONDS) as usize;
/// What a change must gain, seconds of J, to be made.
const GAIN_SECONDS: f64 = 1.0;
/// A machine's promise is what it may do in this time.
const PROMISE_SECONDS: f64 = 300.0;

/// Limits and prices of an adaptive race.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdaptiveSettings {
    /// Machines in the race at one time.
    pub max_active: usize,
    /// Rents in all; refused ones rented nothing, with them it may be twice as many.
    pub max_rents: usize,
    /// `c`: price of a racer's second over the value of a waiting second.
    pub racer_cost: f64,
    /// A racer younger than this is never dropped.
    pub drop_after: Duration,
    /// Least time between two rents.
    pub stagger: Duration,
    /// How often the race is judged.
    pub every: Duration,
}

impl Default for AdaptiveSettings {
    fn default() -> Self {
        Self {
            max_active: 8,
            max_rents: 15,
            racer_cost: 0.1,
            drop_after: Duration::from_secs(30),
            stagger: Duration::from_secs(1),
            every: Duration::from_secs(5),
        }
    }
}

/// What is expected of one machine: its score, and the boot curve of its stratum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Odds<'a> {
    pub score: f64,
    pub curve: &'a Curve,
}

impl Odds<'_> {
    /// The chance to be ready within `t` more seconds after `elapsed` in vain:
    /// p (G(e+t) - G(e)) / (1 - p G(e)).
    pub fn ready_within(&self, elapsed: f64, t: f64) -> f64 {
        let p = if self.score.is_finite() {
            self.score.clamp(0.0, 1.0)
        } else {
            0.0
        };
        let before = self.curve.g(elapsed);
        let left = 1.0 - p * before;
        if left <= f64::EPSILON {
            return 0.0;
        }
        (p * (self.curve.g(elapsed + t) - before) / left).clamp(0.0, 1.0)
    }

    /// What machines are chosen by, best first: the time that it is expected to be up in the
    /// first 300 seconds.
    pub fn promise(&self) -> f64 {
        self.score * self.curve.integral(PROMISE_SECONDS)
    }

    /// 1 - F at every step ahead.
    fn missing(&self, elapsed: f64) -> Missing {
        let mut out = [1.0; STEPS + 1];
        for (step, m) in out.iter_mut().enumerate() {
            *m = 1.0 - self.ready_within(elapsed, step as f64 * STEP_SECONDS);
        }
        out
    }
}

type Missing = [f64; STEPS + 1];

/// One racer and what is expected of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bet<'a> {
    pub racer: Racer,
    pub odds: Odds<'a>,
}

/// Judges a race. `racers` are all that were rented, in that order; `best` is the machine with
/// the highest [`Odds::promise`] of those not tried, `since_rent` the time since the last rent.
pub fn next(
    settings: &AdaptiveSettings,
    racers: &[Bet],
    best: Option<Odds>,
    since_rent: Option<Duration>,
) -> Move {
    if let Some(winner) = racers.iter().position(|r| r.racer == Racer::Ready) {
        return Move::Win(winner);
    }
    let active = active(racers);
    if let Some(late) = active.iter().find(|a| a.elapsed >= HORIZON_SECONDS) {
        return Move::GiveUp(late.at);
    }
    let now = cost(settings, active.iter().map(|a| &a.missing));
    let out = to_drop(settings, &active, now);
    let may_rent = may_rent(settings.max_rents, racers.iter().map(|r| r.racer));
    let best = best.filter(|_| may_rent && active.len() < settings.max_active);
    if let Some(odds) = best {
        let new = odds.missing(0.0);
        let with = cost(settings, active.iter().map(|a| &a.missing).chain([&new]));
        let pays = with < now - GAIN_SECONDS || (out.is_none() && replaces(settings, &active, &new, now));
        if active.is_empty() || pays {
            let early = since_rent.and_then(|s| settings.stagger.checked_sub(s));
            return match early.filter(|d| !d.is_zero()) {
                Some(left) => Move::Wait(left),
                None => Move::Rent,
            };
        }
    }
    if active.is_empty() {
        return Move::Exhausted;
    }
    match out {
        Some(a) if a.elapsed >= racers[a.at].odds.curve.patience() => Move::GiveUp(a.at),
        Some(a) => Move::Drop(a.at),
        None => match &active[..] {
            // Nobody else is to come: an end lets others begin anew, who search again.
            [last] if best.is_none() && last.elapsed >= racers[last.at].odds.curve.patience() => {
                Move::GiveUp(last.at)
            }
            _ => Move::Wait(settings.every),
        },
    }
}

struct Active {
    at: usize,
    elapsed: f64,
    missing: Missing,
}

impl Active {
    fn is_old(&self, settings: &AdaptiveSettings) -> bool {
        self.elapsed > settings.drop_after.as_secs_f64()
    }
}

fn active(racers: &[Bet]) -> Vec<Active> {
    let one = |(at, bet): (usize, &Bet)| match bet.racer {
        Racer::Racing { elapsed } => {
            let elapsed = elapsed.as_secs_f64();
            Some(Active {
                at,
                elapsed,
                missing: bet.odds.missing(elapsed),
            })
        }
        Racer::Ready | Racer::Out | Racer::Refused => None,
    };
    racers.iter().enumerate().filter_map(one).collect()
}

/// Whether the new one pays in the place of a racer that may be dropped. By twice the gain, so that
/// the one it replaces is dropped next, and the race does not grow.
fn replaces(settings: &AdaptiveSettings, active: &[Active], new: &Missing, now: f64) -> bool {
    active.iter().filter(|a| a.is_old(settings)).any(|out| {
        let rest = active.iter().filter(|a| a.at != out.at).map(|a| &a.missing);
        cost(settings, rest.chain([new])) < now - 2.0 * GAIN_SECONDS
    })
}

/// The racer that the race is cheapest without, if it is old enough and that gains enough.
fn to_drop<'a>(settings: &AdaptiveSettings, active: &'a [Active], now: f64) -> Option<&'a Active> {
    if active.len() < 2 {
        return None;
    }
    let without = |out: &Active| {
        let rest = active.iter().filter(|a| a.at != out.at).map(|a| &a.missing);
        cost(settings, rest)
    };
    active
        .iter()
        .filter(|a| a.is_old(settings))
        .map(|a| (without(a), a))
        .filter(|(j, _)| *j < now - GAIN_SECONDS)
        .min_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, a)| a)
}

/// J(A), seconds. Infinite for an empty race, which never gets ready.
fn cost<'a>(settings: &AdaptiveSettings, racers: impl Iterator<Item = &'a Missing>) -> f64 {
    let mut survival = [1.0; STEPS + 1];
    let mut n = 0;
    for missing in racers {
        n += 1;
        survival.iter_mut().zip(missing).for_each(|(s, m)| *s *= m);
    }
    if n == 0 {
        return f64::INFINITY;
    }
    let ends = (survival[0] + survival[STEPS]) / 2.0;
    let area = (survival[1..STEPS].iter().sum::<f64>() + ends) * STEP_SECONDS;
    let price = 1.0 + settings.racer_cost.max(0.0) * f64::from(n - 1);
    (area + UNREADY_COST_SECONDS * survival[STEPS]) * price
}

#[cfg(test)]
#[path = "adaptive_tests.rs"]
mod tests;
