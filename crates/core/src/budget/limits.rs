//! How often each endpoint may be asked: as documented, and as a person sets it.

use super::Endpoint;
use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

/// Two requests may come closer on their way than they were sent by this much.
const JITTER: Duration = Duration::from_millis(50);

/// The limit of one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Between two requests; zero is no limit.
    pub interval: Duration,
    /// So many may come at once when nobody came for a while.
    pub burst: u32,
    /// How long to stay away after a refusal.
    pub penalty: Duration,
}

impl Rule {
    pub const NONE: Self = Self {
        interval: Duration::ZERO,
        burst: 1,
        penalty: Duration::ZERO,
    };

    fn every(interval: Duration) -> Self {
        Self {
            interval: interval + JITTER.min(interval / 20),
            ..Self::NONE
        }
    }

    /// Never more than `n` in any minute: half of them at once, the others spread over it.
    fn per_minute(n: u32) -> Self {
        let n = n.max(1);
        let burst = n.div_ceil(2);
        // In any window of a minute: the burst, and what comes back in it.
        let rest = (n - burst).max(1);
        Self {
            burst: if n == 1 { 1 } else { burst },
            ..Self::every(Duration::from_secs(60) / rest)
        }
    }

    /// Turns that may be saved up beyond the one that is due.
    pub fn saved(self) -> u32 {
        self.burst.saturating_sub(1)
    }
}

/// The limits of an account. `Default` is what Vast.ai documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits(BTreeMap<Endpoint, Rule>);

impl Default for Limits {
    fn default() -> Self {
        Self(Endpoint::ALL.into_iter().map(|e| (e, documented(e))).collect())
    }
}

fn documented(endpoint: Endpoint) -> Rule {
    let every = |ms| Rule::every(Duration::from_millis(ms));
    match endpoint {
        Endpoint::List | Endpoint::Change | Endpoint::AddKey => every(1_000),
        Endpoint::Show => every(2_000),
        Endpoint::Destroy => every(3_000),
        Endpoint::Create => Rule {
            penalty: Duration::from_millis(12_050),
            ..every(4_500)
        },
        Endpoint::Bid => every(5_500),
        Endpoint::Search => Rule::per_minute(10),
    }
}

impl Limits {
    /// No limits: for emulators.
    pub fn off() -> Self {
        Self(BTreeMap::new())
    }

    /// All documented distances times `factor`.
    pub fn scaled(factor: f64) -> Self {
        let scale = |rule: Rule| Rule {
            interval: rule.interval.mul_f64(factor),
            penalty: rule.penalty.mul_f64(factor),
            ..rule
        };
        Self(
            Self::default()
                .0
                .into_iter()
                .map(|(e, r)| (e, scale(r)))
                .collect(),
        )
    }

    pub fn rule(&self, endpoint: Endpoint) -> Rule {
        self.0.get(&endpoint).copied().unwrap_or(Rule::NONE)
    }

    /// The same, with at least this much between two requests to one endpoint.
    pub fn at_least(mut self, endpoint: Endpoint, interval: Duration) -> Self {
        let rule = self.0.entry(endpoint).or_insert(Rule::NONE);
        rule.interval = rule.interval.max(interval);
        self
    }
}

/// Limits that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "limits are `documented`, `off`, a factor of the documented ones up to 1000, or distances in \
     seconds like `create=6,search=20/min` ({0:?})"
)]
pub struct BadLimits(String);

impl FromStr for Limits {
    type Err = BadLimits;

    /// What is not named stays as documented.
    fn from_str(text: &str) -> Result<Self, BadLimits> {
        let text = text.trim();
        let bad = || BadLimits(text.chars().take(80).collect());
        match text {
            "documented" | "" => return Ok(Self::default()),
            "off" => return Ok(Self::off()),
            _ => {}
        }
        if let Ok(factor) = text.parse::<f64>() {
            return if factor == 0.0 {
                Ok(Self::off())
            } else if factor > 0.0 && factor <= 1000.0 {
                Ok(Self::scaled(factor))
            } else {
                Err(bad())
            };
        }
        let mut limits = Self::default();
        for part in text.split(',') {
            let (name, value) = part.split_once('=').ok_or_else(bad)?;
            let endpoint = Endpoint::ALL.into_iter().find(|e| e.as_str() == name.trim());
            let known = documented(endpoint.ok_or_else(bad)?);
            let rule = match value.trim().strip_suffix("/min") {
                Some(n) => Rule::per_minute(
                    n.parse()
                        .ok()
                        .filter(|n| (1..=6000).contains(n))
                        .ok_or_else(bad)?,
                ),
                None => {
                    let seconds = value.trim().parse().ok().filter(|s| (0.0..=3600.0).contains(s));
                    Rule {
                        interval: Duration::from_secs_f64(seconds.ok_or_else(bad)?),
                        burst: 1,
                        ..known
                    }
                }
            };
            limits.0.insert(endpoint.ok_or_else(bad)?, rule);
        }
        Ok(limits)
    }
}
