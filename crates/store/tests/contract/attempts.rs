use crate::fixture::{Fixture, at, machine, offer};
use dumont_core::blacklist::{BlacklistType, Rule, Settings};
use dumont_core::history::{Level, Outcome, Reason, Stage};
use dumont_core::id::MachineRef;
use dumont_core::time::Timestamp;
use dumont_store::{AttemptFilter, BlacklistFilter, Conditions, Error, NewAttempt, NewBlacklist};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);

pub fn attempt(key: &str, machine: &MachineRef, outcome: Outcome, created_at: Timestamp) -> NewAttempt {
    NewAttempt {
        attempt_key: key.into(),
        machine: machine.clone(),
        attempt_type: "failover".into(),
        workflow_id: Some("f".into()),
        workspace_id: None,
        host_id: Some("host-1".into()),
        offer_id: Some("offer-1".into()),
        instance_id: None,
        gpu_name: "RTX 4090".into(),
        price: 0.25,
        region: None,
        image: None,
        stage: if outcome == Outcome::Won {
            Stage::Ready
        } else {
            Stage::Ssh
        },
        outcome,
        reason: (outcome == Outcome::Failed).then_some(Reason::SshFailed),
        error_message: None,
        duration_seconds: 30.5,
        ready_seconds: (outcome == Outcome::Won).then_some(12.345),
        created_at,
        conditions: Conditions::default(),
    }
}

pub fn by_hand(machine: &MachineRef, expires_at: Option<Timestamp>) -> NewBlacklist {
    NewBlacklist {
        machine: machine.clone(),
        blacklist_type: BlacklistType::Manual,
        reason: "Falhas frequentes".into(),
        expires_at,
        actor: Some("admin".into()),
        scope: None,
    }
}

pub async fn a_repeat_is_recorded_once(fixture: Fixture) {
    let store = fixture.open().await;
    let (m, settings) = (machine(1), Settings::default());
    let first = store
        .record_attempt(&attempt("a", &m, Outcome::Won, at(1)), &settings)
        .await
        .unwrap();
    // Again, even telling another story.
    let again = store
        .record_attempt(&attempt("a", &m, Outcome::Failed, at(2)), &settings)
        .await
        .unwrap();
    assert_eq!((first.first, again.first), (true, false));
    assert_eq!(first.stats, again.stats);
    assert_eq!((again.stats.total, again.stats.successful), (1, 1));
    assert_eq!(store.attempts_of_workflow("f").await.unwrap().len(), 1);
    assert_eq!(store.recount_stats(&m).await.unwrap(), again.stats);
}

pub async fn concurrent_writers_leave_the_stats_of_a_recount(fixture: Fixture) {
    let store = fixture.open().await;
    let mut writers = Vec::new();
    for writer in 0..16_u32 {
        let store = if writer % 4 == 0 {
            fixture.open().await
        } else {
            store.clone()
        };
        writers.push(tokio::spawn(async move {
            let mut random = 88_172_645_463_325_252_u64 + u64::from(writer / 2);
            for n in 0..20_u32 {
                // xorshift: writers take eight ways in pairs, the same in every run.
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let outcome = Outcome::ALL[(random % 5) as usize];
                let m = machine((random >> 8) as u32 % 4);
                // Both of a pair record each attempt twice: three calls in four are repeats.
                let key = format!("{}-{n}", writer / 2);
                let when = Timestamp((random >> 20) as i64 % 1_000_000);
                let new = attempt(&key, &m, outcome, when);
                store.record_attempt(&new, &Settings::default()).await.unwrap();
                store.record_attempt(&new, &Settings::default()).await.unwrap();
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let mut total = 0;
    for n in 0..4 {
        let row = store
            .machine(&machine(n), at(0))
            .await
            .unwrap()
            .expect("it was tried");
        assert_eq!(row.stats, store.recount_stats(&machine(n)).await.unwrap());
        assert_eq!(row.stats.total, row.stats.counted() + row.stats.uncounted);
        total += row.stats.total;
    }
    assert_eq!(total, store.attempts_of_workflow("f").await.unwrap().len() as i64);
    assert_eq!(total, 8 * 20);
}

pub async fn rules_block_and_blocks_end(fixture: Fixture) {
    let store = fixture.open().await;
    let (m, settings) = (machine(1), Settings::default());
    let fail = |key: &'static str, when| attempt(key, &m, Outcome::Failed, when);
    assert_eq!(
        store
            .record_attempt(&fail("a", at(1)), &settings)
            .await
            .unwrap()
            .blocked,
        None
    );
    assert_eq!(
        store
            .record_attempt(&fail("b", at(2)), &settings)
            .await
            .unwrap()
            .blocked,
        None
    );
    let entry = store
        .record_attempt(&fail("c", at(3)), &settings)
        .await
        .unwrap()
        .blocked
        .expect("three in a row");
    assert_eq!(
        (entry.blacklist_type, entry.rule),
        (BlacklistType::Automatic, Some(Rule::ConsecutiveFailures))
    );
    assert_eq!(
        (entry.reason.as_str(), entry.total_attempts, entry.failed_attempts),
        ("ssh_failed", 3, 3)
    );
    let end = at(3).plus(DAY * 7);
    assert_eq!((entry.failure_rate, entry.expires_at), (Some(1.0), Some(end)));

    let just_before = end.minus(Duration::from_micros(1));
    assert_eq!(
        store.check_blacklist(&m, just_before).await.unwrap(),
        Some(entry.clone())
    );
    assert_eq!(
        store.machine(&m, just_before).await.unwrap().unwrap().level(),
        Level::Blacklisted
    );
    assert_eq!(
        store
            .list_blacklist(&BlacklistFilter::default(), None, 10, just_before)
            .await
            .unwrap()
            .items,
        [entry]
    );
    // It ends at its microsecond, closed by a reconciler or not.
    assert_eq!(store.check_blacklist(&m, end).await.unwrap(), None);
    assert_eq!(
        store.machine(&m, end).await.unwrap().unwrap().level(),
        Level::Poor
    );
    assert!(
        store
            .list_blacklist(&BlacklistFilter::default(), None, 10, end)
            .await
            .unwrap()
            .items
            .is_empty()
    );
    assert!(matches!(
        store.remove_blacklist(&m, "admin", end).await,
        Err(Error::NotFound { .. })
    ));
    // The open row that has run out is not in the way of a new one.
    assert!(store.add_blacklist(&by_hand(&m, None), end).await.unwrap().1);
    store.remove_blacklist(&m, "admin", end).await.unwrap();
    assert_eq!(store.check_blacklist(&m, end).await.unwrap(), None);
    assert_eq!(store.close_expired_blacklist(end).await.unwrap(), 0);
}

pub async fn a_manual_entry_outlives_the_rules(fixture: Fixture) {
    let store = fixture.open().await;
    let (m, settings) = (machine(1), Settings::default());
    let (manual, new) = store.add_blacklist(&by_hand(&m, None), at(1)).await.unwrap();
    assert!(new);
    for (n, key) in ["a", "b", "c", "d"].into_iter().enumerate() {
        let fail = attempt(key, &m, Outcome::Failed, at(2 + n as i64));
        assert_eq!(
            store.record_attempt(&fail, &settings).await.unwrap().blocked,
            None
        );
    }
    assert_eq!(
        store.check_blacklist(&m, at(9)).await.unwrap(),
        Some(manual.clone())
    );

    // A person may change it; it stays one entry.
    let (changed, new) = store
        .add_blacklist(&by_hand(&m, Some(at(100))), at(10))
        .await
        .unwrap();
    assert!(!new);
    assert_eq!(
        (changed.id, changed.expires_at, changed.failed_attempts),
        (manual.id, Some(at(100)), 4)
    );

    // A block for something only is no block.
    let other = machine(2);
    let scoped = NewBlacklist {
        scope: Some("cuda=12.8".into()),
        ..by_hand(&other, None)
    };
    store.add_blacklist(&scoped, at(10)).await.unwrap();
    assert_eq!(store.check_blacklist(&other, at(11)).await.unwrap(), None);
    assert!(
        store
            .add_blacklist(&by_hand(&other, None), at(12))
            .await
            .unwrap()
            .1,
        "beside the scoped one"
    );
    assert_eq!(
        store
            .list_blacklist(&BlacklistFilter::default(), None, 10, at(13))
            .await
            .unwrap()
            .items
            .len(),
        3
    );
}

pub async fn machines_are_paged_and_asked_for_in_bulk(fixture: Fixture) {
    let store = fixture.open().await;
    let settings = Settings::default();
    for n in 1..=5 {
        let won = attempt(&format!("a{n}"), &machine(n), Outcome::Won, at(1));
        store.record_attempt(&won, &settings).await.unwrap();
    }
    let lost = attempt("b", &machine(1), Outcome::LostRace, at(2));
    store.record_attempt(&lost, &settings).await.unwrap();
    store
        .add_blacklist(&by_hand(&machine(2), None), at(3))
        .await
        .unwrap();
    store
        .add_blacklist(&by_hand(&machine(9), None), at(3))
        .await
        .unwrap();

    let (mut seen, mut after) = (Vec::new(), None::<MachineRef>);
    loop {
        let page = store.list_machines(after.as_ref(), 4, at(4)).await.unwrap();
        seen.extend(page.items);
        match page.next {
            Some(next) => after = Some(next.parse().unwrap()),
            None => break,
        }
    }
    let words: Vec<_> = seen
        .iter()
        .map(|m| (m.machine.machine_id.as_str(), m.level().as_str()))
        .collect();
    let want = [
        ("1", "excellent"),
        ("2", "blacklisted"),
        ("3", "excellent"),
        ("4", "excellent"),
        ("5", "excellent"),
        ("9", "blacklisted"),
    ];
    assert_eq!(
        words, want,
        "one blocked by hand is listed though it was never tried"
    );
    assert_eq!((seen[0].stats.total, seen[0].stats.uncounted), (2, 1));
    assert_eq!(seen[0].stats.avg_boot_time(), Some(12.345));
    let offers = [offer(1), offer(2), offer(9), offer(77)];
    let known = store.standings("vast", &offers, at(4)).await.unwrap();
    let block = |n: u32| known.machine(&machine(n)).map(|m| m.block.is_some());
    assert_eq!(
        [block(1), block(2), block(9), block(77)],
        [Some(false), Some(true), Some(true), None]
    );
    assert_eq!(known.machine(&machine(1)).unwrap().stats.successful, 1);
}

pub async fn attempts_are_read_as_written(fixture: Fixture) {
    let store = fixture.open().await;
    let m = machine(1);
    let mut new = attempt("a", &m, Outcome::Failed, at(1));
    new.reason = Some(Reason::Other("tmux_noise".into()));
    new.error_message = Some("a\u{1b}[31m\nb".into());
    new.image = Some("pytorch/pytorch:latest".into());
    store.record_attempt(&new, &Settings::default()).await.unwrap();
    store
        .record_attempt(&attempt("b", &m, Outcome::GaveUp, at(2)), &Settings::default())
        .await
        .unwrap();
    store
        .record_attempt(&attempt("c", &m, Outcome::Won, at(3)), &Settings::default())
        .await
        .unwrap();
    let rows = store.attempts_of_workflow("f").await.unwrap();
    assert_eq!(rows[0].attempt, new);
    let success: Vec<_> = rows.iter().map(|r| r.success).collect();
    assert_eq!(success, [Some(false), None, Some(true)]);

    let any = AttemptFilter::default();
    let page = store.list_attempts(Some(&m), &any, None, 2).await.unwrap();
    let keys: Vec<_> = page
        .items
        .iter()
        .map(|r| r.attempt.attempt_key.as_str())
        .collect();
    assert_eq!(keys, ["c", "b"]);
    let after = page.next.expect("there is a third").parse().unwrap();
    assert_eq!(
        store
            .list_attempts(Some(&m), &any, Some(after), 2)
            .await
            .unwrap()
            .items[0]
            .attempt,
        new
    );
}
