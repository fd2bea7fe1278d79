use super::*;
use proptest::prelude::*;

const FAST: Stratum = Stratum {
    speed: Speed::Fast,
    warm: false,
};

fn seen(seconds: f64, wait: Wait) -> Observation {
    Observation {
        stratum: FAST,
        seconds,
        wait,
    }
}

/// The q-th quantile of the lognormal that true boots are drawn from here.
fn true_boot(i: usize, n: usize) -> f64 {
    // Inverse by bisection of our own distribution function.
    let q = (i as f64 + 0.5) / n as f64;
    let (mut low, mut high) = (0.0_f64, HORIZON_SECONDS);
    for _ in 0..60 {
        let mid = (low + high) / 2.0;
        if normal_cdf((mid / 89.0).ln() / 0.9) < q {
            low = mid
        } else {
            high = mid
        }
    }
    low
}

#[test]
fn censoring_losers_recovers_the_curve_that_winners_hide() {
    // Races of three: the second and third are cut off when the first is ready.
    let n = 2_400;
    let mut boots: Vec<f64> = (0..n).map(|i| true_boot(i, n)).collect();
    // Shuffled, as who races whom must not depend on the boot times.
    let mut state = 1_u64;
    for i in (1..n).rev() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        boots.swap(i, (state >> 33) as usize % (i + 1));
    }
    let mut honest = Vec::new();
    let mut winners = Vec::new();
    for race in boots.chunks(3) {
        let first = race.iter().copied().fold(f64::INFINITY, f64::min);
        for b in race {
            let wait = if *b == first { Wait::Ready } else { Wait::Censored };
            honest.push(seen(first, wait));
        }
        winners.push(seen(first, Wait::Ready));
    }
    let truth = true_boot(n * 9 / 10, n);
    let learned = BootCurves::fit(&honest).curve(FAST).quantile(0.9);
    let fooled = BootCurves::fit(&winners).curve(FAST).quantile(0.9);
    assert!((learned / truth - 1.0).abs() < 0.15, "{learned} against {truth}");
    assert!(fooled < 0.6 * truth, "{fooled} against {truth}");
}

#[test]
fn it_starts_from_the_assumed_curve_and_from_300_seconds() {
    let few: Vec<_> = (0..24).map(|_| seen(20.0, Wait::Ready)).collect();
    let cold = BootCurves::fit(&few);
    assert!(cold.is_cold());
    assert!((cold.curve(FAST).quantile(0.5) - 90.0).abs() < 1.0);
    assert_eq!(cold.fixed_timeout(&[FAST]), Duration::from_secs(300));
    let warm = BootCurves::fit(&[few, vec![seen(20.0, Wait::Ready)]].concat());
    assert!(!warm.is_cold());
    assert!(warm.curve(FAST).quantile(0.95) <= 25.0);
    assert!(warm.fixed_timeout(&[FAST]) <= Duration::from_secs(35));
}

#[test]
fn a_stratum_with_little_is_drawn_to_the_whole() {
    let slow = Stratum {
        speed: Speed::Slow,
        warm: false,
    };
    let mut all: Vec<_> = (0..200).map(|_| seen(40.0, Wait::Ready)).collect();
    let of = |n: usize| {
        (0..n).map(move |_| Observation {
            stratum: slow,
            seconds: 400.0,
            wait: Wait::Ready,
        })
    };
    all.extend(of(1));
    let little = BootCurves::fit(&all).curve(slow).g(100.0);
    all.extend(of(200));
    let much = BootCurves::fit(&all).curve(slow).g(100.0);
    assert!(little > 0.9 && much < 0.2, "{little} {much}");
}

#[test]
fn failures_compete_and_never_count_as_boots() {
    let mut all: Vec<_> = (0..100).map(|_| seen(12.0, Wait::Failed)).collect();
    all.extend((0..100).map(|_| seen(62.0, Wait::Ready)));
    let curves = BootCurves::fit(&all);
    assert_eq!(curves.curve(FAST).g(60.0), 0.0);
    assert_eq!(curves.curve(FAST).g(65.0), 1.0);
    assert_eq!((curves.attempts, curves.ready), (200, 100));
    let hopeless: Vec<_> = (0..100).map(|_| seen(12.0, Wait::Failed)).collect();
    assert_eq!(BootCurves::fit(&hopeless).curve(FAST), &Curve::assumed());
}

#[test]
fn only_the_newest_attempts_matter_and_a_fit_survives_storing() {
    let mut all: Vec<_> = (0..5_000).map(|_| seen(500.0, Wait::Ready)).collect();
    all.extend((0..LAST_ATTEMPTS).map(|_| seen(30.0, Wait::Ready)));
    let curves = BootCurves::fit(&all);
    assert!(curves.curve(FAST).quantile(0.99) <= 35.0);
    let text = serde_json::to_string(&curves).expect("plain numbers");
    assert_eq!(
        serde_json::from_str::<BootCurves>(&text).expect("its own text"),
        curves
    );
}

#[test]
fn strata_are_cut_at_200_and_800_megabits() {
    let of = |v| Stratum::of(v, false).speed;
    assert_eq!([of(199.9), of(200.0), of(799.9), of(800.0)], {
        use Speed::{Fast, Medium, Slow};
        [Slow, Medium, Medium, Fast]
    });
    assert_eq!(of(f64::NAN), Speed::Slow);
}

#[test]
fn the_mean_of_a_curve_is_the_mean_of_the_boots_it_has_seen() {
    let seen = |n: u32| Observation {
        stratum: FAST,
        seconds: 20.0 + f64::from(n % 200),
        wait: Wait::Ready,
    };
    let all: Vec<_> = (0..2_000).map(seen).collect();
    let mean = BootCurves::fit(&all).curve(FAST).mean();
    assert!((mean - 119.5).abs() < BIN_SECONDS, "{mean}");
}

fn observations() -> impl Strategy<Value = Vec<Observation>> {
    let one =
        (0.0..1_000.0_f64, any::<bool>(), 0.0..1_200.0_f64, 0..3_usize).prop_map(|(mbps, warm, s, w)| {
            Observation {
                stratum: Stratum::of(mbps, warm),
                seconds: s,
                wait: Wait::ALL[w],
            }
        });
    proptest::collection::vec(one, 0..200)
}

proptest! {
    #[test]
    fn a_curve_is_a_distribution_whatever_was_seen(
        all in observations(), mbps in 0.0..1_000.0_f64, warm in any::<bool>(), a in -10.0..1_000.0_f64, b in -10.0..1_000.0_f64,
    ) {
        let curves = BootCurves::fit(&all);
        let curve = curves.curve(Stratum::of(mbps, warm));
        let (low, high) = (a.min(b), a.max(b));
        prop_assert!(curve.g(low) <= curve.g(high) + 1e-12);
        prop_assert!((0.0..=1.0 + 1e-12).contains(&curve.g(a)));
        prop_assert_eq!(curve.g(0.0), 0.0);
        prop_assert!((curve.g(HORIZON_SECONDS) - 1.0).abs() < 1e-12);
        prop_assert!(curve.integral(300.0) <= 300.0 + 1e-9);
        prop_assert!((0.0..=HORIZON_SECONDS).contains(&curve.mean()));
    }

    #[test]
    fn a_quantile_is_the_inverse_of_the_curve(all in observations(), q in 0.001..0.999_f64) {
        let curves = BootCurves::fit(&all);
        let curve = curves.curve(FAST);
        let t = curve.quantile(q);
        prop_assert!((curve.g(t) - q).abs() < 1e-9, "g({t}) = {}", curve.g(t));
    }
}
