use crate::fixture::{Fixture, LEASE, at, claimed, intent, living_on, new_workflow, offer, workspace};
use dumont_core::workflow::{Kind, Status, Step};
use dumont_store::{
    Advance, Effect, Error, Finish, InstanceState, NewInstance, NewWorkflow, Store, WorkflowRow,
    WorkspaceState,
};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Duration;

const SHORT: Duration = Duration::from_millis(30);

fn step<'a>(
    w: &'a WorkflowRow,
    from: Step,
    to: Step,
    state: &'a Value,
    effects: &'a [Effect],
) -> Advance<'a> {
    Advance {
        id: &w.id,
        fence: w.fence,
        from,
        to,
        state,
        effects,
    }
}

fn finish<'a>(w: &'a WorkflowRow, status: Status, effects: &'a [Effect]) -> Finish<'a> {
    Finish {
        id: &w.id,
        fence: w.fence,
        status,
        error: None,
        result: None,
        effects,
    }
}

async fn outlive(lease: Duration) {
    tokio::time::sleep(lease + Duration::from_millis(20)).await;
}

pub async fn each_is_claimed_once(fixture: Fixture) {
    let store = fixture.open().await;
    for i in 0..100 {
        let w = workspace(&store, &format!("w{i}")).await;
        store
            .start_workflow(&new_workflow(&format!("f{i}"), Kind::Failover, &w), at(i))
            .await
            .unwrap();
    }
    let mut claimers = Vec::new();
    for n in 0..8 {
        // Every second claimer is another process.
        let store = if n % 2 == 0 {
            store.clone()
        } else {
            fixture.open().await
        };
        claimers.push(tokio::spawn(async move {
            let mut mine = Vec::new();
            while let Some(w) = store
                .claim_next_workflow(&format!("owner-{n}"), LEASE)
                .await
                .unwrap()
            {
                assert_eq!((w.fence, w.owner), (1, Some(format!("owner-{n}"))));
                mine.push(w.id);
            }
            mine
        }));
    }
    let mut times: HashMap<String, u32> = HashMap::new();
    for claimer in claimers {
        for id in claimer.await.unwrap() {
            *times.entry(id).or_default() += 1;
        }
    }
    assert_eq!(times.len(), 100);
    assert!(times.values().all(|n| *n == 1), "{times:?}");
}

pub async fn an_expired_lease_gives_a_higher_fence(fixture: Fixture) {
    let store = fixture.open().await;
    let w = workspace(&store, "w").await;
    store
        .start_workflow(&new_workflow("f", Kind::Failover, &w), at(1))
        .await
        .unwrap();
    let first = store
        .claim_next_workflow("a", SHORT)
        .await
        .unwrap()
        .expect("it is free");
    outlive(SHORT).await;
    let heartbeat = store.heartbeat_workflow("f", first.fence, LEASE).await;
    assert!(
        matches!(heartbeat, Err(Error::Stale { .. })),
        "an expired lease is not extended"
    );

    let second = store
        .claim_next_workflow("b", LEASE)
        .await
        .unwrap()
        .expect("its lease has ended");
    assert_eq!((first.fence, second.fence), (1, 2));
    assert!(store.claim_next_workflow("c", LEASE).await.unwrap().is_none());
    assert!(matches!(
        store.claim_workflow("f", "c", LEASE).await,
        Err(Error::Stale { .. })
    ));
    store.heartbeat_workflow("f", second.fence, LEASE).await.unwrap();
    store.release_workflow("f", second.fence).await.unwrap();
    let third = store
        .claim_next_workflow("c", LEASE)
        .await
        .unwrap()
        .expect("it was given back");
    assert_eq!(third.fence, 3);

    let end = third.lease_until.expect("a claim has a lease");
    let ahead = end.millis_since(store.database_time().await.unwrap());
    assert!((50_000..=60_000).contains(&ahead), "the lease ends in {ahead} ms");
}

pub async fn a_stale_owner_commits_nothing(fixture: Fixture) {
    let store = fixture.open().await;
    let w = workspace(&store, "w").await;
    store
        .start_workflow(&new_workflow("f", Kind::Failover, &w), at(1))
        .await
        .unwrap();
    let old = store.claim_workflow("f", "a", SHORT).await.unwrap();
    outlive(SHORT).await;
    let new = store.claim_workflow("f", "b", LEASE).await.unwrap();

    let state = json!({"by": "a"});
    let stale = |r: Result<(), Error>| assert!(matches!(r, Err(Error::Stale { .. })), "{r:?}");
    let effects = [Effect::BumpFence];
    stale(
        store
            .advance_workflow(step(&old, Step::Detect, Step::Search, &state, &effects), at(2))
            .await,
    );
    stale(
        store
            .save_workflow_state("f", old.fence, Step::Detect, &state, at(2))
            .await,
    );
    stale(
        store
            .finish_workflow(finish(&old, Status::Failed, &effects), at(2))
            .await,
    );
    stale(store.heartbeat_workflow("f", old.fence, LEASE).await);
    stale(store.release_workflow("f", old.fence).await);
    let rent = NewInstance {
        key: "i".into(),
        workspace_id: w.id.clone(),
        workflow: Some(("f".into(), old.fence)),
        label: "dumont/c/w/i".into(),
        lease: None,
        offer: offer(1),
    };
    stale(store.insert_intent(&rent, at(2)).await.map(drop));
    assert_eq!(store.instance("i").await.unwrap(), None);
    assert_eq!(store.workflow("f").await.unwrap(), Some(new.clone()));
    assert_eq!(store.workspace(&w.id).await.unwrap().unwrap().fence, w.fence);

    let rent = NewInstance {
        workflow: Some(("f".into(), new.fence)),
        ..rent
    };
    store.insert_intent(&rent, at(2)).await.unwrap();
    // Under the right fence, but from a step it has left.
    store
        .advance_workflow(step(&new, Step::Detect, Step::Search, &state, &[]), at(2))
        .await
        .unwrap();
    stale(
        store
            .advance_workflow(step(&new, Step::Detect, Step::Race, &state, &[]), at(3))
            .await,
    );
}

pub async fn one_runs_per_workspace(fixture: Fixture) {
    let store = fixture.open().await;
    let w = workspace(&store, "w").await;
    let mut starts = Vec::new();
    for n in 0..8 {
        let (store, new) = (
            fixture.open().await,
            new_workflow(&format!("f{n}"), Kind::Deploy, &w),
        );
        starts.push(tokio::spawn(
            async move { store.start_workflow(&new, at(1)).await },
        ));
    }
    let (mut won, mut lost) = (Vec::new(), Vec::new());
    for start in starts {
        match start.await.unwrap() {
            Ok(started) => won.push(started.workflow.id),
            Err(Error::Conflict { id, .. }) => lost.push(id),
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!((won.len(), lost.len()), (1, 7));
    assert!(
        lost.iter().all(|id| *id == won[0]),
        "the conflict names the one that runs"
    );
    assert_eq!(store.running_workflow(&w.id).await.unwrap().unwrap().id, won[0]);

    // The same start again is no second one, before and after its end.
    let again = new_workflow(&won[0], Kind::Deploy, &w);
    assert_eq!(
        store.start_workflow(&again, at(2)).await.unwrap().workflow.id,
        won[0]
    );
    let running = store.claim_workflow(&won[0], "a", LEASE).await.unwrap();
    store
        .finish_workflow(finish(&running, Status::Failed, &[]), at(3))
        .await
        .unwrap();
    assert_eq!(
        store.start_workflow(&again, at(4)).await.unwrap().workflow.status,
        Status::Failed
    );
    store
        .start_workflow(&new_workflow("next", Kind::Deploy, &w), at(5))
        .await
        .unwrap();
    assert_eq!(
        store.list_workflows(&w.id, None, 10).await.unwrap().items.len(),
        2
    );
}

/// Who decided to move it looked a while ago; meanwhile it lives elsewhere.
pub async fn work_for_a_machine_it_has_left_is_refused(fixture: Fixture) {
    let store = fixture.open().await;
    let w = workspace(&store, "w").await;
    let late = NewWorkflow {
        expects_instance: Some("gone".into()),
        ..new_workflow("f", Kind::Failover, &w)
    };
    let refused = store.start_workflow(&late, at(20)).await;
    assert!(
        matches!(
            refused,
            Err(Error::Stale {
                what: "workspace",
                ..
            })
        ),
        "{refused:?}"
    );
    assert!(store.running_workflow(&w.id).await.unwrap().is_none());
}

pub async fn a_failover_does_not_wait_for_a_snapshot(fixture: Fixture) {
    let store = fixture.open().await;
    let w = workspace(&store, "w").await;
    let snapshot = claimed(&store, "s", Kind::Snapshot, &w).await;
    let failover = NewWorkflow {
        preempt: vec![Kind::Snapshot, Kind::Restore],
        preempt_error: Some(json!({"code": "machine_lost"})),
        effects: vec![
            Effect::State {
                state: WorkspaceState::FailingOver,
                message: None,
            },
            Effect::BumpFence,
        ],
        ..new_workflow("f", Kind::Failover, &w)
    };
    let started = store.start_workflow(&failover, at(20)).await.unwrap();
    assert_eq!(started.preempted, ["s"]);
    let gone = store.workflow("s").await.unwrap().unwrap();
    assert_eq!(
        (gone.status, gone.error),
        (Status::Failed, Some(json!({"code": "machine_lost"})))
    );
    let late = store
        .advance_workflow(
            step(&snapshot, Step::Capture, Step::Commit, &json!({}), &[]),
            at(21),
        )
        .await;
    assert!(matches!(late, Err(Error::Stale { .. })));
    // It has failed, but not by its owner's word.
    let end = store
        .finish_workflow(finish(&snapshot, Status::Failed, &[]), at(21))
        .await;
    assert!(matches!(end, Err(Error::Stale { .. })));
    let row = store.workspace(&w.id).await.unwrap().unwrap();
    assert_eq!((row.state, row.fence), (WorkspaceState::FailingOver, w.fence + 1));

    // A snapshot does not push a failover aside, and its conflict leaves no trace.
    let refused = store
        .start_workflow(&new_workflow("s2", Kind::Snapshot, &w), at(22))
        .await;
    assert!(matches!(refused, Err(Error::Conflict { id, .. }) if id == "f"));
    assert_eq!(store.workflow("s2").await.unwrap(), None);
}

pub async fn a_step_and_its_effects_are_one(fixture: Fixture) {
    let store = fixture.open().await;
    let w = workspace(&store, "w").await;
    living_on(&store, "old", &w).await;
    let before = store.workspace(&w.id).await.unwrap().unwrap();
    let running = claimed(&store, "f", Kind::Failover, &w).await;

    intent(&store, "dying", &w).await;
    store
        .set_instance_state("dying", InstanceState::Destroying, at(30))
        .await
        .unwrap();
    let effects = [
        Effect::State {
            state: WorkspaceState::Running,
            message: None,
        },
        Effect::Attach {
            instance_key: "dying".into(),
        },
    ];
    let state = json!({"n": 1});
    let refused = store
        .advance_workflow(
            step(&running, Step::Detect, Step::Search, &state, &effects),
            at(31),
        )
        .await;
    assert!(matches!(refused, Err(Error::Stale { what: "instance", .. })));
    assert_eq!(
        store.workflow("f").await.unwrap().unwrap().step,
        Step::Detect,
        "nothing of the step is there"
    );
    assert_eq!(store.workspace(&w.id).await.unwrap().unwrap(), before);

    intent(&store, "new", &w).await;
    store.set_instance_rented("new", "90002", at(32)).await.unwrap();
    let effects = [Effect::Attach {
        instance_key: "new".into(),
    }];
    store
        .advance_workflow(
            step(&running, Step::Detect, Step::Search, &state, &effects),
            at(33),
        )
        .await
        .unwrap();
    let after = store.workspace(&w.id).await.unwrap().unwrap();
    assert_eq!(
        (after.instance_key.as_deref(), after.fence),
        (Some("new"), before.fence + 1)
    );
    assert_eq!(
        store.instance("new").await.unwrap().unwrap().state,
        InstanceState::Owned
    );
    let row = store.workflow("f").await.unwrap().unwrap();
    assert_eq!((row.step, row.state, row.steps.len()), (Step::Search, state, 1));
    assert_eq!(
        (row.steps[0].step, row.steps[0].elapsed_ms),
        (Step::Detect, 23_000)
    );
}

pub async fn a_repeated_commit_changes_nothing(fixture: Fixture) {
    let store = fixture.open().await;
    let w = workspace(&store, "w").await;
    let running = claimed(&store, "f", Kind::Snapshot, &w).await;
    let state = json!({});
    let effects = [Effect::BumpFence];
    let commit = || step(&running, Step::Capture, Step::Commit, &state, &effects);
    store.advance_workflow(commit(), at(11)).await.unwrap();
    let once = all(&store, &w.id).await;
    store.advance_workflow(commit(), at(12)).await.unwrap();
    assert_eq!(all(&store, &w.id).await, once);

    let effects = [Effect::State {
        state: WorkspaceState::Running,
        message: Some("well".into()),
    }];
    let result = json!({"snapshot_id": "base-1-2"});
    let end = || Finish {
        result: Some(&result),
        ..finish(&running, Status::Done, &effects)
    };
    store.finish_workflow(end(), at(13)).await.unwrap();
    let once = all(&store, &w.id).await;
    store.finish_workflow(end(), at(14)).await.unwrap();
    assert_eq!(all(&store, &w.id).await, once);
    let row = &once.1[0];
    assert_eq!(
        (row.status, row.step, row.finished_at),
        (Status::Done, Step::Done, Some(at(13)))
    );
    assert_eq!((row.owner.as_deref(), row.result.as_ref()), (None, Some(&result)));
    let other = store
        .finish_workflow(finish(&running, Status::Failed, &[]), at(15))
        .await;
    assert!(matches!(other, Err(Error::Stale { .. })), "an end is an end");
}

async fn all(store: &Store, id: &str) -> (dumont_store::WorkspaceRow, Vec<WorkflowRow>) {
    let workflows = store.list_workflows(id, None, 10).await.unwrap().items;
    (store.workspace(id).await.unwrap().unwrap(), workflows)
}

pub async fn the_log_is_bounded(fixture: Fixture) {
    let store = fixture.open().await;
    let w = workspace(&store, "w").await;
    let running = claimed(&store, "f", Kind::Deploy, &w).await;
    for i in 0..103 {
        store
            .append_workflow_log("f", &format!("line {i}"))
            .await
            .unwrap();
    }
    let progress = dumont_core::snapshot::Progress {
        done_bytes: 1,
        total_bytes: 2,
        ..Default::default()
    };
    store.set_workflow_progress("f", Some(&progress)).await.unwrap();
    let row = store.workflow("f").await.unwrap().unwrap();
    assert_eq!(
        (row.log.len(), row.log[0].as_str(), row.log[99].as_str()),
        (100, "line 3", "line 102")
    );
    assert_eq!(row.progress, Some(progress));
    store
        .advance_workflow(step(&running, Step::Search, Step::Race, &json!({}), &[]), at(12))
        .await
        .unwrap();
    let row = store.workflow("f").await.unwrap().unwrap();
    assert_eq!(
        (row.log.len(), row.progress),
        (100, None),
        "progress is of a step"
    );
}
