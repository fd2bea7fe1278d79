//! The market itself: who is there, how good they really are, and what would happen.

use crate::parameters::Parameters;
use crate::statistics::quantile;
use dumont_core::boot::{BootCurves, Curve, Observation, Speed, Stratum, Wait};
use dumont_core::history::Reason;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Beta, Distribution, Exp, LogNormal};
use std::collections::HashMap;

const DAY: f64 = 86_400.0;
const HOUR: f64 = 3_600.0;

/// A machine as it really is.
pub struct Machine {
    pub operator: usize,
    pub price: f64,
    pub reliability: f64,
    pub download_mbps: f64,
    /// Chance to become ready, from each time on.
    success: Vec<(f64, f64)>,
    /// Moments it comes or goes; it starts absent where the first is `present_first`.
    toggles: Vec<f64>,
    present_first: bool,
}

impl Machine {
    pub fn success(&self, t: f64) -> f64 {
        let era = self.success.partition_point(|(from, _)| *from <= t);
        self.success[era.max(1) - 1].1
    }

    pub fn present(&self, t: f64) -> bool {
        let flips = self.toggles.partition_point(|at| *at <= t);
        self.present_first == flips.is_multiple_of(2)
    }
}

/// One request for a machine.
#[derive(Clone, Copy)]
pub struct Deploy {
    pub number: u64,
    pub at: f64,
    pub image: usize,
    pub kept: f64,
    /// Counts in the result: after the warm-up, outside incidents and broken images.
    pub scored: bool,
}

/// What would come of renting a machine.
#[derive(Debug, Clone, PartialEq)]
pub enum Fate {
    /// The offer is gone.
    Gone,
    /// Ready so many seconds after the rent.
    Ready(f64),
    /// Says so itself after so many seconds.
    Fails(f64, Reason),
    Hangs,
}

#[derive(Clone, Copy)]
struct Span {
    from: f64,
    to: f64,
    /// Operator or image; unused for incidents.
    whom: usize,
}

impl Span {
    fn covers(&self, t: f64) -> bool {
        self.from <= t && t < self.to
    }
}

pub struct World {
    pub parameters: Parameters,
    seed: u64,
    pub machines: Vec<Machine>,
    pub deploys: Vec<Deploy>,
    image_gb: Vec<f64>,
    incidents: Vec<Span>,
    outages: Vec<Span>,
    broken: Vec<Span>,
}

/// A stream of its own for every purpose, so that one draw more here changes nothing there.
fn stream(seed: u64, purpose: u64, a: u64, b: u64) -> StdRng {
    let mut key = 0x6a09_e667_f3bc_c908_u64;
    for part in [seed, purpose, a, b] {
        key = (key ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        key ^= key >> 29;
    }
    StdRng::seed_from_u64(key)
}

/// From a distribution whose parameters are this file's and valid; the median where not.
fn lognormal(rng: &mut StdRng, median: f64, sigma: f64) -> f64 {
    LogNormal::new(median.ln(), sigma).map_or(median, |d| d.sample(rng))
}

fn beta(rng: &mut StdRng, mean: f64, weight: f64) -> f64 {
    Beta::new(mean * weight, (1.0 - mean) * weight).map_or(mean, |d| d.sample(rng))
}

fn exponential(rng: &mut StdRng, mean: f64) -> f64 {
    Exp::new(1.0 / mean).map_or(mean, |d| d.sample(rng))
}

/// Moments of a Poisson process before `end`.
fn arrivals(rng: &mut StdRng, per_day: f64, end: f64) -> Vec<f64> {
    let mut out = Vec::new();
    if per_day > 0.0 {
        let mut at = exponential(rng, DAY / per_day);
        while at <= end {
            out.push(at);
            at += exponential(rng, DAY / per_day);
        }
    }
    out
}

impl World {
    pub fn new(seed: u64, parameters: Parameters) -> Self {
        let p = &parameters;
        let end = p.days * DAY;
        let spans = |purpose, per_day: f64, hours: f64, n: usize| {
            let mut rng = stream(seed, purpose, 0, 0);
            let starts = arrivals(&mut rng, per_day, end);
            let span = |from| Span {
                from,
                to: from + exponential(&mut rng, hours * HOUR),
                whom: rng.random_range(0..n.max(1)),
            };
            starts.into_iter().map(span).collect()
        };
        let mut images = stream(seed, 5, 0, 0);
        let image_gb = (0..p.images).map(|_| lognormal(&mut images, p.image_gb.0, p.image_gb.1));
        let mut world = Self {
            parameters,
            seed,
            machines: machines(seed, p, end),
            deploys: Vec::new(),
            image_gb: image_gb.collect(),
            incidents: spans(2, p.incidents_per_day, p.incident_hours, 1),
            outages: spans(3, p.outages_per_day, p.outage_hours, p.operators),
            broken: spans(4, p.broken_images_per_day, p.broken_image_hours, p.images),
        };
        world.deploys = world.requests(end);
        world
    }

    fn requests(&self, end: f64) -> Vec<Deploy> {
        let p = &self.parameters;
        let mut rng = stream(self.seed, 6, 0, 0);
        let weights: Vec<f64> = (1..=p.images).map(|k| (k as f64).powf(-p.image_skew)).collect();
        let total: f64 = weights.iter().sum();
        let mut out = Vec::new();
        for at in arrivals(&mut rng, p.deploys_per_day, end) {
            let mut left = rng.random::<f64>() * total;
            let image = weights.iter().position(|w| {
                left -= w;
                left <= 0.0
            });
            let image = image.unwrap_or(0);
            let disturbed = self.incidents.iter().any(|s| s.covers(at))
                || self.broken.iter().any(|s| s.whom == image && s.covers(at));
            out.push(Deploy {
                number: out.len() as u64,
                at,
                image,
                kept: exponential(&mut rng, p.kept_hours * HOUR),
                scored: at >= p.warm_up_days * DAY && !disturbed,
            });
        }
        out
    }

    /// What renting the machine for this deploy comes to. `idle` is how long ago, in seconds,
    /// this machine last booted the image.
    pub fn fate(&self, deploy: &Deploy, machine: usize, idle: Option<f64>) -> Fate {
        let p = &self.parameters;
        let m = &self.machines[machine];
        let mut rng = stream(self.seed, 7, deploy.number, machine as u64);
        // All are drawn whatever comes, so that a fate changes smoothly with the assumptions.
        let [gone, works, kind, caught, cached] = std::array::from_fn(|_| rng.random::<f64>());
        let boot = self.boot_seconds(&mut rng, deploy.image, m, cached < self.cached(idle));
        let fails_after = lognormal(&mut rng, p.failure_seconds.0, p.failure_seconds.1);
        let covered = |spans: &[Span], whom| spans.iter().any(|s| s.covers(deploy.at) && s.whom == whom);
        let broken = covered(&self.broken, deploy.image);
        let caught = covered(&self.incidents, 0) && caught < p.incident_failing;
        let down = covered(&self.outages, m.operator);
        if gone < p.offer_gone {
            Fate::Gone
        } else if works < m.success(deploy.at) && !broken && !caught && !down {
            Fate::Ready(boot)
        } else if kind < p.hang_share {
            Fate::Hangs
        } else if kind < p.hang_share + p.hardware_share && !broken && !caught {
            Fate::Fails(fails_after, Reason::HardwareError)
        } else {
            Fate::Fails(fails_after, Reason::SshFailed)
        }
    }

    fn cached(&self, idle: Option<f64>) -> f64 {
        let p = &self.parameters;
        let ours = idle.map_or(0.0, |s| (-s / (p.cache_days * DAY)).exp());
        1.0 - (1.0 - ours) * (1.0 - p.cached_by_others)
    }

    fn boot_seconds(&self, rng: &mut StdRng, image: usize, m: &Machine, cached: bool) -> f64 {
        let p = &self.parameters;
        let start = lognormal(rng, p.start_seconds.0, p.start_seconds.1);
        let slack = lognormal(rng, 1.0, p.pull_sigma);
        let pull = self.image_gb[image] * 8_000.0 / m.download_mbps * slack;
        if cached { start } else { start + pull }
    }

    /// Quantiles of what a machine never used before needs, over machines and images as they
    /// are asked for: for the report.
    pub fn cold_boot(&self, quantiles: [f64; 2]) -> [f64; 2] {
        let mut rng = stream(self.seed, 8, 0, 0);
        let one = |(i, d): (usize, &Deploy)| {
            let m = &self.machines[i % self.machines.len()];
            let cached = rng.random::<f64>() < self.parameters.cached_by_others;
            self.boot_seconds(&mut rng, d.image, m, cached)
        };
        let mut boots: Vec<f64> = self.deploys.iter().enumerate().map(one).collect();
        boots.sort_by(f64::total_cmp);
        quantiles.map(|q| quantile(&boots, q))
    }
}

fn machines(seed: u64, p: &Parameters, end: f64) -> Vec<Machine> {
    let mut operators = stream(seed, 0, 0, 0);
    let shares: Vec<f64> = (0..p.operators)
        .map(|_| beta(&mut operators, p.lemon_share, p.operator_weight))
        .collect();
    (0..p.machines)
        .map(|i| {
            let mut rng = stream(seed, 1, i as u64, 0);
            // Half of them have one machine each; the rest go to some operators more than others.
            let operator = if i < p.operators {
                i
            } else {
                (rng.random::<f64>().powi(2) * p.operators as f64) as usize
            };
            machine(&mut rng, p, operator, shares[operator], end)
        })
        .collect()
}

fn machine(rng: &mut StdRng, p: &Parameters, operator: usize, lemons: f64, end: f64) -> Machine {
    let mut success = Vec::new();
    let mut from = 0.0;
    let mut lemon_first = false;
    while from <= end {
        let lemon = rng.random::<f64>() < lemons;
        let (mean, weight) = if lemon {
            (p.lemon_success, p.success_weight.1)
        } else {
            (p.good_success, p.success_weight.0)
        };
        if success.is_empty() {
            lemon_first = lemon;
        }
        success.push((from, beta(rng, mean, weight)));
        from += exponential(rng, p.quality_days * DAY);
    }
    let pick = |pair: (f64, f64)| if lemon_first { pair.1 } else { pair.0 };
    let discount = if lemon_first { 1.0 - p.lemon_discount } else { 1.0 };
    let price = lognormal(rng, discount, p.price_sigma);
    let down = lognormal(rng, pick(p.downtime_median), p.downtime_sigma);
    let download_mbps = lognormal(rng, p.download_mbps.0, p.download_mbps.1).max(50.0);
    let share = Beta::new(p.presence.0, p.presence.1).map_or(0.5, |d| d.sample(rng));
    let share = share.clamp(0.001, 0.999);
    let present_first = rng.random::<f64>() < share;
    let (mut at, mut here, mut toggles) = (0.0, present_first, Vec::new());
    while at <= end {
        let mean = if here { share } else { 1.0 - share };
        at += exponential(rng, mean * p.presence_cycle_hours * HOUR);
        toggles.push(at);
        here = !here;
    }
    Machine {
        operator,
        price,
        reliability: 1.0 - down.min(0.4),
        download_mbps,
        success,
        toggles,
        present_first,
    }
}

/// The true boot curves, for the policy that knows them; by image, speed and whether the image
/// may be cached.
#[derive(Default)]
pub struct TrueCurves {
    known: HashMap<(usize, i32, i32), Curve>,
}

impl TrueCurves {
    /// Speeds and probabilities are taken in steps of some percent: exact enough to be the
    /// truth, coarse enough to be computed once.
    fn key(world: &World, image: usize, machine: usize, idle: Option<f64>) -> (usize, i32, i32) {
        let speed = (world.machines[machine].download_mbps.ln() * 10.0).round() as i32;
        (image, speed, (world.cached(idle) * 20.0).round() as i32)
    }

    pub fn learn(&mut self, world: &World, image: usize, machine: usize, idle: Option<f64>) {
        let key = Self::key(world, image, machine, idle);
        self.known.entry(key).or_insert_with(|| {
            let mut rng = stream(world.seed, 9, key.0 as u64, (key.1 * 100 + key.2) as u64);
            let stratum = Stratum {
                speed: Speed::Fast,
                warm: false,
            };
            let seen: Vec<Observation> = (0..1_000)
                .map(|i| Observation {
                    stratum,
                    seconds: {
                        let cached = (f64::from(i) + 0.5) / 1_000.0 < world.cached(idle);
                        world.boot_seconds(&mut rng, image, &world.machines[machine], cached)
                    },
                    wait: Wait::Ready,
                })
                .collect();
            BootCurves::fit(&seen).curve(stratum).clone()
        });
    }

    /// `None` where it was not learned before.
    pub fn curve(&self, world: &World, image: usize, machine: usize, idle: Option<f64>) -> Option<&Curve> {
        self.known.get(&Self::key(world, image, machine, idle))
    }
}
