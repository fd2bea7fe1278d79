//! What a large account costs, and that the account's limits are kept whoever asks.

use crate::fake::{Fake, LABEL, Reply, Seen, class, instance, query, request};
use dumont_core::budget::Class;
use dumont_server::providers::budget::as_class;
use dumont_server::providers::vast::Vast;
use dumont_server::providers::{ErrorClass, Provider};
use dumont_store::Store;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

const LIST: &str = "/api/v1/instances/";
const THOUSAND: u64 = 1_000;

/// Vast.ai's listing of a thousand instances: filters, and pages of 25 by token.
fn thousand(seen: &Seen) -> Reply {
    let filter: Value = serde_json::from_str(&seen.query["select_filters"]).unwrap();
    let wanted = |id: u64| {
        let label = format!("w{id}");
        let named = filter["label"]["eq"].as_str().is_none_or(|l| l == label);
        let ids = filter["id"]["in"].as_array();
        named && ids.is_none_or(|ids| ids.iter().any(|i| i == &json!(id)))
    };
    let found: Vec<u64> = (1..=THOUSAND).filter(|id| wanted(*id)).collect();
    let after: u64 = seen.query.get("after_token").map_or(0, |t| t.parse().unwrap());
    let left: Vec<u64> = found.iter().copied().filter(|id| *id > after).collect();
    let page: Vec<u64> = left.iter().copied().take(25).collect();
    let token = (left.len() > 25).then(|| page.last().unwrap().to_string());
    let rows: Vec<Value> = page.iter().map(|id| instance(*id, &format!("w{id}"))).collect();
    let body = json!({"success": true, "instances_found": found.len(), "total_instances": THOUSAND,
        "next_token": token, "instances": rows});
    Reply::Json(200, body)
}

#[tokio::test]
async fn few_of_a_thousand_cost_one_page_and_all_cost_forty() {
    let fake = Fake::start(thousand).await;
    let client = fake.client();
    let ids: Vec<String> = [3, 500, 999, 4_000].map(|n: u64| n.to_string()).to_vec();
    let mut shown: Vec<String> = client
        .look(&ids)
        .await
        .unwrap()
        .into_iter()
        .map(|i| i.instance_id)
        .collect();
    shown.sort();
    assert_eq!(shown, ["3", "500", "999"], "one that is not shown is left out");
    assert_eq!(fake.count("GET", LIST), 1);
    let found = client.find_by_label("w77").await.unwrap().unwrap();
    assert_eq!((found.instance_id.as_str(), fake.count("GET", LIST)), ("77", 2));
    assert_eq!(client.find_by_label("unit-x").await.unwrap(), None);
    assert_eq!(client.list().await.unwrap().len(), 1_000);
    assert_eq!(fake.count("GET", LIST), 3 + 40);
}

#[tokio::test]
async fn a_filter_that_is_ignored_or_refused_is_made_up_for() {
    let all = |seen: &Seen| {
        let mut all = seen.clone();
        all.query.insert("select_filters".into(), "{}".into());
        thousand(&all)
    };
    let ignored = Fake::start(all).await;
    let ids = ["999".to_owned()];
    assert_eq!(ignored.client().look(&ids).await.unwrap().len(), 1);
    let refused = Fake::start(|seen| match seen.query["select_filters"].as_str() {
        "{}" => thousand(seen),
        _ => Reply::Json(
            400,
            json!({"success": false, "error": "invalid_request", "msg": "x"}),
        ),
    })
    .await;
    assert_eq!(refused.client().look(&ids).await.unwrap().len(), 1);
    assert_eq!(
        refused
            .client()
            .find_by_label("w999")
            .await
            .unwrap()
            .unwrap()
            .instance_id,
        "999"
    );
}

/// Eight clients on one database, as eight replicas have them, ask as fast as they may.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_keep_one_accounts_limits_together() {
    let fake = Fake::start(|seen| match seen.method.as_str() {
        "PUT" => Reply::Json(200, json!({"success": true, "new_contract": 5})),
        _ => thousand(seen),
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let mut config = fake.config();
    config.limits = "create=0.06,list=0.03".parse().unwrap();
    let mut replicas = Vec::new();
    for _ in 0..8 {
        let store = Store::open(dir.path().join("dumont.db")).await.unwrap();
        let client = Arc::new(Vast::shared(config.clone(), store).unwrap());
        replicas.push(tokio::spawn(as_class(Class::Normal, async move {
            for _ in 0..3 {
                client.rent_turn().await.unwrap();
                client.rent(&request()).await.unwrap();
                client.look(&["7".to_owned()]).await.unwrap();
            }
        })));
    }
    for replica in replicas {
        replica.await.unwrap();
    }
    for (method, path, turns, interval) in [("PUT", "/api/v0/asks/", 24, 60), ("GET", LIST, 24, 30)] {
        let at: Vec<_> = fake
            .seen()
            .iter()
            .filter(|s| s.is(method, path))
            .map(|s| s.at)
            .collect();
        assert_eq!(at.len(), turns);
        // Single distances are blurred by this machine; the sum is not.
        let sum = at[turns - 1] - at[0];
        assert!(
            sum >= Duration::from_millis(interval * (turns as u64 - 1) - interval),
            "{path}: {sum:?}"
        );
    }
    assert_eq!(fake.seen()[0].body["label"], LABEL);
}

/// A refusal that one client meets holds the others back, too.
#[tokio::test]
async fn one_replicas_refusal_is_every_ones() {
    let fake = Fake::start(|seen| match seen.nth {
        0 => Reply::Header(429, "retry-after", "50".into(), json!({})),
        _ => Reply::Json(200, json!({"offers": []})),
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let mut config = fake.config();
    config.limits = "search=600/min".parse().unwrap();
    config.rate_limit_backoff = Vec::new();
    let client = |store| Vast::shared(config.clone(), store).unwrap();
    let one = client(Store::open(dir.path().join("dumont.db")).await.unwrap());
    let other = client(Store::open(dir.path().join("dumont.db")).await.unwrap());
    assert!(matches!(
        class(one.search(&query()).await),
        ErrorClass::RateLimited { .. }
    ));
    let query = query();
    let waits = as_class(Class::Urgent, other.search(&query));
    assert!(
        tokio::time::timeout(Duration::from_millis(300), waits)
            .await
            .is_err()
    );
    assert_eq!(fake.seen().len(), 1);
}

fn shown(name: &str, mut took: Vec<Duration>) {
    took.sort();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    println!(
        "{name}: median {:?}, p99 {:?}, most {:?}",
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

/// What the account's budget and the client add to a request.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: --run-ignored only --no-capture"]
async fn what_a_turn_and_a_request_cost() {
    const N: usize = 300;
    let fake = Fake::start(|_| Reply::Json(200, json!({"instances": instance(7, LABEL)}))).await;
    let mut config = fake.config();
    let (dir, cluster) = (
        tempfile::tempdir().unwrap(),
        dumont_temp_postgres::Cluster::start().unwrap(),
    );
    let url = cluster.create_database("turns").unwrap();
    let stores = [
        ("SQLite", Store::open(dir.path().join("dumont.db")).await.unwrap()),
        ("PostgreSQL", Store::connect(&url).await.unwrap()),
    ];
    config.limits = "create=0.000001".parse().unwrap();
    for (name, store) in stores {
        let client = Vast::shared(config.clone(), store).unwrap();
        let mut took = Vec::new();
        for _ in 0..N {
            let begun = std::time::Instant::now();
            as_class(Class::Urgent, client.rent_turn()).await.unwrap();
            took.push(begun.elapsed());
        }
        shown(&format!("a turn, {name}"), took);
    }
    let (client, plain) = (fake.client(), reqwest::Client::new());
    let path = format!("{}/api/v0/instances/7/?owner=me", fake.url);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..N {
        let begun = std::time::Instant::now();
        plain
            .get(&path)
            .bearer_auth(crate::fake::KEY)
            .send()
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap();
        theirs.push(begun.elapsed());
        let begun = std::time::Instant::now();
        client.get("7").await.unwrap();
        ours.push(begun.elapsed());
    }
    shown("a request, reqwest alone", theirs);
    shown("a request, this client", ours);
}
