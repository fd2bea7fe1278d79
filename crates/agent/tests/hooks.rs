//! The workspace's commands around a snapshot.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

mod common;

use common::store::{Fault, Store};
use common::{Agent, Machine, PATIENCE, eventually};
use dumont_core::snapshot::SnapshotReport;
use dumont_wire::agent::{Event, Failure, FailureCode, Hooks, Outcome, Request, SnapshotRequest};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

fn request(path: &Path, unix: u64, before: &str, after: &str) -> Request {
    Request::Snapshot(SnapshotRequest {
        model_files: Vec::new(),
        key: None,
        path: path.to_str().unwrap().into(),
        stamp: format!("4711-{unix}"),
        parent: None,
        full: false,
        hooks: Some(Hooks {
            before: Some(before.into()),
            after: Some(after.into()),
            timeout_ms: 60_000,
        }),
    })
}

fn scene() -> (Machine, Arc<Store>, Agent) {
    let (machine, store) = (Machine::new(), Store::start());
    fs::write(machine.workspace().join("file"), "content").unwrap();
    let agent = Agent::ready(machine.path()).with_store(&store);
    (machine, store, agent)
}

fn ask(agent: &mut Agent, request: Request) -> Result<SnapshotReport, Failure> {
    agent.ask(request).map(|outcome| match outcome {
        Outcome::Snapshot(report) => *report,
        other => panic!("{other:?}"),
    })
}

#[test]
fn files_are_read_between_the_two_commands() {
    let (machine, _store, mut agent) = scene();
    let at = |name: &str| machine.workspace().join(name);
    let before = "test ! -e after && echo flushed > flushed";
    let report = ask(
        &mut agent,
        request(&machine.workspace(), 1, before, "touch after"),
    )
    .unwrap();
    assert_eq!(report.files_total, 2, "file and flushed, not yet after");
    assert!(at("after").exists());
    // An `after` that fails is a warning: the snapshot is complete.
    fs::remove_file(at("after")).unwrap();
    let report = ask(
        &mut agent,
        request(&machine.workspace(), 2, "true", "echo so; exit 3"),
    );
    assert_eq!(report.unwrap().files_total, 2);
    let warned = |line: &str| line == "Warning: the command after the snapshot exits with 3: so";
    let mut seen = agent.seen.iter();
    assert!(seen.any(|f| matches!(&f.body, Event::Log { line } if warned(line))));
}

#[test]
fn without_quiet_there_is_no_snapshot_but_the_pause_ends() {
    let (machine, store, mut agent) = scene();
    let request = request(
        &machine.workspace(),
        1,
        "touch paused; echo no such trainer; exit 1",
        "rm paused",
    );
    let failure = ask(&mut agent, request).unwrap_err();
    assert_eq!(failure.code, FailureCode::Hook);
    assert!(
        failure.message.contains("exits with 1: no such trainer"),
        "{failure}"
    );
    assert!(!machine.workspace().join("paused").exists());
    assert_eq!(store.keys(), Vec::<String>::new());
}

/// An agent that died in the middle of a snapshot, after `touch paused` and before `after`.
fn died_in_a_pause(machine: &Machine, store: &Store, mut agent: Agent, after: &str) {
    store.fail_next(&[Fault::Stall; 16]);
    agent.begin(request(&machine.workspace(), 1, "touch paused", after));
    while store.requests.lock().unwrap().is_empty() {
        let _ = agent.frame_within(Duration::from_millis(20));
    }
    agent.child.kill().unwrap();
    agent.child.wait().unwrap();
    store.faults.lock().unwrap().clear();
    assert!(machine.workspace().join("paused").exists());
}

#[test]
fn a_pause_whose_agent_died_is_ended_by_the_next_session() {
    let (machine, store, agent) = scene();
    died_in_a_pause(&machine, &store, agent, "rm paused");
    let _next = Agent::ready(machine.path());
    assert!(eventually(PATIENCE, || !machine
        .workspace()
        .join("paused")
        .exists()));
}

/// A trainer that takes its time to start again is no reason to refuse the next snapshot.
#[test]
fn a_snapshot_waits_for_the_end_of_the_pause_that_a_dead_agent_left() {
    let (machine, store, agent) = scene();
    died_in_a_pause(&machine, &store, agent, "sleep 12; rm paused");
    let mut next = Agent::ready(machine.path()).with_store(&store);
    // The session's own end of the pause goes first.
    std::thread::sleep(Duration::from_millis(500));
    let before = "test ! -e paused";
    let report = ask(&mut next, request(&machine.workspace(), 2, before, "true"));
    assert_eq!(report.unwrap().files_total, 1);
}
