use crate::fixture::{Fixture, at, claimed, living_on, new_workflow, workspace};
use dumont_core::workflow::{Kind, Status};
use dumont_store::{Effect, Finish, Store, WorkspaceState};
use serde_json::json;

async fn idle(store: &Store) -> Vec<String> {
    let page = store.idle_workspaces(None, 100).await.unwrap();
    page.items.into_iter().map(|w| w.name.to_string()).collect()
}

pub async fn only_what_runs_and_rests_is_idle(fixture: Fixture) {
    let store = fixture.open().await;
    for name in ["a", "b", "draft"] {
        let w = workspace(&store, name).await;
        if name != "draft" {
            living_on(&store, &format!("i-{name}"), &w).await;
            let running = WorkspaceState::Running;
            store.set_workspace_state(&w.id, running, None).await.unwrap();
        }
    }
    assert_eq!(idle(&store).await, ["a", "b"]);
    let first = store.idle_workspaces(None, 1).await.unwrap();
    assert_eq!(first.next.as_deref(), Some("a"));
    let a = &first.items[0];
    assert_eq!((a.instance_key.as_str(), a.lives_since), ("i-a", at(22)));
    assert_eq!((a.taken_at, a.failed_at), (None, None));
    assert_eq!(store.snapshot_failure("id-a").await.unwrap(), None);

    // Nothing else may work on it.
    let row = store.workspace("id-a").await.unwrap().unwrap();
    let run = claimed(&store, "01", Kind::Snapshot, &row).await;
    assert_eq!(idle(&store).await, ["b"]);
    assert_eq!(store.running_snapshots().await.unwrap(), 1);
    let error = json!({ "code": "machine_lost" });
    let end = |status, effects| Finish {
        id: &run.id,
        fence: run.fence,
        status,
        error: Some(&error),
        result: None,
        effects,
    };
    store
        .finish_workflow(end(Status::Failed, &[]), at(50))
        .await
        .unwrap();
    assert_eq!(store.running_snapshots().await.unwrap(), 0);
    let page = store.idle_workspaces(None, 1).await.unwrap();
    assert_eq!(page.items[0].failed_at, Some(at(50)));
    let failure = store.snapshot_failure("id-a").await.unwrap();
    assert_eq!(failure, Some((at(50), error.clone())));

    // One that succeeds is the newest, whatever failed before.
    let run = claimed(&store, "02", Kind::Snapshot, &row).await;
    let done = Finish {
        id: &run.id,
        fence: run.fence,
        status: Status::Done,
        error: None,
        result: None,
        effects: &[],
    };
    store.finish_workflow(done, at(60)).await.unwrap();
    let page = store.idle_workspaces(None, 1).await.unwrap();
    assert_eq!(page.items[0].failed_at, None);
    assert_eq!(store.snapshot_failure("id-a").await.unwrap(), None);

    // A mixture is not worth one.
    let mut marked = new_workflow("03", Kind::Restore, &row);
    marked.effects = vec![Effect::HalfRestored {
        snapshot_id: Some("base-1".into()),
    }];
    store.start_workflow(&marked, at(70)).await.unwrap();
    let run = store
        .claim_workflow("03", "owner", crate::fixture::LEASE)
        .await
        .unwrap();
    let gone = Finish {
        id: "03",
        fence: run.fence,
        ..end(Status::Failed, &[])
    };
    store.finish_workflow(gone, at(80)).await.unwrap();
    assert_eq!(idle(&store).await, ["b"]);
}
