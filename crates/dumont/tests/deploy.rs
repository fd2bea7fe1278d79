//! `dumont deploy` against a live server and market: as a script calls it, and as a person
//! answers its questions on a real terminal.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod terminal;
mod world;

use terminal::Terminal;
use world::World;

#[test]
fn with_arguments_it_asks_nothing() {
    let world = World::start(12);
    let run = world.run(&["deploy", "plain", "--start", "sleep 1000"]);
    assert_eq!(run.code, 0, "{run:?}");
    let shown = world.json(&["workspace", "show", "plain"]);
    assert_eq!(shown["state"], "running", "{shown:#}");

    let nameless = world.run(&["deploy", "--gpu", "RTX 4090"]);
    assert_eq!(nameless.code, 2, "{nameless:?}");
    let blind = world.run(&["deploy"]);
    assert!(
        blind.code == 2 && blind.err.contains("no terminal to ask on"),
        "{blind:?}"
    );
}

#[test]
fn a_machine_by_name_is_shown_rented_and_kept_out_if_blocked() {
    let world = World::start(12);
    let machines = world.machines();
    let (good, bad) = (machines[1].as_str(), machines[2].as_str());

    let run = world.run(&["deploy", "chosen", "--machine", good]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.err.contains(&format!("{good}: never tried")), "{run:?}");
    assert_eq!(
        world.json(&["workspace", "show", "chosen"])["instance"]["machine"],
        good
    );

    world.json(&["history", "blacklist", "add", bad, "--reason", "burns"]);
    let refused = world.run(&["deploy", "risky", "--machine", bad, "--json"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused.err.contains("machine_blacklisted") && refused.err.contains("burns"),
        "{refused:?}"
    );
    assert_eq!(
        world.run(&["workspace", "show", "risky"]).code,
        1,
        "nothing was made"
    );

    let allowed = world.run(&["deploy", "risky", "--machine", bad, "--allow-blacklisted"]);
    assert_eq!(allowed.code, 0, "{allowed:?}");
    assert_eq!(
        world.json(&["workspace", "show", "risky"])["instance"]["machine"],
        bad
    );

    let nowhere = world.run(&["deploy", "lost", "--machine", "vast:1"]);
    assert!(nowhere.code == 1 && nowhere.err.contains("vast:1"), "{nowhere:?}");
}

/// Two of four attempts on every machine: fair.
fn makes_all_fair(world: &World) {
    let mut lines = String::new();
    for machine in world.machines() {
        let id = machine.strip_prefix("vast:").unwrap();
        for (n, outcome) in ["won", "failed", "won", "failed"].iter().enumerate() {
            let line = serde_json::json!({
                "kind": "attempt", "key": format!("{id}-{n}"), "provider": "vast", "machine_id": id,
                "attempt_type": "deploy", "outcome": outcome, "stage": "ready", "duration_seconds": 9.0,
                "created_at": 1_790_000_000_000_000_i64 + n as i64, "gpu_name": "RTX 4090", "price": 0.3,
                "score_s": 0.0, "score_f": 0.0,
            });
            lines.push_str(&format!("{line}\n"));
        }
    }
    let file = world.dir.path().join("learned.jsonl");
    std::fs::write(&file, lines).unwrap();
    world.json(&["history", "import", file.to_str().unwrap()]);
}

#[test]
fn one_who_does_not_wait_is_warned_too() {
    let world = World::start(12);
    makes_all_fair(&world);
    let run = world.run(&["deploy", "hasty", "--no-wait"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(
        run.err.contains("the best that is left is fair: vast:") && run.err.contains("2 of 4 attempts"),
        "{run:?}"
    );
    assert!(run.out.contains("hasty"), "{run:?}");
    // Scripts are left alone.
    let run = world.run(&["deploy", "silent", "--no-wait", "--json"]);
    assert_eq!((run.code, run.err.as_str()), (0, ""), "{run:?}");
    // A search that finds nothing is an error at once.
    let run = world.run(&["deploy", "nowhere", "--no-wait", "--max-price", "0.0001"]);
    assert!(run.code == 1 && run.err.contains("no offer fits"), "{run:?}");
    for name in ["hasty", "silent", "nowhere"] {
        world.run(&["workspace", "delete", name, "--yes"]);
    }
}

#[test]
fn the_wizard_warns_of_what_is_fair_and_shows_it_in_its_colour() {
    let world = World::start(40);
    makes_all_fair(&world);
    let blocked = &world.machines()[0];
    world.json(&["history", "blacklist", "add", blocked, "--reason", "burns"]);
    let mut terminal = wizard(&world);
    for (question, answer) in [
        ("Which GPU?", "\r"),
        ("The most to pay", "\r"),
        ("Directory to start from", "\r"),
        ("What to call the workspace", "\r"),
        ("Container image", "\r"),
        ("Command that starts your workload", "\r"),
    ] {
        terminal.sees(question);
        terminal.types(answer);
    }
    terminal.sees("Which machines?");
    let screen = terminal.text();
    assert!(!screen.contains(blocked.as_str()), "{screen}");
    for text in [
        "● fair",
        "50 % of 4",
        "some failures",
        "1 blacklisted machine left out.",
        "warning: only machines with a poor record",
    ] {
        assert!(screen.contains(text), "{text}:\n{screen}");
    }
    terminal.types("\u{1b}");
    terminal.sees("nothing was rented");
    assert_eq!(terminal.exit_code(), 1);
}

fn wizard(world: &World) -> Terminal {
    Terminal::of("\"$DUMONT\" deploy", |command| {
        world.clean(command).env("DUMONT", world::BINARY);
    })
}

#[test]
fn the_wizard_asks_shows_and_deploys() {
    let world = World::start(40);
    let project = world.dir.path().join("My Project");
    std::fs::create_dir(&project).unwrap();
    std::fs::write(project.join("train.py"), "print('hello')\n").unwrap();

    let mut terminal = wizard(&world);
    terminal.sees("Which GPU?");
    terminal.sees("any GPU");
    terminal.types("\r");
    terminal.sees("The most to pay");
    terminal.types("nonsense\r");
    terminal.sees("a number of dollars");
    terminal.types("5\r");
    terminal.sees("Directory to start from");
    terminal.types("My Project\r");
    terminal.sees("What to call the workspace");
    terminal.sees("my-project");
    terminal.types("\r");
    terminal.sees("Container image");
    terminal.types("\r");
    terminal.sees("Command that starts your workload");
    terminal.types("\r");
    terminal.sees("MACHINE");
    terminal.sees("Which machines?");
    terminal.sees("race the best");
    terminal.types("\r");
    terminal.sees("Deploy my-project: race");
    terminal.types("\r");
    assert_eq!(terminal.exit_code(), 0, "{}", terminal.text());

    let shown = world.json(&["workspace", "show", "my-project"]);
    assert_eq!(shown["state"], "running", "{shown:#}");
    assert_eq!(shown["spec"]["max_price"], 5.0);
    assert_eq!(shown["last_snapshot"]["files_total"], 1);
}

#[test]
fn escape_leaves_the_wizard_and_rents_nothing() {
    let world = World::start(12);
    let mut terminal = wizard(&world);
    terminal.sees("Which GPU?");
    terminal.types("\u{1b}");
    terminal.sees("nothing was rented");
    assert_eq!(terminal.exit_code(), 1);
    assert_eq!(world.json(&["instances"]), serde_json::json!([]));
}

/// Snapshots are taken unasked as well: nobody should have to come back when one is done.
#[test]
fn a_snapshot_in_the_way_is_waited_for() {
    let world = World::start(12);
    let start = ["--start", "echo x > a; exec sleep 1000", "--before", "sleep 5"];
    let run = world.run(&[&["deploy", "turns"], &start[..]].concat());
    assert_eq!(run.code, 0, "{run:?}");
    let begin = || {
        let run = world.run(&["snapshot", "create", "turns", "--no-wait"]);
        assert_eq!(run.code, 0, "{run:?}");
        run.out.trim().to_owned()
    };
    let id = begin();
    let refused = world.run(&["snapshot", "create", "turns", "--no-wait", "--json"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    let body: serde_json::Value = serde_json::from_str(&refused.err).unwrap();
    assert_eq!(body["code"], "workspace_busy", "{body:#}");
    let way = serde_json::json!({ "id": id, "kind": "snapshot" });
    assert_eq!(body["workflow"], way, "{body:#}");
    let waits = |args: &[&str], id: &str| {
        let run = world.run(args);
        assert_eq!(run.code, 0, "{run:?}");
        assert!(run.err.contains(&format!("({id}); waiting for it")), "{run:?}");
    };
    waits(&["snapshot", "create", "turns"], &id);
    let list = world.json(&["snapshot", "list", "turns"]);
    assert_eq!(list.as_array().unwrap().len(), 2, "{list:#}");
    waits(&["snapshot", "restore", "turns"], &begin());
    waits(&["snapshot", "repair", "turns"], &begin());
}
