use super::*;
use proptest::prelude::*;

const DAY: i64 = 86_400_000_000;

fn exits() -> impl Strategy<Value = Exit> {
    prop_oneof![
        Just(Exit::Ready),
        any::<bool>().prop_map(|suspect| Exit::Explicit { suspect }),
        any::<bool>().prop_map(|suspect| Exit::GaveUp { suspect }),
        Just(Exit::LostRace),
        Just(Exit::NotHost),
    ]
}

fn history() -> impl Strategy<Value = Vec<(Counts, Timestamp)>> {
    let one = (exits(), 0.0..=1.0_f64, 0.0..=1.0_f64, 0..400 * DAY)
        .prop_map(|(exit, g, p, at)| (contribution(exit, g, p), Timestamp(at)));
    proptest::collection::vec(one, 0..40)
}

fn sums(history: &[(Counts, Timestamp)]) -> Sums {
    let mut sums = Sums::default();
    history.iter().for_each(|(c, at)| sums.add(*c, *at));
    sums
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * (1.0 + a.abs().max(b.abs()))
}

proptest! {
    #[test]
    fn sums_equal_a_recount_in_any_order(
        (plain, mixed) in history().prop_flat_map(|h| (Just(h.clone()), Just(h).prop_shuffle())),
        later in 0..100 * DAY,
    ) {
        let now = Timestamp(400 * DAY + later);
        let (a, b) = (sums(&plain).read(now), sums(&mixed).read(now));
        prop_assert!(near(a.s, b.s) && near(a.f, b.f), "{a:?} {b:?}");
        // The definition itself: every attempt weighed by its own age.
        let mut plainly = Counts::default();
        for (c, at) in &plain {
            let w = 2.0_f64.powf(-((now.0 - at.0) as f64 / DAY as f64) / 14.0);
            plainly = Counts::new(plainly.s + c.s * w, plainly.f + c.f * w);
        }
        prop_assert!(near(a.s, plainly.s) && near(a.f, plainly.f), "{a:?} {plainly:?}");
    }

    #[test]
    fn no_history_and_no_moment_makes_a_score_leave_its_interval(
        machine in history(), others in history(), bucket in history(), now in -10 * DAY..2_000 * DAY,
    ) {
        let all: Vec<_> = machine.iter().chain(&others).copied().collect();
        let evidence = Evidence { machine: sums(&machine), operator: sums(&all), bucket: sums(&bucket) };
        let posterior = evidence.posterior(Timestamp(now));
        prop_assert!((0.0..=1.0).contains(&posterior.score()), "{posterior:?}");
        prop_assert!(posterior.alpha >= 0.0 && posterior.beta >= 0.0);
        prop_assert!(posterior.upper() >= posterior.score());
    }

    #[test]
    fn one_attempt_never_counts_for_more_than_one(exit in exits(), g in 0.0..=1.0_f64, p in 0.0..=1.0_f64) {
        let c = contribution(exit, g, p);
        prop_assert!(c.s >= 0.0 && c.f >= 0.0 && c.s + c.f <= 1.0 + 1e-12, "{c:?}");
    }

    #[test]
    fn waiting_longer_in_vain_never_speaks_for_a_machine(p in 0.01..0.99_f64, a in 0.0..1.0_f64, b in 0.0..1.0_f64) {
        let (early, late) = (a.min(b), a.max(b));
        let share = |g| { let c = contribution(Exit::LostRace, g, p); c.f / (c.s + c.f).max(1e-300) };
        if early > 1e-6 {
            prop_assert!(share(late) >= share(early) - 1e-9);
        }
        // A censored attempt is never worth more than the score it is judged by.
        let c = contribution(Exit::LostRace, late, p);
        prop_assert!(c.s <= p * (c.s + c.f) + 1e-12);
    }

    #[test]
    fn a_success_helps_and_a_failure_hurts(machine in history(), bucket in history()) {
        let now = Timestamp(401 * DAY);
        let score = |extra: Option<Counts>| {
            let mut m = sums(&machine);
            if let Some(c) = extra { m.add(c, now); }
            Evidence { machine: m, operator: m, bucket: sums(&bucket) }.score(now)
        };
        prop_assert!(score(Some(contribution(Exit::Ready, 0.0, 0.5))) > score(None));
        let hit = |suspect| score(Some(contribution(Exit::Explicit { suspect }, 0.0, 0.5)));
        prop_assert!(hit(false) < score(None));
        prop_assert!(hit(true) > hit(false));
    }
}

#[test]
fn the_formulas_of_the_specification_by_hand() {
    // mu_b = (8.5 + 4) / (10 + 5) = 0.8333; mu_o = (5 mu_b + 1) / (5 + 2) = 0.7381
    let p = Posterior::new(
        Counts::new(4.0, 1.0),
        Counts::new(1.0, 1.0),
        Counts::new(2.0, 3.0),
    );
    let mu_b: f64 = 12.5 / 15.0;
    let mu_o = (5.0 * mu_b + 1.0) / 7.0;
    assert!(near(p.alpha, 3.0 * mu_o + 2.0) && near(p.beta, 3.0 * (1.0 - mu_o) + 3.0));
    assert!(near(p.score(), p.alpha / 8.0));
    // Nothing known: the fleet's mean.
    assert!(near(Evidence::default().score(Timestamp(0)), 0.85));
    // gave_up with G = 0.5, p = 0.8: D = 0.6, s = 0.5*0.8*0.5/0.6, f = 0.5*0.2/0.6.
    let c = contribution(Exit::GaveUp { suspect: false }, 0.5, 0.8);
    assert!(near(c.s, 0.2 / 0.6) && near(c.f, 0.1 / 0.6));
    let c = contribution(Exit::GaveUp { suspect: true }, 0.5, 0.8);
    assert!(near(c.s, 0.02 / 0.6) && near(c.f, 0.01 / 0.6));
    // After the slowest boots it is a failure, at once it is nothing.
    assert_eq!(contribution(Exit::LostRace, 1.0, 0.8), Counts::new(0.0, 1.0));
    assert_eq!(contribution(Exit::LostRace, 0.0, 0.8), Counts::default());
    assert_eq!(contribution(Exit::LostRace, 1.0, 1.0), Counts::new(0.0, 1.0));
}

#[test]
fn a_count_halves_in_fourteen_days_and_is_never_stale() {
    let mut s = Sums::default();
    s.add(Counts::new(1.0, 2.0), Timestamp(0));
    assert_eq!(s.read(Timestamp(14 * DAY)), Counts::new(0.5, 1.0));
    assert_eq!(s.read(Timestamp(28 * DAY)), Counts::new(0.25, 0.5));
    assert_eq!(s.read(Timestamp(-DAY)), Counts::new(1.0, 2.0));
    // A machine that failed long ago is worth what a stranger is.
    let bad = Evidence {
        machine: s,
        operator: s,
        ..Evidence::default()
    };
    assert!(bad.score(Timestamp(0)) < 0.7);
    assert!(near(bad.score(Timestamp(1_000 * DAY)), 0.85));
}

#[test]
fn bucket_bounds_are_the_specifications() {
    let table = [
        (0.0, Bucket::Low),
        (0.949_999, Bucket::Low),
        (0.95, Bucket::Medium),
        (0.984_999, Bucket::Medium),
        (0.985, Bucket::High),
        (0.997, Bucket::Top),
        (1.0, Bucket::Top),
        (f64::NAN, Bucket::Low),
    ];
    for (r, want) in table {
        assert_eq!(Bucket::of(r), want, "{r}");
    }
}

#[test]
fn the_soft_block_needs_evidence() {
    let of = |s, f| Posterior::new(Counts::default(), Counts::default(), Counts::new(s, f));
    assert!(!of(0.0, 0.0).soft_blocked());
    assert!(!of(0.0, 2.0).soft_blocked(), "weight 5 is not above 5");
    assert!(!of(0.0, 6.0).soft_blocked());
    assert!(of(0.0, 20.0).soft_blocked());
    assert!(!of(20.0, 20.0).soft_blocked());
}

#[test]
fn each_outcome_is_one_exit() {
    use Outcome::{Failed, GaveUp, LostRace, NotHost, Won};
    let asked = |cuda: Option<&str>| Circumstances {
        suspect: false,
        cuda: cuda.map(|c| c.parse().expect("a version")),
    };
    let of = |o, r: Option<Reason>, ready| Exit::of(o, r.as_ref(), ready, &asked(None));
    assert_eq!(of(Won, None, true), Exit::Ready);
    assert_eq!(of(LostRace, None, true), Exit::Ready, "it was seen to come");
    assert_eq!(of(LostRace, None, false), Exit::LostRace);
    assert_eq!(of(GaveUp, None, false), Exit::GaveUp { suspect: false });
    assert_eq!(
        of(Failed, Some(Reason::BootTimeout), false),
        Exit::GaveUp { suspect: false }
    );
    assert_eq!(
        of(Failed, Some(Reason::SshFailed), false),
        Exit::Explicit { suspect: false }
    );
    // Too old for what was asked is not charged; serving nobody is.
    let driver = Some(&Reason::DriverMismatch);
    assert_eq!(
        Exit::of(Failed, driver, false, &asked(Some("12.8"))),
        Exit::NotHost
    );
    assert_eq!(
        Exit::of(Failed, driver, false, &asked(None)),
        Exit::Explicit { suspect: false }
    );
    assert_eq!(of(NotHost, Some(Reason::NoSuchAsk), false), Exit::NotHost);
}
