//! The race: how many machines to rent at once, when to add one, when to give up.
//!
//! A race is judged over and over from what is known now, so the same function serves a fresh
//! race and one that is resumed after a crash. Width is fixed here; [`adaptive`] is a different
//! `next` over the same state.

pub mod adaptive;
pub mod spread;

use std::time::Duration;

/// Limits of one race.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaceSettings {
    /// Machines to keep in the race.
    pub width: usize,
    /// Rents in all, so that a broken image cannot rent the whole market. Refused ones rented
    /// nothing; with them it may be twice as many.
    pub max_rents: usize,
    /// How long one machine may take from rent to ready.
    pub racer_timeout: Duration,
}

impl Default for RaceSettings {
    /// 300 s: below it a learned timeout cuts off good machines (see docs/decisions/006).
    fn default() -> Self {
        Self {
            width: 3,
            max_rents: 15,
            racer_timeout: Duration::from_secs(300),
        }
    }
}

/// Where one racer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Racer {
    /// Rented or being rented; time since the rent was decided.
    Racing {
        elapsed: Duration,
    },
    Ready,
    /// Failed or given up.
    Out,
    /// Nothing was rented: the offer was gone, or the bid too low.
    Refused,
}

/// Whether the race may rent another one after these.
pub fn may_rent(max_rents: usize, racers: impl Iterator<Item = Racer> + Clone) -> bool {
    let rented = racers.clone().filter(|r| *r != Racer::Refused).count();
    rented < max_rents && racers.count() < 2 * max_rents
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Move {
    /// Racer `usize` has won; destroy every other.
    Win(usize),
    /// Rent the best offer that is left.
    Rent,
    /// Racer `usize` took longer than good machines take: its failure.
    GiveUp(usize),
    /// Racer `usize` is not worth its price any more beside the others; nothing is said about
    /// the machine (outcome `gave_up`).
    Drop(usize),
    /// Nothing races and nothing is left to rent.
    Exhausted,
    /// Look again after this long, or when a racer changes.
    Wait(Duration),
}

/// Judges a race. `racers` are in the order they were rented; `offers_left` counts machines
/// that were not tried yet.
pub fn next(settings: &RaceSettings, racers: &[Racer], offers_left: usize) -> Move {
    if let Some(winner) = racers.iter().position(|r| *r == Racer::Ready) {
        return Move::Win(winner);
    }
    let mut racing = 0;
    let mut soonest = settings.racer_timeout;
    for (at, racer) in racers.iter().enumerate() {
        if let Racer::Racing { elapsed } = racer {
            match settings.racer_timeout.checked_sub(*elapsed) {
                None | Some(Duration::ZERO) => return Move::GiveUp(at),
                Some(left) => soonest = soonest.min(left),
            }
            racing += 1;
        }
    }
    let may_rent = offers_left > 0 && may_rent(settings.max_rents, racers.iter().copied());
    match (racing < settings.width, may_rent, racing) {
        (true, true, _) => Move::Rent,
        (_, _, 0) => Move::Exhausted,
        _ => Move::Wait(soonest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn racing(secs: u64) -> Racer {
        Racer::Racing {
            elapsed: Duration::from_secs(secs),
        }
    }

    #[test]
    fn fills_up_to_its_width_then_waits() {
        let s = RaceSettings::default();
        assert_eq!(next(&s, &[], 9), Move::Rent);
        assert_eq!(next(&s, &[racing(1), racing(1)], 7), Move::Rent);
        assert_eq!(
            next(&s, &[racing(10), racing(1), racing(1)], 6),
            Move::Wait(Duration::from_secs(290))
        );
        assert_eq!(next(&s, &[Racer::Out, racing(1), racing(1)], 6), Move::Rent);
    }

    #[test]
    fn says_when_nothing_is_left() {
        let s = RaceSettings::default();
        assert_eq!(next(&s, &[], 0), Move::Exhausted);
        assert_eq!(next(&s, &[Racer::Out; 15], 40), Move::Exhausted);
        assert_eq!(next(&s, &[Racer::Out, racing(300)], 0), Move::GiveUp(1));
    }

    #[test]
    fn what_was_refused_was_not_rented() {
        let s = RaceSettings::default();
        let mut racers = vec![racing(1)];
        racers.extend([Racer::Refused; 28]);
        assert_eq!(next(&s, &racers, 9), Move::Rent);
        racers.push(Racer::Refused);
        assert_eq!(
            next(&s, &racers, 9),
            Move::Wait(Duration::from_secs(299)),
            "but not for ever"
        );
    }

    fn any_racer() -> impl Strategy<Value = Racer> {
        prop_oneof![
            (0u64..400).prop_map(racing),
            Just(Racer::Ready),
            Just(Racer::Out),
            Just(Racer::Refused),
        ]
    }

    proptest! {
        #[test]
        fn never_rents_past_its_limits(racers in prop::collection::vec(any_racer(), 0..40), left in 0usize..5) {
            let s = RaceSettings::default();
            let rented = racers.iter().filter(|r| **r != Racer::Refused).count();
            let active = racers.iter().filter(|r| matches!(r, Racer::Racing { .. })).count();
            match next(&s, &racers, left) {
                Move::Rent => prop_assert!(left > 0 && active < s.width && rented < s.max_rents && racers.len() < 30),
                Move::Win(i) => prop_assert_eq!(racers[i], Racer::Ready),
                Move::GiveUp(i) => {
                    let late = matches!(racers[i], Racer::Racing { elapsed } if elapsed >= s.racer_timeout);
                    prop_assert!(late);
                }
                Move::Drop(_) => prop_assert!(false, "a fixed width drops nobody"),
                Move::Exhausted => prop_assert!(active == 0),
                Move::Wait(d) => prop_assert!(active > 0 && d > Duration::ZERO),
            }
            if racers.contains(&Racer::Ready) {
                prop_assert!(matches!(next(&s, &racers, left), Move::Win(_)));
            }
        }
    }
}
