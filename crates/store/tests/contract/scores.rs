//! What a score stands on, whoever writes and however time passes.

use crate::attempts::attempt;
use crate::dice::{Dice, any};
use crate::fixture::{DAY, Fixture, at, machine, offer};
use dumont_core::blacklist::Settings;
use dumont_core::history::Outcome;
use dumont_core::reliability::{Bucket, Counts, Evidence, Sums};
use dumont_store::{Extreme, MachineFilter, NewAttempt};

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

/// By time and by what an operator's other machines do, while nothing happens to the machine.
pub async fn extremes_are_ordered_by_what_a_score_is_worth_now(fixture: Fixture) {
    let store = fixture.open().await;
    let fails = async |id: u32, host: Option<&str>, n: i64, when: i64| {
        for i in 0..n {
            let mut new = attempt(
                &format!("{id}-{when}-{i}"),
                &machine(id),
                Outcome::Failed,
                at(when),
            );
            new.host_id = host.map(str::to_owned);
            new.conditions.counts = Counts::new(0.0, 1.0);
            let settings = Settings {
                min_attempts: 100,
                consecutive_failures: 100,
                ..Settings::default()
            };
            store.record_attempt(&new, &settings).await.unwrap();
        }
    };
    // As of its last attempt 1 is worse than 2; a month later 2 is.
    fails(1, None, 2, 0).await;
    fails(2, None, 1, 30 * DAY).await;
    // 3 failed once, long ago; its operator's other machine just did, and often.
    fails(3, Some("bad"), 1, DAY).await;
    fails(4, Some("bad"), 9, 30 * DAY).await;
    let filter = MachineFilter::default();
    let list = async |limit, when| {
        let (mut shown, mut after, mut now) = (Vec::new(), None, at(when));
        loop {
            let page = store
                .extreme_machines(Extreme::Problematic, &filter, after.as_ref(), limit, now)
                .await
                .unwrap();
            let of = |m: &dumont_store::MachineRow| (m.machine.machine_id.clone(), m.reliability_score);
            shown.extend(page.items.iter().map(of));
            // A walk keeps the moment of its first page, however long it takes.
            now = at(900 * DAY);
            match page.next {
                Some(next) => after = Some(next.parse().unwrap()),
                None => break shown,
            }
        }
    };
    let ids = |shown: &[(String, f64)]| shown.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>();
    let then = list(100, 31 * DAY).await;
    assert_eq!(ids(&then), ["4", "3", "2", "1"], "{then:?}");
    for limit in [1, 2, 3] {
        assert_eq!(list(limit, 31 * DAY).await, then);
    }
    for (id, score) in &then {
        let m = machine(id.parse().unwrap());
        let row = store.machine(&m, at(31 * DAY)).await.unwrap().unwrap();
        assert!((row.reliability_score - score).abs() < 1e-12, "{id}");
    }
    let early = list(100, DAY).await;
    let place = |id: &str| early.iter().position(|(i, _)| i == id);
    assert!(
        place("1") < place("2"),
        "two failures of today against one to come: {early:?}"
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
