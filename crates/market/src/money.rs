//! What an instance has cost: pure.
//!
//! Vast bills the GPU only while the instance runs and the disk from create to
//! destroy, whatever the state (Vast.ai docs, billing). A host that went
//! offline earns nothing for its GPU from the moment it died.

use crate::offers::Price;

/// The billing clock of one instance, in Unix milliseconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Meter {
    created_ms: i64,
    destroyed_ms: Option<i64>,
    running_since: Option<i64>,
    closed_running_ms: i64,
    /// What the time before the last change of price has cost, and how long that was.
    settled: (f64, f64),
}

impl Meter {
    pub fn created(at: i64) -> Self {
        Self {
            created_ms: at,
            ..Self::default()
        }
    }

    pub fn run(&mut self, at: i64) {
        if self.destroyed_ms.is_none() {
            self.running_since.get_or_insert(at);
        }
    }

    pub fn halt(&mut self, at: i64) {
        if let Some(since) = self.running_since.take() {
            self.closed_running_ms += (at - since).max(0);
        }
    }

    pub fn destroy(&mut self, at: i64) {
        self.halt(at);
        self.destroyed_ms.get_or_insert(at);
    }

    pub fn running_seconds(&self, now: i64) -> f64 {
        let open = self.running_since.map_or(0, |since| (now - since).max(0));
        (self.closed_running_ms + open) as f64 / 1000.0
    }

    pub fn existing_seconds(&self, now: i64) -> f64 {
        (self.destroyed_ms.unwrap_or(now) - self.created_ms).max(0) as f64 / 1000.0
    }

    /// The price changes from now on; `price` is the one until now.
    pub fn reprice(&mut self, price: Price, now: i64) {
        self.settled = (self.gpu_cost(price, now), self.running_seconds(now));
    }

    pub fn gpu_cost(&self, price: Price, now: i64) -> f64 {
        let (settled, seconds) = self.settled;
        settled + price.dph_base * (self.running_seconds(now) - seconds) / 3600.0
    }

    pub fn storage_cost(&self, price: Price, now: i64) -> f64 {
        price.storage_total_cost * self.existing_seconds(now) / 3600.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRICE: Price = Price {
        dph_base: 3.6,
        storage_total_cost: 0.36,
    };

    #[test]
    fn gpu_only_while_running_storage_until_destroyed() {
        let mut meter = Meter::created(0);
        meter.run(10_000);
        meter.run(12_000);
        assert_eq!(meter.running_seconds(20_000), 10.0);
        meter.halt(30_000);
        meter.halt(31_000);
        meter.run(40_000);
        meter.destroy(50_000);
        meter.destroy(60_000);
        meter.run(70_000);
        assert_eq!(meter.running_seconds(1_000_000), 30.0);
        assert_eq!(meter.existing_seconds(1_000_000), 50.0);
        assert!((meter.gpu_cost(PRICE, 1_000_000) - 0.03).abs() < 1e-12);
        assert!((meter.storage_cost(PRICE, 1_000_000) - 0.005).abs() < 1e-12);
    }

    #[test]
    fn a_new_price_counts_from_its_day() {
        let mut meter = Meter::created(0);
        meter.run(0);
        meter.reprice(PRICE, 10_000);
        let dearer = Price {
            dph_base: 36.0,
            ..PRICE
        };
        assert!((meter.gpu_cost(dearer, 20_000) - 0.11).abs() < 1e-12);
        meter.halt(20_000);
        assert!((meter.gpu_cost(dearer, 90_000) - 0.11).abs() < 1e-12);
    }

    #[test]
    fn one_that_never_ran_costs_its_disk_only() {
        let mut meter = Meter::created(0);
        meter.destroy(3_600_000);
        assert_eq!(meter.gpu_cost(PRICE, 9_000_000), 0.0);
        assert!((meter.storage_cost(PRICE, 9_000_000) - 0.36).abs() < 1e-12);
    }
}
