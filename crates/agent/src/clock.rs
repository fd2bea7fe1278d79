//! The machine's clock, behind a port.
//!
//! Hosts have been seen hours and years off. Nothing of dumont's depends on their clocks
//! (signatures are made by the controller's), but the user's programs do: TLS fails, builds
//! loop, logs lie. So a clock that is plainly wrong is set right where the host lets us, which
//! few containers do; else the skew is told.
//!
//! No namespace changes this clock, so a test gives the agent another one, by a hidden argument
//! and never by something that a host could leave lying around: [`Shifted`].

use dumont_core::time::Timestamp;
use dumont_wire::agent::ClockFix;
use rustix::time::{ClockId, Timespec, clock_settime};
use std::io;
use std::time::{Duration, SystemTime};

/// Less than this is the way of the message, or a clock that nobody minds.
const TOLERATED: Duration = Duration::from_secs(5);

/// What tells the time, and may be set.
pub trait Clock: Send + Sync {
    fn now(&self) -> Timestamp;

    fn set(&self, to: Timestamp) -> io::Result<()>;
}

/// The kernel's.
pub struct System;

impl Clock for System {
    fn now(&self) -> Timestamp {
        Timestamp::from_system(SystemTime::now())
    }

    fn set(&self, to: Timestamp) -> io::Result<()> {
        let time = Timespec {
            tv_sec: to.unix_seconds(),
            tv_nsec: to.0.rem_euclid(1_000_000) * 1_000,
        };
        Ok(clock_settime(ClockId::Realtime, time)?)
    }
}

/// The kernel's and so much more, which cannot be set: a drill's machine with a wrong clock.
pub struct Shifted {
    pub offset_ms: i64,
}

impl Clock for Shifted {
    fn now(&self) -> Timestamp {
        let Timestamp(now) = System.now();
        Timestamp(now.saturating_add(self.offset_ms.saturating_mul(1_000)))
    }

    fn set(&self, _: Timestamp) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

/// Sets a plainly wrong clock to `theirs`; says what was done about it, or nothing if it was
/// right. `received` is what it showed when `theirs` came in.
pub fn correct(clock: &dyn Clock, received: Timestamp, theirs: Timestamp) -> Option<ClockFix> {
    let off = received.0.abs_diff(theirs.0);
    if u128::from(off) <= TOLERATED.as_micros() {
        return None;
    }
    let set = clock.set(theirs);
    Some(ClockFix {
        before: received,
        after: set.is_ok().then(|| clock.now()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// A host that lets its clock be set.
    struct Ours(Mutex<Timestamp>);

    impl Clock for Ours {
        fn now(&self) -> Timestamp {
            *self.0.lock().unwrap()
        }

        fn set(&self, to: Timestamp) -> io::Result<()> {
            *self.0.lock().unwrap() = to;
            Ok(())
        }
    }

    const NOW: Timestamp = Timestamp(1_795_000_000_000_000);
    const YEARS: i64 = 10 * 365 * 86_400;

    fn off(seconds: i64) -> Timestamp {
        Timestamp(NOW.0 + seconds * 1_000_000)
    }

    #[test]
    fn a_right_clock_is_left_alone() {
        for seconds in [-5, 0, 5] {
            let clock = Ours(Mutex::new(off(seconds)));
            assert_eq!(correct(&clock, off(seconds), NOW), None);
            assert_eq!(clock.now(), off(seconds));
        }
    }

    #[test]
    fn a_wrong_clock_is_set_where_the_host_lets_us() {
        for seconds in [-YEARS, -7_200, 6, 7_200, YEARS] {
            let clock = Ours(Mutex::new(off(seconds)));
            let fix = correct(&clock, off(seconds), NOW).unwrap();
            assert_eq!((fix.before, fix.after), (off(seconds), Some(NOW)));
        }
    }

    #[test]
    fn one_that_cannot_be_set_is_told_of() {
        for seconds in [-YEARS, YEARS] {
            let clock = Shifted {
                offset_ms: seconds * 1_000,
            };
            let theirs = System.now();
            let received = clock.now();
            assert!(
                received
                    .0
                    .abs_diff(theirs.0)
                    .abs_diff(YEARS.unsigned_abs() * 1_000_000)
                    < 60_000_000
            );
            let fix = correct(&clock, received, theirs).unwrap();
            assert_eq!((fix.before, fix.after), (received, None));
        }
    }

    #[test]
    fn extreme_times_do_not_overflow() {
        let clock = Shifted { offset_ms: i64::MAX };
        assert!(correct(&clock, Timestamp(i64::MAX), Timestamp(i64::MIN)).is_some());
        assert_eq!(clock.now(), Timestamp(i64::MAX));
    }
}
