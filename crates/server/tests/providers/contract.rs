//! The promises.

use super::bench::{Bench, query};
use dumont_server::providers::{ErrorClass, InstanceStatus};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

pub async fn what_is_offered_fits_what_was_asked_for(bench: Bench) {
    let provider = bench.provider();
    let offers = provider.search(&query()).await.unwrap();
    assert!(!offers.is_empty());
    for offer in &offers {
        assert_eq!(offer.machine.provider, provider.name());
        assert!(offer.gpu_count >= 1 && offer.price.is_finite() && offer.price >= 0.0);
    }
    let none = dumont_server::providers::OfferQuery {
        gpu_name: Some("Abacus".into()),
        ..query()
    };
    assert_eq!(provider.search(&none).await.unwrap(), Vec::new());
    // One machine is found by its own name.
    let one = dumont_server::providers::OfferQuery {
        machine_id: Some(offers[0].machine.machine_id.clone()),
        ..query()
    };
    let found = provider.search(&one).await.unwrap();
    assert!(!found.is_empty() && found.iter().all(|o| o.machine == offers[0].machine));
}

/// Killed between the rent and its commit: whoever comes next knows nothing but the label.
pub async fn a_rent_is_found_by_its_label_whoever_asks(bench: Bench) {
    let label = "dumont/c/w/1";
    assert_eq!(bench.provider().find_by_label(label).await.unwrap(), None);
    let id = bench.rent(label).await;
    let found = bench.provider().find_by_label(label).await.unwrap().unwrap();
    assert_eq!(
        (found.instance_id, found.label.as_deref()),
        (id.clone(), Some(label))
    );
    assert_eq!(
        bench.provider().find_by_label("dumont/c/w/2").await.unwrap(),
        None
    );
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let seen = bench.provider().get(&id).await.unwrap().expect("it is rented");
        if seen.status == InstanceStatus::Running && !seen.ssh.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "{seen:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub async fn a_label_is_rented_once_though_the_reply_is_lost(bench: Bench) {
    let label = "dumont/c/w/1";
    let request = bench.request(label).await;
    bench.lose_the_next_reply().await;
    let id = bench.provider().rent(&request).await.unwrap();
    let all = bench.provider().list().await.unwrap();
    let ours: Vec<_> = all.iter().filter(|i| i.label.as_deref() == Some(label)).collect();
    assert_eq!(ours.len(), 1, "{all:?}");
    assert_eq!(ours[0].instance_id, id);
}

pub async fn a_list_is_complete(bench: Bench) {
    assert_eq!(bench.provider().list().await.unwrap(), Vec::new());
    let mut rented = BTreeSet::new();
    for n in 0..3 {
        rented.insert(bench.rent(&format!("dumont/c/w/{n}")).await);
    }
    assert_eq!(rented.len(), 3, "each rent is one of its own");
    let all = bench.provider().list().await.unwrap();
    assert_eq!(
        all.iter().map(|i| i.instance_id.clone()).collect::<BTreeSet<_>>(),
        rented
    );
    let labels: BTreeSet<_> = all.iter().filter_map(|i| i.label.clone()).collect();
    assert_eq!(labels.len(), 3);
}

pub async fn destroying_is_repeatable_and_the_unknown_is_gone(bench: Bench) {
    let (stays, goes) = (bench.rent("dumont/c/w/1").await, bench.rent("dumont/c/w/2").await);
    let provider = bench.provider();
    provider.destroy(&goes).await.unwrap();
    provider.destroy(&goes).await.unwrap();
    bench.provider().destroy(&goes).await.unwrap();
    assert_eq!(provider.get(&goes).await.unwrap(), None);
    assert_eq!(provider.find_by_label("dumont/c/w/2").await.unwrap(), None);
    // What never was is as gone as anything.
    provider.destroy("987654321").await.unwrap();
    assert_eq!(provider.get("987654321").await.unwrap(), None);
    assert!(provider.get(&stays).await.unwrap().is_some());
    assert_eq!(provider.list().await.unwrap().len(), 1);
}

pub async fn silence_is_an_error_and_never_absence(mut bench: Bench) {
    let id = bench.rent("dumont/c/w/1").await;
    let provider = bench.provider();
    // It was seen up before.
    provider.get(&id).await.unwrap().unwrap();
    bench.silence().await;
    let got = provider.get(&id).await;
    assert!(
        matches!(&got, Err(e) if e.class == ErrorClass::Transient),
        "{got:?}"
    );
    let found = provider.search(&query()).await;
    assert!(
        matches!(&found, Err(e) if e.class == ErrorClass::Transient),
        "{found:?}"
    );
    match provider.list().await {
        Err(e) => assert_eq!(e.class, ErrorClass::Transient),
        // Where the list is known without the machines.
        Ok(all) => assert!(all.iter().any(|i| i.instance_id == id)),
    }
}

pub async fn a_key_may_be_attached_twice(bench: Bench) {
    let provider = bench.provider();
    provider.register_key(&bench.key).await.unwrap();
    provider.register_key(&bench.key).await.unwrap();
    let id = bench.rent("dumont/c/w/1").await;
    let other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDW1ZGzbVtIVhxmDx2Ui1E0qXhqN0tZ4pAhBCUqmvNcf me";
    for key in [other, other, &bench.key, &bench.key] {
        provider.attach_key(&id, key).await.unwrap();
    }
    if let Some(sshd) = bench.sshd() {
        let lines = || std::fs::read_to_string(sshd.authorized_keys()).unwrap();
        assert_eq!(lines().lines().count(), 2, "{}", lines());
        assert!(lines().contains(&format!("dumont-lease:{id}")));
        provider.destroy(&id).await.unwrap();
        assert_eq!(
            lines().trim(),
            bench.key,
            "the lease's key is out again, ours stays"
        );
    }
}

pub async fn an_offer_that_is_gone_and_a_closed_door_are_told_apart(bench: Bench) {
    let mut request = bench.request("dumont/c/w/1").await;
    request.offer.offer_id = "1".into();
    request.offer.machine = format!("{}:1", request.offer.machine.provider).parse().unwrap();
    let gone = bench.provider().rent(&request).await.unwrap_err();
    assert_eq!(gone.class, ErrorClass::OfferGone, "{gone}");
    assert_eq!(
        bench.provider().find_by_label("dumont/c/w/1").await.unwrap(),
        None
    );
    let closed = bench.stranger.search(&query()).await.unwrap_err();
    assert_eq!(closed.class, ErrorClass::Auth, "{closed}");
}

/// Killed between the destroy and its commit: it is asked for again, by id or by label.
pub async fn a_debt_outlives_who_owes_it(bench: Bench) {
    let id = bench.rent("dumont/c/w/1").await;
    let dropped = bench.provider();
    let asked = tokio::spawn({
        let id = id.clone();
        async move { dropped.destroy(&id).await }
    });
    tokio::time::sleep(Duration::from_millis(5)).await;
    asked.abort();
    let deadline = Instant::now() + Duration::from_secs(30);
    while let Some(left) = bench.provider().find_by_label("dumont/c/w/1").await.unwrap() {
        assert_eq!(left.instance_id, id);
        bench.provider().destroy(&id).await.unwrap();
        assert!(Instant::now() < deadline);
    }
    assert_eq!(bench.provider().get(&id).await.unwrap(), None);
}
