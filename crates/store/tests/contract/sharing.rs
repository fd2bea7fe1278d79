//! What one server has rolled up, taken over by another: once, whatever came before and however
//! often it comes.

use crate::dice::{Dice, any};
use crate::fixture::{DAY, Fixture, at, machine};
use dumont_core::blacklist::Settings;
use dumont_core::history::Stats;
use dumont_core::time::Timestamp;
use dumont_store::{ForeignRollup, NewAttempt, Rollup, Store};

const MACHINES: u32 = 4;
const HOUR: i64 = DAY / 24;

/// All that `from` would export now, under its name.
async fn exported(from: &Store) -> (Vec<ForeignRollup>, Vec<NewAttempt>) {
    let until = from.rolled_up_until().await.unwrap();
    let (mut rollups, mut last): (Vec<Rollup>, Option<Rollup>) = (Vec::new(), None);
    loop {
        let page = from.export_rollups(Some("vast"), None, last.as_ref(), 7).await;
        let page = page.unwrap();
        let Some(end) = page.last() else { break };
        last = Some(end.clone());
        rollups.extend(page);
    }
    let rollups = rollups.into_iter().map(|rollup| ForeignRollup {
        rollup: Rollup {
            source: "them".into(),
            ..rollup
        },
        until: until.unwrap(),
    });
    let rows = from.export_attempts(None, None, 0, 10_000).await.unwrap();
    let attempts = rows.into_iter().map(|r| sent(r.attempt));
    (rollups.collect(), attempts.collect())
}

fn sent(mut attempt: NewAttempt) -> NewAttempt {
    attempt.conditions.source = Some("them".into());
    attempt
}

/// How many attempts an import of everything brought.
async fn takes_over(to: &Store, from: &Store) -> u64 {
    let (rollups, attempts) = exported(from).await;
    let counted = to.import_rollups(&rollups).await.unwrap();
    counted
        + to.import_attempts(&attempts, &Settings::default())
            .await
            .unwrap()
            .new
}

/// Each machine's record, without the row of failures, which old attempts do not touch.
async fn records(store: &Store) -> Vec<Stats> {
    let mut all = Vec::new();
    for n in 0..MACHINES {
        let row = store.machine(&machine(n), at(201 * DAY)).await.unwrap();
        all.push(Stats {
            consecutive_failures: 0,
            ..row.map(|r| r.stats).unwrap_or_default()
        });
    }
    all
}

/// A moment in the middle of a day: that day is counted in part.
fn cut(day: i64) -> Timestamp {
    at(day * DAY + 9 * HOUR)
}

pub async fn counts_are_added_once_whatever_came_before(fixture: Fixture) {
    let (them, us) = (Store::open_in_memory().await.unwrap(), fixture.open().await);
    let settings = Settings::default();
    let mut dice = Dice(2_026);
    let all: Vec<_> = (0..400)
        .map(|n| any(&mut dice, &format!("k{n}"), u64::from(MACHINES)))
        .collect();
    for new in &all {
        them.record_attempt(new, &settings).await.unwrap();
    }
    let truth = records(&them).await;
    // Half of them came one by one while they were young.
    let young: Vec<_> = all.iter().step_by(2).cloned().map(sent).collect();
    assert_eq!(us.import_attempts(&young, &settings).await.unwrap().new, 200);
    them.roll_up_attempts(cut(100)).await.unwrap();
    assert_eq!(takes_over(&us, &them).await, 200);
    assert_eq!(records(&us).await, truth);
    // Again; after they have counted more; and after we have counted some of theirs ourselves.
    assert_eq!(takes_over(&us, &them).await, 0);
    them.roll_up_attempts(cut(130)).await.unwrap();
    assert_eq!(takes_over(&us, &them).await, 0);
    us.roll_up_attempts(cut(150)).await.unwrap();
    assert_eq!(takes_over(&us, &them).await, 0);
    them.roll_up_attempts(cut(170)).await.unwrap();
    assert_eq!(takes_over(&us, &them).await, 0);
    assert_eq!(records(&us).await, truth);
    // The old file of single attempts, once more.
    assert_eq!(us.import_attempts(&young, &settings).await.unwrap().new, 0);
    assert_eq!(records(&us).await, truth);
    for n in 0..MACHINES {
        let blocked = us.check_blacklist(&machine(n), at(201 * DAY)).await.unwrap();
        assert_eq!(blocked, None, "an import blocks nothing");
    }
    // What is ours stays ours beside it.
    let mut own = all[0].clone();
    own.attempt_key = "own".into();
    own.created_at = cut(199);
    us.record_attempt(&own, &settings).await.unwrap();
    us.roll_up_attempts(at(201 * DAY)).await.unwrap();
    let ours = us.export_rollups(None, None, None, 10_000).await.unwrap();
    let of = |source: &str| -> i64 {
        let those = ours.iter().filter(|r| r.source == source);
        those.map(|r| r.attempts).sum()
    };
    assert_eq!((of(""), of("them")), (1, 400));
}

pub async fn imports_side_by_side_add_nothing_twice(fixture: Fixture) {
    let (them, us) = (Store::open_in_memory().await.unwrap(), fixture.open().await);
    let mut dice = Dice(11);
    for n in 0..120 {
        let new = any(&mut dice, &format!("k{n}"), u64::from(MACHINES));
        them.record_attempt(&new, &Settings::default()).await.unwrap();
    }
    them.roll_up_attempts(at(201 * DAY)).await.unwrap();
    let (rollups, _) = exported(&them).await;
    let imports = (0..4).map(|_| {
        let (us, rollups) = (us.clone(), rollups.clone());
        tokio::spawn(async move { us.import_rollups(&rollups).await.expect("no lock, no deadlock") })
    });
    let mut taken = 0;
    for import in imports.collect::<Vec<_>>() {
        taken += import.await.unwrap();
    }
    assert_eq!(taken, 120);
    assert_eq!(records(&us).await, records(&them).await);
}
