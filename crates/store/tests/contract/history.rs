//! What the machine history promises beyond single attempts: blocks that do not come back,
//! reports, interrupts, scores, retention, and many writers.

use crate::attempts::{attempt, by_hand};
use crate::fixture::{Fixture, at, machine, offer};
use dumont_core::blacklist::{BlacklistType, LossCause, Rule, Settings};
use dumont_core::history::{Level, Outcome, Reason};
use dumont_core::id::MachineRef;
use dumont_core::reliability::{Bucket, Counts, Evidence, Sums};
use dumont_core::time::Timestamp;
use dumont_store::{
    AttemptFilter, BlacklistFilter, Counted, Error, Extreme, Interrupt, MachineFilter, NewAttempt,
    NewBlacklist, Store,
};

pub const HOUR: i64 = 3_600;
pub const DAY: i64 = 24 * HOUR;

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

/// xorshift: the same in every run.
pub struct Dice(pub u64);
impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
}

/// An attempt as a race records it, any of them.
pub fn any(dice: &mut Dice, key: &str, machines: u64) -> NewAttempt {
    let id = dice.roll(machines) as u32;
    let outcome = Outcome::ALL[dice.roll(5) as usize];
    let when = Timestamp(dice.roll(200 * DAY as u64 * 1_000_000) as i64);
    let mut new = attempt(key, &machine(id), outcome, when);
    if outcome == Outcome::Failed {
        new.reason =
            [Some(Reason::SshFailed), Some(Reason::GpuNotReady), None][dice.roll(3) as usize].clone();
    }
    new.host_id = (!id.is_multiple_of(5)).then(|| format!("host-{}", id % 3));
    new.ready_seconds = (dice.roll(2) == 0).then(|| dice.roll(100_000) as f64 / 7.0);
    new.conditions.provider_reliability = Some([0.9, 0.97, 0.99, 0.999][id as usize % 4]);
    new.conditions.suspect = dice.roll(10) == 0;
    new.conditions.counts = Counts::new(dice.roll(100) as f64 / 100.0, dice.roll(100) as f64 / 100.0);
    new
}

pub async fn scores_are_what_a_recount_gives(fixture: Fixture) {
    let store = fixture.open().await;
    let mut dice = Dice(88_172_645_463_325_252);
    let all: Vec<_> = (0..200).map(|n| any(&mut dice, &format!("k{n}"), 8)).collect();
    for new in &all {
        store.record_attempt(new, &Settings::default()).await.unwrap();
    }
    let now = at(201 * DAY);
    let sum = |which: &dyn Fn(&NewAttempt) -> bool| {
        let mut sums = Sums::default();
        for a in all.iter().filter(|a| which(a)) {
            sums.add(a.conditions.counts, a.created_at);
        }
        sums
    };
    let mut offers: Vec<_> = (0..8).map(offer).collect();
    for (id, offer) in offers.iter_mut().enumerate() {
        offer.host_id = (!id.is_multiple_of(5)).then(|| format!("host-{}", id % 3));
        offer.provider_reliability = [0.9, 0.97, 0.99, 0.999][id % 4];
    }
    let standings = store.standings("vast", &offers, now).await.unwrap();
    for offer in &offers {
        let bucket = Bucket::of(offer.provider_reliability);
        let evidence = Evidence {
            machine: sum(&|a| a.machine == offer.machine),
            operator: match &offer.host_id {
                Some(_) => sum(&|a| a.host_id == offer.host_id),
                None => Sums::default(),
            },
            bucket: sum(&|a| Bucket::of(a.conditions.provider_reliability.unwrap()) == bucket),
        };
        let (got, want) = (standings.posterior(offer, now).score(), evidence.score(now));
        assert!(
            (got - want).abs() < 1e-9,
            "{}: {got} is not {want}",
            offer.machine
        );
        // One machine by itself is read the same way.
        let row = store.machine(&offer.machine, now).await.unwrap().unwrap();
        assert!((row.reliability_score - want).abs() < 1e-9);
    }
    assert!(
        store
            .standings("vast", &[], now)
            .await
            .unwrap()
            .machine(&machine(1))
            .is_none()
    );
    assert!(
        store
            .standings("other", &offers, now)
            .await
            .unwrap()
            .machine(&machine(1))
            .is_none()
    );
}

const PLAIN: &str = "SELECT machine_id || ' ' || COUNT(*) || ' ' || \
    SUM(CASE WHEN success THEN 1 ELSE 0 END) || ' ' || SUM(CASE WHEN success IS NULL THEN 1 ELSE 0 END) \
    || ' ' || COALESCE(CAST(ROUND(AVG(CASE WHEN success THEN 1.0 WHEN success = FALSE THEN 0.0 END) * 1000000) \
    AS BIGINT), -1) AS line FROM machine_attempts GROUP BY machine_id ORDER BY machine_id";
const STORED: &str = "SELECT machine_id || ' ' || total_attempts || ' ' || successful_attempts || ' ' || \
    uncounted_attempts || ' ' || COALESCE(CAST(ROUND(CAST(success_rate * 1000000 AS NUMERIC)) AS BIGINT), -1) AS line \
    FROM machine_stats ORDER BY machine_id";

pub async fn thirty_two_writers_lose_and_double_nothing(fixture: Fixture) {
    let store = fixture.open().await;
    let mut writers = Vec::new();
    for writer in 0..32_u64 {
        // Some on connections of their own, as other replicas are.
        let store = if writer % 8 == 0 {
            fixture.open().await
        } else {
            store.clone()
        };
        writers.push(tokio::spawn(async move {
            // In pairs that record the same attempts, as a takeover does.
            let mut dice = Dice(7_919 + writer / 2);
            for n in 0..20 {
                let new = any(&mut dice, &format!("{}-{n}", writer / 2), 10);
                store
                    .record_attempt(&new, &Settings::default())
                    .await
                    .expect("no lock, no deadlock");
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let stored = fixture.lines(STORED).await;
    assert_eq!(stored.len(), 10);
    assert_eq!(stored, fixture.lines(PLAIN).await);
    let total: i64 = stored
        .iter()
        .map(|l| l.split(' ').nth(1).unwrap().parse::<i64>().unwrap())
        .sum();
    assert_eq!(total, 16 * 20);
    for n in 0..10 {
        let row = store.machine(&machine(n), at(0)).await.unwrap().unwrap();
        assert_eq!(row.stats, store.recount_stats(&machine(n)).await.unwrap());
    }
    // Each machine has at most one entry open, however many writers asked for one.
    let open = "SELECT 'twice' AS line FROM machine_blacklist WHERE is_active AND scope IS NULL \
                GROUP BY machine_id HAVING COUNT(*) > 1";
    assert!(fixture.lines(open).await.is_empty());
}

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
