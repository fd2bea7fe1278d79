//! What the tides do to a market's state: who is there, at what price, and what rentals meet.

use crate::faults::{Fate, FaultKind, Measure, Suffered};
use crate::offers::Quote;
use crate::state::State;
use crate::tides::{self, Image, Outcome, Tides};

impl State {
    /// Hours since the market opened, as fast as its waits are short.
    pub fn hour(&self, now: i64) -> f64 {
        if self.time_scale > 0.0 {
            (now - self.opened_ms).max(0) as f64 / 3_600_000.0 / self.time_scale
        } else {
            0.0
        }
    }

    /// The Unix millisecond of such an hour, or the one before.
    pub fn ms_of(&self, hour: f64) -> i64 {
        if self.time_scale > 0.0 {
            let after = (hour * 3_600_000.0 * self.time_scale).floor();
            self.opened_ms.saturating_add(after as i64)
        } else {
            i64::MAX
        }
    }

    pub fn tides(&self) -> Option<Tides<'_>> {
        Some(Tides {
            seed: self.universe.seed,
            weather: self.weather.as_ref()?,
            operators: self.operators,
        })
    }

    /// What a GPU of this machine costs now.
    pub fn quote(&self, machine: usize, now: i64) -> Quote {
        let Some(machine) = self.universe.machines.get(machine) else {
            return Quote::default();
        };
        let mut quote = machine.quote();
        if let Some(tides) = self.tides() {
            let (hour, factor) = (self.hour(now), tides.price_factor(machine, self.hour(now)));
            quote.price *= factor;
            quote.min_bid *= factor * tides.rival(machine, hour);
        }
        quote
    }

    /// The lowest bid that gets so many GPUs of this machine now. Infinite where somebody has it on
    /// demand.
    pub fn floor(&self, machine: usize, gpus: usize, now: i64) -> f64 {
        let host = self.universe.machines.get(machine);
        let taken = |tides: Tides<'_>| host.is_some_and(|host| tides.taken(host, self.hour(now)));
        if self.tides().is_some_and(taken) {
            return f64::INFINITY;
        }
        self.quote(machine, now).min_bid * gpus as f64
    }

    pub fn draw_fate(&mut self, machine: usize, image: &str, now: i64) -> Option<tides::Fate> {
        let hour = self.hour(now);
        let key = (machine, image.to_owned());
        let idle_h = self.pulled.get(&key).map(|at| hour - at);
        let nth = self.asks.get(&machine).copied().unwrap_or(0);
        let host = self.universe.machines.get(machine)?;
        let fate = self.tides()?.fate(host, nth, Image { name: image, idle_h }, hour);
        if fate.outcome == Outcome::Works {
            self.pulled.insert(key, hour);
        }
        Some(fate)
    }

    /// What was drawn, in the words of faults; what was armed by name comes first.
    pub fn befall(&self, fate: &mut Fate, drawn: tides::Fate) {
        let ms = |seconds: f64| Some((seconds * self.time_scale * 1000.0) as u64);
        let mut add = |fault, measure| {
            if fate.on_board.iter().all(|s| s.fault != fault) {
                fate.on_board.push(Suffered::new(fault, measure));
            }
        };
        let none = Measure::default();
        match drawn.outcome {
            Outcome::Works | Outcome::Gone => {}
            Outcome::Hangs => add(FaultKind::StuckLoading, none),
            Outcome::SshDead => add(FaultKind::SshDead, none),
            Outcome::GpuMissing => add(FaultKind::GpuMissing, none),
            Outcome::Fails => add(FaultKind::BootFails, none),
        }
        if let Some(lag) = drawn.key_lag_s {
            let for_ms = ms(lag);
            add(FaultKind::KeyLag, Measure { for_ms, ..none });
        }
        // Without a clock of its own a market would lose its machines at once.
        if let Some(hours) = drawn.dies_after_h.filter(|_| self.time_scale > 0.0) {
            let after_ms = ms(hours * 3600.0);
            add(FaultKind::Dies, Measure { after_ms, ..none });
        }
        if self.weather.as_ref().is_some_and(|w| w.noise) {
            add(FaultKind::TmuxNoise, none);
        }
        fate.reply_lost |= drawn.reply_lost;
    }
}
