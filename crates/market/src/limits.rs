//! Rate limits as Vast.ai documents them: pure, with the time given.
//!
//! A limit is a *minimum interval* between two requests of one identity to one endpoint, not a
//! bucket: a burst of two is one too many. Breaking some of them costs a penalty during which
//! everything is refused. Searching has a limit by the minute and one by the day on top. The
//! numbers are those of the documentation; a maintainer says that the real thresholds are not
//! disclosed, so they are indicative.

use std::collections::HashMap;
use std::str::FromStr;

use serde::Serialize;

use crate::error::MarketError;

/// What is limited together; a request to anything else is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    List,
    Show,
    /// Start, stop, label, reboot, recycle.
    Change,
    Destroy,
    Create,
    Bid,
    AddKey,
    Detach,
    Execute,
    Volumes,
    Search,
}

/// (endpoint, seconds between two requests, seconds of penalty)
const INTERVALS: &[(Endpoint, f64, f64)] = &[
    (Endpoint::List, 1.0, 0.0),
    (Endpoint::Show, 2.0, 0.0),
    (Endpoint::Change, 1.0, 0.0),
    (Endpoint::Destroy, 3.0, 0.0),
    (Endpoint::Create, 4.5, 12.0),
    (Endpoint::Bid, 5.5, 0.0),
    (Endpoint::AddKey, 1.0, 0.0),
    (Endpoint::Detach, 2.0, 0.0),
    (Endpoint::Execute, 1.5, 0.0),
    (Endpoint::Volumes, 5.5, 0.0),
];
/// Searches in any minute.
const SEARCHES_PER_MINUTE: usize = 10;
const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 86_400_000;

impl Endpoint {
    /// By method and route, as the router writes it, without the slash at its end.
    pub fn of(method: &str, route: &str) -> Option<Self> {
        Some(match (method, route) {
            ("GET", "/api/v1/instances") => Self::List,
            ("GET", "/api/v0/instances/{id}") => Self::Show,
            ("DELETE", "/api/v0/instances/{id}" | "/api/v0/instances") => Self::Destroy,
            ("PUT", "/api/v0/asks/{id}") | ("POST", "/api/v0/asks/bulk") => Self::Create,
            ("PUT", "/api/v0/instances/bid_price/{id}") => Self::Bid,
            ("PUT", "/api/v0/instances/command/{id}" | "/api/v0/instances/request_logs/{id}") => {
                Self::Execute
            }
            ("PUT", route) if route.starts_with("/api/v0/instances") => Self::Change,
            ("POST", "/api/v0/ssh" | "/api/v0/instances/{id}/ssh") => Self::AddKey,
            ("DELETE", "/api/v0/instances/{id}/ssh/{key}") => Self::Detach,
            ("GET" | "PUT", "/api/v0/volumes") => Self::Volumes,
            ("GET" | "POST", "/api/v0/bundles")
            | ("PUT", "/api/v0/search/asks")
            | ("POST", "/api/v0/volumes/search") => Self::Search,
            _ => return None,
        })
    }
}

/// How strict this market is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Multiplies the documented intervals; 0 is no limit at all.
    pub factor: f64,
    /// Searches of one identity from midnight to midnight UTC; none is no quota.
    pub searches_per_day: Option<u64>,
}

impl Limits {
    pub const OFF: Self = Self {
        factor: 0.0,
        searches_per_day: None,
    };
    pub const DOCUMENTED: Self = Self {
        factor: 1.0,
        searches_per_day: None,
    };
}

impl FromStr for Limits {
    type Err = MarketError;

    /// `off`, `documented`, or what the documented intervals are multiplied with.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let factor = match s {
            "off" => 0.0,
            "documented" => 1.0,
            other => other.parse().unwrap_or(f64::NAN),
        };
        if !(0.0..=1000.0).contains(&factor) {
            return Err(MarketError::Invalid(format!(
                "limits are off, documented, or a factor up to 1000, not {s:?}"
            )));
        }
        Ok(Self {
            factor,
            searches_per_day: None,
        })
    }
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Excess {
    /// The interval that was not kept, and how long until the next may come.
    TooFrequent { threshold_s: f64, wait_ms: i64 },
    /// The day's searches are used up until this Unix millisecond.
    Quota { reset_ms: i64 },
}

/// Who asked for what, and when.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    next: HashMap<(String, Endpoint), i64>,
    searches: HashMap<String, Vec<i64>>,
    /// The day, and the searches of it.
    quota: HashMap<String, (i64, u64)>,
}

/// So many identities are remembered before those that may ask again are forgotten.
const REMEMBERED: usize = 10_000;

impl Ledger {
    /// Takes note of a request now, or says why it is refused.
    pub fn ask(&mut self, limits: Limits, who: &str, endpoint: Endpoint, now: i64) -> Result<(), Excess> {
        if self.next.len() > REMEMBERED {
            self.next.retain(|_, free| *free > now);
        }
        if endpoint == Endpoint::Search {
            return self.search(limits, who, now);
        }
        let known = INTERVALS.iter().find(|(limited, ..)| *limited == endpoint);
        let Some((_, interval, penalty)) = known.filter(|_| limits.factor > 0.0) else {
            return Ok(());
        };
        let ms = |seconds: f64| (seconds * limits.factor * 1000.0) as i64;
        let free = self.next.entry((who.to_owned(), endpoint)).or_insert(now);
        if *free > now {
            *free = (*free).max(now + ms(*penalty));
            return Err(Excess::TooFrequent {
                threshold_s: *interval,
                wait_ms: *free - now,
            });
        }
        *free = now + ms(*interval);
        Ok(())
    }

    fn search(&mut self, limits: Limits, who: &str, now: i64) -> Result<(), Excess> {
        let day = now.div_euclid(DAY_MS);
        let used = self.quota.entry(who.to_owned()).or_insert((day, 0));
        if used.0 != day {
            *used = (day, 0);
        }
        if limits.searches_per_day.is_some_and(|quota| used.1 >= quota) {
            return Err(Excess::Quota {
                reset_ms: (day + 1) * DAY_MS,
            });
        }
        if limits.factor > 0.0 {
            let window = (MINUTE_MS as f64 * limits.factor) as i64;
            let recent = self.searches.entry(who.to_owned()).or_default();
            recent.retain(|at| *at > now - window);
            if let Some(first) = recent.first().filter(|_| recent.len() >= SEARCHES_PER_MINUTE) {
                return Err(Excess::TooFrequent {
                    threshold_s: 60.0 / SEARCHES_PER_MINUTE as f64,
                    wait_ms: first + window - now,
                });
            }
            recent.push(now);
        }
        used.1 += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn intervals_penalties_and_identities() {
        let (limits, mut ledger) = (Limits::DOCUMENTED, Ledger::default());
        let mut ask = |who: &str, what, at| ledger.ask(limits, who, what, at);
        assert_eq!(ask("a", Endpoint::Create, 0), Ok(()));
        assert_eq!(ask("b", Endpoint::Create, 10), Ok(()), "another identity");
        assert_eq!(ask("a", Endpoint::List, 10), Ok(()), "another endpoint");
        let refused = Err(Excess::TooFrequent {
            threshold_s: 4.5,
            wait_ms: 12_000,
        });
        assert_eq!(ask("a", Endpoint::Create, 4_000), refused);
        assert!(
            ask("a", Endpoint::Create, 15_999).is_err(),
            "the penalty begins anew"
        );
        assert_eq!(ask("a", Endpoint::Create, 27_999), Ok(()));
        assert_eq!(ask("a", Endpoint::List, 1_010), Ok(()));
        assert!(ask("a", Endpoint::List, 2_009).is_err());
        assert_eq!(
            ask("a", Endpoint::List, 2_010),
            Ok(()),
            "a refusal costs nothing here"
        );
    }

    #[test]
    fn searches_by_the_minute_and_by_the_day() {
        let mut ledger = Ledger::default();
        let limits = Limits {
            factor: 1.0,
            searches_per_day: Some(12),
        };
        let mut at = |now| ledger.ask(limits, "a", Endpoint::Search, now);
        for n in 0..10 {
            assert_eq!(at(n * 100), Ok(()));
        }
        let refused = Err(Excess::TooFrequent {
            threshold_s: 6.0,
            wait_ms: 59_000,
        });
        assert_eq!(at(1_000), refused);
        assert_eq!((at(60_000), at(60_100)), (Ok(()), Ok(())));
        assert_eq!(at(200_000), Err(Excess::Quota { reset_ms: DAY_MS }));
        assert_eq!(at(DAY_MS), Ok(()));
    }

    #[test]
    fn off_is_off() {
        let mut ledger = Ledger::default();
        for _ in 0..100 {
            assert_eq!(ledger.ask(Limits::OFF, "a", Endpoint::Create, 5), Ok(()));
            assert_eq!(ledger.ask(Limits::OFF, "a", Endpoint::Search, 5), Ok(()));
        }
    }

    proptest! {
        /// Whatever is sent, what gets through keeps the interval; and who waits as long as told
        /// gets through.
        #[test]
        fn what_gets_through_keeps_the_interval(gaps in prop::collection::vec(0i64..8_000, 1..60)) {
            let (mut ledger, mut now, mut last) = (Ledger::default(), 0, None::<i64>);
            for gap in gaps {
                now += gap;
                match ledger.ask(Limits::DOCUMENTED, "a", Endpoint::Destroy, now) {
                    Ok(()) => {
                        prop_assert!(last.is_none_or(|at| now - at >= 3_000));
                        last = Some(now);
                    }
                    Err(Excess::TooFrequent { wait_ms, .. }) => {
                        let mut later = ledger.clone();
                        prop_assert!(later.ask(Limits::DOCUMENTED, "a", Endpoint::Destroy, now + wait_ms).is_ok());
                    }
                    Err(other) => prop_assert!(false, "{other:?}"),
                }
            }
        }
    }
}
