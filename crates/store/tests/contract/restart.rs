//! A database that is restarted while everybody writes: nothing lost, nothing doubled.
//!
//! A writer whose connection broke cannot know whether its write happened. It writes again
//! under the same id, as every caller in dumont does, and is told what is there.

use crate::fixture::{at, machine};
use dumont_core::blacklist::Settings;
use dumont_core::history::{Outcome, Stage};
use dumont_store::{AttemptFilter, Conditions, Error, NewAttempt, Store};
use dumont_temp_postgres::{Cluster, Stop};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const WRITERS: usize = 4;
const WRITES: usize = 60;

fn attempt(key: &str) -> NewAttempt {
    NewAttempt {
        attempt_key: key.into(),
        machine: machine(1),
        attempt_type: "deploy".into(),
        workflow_id: None,
        workspace_id: None,
        host_id: None,
        offer_id: None,
        instance_id: None,
        gpu_name: "RTX 4090".into(),
        price: 0.25,
        region: None,
        image: None,
        stage: Stage::Ready,
        outcome: Outcome::Won,
        reason: None,
        error_message: Some("a NUL \0 from a hostile machine".into()),
        duration_seconds: 1.0,
        ready_seconds: Some(1.0),
        created_at: at(1),
        conditions: Conditions::default(),
    }
}

/// Writes until it is told that it is written.
async fn persistent(store: &Store, new: &NewAttempt) {
    loop {
        match store.record_attempt(new, &Settings::default()).await {
            Ok(_) => return,
            Err(Error::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_restart_in_the_middle_loses_and_doubles_nothing() {
    let cluster = Cluster::start().unwrap();
    let url = cluster.create_database("restarted").unwrap();
    let store = Store::connect(&url).await.unwrap();
    let written = Arc::new(AtomicUsize::new(0));
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let (store, written) = (store.clone(), written.clone());
        writers.push(tokio::spawn(async move {
            for n in 0..WRITES {
                persistent(&store, &attempt(&format!("{writer}-{n}"))).await;
                written.fetch_add(1, Ordering::SeqCst);
            }
        }));
    }
    for (after, how) in [(30, Stop::Immediate), (90, Stop::Fast), (150, Stop::Immediate)] {
        while written.load(Ordering::SeqCst) < after {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        cluster.stop(how);
        let away = store.database_time().await;
        assert!(matches!(away, Err(Error::Unavailable(_))), "{away:?}");
        cluster.resume().unwrap();
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let page = store
        .list_attempts(Some(&machine(1)), &AttemptFilter::default(), None, 1_000)
        .await
        .unwrap();
    let mut keys: Vec<_> = page.items.iter().map(|a| a.attempt.attempt_key.clone()).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(
        (page.items.len(), keys.len()),
        (WRITERS * WRITES, WRITERS * WRITES)
    );
    let counted = store.machine(&machine(1), at(2)).await.unwrap().unwrap().stats;
    assert_eq!(counted, store.recount_stats(&machine(1)).await.unwrap());
    assert_eq!(counted.total, i64::try_from(WRITERS * WRITES).unwrap());
    let repeated = store
        .record_attempt(&attempt("0-0"), &Settings::default())
        .await
        .unwrap();
    assert!(!repeated.first, "a write whose reply was lost is found by its id");
}
