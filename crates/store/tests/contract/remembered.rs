//! What a store remembers of machines, while others write: nobody can tell it from reading.

use crate::attempts::{attempt, by_hand};
use crate::dice::{Dice, any};
use crate::fixture::{DAY, Fixture, at, machine, offer};
use dumont_core::blacklist::{BlacklistType, LossCause, Settings};
use dumont_core::history::Outcome;
use dumont_core::offer::Offer;
use dumont_core::time::Timestamp;
use dumont_store::{ForeignRollup, Interrupt, NewBlacklist, Rollup, Standings, Store};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

const MACHINES: u32 = 8;

/// Offers of these machines, by the operators and in the buckets that the dice give them.
fn offers() -> Vec<Offer> {
    let one = |id: u32| Offer {
        host_id: (!id.is_multiple_of(5)).then(|| format!("host-{}", id % 3)),
        provider_reliability: [0.9, 0.97, 0.99, 0.999][id as usize % 4],
        ..offer(id)
    };
    // The last was never met.
    (0..=MACHINES).map(one).collect()
}

/// All that somebody can see of these machines.
fn seen(standings: &Standings, offers: &[Offer], now: Timestamp) -> Vec<String> {
    let one = |offer: &Offer| {
        let (row, blocks) = (
            standings.machine(&offer.machine),
            standings.blocks(&offer.machine),
        );
        // Sums over shards are added in no particular order.
        let score = standings.posterior(offer, now).score();
        format!("{} {row:?} {blocks:?} {score:.9}", offer.machine)
    };
    offers.iter().map(one).collect()
}

async fn equal(reader: &Store, fixture: &Fixture, now: Timestamp, what: &str) {
    let offers = offers();
    let remembered = reader.standings("vast", &offers, now).await.unwrap();
    let fresh = fixture.open().await;
    let read = fresh.standings("vast", &offers, now).await.unwrap();
    fresh.close().await;
    assert_eq!(
        seen(&remembered, &offers, now),
        seen(&read, &offers, now),
        "after {what}"
    );
}

/// Anything that is ever written of a machine.
async fn something(writer: &Store, dice: &mut Dice, n: u64, now: Timestamp) -> &'static str {
    let settings = Settings {
        min_attempts: 2,
        ..Settings::default()
    };
    let m = machine(dice.roll(u64::from(MACHINES)) as u32);
    match dice.roll(8) {
        0 => {
            let new = NewBlacklist {
                expires_at: (dice.roll(2) == 0).then(|| now.plus(Duration::from_secs(3 * 3_600))),
                ..by_hand(&m, None)
            };
            writer.add_blacklist(&new, now).await.unwrap();
            "a block by hand"
        }
        1 => {
            let new = NewBlacklist {
                scope: Some("cuda=12.8".into()),
                blacklist_type: BlacklistType::Manual,
                ..by_hand(&m, None)
            };
            writer.add_blacklist(&new, now).await.unwrap();
            "a scoped block"
        }
        2 => {
            // There may be none.
            let _ = writer.remove_blacklist(&m, "ana", now).await;
            "a block lifted"
        }
        3 => {
            writer.close_expired_blacklist(now).await.unwrap();
            "expired blocks closed"
        }
        4 => {
            let new = Interrupt {
                interrupt_key: format!("i{n}"),
                machine: m,
                cause: LossCause::Host,
                trigger_name: "reset".into(),
                workspace_id: None,
                lived_seconds: Some(60.0),
                suspect: false,
                created_at: now,
            };
            writer.record_interrupt(&new, &settings).await.unwrap();
            "a loss"
        }
        5 => {
            let counts = ForeignRollup {
                rollup: Rollup {
                    machine: m,
                    day: 3,
                    verdict: "failure".into(),
                    reason: "ssh_failed".into(),
                    attempts: n as i64,
                    ready_attempts: 0,
                    ready_total_ms: 0,
                    last_at: at(3 * DAY + 7),
                    source: "them".into(),
                },
                until: at(4 * DAY),
            };
            writer.import_rollups(&[counts]).await.unwrap();
            "counts of another server"
        }
        _ => {
            let mut new = any(dice, &format!("k{n}"), u64::from(MACHINES));
            new.created_at = now;
            writer.record_attempt(&new, &settings).await.unwrap();
            "an attempt"
        }
    }
}

/// Two servers on one database, each of which writes and reads.
pub async fn a_reader_with_a_memory_sees_what_one_without_sees(fixture: Fixture) {
    let (one, two) = (fixture.open().await, fixture.open().await);
    for seed in 1..=3 {
        let mut dice = Dice(seed * 7_919);
        for n in 0..40 {
            let now = at(10 * DAY + (seed * 100 + n) as i64 * 3_600);
            let writer = if dice.roll(2) == 0 { &one } else { &two };
            let what = something(writer, &mut dice, seed * 1_000 + n, now).await;
            let reader = if dice.roll(2) == 0 { &one } else { &two };
            equal(reader, &fixture, now, what).await;
        }
    }
}

/// Nobody writes when a block runs out, and nobody has to close it.
pub async fn a_block_ends_at_its_second(fixture: Fixture) {
    let (us, them) = (fixture.open().await, fixture.open().await);
    let new = NewBlacklist {
        expires_at: Some(at(100)),
        ..by_hand(&machine(1), None)
    };
    let blocked = async |when| {
        let known = us.standings("vast", &[offer(1)], at(when)).await.unwrap();
        let row = known.machine(&machine(1)).map(|m| m.block.is_some());
        assert_eq!(row.unwrap_or(false), !known.blocks(&machine(1)).is_empty());
        row
    };
    assert_eq!(blocked(1).await, None);
    them.add_blacklist(&new, at(2)).await.unwrap();
    assert_eq!(blocked(3).await, Some(true));
    assert_eq!(blocked(100).await, Some(false));
    assert_eq!(blocked(99).await, Some(true), "a reader whose clock is behind");
    them.close_expired_blacklist(at(101)).await.unwrap();
    assert_eq!(blocked(99).await, Some(false), "closed is closed by any clock");
}

/// Eight writers on two servers; each machine's attempts are counted once they are committed, and
/// a read that begins later shows at least as many.
pub async fn nobody_sees_less_than_was_there_before(fixture: Fixture) {
    let stores = [fixture.open().await, fixture.open().await];
    let done: Arc<Vec<AtomicI64>> = Arc::new((0..MACHINES).map(|_| AtomicI64::new(0)).collect());
    let mut tasks = Vec::new();
    for writer in 0..8_u64 {
        let (store, done) = (stores[writer as usize % 2].clone(), done.clone());
        tasks.push(tokio::spawn(async move {
            let mut dice = Dice(1_000_003 * (writer + 1));
            for n in 0..40 {
                let new = any(&mut dice, &format!("{writer}-{n}"), u64::from(MACHINES));
                let id: usize = new.machine.machine_id.parse().unwrap();
                store.record_attempt(&new, &Settings::default()).await.unwrap();
                done[id].fetch_add(1, Ordering::SeqCst);
            }
        }));
    }
    for reader in 0..6_usize {
        let (store, done) = (stores[reader % 2].clone(), done.clone());
        tasks.push(tokio::spawn(async move {
            let offers = offers();
            for n in 0..60 {
                let before: Vec<i64> = done.iter().map(|d| d.load(Ordering::SeqCst)).collect();
                // Not always of the same ones, so that questions differ and overlap.
                let asked = &offers[n % 3..];
                let known = store.standings("vast", asked, at(300 * DAY)).await.unwrap();
                for (id, least) in before.iter().enumerate().skip(n % 3) {
                    let total = known.machine(&machine(id as u32)).map_or(0, |m| m.stats.total);
                    assert!(total >= *least, "{id}: {total} of {least}");
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    for store in &stores {
        equal(store, &fixture, at(300 * DAY), "everything").await;
    }
}

/// PostgreSQL's transactions end in another order than they begin; SQLite has one at a time.
pub async fn what_began_first_and_ends_last_is_seen(fixture: Fixture) {
    let Some(url) = fixture.url() else { return };
    let (us, them) = (fixture.open().await, fixture.open().await);
    let record = async |key: &str, n| {
        let new = attempt(key, &machine(n), Outcome::Won, at(1));
        them.record_attempt(&new, &Settings::default()).await.unwrap();
    };
    let totals = async || {
        let known = us.standings("vast", &[offer(1), offer(2)], at(9)).await.unwrap();
        [1, 2].map(|n| known.machine(&machine(n)).map(|m| m.stats.total))
    };
    record("a", 1).await;
    assert_eq!(totals().await, [Some(1), None]);
    let mut slow = <sqlx::PgConnection as sqlx::Connection>::connect(url)
        .await
        .unwrap();
    let first = "BEGIN; UPDATE machine_stats SET total_attempts = 70 WHERE machine_id = '1'";
    sqlx::raw_sql(first).execute(&mut slow).await.unwrap();
    record("b", 2).await;
    assert_eq!(totals().await, [Some(1), Some(1)]);
    record("c", 2).await;
    assert_eq!(totals().await, [Some(1), Some(2)]);
    sqlx::raw_sql("COMMIT").execute(&mut slow).await.unwrap();
    assert_eq!(totals().await, [Some(70), Some(2)]);
    // By hand, of a machine that was asked for and is not there yet.
    let known = us.standings("vast", &[offer(3)], at(9)).await.unwrap();
    assert!(known.machine(&machine(3)).is_none());
    let by_hand = "INSERT INTO machine_stats SELECT (jsonb_populate_record(s, '{\"id\": 900, \"machine_id\": \
                   \"3\"}')).* FROM machine_stats s WHERE machine_id = '1'";
    let by_hand = by_hand.replacen(
        "INSERT INTO machine_stats",
        "INSERT INTO machine_stats OVERRIDING SYSTEM VALUE",
        1,
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(by_hand))
        .execute(&mut slow)
        .await
        .unwrap();
    let known = us.standings("vast", &[offer(3)], at(9)).await.unwrap();
    assert_eq!(known.machine(&machine(3)).unwrap().stats.total, 70);
}
