use crate::fixture::{Fixture, at, claimed, intent, living_on, spec, workspace};
use dumont_core::snapshot::{ModelFiles, SnapshotType, Validation, Verdict};
use dumont_core::workflow::Kind;
use dumont_store::{Error, FailoverEventRow, NewWorkspace, WorkspaceState};

pub async fn a_name_is_taken_until_its_workspace_is_deleted(fixture: Fixture) {
    let store = fixture.open().await;
    let first = workspace(&store, "w").await;
    assert_eq!(
        (first.state, first.fence, first.spec.clone()),
        (WorkspaceState::Draft, 0, spec("w"))
    );
    assert_eq!(workspace(&store, "w").await, first, "the same id again");
    let second = NewWorkspace {
        key: None,
        id: "id-2".into(),
        spec: spec("w"),
        state: WorkspaceState::Deploying,
    };
    assert!(matches!(
        store.create_workspace(&second, at(2)).await,
        Err(Error::Conflict { .. })
    ));

    store
        .set_workspace_state(&first.id, WorkspaceState::Failed, Some("no offers"))
        .await
        .unwrap();
    let row = store.workspace_by_name(&first.name).await.unwrap().unwrap();
    assert_eq!(
        (row.state, row.message.as_deref()),
        (WorkspaceState::Failed, Some("no offers"))
    );

    store.mark_workspace_deleted(&first.id, at(3)).await.unwrap();
    assert!(matches!(
        store.mark_workspace_deleted(&first.id, at(4)).await,
        Err(Error::NotFound { .. })
    ));
    assert_eq!(store.workspace_by_name(&first.name).await.unwrap(), None);
    assert_eq!(
        store.workspace(&first.id).await.unwrap().unwrap().deleted_at,
        Some(at(3))
    );
    assert_eq!(store.create_workspace(&second, at(5)).await.unwrap().id, "id-2");
}

pub async fn workspaces_are_paged_by_name(fixture: Fixture) {
    let store = fixture.open().await;
    for name in ["c", "a", "d", "b", "gone"] {
        workspace(&store, name).await;
    }
    store.mark_workspace_deleted("id-gone", at(2)).await.unwrap();
    let page = store.list_workspaces(None, 3).await.unwrap();
    let names =
        |items: &[dumont_store::WorkspaceRow]| items.iter().map(|w| w.name.to_string()).collect::<Vec<_>>();
    assert_eq!(
        (names(&page.items), page.next.as_deref()),
        (vec!["a".into(), "b".into(), "c".into()], Some("c"))
    );
    let page = store.list_workspaces(page.next.as_deref(), 3).await.unwrap();
    assert_eq!((names(&page.items), page.next), (vec!["d".into()], None));
    assert_eq!(
        store.list_workspaces(None, 4).await.unwrap().next,
        None,
        "a full last page says that it is last"
    );
}

pub async fn attaching_needs_the_fence_of_now(fixture: Fixture) {
    let store = fixture.open().await;
    let w = workspace(&store, "w").await;
    let fence = living_on(&store, "a", &w).await;
    assert_eq!(fence, 1);
    intent(&store, "b", &w).await;
    store.set_instance_rented("b", "90002", at(30)).await.unwrap();
    let old = store.attach_instance(&w.id, "b", 0, at(31)).await;
    assert!(matches!(
        old,
        Err(Error::Stale {
            what: "workspace",
            ..
        })
    ));
    assert_eq!(
        store.attach_instance(&w.id, "a", 0, at(31)).await.unwrap(),
        1,
        "a repeat changes nothing"
    );
    assert_eq!(store.attach_instance(&w.id, "b", 1, at(32)).await.unwrap(), 2);
    let none = store.attach_instance(&w.id, "none", 2, at(33)).await;
    assert!(matches!(none, Err(Error::Stale { what: "instance", .. })));
}

pub async fn first_value_of_meta_wins(fixture: Fixture) {
    let store = fixture.open().await;
    let mut callers = Vec::new();
    for n in 0..8 {
        let store = fixture.open().await;
        callers.push(tokio::spawn(async move {
            store.meta_get_or_insert("controller_id", &format!("c{n}")).await
        }));
    }
    let mut got = Vec::new();
    for caller in callers {
        got.push(caller.await.unwrap().unwrap());
    }
    got.dedup();
    assert_eq!(got.len(), 1, "{got:?}");
    assert_eq!(store.meta("controller_id").await.unwrap().as_ref(), Some(&got[0]));
    store.meta_set("controller_id", "other").await.unwrap();
    assert_eq!(
        store.meta("controller_id").await.unwrap().as_deref(),
        Some("other")
    );
    assert_eq!(store.meta("none").await.unwrap(), None);
}

pub async fn tokens_are_found_and_revoked(fixture: Fixture) {
    let store = fixture.open().await;
    store
        .insert_token("t1", "admin", &[0, 255, 7], at(1))
        .await
        .unwrap();
    assert!(matches!(
        store.insert_token("t1", "x", &[1], at(2)).await,
        Err(Error::Conflict { .. })
    ));
    store.touch_token("t1", at(3)).await.unwrap();
    store.revoke_token("t1", at(4)).await.unwrap();
    store.revoke_token("t1", at(5)).await.unwrap();
    let row = store.token("t1").await.unwrap().unwrap();
    assert_eq!(
        (row.name.as_str(), row.hash.as_slice()),
        ("admin", [0, 255, 7].as_slice())
    );
    assert_eq!((row.last_used_at, row.revoked_at), (Some(at(3)), Some(at(4))));
    assert!(matches!(
        store.revoke_token("none", at(5)).await,
        Err(Error::NotFound { .. })
    ));
    assert_eq!(store.token("none").await.unwrap(), None);
    assert_eq!(store.list_tokens(None, 10).await.unwrap().items, [row]);
}

fn event(id: &str, workspace_id: &str) -> FailoverEventRow {
    FailoverEventRow {
        id: id.into(),
        workflow_id: "f".into(),
        workspace_id: workspace_id.into(),
        workspace_name: "w".parse().unwrap(),
        success: true,
        failure_reason: None,
        trigger: "session_reset".into(),
        cause: Some(dumont_core::blacklist::LossCause::Outbid),
        lost_at: at(1),
        detected_at: at(2),
        finished_at: at(3),
        detection_ms: 1,
        search_ms: 2,
        gpu_provisioning_time_ms: 3,
        restore_ms: 4,
        validation_ms: 5,
        start_ms: 6,
        probe_ms: 7,
        complete_ms: Some(70),
        switch_ms: 8,
        total_ms: 9,
        original_instance_id: Some("10".into()),
        original_ssh_host: Some("11".into()),
        original_ssh_port: Some(12),
        new_instance_id: Some("13".into()),
        new_ssh_host: Some("14".into()),
        new_ssh_port: Some(u16::MAX),
        snapshot_id: Some("16".into()),
        snapshot_type: Some(SnapshotType::Incremental),
        base_snapshot_id: Some("18".into()),
        files_changed: Some(19),
        validation: Some(Validation {
            validation: Verdict::Ok,
            files_restored: 20,
            files_expected: 21,
            problems: Vec::new(),
        }),
        model_files: None,
        bytes_restored: 22,
        bytes_downloaded: 23,
        data_loss_ms: Some(24),
    }
}

pub async fn events_are_written_once_and_read_as_written(fixture: Fixture) {
    let store = fixture.open().await;
    let first = event("01A", "w1");
    assert!(store.insert_failover_event(&first).await.unwrap());
    assert!(
        !store
            .insert_failover_event(&FailoverEventRow {
                success: false,
                ..first.clone()
            })
            .await
            .unwrap()
    );
    assert_eq!(store.failover_event("01A").await.unwrap(), Some(first.clone()));
    let models = ModelFiles {
        files_checked: 3,
        mismatched: vec!["a.bin".into()],
        ..ModelFiles::default()
    };
    let uncompared = async |after: &'static str| {
        let found = store.uncompared_failovers(after).await.unwrap();
        found.into_iter().map(|e| e.id).collect::<Vec<_>>()
    };
    assert_eq!(uncompared("").await, ["01A"]);
    assert!(store.note_model_files("01A", &models).await.unwrap());
    assert!(uncompared("").await.is_empty(), "it was compared");
    assert!(!store.note_model_files("none", &models).await.unwrap());
    let first = FailoverEventRow {
        model_files: Some(models),
        ..first
    };
    assert_eq!(store.failover_event("01A").await.unwrap(), Some(first.clone()));
    for (id, w) in [("01B", "w2"), ("01C", "w1")] {
        store.insert_failover_event(&event(id, w)).await.unwrap();
    }
    assert_eq!(uncompared("").await, ["01B", "01C"]);
    assert_eq!(uncompared("01B").await, ["01C"]);
    let page = store.list_failover_events(None, None, 2).await.unwrap();
    let ids: Vec<_> = page.items.iter().map(|e| e.id.as_str()).collect();
    assert_eq!((ids, page.next.as_deref()), (vec!["01C", "01B"], Some("01B")));
    assert_eq!(
        store
            .list_failover_events(None, Some("01B"), 2)
            .await
            .unwrap()
            .items,
        [first]
    );
    assert_eq!(
        store
            .list_failover_events(Some("w1"), None, 9)
            .await
            .unwrap()
            .items
            .len(),
        2
    );
    let failed = FailoverEventRow {
        success: false,
        ..event("01D", "w2")
    };
    store.insert_failover_event(&failed).await.unwrap();
    assert_eq!(uncompared("").await, ["01B", "01C"]);
}

pub async fn reopening_keeps_everything(fixture: Fixture) {
    let store = fixture.open().await;
    let w = workspace(&store, "w").await;
    let fence = living_on(&store, "i", &w).await;
    let workflow = claimed(&store, "f", Kind::Failover, &w).await;
    let before = (
        store.workspace(&w.id).await.unwrap(),
        store.instance("i").await.unwrap(),
        store.workflow("f").await.unwrap(),
    );
    store.close().await;
    assert!(
        store.workspace(&w.id).await.is_err(),
        "a closed store answers nothing"
    );

    let store = fixture.open().await;
    let after = (
        store.workspace(&w.id).await.unwrap(),
        store.instance("i").await.unwrap(),
        store.workflow("f").await.unwrap(),
    );
    assert_eq!(after, before);
    assert_eq!((after.0.unwrap().fence, after.2), (fence, Some(workflow)));
}

pub async fn sixteen_writers_never_see_a_lock(fixture: Fixture) {
    let store = fixture.open().await;
    let w = workspace(&store, "w").await;
    claimed(&store, "f", Kind::Failover, &w).await;
    let mut writers = Vec::new();
    for n in 0..16 {
        // Four processes with four writers each.
        let (store, id) = (
            if n % 4 == 0 {
                fixture.open().await
            } else {
                store.clone()
            },
            w.id.clone(),
        );
        writers.push(tokio::spawn(async move {
            for i in 0..15 {
                // A transaction that reads before it writes, a single write, and a read.
                store.append_workflow_log("f", &format!("{n}-{i}")).await.unwrap();
                store.meta_set(&format!("k{n}"), &i.to_string()).await.unwrap();
                store
                    .set_workspace_state(&id, WorkspaceState::Running, Some("x"))
                    .await
                    .unwrap();
                assert_eq!(store.meta(&format!("k{n}")).await.unwrap(), Some(i.to_string()));
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(store.workflow("f").await.unwrap().unwrap().log.len(), 100);
}
