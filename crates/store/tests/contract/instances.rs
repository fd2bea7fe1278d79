use crate::fixture::{Fixture, at, claimed, intent, offer, workspace};
use dumont_core::workflow::Kind;
use dumont_store::{Endpoint, Error, InstanceState, NewInstance};
use std::time::Duration;

/// Whatever became of it, and nobody's own.
pub async fn what_others_asked_for_is_known_by_its_key(fixture: Fixture) {
    let store = fixture.open().await;
    let w = workspace(&store, "w").await;
    let workflow = claimed(&store, "ours", Kind::Deploy, &w).await;
    for (key, machine, of) in [
        ("01A", 1, None),
        ("01C", 2, None),
        ("01D", 3, Some((workflow.id.clone(), workflow.fence))),
        ("01E", 4, None),
        ("01F", 4, None),
    ] {
        let new = NewInstance {
            key: key.into(),
            workspace_id: w.id.clone(),
            workflow: of,
            label: format!("dumont/c/w/{key}"),
            lease: None,
            offer: offer(machine),
        };
        store.insert_intent(&new, at(20)).await.unwrap();
    }
    store
        .set_instance_state("01C", InstanceState::Failed, at(21))
        .await
        .unwrap();
    store
        .set_instance_state("01E", InstanceState::Failed, at(21))
        .await
        .unwrap();
    let mut asked = store.asked_after("01B", "ours").await.unwrap();
    asked.sort_by(|a, b| a.machine.cmp(&b.machine));
    let asked: Vec<_> = asked.into_iter().map(|a| (a.machine, a.held)).collect();
    assert_eq!(asked, [(offer(2).machine, false), (offer(4).machine, true)]);
}

pub async fn an_intent_comes_before_the_contract(fixture: Fixture) {
    let store = fixture.open().await;
    let w = workspace(&store, "w").await;
    let row = intent(&store, "k", &w).await;
    assert_eq!(
        (row.state, row.instance_id.as_deref()),
        (InstanceState::Intended, None)
    );
    assert_eq!(
        (row.offer.clone(), row.machine.clone()),
        (offer(7), offer(7).machine)
    );
    assert_eq!(
        store.instance_by_label("dumont/c/w/k").await.unwrap(),
        Some(row.clone())
    );

    // After a crash: the same intent again tells what is known.
    store.set_instance_rented("k", "90001", at(30)).await.unwrap();
    let again = intent(&store, "k", &w).await;
    assert_eq!(
        (again.state, again.instance_id.as_deref()),
        (InstanceState::Rented, Some("90001"))
    );

    let taken = NewInstance {
        key: "other".into(),
        workspace_id: w.id.clone(),
        workflow: None,
        label: row.label,
        lease: None,
        offer: offer(8),
    };
    assert!(matches!(
        store.insert_intent(&taken, at(31)).await,
        Err(Error::Conflict { .. })
    ));

    let first = Endpoint {
        host: "127.0.0.1",
        port: 2222,
        host_key: Some("ssh-ed25519 AAAA"),
        user: Some("ubuntu"),
        home: Some("/home/ubuntu/lease"),
    };
    let second = Endpoint {
        port: 2223,
        host_key: None,
        ..first
    };
    store.set_instance_endpoint("k", &first, at(32)).await.unwrap();
    store.set_instance_endpoint("k", &second, at(33)).await.unwrap();
    let row = store.instance("k").await.unwrap().unwrap();
    assert_eq!(
        (row.ssh_port, row.host_key.as_deref()),
        (Some(2223), Some("ssh-ed25519 AAAA"))
    );
    assert_eq!(
        (row.ssh_user.as_deref(), row.home.as_deref()),
        (second.user, second.home)
    );
}

pub async fn states_only_move_forward(fixture: Fixture) {
    use InstanceState::{Destroyed, Destroying, Failed, Owned, Ready, Rented};
    let store = fixture.open().await;
    let w = workspace(&store, "w").await;
    intent(&store, "k", &w).await;
    for state in [Rented, Ready, Ready, Owned, Destroying, Destroyed] {
        assert_eq!(
            store.set_instance_state("k", state, at(40)).await.unwrap().state,
            state
        );
    }
    for state in [Rented, Ready, Owned, Destroying, Failed] {
        let back = store.set_instance_state("k", state, at(41)).await;
        assert!(matches!(back, Err(Error::Stale { .. })), "{state}");
    }
    let row = store.instance("k").await.unwrap().unwrap();
    assert_eq!((row.ready_at, row.destroyed_at), (Some(at(40)), Some(at(40))));
    let missing = store.set_instance_state("none", Ready, at(1)).await;
    assert!(matches!(missing, Err(Error::NotFound { .. })));
}

pub async fn a_late_reply_does_not_revive(fixture: Fixture) {
    let store = fixture.open().await;
    let w = workspace(&store, "w").await;
    intent(&store, "k", &w).await;
    store
        .set_instance_state("k", InstanceState::Destroying, at(30))
        .await
        .unwrap();
    let row = store.set_instance_rented("k", "90001", at(31)).await.unwrap();
    assert_eq!(
        (row.state, row.instance_id.as_deref()),
        (InstanceState::Destroying, Some("90001"))
    );
    let fence = store.workspace(&w.id).await.unwrap().unwrap().fence;
    let attach = store.attach_instance(&w.id, "k", fence, at(32)).await;
    assert!(matches!(attach, Err(Error::Stale { what: "instance", .. })));
}

pub async fn open_ones_are_never_forgotten(fixture: Fixture) {
    use InstanceState::{Destroyed, Destroying, Failed};
    let store = fixture.open().await;
    let w = workspace(&store, "w").await;
    for key in [
        "a-intended",
        "b-destroying",
        "c-destroyed",
        "d-failed",
        "e-failed-but-exists",
    ] {
        intent(&store, key, &w).await;
    }
    store
        .set_instance_state("b-destroying", Destroying, at(30))
        .await
        .unwrap();
    store
        .set_instance_state("c-destroyed", Destroyed, at(30))
        .await
        .unwrap();
    store
        .set_instance_state("d-failed", Failed, at(30))
        .await
        .unwrap();
    store
        .set_instance_state("e-failed-but-exists", Failed, at(30))
        .await
        .unwrap();
    store
        .set_instance_rented("e-failed-but-exists", "90001", at(31))
        .await
        .unwrap();
    let open: Vec<_> = store
        .list_open_instances()
        .await
        .unwrap()
        .into_iter()
        .map(|i| i.key)
        .collect();
    assert_eq!(open, ["a-intended", "b-destroying", "e-failed-but-exists"]);
    assert_eq!(store.instances_of(&w.id).await.unwrap().len(), 5);
}

/// Found stopped after its lease: it did as it was told. The later of all signs of life counts.
pub async fn a_lease_is_over_when_nothing_was_heard_for_so_long(fixture: Fixture) {
    let store = fixture.open().await;
    let w = workspace(&store, "w").await;
    let free = intent(&store, "free", &w).await;
    let new = NewInstance {
        key: "leased".into(),
        workspace_id: w.id.clone(),
        workflow: None,
        label: "dumont/c/w/leased".into(),
        lease: Some(Duration::from_secs(60)),
        offer: offer(8),
    };
    let row = store.insert_intent(&new, at(100)).await.unwrap();
    assert_eq!((row.lease(), row.heard_at), (new.lease, None));
    assert!(!row.may_have_ended(at(159)) && row.may_have_ended(at(160)));
    let row = store
        .set_instance_rented("leased", "90001", at(110))
        .await
        .unwrap();
    assert!(!row.may_have_ended(at(169)) && row.may_have_ended(at(170)));
    for key in ["leased", "free", "nobody"] {
        store.set_instance_heard(key, at(500)).await.unwrap();
    }
    let row = store.instance("leased").await.unwrap().unwrap();
    assert_eq!(row.heard_at, Some(at(500)));
    assert!(!row.may_have_ended(at(559)) && row.may_have_ended(at(560)));
    let free = store.instance(&free.key).await.unwrap().unwrap();
    assert_eq!((free.lease(), free.heard_at), (None, None));
    assert!(!free.may_have_ended(at(1_000_000)));
}
