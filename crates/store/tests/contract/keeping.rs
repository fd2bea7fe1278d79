//! What is kept of old attempts, and what travels to another server.

use crate::dice::{Dice, any};
use crate::fixture::{DAY, Fixture, at, machine};
use dumont_core::blacklist::Settings;
use dumont_store::Store;

pub async fn rolled_up_attempts_stay_in_the_numbers(fixture: Fixture) {
    let store = fixture.open().await;
    let settings = Settings::default();
    let mut dice = Dice(31_337);
    let all: Vec<_> = (0..150).map(|n| any(&mut dice, &format!("k{n}"), 4)).collect();
    for new in &all {
        store.record_attempt(new, &settings).await.unwrap();
    }
    let now = at(201 * DAY);
    let before = store.history_summary(None, None, now).await.unwrap();
    let ever = store.history_summary(None, Some(at(-DAY)), now).await.unwrap();
    assert_eq!(
        (before.successful, before.failed, before.uncounted),
        (ever.successful, ever.failed, ever.uncounted)
    );
    let m = machine(1);
    let reasons = store.failure_reasons(&m).await.unwrap();
    let days = store.counted_days(&m, 500).await.unwrap();

    let cut = at(100 * DAY);
    let old = all.iter().filter(|a| a.created_at < cut).count() as u64;
    assert!(old > 20, "there is something to roll up");
    assert_eq!(store.roll_up_attempts(cut).await.unwrap(), old);
    assert_eq!(store.roll_up_attempts(cut).await.unwrap(), 0);
    assert_eq!(store.rolled_up_until().await.unwrap(), Some(cut));

    assert_eq!(store.history_summary(None, None, now).await.unwrap(), before);
    assert_eq!(
        store.history_summary(None, Some(at(-DAY)), now).await.unwrap(),
        ever
    );
    assert_eq!(store.failure_reasons(&m).await.unwrap(), reasons);
    assert_eq!(store.counted_days(&m, 500).await.unwrap(), days);
    // Attempts and roll-ups together are the stored record.
    let kept = store.recount_stats(&m).await.unwrap();
    let rolled = store.rollups_of(&m).await.unwrap();
    let stats = store.machine(&m, now).await.unwrap().unwrap().stats;
    let sum = |which: &str| -> i64 {
        rolled
            .iter()
            .filter(|r| r.verdict == which)
            .map(|r| r.attempts)
            .sum()
    };
    assert_eq!(stats.successful, kept.successful + sum("success"));
    assert_eq!(stats.failed, kept.failed + sum("failure"));
    assert_eq!(stats.uncounted, kept.uncounted + sum("uncounted"));
    assert_eq!(
        stats.ready,
        kept.ready + rolled.iter().map(|r| r.ready_attempts).sum::<i64>()
    );
    assert_eq!(
        stats.ready_total_ms,
        kept.ready_total_ms + rolled.iter().map(|r| r.ready_total_ms).sum::<i64>()
    );

    // An import of the same attempts brings nothing back.
    let done = store.import_attempts(&all, &settings).await.unwrap();
    assert_eq!((done.new, done.known, done.too_old), (0, 150 - old, old));
    assert_eq!(store.history_summary(None, None, now).await.unwrap(), before);
}

pub async fn what_is_exported_can_be_imported_elsewhere(fixture: Fixture) {
    let here = fixture.open().await;
    let there = Store::open_in_memory().await.unwrap();
    let settings = Settings::default();
    let mut dice = Dice(4_711);
    for n in 0..60 {
        let new = any(&mut dice, &format!("k{n}"), 5);
        here.record_attempt(&new, &settings).await.unwrap();
    }
    let mut after = 0;
    loop {
        let rows = here.export_attempts(Some("vast"), None, after, 25).await.unwrap();
        let Some(last) = rows.last() else { break };
        after = last.id;
        let attempts: Vec<_> = rows.into_iter().map(|r| r.attempt).collect();
        assert_eq!(
            there.import_attempts(&attempts, &settings).await.unwrap().new,
            attempts.len() as u64
        );
        assert_eq!(
            there.import_attempts(&attempts, &settings).await.unwrap().known,
            attempts.len() as u64
        );
    }
    let now = at(201 * DAY);
    for n in 0..5 {
        let (a, b) = (
            here.machine(&machine(n), now).await.unwrap(),
            there.machine(&machine(n), now).await.unwrap(),
        );
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_eq!(a.stats.success_rate(), b.stats.success_rate());
        assert_eq!(a.stats.total, b.stats.total);
        assert!((a.reliability_score - b.reliability_score).abs() < 1e-9);
        assert_eq!(b.block, None, "an import blocks nothing");
    }
    assert!(
        here.export_attempts(Some("other"), None, 0, 9)
            .await
            .unwrap()
            .is_empty()
    );
}
