//! The protocol itself: greeting, noise, heartbeats, versions, probes, and the end.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::{Agent, BINARY, Machine, PATIENCE, alive, eventually, now, shell};
use dumont_wire::agent::{Event, FailureCode, FromAgent, Outcome, PROTOCOL, Request};
use std::process::Command;
use std::time::{Duration, Instant};

fn hello(protocol: u32) -> Request {
    Request::Hello {
        protocol,
        now: now(),
        path: "/".into(),
        heartbeat_ms: 0,
        store_ca: None,
    }
}

#[test]
fn hello_tells_the_facts() {
    let machine = Machine::new();
    let facts = Agent::spawn(machine.path()).hello(0);
    assert_eq!(facts.protocol, PROTOCOL);
    assert_eq!(facts.agent_version, env!("CARGO_PKG_VERSION"));
    assert!(facts.clock_skew_ms.abs() < 10_000, "{}", facts.clock_skew_ms);
    assert!(facts.cpus > 0 && facts.memory_total_bytes > 0 && facts.disk_free_bytes > 0);
    assert!(facts.disk_free_bytes <= facts.disk_total_bytes);
    assert!(!facts.kernel.is_empty());
    assert!(facts.workload.is_none());
}

#[test]
fn a_gpu_is_found_on_the_path_and_its_absence_explained() {
    let machine = Machine::new();
    let bin = machine.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let smi = bin.join("nvidia-smi");
    let run = |script: &str| {
        std::fs::write(&smi, format!("#!/bin/sh\n{script}\n")).unwrap();
        assert!(
            Command::new("chmod")
                .arg("755")
                .arg(&smi)
                .status()
                .unwrap()
                .success()
        );
        let path = format!("{}:/usr/bin:/bin", bin.display());
        let mut command = Command::new(BINARY);
        Agent::spawn_as(command.env("HOME", machine.path()).env("PATH", path)).hello(0)
    };
    let facts = run("echo 'NVIDIA GeForce RTX 4090, 24564, 550.54.14'");
    assert_eq!((facts.gpus.len(), facts.gpus[0].memory_mb), (1, 24564));
    assert_eq!(facts.gpu_error, None);
    let facts = run("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18");
    assert!(facts.gpus.is_empty());
    let error = facts.gpu_error.unwrap();
    assert!(
        error.contains("exit code 18") && error.contains("mismatch"),
        "{error}"
    );
}

#[test]
fn a_newer_controller_is_told_and_an_older_one_served() {
    let machine = Machine::new();
    let mut agent = Agent::spawn(machine.path());
    let refused = agent.ask(hello(PROTOCOL + 1)).unwrap_err();
    assert_eq!(refused.code, FailureCode::Version);
    assert!(refused.hint.contains("install"), "{}", refused.hint);
    assert!(agent.ask(hello(0)).is_ok());
}

#[test]
fn nothing_is_done_before_hello() {
    let machine = Machine::new();
    let mut agent = Agent::spawn(machine.path());
    assert_eq!(agent.ask(Request::Ping).unwrap_err().code, FailureCode::Invalid);
    agent.hello(0);
    assert_eq!(agent.ask(Request::Ping), Ok(Outcome::Pong));
}

#[test]
fn noise_is_answered_and_survived() {
    let machine = Machine::new();
    let mut agent = Agent::ready(machine.path());
    for (noise, id) in [
        (&b"not json"[..], 0),
        (b"[1,2]", 0),
        (br#"{"id":7,"body":{"type":"make_coffee"}}"#, 7),
        (br#"{"id":8,"body":{"type":"probe","command":3}}"#, 8),
        (br#"{"id":0,"body":{"type":"ping"}}"#, 0),
        (br#"{"id":-1,"body":{"type":"ping"}}"#, 0),
    ] {
        agent.raw(&(noise.len() as u32).to_le_bytes());
        agent.raw(noise);
        let failure = agent.finish(id).unwrap_err();
        assert_eq!(failure.code, FailureCode::Invalid, "{failure}");
    }
    assert_eq!(agent.ask(Request::Ping), Ok(Outcome::Pong));
}

#[test]
fn a_hostile_length_ends_the_session_with_a_word() {
    let machine = Machine::new();
    let mut agent = Agent::ready(machine.path());
    agent.raw(&u32::MAX.to_le_bytes());
    assert_eq!(agent.finish(0).unwrap_err().code, FailureCode::Invalid);
    assert!(agent.ended_within(PATIENCE));
}

#[test]
fn heartbeats_come_unasked_until_the_end_of_input() {
    let machine = Machine::new();
    let mut agent = Agent::spawn(machine.path());
    agent.hello(30);
    let mut beats = 0;
    while beats < 5 {
        let FromAgent { id, body } = agent.frame();
        beats += u32::from(id == 0 && matches!(body, Event::Heartbeat { workload: None, .. }));
    }
    agent.hang_up();
    assert!(agent.ended_within(Duration::from_secs(2)));
}

#[test]
fn a_peer_that_never_reads_still_ends_the_agent_by_hanging_up() {
    let machine = Machine::new();
    // Nobody drains this stdout: the pipe fills up and the writer blocks for good.
    let mut child = Command::new(BINARY)
        .env("HOME", machine.path())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let frame = |id, body| dumont_wire::frame::encode(&dumont_wire::agent::ToAgent { id, body }).unwrap();
    std::io::Write::write_all(&mut stdin, &frame(1, hello(PROTOCOL))).unwrap();
    for id in 2..5_000 {
        std::io::Write::write_all(&mut stdin, &frame(id, Request::Ping)).unwrap();
    }
    drop(stdin);
    assert!(eventually(Duration::from_secs(5), || child
        .try_wait()
        .unwrap()
        .is_some()));
}

#[test]
fn a_probe_is_bounded_in_time_and_output() {
    let machine = Machine::new();
    let mut agent = Agent::ready(machine.path());
    let mut probe = |command: &str, timeout_ms| match agent.ask(Request::Probe {
        probe: shell(command),
        timeout_ms,
    }) {
        Ok(Outcome::Probe(answer)) => (answer.verdict, answer.output),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        probe("echo out; echo err >&2; exit 4", 20_000),
        ("exits with 4".into(), "out\nerr\n".into())
    );
    let (verdict, output) = probe("seq 1 100000; kill -9 $$", 20_000);
    assert_eq!(verdict, "exits with -9");
    assert!(output.len() <= 4096 && output.ends_with("100000\n"));

    let began = Instant::now();
    let (verdict, output) = probe("sleep 60 & echo $!; wait", 300);
    assert_eq!(verdict, "was killed on time-out");
    assert!(began.elapsed() < Duration::from_secs(10));
    let pid: u32 = output.trim().parse().unwrap();
    assert!(eventually(PATIENCE, || !alive(pid)), "the probe's child lives on");
}

#[test]
fn a_probe_can_be_cancelled_while_pings_are_answered() {
    let machine = Machine::new();
    let mut agent = Agent::ready(machine.path());
    let id = agent.begin(Request::Probe {
        probe: shell("sleep 60"),
        timeout_ms: 60_000,
    });
    assert_eq!(agent.ask(Request::Ping), Ok(Outcome::Pong));
    agent.send(id, Request::Cancel);
    assert_eq!(agent.finish(id).unwrap_err().code, FailureCode::Cancelled);
}

/// As on a machine whose image holds nothing: only with the static build, see agent-embed.
#[test]
fn wrong_arguments_are_answered_with_the_right_ones() {
    let output = Command::new(BINARY).arg("--frobnicate").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("usage"));
    assert_eq!(
        Command::new(BINARY)
            .args(["supervise", "/nowhere"])
            .output()
            .unwrap()
            .status
            .code(),
        Some(1)
    );
}
