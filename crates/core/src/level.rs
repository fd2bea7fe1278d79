//! The document's words for a rate: levels, badge colours, rate colours, shown percentages.
//!
//! A level is decided on the two integers, never on a rounded rate, and a shown percentage is
//! floored: 899 of 1000 is "good, 89 %", not "90 %" beside a badge that says good.

use crate::words;

words! {
    /// The document's reliability levels, best first.
    pub enum Level: "reliability level" {
        Excellent => "excellent",
        Good => "good",
        Fair => "fair",
        Poor => "poor",
        Blacklisted => "blacklisted",
        Unknown => "unknown",
    }
}

words! {
    /// The colours of badges and charts.
    pub enum Colour: "colour" {
        Green => "green",
        LightGreen => "light_green",
        Yellow => "yellow",
        Orange => "orange",
        Red => "red",
        Grey => "grey",
    }
}

words! {
    /// What a level means for the one who chooses a machine.
    pub enum Action: "action" {
        /// High priority.
        Prefer => "prefer",
        Normal => "normal",
        /// Fair: a warning beside it.
        Warn => "warn",
        /// Poor: an alert.
        Alert => "alert",
        Block => "block",
    }
}

impl Level {
    /// `blacklisted` exactly while an entry is active. A rate under 0.3 without one (too few
    /// attempts, expired, removed) reads poor: the word must never promise a block that does
    /// not exist. Boundaries are compared unrounded.
    pub fn of(success_rate: Option<f64>, blacklisted: bool) -> Self {
        match success_rate {
            _ if blacklisted => Self::Blacklisted,
            None => Self::Unknown,
            Some(rate) if rate >= 0.9 => Self::Excellent,
            Some(rate) if rate >= 0.7 => Self::Good,
            Some(rate) if rate >= 0.5 => Self::Fair,
            Some(_) => Self::Poor,
        }
    }

    /// The same from the counts themselves.
    pub fn of_counts(successful: i64, counted: i64, blacklisted: bool) -> Self {
        match tenths(successful, counted) {
            _ if blacklisted => Self::Blacklisted,
            None => Self::Unknown,
            Some(9..) => Self::Excellent,
            Some(7..) => Self::Good,
            Some(5..) => Self::Fair,
            Some(_) => Self::Poor,
        }
    }

    /// Of the badge: the document's five, and grey for what is not known.
    pub const fn colour(self) -> Colour {
        match self {
            Self::Excellent => Colour::Green,
            Self::Good => Colour::LightGreen,
            Self::Fair => Colour::Yellow,
            Self::Poor => Colour::Orange,
            Self::Blacklisted => Colour::Red,
            Self::Unknown => Colour::Grey,
        }
    }

    /// What is done about a machine of this level.
    pub const fn action(self) -> Action {
        match self {
            Self::Excellent => Action::Prefer,
            Self::Good | Self::Unknown => Action::Normal,
            Self::Fair => Action::Warn,
            Self::Poor => Action::Alert,
            Self::Blacklisted => Action::Block,
        }
    }
}

/// Of a rate in a chart or a table: green from 90 %, yellow from 70 %, red below, grey for none.
pub fn rate_colour(successful: i64, counted: i64) -> Colour {
    match tenths(successful, counted) {
        None => Colour::Grey,
        Some(9..) => Colour::Green,
        Some(7..) => Colour::Yellow,
        Some(_) => Colour::Red,
    }
}

/// Whole percent, rounded down; `None` before the first counted attempt.
pub fn shown_percent(successful: i64, counted: i64) -> Option<u8> {
    let percent = floor_share(successful, counted, 100)?;
    u8::try_from(percent).ok()
}

fn tenths(successful: i64, counted: i64) -> Option<i128> {
    floor_share(successful, counted, 10)
}

/// floor(parts * successful / counted), on integers wide enough for any counts.
fn floor_share(successful: i64, counted: i64, parts: i128) -> Option<i128> {
    (counted > 0).then(|| (i128::from(successful) * parts / i128::from(counted)).clamp(0, parts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_line_of_the_documents_tables() {
        // Level, its lowest rate, badge colour, action; then one attempt in a thousand less.
        let table = [
            (Level::Excellent, 900, Colour::Green, Action::Prefer, Level::Good),
            (Level::Good, 700, Colour::LightGreen, Action::Normal, Level::Fair),
            (Level::Fair, 500, Colour::Yellow, Action::Warn, Level::Poor),
            (Level::Poor, 300, Colour::Orange, Action::Alert, Level::Poor),
        ];
        for (level, permille, colour, action, below) in table {
            assert_eq!(Level::of_counts(permille, 1000, false), level);
            assert_eq!(
                Level::of_counts(permille - 1, 1000, false),
                below,
                "{level} from below"
            );
            assert_eq!((level.colour(), level.action()), (colour, action));
        }
        assert_eq!(Level::of_counts(10, 10, true), Level::Blacklisted);
        let blocked = Level::Blacklisted;
        assert_eq!((blocked.colour(), blocked.action()), (Colour::Red, Action::Block));
        assert_eq!(Level::of_counts(0, 0, false), Level::Unknown);
        assert_eq!(Level::Unknown.colour(), Colour::Grey);
        // "Cores de Confiabilidade": rates and charts, in three.
        let rates = [
            (900, Colour::Green),
            (899, Colour::Yellow),
            (700, Colour::Yellow),
            (699, Colour::Red),
            (0, Colour::Red),
        ];
        for (permille, colour) in rates {
            assert_eq!(rate_colour(permille, 1000), colour, "{permille}");
        }
        assert_eq!(rate_colour(0, 0), Colour::Grey);
    }

    #[test]
    fn a_shown_percentage_is_never_rounded_over_a_boundary() {
        assert_eq!(shown_percent(899, 1000), Some(89));
        assert_eq!(shown_percent(8_999_999, 10_000_000), Some(89));
        assert_eq!(shown_percent(17, 20), Some(85));
        assert_eq!(shown_percent(2, 3), Some(66));
        assert_eq!(shown_percent(3, 3), Some(100));
        assert_eq!(shown_percent(0, 0), None);
        assert_eq!(shown_percent(i64::MAX, i64::MAX), Some(100));
    }

    proptest! {
        #[test]
        fn a_better_rate_never_reads_worse(a in 0.0..=1.0_f64, b in 0.0..=1.0_f64) {
            let (low, high) = if a <= b { (a, b) } else { (b, a) };
            // Declared best first, so a smaller level is a better one.
            prop_assert!(Level::of(Some(high), false) <= Level::of(Some(low), false));
            prop_assert_eq!(Level::of(Some(a), true), Level::Blacklisted);
        }

        #[test]
        fn a_success_never_lowers_a_level_and_a_failure_never_raises_it(s in 0..100_000_i64, f in 0..100_000_i64) {
            prop_assume!(s + f > 0);
            let here = Level::of_counts(s, s + f, false);
            prop_assert!(Level::of_counts(s + 1, s + f + 1, false) <= here);
            prop_assert!(Level::of_counts(s, s + f + 1, false) >= here);
        }

        #[test]
        fn counts_and_rate_agree_and_the_percentage_with_both(s in 0..1_000_000_i64, f in 0..1_000_000_i64) {
            prop_assume!(s + f > 0);
            let level = Level::of_counts(s, s + f, false);
            prop_assert_eq!(level, Level::of(Some(s as f64 / (s + f) as f64), false));
            let percent = shown_percent(s, s + f).expect("counted");
            prop_assert_eq!(level, Level::of_counts(i64::from(percent), 100, false));
        }
    }
}
