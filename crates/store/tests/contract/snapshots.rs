use crate::fixture::{Fixture, at, intent, living_on, new_workflow, workspace};
use dumont_core::id::Digest;
use dumont_core::snapshot::{ObjectRef, SnapshotHead, SnapshotType};
use dumont_core::time::Timestamp;
use dumont_core::workflow::Kind;
use dumont_store::{Effect, Error, InstanceState, NewSnapshot, NewWorkflow, SnapshotState, WorkspaceRow};

fn object(n: u8) -> ObjectRef {
    ObjectRef {
        key: format!("w/packs/{n}"),
        size: u64::from(n),
        digest: Digest([n; 32]),
        version: None,
    }
}

fn snapshot(id: &str, w: &WorkspaceRow, instance: Option<&str>, created_at: Timestamp) -> NewSnapshot {
    let head = SnapshotHead {
        snapshot_id: id.into(),
        root: Digest([9; 32]),
        indexes: vec![object(1)],
        files: 1_000,
        bytes: 1 << 40,
    };
    NewSnapshot {
        id: id.into(),
        workspace_id: w.id.clone(),
        instance_key: instance.map(str::to_owned),
        snapshot_type: SnapshotType::Incremental,
        base_snapshot_id: Some("base-1-1".into()),
        parent_id: None,
        head,
        packs: vec![object(2), object(3)],
        metadata_key: Some("w/metadata/1".into()),
        files_changed: 3,
        uploaded_bytes: 77,
        full_because: None,
        torn: vec!["log.txt".into()],
        created_at,
    }
}

pub async fn nothing_is_visible_before_its_commit(fixture: Fixture) {
    let store = fixture.open().await;
    let w = workspace(&store, "w").await;
    let fence = living_on(&store, "i", &w).await;
    let new = snapshot("incr-1-2", &w, Some("i"), at(50));
    store.insert_pending_snapshot(&new).await.unwrap();
    assert_eq!(store.latest_snapshot(&w.id).await.unwrap(), None);
    assert!(
        store
            .list_snapshots(&w.id, None, 10)
            .await
            .unwrap()
            .items
            .is_empty()
    );
    assert_eq!(store.pending_snapshots(&w.id).await.unwrap().len(), 1);

    let row = store
        .commit_snapshot(&new.id, fence, 1_234, at(51))
        .await
        .unwrap();
    assert_eq!(
        (row.state, row.committed_at, row.elapsed_ms),
        (SnapshotState::Visible, Some(at(51)), 1_234)
    );
    assert_eq!(
        (row.head.clone(), row.packs.clone(), row.root),
        (new.head, new.packs, Digest([9; 32]))
    );
    assert_eq!(
        (row.files_total, row.files_changed, row.total_bytes),
        (1_000, 3, 1 << 40)
    );
    assert_eq!(row.torn, ["log.txt"]);
    assert_eq!(store.latest_snapshot(&w.id).await.unwrap(), Some(row.clone()));
    let instance = store.instance("i").await.unwrap().unwrap();
    assert_eq!(instance.last_snapshot_id.as_deref(), Some("incr-1-2"));
    assert!(
        !store.delete_pending_snapshot("incr-1-2").await.unwrap(),
        "it is not pending any more"
    );
    assert!(matches!(
        store.commit_snapshot("none", 0, 0, at(1)).await,
        Err(Error::NotFound { .. })
    ));
}

pub async fn an_old_fence_commits_nothing(fixture: Fixture) {
    let store = fixture.open().await;
    let w = workspace(&store, "w").await;
    let old = living_on(&store, "old", &w).await;
    store
        .insert_pending_snapshot(&snapshot("incr-1-1", &w, Some("old"), at(40)))
        .await
        .unwrap();
    store.commit_snapshot("incr-1-1", old, 1, at(41)).await.unwrap();
    store
        .insert_pending_snapshot(&snapshot("incr-1-2", &w, Some("old"), at(50)))
        .await
        .unwrap();

    // A failover begins: the instance is still the workspace's, and already shut out.
    let failover = NewWorkflow {
        effects: vec![Effect::BumpFence],
        ..new_workflow("f", Kind::Failover, &w)
    };
    store.start_workflow(&failover, at(51)).await.unwrap();
    let late = store.commit_snapshot("incr-1-2", old, 1, at(51)).await;
    assert!(matches!(late, Err(Error::Stale { .. })), "{late:?}");

    // A failover switches between the upload and the commit.
    intent(&store, "new", &w).await;
    store
        .set_instance_state("new", InstanceState::Ready, at(51))
        .await
        .unwrap();
    let new = store
        .attach_instance(&w.id, "new", old + 1, at(52))
        .await
        .unwrap();
    assert_eq!(new, old + 2);

    for fence in [old, old + 1, new] {
        let late = store.commit_snapshot("incr-1-2", fence, 1, at(53)).await;
        assert!(
            matches!(late, Err(Error::Stale { .. })),
            "the old instance, with fence {fence}"
        );
    }
    assert_eq!(
        store.latest_snapshot(&w.id).await.unwrap().unwrap().id,
        "incr-1-1"
    );
    let instance = store.instance("old").await.unwrap().unwrap();
    assert_eq!(instance.last_snapshot_id.as_deref(), Some("incr-1-1"));
    // A commit whose reply was lost is still good, though the fence has moved on.
    store.commit_snapshot("incr-1-1", old, 1, at(54)).await.unwrap();
    assert!(store.delete_pending_snapshot("incr-1-2").await.unwrap());

    store
        .insert_pending_snapshot(&snapshot("incr-2-3", &w, Some("new"), at(60)))
        .await
        .unwrap();
    store.mark_workspace_deleted(&w.id, at(61)).await.unwrap();
    let late = store.commit_snapshot("incr-2-3", new, 1, at(62)).await;
    assert!(
        matches!(late, Err(Error::Stale { .. })),
        "the workspace is deleted"
    );
}

pub async fn an_import_into_a_draft_has_no_instance(fixture: Fixture) {
    let store = fixture.open().await;
    let w = workspace(&store, "w").await;
    store
        .insert_pending_snapshot(&snapshot("base-import-1", &w, None, at(5)))
        .await
        .unwrap();
    store
        .commit_snapshot("base-import-1", w.fence, 1, at(6))
        .await
        .unwrap();
    assert_eq!(
        store.latest_snapshot(&w.id).await.unwrap().unwrap().instance_key,
        None
    );
}

pub async fn newest_first_in_pages(fixture: Fixture) {
    let store = fixture.open().await;
    let w = workspace(&store, "w").await;
    for n in 0..5 {
        let id = format!("base-x-{n}");
        // Two of the same moment, so that a page can end between them.
        store
            .insert_pending_snapshot(&snapshot(&id, &w, None, at(100 + n / 2)))
            .await
            .unwrap();
        store.commit_snapshot(&id, w.fence, 1, at(200)).await.unwrap();
    }
    let (mut seen, mut after) = (Vec::new(), None::<String>);
    loop {
        let page = store.list_snapshots(&w.id, after.as_deref(), 2).await.unwrap();
        seen.extend(page.items.into_iter().map(|s| s.id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["base-x-4", "base-x-3", "base-x-2", "base-x-1", "base-x-0"]);
    assert!(
        store
            .list_snapshots(&w.id, Some("no such"), 2)
            .await
            .unwrap()
            .items
            .is_empty()
    );
}

pub async fn a_visible_one_is_never_replaced(fixture: Fixture) {
    let store = fixture.open().await;
    let w = workspace(&store, "w").await;
    let mut new = snapshot("base-x-1", &w, None, at(5));
    store.insert_pending_snapshot(&new).await.unwrap();
    new.uploaded_bytes = 99;
    store.insert_pending_snapshot(&new).await.unwrap();
    let row = store
        .commit_snapshot("base-x-1", w.fence, 1, at(6))
        .await
        .unwrap();
    assert_eq!(row.uploaded_bytes, 99, "a repeat replaces what is pending");
    new.uploaded_bytes = 1;
    assert!(matches!(
        store.insert_pending_snapshot(&new).await,
        Err(Error::Conflict { .. })
    ));
    assert_eq!(store.snapshot("base-x-1").await.unwrap(), Some(row));

    let other = workspace(&store, "other").await;
    store
        .insert_pending_snapshot(&snapshot("base-y-1", &w, None, at(7)))
        .await
        .unwrap();
    let stolen = store
        .insert_pending_snapshot(&snapshot("base-y-1", &other, None, at(8)))
        .await;
    assert!(
        matches!(stolen, Err(Error::Conflict { .. })),
        "another workspace's id"
    );
}

pub async fn what_is_needed_or_pinned_never_expires(fixture: Fixture) {
    let store = fixture.open().await;
    let w = workspace(&store, "w").await;
    let fence = living_on(&store, "i", &w).await;
    for n in 1..=3 {
        let id = format!("incr-1-{n}");
        let new = snapshot(&id, &w, Some("i"), at(50 + n));
        store.insert_pending_snapshot(&new).await.unwrap();
        assert!(!store.expire_snapshot(&id).await.unwrap(), "it is pending");
        store.commit_snapshot(&id, fence, 1, at(60)).await.unwrap();
    }
    assert!(store.pin_snapshot("incr-1-1", true).await.unwrap());
    assert!(store.snapshot("incr-1-1").await.unwrap().unwrap().pinned);
    assert!(!store.pin_snapshot("no such", true).await.unwrap());
    assert!(!store.expire_snapshot("incr-1-1").await.unwrap(), "it is pinned");
    assert!(
        !store.expire_snapshot("incr-1-3").await.unwrap(),
        "the machine builds on it"
    );
    assert!(store.expire_snapshot("incr-1-2").await.unwrap());
    assert!(!store.expire_snapshot("incr-1-2").await.unwrap(), "it is gone");
    assert!(store.pin_snapshot("incr-1-1", false).await.unwrap());

    // Whatever may be restoring it comes first.
    let failover = new_workflow("wf", Kind::Failover, &w);
    store.start_workflow(&failover, at(61)).await.unwrap();
    assert!(!store.expire_snapshot("incr-1-1").await.unwrap());
    let left = store.list_snapshots(&w.id, None, 10).await.unwrap().items;
    assert_eq!(left.len(), 2);
}

pub async fn a_head_is_replaced_only_by_who_has_seen_it(fixture: Fixture) {
    let store = fixture.open().await;
    let w = workspace(&store, "w").await;
    let new = snapshot("base-x-1", &w, None, at(5));
    let (old, mut better) = (new.head.clone(), new.head.clone());
    better.indexes = vec![object(7)];
    store.insert_pending_snapshot(&new).await.unwrap();
    let replace = |old, new| store.replace_snapshot_head("base-x-1", old, new);
    assert!(!replace(&old, &better).await.unwrap(), "it is pending");
    store
        .commit_snapshot("base-x-1", w.fence, 1, at(6))
        .await
        .unwrap();
    assert!(replace(&old, &better).await.unwrap());
    assert!(!replace(&old, &better).await.unwrap());
    assert_eq!(store.snapshot("base-x-1").await.unwrap().unwrap().head, better);
}
