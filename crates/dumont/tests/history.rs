//! The command line of the machine history against a live server and market.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod world;

use world::{Run, World};

/// The source document's own lines, as somebody types them from it.
#[test]
fn the_documents_lines_work_as_they_stand() {
    let world = World::start(12);
    let sh = |line: &str| {
        let bin = std::path::Path::new(world::BINARY).parent().unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let mut shell = std::process::Command::new("sh");
        let run = Run::of(
            shell
                .args(["-c", line])
                .current_dir(world.dir.path())
                .env("PATH", path)
                .env("DUMONT_DATA_DIR", world.dir.path())
                .env_remove("DUMONT_URL")
                .env_remove("DUMONT_TOKEN"),
        );
        (run.code, run.out, run.err)
    };
    assert_eq!(
        sh("dumont history check vast:12345"),
        (0, "vast:12345 is free\n".into(), String::new())
    );

    let (code, out, err) = sh("dumont history blacklist add vast:12345 --reason \"Falhas frequentes\"");
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (0, "vast:12345 is blocked for good.\n", "")
    );

    let (code, out, _) = sh("dumont history check vast:12345");
    assert_eq!(code, 3);
    assert_eq!(
        out,
        "vast:12345 is blocked: Falhas frequentes (manual, for good)\n"
    );

    let (code, out, _) = sh("dumont history blacklist list");
    assert_eq!(code, 0);
    let row: Vec<&str> = out.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..4], ["vast:12345", "manual", "for", "good"], "{out}");
    assert!(out.contains("Falhas frequentes"), "{out}");

    let (code, out, _) = sh("dumont history blacklist remove vast:12345");
    assert_eq!(
        (code, out.as_str()),
        (0, "vast:12345 is free again (1 block lifted).\n")
    );
    assert_eq!(sh("dumont history check vast:12345").0, 0);
    assert_eq!(sh("dumont history blacklist list").2, "No machine is blocked.\n");
}

#[test]
fn exit_codes_and_json_serve_scripts() {
    let world = World::start(12);
    let code = |args: &[&str]| world.run(args).code;
    assert_eq!(code(&["history", "check", "12345"]), 2, "no provider");
    assert_eq!(code(&["history", "blacklist", "add", "vast:1"]), 2, "no reason");
    assert_eq!(
        code(&[
            "history",
            "blacklist",
            "add",
            "vast:1",
            "--reason",
            "x",
            "--type",
            "eternal"
        ]),
        2
    );
    assert_eq!(code(&["history", "report", "vast:1"]), 2, "no reason");
    assert_eq!(
        code(&["history", "report", "vast:1", "--success", "--reason", "x"]),
        2
    );

    let failed = |args: &[&str]| {
        let run = world.run(&[args, &["--json"]].concat());
        let body: serde_json::Value =
            serde_json::from_str(&run.err).unwrap_or_else(|e| panic!("{e}: {run:?}"));
        assert_eq!((run.code, run.out.as_str()), (1, ""), "{run:?}");
        assert!(!body["hint"].as_str().unwrap().is_empty(), "{run:?}");
        body["code"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        failed(&["history", "blacklist", "remove", "vast:1"]),
        "not_blacklisted"
    );
    assert_eq!(
        failed(&[
            "history",
            "blacklist",
            "add",
            "vast:1",
            "--reason",
            "x",
            "--for",
            "-5h"
        ]),
        "invalid_duration"
    );
    assert_eq!(failed(&["history", "check", "other:1"]), "unknown_provider");

    let entry = world.json(&[
        "history",
        "blacklist",
        "add",
        "vast:1",
        "--reason",
        "x",
        "--type",
        "temporary",
    ]);
    let lasts = entry["expires_at"].as_i64().unwrap() - entry["blacklisted_at"].as_i64().unwrap();
    assert_eq!(lasts, 24 * 3_600 * 1_000_000);
    let entry = world.json(&[
        "history",
        "blacklist",
        "add",
        "vast:1",
        "--reason",
        "y",
        "--for",
        "48h",
    ]);
    let lasts = entry["expires_at"].as_i64().unwrap() - entry["blacklisted_at"].as_i64().unwrap();
    assert_eq!(lasts, 48 * 3_600 * 1_000_000);

    let run = world.run(&["history", "check", "vast:1", "--json"]);
    let check: serde_json::Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(
        (run.code, &check["is_blacklisted"], &check["reason"]),
        (3, &true.into(), &"y".into())
    );
}

/// A driver too old for one CUDA version serves the older ones.
#[test]
fn a_block_may_be_for_a_cuda_version_only() {
    let world = World::start(40);
    let machine = &world.machines()[0];
    world.json(&[
        "history",
        "blacklist",
        "add",
        machine,
        "--reason",
        "driver_mismatch",
        "--cuda",
        "12.1",
    ]);
    let unscoped = world.run(&["history", "check", machine]);
    assert_eq!(unscoped.code, 0);
    assert!(
        unscoped
            .out
            .contains("blocked for cuda=12.1 and newer: driver_mismatch"),
        "{unscoped:?}"
    );
    assert_eq!(
        world.run(&["history", "check", machine, "--cuda", "12.1"]).code,
        3
    );
    assert_eq!(
        world.run(&["history", "check", machine, "--cuda", "11.8"]).code,
        0
    );

    assert!(world.machines().contains(machine));
    let asked = world.json(&["offers", "--cuda", "12.1"]);
    let id = machine.strip_prefix("vast:").unwrap();
    assert!(
        asked["items"]
            .as_array()
            .unwrap()
            .iter()
            .all(|o| o["machine_id"] != id),
        "{asked:#}"
    );
    assert_eq!(asked["blacklisted_hidden"], 1);
}

#[test]
fn offers_hide_what_is_blocked_and_say_so() {
    let world = World::start(40);
    let machine = &world.machines()[0];
    world.json(&[
        "history",
        "blacklist",
        "add",
        machine,
        "--reason",
        "gone\u{1b}[31m bad",
    ]);
    let hidden = world.run(&["offers"]);
    assert_eq!(hidden.code, 0);
    assert!(!hidden.out.contains(machine), "{hidden:?}");
    assert!(hidden.err.contains("1 blacklisted machine hidden"), "{hidden:?}");

    let all = world.run(&["offers", "--include-blacklisted"]);
    let row = all
        .out
        .lines()
        .find(|l| l.starts_with(&format!("{machine} ")))
        .unwrap();
    assert!(
        row.contains("● blacklisted") && row.contains("blocked: gone"),
        "{row}"
    );
    assert!(
        !all.out.contains('\u{1b}'),
        "a pipe gets no colours and no escapes: {:?}",
        all.out
    );

    let coloured = Run::of(
        world
            .command()
            .args(["offers", "--include-blacklisted"])
            .env("CLICOLOR_FORCE", "1"),
    );
    assert!(
        coloured.out.contains("\u{1b}[38;5;196m● blacklisted"),
        "{:?}",
        coloured.out
    );
    assert!(
        !coloured.out.contains("\u{1b}[31m"),
        "a reason's own escape: {:?}",
        coloured.out
    );
    let plain = Run::of(
        world
            .command()
            .args(["offers", "--include-blacklisted"])
            .env("CLICOLOR_FORCE", "1")
            .env("NO_COLOR", "1"),
    );
    assert_eq!(plain.out, all.out);
}

#[test]
fn reports_reach_the_record_and_never_block_alone() {
    let world = World::start(12);
    let machine = &world.machines()[0];
    let told = world.json(&[
        "history",
        "report",
        machine,
        "--reason",
        "ssh_failed",
        "--message",
        "refused",
    ]);
    assert_eq!(told["counted"], true, "{told:#}");
    let again = world.json(&["history", "report", machine, "--reason", "ssh_failed"]);
    assert_eq!(
        again["counted"], false,
        "once per machine, reporter and day: {again:#}"
    );
    assert_eq!(world.run(&["history", "check", machine]).code, 0);

    let shown = world.run(&["history", "show", machine]);
    assert_eq!(shown.code, 0, "{shown:?}");
    for text in [
        "0 % of 1",
        "● poor",
        "ssh_failed",
        "refused",
        "▁",
        "1 not counted",
        "never seen to come up",
    ] {
        assert!(shown.out.contains(text), "{text}: {}", shown.out);
    }
    let summary = world.run(&["history", "summary"]);
    assert!(
        summary.out.contains("● poor") && summary.out.contains("ssh_failed"),
        "{summary:?}"
    );
    let worst = world.run(&["history", "problematic"]);
    assert!(worst.out.contains(machine.as_str()), "{worst:?}");
}

#[test]
fn what_one_server_learned_another_takes_over() {
    let (one, other) = (World::start(12), World::start(12));
    let machines = one.machines();
    let (known, blocked) = (machines[0].as_str(), machines[1].as_str());
    one.json(&["history", "report", known, "--reason", "ssh_failed"]);
    one.json(&["history", "blacklist", "add", blocked, "--reason", "burns"]);
    let file = one.dir.path().join("learned.jsonl");
    let file = file.to_str().unwrap();
    let run = one.run(&["history", "export", file]);
    assert_eq!(run.code, 0, "{run:?}");
    let lines = std::fs::read_to_string(file).unwrap();
    assert_eq!(lines.lines().count(), 2, "{lines}");
    let piped = one.run(&["history", "export"]);
    assert_eq!(piped.out, lines);

    let first = other.json(&["history", "import", file]);
    assert_eq!(
        (&first["attempts"], &first["blacklisted"]),
        (&1.into(), &0.into()),
        "{first:#}"
    );
    assert_eq!(
        other.run(&["history", "check", blocked]).code,
        0,
        "an import blocks nothing by itself"
    );
    assert!(other.run(&["history", "show", known]).out.contains("ssh_failed"));

    let again = other.json(&["history", "import", file, "--blacklist"]);
    assert_eq!(
        (&again["known"], &again["blacklisted"]),
        (&1.into(), &1.into()),
        "{again:#}"
    );
    assert_eq!(other.run(&["history", "check", blocked]).code, 3);

    std::fs::write(file, "{\"kind\": \"nonsense\"}\n").unwrap();
    let bad = other.run(&["history", "import", file]);
    assert!(bad.code == 1 && bad.err.contains("hint:"), "{bad:?}");
}
