//! What may be spent: caps per day and per month, judged before every rent.
//!
//! A cap ends renting, never what runs: nothing that it could stop is known to be worth less than
//! what it costs. So the judgement comes before, and looks an hour ahead: what has been spent, and
//! an hour of all that is rented, and of what is about to be. A race of many machines is in that
//! sum before it has cost a cent, and a loop that rents and gives back stops at the cap all the
//! same. What stands still counts with its disk: it is given back soon, or runs again at what it was
//! allowed to cost when it was rented, and a higher bid for it is judged anew. Days and months are
//! those of UTC.

use std::fmt;

/// Dollars; 0 is no cap.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Caps {
    pub per_day: f64,
    pub per_month: f64,
}

impl Default for Caps {
    fn default() -> Self {
        Self {
            per_day: 100.0,
            per_month: 1_000.0,
        }
    }
}

/// Dollars since the day and the month began, and what all that is rented costs per hour.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Spent {
    pub today: f64,
    pub this_month: f64,
    pub per_hour: f64,
}

/// The cap that a rent would pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Over {
    pub period: &'static str,
    pub cap: f64,
    pub spent: f64,
    /// Dollars per hour, with the rent that was asked for.
    pub per_hour: f64,
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "${:.2} are spent this {}, and an hour more at ${:.3} would pass the cap of ${:.2}",
            self.spent, self.period, self.per_hour, self.cap
        )
    }
}

impl Caps {
    /// Whether something may be rented at `price` dollars per hour.
    ///
    /// # Errors
    /// The cap that is in the way; the day's where both are.
    pub fn allow(&self, spent: &Spent, price: f64) -> Result<(), Over> {
        let per_hour = spent.per_hour + price;
        let periods = [
            ("day", self.per_day, spent.today),
            ("month", self.per_month, spent.this_month),
        ];
        let over = |&(_, cap, spent): &(&str, f64, f64)| cap > 0.0 && spent + per_hour > cap;
        match periods.into_iter().find(over) {
            None => Ok(()),
            Some((period, cap, spent)) => Err(Over {
                period,
                cap,
                spent,
                per_hour,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CAPS: Caps = Caps {
        per_day: 10.0,
        per_month: 100.0,
    };

    fn spent(today: f64, this_month: f64, per_hour: f64) -> Spent {
        Spent {
            today,
            this_month,
            per_hour,
        }
    }

    #[test]
    fn an_hour_of_everything_must_fit() {
        assert_eq!(CAPS.allow(&spent(8.0, 8.0, 1.0), 1.0), Ok(()));
        let over = CAPS.allow(&spent(8.0, 8.0, 1.0), 1.01).unwrap_err();
        assert_eq!(
            over.to_string(),
            "$8.00 are spent this day, and an hour more at $2.010 would pass the cap of $10.00"
        );
        let over = CAPS.allow(&spent(0.0, 99.5, 0.0), 1.0).unwrap_err();
        assert_eq!((over.period, over.cap), ("month", 100.0));
    }

    #[test]
    fn zero_is_no_cap() {
        let none = Caps {
            per_day: 0.0,
            per_month: 0.0,
        };
        assert_eq!(none.allow(&spent(1e9, 1e9, 1e6), 1e6), Ok(()));
    }

    proptest! {
        /// Rents as fast as it may, at random prices, for random times: never above the cap by
        /// more than what already ran goes on to cost.
        #[test]
        fn renting_alone_never_passes_a_cap(rents in prop::collection::vec((0.01f64..5.0, 0.0f64..1.0), 1..200)) {
            let mut total = 0.0;
            for (price, hours) in rents {
                if CAPS.allow(&spent(total, total, 0.0), price).is_ok() {
                    total += price * hours;
                }
            }
            prop_assert!(total <= CAPS.per_day);
        }
    }
}
