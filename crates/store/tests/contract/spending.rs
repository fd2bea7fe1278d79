use crate::dice::Dice;
use crate::fixture::{Fixture, intent, workspace};
use dumont_core::offer::Offer;
use dumont_core::spending::Spent;
use dumont_core::time::Timestamp;
use dumont_store::InstanceState::{Destroyed, Destroying, Failed};
use std::time::Duration;

/// 2026-11-26T12:00:00Z.
const NOON: Timestamp = Timestamp(1_795_694_400_000_000);

fn hours_ago(hours: u64) -> Timestamp {
    NOON.minus(Duration::from_secs(hours * 3600))
}

pub async fn every_hour_of_this_month_is_counted_once(fixture: Fixture) {
    let store = fixture.open().await;
    assert_eq!(store.spent(NOON).await.unwrap(), Spent::default());
    let (a, b) = (workspace(&store, "a").await, workspace(&store, "b").await);
    // Each costs $0.25 an hour. From yesterday's noon on:
    intent(&store, "running", &a).await;
    store
        .set_instance_rented("running", "1", hours_ago(24))
        .await
        .unwrap();
    // All of October and the first ten hours of November:
    intent(&store, "ended", &a).await;
    store
        .set_instance_rented("ended", "2", hours_ago(1200))
        .await
        .unwrap();
    let end = NOON.month_start().plus(Duration::from_secs(36_000));
    store.set_instance_state("ended", Destroyed, end).await.unwrap();
    // Long gone:
    intent(&store, "gone", &a).await;
    store
        .set_instance_rented("gone", "3", hours_ago(2400))
        .await
        .unwrap();
    store
        .set_instance_state("gone", Destroyed, hours_ago(2000))
        .await
        .unwrap();
    // On its way out for an hour, and not seen to be gone yet:
    intent(&store, "leaving", &b).await;
    store
        .set_instance_rented("leaving", "4", hours_ago(4))
        .await
        .unwrap();
    store
        .set_instance_state("leaving", Destroying, hours_ago(1))
        .await
        .unwrap();
    // Asked for, refused:
    intent(&store, "asked", &b).await;
    intent(&store, "refused", &b).await;
    store
        .set_instance_state("refused", Failed, hours_ago(1))
        .await
        .unwrap();

    let rows = store.spending(NOON).await.unwrap();
    let near = |x: f64, y: f64| (x - y).abs() < 1e-9;
    assert_eq!(
        rows.iter().map(|r| r.workspace.as_str()).collect::<Vec<_>>(),
        ["a", "b"]
    );
    assert!(
        near(rows[0].this_month, 0.25 * 34.0) && near(rows[0].today, 0.25 * 12.0),
        "{rows:?}"
    );
    assert!(
        near(rows[1].this_month, 0.25 * 4.0) && near(rows[1].today, 0.25 * 4.0),
        "{rows:?}"
    );
    assert!(
        near(rows[0].per_hour, 0.25) && near(rows[1].per_hour, 0.5),
        "{rows:?}"
    );
    let all = store.spent(NOON).await.unwrap();
    assert!(
        near(all.this_month, 9.5) && near(all.today, 4.0) && near(all.per_hour, 0.75),
        "{all:?}"
    );
}

pub async fn a_price_counts_from_when_it_is_paid(fixture: Fixture) {
    let store = fixture.open().await;
    let workspace = workspace(&store, "w").await;
    let row = intent(&store, "i", &workspace).await;
    store.set_instance_rented("i", "1", hours_ago(48)).await.unwrap();
    let raised = Offer {
        price: 0.75,
        ..row.offer
    };
    store
        .set_instance_offer("i", &raised, hours_ago(2))
        .await
        .unwrap();
    let spent = store.spent(NOON).await.unwrap();
    let near = |x: f64, y: f64| (x - y).abs() < 1e-9;
    assert!(near(spent.this_month, 0.25 * 46.0 + 0.75 * 2.0), "{spent:?}");
    assert!(near(spent.today, 0.25 * 10.0 + 0.75 * 2.0), "{spent:?}");
    assert!(near(spent.per_hour, 0.75), "{spent:?}");
}

/// One machine's life, by chance: when it was rented, what it cost from when on, and its end.
struct Life {
    prices: Vec<(Timestamp, f64)>,
    ended: Option<Timestamp>,
}

impl Life {
    /// Dollars between two moments, step by step.
    fn cost(&self, from: Timestamp, to: Timestamp) -> f64 {
        let ends = self.prices.iter().skip(1).map(|(since, _)| *since);
        let ends = ends.chain([self.ended.unwrap_or(to)]);
        let spans = self.prices.iter().zip(ends);
        let cost = |((since, price), end): (&(Timestamp, f64), Timestamp)| {
            let micros = (end.min(to).0 - since.0.max(from.0)).max(0);
            micros as f64 * price / 3600e6
        };
        spans.map(cost).sum()
    }
}

/// Whatever changes when: the one statement says what adding up hour by hour says.
pub async fn the_sum_is_what_a_plain_one_gives(fixture: Fixture) {
    let store = fixture.open().await;
    let workspace = workspace(&store, "w").await;
    let mut dice = Dice(0x0bad_5eed_0bad_5eed);
    let mut lives = Vec::new();
    for n in 0..60 {
        let key = format!("i{n}");
        let offer = intent(&store, &key, &workspace).await.offer;
        let mut at = hours_ago(dice.roll(100 * 24)).plus(Duration::from_micros(dice.roll(3_600_000_000)));
        let mut next = |dice: &mut Dice| {
            // Some right after another, some across days and months.
            let longest = [1, 1_000_000, 40 * 3_600_000_000, 900 * 3_600_000_000][dice.roll(4) as usize];
            at = at.plus(Duration::from_micros(dice.roll(longest) + 1)).min(NOON);
            at
        };
        let rented = next(&mut dice);
        store.set_instance_rented(&key, &key, rented).await.unwrap();
        let mut life = Life {
            prices: vec![(rented, offer.price)],
            ended: None,
        };
        for _ in 0..dice.roll(6) {
            let (since, price) = (next(&mut dice), dice.roll(1_000) as f64 / 997.0);
            if since == life.prices[life.prices.len() - 1].0 {
                break;
            }
            if dice.roll(2) == 0 {
                let offer = Offer {
                    price,
                    ..offer.clone()
                };
                store.set_instance_offer(&key, &offer, since).await.unwrap();
            } else {
                store.set_instance_price(&key, price, since).await.unwrap();
            }
            life.prices.push((since, price));
        }
        if dice.roll(2) == 0 {
            let end = next(&mut dice);
            store.set_instance_state(&key, Destroyed, end).await.unwrap();
            life.ended = Some(end);
        }
        lives.push(life);
    }
    for later in [0, 1, 11, 12, 13, 24 * 4, 24 * 5 + 1, 24 * 40] {
        let now = NOON.plus(Duration::from_secs(later * 3600));
        let plain = |from| lives.iter().map(|l| l.cost(from, now)).sum::<f64>();
        let spent = store.spent(now).await.unwrap();
        let open = lives.iter().filter(|l| l.ended.is_none());
        let per_hour: f64 = open.map(|l| l.prices[l.prices.len() - 1].1).sum();
        for (said, plain) in [
            (spent.this_month, plain(now.month_start())),
            (spent.today, plain(now.day_start())),
            (spent.per_hour, per_hour),
        ] {
            assert!(
                (said - plain).abs() < 1e-7,
                "{later} h later: {said}, not {plain}"
            );
        }
    }
}

/// What was seen before something was written down does not undo it.
pub async fn an_old_look_changes_no_price(fixture: Fixture) {
    let store = fixture.open().await;
    let workspace = workspace(&store, "w").await;
    let row = intent(&store, "i", &workspace).await;
    store.set_instance_rented("i", "1", hours_ago(9)).await.unwrap();
    store.set_instance_price("i", 0.01, hours_ago(8)).await.unwrap();
    assert_eq!(row.loss_key(hours_ago(8)).as_deref(), Some("i"));
    store.set_instance_back("i", hours_ago(6)).await.unwrap();
    store.set_instance_price("i", 0.01, hours_ago(7)).await.unwrap();
    let back = store.instance("i").await.unwrap().unwrap();
    assert!((back.price - row.price).abs() < 1e-9, "{back:?}");
    // Its next loss is another one, and the last was written down before it was back.
    assert_eq!(back.loss_key(hours_ago(8)), None);
    let again = back.loss_key(hours_ago(1)).unwrap();
    assert!(again.starts_with("i/"), "{again}");
    store
        .set_instance_state("i", Destroyed, hours_ago(5))
        .await
        .unwrap();
    store.set_instance_price("i", 9.0, hours_ago(1)).await.unwrap();
    let spent = store.spent(NOON).await.unwrap();
    let whole = row.price * 2.0 + 0.01 * 2.0;
    assert!((spent.this_month - whole).abs() < 1e-9, "{spent:?} {whole}");
}
