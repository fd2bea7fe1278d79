use crate::fixture::{Fixture, at};
use dumont_core::own_machine::OwnMachine;
use dumont_store::{Error, NewLease, Store};
use std::collections::BTreeSet;

fn machine(name: &str, workspaces: u32) -> OwnMachine {
    let text = format!(r#"{{"machine": "ssh:{name}", "host": "10.0.0.1", "workspaces": {workspaces}}}"#);
    serde_json::from_str(&text).unwrap()
}

async fn lease(store: &Store, id: &str, label: &str, on: &OwnMachine) -> Option<String> {
    let new = NewLease {
        id,
        label,
        machine: on,
    };
    store.lease(&new, at(1)).await.unwrap().map(|l| l.id)
}

pub async fn told_machines_are_kept_and_replaced(fixture: Fixture) {
    let store = fixture.open().await;
    store.put_own_machine(&machine("a", 1), at(1)).await.unwrap();
    store.put_own_machine(&machine("b", 1), at(2)).await.unwrap();
    store.put_own_machine(&machine("a", 3), at(3)).await.unwrap();
    let page = store.list_own_machines(None, 1).await.unwrap();
    assert_eq!(
        (page.items[0].machine.workspaces, page.next.as_deref()),
        (3, Some("a"))
    );
    let page = store.list_own_machines(Some("a"), 5).await.unwrap();
    assert_eq!((page.items.len(), page.next), (1, None));
    store.delete_own_machine("a").await.unwrap();
    let again = store.delete_own_machine("a").await;
    assert!(matches!(again, Err(Error::NotFound { .. })), "{again:?}");
}

pub async fn a_label_is_leased_once_and_a_place_has_one_lease(fixture: Fixture) {
    let store = fixture.open().await;
    let two = machine("a", 2);
    assert_eq!(lease(&store, "1", "x", &two).await.as_deref(), Some("1"));
    assert_eq!(
        lease(&store, "2", "x", &two).await.as_deref(),
        Some("1"),
        "the same label"
    );
    assert_eq!(lease(&store, "3", "y", &two).await.as_deref(), Some("3"));
    assert_eq!(lease(&store, "4", "z", &two).await, None, "it is full");
    let places: BTreeSet<u64> = store.leases().await.unwrap().iter().map(|l| l.slot).collect();
    assert_eq!(places, [0, 1].into());
    assert_eq!(store.lease_by_label("y").await.unwrap().unwrap().id, "3");
}

pub async fn a_machine_is_not_leased_before_it_is_clean(fixture: Fixture) {
    let store = fixture.open().await;
    let two = machine("a", 2);
    lease(&store, "1", "x", &two).await.unwrap();
    assert!(store.touch_lease("1").await.unwrap());
    store.set_lease_home("1", "/root/l").await.unwrap();
    let given = store.release_lease("1").await.unwrap().unwrap();
    assert!(given.releasing && given.touched && given.home.as_deref() == Some("/root/l"));
    assert!(
        !store.touch_lease("1").await.unwrap(),
        "nothing more is put there"
    );
    assert_eq!(lease(&store, "2", "y", &two).await, None);
    store.end_lease("1").await.unwrap();
    store.end_lease("1").await.unwrap();
    assert_eq!(store.release_lease("1").await.unwrap(), None);
    assert_eq!(lease(&store, "2", "y", &two).await.as_deref(), Some("2"));
    assert_eq!(store.end_leases_on("a").await.unwrap(), 1);
    assert!(store.leases().await.unwrap().is_empty());
}

pub async fn many_at_once_take_each_place_once(fixture: Fixture) {
    let store = fixture.open().await;
    let two = machine("a", 2);
    let asks = (0..12).map(|n| {
        let (store, two) = (store.clone(), two.clone());
        // Every label is asked for twice.
        tokio::spawn(async move { lease(&store, &format!("id{n}"), &format!("label{}", n / 2), &two).await })
    });
    let mut given = BTreeSet::new();
    for ask in asks.collect::<Vec<_>>() {
        given.extend(ask.await.unwrap());
    }
    let rows: BTreeSet<String> = store.leases().await.unwrap().into_iter().map(|l| l.id).collect();
    assert_eq!((rows.len(), &given), (2, &rows));
}

pub async fn the_first_host_key_stays(fixture: Fixture) {
    let store = fixture.open().await;
    assert_eq!(store.pinned_host_key("h:22").await.unwrap(), None);
    store.pin_host_key("h:22", "one", at(1)).await.unwrap();
    store.pin_host_key("h:22", "two", at(2)).await.unwrap();
    assert_eq!(
        store.pinned_host_key("h:22").await.unwrap().as_deref(),
        Some("one")
    );
    store.unpin_host_key("h:22").await.unwrap();
    assert_eq!(store.pinned_host_key("h:22").await.unwrap(), None);
}
