use super::*;
use proptest::prelude::*;

fn every(ms: u64) -> Rule {
    Rule {
        interval: Duration::from_millis(ms),
        ..Rule::NONE
    }
}

fn at(ms: i64) -> Timestamp {
    Timestamp(1_795_000_000_000_000 + ms * 1_000)
}

fn ask(who: i64, class: Class, came: i64, rule: Rule) -> Ask {
    Ask {
        who,
        deadline: class.deadline(at(came)),
        rule,
    }
}

/// Who waits, driven as the server drives it: asks, sleeps as told, asks again.
struct Waiting {
    ask: Ask,
    wakes: Timestamp,
}

/// Lets all of them ask until each has had its turn; who got it when.
fn serve(gate: &mut Gate, mut waiting: Vec<Waiting>) -> Vec<(i64, Timestamp)> {
    let mut served = Vec::new();
    while !waiting.is_empty() {
        let next = (0..waiting.len()).min_by_key(|n| waiting[*n].wakes).unwrap();
        let now = waiting[next].wakes;
        match gate.ask(&waiting[next].ask, now) {
            Verdict::Turn => served.push((waiting.remove(next).ask.who, now)),
            Verdict::Wait(wait) => waiting[next].wakes = now.plus(wait),
            Verdict::Closed(wait) => waiting[next].wakes = now.plus(wait),
        }
    }
    served
}

#[test]
fn the_documented_limits_and_how_they_are_set() {
    let limits = Limits::default();
    let seconds = |limits: &Limits, e| limits.rule(e).interval.as_secs_f64();
    let documented = [
        (Endpoint::List, 1.0),
        (Endpoint::Show, 2.0),
        (Endpoint::Change, 1.0),
        (Endpoint::Destroy, 3.0),
        (Endpoint::Create, 4.5),
        (Endpoint::Bid, 5.5),
        (Endpoint::AddKey, 1.0),
    ];
    for (endpoint, least) in documented {
        let ours = seconds(&limits, endpoint);
        assert!((least..least + 0.051).contains(&ours), "{endpoint}: {ours}");
    }
    assert!(limits.rule(Endpoint::Create).penalty >= Duration::from_secs(12));
    assert_eq!(
        "off".parse::<Limits>().unwrap().rule(Endpoint::Create),
        Rule::NONE
    );
    assert_eq!("documented".parse::<Limits>().unwrap(), limits);
    let own: Limits = "create=6, search=20/min".parse().unwrap();
    assert_eq!(
        (seconds(&own, Endpoint::Create), own.rule(Endpoint::Search).burst),
        (6.0, 10)
    );
    assert_eq!(own.rule(Endpoint::List), limits.rule(Endpoint::List));
    let tenth: Limits = "0.1".parse().unwrap();
    assert!((0.45..0.46).contains(&seconds(&tenth, Endpoint::Create)));
    for bad in [
        "fast",
        "create",
        "create=-1",
        "fly=3",
        "search=0/min",
        "1e9",
        "NaN",
        "create=NaN",
    ] {
        assert!(bad.parse::<Limits>().is_err(), "{bad}");
    }
}

#[test]
fn a_free_gate_opens_at_once_and_then_keeps_its_distance() {
    let mut gate = Gate::default();
    let rule = every(4_500);
    assert_eq!(
        gate.ask(&ask(1, Class::Background, 0, rule), at(0)),
        Verdict::Turn
    );
    let second = ask(2, Class::Background, 10, rule);
    assert_eq!(
        gate.ask(&second, at(10)),
        Verdict::Wait(Duration::from_millis(4_490))
    );
    assert_eq!(gate.ask(&second, at(4_500)), Verdict::Turn);
}

#[test]
fn urgent_ones_pass_and_nobody_waits_for_ever() {
    let (mut gate, rule) = (Gate::default(), every(1_000));
    assert_eq!(gate.ask(&ask(1, Class::Urgent, 0, rule), at(0)), Verdict::Turn);
    let slow = ask(2, Class::Background, 1, rule);
    let mut waiting = vec![Waiting {
        ask: slow,
        wakes: at(1),
    }];
    // A failover's create every 900 ms, for ever: more than there are turns.
    waiting.extend((0..300).map(|n| Waiting {
        ask: ask(10 + n, Class::Urgent, 100 + n * 900, rule),
        wakes: at(100 + n * 900),
    }));
    let served = serve(&mut gate, waiting);
    let (_, when) = served.iter().find(|(who, _)| *who == 2).unwrap();
    let waited = between(at(1), *when);
    assert!(
        waited > Duration::from_secs(100),
        "the urgent ones went first: {waited:?}"
    );
    assert!(waited < Duration::from_secs(150), "but not for ever: {waited:?}");
}

#[test]
fn who_dies_waiting_holds_nobody_up_for_long() {
    let (mut gate, rule) = (Gate::default(), every(1_000));
    assert_eq!(gate.ask(&ask(1, Class::Urgent, 0, rule), at(0)), Verdict::Turn);
    assert!(matches!(
        gate.ask(&ask(2, Class::Urgent, 5, rule), at(5)),
        Verdict::Wait(_)
    ));
    let served = serve(
        &mut gate,
        vec![Waiting {
            ask: ask(3, Class::Background, 6, rule),
            wakes: at(6),
        }],
    );
    assert_eq!(served, [(3, at(1_250))]);
}

#[test]
fn refusals_widen_once_for_one_cause_and_turns_take_it_back() {
    let (mut gate, rule) = (Gate::default(), every(1_000));
    let often = Refusal::TooOften { retry_after: None };
    gate.refused(rule, often, at(0));
    gate.refused(rule, often, at(30));
    assert_eq!(gate.stretch, 1.5);
    let asks = |n: i64, now: i64| ask(n, Class::Urgent, now, rule);
    assert_eq!(
        gate.ask(&asks(1, 100), at(100)),
        Verdict::Wait(Duration::from_millis(1_430))
    );
    let long = Refusal::TooOften {
        retry_after: Some(Duration::from_secs(20)),
    };
    gate.refused(rule, long, at(5_000));
    assert_eq!(
        gate.ask(&asks(2, 5_000), at(5_000)),
        Verdict::Wait(Duration::from_secs(20))
    );
    let mut now = at(60_000);
    for n in 0..40 {
        let mine = Ask {
            who: 100 + n,
            deadline: now,
            rule,
        };
        while let Verdict::Wait(wait) = gate.ask(&mine, now) {
            now = now.plus(wait);
        }
    }
    assert!(gate.stretch < 1.001, "{}", gate.stretch);
    let penalty = Rule {
        penalty: Duration::from_secs(12),
        ..rule
    };
    gate.refused(penalty, often, at(900_000));
    assert_eq!(
        gate.ask(&asks(3, 900_000), at(900_000)),
        Verdict::Wait(Duration::from_secs(12))
    );
}

#[test]
fn a_used_up_day_closes_until_it_is_over() {
    let (mut gate, rule) = (Gate::default(), Limits::default().rule(Endpoint::Search));
    gate.refused(
        rule,
        Refusal::Quota {
            resets_in: Some(Duration::from_secs(90)),
        },
        at(0),
    );
    assert_eq!(
        gate.ask(&ask(1, Class::Urgent, 0, rule), at(0)),
        Verdict::Closed(Duration::from_secs(90))
    );
    assert_eq!(
        gate.ask(&ask(2, Class::Urgent, 90_000, rule), at(90_000)),
        Verdict::Turn
    );
    gate.refused(rule, Refusal::Quota { resets_in: None }, at(100_000));
    assert_eq!(
        gate.closed_until.0 % 86_400_000_000,
        0,
        "midnight, where nothing is said"
    );
    let back = Timestamp(at(0).0 - 30 * 86_400_000_000);
    assert_eq!(
        gate.ask(
            &Ask {
                who: 3,
                deadline: back,
                rule
            },
            back
        ),
        Verdict::Turn,
        "a clock that was set back"
    );
}

fn any_class() -> impl Strategy<Value = Class> {
    prop_oneof![Just(Class::Urgent), Just(Class::Normal), Just(Class::Background)]
}

proptest! {
    /// Whatever comes when: the distance is kept, everybody is served, and of those that have
    /// waited for a whole turn the earliest deadline is next.
    #[test]
    fn turns_keep_their_distance_and_their_order(
        coming in prop::collection::vec((any_class(), 0i64..60_000), 1..40),
        interval in 1u64..5_000,
    ) {
        let (mut gate, rule) = (Gate::default(), every(interval));
        let waiting: Vec<_> = coming.iter().enumerate().map(|(n, (class, came))| Waiting {
            ask: ask(1 + n as i64, *class, *came, rule),
            wakes: at(*came),
        }).collect();
        let asks: Vec<Ask> = waiting.iter().map(|w| w.ask).collect();
        let served = serve(&mut gate, waiting);
        prop_assert_eq!(served.len(), coming.len());
        for pair in served.windows(2) {
            prop_assert!(between(pair[0].1, pair[1].1) >= rule.interval);
        }
        for (n, (who, when)) in served.iter().enumerate() {
            let deadline = asks[*who as usize - 1].deadline;
            for (later, _) in &served[n + 1..] {
                let other = (&asks[*later as usize - 1], coming[*later as usize - 1].1);
                // It was there for two rounds, so it has left its mark.
                let there = at(other.1).plus(rule.interval * 2 + GRACE * 2) < *when;
                prop_assert!(!there || other.0.deadline >= deadline);
            }
        }
    }

    /// No window of a minute sees more than is allowed in it.
    #[test]
    fn searches_keep_to_the_minute(gaps in prop::collection::vec(0i64..20_000, 1..80)) {
        let (mut gate, rule) = (Gate::default(), Limits::default().rule(Endpoint::Search));
        let mut came = 0;
        let waiting = gaps.iter().enumerate().map(|(n, gap)| {
            came += gap;
            Waiting { ask: ask(1 + n as i64, Class::Urgent, came, rule), wakes: at(came) }
        }).collect();
        let served = serve(&mut gate, waiting);
        for (n, (_, first)) in served.iter().enumerate() {
            let within = served[n..].iter().filter(|(_, t)| between(*first, *t) < Duration::from_secs(60)).count();
            prop_assert!(within <= 10, "{within} within a minute");
        }
    }

    /// Any refusals at any times: it widens up to its bound and opens again.
    #[test]
    fn refusals_never_close_for_good(
        refusals in prop::collection::vec((0i64..100_000, prop::option::of(0u64..1_000_000)), 0..40),
        interval in 1u64..10_000,
    ) {
        let (mut gate, rule) = (Gate::default(), every(interval));
        let mut now = 0;
        for (gap, retry_after) in refusals {
            now += gap;
            gate.refused(rule, Refusal::TooOften { retry_after: retry_after.map(Duration::from_secs) }, at(now));
            prop_assert!((1.0..=WIDEST).contains(&gate.stretch));
        }
        let mine = ask(1, Class::Background, now, rule);
        match gate.ask(&mine, at(now)) {
            Verdict::Turn => {}
            Verdict::Wait(wait) => {
                prop_assert!(wait <= LONGEST_REFUSAL.max(rule.interval.mul_f64(WIDEST)));
                prop_assert_eq!(gate.ask(&mine, at(now).plus(wait)), Verdict::Turn);
            }
            Verdict::Closed(_) => prop_assert!(false),
        }
    }
}
