use crate::fixture::{Fixture, intent, workspace};
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
