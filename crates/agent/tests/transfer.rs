//! Snapshots and restores over real sockets, and everything that happens to transfers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::store::{Fault, Store};
use common::{Agent, Machine, PATIENCE, eventually};
use dumont_core::snapshot::{RestoreReport, SnapshotHead, SnapshotReport, Verdict};
use dumont_wire::agent::{Event, Failure, FailureCode, Outcome, Request, RestoreRequest, SnapshotRequest};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Bytes that no compressor can do anything about.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut out);
    out
}

fn fill(root: &Path) {
    fs::create_dir_all(root.join("deep/er/empty")).unwrap();
    fs::write(root.join("weights.bin"), noise(1, 5_000_000)).unwrap();
    fs::write(root.join("deep/readme"), "words, words, words\n".repeat(1000)).unwrap();
    fs::write(root.join("deep/er/odd \u{fc} name\n"), "").unwrap();
    fs::hard_link(root.join("deep/readme"), root.join("deep/again")).unwrap();
    symlink("../weights.bin", root.join("deep/link")).unwrap();
    fs::set_permissions(root.join("deep/readme"), fs::Permissions::from_mode(0o750)).unwrap();
}

/// Everything there is to compare, by path.
fn tree(root: &Path) -> BTreeMap<String, String> {
    fn walk(root: &Path, dir: &Path, out: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let m = fs::symlink_metadata(&path).unwrap();
            let content = if m.is_file() {
                blake3::hash(&fs::read(&path).unwrap()).to_hex().to_string()
            } else {
                fs::read_link(&path)
                    .map(|t| t.display().to_string())
                    .unwrap_or_default()
            };
            let links = if m.is_file() { m.nlink() } else { 0 };
            let what = format!(
                "{:o} {}.{} {links} {content}",
                m.mode(),
                m.mtime(),
                m.mtime_nsec()
            );
            out.insert(path.strip_prefix(root).unwrap().display().to_string(), what);
            if m.is_dir() {
                walk(root, &path, out);
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(root, root, &mut out);
    out
}

fn request(path: &Path, unix: u64, parent: Option<&str>) -> Request {
    Request::Snapshot(SnapshotRequest {
        model_files: Vec::new(),
        key: None,
        path: path.to_str().unwrap().into(),
        stamp: format!("4711-{unix}"),
        parent: parent.map(Into::into),
        full: false,
        hooks: None,
    })
}

fn snapshot(
    agent: &mut Agent,
    path: &Path,
    unix: u64,
    parent: Option<&str>,
) -> Result<SnapshotReport, Failure> {
    agent
        .ask(request(path, unix, parent))
        .map(|outcome| match outcome {
            Outcome::Snapshot(report) => *report,
            other => panic!("{other:?}"),
        })
}

fn head_of(report: &SnapshotReport) -> SnapshotHead {
    SnapshotHead {
        snapshot_id: report.snapshot_id.clone(),
        root: report.root,
        indexes: report.index.iter().cloned().collect(),
        files: report.files_total,
        bytes: report.total_bytes,
    }
}

fn restore_request(path: &Path, head: &SnapshotHead) -> Request {
    Request::Restore(RestoreRequest {
        ready_when: Vec::new(),
        started: false,
        include: Vec::new(),
        exclude: Vec::new(),
        key: None,
        path: path.to_str().unwrap().into(),
        head: head.clone(),
        delete: true,
        priority: Vec::new(),
    })
}

fn restore(agent: &mut Agent, path: &Path, head: &SnapshotHead) -> Result<RestoreReport, Failure> {
    agent
        .ask(restore_request(path, head))
        .map(|outcome| match outcome {
            Outcome::Restore(report) => *report,
            other => panic!("{other:?}"),
        })
}

/// A machine with a full workspace, its store, and an agent on it.
fn scene() -> (Machine, Arc<Store>, Agent) {
    let (machine, store) = (Machine::new(), Store::start());
    fill(&machine.workspace());
    let agent = Agent::ready(machine.path()).with_store(&store);
    (machine, store, agent)
}

#[test]
fn a_snapshot_comes_back_bit_for_bit_on_another_machine() {
    let (machine, store, mut agent) = scene();
    let report = snapshot(&mut agent, &machine.workspace(), 1, None).unwrap();
    assert_eq!(report.snapshot_id, "base-4711-1");
    assert!(
        report
            .packs
            .iter()
            .chain(&report.index)
            .all(|o| store.keys().contains(&o.key))
    );
    assert!(agent.seen.iter().any(|f| matches!(f.body, Event::Progress(_))));

    let other = Machine::new();
    let mut agent = Agent::ready(other.path()).with_store(&store);
    fs::write(other.workspace().join("left over"), "x").unwrap();
    let restored = restore(&mut agent, &other.workspace(), &head_of(&report)).unwrap();
    assert_eq!(restored.validation.validation, Verdict::Ok);
    assert_eq!(tree(&machine.workspace()), tree(&other.workspace()));
    // What a machine restored is what its next snapshot builds on.
    fs::write(other.workspace().join("deep/new"), "new").unwrap();
    let next = snapshot(&mut agent, &other.workspace(), 2, Some("base-4711-1")).unwrap();
    assert_eq!(
        (next.snapshot_id.as_str(), next.full_because),
        ("incr-4711-2", None)
    );
    assert_eq!(next.files_changed, 1);
    assert!(next.uploaded_bytes < 100_000, "{}", next.uploaded_bytes);
}

#[test]
fn a_store_in_trouble_costs_time_and_nothing_else() {
    let (machine, store, mut agent) = scene();
    store.fail_next(&[
        Fault::Status(503),
        Fault::CutLate,
        Fault::CutEarly,
        Fault::Status(500),
    ]);
    let report = snapshot(&mut agent, &machine.workspace(), 1, None).unwrap();
    assert!(store.faults.lock().unwrap().is_empty());
    let named = report.packs.len() + report.index.iter().len() + report.metadata.iter().len();
    assert_eq!(store.keys().len(), named, "an object was stored twice");

    let other = Machine::new();
    let mut agent = Agent::ready(other.path()).with_store(&store);
    store.fail_next(&[
        Fault::CutLate,
        Fault::Status(502),
        Fault::CutEarly,
        Fault::CutLate,
    ]);
    restore(&mut agent, &other.workspace(), &head_of(&report)).unwrap();
    assert_eq!(tree(&machine.workspace()), tree(&other.workspace()));
}

#[test]
fn later_is_not_no() {
    let (machine, store, mut agent) = scene();
    store.fail_next(&[Fault::Status(429), Fault::Status(504), Fault::Status(408)]);
    let report = snapshot(&mut agent, &machine.workspace(), 1, None).unwrap();
    let other = Machine::new();
    let mut agent = Agent::ready(other.path()).with_store(&store);
    store.fail_next(&[Fault::Status(408), Fault::Status(504), Fault::Status(429)]);
    restore(&mut agent, &other.workspace(), &head_of(&report)).unwrap();
    assert!(store.faults.lock().unwrap().is_empty());
    assert_eq!(tree(&machine.workspace()), tree(&other.workspace()));
    // What a store lacks it will lack the next time: asked once for each object under way.
    let mut agent = Agent::ready(other.path()).with_store(&store);
    store.requests.lock().unwrap().clear();
    store.fail_next(&[Fault::Status(501); 64]);
    let failure = restore(&mut agent, &other.path().join("new"), &head_of(&report)).unwrap_err();
    assert!(failure.message.contains("501"), "{failure}");
    assert_eq!(store.requests.lock().unwrap().len(), 1, "{:?}", store.requests);
}

#[test]
fn connections_are_used_again() {
    let (machine, store, mut agent) = scene();
    snapshot(&mut agent, &machine.workspace(), 1, None).unwrap();
    let (requests, connections) = (
        store.requests.lock().unwrap().len(),
        store.connections.load(Ordering::Relaxed),
    );
    assert!(
        requests >= 3 && connections < requests as u64,
        "{connections} for {requests}"
    );
}

#[test]
fn a_missing_object_is_named() {
    let (machine, store, mut agent) = scene();
    let report = snapshot(&mut agent, &machine.workspace(), 1, None).unwrap();
    let key = report.packs[0].key.clone();
    store.objects.lock().unwrap().remove(&key);
    let failure = restore(&mut agent, &machine.path().join("new"), &head_of(&report)).unwrap_err();
    assert_eq!(failure.code, FailureCode::ObjectMissing);
    assert!(failure.message.contains(&key), "{failure}");
}

#[test]
fn a_flipped_bit_is_found() {
    let (machine, store, mut agent) = scene();
    let report = snapshot(&mut agent, &machine.workspace(), 1, None).unwrap();
    let key = report.packs[0].key.clone();
    if let Some(pack) = store.objects.lock().unwrap().get_mut(&key) {
        let middle = pack.len() / 2;
        pack[middle] ^= 1;
    }
    let failure = restore(&mut agent, &machine.path().join("new"), &head_of(&report)).unwrap_err();
    assert_eq!(failure.code, FailureCode::Corrupt, "{failure}");
}

#[test]
fn a_url_that_expired_is_replaced_once() {
    let (machine, store, mut agent) = scene();
    store.fail_next(&[Fault::Status(403)]);
    let report = snapshot(&mut agent, &machine.workspace(), 1, None).unwrap();
    store.fail_next(&[Fault::Status(403)]);
    restore(&mut agent, &machine.path().join("new"), &head_of(&report)).unwrap();
    store.fail_next(&[Fault::Status(403); 64]);
    let failure = restore(&mut agent, &machine.path().join("new"), &head_of(&report)).unwrap_err();
    assert_eq!(failure.code, FailureCode::Transfer);
    assert!(failure.hint.contains("expired"), "{failure}");
}

#[test]
fn answers_that_will_not_change_are_not_asked_for_again() {
    let (machine, store, mut agent) = scene();
    for (status, word) in [(501, "501"), (507, "full"), (400, "400")] {
        store.fail_next(&[Fault::Status(status); 64]);
        store.requests.lock().unwrap().clear();
        let began = Instant::now();
        let failure = snapshot(&mut agent, &machine.workspace(), u64::from(status), None).unwrap_err();
        assert_eq!(failure.code, FailureCode::Transfer);
        assert!(failure.message.contains(word), "{failure}");
        assert!(store.requests.lock().unwrap().len() <= 3 && began.elapsed() < Duration::from_secs(10));
        store.faults.lock().unwrap().clear();
    }
}

/// A snapshot that waits for a store that says nothing.
fn stalled(store: &Store, agent: &mut Agent, path: &Path) -> u64 {
    store.fail_next(&[Fault::Stall; 16]);
    let id = agent.begin(request(path, 1, None));
    while store.requests.lock().unwrap().is_empty() {
        let _ = agent.frame_within(Duration::from_millis(20));
    }
    id
}

#[test]
fn the_end_of_input_ends_a_transfer_there_and_then() {
    let (machine, store, mut agent) = scene();
    stalled(&store, &mut agent, &machine.workspace());
    agent.hang_up();
    assert!(agent.ended_within(Duration::from_secs(2)));
}

#[test]
fn a_transfer_is_cancelled_while_the_store_is_silent() {
    let (machine, store, mut agent) = scene();
    let id = stalled(&store, &mut agent, &machine.workspace());
    assert_eq!(agent.ask(Request::Ping), Ok(Outcome::Pong));
    let began = Instant::now();
    agent.send(id, Request::Cancel);
    assert_eq!(agent.finish(id).unwrap_err().code, FailureCode::Cancelled);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn a_half_open_session_is_taken_over() {
    let (machine, store, mut old) = scene();
    stalled(&store, &mut old, &machine.workspace());
    store.faults.lock().unwrap().clear();
    // Its stdin stays open, as with a network that died without a word.
    let mut new = Agent::ready(machine.path()).with_store(&store);
    let began = Instant::now();
    snapshot(&mut new, &machine.workspace(), 2, None).unwrap();
    assert!(
        began.elapsed() >= Duration::from_secs(2),
        "the old one was given no time"
    );
    assert!(eventually(PATIENCE, || old.child.try_wait().unwrap().is_some()));
}

/// Bytes of noise in the files of a directory.
fn written(dir: &Path) -> usize {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    let bytes = files.filter_map(|f| fs::read(f.path()).ok());
    bytes.map(|b| b.iter().filter(|b| **b != 0).count()).sum()
}

/// The old agent is killed, or lives on behind a network that died without a word.
#[test]
fn a_restore_goes_on_where_an_earlier_session_was() {
    for killed in [true, false] {
        let (machine, store) = (Machine::new(), Store::start());
        for i in 0..24 {
            fs::write(machine.workspace().join(format!("small-{i}")), noise(i, 500_000)).unwrap();
        }
        fs::write(machine.workspace().join("weights.bin"), noise(99, 40_000_000)).unwrap();
        let mut agent = Agent::ready(machine.path()).with_store(&store);
        let report = snapshot(&mut agent, &machine.workspace(), 1, None).unwrap();

        let other = Machine::new();
        let target = other.path().join("target");
        let mut old = Agent::ready(other.path()).with_store(&store);
        // The index, the tree and one range come, then nothing more.
        let spared = [Fault::Spared; 3].into_iter().chain([Fault::Stall; 16]);
        store.fail_next(&spared.collect::<Vec<_>>());
        old.begin(restore_request(&target, &head_of(&report)));
        let expected = tree(&machine.workspace());
        // Two of the longest chunks, so that one is whole.
        while written(&target) < 8 << 20 {
            let _ = old.frame_within(Duration::from_millis(20));
        }
        store.faults.lock().unwrap().clear();
        if killed {
            old.child.kill().unwrap();
        }
        let mut new = Agent::ready(other.path()).with_store(&store);
        let restored = restore(&mut new, &target, &head_of(&report)).unwrap();
        assert_eq!(restored.validation.validation, Verdict::Ok);
        assert!(restored.reused_bytes > 4 << 20, "{killed}: {restored:?}");
        let stored: u64 = report.packs.iter().chain(&report.index).map(|o| o.size).sum();
        assert!(
            restored.downloaded_bytes + restored.reused_bytes <= stored,
            "{killed}: {restored:?}"
        );
        assert_eq!(tree(&target), expected);
    }
}

/// The rest of a range is asked for, not all of it again.
#[test]
fn a_connection_that_breaks_loses_nothing_that_came() {
    let (machine, store, mut agent) = scene();
    let report = snapshot(&mut agent, &machine.workspace(), 1, None).unwrap();
    let other = Machine::new();
    let mut agent = Agent::ready(other.path()).with_store(&store);
    store.fail_next(&[Fault::Spared, Fault::Spared, Fault::CutLate, Fault::CutLate]);
    let before = store.sent.load(Ordering::Relaxed);
    restore(&mut agent, &other.workspace(), &head_of(&report)).unwrap();
    let sent = store.sent.load(Ordering::Relaxed) - before;
    let stored: u64 = report.packs.iter().chain(&report.index).map(|o| o.size).sum();
    assert!(sent <= stored, "{sent} of {stored}");
    assert_eq!(tree(&machine.workspace()), tree(&other.workspace()));
}

#[test]
fn impossible_requests_are_refused_by_name() {
    let (machine, _store, mut agent) = scene();
    let nowhere = machine.path().join("nowhere");
    let failure = snapshot(&mut agent, &nowhere, 1, None).unwrap_err();
    assert_eq!(failure.code, FailureCode::NoSuchPath);
    assert!(failure.message.contains("nowhere"), "{failure}");
    assert_eq!(
        snapshot(&mut agent, Path::new("relative"), 1, None)
            .unwrap_err()
            .code,
        FailureCode::Invalid
    );
}
