//! How long a machine takes to boot, learned without being fooled by our own impatience.
//!
//! The boot times of race winners are short *because* they won: a timeout learned from them
//! cuts off half of all good boots, which makes the next winners faster still. An attempt that
//! we ended after `e` seconds is therefore kept as what it is, "not ready by `e`" (censored),
//! and one where the machine failed by itself competes with becoming ready. The estimator for
//! exactly that is Aalen and Johansen's: in every bin of five seconds the share of those still
//! waiting that became ready, times the share that got so far.
//!
//! Attempts are told apart by what boots depend on, download speed and whether the machine has
//! booted this lately (its image is cached): six strata, each drawn to the whole in proportion
//! to how little it has seen. A fit is a pass over at most 2,500 attempts and 6 x 180 bins, so
//! it may be made anew whenever attempts were added.

use crate::words;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Width of a bin, seconds.
pub const BIN_SECONDS: f64 = 5.0;
const BINS: usize = 180;
/// Where the curve ends: what is not ready by then is taken never to be.
pub const HORIZON_SECONDS: f64 = BIN_SECONDS * BINS as f64;
/// Attempts that a fit looks back on.
pub const LAST_ATTEMPTS: usize = 2_500;
/// Attempts to have seen before the learned curve replaces the assumed one.
pub const COLD_START_ATTEMPTS: usize = 25;
/// The assumed one: lognormal, median 90 s, sigma 0.6.
const COLD_MEDIAN_SECONDS: f64 = 90.0;
const COLD_SIGMA: f64 = 0.6;
/// Ready boots of its own at which a stratum counts as much as the whole.
const SHRINKAGE: f64 = 25.0;
/// A fixed-width race waits for this share of good boots, and a little longer.
const TIMEOUT_QUANTILE: f64 = 0.95;
const TIMEOUT_GRACE_SECONDS: f64 = 10.0;
/// Its timeout before anything is learned.
const COLD_TIMEOUT_SECONDS: f64 = 300.0;

words! {
    /// Download speed, in the classes that tell boots apart.
    pub enum Speed: "download speed" {
        Slow => "slow",
        Medium => "medium",
        Fast => "fast",
    }
}

/// What boot times are told apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stratum {
    pub speed: Speed,
    /// The machine became ready with this image within the last 7 days.
    pub warm: bool,
}

impl Stratum {
    /// Below 200 Mbit/s, below 800, or more.
    pub fn of(inet_down_mbps: f64, warm: bool) -> Self {
        let speed = match inet_down_mbps {
            v if v >= 800.0 => Speed::Fast,
            v if v >= 200.0 => Speed::Medium,
            _ => Speed::Slow,
        };
        Self { speed, warm }
    }

    pub const COUNT: usize = 6;

    fn index(self) -> usize {
        self.speed as usize * 2 + usize::from(self.warm)
    }
}

words! {
    /// How the wait for one machine ended.
    pub enum Wait: "wait" {
        Ready => "ready",
        /// The machine failed by itself.
        Failed => "failed",
        /// We ended it: lost race, given up, timeout.
        Censored => "censored",
    }
}

/// One attempt, as the fit sees it. Attempts that say nothing about boots (offer gone, our own
/// fault) and failures during an incident are left out by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    pub stratum: Stratum,
    pub seconds: f64,
    pub wait: Wait,
}

/// `G(t)`: of the boots that succeed, the share that is over by `t`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// At the end of each bin; the last is 1.
    ends: Vec<f64>,
    patience: f64,
}

impl Curve {
    /// Linear between the ends of bins; 0 before the request, 1 from the horizon on.
    pub fn g(&self, seconds: f64) -> f64 {
        if seconds.is_nan() || seconds <= 0.0 {
            return 0.0;
        }
        let bins = seconds / BIN_SECONDS;
        if bins >= self.ends.len() as f64 {
            return 1.0;
        }
        let bin = bins as usize;
        let before = if bin == 0 { 0.0 } else { self.ends[bin - 1] };
        before + (self.ends[bin] - before) * (bins - bin as f64)
    }

    /// The first moment, in seconds, by which a share `q` of good boots is over.
    pub fn quantile(&self, q: f64) -> f64 {
        let q = q.clamp(0.0, 1.0);
        let bin = self.ends.partition_point(|g| *g < q);
        let Some(end) = self.ends.get(bin) else {
            return HORIZON_SECONDS;
        };
        let before = if bin == 0 { 0.0 } else { self.ends[bin - 1] };
        let part = if *end > before {
            (q - before) / (end - before)
        } else {
            1.0
        };
        (bin as f64 + part) * BIN_SECONDS
    }

    /// The mean of G over the first `seconds`, times `seconds`: how much of that time a sure
    /// machine is expected to be up.
    pub fn integral(&self, seconds: f64) -> f64 {
        let mut sum = 0.0;
        let (mut at, mut g) = (0.0, 0.0);
        while at < seconds {
            let next = (at + BIN_SECONDS).min(seconds);
            let g_next = self.g(next);
            sum += (g + g_next) / 2.0 * (next - at);
            (at, g) = (next, g_next);
        }
        sum
    }

    /// The mean of good boots, in seconds.
    pub fn mean(&self) -> f64 {
        HORIZON_SECONDS - self.integral(HORIZON_SECONDS)
    }

    /// When the machine's own boot times are exhausted, in seconds: not being ready by then is
    /// its failure, before it is our impatience.
    pub fn patience(&self) -> f64 {
        self.patience
    }

    fn assumed() -> Self {
        let cdf = |t: f64| normal_cdf((t / COLD_MEDIAN_SECONDS).ln() / COLD_SIGMA);
        let total = cdf(HORIZON_SECONDS);
        Self {
            ends: (1..=BINS)
                .map(|bin| cdf(bin as f64 * BIN_SECONDS) / total)
                .collect(),
            patience: COLD_TIMEOUT_SECONDS,
        }
    }

    fn learned(ends: Vec<f64>) -> Self {
        let mut curve = Self { ends, patience: 0.0 };
        curve.patience = curve.quantile(TIMEOUT_QUANTILE) + TIMEOUT_GRACE_SECONDS;
        curve
    }
}

/// The normal distribution function (Abramowitz and Stegun 7.1.26, error below 2e-7).
fn normal_cdf(x: f64) -> f64 {
    let z = x.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let poly = t
        * (0.254_829_592
            + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    let erf = 1.0 - poly * (-z * z).exp();
    if x >= 0.0 {
        (1.0 + erf) / 2.0
    } else {
        (1.0 - erf) / 2.0
    }
}

/// Counts of one stratum by bin.
#[derive(Clone)]
struct Tally {
    ready: Vec<f64>,
    failed: Vec<f64>,
    censored: Vec<f64>,
    /// Past the horizon, still waiting.
    beyond: f64,
}

impl Tally {
    fn new() -> Self {
        let zeros = || vec![0.0; BINS];
        Self {
            ready: zeros(),
            failed: zeros(),
            censored: zeros(),
            beyond: 0.0,
        }
    }

    fn add(&mut self, seconds: f64, wait: Wait) {
        let bin = (seconds.max(0.0) / BIN_SECONDS) as usize;
        let counts = match wait {
            Wait::Ready => &mut self.ready,
            Wait::Failed => &mut self.failed,
            Wait::Censored => &mut self.censored,
        };
        match counts.get_mut(bin) {
            Some(n) => *n += 1.0,
            None => self.beyond += 1.0,
        }
    }

    fn readies(&self) -> f64 {
        self.ready.iter().sum()
    }

    /// Aalen-Johansen: F at the end of each bin, the chance to be ready by then.
    fn incidence(&self) -> Vec<f64> {
        let total = |v: &[f64]| v.iter().sum::<f64>();
        let mut waiting = total(&self.ready) + total(&self.failed) + total(&self.censored) + self.beyond;
        let (mut surviving, mut f) = (1.0, 0.0);
        let mut out = Vec::with_capacity(BINS);
        for bin in 0..BINS {
            let at_risk = waiting - self.censored[bin] / 2.0;
            if at_risk > 0.0 {
                let (h1, h2) = (self.ready[bin] / at_risk, self.failed[bin] / at_risk);
                f += surviving * h1;
                surviving *= (1.0 - h1 - h2).max(0.0);
            }
            waiting -= self.ready[bin] + self.failed[bin] + self.censored[bin];
            out.push(f);
        }
        out
    }
}

/// The curves of all strata, fitted to what was seen last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BootCurves {
    strata: Vec<Curve>,
    /// Attempts that the fit stands on.
    pub attempts: usize,
    /// Of them, those that became ready.
    pub ready: usize,
}

impl Default for BootCurves {
    /// Nothing seen yet.
    fn default() -> Self {
        Self::fit(&[])
    }
}

impl BootCurves {
    /// Fits to the newest [`LAST_ATTEMPTS`] of `observations` (oldest first).
    pub fn fit(observations: &[Observation]) -> Self {
        let skip = observations.len().saturating_sub(LAST_ATTEMPTS);
        let seen = &observations[skip..];
        let mut all = Tally::new();
        let mut strata = vec![Tally::new(); Stratum::COUNT];
        for o in seen {
            all.add(o.seconds, o.wait);
            strata[o.stratum.index()].add(o.seconds, o.wait);
        }
        let cold = seen.len() < COLD_START_ATTEMPTS;
        let pooled = all.incidence();
        let curves = strata.iter().map(|t| match cold {
            true => Curve::assumed(),
            false => mixed(t, &pooled),
        });
        Self {
            strata: curves.collect(),
            attempts: seen.len(),
            ready: all.readies() as usize,
        }
    }

    pub fn curve(&self, stratum: Stratum) -> &Curve {
        &self.strata[stratum.index()]
    }

    /// Too little was seen; the curves are the assumed ones.
    pub fn is_cold(&self) -> bool {
        self.attempts < COLD_START_ATTEMPTS
    }

    /// How long a race of fixed width waits for each machine: the mean over the candidates of
    /// the 95 % point of good boots, and ten seconds; 300 s before anything is learned.
    pub fn fixed_timeout(&self, candidates: &[Stratum]) -> Duration {
        if candidates.is_empty() {
            return Duration::from_secs_f64(COLD_TIMEOUT_SECONDS);
        }
        let sum: f64 = candidates.iter().map(|z| self.curve(*z).patience()).sum();
        Duration::from_secs_f64(sum / candidates.len() as f64)
    }
}

/// F_z drawn to F of all, w = r / (r + 25), scaled to end at 1.
fn mixed(stratum: &Tally, pooled: &[f64]) -> Curve {
    let r = stratum.readies();
    let w = r / (r + SHRINKAGE);
    let f: Vec<f64> = stratum
        .incidence()
        .iter()
        .zip(pooled)
        .map(|(z, all)| w * z + (1.0 - w) * all)
        .collect();
    match f.last() {
        // Not one boot was seen to succeed: nothing to learn from.
        None | Some(0.0) => Curve::assumed(),
        Some(total) => Curve::learned(f.iter().map(|x| x / total).collect()),
    }
}

#[cfg(test)]
#[path = "boot_tests.rs"]
mod tests;
