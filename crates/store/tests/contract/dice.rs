//! Attempts by chance, the same in every run.

use crate::attempts::attempt;
use crate::fixture::{DAY, machine};
use dumont_core::history::{Outcome, Reason};
use dumont_core::reliability::Counts;
use dumont_core::time::Timestamp;
use dumont_store::NewAttempt;

/// xorshift.
pub struct Dice(pub u64);
impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
}

/// An attempt as a race records it, any of them.
pub fn any(dice: &mut Dice, key: &str, machines: u64) -> NewAttempt {
    let id = dice.roll(machines) as u32;
    let outcome = Outcome::ALL[dice.roll(5) as usize];
    let when = Timestamp(dice.roll(200 * DAY as u64 * 1_000_000) as i64);
    let mut new = attempt(key, &machine(id), outcome, when);
    if outcome == Outcome::Failed {
        new.reason =
            [Some(Reason::SshFailed), Some(Reason::GpuNotReady), None][dice.roll(3) as usize].clone();
    }
    new.host_id = (!id.is_multiple_of(5)).then(|| format!("host-{}", id % 3));
    new.ready_seconds = (dice.roll(2) == 0).then(|| dice.roll(100_000) as f64 / 7.0);
    new.conditions.provider_reliability = Some([0.9, 0.97, 0.99, 0.999][id as usize % 4]);
    new.conditions.suspect = dice.roll(10) == 0;
    new.conditions.counts = Counts::new(dice.roll(100) as f64 / 100.0, dice.roll(100) as f64 / 100.0);
    new
}
