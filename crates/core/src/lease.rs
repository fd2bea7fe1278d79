//! The lease of an instance: how long it goes on without a controller before it ends itself.
//!
//! Two sides count, and neither asks the other. The instance counts its own seconds since it last
//! saw a controller's session; no wall clock is read there, for a host's may be wrong by years and
//! may be set meanwhile. The controller keeps when it last heard of the instance. The instance
//! never ends before its lease is over, so one that is found stopped when it is over, by the
//! controller's record, has most likely done what it was told; one that is found stopped before,
//! has not.

use crate::time::Timestamp;
use std::time::Duration;

/// No lease is shorter: a boot, a key on its way, and a connection that hangs for the quarter of
/// an hour until TCP gives it up, all look like absence.
pub const LEAST: Duration = Duration::from_secs(15 * 60);

/// Looks of a lease, at most one a minute.
const LOOKS: u64 = 60;
const SLOWEST: u64 = 60;

/// How an instance counts a lease: so many looks in a row that find no controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watch {
    /// Seconds between two looks.
    pub every_s: u64,
    pub looks: u64,
}

impl Watch {
    /// The session may have ended right after a look that saw it, hence one more.
    pub fn of(lease: Duration) -> Self {
        let seconds = lease.as_secs().max(1);
        let every_s = (seconds / LOOKS).clamp(1, SLOWEST);
        Self {
            every_s,
            looks: seconds.div_ceil(every_s) + 1,
        }
    }
}

/// How often the controller writes down that it hears of its instances.
pub fn record_every(lease: Duration) -> Duration {
    (lease / 20).clamp(Duration::from_secs(1), Duration::from_secs(300))
}

/// Whether an instance that was last heard of then may have ended itself by now.
pub fn is_over(lease: Duration, heard: Timestamp, now: Timestamp) -> bool {
    now >= heard.plus(lease)
}

/// As a person would say it.
pub fn in_words(lease: Duration) -> String {
    let seconds = lease.as_secs();
    match seconds {
        s if s > 0 && s % 3_600 == 0 => format!("{} h", s / 3_600),
        s if s > 0 && s % 60 == 0 => format!("{} min", s / 60),
        s => format!("{s} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_day_is_looked_at_every_minute() {
        let watch = Watch::of(Duration::from_secs(86_400));
        assert_eq!((watch.every_s, watch.looks), (60, 1_441));
        assert_eq!(record_every(Duration::from_secs(86_400)).as_secs(), 300);
    }

    #[test]
    fn leases_are_told_in_the_unit_they_are_set_in() {
        let said = [0, 7, 60, 5_400, 86_400].map(|s| in_words(Duration::from_secs(s)));
        assert_eq!(said, ["0 s", "7 s", "1 min", "90 min", "24 h"]);
    }

    proptest! {
        /// A session that ends at any moment between two looks: the instance goes on for its lease
        /// and ends not much later, and then the controller's record, which lags, says so.
        #[test]
        fn it_ends_after_its_lease_and_the_controller_knows(
            lease_s in 1u64..3_000_000, phase_ms in 0u64..60_000, lag in 0.0f64..1.0,
        ) {
            let lease = Duration::from_secs(lease_s);
            let watch = Watch::of(lease);
            let every_ms = watch.every_s * 1_000;
            // The first look without a session comes so long after the session's end.
            let first_ms = phase_ms % every_ms;
            let ends_ms = first_ms + (watch.looks - 1) * every_ms;
            prop_assert!(ends_ms >= lease_s * 1_000);
            prop_assert!(ends_ms <= lease_s * 1_000 + 2 * every_ms);
            prop_assert!(watch.every_s <= 60);
            let heard = Timestamp(1_000_000_000_000);
            let written_ms = (record_every(lease).as_millis() as f64 * lag) as u64;
            let session_end = heard.plus(Duration::from_millis(written_ms));
            let found = session_end.plus(Duration::from_millis(ends_ms));
            prop_assert!(is_over(lease, heard, found));
            prop_assert!(!is_over(lease, heard, heard.plus(lease - Duration::from_secs(1))));
        }
    }
}
