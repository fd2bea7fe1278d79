//! What changes on a market by itself, as a function of the seed and the time: pure.
//!
//! Nothing of this is simulated or stored. Time is cut into periods of a length that fits the
//! matter, each machine's with a phase of its own, and what is true in a period is drawn from
//! the seed, the matter, the machine and the period's number. So the same seed is the same
//! market at the same time, whoever asks and how often, and a market of a hundred thousand
//! machines costs nothing until one is looked at.

use crate::offers::{BootPlan, Machine};
use crate::presets::Weather;
use crate::rng::Draw;

/// Every matter has numbers of its own.
mod matter {
    pub const PRESENCE: u64 = 0x20;
    pub const SHARE: u64 = 0x21;
    pub const QUALITY: u64 = 0x22;
    pub const OPERATOR: u64 = 0x23;
    pub const PRICE: u64 = 0x24;
    pub const RIVAL: u64 = 0x25;
    pub const OUTAGE: u64 = 0x26;
    pub const REGISTRY: u64 = 0x27;
    pub const INCIDENT: u64 = 0x28;
    pub const IMAGE: u64 = 0x29;
    pub const CACHED: u64 = 0x2a;
    pub const RENTAL: u64 = 0x2b;
    pub const TAKER: u64 = 0x2c;
}

const DAY: f64 = 24.0;

/// What a rental will come to, before anybody knows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    Works,
    Gone,
    Hangs,
    SshDead,
    GpuMissing,
    /// Says so itself, while `created`.
    Fails,
}

/// One rental's fate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fate {
    pub outcome: Outcome,
    pub boot: BootPlan,
    /// Seconds that its keys lag, if they do.
    pub key_lag_s: Option<f64>,
    /// Hours after it is up until its machine is lost.
    pub dies_after_h: Option<f64>,
    pub reply_lost: bool,
}

/// The image that is wanted, and when this machine last had it.
#[derive(Debug, Clone, Copy)]
pub struct Image<'a> {
    pub name: &'a str,
    pub idle_h: Option<f64>,
}

pub struct Tides<'a> {
    pub seed: u64,
    pub weather: &'a Weather,
    /// How many operators there are.
    pub operators: usize,
}

impl Tides<'_> {
    /// Where in a period its first hour lies, as a share.
    fn phase(&self, matter: u64, who: u64) -> f64 {
        Draw::for_parts(&[self.seed, matter, who]).unit()
    }

    /// What is drawn for `who` in the period of this length that covers `hour`.
    fn period(&self, matter: u64, who: u64, hour: f64, length: f64) -> Draw {
        let phase = self.phase(matter, who) * length;
        let number = ((hour + phase) / length).floor() as u64;
        Draw::for_parts(&[self.seed, matter, who, 1 + number])
    }

    /// Whether something that happens so often a day for so many hours is going on.
    fn going_on(&self, matter: u64, who: u64, hour: f64, (per_day, hours): (f64, f64)) -> bool {
        self.period(matter, who, hour, hours)
            .chance(per_day * hours / DAY)
    }

    /// Until when what is said here of this machine's offer holds: the first period to end.
    pub fn offer_until(&self, machine: &Machine, hour: f64) -> f64 {
        let (w, p) = (self.weather, &self.weather.deploys);
        let end = |matter, who, length: f64| {
            let phase = self.phase(matter, who) * length;
            (((hour + phase) / length).floor() + 1.0) * length - phase
        };
        let id = machine.machine_id;
        end(matter::PRESENCE, id, p.presence_cycle_hours / 2.0)
            .min(end(matter::OUTAGE, machine.host_id, p.outage_hours))
            .min(end(matter::PRICE, id, w.price_hours))
            .min(end(matter::RIVAL, id, w.rival_hours))
            .min(end(matter::TAKER, id, w.taker_hours))
    }

    /// Whether its host has it on offer.
    pub fn present(&self, machine: &Machine, hour: f64) -> bool {
        let p = &self.weather.deploys;
        let id = machine.machine_id;
        let share = beta(&mut Draw::for_parts(&[self.seed, matter::SHARE, id]), p.presence);
        // A cycle is one period here and one there, on average.
        let length = p.presence_cycle_hours / 2.0;
        self.period(matter::PRESENCE, id, hour, length).chance(share) && !self.outage(machine, hour)
    }

    /// Whether its operator is without power or line: all machines of his at once.
    pub fn outage(&self, machine: &Machine, hour: f64) -> bool {
        let p = &self.weather.deploys;
        let each = p.outages_per_day / self.operators.max(1) as f64;
        self.going_on(matter::OUTAGE, machine.host_id, hour, (each, p.outage_hours))
    }

    /// Chance that a rental works. Machines are good or lemons until their quality is drawn
    /// anew: lemons heal, hosts rot; and bad ones sit together.
    pub fn quality(&self, machine: &Machine, hour: f64) -> f64 {
        let p = &self.weather.deploys;
        let mut operator = Draw::for_parts(&[self.seed, matter::OPERATOR, machine.host_id]);
        let weight = p.operator_weight;
        let lemons = beta(
            &mut operator,
            (p.lemon_share * weight, (1.0 - p.lemon_share) * weight),
        );
        let mut draw = self.period(matter::QUALITY, machine.machine_id, hour, p.quality_days * DAY);
        let mean = if draw.chance(lemons) {
            p.lemon_success
        } else {
            p.good_success
        };
        (mean + draw.range(-0.05, 0.05)).clamp(0.0, 1.0)
    }

    /// What prices of this machine are multiplied with.
    pub fn price_factor(&self, machine: &Machine, hour: f64) -> f64 {
        self.period(matter::PRICE, machine.machine_id, hour, self.weather.price_hours)
            .lognormal(1.0, self.weather.price_sigma)
    }

    /// What somebody bids for this machine now, in lowest bids; 1 is nobody.
    pub fn rival(&self, machine: &Machine, hour: f64) -> f64 {
        let w = self.weather;
        let mut draw = self.period(matter::RIVAL, machine.machine_id, hour, w.rival_hours);
        if draw.chance(w.rival_share) {
            draw.range(1.0, w.rival_most)
        } else {
            1.0
        }
    }

    /// Whether somebody has this machine on demand, against whom no bid stands.
    pub fn taken(&self, machine: &Machine, hour: f64) -> bool {
        let w = self.weather;
        self.period(matter::TAKER, machine.machine_id, hour, w.taker_hours)
            .chance(w.taker_share)
    }

    fn registry_down(&self, image: &str, hour: f64) -> bool {
        let p = &self.weather.deploys;
        let how = (p.broken_images_per_day, p.broken_image_hours);
        self.going_on(matter::REGISTRY, hash(registry(image)), hour, how)
    }

    fn incident(&self, hour: f64) -> bool {
        let p = &self.weather.deploys;
        self.going_on(matter::INCIDENT, 0, hour, (p.incidents_per_day, p.incident_hours))
    }

    /// The `nth` rental of this machine.
    pub fn fate(&self, machine: &Machine, nth: u64, image: Image<'_>, hour: f64) -> Fate {
        let (w, p) = (self.weather, &self.weather.deploys);
        let mut draw = Draw::for_parts(&[self.seed, matter::RENTAL, machine.machine_id, nth]);
        // All are drawn whatever comes, so that one parameter changes one thing.
        let [gone, works, kind, caught, ssh, lags, lost] = std::array::from_fn(|_| draw.unit());
        let cached = self.cached(machine, image);
        let boot = self.boot(&mut draw, machine, image, cached);
        let key_lag = draw.range(w.key_lag_s.0, w.key_lag_s.1);
        let life = -draw.unit().max(1e-12).ln() * DAY / w.deaths_per_day.max(1e-9);
        let caught = self.incident(hour) && caught < p.incident_failing;
        let outcome = if gone < p.offer_gone {
            Outcome::Gone
        } else if !cached && self.registry_down(image.name, hour) {
            Outcome::Fails
        } else if works < self.quality(machine, hour) && !caught {
            Outcome::Works
        } else if kind < p.hang_share {
            if ssh < 0.5 {
                Outcome::SshDead
            } else {
                Outcome::Hangs
            }
        } else if kind < p.hang_share + p.hardware_share {
            Outcome::GpuMissing
        } else {
            Outcome::Fails
        };
        Fate {
            outcome,
            boot,
            key_lag_s: (lags < w.key_lag_share).then_some(key_lag),
            dies_after_h: (w.deaths_per_day > 0.0).then_some(life),
            reply_lost: lost < w.lost_replies,
        }
    }

    /// Whether the image is there: from us, or left by somebody else.
    fn cached(&self, machine: &Machine, image: Image<'_>) -> bool {
        let p = &self.weather.deploys;
        let ours = image.idle_h.is_some_and(|idle| idle < p.cache_days * DAY);
        let others = Draw::for_parts(&[self.seed, matter::CACHED, machine.machine_id, hash(image.name)]);
        ours || others.clone().chance(p.cached_by_others)
    }

    /// First pull slow, second fast.
    fn boot(&self, draw: &mut Draw, machine: &Machine, image: Image<'_>, cached: bool) -> BootPlan {
        let (w, p) = (self.weather, &self.weather.deploys);
        let start = draw.lognormal(p.start_seconds.0, p.start_seconds.1);
        let slack = draw.lognormal(1.0, p.pull_sigma);
        let sshd_s = draw.range(w.sshd_s.0, w.sshd_s.1).powi(2) / w.sshd_s.1.max(1.0);
        let mut size = Draw::for_parts(&[self.seed, matter::IMAGE, hash(image.name)]);
        let gb = size.lognormal(p.image_gb.0, p.image_gb.1);
        let pull = if cached {
            0.0
        } else {
            gb * 8_000.0 / machine.inet_down.max(1.0) * slack
        };
        BootPlan {
            created_s: start * 0.1,
            loading_s: start * 0.6 + pull,
            sshd_s,
        }
    }
}

/// `ghcr.io/a/b:c` comes from `ghcr.io`, `a/b` from Docker's own.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) => host,
        _ => "docker.io",
    }
}

/// FNV-1a: names become numbers that are the same next year.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Jöhnk's method, for parameters below one; others come near enough for a share.
fn beta(draw: &mut Draw, (a, b): (f64, f64)) -> f64 {
    let mean = a / (a + b);
    for _ in 0..64 {
        let (x, y) = (draw.unit().powf(1.0 / a), draw.unit().powf(1.0 / b));
        if x + y <= 1.0 && x + y > 0.0 {
            return x / (x + y);
        }
    }
    mean
}

#[cfg(test)]
#[path = "tides_tests.rs"]
mod tests;
