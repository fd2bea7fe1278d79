use super::super::{Change, Entry, change};
use super::*;
use crate::history::Outcome;
use proptest::prelude::*;

const DAY: i64 = 86_400_000_000;

fn attempt(outcome: Outcome, reason: Option<Reason>, at: i64) -> Attempt {
    Attempt {
        outcome,
        reason,
        ready_seconds: None,
        at: Timestamp(at),
    }
}

fn literal() -> Settings {
    Settings {
        rules: RuleSet::Literal,
        ..Settings::default()
    }
}

/// The last word of the rules over a row of attempts, one a day.
fn after_with(settings: &Settings, attempts: &[(Outcome, Option<Reason>)]) -> Option<Proposal> {
    let mut window = Window::default();
    let mut last = None;
    for (day, (outcome, reason)) in attempts.iter().enumerate() {
        let a = attempt(*outcome, reason.clone(), day as i64 * DAY);
        last = judge(&mut window, &a, &Circumstances::default(), settings);
    }
    last
}

fn rule(attempts: &[(Outcome, Option<Reason>)]) -> Option<(Rule, BlacklistType)> {
    after_with(&Settings::default(), attempts).map(|p| (p.rule, p.blacklist_type))
}

use BlacklistType::{Automatic, Temporary};
use Outcome::{Failed, GaveUp, LostRace, NotHost, Won};

#[test]
fn every_rule_of_the_document_and_its_type() {
    let fail = || (Failed, Some(Reason::SshFailed));
    // 1. Success rate below 30 % with at least 3 attempts.
    assert_eq!(rule(&[fail(), (Won, None), fail()]), None, "1 of 3 is 33 %");
    assert_eq!(
        rule(&[fail(), (Won, None), fail(), fail()]),
        Some((Rule::LowSuccessRate, Automatic)),
        "1 of 4, two in a row"
    );
    // 2. Three consecutive failures.
    assert_eq!(rule(&[fail(), fail()]), None);
    assert_eq!(
        rule(&[(Won, None), (Won, None), fail(), fail(), fail()]),
        Some((Rule::ConsecutiveFailures, Automatic))
    );
    // 3. Critical failure: hardware at once; a timeout only where the document is taken literally.
    let hardware = [(Failed, Some(Reason::HardwareError))];
    let timeout = [(Failed, Some(Reason::BootTimeout))];
    assert_eq!(rule(&hardware), Some((Rule::HardwareError, Automatic)));
    assert_eq!(rule(&timeout), None);
    let said = after_with(&literal(), &timeout).expect("critical");
    assert_eq!(
        (said.rule, said.blacklist_type, said.reason.as_str()),
        (Rule::Timeout, Automatic, "boot_timeout")
    );
    assert!(after_with(&literal(), &hardware).is_some());
    // A host fault that is only suspected.
    assert_eq!(
        rule(&[(Failed, Some(Reason::GpuNotReady))]),
        Some((Rule::SuspectedFault, Temporary))
    );
    assert_eq!(
        after_with(&literal(), &[(Failed, Some(Reason::GpuNotReady))]),
        None
    );
    // What does not count never blocks, whatever it is called.
    for outcome in [LostRace, GaveUp, NotHost, Won] {
        assert_eq!(
            rule(&[fail(), fail(), (outcome, Some(Reason::HardwareError))]),
            None
        );
    }
}

#[test]
fn every_type_lasts_as_long_as_the_document_says() {
    let s = Settings::default();
    assert_eq!(s.duration(Automatic), Some(Duration::from_secs(7 * 86_400)));
    assert_eq!(s.duration(Temporary), Some(Duration::from_secs(24 * 3_600)));
    assert_eq!(s.duration(BlacklistType::Manual), None);
    assert_eq!((s.min_attempts, s.automatic_days, s.temporary_hours), (3, 7, 24));
    assert!((s.min_success_rate - 0.3).abs() < f64::EPSILON);
    let words: Vec<_> = BlacklistType::ALL.iter().map(|t| t.as_str()).collect();
    assert_eq!(words, ["automatic", "manual", "temporary"]);
}

#[test]
fn every_reason_of_the_document_is_known_and_blamed_on_the_host() {
    for word in [
        "driver_mismatch",
        "boot_timeout",
        "ssh_failed",
        "gpu_not_ready",
        "frequent_interrupts",
    ] {
        let reason = Reason::from(word);
        assert!(!matches!(reason, Reason::Other(_)), "{word}");
        assert_eq!(reason.outcome(), Failed, "{word}");
    }
    assert_eq!(
        Reason::from("their_own_word"),
        Reason::Other("their_own_word".into())
    );
}

#[test]
fn three_in_ten_is_not_below_thirty_percent() {
    let row = [Won, Failed, Failed, Won, Failed, Failed, Won, Failed, Failed];
    let mut all: Vec<_> = row.iter().map(|o| (*o, None)).collect();
    assert_eq!(rule(&all), None, "3 of 9");
    all.insert(0, (Failed, None));
    assert_eq!(rule(&all), None, "3 of 10 is 30 %");
    all.insert(0, (Failed, None));
    assert_eq!(rule(&all), Some((Rule::LowSuccessRate, Automatic)), "3 of 11");
}

#[test]
fn a_driver_blocks_the_version_asked_for_and_not_the_machine() {
    let cuda = |text: &str| Circumstances {
        cuda: Some(text.parse().expect(text)),
        ..Circumstances::default()
    };
    let mismatch = attempt(Failed, Some(Reason::DriverMismatch), 0);
    let mut window = Window::default();
    for _ in 0..5 {
        let said = judge(&mut window, &mismatch, &cuda("12.8"), &Settings::default()).expect("blocks");
        assert_eq!(
            (said.rule, said.blacklist_type),
            (Rule::DriverMismatch, Automatic)
        );
        assert_eq!(said.scope.map(|s| s.to_string()).as_deref(), Some("cuda=12.8"));
    }
    assert_eq!(window, Window::default(), "nothing is charged to the machine");
    // Literally it is a failure like another.
    assert_eq!(judge(&mut window, &mismatch, &cuda("12.8"), &literal()), None);
    assert_eq!(window.failed, 1);
    // Without a version to blame the driver serves nobody: charged, and blocked for a day.
    let none = Circumstances::default();
    let said = judge(&mut window, &mismatch, &none, &Settings::default()).expect("blocks");
    assert_eq!(
        (said.rule, said.blacklist_type, said.scope),
        (Rule::SuspectedFault, Temporary, None)
    );
    assert_eq!((said.reason.as_str(), window.failed), ("driver_mismatch", 2));
    assert_eq!(judge(&mut Window::default(), &mismatch, &none, &literal()), None);
}

#[test]
fn an_incident_suspends_the_rules_and_is_not_charged_later() {
    let suspect = Circumstances {
        suspect: true,
        ..Circumstances::default()
    };
    let (mut window, settings) = (Window::default(), Settings::default());
    let hardware = attempt(Failed, Some(Reason::HardwareError), 0);
    for _ in 0..5 {
        assert_eq!(judge(&mut window, &hardware, &suspect, &settings), None);
    }
    let plain = attempt(Failed, None, DAY);
    assert_eq!(
        judge(&mut window, &plain, &Circumstances::default(), &settings),
        None
    );
    assert_eq!(window.failed, 1);
    assert!(judge(&mut window, &hardware, &suspect, &literal()).is_some());
    let _ = judge(&mut window, &attempt(Won, None, DAY), &suspect, &settings);
    assert_eq!(window.successful, 1, "a success is one, incident or not");
}

#[test]
fn what_was_pardoned_or_served_is_not_judged_again() {
    let (mut window, settings) = (Window::default(), Settings::default());
    let none = Circumstances::default();
    let fail = |at| attempt(Failed, Some(Reason::SshFailed), at);
    for at in 1..=2 {
        assert_eq!(judge(&mut window, &fail(at), &none, &settings), None);
    }
    assert!(judge(&mut window, &fail(3), &none, &settings).is_some());
    window.restart(Timestamp(100));
    // One that was under way before, recorded late, and two new ones.
    assert_eq!(judge(&mut window, &fail(100), &none, &settings), None);
    assert_eq!(judge(&mut window, &fail(101), &none, &settings), None);
    assert_eq!(judge(&mut window, &fail(102), &none, &settings), None);
    window.restart(Timestamp(100));
    window.restart(Timestamp(50));
    assert_eq!(window.failed, 2, "an end known already changes nothing");
    assert!(judge(&mut window, &fail(103), &none, &settings).is_some());
}

#[test]
fn losses_have_their_own_counter() {
    let settings = Settings::default();
    let now = Timestamp(20 * DAY);
    let lost = |days_ago: i64, cause| (Timestamp(now.0 - days_ago * DAY), cause);
    let said = |losses: &[(Timestamp, LossCause)], window: Window, suspect| {
        judge_losses(losses, &window, suspect, now, &settings)
    };
    let three = [
        lost(6, LossCause::Host),
        lost(1, LossCause::Host),
        lost(0, LossCause::Host),
    ];
    let p = said(&three, Window::default(), false).expect("three in seven days");
    assert_eq!((p.rule, p.blacklist_type), (Rule::FrequentInterrupts, Temporary));
    assert_eq!(
        (p.reason.as_str(), p.duration),
        ("frequent_interrupts", Some(Duration::from_secs(86_400)))
    );
    assert_eq!(said(&three[1..], Window::default(), false), None);
    let old = [lost(8, LossCause::Host), three[1], three[2]];
    assert_eq!(said(&old, Window::default(), false), None);
    let excused = [lost(2, LossCause::UserStop), three[1], three[2]];
    assert_eq!(said(&excused, Window::default(), false), None);
    let settled = Window {
        since: Some(Timestamp(now.0 - 2 * DAY)),
        ..Window::default()
    };
    assert_eq!(said(&three, settled, false), None);
    assert_eq!(said(&three, Window::default(), true), None);
}

fn any_attempts() -> impl Strategy<Value = Vec<Attempt>> {
    let reasons = [
        None,
        Some(Reason::SshFailed),
        Some(Reason::BootTimeout),
        Some(Reason::GpuNotReady),
        Some(Reason::HardwareError),
    ];
    let one = (0..Outcome::ALL.len(), 0..reasons.len(), 0..1_000_i64)
        .prop_map(move |(o, r, at)| attempt(Outcome::ALL[o], reasons[r].clone(), at));
    proptest::collection::vec(one, 0..40)
}

proptest! {
    #[test]
    fn the_window_equals_a_recount(all in any_attempts(), cut in proptest::option::of(0..1_000_i64)) {
        let (mut window, mut again) = (Window::default(), Window::default());
        let (settings, none) = (Settings::default(), Circumstances::default());
        if let Some(at) = cut {
            window.restart(Timestamp(at));
        }
        for a in &all {
            let _ = judge(&mut window, a, &none, &settings);
        }
        let counted: Vec<_> = all.iter()
            .filter(|a| cut.is_none_or(|c| a.at.0 > c))
            .filter_map(|a| success_of(a.outcome)).collect();
        again.since = cut.map(Timestamp);
        again.successful = counted.iter().filter(|s| **s).count() as i64;
        again.failed = counted.iter().filter(|s| !**s).count() as i64;
        again.consecutive_failures = counted.iter().rev().take_while(|s| !**s).count() as i64;
        prop_assert_eq!(window, again);
    }

    #[test]
    fn nothing_a_rule_says_touches_a_persons_entry(
        all in any_attempts(), suspect: bool, strict: bool, end in proptest::option::of(1_001..2_000_i64),
    ) {
        let settings = if strict { literal() } else { Settings::default() };
        let around = Circumstances { suspect, cuda: None };
        let manual = Entry { blacklist_type: BlacklistType::Manual, expires_at: end.map(Timestamp), open: true };
        let mut window = Window::default();
        for a in &all {
            if let Some(p) = judge(&mut window, a, &around, &settings) {
                prop_assert_eq!(change(Some(&manual), &p, a.at), Change::Keep);
                prop_assert_eq!(change(None, &p, a.at), Change::Insert);
                prop_assert_eq!(success_of(a.outcome), Some(false));
                prop_assert_eq!(p.duration, settings.duration(p.blacklist_type));
            }
        }
    }

    #[test]
    fn literal_blocks_whatever_default_does_for_good_measure(all in any_attempts()) {
        // Same attempts, no incident: the repaired rules are never stricter in automatic blocks.
        let (mut a, mut b) = (Window::default(), Window::default());
        let none = Circumstances::default();
        for one in &all {
            let repaired = judge(&mut a, one, &none, &Settings::default());
            let strict = judge(&mut b, one, &none, &literal());
            if repaired.is_some_and(|p| p.blacklist_type == Automatic) {
                prop_assert!(strict.is_some());
            }
        }
    }
}
