//! A server without any account, as somebody with two machines of their own uses it.
//!
//! The machines are OpenSSH's server on loopback ports, for the user who runs the test; a script
//! stands in for `nvidia-smi`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot set up its world fails"
)]

#[path = "../../server/tests/providers/sshd.rs"]
mod sshd;
mod world;

use serde_json::Value;
use sshd::Sshd;
use std::time::{Duration, Instant};
use world::World;

/// No market, no key.
fn alone() -> World {
    let mut world = World::without_market();
    world.serve();
    world
}

fn add(world: &World, name: &str, sshd: &Sshd, more: &[&str]) -> world::Run {
    let user = std::env::var("USER").unwrap_or_else(|_| "root".into());
    let port = sshd.port.to_string();
    let address = ["--host", "127.0.0.1", "--port", &port, "--user", &user];
    world.run(&[&["machine", "add", name][..], &address, more].concat())
}

/// The line to put into `authorized_keys`, as the command printed it.
fn line(said: &str) -> String {
    let from = said.find("ssh-ed25519 ").expect("a line to add");
    said[from..].lines().next().unwrap().trim().to_owned()
}

fn lives_on(world: &World, name: &str) -> Value {
    world.json(&["workspace", "show", name])["instance"]["machine"].clone()
}

#[test]
fn without_a_key_workspaces_live_on_machines_of_ones_own() {
    let world = alone();
    let (a, b) = (Sshd::new(), Sshd::new());
    for (name, sshd) in [("ssh:a", &a), ("ssh:b", &b)] {
        sshd.has_gpu();
        let run = add(&world, name, sshd, &[]);
        assert_eq!(run.code, 0, "{run:?}");
        assert!(run.err.contains("cannot be used yet"), "{run:?}");
        sshd.let_in(&line(&run.err));
    }
    let listed = world.json(&["machine", "list"]);
    let states: Vec<_> = listed.as_array().unwrap().iter().map(|m| &m["state"]).collect();
    assert_eq!(states, ["free", "free"], "{listed:#}");
    let offers = world.json(&["offers", "--provider", "ssh"]);
    assert_eq!(offers["items"].as_array().unwrap().len(), 2, "{offers:#}");

    let project = world.dir.path().join("project");
    std::fs::create_dir(&project).unwrap();
    std::fs::write(project.join("weights.bin"), vec![7; 1 << 20]).unwrap();
    let from = project.to_str().unwrap();
    let run = world.run(&[
        "deploy",
        "train",
        "--provider",
        "any",
        "--from",
        from,
        "--start",
        "sleep 100000",
    ]);
    assert_eq!(run.code, 0, "{run:?}");
    let first = lives_on(&world, "train");
    let (lost, other) = if first == "ssh:a" {
        (a, "ssh:b")
    } else {
        (b, "ssh:a")
    };

    let run = world.run(&["snapshot", "create", "train"]);
    assert_eq!(run.code, 0, "{run:?}");
    // It refuses whoever dials, and those who were in are gone.
    lost.die();
    let deadline = Instant::now() + Duration::from_secs(60);
    while lives_on(&world, "train") != other {
        assert!(
            Instant::now() < deadline,
            "{:#}",
            world.json(&["workspace", "show", "train"])
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    // The event is written a moment after the switch.
    while world.run(&["failover", "show", "train"]).code != 0 {
        assert!(Instant::now() < deadline, "no event");
        std::thread::sleep(Duration::from_millis(100));
    }
    let event = world.json(&["failover", "show", "train"]);
    assert_eq!(event["validation"]["validation"], "ok", "{event:#}");
}

#[test]
fn a_wrong_gpu_name_is_corrected_and_held_against_nobody() {
    let world = alone();
    let a = Sshd::new();
    a.has_gpu();
    let run = add(&world, "ssh:a", &a, &["--gpu", "RTX 3090"]);
    a.let_in(&line(&run.err));
    let deploy = |name| world.run(&["deploy", name, "--provider", "ssh", "--start", "sleep 100000"]);
    let run = deploy("train");
    assert_eq!(run.code, 1, "{run:?}");
    let said = "nvidia-smi shows NVIDIA GeForce RTX 4090, the inventory says RTX 3090";
    assert!(run.err.contains(said), "{run:?}");
    assert!(
        run.err.contains("dumont machine add") && run.err.contains("--gpu"),
        "{run:?}"
    );
    let history = world.json(&["history", "summary"]);
    assert_eq!(history["failed_attempts"], 0, "{history:#}");
    assert_eq!(history["uncounted_attempts"], 1, "{history:#}");

    let run = add(&world, "ssh:a", &a, &["--gpu", "RTX 4090"]);
    assert_eq!(run.code, 0, "{run:?}");
    // What the first one left is cleaned up behind its back.
    let deadline = Instant::now() + Duration::from_secs(30);
    while world.json(&["machine", "list"])[0]["state"] != "free" {
        assert!(
            Instant::now() < deadline,
            "{:#}",
            world.json(&["machine", "list"])
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    let run = deploy("again");
    assert_eq!(run.code, 0, "{run:?}");
}

#[test]
fn what_only_vast_has_is_refused_with_what_to_do() {
    let world = alone();
    for command in [
        &["deploy", "train"][..],
        &["deploy", "train", "--machine", "vast:1"],
        &["workspace", "create", "train"],
        &["offers"],
        &["offers", "--machine", "vast:1"],
    ] {
        let refused = world.run(&[command, &["--json"]].concat());
        assert_eq!(refused.code, 1, "{command:?}: {refused:?}");
        let error: Value = serde_json::from_str(&refused.err).unwrap();
        let error = error.get("error").unwrap_or(&error);
        assert_eq!(
            error["code"], "provider_not_configured",
            "{command:?}: {refused:?}"
        );
        let hint = error["hint"].as_str().unwrap();
        assert!(
            hint.contains("--provider ssh") && hint.contains("VAST_API_KEY"),
            "{hint}"
        );
    }
    let listed = world.json(&["workspace", "list"]);
    assert_eq!(listed, serde_json::json!([]), "a refusal leaves nothing behind");
    // What is asked of all providers is answered.
    assert_eq!(world.json(&["instances", "--orphans"]), serde_json::json!([]));
    assert_eq!(world.run(&["history", "blacklist", "list"]).code, 0);
    assert_eq!(world.run(&["history", "check", "vast:1"]).code, 0);
}

/// Without the key nobody could give back what the account rents.
#[test]
fn a_server_that_rents_at_vast_does_not_start_without_its_key() {
    let mut world = World::start(12);
    let run = world.run(&["deploy", "train", "--start", "sleep 100000"]);
    assert_eq!(run.code, 0, "{run:?}");
    world.kill_server();
    let key = world.forget_env("VAST_API_KEY");
    let url = world.forget_env("VAST_URL");
    assert!(!world.try_serve(&[]), "it serves, and the machine is nobody's");
    let log = world.log("serve");
    assert!(
        log.contains("1 of this installation's contracts at vast"),
        "{log}"
    );
    assert!(log.contains("VAST_API_KEY"), "{log}");
    world.set_env("VAST_API_KEY", key);
    world.set_env("VAST_URL", url);
    world.serve();
    let run = world.run(&["workspace", "delete", "train", "--yes"]);
    assert_eq!(run.code, 0, "{run:?}");
}
