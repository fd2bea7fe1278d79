//! Blocks that do not come back, and what others say, losses and incidents do to them.

use crate::attempts::{attempt, by_hand};
use crate::fixture::{DAY, Fixture, at, machine, offer};
use dumont_core::blacklist::{BlacklistType, LossCause, Rule, Settings};
use dumont_core::history::{Level, Outcome, Reason};
use dumont_core::id::MachineRef;
use dumont_store::{AttemptFilter, Error, Interrupt, NewBlacklist, Store};

/// Fails `n` times from `from` on; whether the last one blocked.
async fn fails(store: &Store, m: &MachineRef, from: i64, n: i64) -> bool {
    let mut blocked = false;
    for i in 0..n {
        let key = format!("{m}-{}", from + i);
        let new = attempt(&key, m, Outcome::Failed, at(from + i));
        let recorded = store.record_attempt(&new, &Settings::default()).await.unwrap();
        blocked = recorded.blocked.is_some();
    }
    blocked
}

pub async fn old_failures_do_not_block_twice(fixture: Fixture) {
    let store = fixture.open().await;
    // Removed by a person.
    let m = machine(1);
    assert!(fails(&store, &m, 1, 3).await);
    let removed = store.remove_blacklist(&m, "ana", at(10)).await.unwrap();
    assert_eq!(removed[0].closed_by.as_deref(), Some("ana"));
    assert!(!fails(&store, &m, 11, 2).await, "two new failures are not three");
    assert!(fails(&store, &m, 13, 1).await, "the third is");
    // Run out, whether a reconciler saw it or not.
    for (n, reconciled) in [(2, false), (3, true)] {
        let m = machine(n);
        assert!(fails(&store, &m, 1, 3).await);
        let end = 3 + 7 * DAY;
        if reconciled {
            assert!(store.close_expired_blacklist(at(end)).await.unwrap() >= 1);
        }
        assert!(!fails(&store, &m, end + 1, 2).await, "{reconciled}");
        assert!(fails(&store, &m, end + 3, 1).await, "{reconciled}");
        let ever = store.blacklist_ever(&m, 9).await.unwrap();
        assert_eq!(ever.len(), 2);
        assert_eq!(ever[1].closed_by.as_deref(), Some("expired"));
    }
    // A person's block that ran out settles what came before it as well.
    let m = machine(4);
    assert!(!fails(&store, &m, 1, 2).await);
    store
        .add_blacklist(&by_hand(&m, Some(at(20))), at(10))
        .await
        .unwrap();
    assert!(!fails(&store, &m, 21, 2).await);
    // Removing nothing leaves nothing behind.
    assert!(matches!(
        store.remove_blacklist(&machine(5), "ana", at(1)).await,
        Err(Error::NotFound { .. })
    ));
    assert_eq!(store.machine(&machine(5), at(1)).await.unwrap(), None);
}

pub async fn what_others_say_counts_and_never_blocks(fixture: Fixture) {
    let store = fixture.open().await;
    let (m, settings) = (machine(1), Settings::default());
    for n in 0..5 {
        let mut new = attempt(&format!("r{n}"), &m, Outcome::Failed, at(n));
        new.conditions.reporter = Some("probe".into());
        let recorded = store.record_foreign_attempt(&new, &settings).await.unwrap();
        assert_eq!((recorded.first, recorded.blocked), (true, None));
    }
    let row = store.machine(&m, at(9)).await.unwrap().unwrap();
    assert_eq!((row.stats.failed, row.level()), (5, Level::Poor));
    assert!(fails(&store, &m, 10, 1).await, "our own next failure tips it");
    assert!(matches!(
        store
            .add_blacklist(&automatic(&m), at(11))
            .await
            .map(|(row, new)| (row.blacklist_type, new)),
        Ok((BlacklistType::Automatic, false))
    ));
    store.add_blacklist(&by_hand(&m, None), at(12)).await.unwrap();
    assert!(matches!(
        store.add_blacklist(&automatic(&m), at(13)).await,
        Err(Error::Conflict { .. })
    ));
}

fn automatic(m: &MachineRef) -> NewBlacklist {
    NewBlacklist {
        blacklist_type: BlacklistType::Automatic,
        ..by_hand(m, Some(at(99)))
    }
}

pub async fn three_losses_in_a_week_block_for_a_day(fixture: Fixture) {
    let store = fixture.open().await;
    let settings = Settings::default();
    let lose = async |m: u32, n: i64, cause: LossCause, when: i64| {
        let new = Interrupt {
            interrupt_key: format!("{m}-{n}"),
            machine: machine(m),
            cause,
            trigger_name: "session_reset".into(),
            workspace_id: None,
            lived_seconds: Some(60.0),
            suspect: false,
            created_at: at(when),
        };
        store.record_interrupt(&new, &settings).await.unwrap()
    };
    for n in 0..2 {
        assert_eq!(lose(1, n, LossCause::Host, n * DAY).await.blocked, None);
    }
    // Not the host's doing, and a repeat.
    assert_eq!(lose(1, 3, LossCause::UserStop, 2 * DAY).await.blocked, None);
    assert!(!lose(1, 0, LossCause::Host, 3 * DAY).await.first);
    let third = lose(1, 4, LossCause::Host, 3 * DAY)
        .await
        .blocked
        .expect("the third");
    assert_eq!(
        (third.blacklist_type, third.rule, third.reason.as_str()),
        (
            BlacklistType::Temporary,
            Some(Rule::FrequentInterrupts),
            "frequent_interrupts"
        )
    );
    assert_eq!(third.expires_at, Some(at(4 * DAY)));
    assert_eq!(
        store.interrupts_of(&machine(1), at(-1), 9).await.unwrap().len(),
        4
    );
    // The attempts' own record is untouched.
    assert_eq!(
        store
            .machine(&machine(1), at(0))
            .await
            .unwrap()
            .unwrap()
            .stats
            .total,
        0
    );
    // Served: the same three do not block again, nor do three in eight days.
    assert_eq!(lose(1, 5, LossCause::Host, 4 * DAY + 1).await.blocked, None);
    for n in 0..3 {
        assert_eq!(lose(2, n, LossCause::Host, n * 4 * DAY).await.blocked, None);
    }
}

pub async fn incidents_and_drivers_are_not_charged(fixture: Fixture) {
    let store = fixture.open().await;
    let settings = Settings::default();
    let m = machine(1);
    for n in 0..4 {
        let mut new = attempt(&format!("s{n}"), &m, Outcome::Failed, at(n));
        new.conditions.suspect = true;
        assert_eq!(store.record_attempt(&new, &settings).await.unwrap().blocked, None);
    }
    let mut new = attempt("d", &m, Outcome::Failed, at(9));
    new.reason = Some(Reason::DriverMismatch);
    new.conditions.cuda = Some("12.8".parse().unwrap());
    let entry = store
        .record_attempt(&new, &settings)
        .await
        .unwrap()
        .blocked
        .unwrap();
    assert_eq!(entry.scope.as_deref(), Some("cuda=12.8"));
    assert!(!entry.concerns(None) && entry.concerns(Some("13.0".parse().unwrap())));
    let row = store.machine(&m, at(10)).await.unwrap().unwrap();
    assert_eq!(
        (row.stats.failed, row.stats.uncounted, row.level()),
        (0, 5, Level::Unknown)
    );
    assert_eq!(store.check_blacklist(&m, at(10)).await.unwrap(), None);
    // The row reads back what stood around it.
    let rows = store
        .list_attempts(Some(&m), &AttemptFilter::default(), None, 9)
        .await
        .unwrap();
    assert_eq!(rows.items[0].attempt, new);
    assert_eq!(rows.items[0].success, None);
    let standings = store.standings("vast", &[offer(1)], at(10)).await.unwrap();
    assert_eq!(standings.blocks(&m).len(), 1);
    assert_eq!(standings.machine(&m).unwrap().block, None);
}
