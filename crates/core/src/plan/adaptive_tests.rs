use super::*;
use crate::boot::{BootCurves, Observation, Speed, Stratum, Wait};
use proptest::prelude::*;
use std::sync::LazyLock;

const Z: Stratum = Stratum {
    speed: Speed::Fast,
    warm: false,
};
static COLD: LazyLock<BootCurves> = LazyLock::new(BootCurves::default);
/// Boots between 20 and 60 seconds.
static QUICK: LazyLock<BootCurves> = LazyLock::new(|| {
    let seen = (0..400).map(|i| Observation {
        stratum: Z,
        seconds: 20.0 + f64::from(i) / 10.0,
        wait: Wait::Ready,
    });
    BootCurves::fit(&seen.collect::<Vec<_>>())
});

fn odds(score: f64) -> Odds<'static> {
    Odds {
        score,
        curve: COLD.curve(Z),
    }
}
fn quick(score: f64) -> Odds<'static> {
    Odds {
        score,
        curve: QUICK.curve(Z),
    }
}
fn racing(odds: Odds<'static>, seconds: f64) -> Bet<'static> {
    let elapsed = Duration::from_secs_f64(seconds);
    Bet {
        racer: Racer::Racing { elapsed },
        odds,
    }
}
fn out(odds: Odds<'static>) -> Bet<'static> {
    Bet {
        racer: Racer::Out,
        odds,
    }
}

fn judge(racers: &[Bet], best: Option<Odds>) -> Move {
    next(
        &AdaptiveSettings::default(),
        racers,
        best,
        Some(Duration::from_secs(60)),
    )
}

/// How many it rents at the start.
fn opening(score: f64) -> usize {
    let mut racers = Vec::new();
    while judge(&racers, Some(odds(score))) == Move::Rent {
        racers.push(racing(odds(score), 0.0));
    }
    racers.len()
}

#[test]
fn doubtful_machines_are_raced_wider() {
    let widths: Vec<_> = [0.97, 0.8, 0.5, 0.2].map(opening).to_vec();
    assert!(widths.is_sorted() && widths[0] < widths[3], "{widths:?}");
    assert!(widths[0] >= 1 && widths[3] <= 8);
}

#[test]
fn a_dear_racer_is_a_lonely_one() {
    let settings = AdaptiveSettings {
        racer_cost: 10.0,
        ..AdaptiveSettings::default()
    };
    let one = [racing(odds(0.9), 0.0)];
    assert_eq!(
        next(&settings, &one, Some(odds(0.9)), None),
        Move::Wait(settings.every)
    );
}

#[test]
fn a_late_racer_is_hedged_then_given_up() {
    let known = quick(0.97);
    assert_eq!(
        judge(
            &[racing(known, 5.0), racing(known, 5.0), racing(known, 5.0)],
            Some(known)
        ),
        Move::Wait(Duration::from_secs(5))
    );
    // Past every boot that was ever seen: another one is rented, and this one let go.
    assert_eq!(judge(&[racing(known, 80.0)], Some(known)), Move::Rent);
    let hedged = [racing(known, 80.0), racing(known, 1.0)];
    assert_eq!(
        judge(&hedged, None),
        Move::GiveUp(0),
        "its boot times are exhausted"
    );
    // Cold curves know boots of minutes: letting one go at 200 s is our choice, not its failure.
    let slow = racing(odds(0.2), 200.0);
    let sure = [slow, racing(quick(0.99), 10.0)];
    assert_eq!(judge(&sure, None), Move::Drop(0));
    // Alone, with nothing left to rent, it is waited for as long as good boots take.
    let alone = |seconds| judge(&[racing(known, seconds)], None);
    assert_eq!(alone(60.0), Move::Wait(Duration::from_secs(5)));
    assert_eq!(alone(80.0), Move::GiveUp(0));
}

/// The machines that are left are so doubtful that none pays beside the racer, however hopeless
/// that one is. One in its place does.
#[test]
fn a_lone_racer_that_hangs_is_replaced_by_a_poor_one() {
    let poor = odds(0.1);
    let hangs = |seconds| [out(odds(0.5)), out(odds(0.5)), racing(odds(0.5), seconds)];
    let fresh = racing(poor, 0.0);
    assert_eq!(
        judge(&hangs(20.0), Some(poor)),
        Move::Wait(Duration::from_secs(5))
    );
    assert_eq!(judge(&hangs(240.0), Some(poor)), Move::Rent);
    let [a, b, hung] = hangs(240.0);
    assert_eq!(judge(&[a, b, hung, fresh], Some(poor)), Move::Drop(2));
    assert_eq!(
        judge(&[hung], None),
        Move::Wait(Duration::from_secs(5)),
        "nobody is left"
    );
}

#[test]
fn what_was_refused_was_not_rented() {
    let refused = Bet {
        racer: Racer::Refused,
        odds: odds(0.9),
    };
    let mut racers = vec![refused; 29];
    assert_eq!(judge(&racers, Some(odds(0.9))), Move::Rent);
    racers.push(refused);
    assert_eq!(
        judge(&racers, Some(odds(0.9))),
        Move::Exhausted,
        "but not for ever"
    );
}

#[test]
fn rents_are_staggered() {
    let settings = AdaptiveSettings::default();
    let after = |ms| next(&settings, &[], Some(odds(0.9)), Some(Duration::from_millis(ms)));
    assert_eq!(after(400), Move::Wait(Duration::from_millis(600)));
    assert_eq!(after(1_000), Move::Rent);
    assert_eq!(next(&settings, &[], Some(odds(0.9)), None), Move::Rent);
}

#[test]
fn says_when_nothing_is_left() {
    assert_eq!(judge(&[], None), Move::Exhausted);
    assert_eq!(judge(&[out(odds(0.9)); 15], Some(odds(0.9))), Move::Exhausted);
    assert_eq!(judge(&[out(odds(0.9))], Some(odds(0.9))), Move::Rent);
}

#[test]
fn the_best_promise_is_sure_and_quick() {
    assert!(quick(0.9).promise() > odds(0.9).promise());
    assert!(odds(0.9).promise() > odds(0.8).promise());
    // A slow but sure one against a quick but doubtful one: what counts is time being up.
    assert!(odds(0.95).promise() > quick(0.5).promise());
}

fn any_odds() -> impl Strategy<Value = Odds<'static>> {
    (0.0..=1.0_f64, any::<bool>()).prop_map(|(score, cold)| if cold { odds(score) } else { quick(score) })
}

fn any_bet() -> impl Strategy<Value = Bet<'static>> {
    let racer = prop_oneof![
        6 => (0_u64..1_000).prop_map(|s| Racer::Racing { elapsed: Duration::from_secs(s) }),
        1 => Just(Racer::Ready),
        3 => Just(Racer::Out),
        2 => Just(Racer::Refused),
    ];
    (racer, any_odds()).prop_map(|(racer, odds)| Bet { racer, odds })
}

fn alive(bets: &[Bet]) -> usize {
    bets.iter()
        .filter(|b| matches!(b.racer, Racer::Racing { .. }))
        .count()
}

proptest! {
    #[test]
    fn every_move_is_legal(
        racers in prop::collection::vec(any_bet(), 0..30),
        best in proptest::option::of(any_odds()),
        since in proptest::option::of(0_u64..3_000),
    ) {
        let settings = AdaptiveSettings::default();
        let since = since.map(Duration::from_millis);
        let ready = racers.iter().any(|b| b.racer == Racer::Ready);
        let waited = |i: usize| match racers[i].racer {
            Racer::Racing { elapsed } => Some(elapsed.as_secs_f64()),
            _ => None,
        };
        let got = next(&settings, &racers, best, since);
        prop_assert_eq!(matches!(got, Move::Win(_)), ready, "ready always wins");
        match got {
            Move::Win(i) => prop_assert_eq!(racers[i].racer, Racer::Ready),
            Move::Rent => {
                let rented = racers.iter().filter(|b| b.racer != Racer::Refused).count();
                prop_assert!(best.is_some() && alive(&racers) < 8 && rented < 15 && racers.len() < 30);
                prop_assert!(since.is_none_or(|s| s >= settings.stagger));
            }
            Move::GiveUp(i) => {
                let e = waited(i).expect("it races");
                prop_assert!(e >= racers[i].odds.curve.patience().min(HORIZON_SECONDS));
            }
            Move::Drop(i) => {
                let e = waited(i).expect("it races");
                prop_assert!(e > 30.0 && alive(&racers) >= 2);
            }
            Move::Exhausted => prop_assert_eq!(alive(&racers), 0),
            Move::Wait(d) => prop_assert!(!d.is_zero()),
        }
    }

    /// Whether beside the racers or in the place of one: what is rented pays.
    #[test]
    fn what_is_rented_makes_the_race_cheaper(
        racers in prop::collection::vec(any_bet(), 1..8),
        best in any_odds(),
    ) {
        let settings = AdaptiveSettings::default();
        let j = |racers: &[Bet]| cost(&settings, active(racers).iter().map(|a| &a.missing));
        let before = j(&racers);
        let mut racers = racers;
        if judge(&racers, Some(best)) == Move::Rent {
            racers.push(racing(best, 0.0));
            while alive(&racers) > 1
                && let Move::Drop(out) | Move::GiveUp(out) = judge(&racers, None)
            {
                racers[out].racer = Racer::Out;
            }
            prop_assert!(j(&racers) < before - GAIN_SECONDS);
        }
    }

    #[test]
    fn more_time_and_a_better_score_never_lower_the_chance(
        o in any_odds(), e in 0.0..900.0_f64, t in 0.0..900.0_f64, more in 0.0..300.0_f64,
    ) {
        let f = o.ready_within(e, t);
        prop_assert!((0.0..=1.0).contains(&f));
        prop_assert!(o.ready_within(e, t + more) >= f - 1e-12);
        let better = Odds { score: (o.score + 0.1).min(1.0), ..o };
        prop_assert!(better.ready_within(e, t) >= f - 1e-9);
        prop_assert!(better.promise() >= o.promise());
    }

    #[test]
    fn a_free_racer_never_raises_the_cost(scores in prop::collection::vec((0.0..=1.0_f64, 0.0..900.0_f64), 1..8)) {
        let settings = AdaptiveSettings { racer_cost: 0.0, ..AdaptiveSettings::default() };
        let all: Vec<_> = scores.iter().map(|(s, e)| odds(*s).missing(*e)).collect();
        prop_assert!(cost(&settings, all.iter()) <= cost(&settings, all[1..].iter()) + 1e-9);
    }
}

proptest! {
    // A whole race each: fewer of them.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_race_left_to_itself_ends_within_its_limits(all in prop::collection::vec(any_odds(), 0..40)) {
        // Nobody ever comes: the worst race there is.
        let settings = AdaptiveSettings::default();
        let mut racers: Vec<(Duration, Bet)> = Vec::new();
        let (mut now, mut last, mut moves) = (Duration::ZERO, None, 0);
        loop {
            moves += 1;
            prop_assert!(moves < 20_000);
            let bets: Vec<Bet> = racers.iter().map(|(at, b)| match b.racer {
                Racer::Racing { .. } => Bet { racer: Racer::Racing { elapsed: now - *at }, ..*b },
                _ => *b,
            }).collect();
            let best = all.get(racers.len()).copied();
            match next(&settings, &bets, best, last.map(|l| now - l)) {
                Move::Rent => {
                    racers.push((now, racing(best.expect("offered"), 0.0)));
                    last = Some(now);
                }
                Move::GiveUp(i) | Move::Drop(i) => racers[i].1.racer = Racer::Out,
                Move::Wait(d) => now += d,
                Move::Exhausted => break,
                Move::Win(_) => prop_assert!(false),
            }
            let bets: Vec<Bet> = racers.iter().map(|r| r.1).collect();
            prop_assert!(alive(&bets) <= 8 && racers.len() <= 15);
        }
        prop_assert!(now <= Duration::from_secs(16 * 900));
    }
}
