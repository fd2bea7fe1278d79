//! The fuzz targets on the pinned compiler: the corpus, and what a seed makes of it.
//!
//! `FUZZ_ROUNDS` (by default 10,000 a target) and `FUZZ_SEED` say how much and what; a failing input is
//! written below `target/fuzz-failures`, to be mended and then kept in the corpus.
//! `DUMONT_UPDATE=1` adds the samples of the present format to the corpus; older ones stay.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use dumont_core::id::Digest;
use dumont_core::snapshot::{ObjectKind, ObjectRef, SnapshotHead, SnapshotReport, SnapshotType};
use dumont_core::time::Timestamp;
use dumont_fuzz::{TARGETS, Target};
use dumont_wire::agent::{
    Event, Facts, Failure, FailureCode, FromAgent, GpuFact, Outcome, Request, ToAgent, UploadWanted,
};
use dumont_wire::{frame, mux};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = root().join("corpus").join(target.name);
    let entries = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut paths: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths
        .into_iter()
        .map(|p| (p.clone(), fs::read(p).unwrap()))
        .collect()
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().expect("a number"))
}

/// Whether the target took it; what it says is on stderr.
fn survives(target: &Target, input: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_ok()
}

#[test]
fn every_target_takes_its_corpus_and_what_becomes_of_it() {
    update();
    let (rounds, seed) = (setting("FUZZ_ROUNDS", 10_000), setting("FUZZ_SEED", 1));
    let mut failed = Vec::new();
    for target in TARGETS {
        let inputs = corpus(target);
        assert!(!inputs.is_empty(), "{} has no corpus", target.name);
        for (path, input) in &inputs {
            if !survives(target, input) {
                failed.push(path.display().to_string());
            }
        }
        let mut dice = StdRng::seed_from_u64(seed);
        for _ in 0..rounds {
            let input = mutant(&inputs, &mut dice);
            if !survives(target, &input) {
                failed.push(keep(target, &input));
                break;
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

fn keep(target: &Target, input: &[u8]) -> String {
    let dir = root().join("../target/fuzz-failures").join(target.name);
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join(&blake3::hash(input).to_hex()[..16]);
    fs::write(&path, input).unwrap();
    path.display().to_string()
}

/// Bits, bytes, lengths, pieces moved and left out, two inputs spliced.
fn mutant(inputs: &[(PathBuf, Vec<u8>)], dice: &mut StdRng) -> Vec<u8> {
    let one = |dice: &mut StdRng| inputs[dice.random_range(0..inputs.len())].1.clone();
    let mut bytes = one(dice);
    for _ in 0..dice.random_range(1..6) {
        let at = dice.random_range(0..=bytes.len());
        let end = (at + dice.random_range(0..40)).min(bytes.len());
        match dice.random_range(0..8) {
            0 => bytes
                .get_mut(at)
                .iter_mut()
                .for_each(|b| **b ^= 1 << dice.random_range(0..8)),
            1 => bytes.get_mut(at).iter_mut().for_each(|b| **b = dice.random()),
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let copy = bytes[at..end].to_vec();
                let to = dice.random_range(0..=bytes.len());
                bytes.splice(to..to, copy);
            }
            5 => {
                let value = [0_u32, 1, 255, 256, 65_535, 1 << 22, 1 << 31, u32::MAX][dice.random_range(0..8)];
                let value = &value.to_le_bytes()[..[1, 2, 4][dice.random_range(0..3)]];
                let end = (at + value.len()).min(bytes.len());
                bytes.splice(at..end, value.iter().copied());
            }
            6 => {
                let other = one(dice);
                let from = dice.random_range(0..=other.len());
                bytes.truncate(at);
                bytes.extend(&other[from..]);
            }
            _ => {
                let noise: Vec<u8> = (0..dice.random_range(1..9)).map(|_| dice.random()).collect();
                bytes.splice(at..at, noise);
            }
        }
    }
    bytes
}

#[test]
fn libfuzzer_has_the_same_targets() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    for target in TARGETS {
        let program = root().join(format!("fuzz_targets/{}.rs", target.name));
        let program = fs::read_to_string(&program).unwrap_or_else(|e| panic!("{}: {e}", program.display()));
        assert!(program.contains(&format!("{:?}", target.name)), "{}", target.name);
        assert!(
            manifest.contains(&format!("name = {:?}", target.name)),
            "{}",
            target.name
        );
    }
    assert_eq!(
        fs::read_dir(root().join("fuzz_targets")).unwrap().count(),
        TARGETS.len()
    );
}

fn update() {
    if std::env::var_os("DUMONT_UPDATE").is_none() {
        return;
    }
    let mut all = dumont_snapshot::fuzzing::samples();
    all.extend(messages());
    for (target, input) in all {
        let dir = root().join("corpus").join(target);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(&blake3::hash(&input).to_hex()[..16]), input).unwrap();
    }
}

fn messages() -> Vec<(&'static str, Vec<u8>)> {
    let object = ObjectRef {
        key: "workspaces/w/packs/01".into(),
        size: 5,
        digest: Digest([7; 32]),
        version: Some("v".into()),
    };
    let facts = Facts {
        protocol: 1,
        agent_version: "0.1.0".into(),
        now: Timestamp(1_766_230_181_000_000),
        clock_skew_ms: -3,
        clock_fix: None,
        hostname: "h".into(),
        kernel: "6.1".into(),
        cpus: 2,
        memory_total_bytes: 1,
        memory_available_bytes: 1,
        disk_total_bytes: 1,
        disk_free_bytes: 1,
        gpus: vec![GpuFact {
            name: "RTX 4090".into(),
            memory_mb: 24_564,
            driver_version: "550.1".into(),
        }],
        gpu_error: Some("none".into()),
        workload: None,
    };
    let report = SnapshotReport {
        snapshot_id: "base-1-2".into(),
        snapshot_type: SnapshotType::Full,
        full_because: Some("why".into()),
        root: Digest([8; 32]),
        files_total: 3,
        files_changed: 2,
        files_read: 2,
        total_bytes: 9,
        packs: vec![object.clone()],
        index: Some(object.clone()),
        metadata: None,
        uploaded_bytes: 5,
        torn: vec!["a\\x0a".into()],
        elapsed_ms: 4,
    };
    let head = SnapshotHead {
        snapshot_id: "base-1-2".into(),
        root: Digest([8; 32]),
        indexes: vec![object],
        files: 3,
        bytes: 9,
    };
    let said = [
        Event::Done(Outcome::Hello(Box::new(facts.clone()))),
        Event::Done(Outcome::Snapshot(Box::new(report.clone()))),
        Event::UploadsWanted {
            objects: vec![UploadWanted {
                kind: ObjectKind::Pack,
                size: 5,
                digest: Digest([7; 32]),
            }],
        },
        Event::DownloadsWanted {
            keys: vec!["k".into()],
        },
        Event::Uploaded {
            key: "k".into(),
            parts: vec!["\"tag\"".into()],
        },
        Event::Log { line: "x".into() },
        Event::Failed(Failure {
            code: FailureCode::DiskFull,
            message: "full".into(),
            hint: "h".into(),
        }),
    ];
    let said = said.map(|body| FromAgent { id: 3, body });
    let stream: Vec<u8> = said.iter().flat_map(|m| frame::encode(m).unwrap()).collect();
    let mut out: Vec<(&'static str, Vec<u8>)> = said
        .iter()
        .map(|m| ("from_agent", serde_json::to_vec(m).unwrap()))
        .collect();
    out.push(("frames", [b"\x10motd\n", frame::MARKER, &stream].concat()));
    let asked = ToAgent {
        id: 1,
        body: Request::Hello {
            protocol: 1,
            now: Timestamp(1),
            path: "/workspace".into(),
            heartbeat_ms: 1_000,
            store_ca: None,
        },
    };
    out.push(("to_agent", serde_json::to_vec(&asked).unwrap()));
    out.push(("hello", serde_json::to_vec(&facts).unwrap()));
    out.push(("report", serde_json::to_vec(&report).unwrap()));
    out.push(("head", serde_json::to_vec(&head).unwrap()));
    let frames = [
        (0, mux::Frame::Listening(10_000)),
        (7, mux::Frame::Open),
        (7, mux::Frame::Data(b"bytes".to_vec())),
        (7, mux::Frame::Credit(99)),
        (7, mux::Frame::Eof),
        (8, mux::Frame::Reset),
    ];
    out.push((
        "mux",
        frames.iter().flat_map(|(s, f)| mux::encode(*s, f)).collect(),
    ));
    out
}
