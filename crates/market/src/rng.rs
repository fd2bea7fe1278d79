//! The market's own small random source.
//!
//! A seed must mean the same market next year. Generators of a library may
//! change their stream between versions, so the few lines that everything is
//! drawn from are here: SplitMix64, plus the two distributions in use.

/// A deterministic stream of numbers.
#[derive(Debug, Clone)]
pub struct Draw(u64);

impl Draw {
    /// A stream for one purpose: `parts` name it (seed, machine, which rental…).
    pub fn for_parts(parts: &[u64]) -> Self {
        let mut draw = Self(0x6a09_e667_f3bc_c908);
        for part in parts {
            draw.0 ^= part.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            draw.next();
        }
        draw
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `0.0..1.0`.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.next() % n }
    }

    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len() as u64) as usize)
    }

    /// Lognormal with this median; `sigma` is the spread of the logarithm.
    pub fn lognormal(&mut self, median: f64, sigma: f64) -> f64 {
        let (u, v) = (self.unit().max(1e-12), self.unit());
        let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
        median * (sigma * normal).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_never_changes() {
        let mut draw = Draw::for_parts(&[1, 2]);
        let first = [draw.next(), draw.next()];
        assert_eq!(first, {
            let mut again = Draw::for_parts(&[1, 2]);
            [again.next(), again.next()]
        });
        assert_ne!(first[0], Draw::for_parts(&[2, 1]).next());
    }

    #[test]
    fn lognormal_has_its_median() {
        let mut draw = Draw::for_parts(&[7]);
        let mut all: Vec<f64> = (0..2001).map(|_| draw.lognormal(40.0, 0.5)).collect();
        all.sort_by(f64::total_cmp);
        assert!((36.0..44.0).contains(&all[1000]), "median {}", all[1000]);
    }
}
