//! Points in time as microseconds since the Unix epoch.
//!
//! Both databases keep 64-bit integers exactly; PostgreSQL timestamps hold microseconds and
//! SQLite has no timestamp at all, so one integer unit is the only form that compares the
//! same everywhere.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY_MICROS: i64 = 86_400_000_000;

/// Microseconds since 1970-01-01T00:00:00Z; shown as a UTC date and time in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Timestamp(pub i64);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.date();
        let second = self.unix_seconds().rem_euclid(86_400);
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"
        )
    }
}

impl Timestamp {
    /// From the operating system's clock value, which the caller read.
    pub fn from_system(t: SystemTime) -> Self {
        match t.duration_since(UNIX_EPOCH) {
            Ok(d) => Self(i64::try_from(d.as_micros()).unwrap_or(i64::MAX)),
            Err(before) => Self(-i64::try_from(before.duration().as_micros()).unwrap_or(i64::MAX)),
        }
    }

    /// Whole seconds since the epoch.
    pub fn unix_seconds(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// Year, month and day, UTC.
    fn date(self) -> (i64, i64, i64) {
        // Howard Hinnant's civil_from_days, in eras of 400 years that begin in March.
        let z = self.unix_seconds().div_euclid(86_400) + 719_468;
        let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
        let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let (day, month) = (
            doy - (153 * mp + 2) / 5 + 1,
            if mp < 10 { mp + 3 } else { mp - 9 },
        );
        (yoe + era * 400 + i64::from(month <= 2), month, day)
    }

    /// The last midnight, UTC.
    pub fn day_start(self) -> Self {
        Self(self.unix_seconds().div_euclid(86_400).saturating_mul(DAY_MICROS))
    }

    /// Midnight of the first of its month, UTC.
    pub fn month_start(self) -> Self {
        let (_, _, day) = self.date();
        Self(self.day_start().0.saturating_sub((day - 1) * DAY_MICROS))
    }

    /// Milliseconds from `earlier` to `self`; negative when `self` is the earlier one.
    pub fn millis_since(self, earlier: Self) -> i64 {
        (self.0 - earlier.0) / 1_000
    }

    /// `self` moved forward by `d`, saturating.
    pub fn plus(self, d: Duration) -> Self {
        Self(
            self.0
                .saturating_add(i64::try_from(d.as_micros()).unwrap_or(i64::MAX)),
        )
    }

    /// `self` moved back by `d`, saturating.
    pub fn minus(self, d: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(i64::try_from(d.as_micros()).unwrap_or(i64::MAX)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_as_a_date_and_time() {
        for (seconds, shown) in [
            (0, "1970-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (951_827_696, "2000-02-29T12:34:56Z"),
            (1_795_651_200, "2026-11-26T00:00:00Z"),
            (2_111_270_399, "2036-11-25T23:59:59Z"),
        ] {
            assert_eq!(Timestamp(seconds * 1_000_000).to_string(), shown);
        }
        // Extremes come from hosts; they must only not panic.
        assert!(!Timestamp(i64::MAX).to_string().is_empty() && !Timestamp(i64::MIN).to_string().is_empty());
    }
}
