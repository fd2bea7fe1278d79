//! Means with their uncertainty.

use serde::Serialize;

/// A mean over seeds and half the width of its 95 % interval (Student's t).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    pub mean: f64,
    pub half_width: f64,
}

impl Estimate {
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let half_width = if values.len() > 1 {
            t_quantile(values.len() - 1) * (squares / (n - 1.0) / n).sqrt()
        } else {
            f64::INFINITY
        };
        Self { mean, half_width }
    }

    pub fn low(&self) -> f64 {
        self.mean - self.half_width
    }

    pub fn high(&self) -> f64 {
        self.mean + self.half_width
    }
}

/// The 97.5 % point of Student's t: exact for few degrees of freedom, where its expansion
/// around the normal is not yet good.
fn t_quantile(degrees: usize) -> f64 {
    const FEW: [f64; 8] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306];
    if let Some(t) = degrees.checked_sub(1).and_then(|i| FEW.get(i)) {
        return *t;
    }
    let (z, v) = (1.959_964_f64, degrees as f64);
    let g1 = (z.powi(3) + z) / 4.0;
    let g2 = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
    let g3 = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0;
    z + g1 / v + g2 / v.powi(2) + g3 / v.powi(3)
}

/// The q-th quantile of sorted values.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let last = sorted.len().saturating_sub(1) as f64;
    sorted
        .get((q * last).round() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_students_t_are_the_tables() {
        for (degrees, want) in [(1, 12.706), (5, 2.571), (15, 2.131), (30, 2.042), (1_000, 1.962)] {
            assert!((t_quantile(degrees) - want).abs() < 2e-3, "{degrees}");
        }
    }

    #[test]
    fn an_interval_by_hand() {
        // Standard deviation 1, so 1 / sqrt(3) x 4.303.
        let e = Estimate::of(&[1.0, 2.0, 3.0]);
        assert!((e.mean - 2.0).abs() < 1e-12 && (e.half_width - 2.4843).abs() < 1e-3);
        assert!(Estimate::of(&[1.0]).half_width.is_infinite());
    }
}
