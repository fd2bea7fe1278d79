//! The source document on machine history, line by line: its shell lines as they stand, its curl
//! lines with the host put in front, its bodies, fields, tables and types. Then what it does not
//! say: every kind of bad input, over HTTP and on the command line, refused and nothing written.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod world;

use serde_json::{Value, json};
use std::process::Command;
use world::{Run, World};

/// A shell as a reader of the document has it: `dumont` on the path, `$TOKEN` set.
fn sh(world: &World, line: &str) -> Run {
    let bin = std::path::Path::new(world::BINARY).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let token = std::fs::read_to_string(world.dir.path().join("admin.token")).unwrap();
    let mut shell = Command::new("sh");
    world.clean(shell.args(["-c", line]));
    Run::of(shell.env("PATH", path).env("TOKEN", token.trim()))
}

fn url(world: &World) -> String {
    let file = std::fs::read_to_string(world.dir.path().join("server.json")).unwrap();
    let file: Value = serde_json::from_str(&file).unwrap();
    file["url"].as_str().unwrap().to_owned()
}

/// One of the document's curl lines, with the host put in front of the path and nothing else
/// changed; its status is asked for behind its back. No header says that a body is JSON.
fn curl(world: &World, line: &str) -> (u16, Value) {
    let line = line
        .replacen(" /api/v1", &format!(" {}/api/v1", url(world)), 1)
        .replacen(
            "curl",
            "curl --silent --noproxy '*' --write-out '\\n%{http_code}'",
            1,
        );
    let run = sh(world, &line);
    assert_eq!(run.code, 0, "{line}: {run:?}");
    let (body, status) = run.out.rsplit_once('\n').unwrap();
    let body = serde_json::from_str(body).unwrap_or_else(|e| panic!("{line}: {e}: {run:?}"));
    (status.parse().unwrap(), body)
}

const ADD: &str = r#"curl -X POST /api/v1/machines/history/blacklist \
  -H "Authorization: Bearer $TOKEN" \
  -d '{"machine_id":"12345","provider":"vast","reason":"Falhas frequentes"}'"#;
const REMOVE: &str = r#"curl -X DELETE /api/v1/machines/history/blacklist/vast/12345 \
  -H "Authorization: Bearer $TOKEN""#;
const LIST: &str = r#"curl /api/v1/machines/history/blacklist \
  -H "Authorization: Bearer $TOKEN""#;
const CHECK: &str = r#"curl /api/v1/machines/history/blacklist/check/vast/12345 \
  -H "Authorization: Bearer $TOKEN""#;

#[test]
fn every_line_that_can_be_typed_works_as_it_stands() {
    let world = World::start(12);
    let cli = |line: &str, code: i32, says: &str| {
        let run = sh(&world, line);
        assert_eq!(run.code, code, "{line}: {run:?}");
        let all = format!("{}{}", run.out, run.err);
        assert!(all.contains(says), "{line}: {run:?}");
    };
    // "Gerenciar Blacklist", each line by both ways and the other looking on.
    cli(
        r#"dumont history blacklist add vast:12345 --reason "Falhas frequentes""#,
        0,
        "vast:12345 is blocked for good.",
    );
    let (status, found) = curl(&world, CHECK);
    assert_eq!(
        (status, &found["is_blacklisted"], &found["reason"]),
        (200, &json!(true), &json!("Falhas frequentes"))
    );
    let (status, list) = curl(&world, LIST);
    assert_eq!((status, &list["items"][0]["machine_id"]), (200, &json!("12345")));
    cli("dumont history blacklist remove vast:12345", 0, "is free again");
    assert_eq!(curl(&world, REMOVE).0, 404, "nothing is left to remove");

    let (status, entry) = curl(&world, ADD);
    assert_eq!(
        (status, &entry["blacklist_type"]),
        (201, &json!("manual")),
        "{entry}"
    );
    assert_eq!(curl(&world, ADD).0, 200, "the entry that stands");
    cli("dumont history check vast:12345", 3, "Falhas frequentes");
    cli("dumont history blacklist list", 0, "Falhas frequentes");
    let (status, removed) = curl(&world, REMOVE);
    assert_eq!((status, removed["removed"].as_array().unwrap().len()), (200, 1));
    cli("dumont history blacklist list", 0, "No machine is blocked.");
    cli("dumont history check vast:12345", 0, "vast:12345 is free");
    assert_eq!(curl(&world, CHECK).1["is_blacklisted"], false);
}

#[test]
fn every_endpoint_type_and_field_of_the_reference_is_there() {
    let world = World::start(40);
    let call = |method: &str, path: &str, body: &str| {
        let data = if body.is_empty() {
            String::new()
        } else {
            format!(" -d '{body}'")
        };
        let path = path.replace('?', "\\?");
        curl(
            &world,
            &format!(r#"curl -X {method} /api/v1{path} -H "Authorization: Bearer $TOKEN"{data}"#),
        )
    };
    // "Tipos de Blacklist": type and how long it lasts, in hours.
    for (kind, hours) in [
        ("automatic", Some(7 * 24)),
        ("manual", None),
        ("temporary", Some(24)),
    ] {
        let body = json!({
            "machine_id": "12345", "provider": "vast", "reason": "Motivo do bloqueio", "blacklist_type": kind,
        });
        let (status, entry) = call("POST", "/machines/history/blacklist", &body.to_string());
        assert_eq!(status, 201, "{entry}");
        let lasts = entry["expires_at"]
            .as_i64()
            .map(|end| (end - entry["blacklisted_at"].as_i64().unwrap()) / 3_600_000_000);
        assert_eq!((lasts, &entry["blacklist_type"]), (hours, &json!(kind)));
        assert_eq!(
            call("DELETE", "/machines/history/blacklist/vast/12345", "").0,
            200
        );
    }
    // "Motivos Comuns": each may be a block's reason and a report's.
    for (n, reason) in [
        "driver_mismatch",
        "boot_timeout",
        "ssh_failed",
        "gpu_not_ready",
        "frequent_interrupts",
    ]
    .into_iter()
    .enumerate()
    {
        let machine = format!("9{n}");
        let report = json!({"provider": "vast", "machine_id": machine, "reason": reason});
        let (status, told) = call("POST", "/machines/history/attempts", &report.to_string());
        assert_eq!(
            (status, &told["counted"]),
            (201, &json!(true)),
            "{reason}: {told}"
        );
        let entry = json!({"provider": "vast", "machine_id": machine, "reason": reason, "blacklist_type": "temporary"});
        assert_eq!(
            call("POST", "/machines/history/blacklist", &entry.to_string()).0,
            201
        );
        let (_, found) = call(
            "GET",
            &format!("/machines/history/blacklist/check/vast/{machine}"),
            "",
        );
        assert_eq!(found["reason"], reason);
    }
    let (status, summary) = call("GET", "/machines/history/summary", "");
    assert_eq!(
        (status, &summary["blacklist"]["temporary"]),
        (200, &json!(5)),
        "{summary}"
    );
    assert_eq!(summary["top_reasons"].as_array().unwrap().len(), 5, "{summary}");

    // "Ofertas com Machine History": every field of the example, of its kind.
    let (status, page) = call("GET", "/instances/offers", "");
    assert_eq!(status, 200, "{page}");
    let machine = page["items"][0]["machine_id"].as_str().unwrap().to_owned();
    let entry = json!({"provider": "vast", "machine_id": machine, "reason": "x"});
    assert_eq!(
        call("POST", "/machines/history/blacklist", &entry.to_string()).0,
        201
    );
    let of = |page: &Value| {
        let items = page["items"].as_array().unwrap();
        items
            .iter()
            .find(|o| o["machine_id"] == machine.as_str())
            .cloned()
    };
    assert_eq!(
        of(&call("GET", "/instances/offers", "").1),
        None,
        "hidden by default"
    );
    let (_, all) = call("GET", "/instances/offers?include_blacklisted=true", "");
    let blocked = of(&all).expect("shown when asked for");
    assert_eq!(
        (
            &blocked["is_blacklisted"],
            &blocked["blacklist_reason"],
            &blocked["reliability_status"]
        ),
        (&json!(true), &json!("x"), &json!("blacklisted"))
    );
    for offer in all["items"].as_array().unwrap() {
        let fits = offer["id"].is_u64()
            && offer["gpu_name"].is_string()
            && offer["dph_total"].is_f64()
            && offer["machine_id"].is_string()
            && offer["is_blacklisted"].is_boolean()
            && (offer["blacklist_reason"].is_null() || offer["blacklist_reason"].is_string())
            && (offer["success_rate"].is_null() || offer["success_rate"].is_f64())
            && offer["total_attempts"].is_u64()
            && offer["reliability_status"].is_string();
        assert!(fits, "{offer}");
    }
    // Every one of them behind the token.
    for path in [
        "/machines/history/blacklist",
        "/machines/history/blacklist/check/vast/12345",
        "/machines/history/summary",
        "/machines/history/attempts",
        "/machines/history/stats/vast/90",
        "/machines/history/problematic",
        "/machines/history/reliable",
        "/instances/offers",
    ] {
        let (status, error) = curl(&world, &format!("curl /api/v1{path}"));
        assert_eq!(status, 401, "{path}: {error}");
        assert_eq!(call("GET", path, "").0, 200, "{path}");
    }
}

/// What is bad, over HTTP (method, path, body, code) and on the command line where it can be said
/// there (code `usage` is exit code 2, all others 1).
type Bad = (
    &'static str,
    (&'static str, &'static str, &'static str, &'static str),
    Option<(&'static [&'static str], &'static str)>,
);

const BLACKLIST: &str = "/machines/history/blacklist";

const BAD: [Bad; 12] = [
    (
        "malformed provider:machine",
        (
            "POST",
            BLACKLIST,
            r#"{"provider":"vast:1","machine_id":"","reason":"r"}"#,
            "invalid_request",
        ),
        Some((
            &["history", "blacklist", "add", "12345", "--reason", "r"],
            "usage",
        )),
    ),
    (
        "a machine that is no machine",
        (
            "GET",
            "/machines/history/blacklist/check/vast/..%2f..",
            "",
            "invalid_request",
        ),
        Some((&["history", "check", "vast:../../etc"], "usage")),
    ),
    (
        "unknown provider",
        (
            "POST",
            BLACKLIST,
            r#"{"provider":"azure","machine_id":"1","reason":"r"}"#,
            "unknown_provider",
        ),
        Some((
            &["history", "blacklist", "add", "azure:1", "--reason", "r"],
            "unknown_provider",
        )),
    ),
    (
        "empty reason",
        (
            "POST",
            BLACKLIST,
            r#"{"provider":"vast","machine_id":"1","reason":"  "}"#,
            "invalid_request",
        ),
        Some((
            &["history", "blacklist", "add", "vast:1", "--reason", ""],
            "invalid_request",
        )),
    ),
    (
        "a reason of control characters",
        (
            "POST",
            BLACKLIST,
            r#"{"provider":"vast","machine_id":"1","reason":"\u001b\u0007"}"#,
            "invalid_request",
        ),
        Some((
            &["history", "blacklist", "add", "vast:1", "--reason", "\u{1b}\u{7}"],
            "invalid_request",
        )),
    ),
    (
        "negative duration",
        (
            "POST",
            BLACKLIST,
            r#"{"provider":"vast","machine_id":"1","reason":"r","for":"-1h"}"#,
            "invalid_duration",
        ),
        Some((
            &[
                "history",
                "blacklist",
                "add",
                "vast:1",
                "--reason",
                "r",
                "--for",
                "-1h",
            ],
            "invalid_duration",
        )),
    ),
    (
        "a duration of nothing",
        (
            "POST",
            BLACKLIST,
            r#"{"provider":"vast","machine_id":"1","reason":"r","for":"0s"}"#,
            "invalid_duration",
        ),
        Some((
            &[
                "history",
                "blacklist",
                "add",
                "vast:1",
                "--reason",
                "r",
                "--for",
                "0s",
            ],
            "invalid_duration",
        )),
    ),
    (
        "unknown blacklist type",
        (
            "POST",
            BLACKLIST,
            r#"{"provider":"vast","machine_id":"1","reason":"r","blacklist_type":"eternal"}"#,
            "unknown_blacklist_type",
        ),
        Some((
            &[
                "history",
                "blacklist",
                "add",
                "vast:1",
                "--reason",
                "r",
                "--type",
                "eternal",
            ],
            "usage",
        )),
    ),
    (
        "a page past the end",
        ("GET", "/machines/history/blacklist?after=1", "", "page_past_end"),
        None,
    ),
    (
        "a period of zero",
        (
            "GET",
            "/machines/history/summary?period=0s",
            "",
            "invalid_duration",
        ),
        Some((&["history", "summary", "--period", "0s"], "invalid_duration")),
    ),
    (
        "a report without a word",
        (
            "POST",
            "/machines/history/attempts",
            r#"{"provider":"vast","machine_id":"1"}"#,
            "invalid_request",
        ),
        Some((&["history", "report", "vast:1"], "usage")),
    ),
    (
        "a removal of nothing",
        (
            "DELETE",
            "/machines/history/blacklist/vast/1",
            "",
            "not_blacklisted",
        ),
        Some((&["history", "blacklist", "remove", "vast:1"], "not_blacklisted")),
    ),
];

#[test]
fn bad_input_is_refused_with_a_next_step_and_nothing_is_written() {
    let world = World::start(12);
    let everything = || {
        (
            world.run(&["history", "export"]).out,
            world.json(&["history", "blacklist", "list", "--all"]),
            world.json(&["machines"]),
        )
    };
    // One entry stands, so that a list has an end.
    world.json(&["history", "blacklist", "add", "vast:77", "--reason", "stands"]);
    let before = everything();
    for (what, (method, path, body, code), typed) in BAD {
        let data = if body.is_empty() {
            String::new()
        } else {
            format!(" -d '{body}'")
        };
        let path = path.replace('?', "\\?");
        let line =
            format!(r#"curl --path-as-is -X {method} /api/v1{path} -H "Authorization: Bearer $TOKEN"{data}"#);
        let (status, error) = curl(&world, &line);
        assert!((400..500).contains(&status), "{what}: {status} {error}");
        assert_eq!(error["code"], code, "{what}: {error}");
        for field in ["message", "hint"] {
            assert!(!error[field].as_str().unwrap().is_empty(), "{what}: {error}");
        }
        let Some((args, code)) = typed else { continue };
        let run = world.run(&[args, &["--json"]].concat());
        if code == "usage" {
            assert_eq!(run.code, 2, "{what}: {run:?}");
            assert!(
                run.err.contains("--help") || run.err.contains("hint"),
                "{what}: {run:?}"
            );
        } else {
            assert_eq!(run.code, 1, "{what}: {run:?}");
            let error: Value =
                serde_json::from_str(&run.err).unwrap_or_else(|e| panic!("{what}: {e}: {run:?}"));
            assert_eq!(error["code"], code, "{what}");
            assert!(!error["hint"].as_str().unwrap().is_empty(), "{what}: {error}");
        }
        assert_eq!(run.out, "", "{what}: {run:?}");
    }
    assert_eq!(everything(), before, "nothing was written");
}
