//! Lists and counts of the history: filters, pages, levels.

use crate::attempts::{attempt, by_hand};
use crate::dice::{Dice, any};
use crate::fixture::{DAY, Fixture, at, machine};
use dumont_core::blacklist::{BlacklistType, Settings};
use dumont_core::history::{Level, Outcome};
use dumont_store::{AttemptFilter, BlacklistFilter, Counted, Extreme, MachineFilter, NewBlacklist};

pub async fn the_summary_agrees_with_the_levels(fixture: Fixture) {
    let store = fixture.open().await;
    let settings = Settings {
        min_attempts: 100,
        consecutive_failures: 100,
        ..Settings::default()
    };
    // (successes, failures), around every boundary.
    let rates = [
        (9, 1),
        (8, 1),
        (7, 3),
        (2, 1),
        (1, 1),
        (4, 5),
        (3, 7),
        (2, 8),
        (0, 0),
    ];
    for (n, (won, failed)) in rates.into_iter().enumerate() {
        let m = machine(n as u32);
        for i in 0..won + failed {
            let outcome = if i < won { Outcome::Won } else { Outcome::Failed };
            let new = attempt(&format!("{n}-{i}"), &m, outcome, at(i));
            store.record_attempt(&new, &settings).await.unwrap();
        }
        let new = attempt(&format!("{n}-lost"), &m, Outcome::LostRace, at(99));
        store.record_attempt(&new, &settings).await.unwrap();
    }
    store
        .add_blacklist(&by_hand(&machine(2), None), at(100))
        .await
        .unwrap();
    let summary = store.history_summary(Some("vast"), None, at(101)).await.unwrap();
    let rows = store.list_machines(None, 100, at(101)).await.unwrap().items;
    for level in Level::ALL {
        let want = rows.iter().filter(|r| r.level() == *level).count() as i64;
        assert_eq!(summary.levels.get(level).copied().unwrap_or(0), want, "{level}");
    }
    assert_eq!(summary.blocks[&BlacklistType::Manual], 1);
    assert_eq!(summary.reasons[0].reason.as_deref(), Some("ssh_failed"));
    assert_eq!(summary.uncounted, 9);
    let none = store.history_summary(Some("other"), None, at(101)).await.unwrap();
    assert_eq!((none.levels.len(), none.successful), (0, 0));

    // Pages of extremes: each machine once, in order, whatever the page.
    let filter = MachineFilter {
        min_attempts: 1,
        ..MachineFilter::default()
    };
    for which in [Extreme::Problematic, Extreme::Reliable] {
        let (mut ids, mut after) = (Vec::new(), None);
        loop {
            let page = store
                .extreme_machines(which, &filter, after.as_ref(), 1, at(101))
                .await
                .unwrap();
            ids.extend(page.items.iter().map(|m| m.machine.machine_id.clone()));
            match page.next {
                Some(next) => after = Some(next.parse().unwrap()),
                None => break,
            }
        }
        let want: &[&str] = match which {
            Extreme::Problematic => &["2", "5", "6", "7"],
            Extreme::Reliable => &["0", "1"],
        };
        let mut sorted = ids.clone();
        sorted.sort();
        assert_eq!(sorted, want, "{which:?}");
    }
}

pub async fn lists_are_filtered_and_paged(fixture: Fixture) {
    let store = fixture.open().await;
    let mut dice = Dice(99);
    for n in 0..40 {
        let mut new = any(&mut dice, &format!("k{n}"), 3);
        new.conditions.suspect = true;
        store.record_attempt(&new, &Settings::default()).await.unwrap();
    }
    let all = AttemptFilter::default();
    let (mut ids, mut after) = (Vec::new(), None);
    loop {
        let page = store.list_attempts(None, &all, after, 7).await.unwrap();
        ids.extend(page.items.iter().map(|a| (a.attempt.created_at, a.id)));
        match page.next {
            Some(next) => after = Some(next.parse().unwrap()),
            None => break,
        }
    }
    assert_eq!(ids.len(), 40);
    assert!(ids.is_sorted_by(|a, b| a > b), "newest first, each once");
    let of = async |counted, since| {
        let filter = AttemptFilter {
            provider: Some("vast".into()),
            counted,
            since,
        };
        store.list_attempts(None, &filter, None, 100).await.unwrap().items
    };
    let won = of(Some(Counted::Succeeded), None).await;
    assert!(!won.is_empty() && won.iter().all(|a| a.success == Some(true)));
    assert!(
        of(Some(Counted::Failed), None).await.is_empty(),
        "all are suspect"
    );
    assert_eq!(won.len() + of(Some(Counted::Uncounted), None).await.len(), 40);
    let since = at(100 * DAY);
    assert_eq!(
        of(None, Some(since)).await.len(),
        ids.iter().filter(|(t, _)| *t >= since).count()
    );

    let kinds = [
        BlacklistType::Manual,
        BlacklistType::Temporary,
        BlacklistType::Automatic,
    ];
    for (n, blacklist_type) in kinds.into_iter().enumerate() {
        let new = NewBlacklist {
            blacklist_type,
            ..by_hand(&machine(50 + n as u32), None)
        };
        store.add_blacklist(&new, at(n as i64 * 10)).await.unwrap();
    }
    store.remove_blacklist(&machine(51), "ana", at(40)).await.unwrap();
    let count = async |filter: BlacklistFilter| {
        store
            .list_blacklist(&filter, None, 100, at(50))
            .await
            .unwrap()
            .items
            .len()
    };
    let any = BlacklistFilter::default;
    assert_eq!(count(any()).await, 2);
    assert_eq!(
        count(BlacklistFilter {
            closed: true,
            ..any()
        })
        .await,
        3
    );
    assert_eq!(
        count(BlacklistFilter {
            blacklist_type: Some(BlacklistType::Manual),
            ..any()
        })
        .await,
        1
    );
    assert_eq!(
        count(BlacklistFilter {
            since: Some(at(15)),
            ..any()
        })
        .await,
        1
    );
    assert_eq!(
        count(BlacklistFilter {
            provider: Some("other".into()),
            ..any()
        })
        .await,
        0
    );
}
