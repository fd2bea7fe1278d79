//! The workload and its supervisor: who lives on, who dies with whom.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::{Agent, Machine, PATIENCE, alive, eventually, shell};
use dumont_wire::agent::{Event, FailureCode, Outcome, ProbeAnswer, Request};
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

fn kill(pid: u32) {
    assert!(
        Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn it_runs_in_its_directory_with_its_environment_and_ends_on_request() {
    let machine = Machine::new();
    let workspace = machine.workspace();
    let mut agent = Agent::ready(machine.path());
    agent
        .start(&workspace, "pwd; echo $GREETING; echo oops >&2; exec sleep 600")
        .unwrap();
    let expected = format!("{}\ngood day\noops\n", workspace.display());
    assert!(
        eventually(PATIENCE, || machine.log() == expected),
        "{}",
        machine.log()
    );
    let status = agent.status().unwrap();
    assert!(status.running && status.restarts == 0 && status.started_at.is_some());
    let pid = status.pid.unwrap();
    assert!(alive(pid));
    let mode = fs::metadata(machine.path().join(".dumont/workload/spec.json"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    agent.stop();
    assert!(!alive(pid));
    let status = agent.status().unwrap();
    assert!(!status.running && status.pid.is_none());
    assert_eq!(status.last_exit, Some(-15));
    agent.stop();
}

#[test]
fn a_probe_sees_what_the_workload_sees() {
    let machine = Machine::new();
    let mut agent = Agent::ready(machine.path());
    agent
        .start(&machine.workspace(), "echo $$ > pid; exec sleep 600")
        .unwrap();
    assert!(eventually(PATIENCE, || machine.workspace().join("pid").exists()));
    let probe = shell("kill -0 $(cat pid) && echo $GREETING");
    match agent.ask(Request::Probe {
        probe,
        timeout_ms: 20_000,
    }) {
        Ok(Outcome::Probe(answer)) => {
            assert!(answer.healthy);
            assert_eq!(answer.output, "good day\n");
        }
        other => panic!("{other:?}"),
    }
    agent.stop();
}

/// Answers every connection of a port of its own the same way, as long as the test runs.
fn serving(answer: &'static str) -> (u16, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, questions) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut question = Vec::new();
            let mut buffer = [0; 4096];
            loop {
                let n = stream.read(&mut buffer).unwrap_or(0);
                question.extend_from_slice(&buffer[..n]);
                let text = String::from_utf8_lossy(&question).into_owned();
                let whole = text.starts_with("GET ") && text.contains("\r\n\r\n") || text.ends_with('}');
                if n == 0 || whole {
                    let _ = asked.send(text);
                    break;
                }
            }
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    (port, questions)
}

fn probed(agent: &mut Agent, probe: serde_json::Value) -> ProbeAnswer {
    let probe = serde_json::from_value(probe).unwrap();
    match agent.ask(Request::Probe {
        probe,
        timeout_ms: 20_000,
    }) {
        Ok(Outcome::Probe(answer)) => answer,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_page_is_judged_by_its_status_and_its_text() {
    let machine = Machine::new();
    let mut agent = Agent::ready(machine.path());
    let (port, questions) =
        serving("HTTP/1.1 204 No Content\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    let answer = probed(
        &mut agent,
        json!({"kind": "http", "port": port, "path": "/health?full=1"}),
    );
    assert!(answer.healthy, "{answer:?}");
    assert!(
        questions
            .recv()
            .unwrap()
            .starts_with("GET /health?full=1 HTTP/1.1\r\n")
    );

    let (port, _q) = serving("HTTP/1.1 503 Later\r\nconnection: close\r\ncontent-length: 7\r\n\r\nloading");
    let answer = probed(&mut agent, json!({"kind": "http", "port": port}));
    assert_eq!(
        (answer.healthy, answer.verdict.as_str()),
        (false, "is answered 503")
    );
    assert_eq!(answer.output, "loading");
    let wanted = json!({"kind": "http", "port": port, "status": 503, "contains": "loading"});
    assert!(probed(&mut agent, wanted).healthy);
    let wanted = json!({"kind": "http", "port": port, "status": 503, "contains": "ready"});
    assert!(!probed(&mut agent, wanted).healthy);

    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let answer = probed(&mut agent, json!({"kind": "http", "port": nobody}));
    assert!(
        !answer.healthy && answer.verdict.contains("no answer"),
        "{answer:?}"
    );
}

#[test]
fn a_model_is_judged_by_its_inference() {
    let machine = Machine::new();
    let mut agent = Agent::ready(machine.path());
    let (port, questions) = serving(
        "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"response\":\"Paris, of course.\",\"done\":true}",
    );
    let ask = |contains: &str| json!({"kind": "ollama", "model": "tiny", "prompt": "Capital of France?", "port": port, "contains": contains});
    let answer = probed(&mut agent, ask("Paris"));
    assert_eq!((answer.healthy, answer.verdict.as_str()), (true, "inference OK"));
    assert_eq!(answer.output, "Paris, of course.");
    let question = questions.recv().unwrap();
    assert!(
        question.starts_with("POST /api/generate HTTP/1.1\r\n"),
        "{question}"
    );
    let body: serde_json::Value = serde_json::from_str(question.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!((&body["model"], &body["stream"]), (&json!("tiny"), &json!(false)));
    assert!(!probed(&mut agent, ask("Berlin")).healthy);

    for nothing in [
        "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"response\":\"\",\"done\":true}",
        "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n<html>",
        "HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\n{\"error\":\"model not found\"}",
    ] {
        let (port, _q) = serving(nothing);
        let answer = probed(
            &mut agent,
            json!({"kind": "ollama", "model": "tiny", "port": port}),
        );
        assert!(!answer.healthy, "{nothing}: {answer:?}");
    }
}

#[test]
fn it_outlives_the_session_and_the_next_one_finds_it() {
    let machine = Machine::new();
    let mut agent = Agent::ready(machine.path());
    let supervisor = agent.start(&machine.workspace(), "exec sleep 600").unwrap();
    let pid = agent.status().unwrap().pid.unwrap();
    agent.hang_up();
    assert!(agent.ended_within(Duration::from_secs(2)));
    drop(agent);
    assert!(alive(supervisor) && alive(pid));

    let mut agent = Agent::spawn(machine.path());
    assert_eq!(agent.hello(50).workload.and_then(|w| w.pid), Some(pid));
    loop {
        if let Event::Heartbeat { workload, .. } = agent.frame().body {
            assert!(workload.unwrap().running);
            break;
        }
    }
    agent.stop();
    assert!(!alive(supervisor) && !alive(pid));
}

#[test]
fn it_starts_again_with_growing_pauses_and_leaves_nobody_behind() {
    let machine = Machine::new();
    let mut agent = Agent::ready(machine.path());
    let began = Instant::now();
    agent
        .start(&machine.workspace(), "sleep 600 & echo $! >> children; exit 3")
        .unwrap();
    assert!(eventually(PATIENCE, || agent.status().unwrap().restarts >= 2));
    let elapsed = began.elapsed();
    assert!(
        elapsed >= Duration::from_millis(1500),
        "{elapsed:?}: 0.5 s, then 1 s"
    );
    assert_eq!(agent.status().unwrap().last_exit, Some(3));
    let log = machine.log();
    assert!(
        log.contains("[dumont] ended with 3; starts again in 0.5 s"),
        "{log}"
    );
    assert!(log.contains("starts again in 1.0 s"), "{log}");
    agent.stop();
    let children = fs::read_to_string(machine.workspace().join("children")).unwrap();
    assert!(children.lines().count() >= 2);
    assert!(children.lines().all(|c| !alive(c.parse().unwrap())), "{children}");
}

#[test]
fn a_workload_that_ignores_the_request_is_ended_with_all_it_detached() {
    let machine = Machine::new();
    let mut agent = Agent::ready(machine.path());
    let script = "trap '' TERM; setsid sh -c 'echo $$ > detached; sleep 600' & while :; do sleep 0.1; done";
    agent.start(&machine.workspace(), script).unwrap();
    let file = machine.workspace().join("detached");
    assert!(eventually(PATIENCE, || fs::read_to_string(&file)
        .is_ok_and(|t| t.ends_with('\n'))));
    let detached: u32 = fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    let pid = agent.status().unwrap().pid.unwrap();
    let began = Instant::now();
    agent.stop();
    assert!(
        began.elapsed() >= Duration::from_secs(4),
        "it was not given its grace"
    );
    assert!(!alive(pid) && !alive(detached));
}

#[test]
fn it_dies_with_its_supervisor_and_the_next_start_clears_the_rest() {
    let machine = Machine::new();
    let mut agent = Agent::ready(machine.path());
    let script = "sleep 600 & echo $! > child; sleep 601; true";
    let supervisor = agent.start(&machine.workspace(), script).unwrap();
    let file = machine.workspace().join("child");
    assert!(eventually(PATIENCE, || fs::read_to_string(&file)
        .is_ok_and(|t| t.ends_with('\n'))));
    let child: u32 = fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    let pid = agent.status().unwrap().pid.unwrap();
    kill(supervisor);
    assert!(
        eventually(PATIENCE, || !alive(pid)),
        "the shell outlives its supervisor"
    );
    assert!(!agent.status().unwrap().running);
    agent.start(&machine.workspace(), "exec sleep 602").unwrap();
    assert!(!alive(child), "a process of the last run lives on");
    agent.stop();
}

#[test]
fn a_second_start_replaces_the_first() {
    let machine = Machine::new();
    let mut agent = Agent::ready(machine.path());
    let first = agent.start(&machine.workspace(), "exec sleep 600").unwrap();
    let pid = agent.status().unwrap().pid.unwrap();
    let second = agent.start(&machine.workspace(), "exec sleep 601").unwrap();
    assert!(first != second && !alive(first) && !alive(pid) && alive(second));
    agent.stop();
}

#[test]
fn its_log_is_bounded() {
    let machine = Machine::new();
    let mut agent = Agent::ready(machine.path());
    agent
        .start(&machine.workspace(), "seq 1 900000; echo the end; exec sleep 600")
        .unwrap();
    assert!(eventually(PATIENCE, || machine.log().ends_with("the end\n")));
    let dir = machine.path().join(".dumont/workload");
    let sizes: Vec<u64> = ["log", "log.1"]
        .map(|f| fs::metadata(dir.join(f)).unwrap().len())
        .into();
    assert!(sizes.iter().all(|s| *s <= 1 << 20), "{sizes:?}");
    assert!(!dir.join("log.2").exists() && !dir.join("log.1.1").exists());
    agent.stop();
}

#[test]
fn impossible_workloads_are_refused() {
    let machine = Machine::new();
    let mut agent = Agent::ready(machine.path());
    let nowhere = machine.path().join("nowhere");
    assert_eq!(
        agent.start(&nowhere, "true").unwrap_err().code,
        FailureCode::NoSuchPath
    );
    assert_eq!(
        agent.start(&machine.workspace(), "").unwrap_err().code,
        FailureCode::Invalid
    );
    assert_eq!(agent.status(), None);
}
