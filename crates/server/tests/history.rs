//! The machine history over REST, as the source document's reader would call it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod world;

use serde_json::{Value, json};
use world::World;

const HISTORY: &str = "/machines/history";

async fn quiet() -> World {
    World::on_market(|config| {
        config.time_scale = 0.0;
        config.machines = 2;
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documents_own_lines_work() {
    let world = quiet().await;
    let list = format!("{HISTORY}/blacklist");
    let check = format!("{list}/check/vast/12345");

    // Never met: free.
    let free = world.get(&check).await;
    assert_eq!(free["is_blacklisted"], false);
    assert_eq!(
        (&free["reason"], &free["expires_at"]),
        (&Value::Null, &Value::Null)
    );

    let line = r#"{"machine_id":"12345","provider":"vast","reason":"Falhas frequentes"}"#;
    let (status, entry) = world.curl("POST", &list, line).await;
    assert_eq!(status, 201, "{entry}");
    assert_eq!(
        (&entry["blacklist_type"], &entry["actor"]),
        (&json!("manual"), &json!("admin"))
    );
    assert_eq!(
        (&entry["expires_at"], &entry["is_active"]),
        (&Value::Null, &json!(true))
    );

    let (status, again) = world.curl("POST", &list, line).await;
    assert_eq!(
        (status, &again["id"]),
        (200, &entry["id"]),
        "the active entry is updated"
    );

    let full =
        r#"{"machine_id":"12345","provider":"vast","reason":"Motivo do bloqueio","blacklist_type":"manual"}"#;
    assert_eq!(world.curl("POST", &list, full).await.0, 200);
    let shown = world.get(&check).await;
    for (field, want) in [
        ("provider", json!("vast")),
        ("machine_id", json!("12345")),
        ("is_blacklisted", json!(true)),
        ("blacklist_type", json!("manual")),
        ("reason", json!("Motivo do bloqueio")),
        ("scope", Value::Null),
        ("expires_at", Value::Null),
    ] {
        assert_eq!(shown[field], want, "{field} of {shown}");
    }
    assert!(shown["blacklisted_at"].is_i64());
    assert_eq!(world.get(&list).await["items"].as_array().unwrap().len(), 1);

    let summary = world.get(&format!("{HISTORY}/summary")).await;
    assert_eq!(summary["machines"]["blacklisted"], 1);
    assert_eq!(
        summary["blacklist"],
        json!({"automatic": 0, "manual": 1, "temporary": 0})
    );

    let one = format!("{list}/vast/12345");
    let (status, removed) = world.curl("DELETE", &one, "").await;
    assert_eq!(
        (status, &removed["removed"][0]["closed_by"]),
        (200, &json!("admin"))
    );
    assert_eq!(world.get(&check).await["is_blacklisted"], false);
    let (status, error) = world.curl("DELETE", &one, "").await;
    assert_eq!((status, &error["code"]), (404, &json!("not_blacklisted")));
    // Kept as history.
    let ever = world.get(&format!("{list}?include_closed=true")).await;
    assert_eq!(ever["items"][0]["is_active"], false);
    let stats = world.get(&format!("{HISTORY}/stats/vast/12345")).await;
    assert_eq!(
        (&stats["reliability_status"], &stats["success_rate"]),
        (&json!("unknown"), &Value::Null)
    );
    assert_eq!(stats["blacklist"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn types_durations_and_scopes() {
    let world = quiet().await;
    let list = format!("{HISTORY}/blacklist");
    let add = |machine: u32, more: Value| {
        let mut body = json!({"provider": "vast", "machine_id": machine.to_string(), "reason": "x"});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        body
    };
    let lasts =
        |entry: &Value| entry["expires_at"].as_i64().unwrap() - entry["blacklisted_at"].as_i64().unwrap();
    const HOUR: i64 = 3_600_000_000;

    let entry = world
        .post(&list, add(1, json!({"blacklist_type": "automatic"})))
        .await;
    assert_eq!(lasts(&entry), 7 * 24 * HOUR);
    let entry = world
        .post(&list, add(2, json!({"blacklist_type": "temporary"})))
        .await;
    assert_eq!(lasts(&entry), 24 * HOUR);
    let entry = world.post(&list, add(3, json!({"for": "48h"}))).await;
    assert_eq!(
        (lasts(&entry), &entry["blacklist_type"]),
        (48 * HOUR, &json!("manual"))
    );

    // A person's word is not changed by a weaker one, nor shortened.
    let weaker = add(3, json!({"blacklist_type": "automatic"}));
    let (status, error) = world.call("POST", &list, Some(weaker)).await;
    assert_eq!((status, &error["code"]), (409, &json!("manual_entry_stands")));

    // For one CUDA version and newer ones: an unscoped check says free and lists it.
    world.post(&list, add(4, json!({"cuda": "12.8"}))).await;
    let check = format!("{list}/check/vast/4");
    let unscoped = world.get(&check).await;
    assert_eq!(
        (&unscoped["is_blacklisted"], &unscoped["scoped"][0]["scope"]),
        (&json!(false), &json!("cuda=12.8"))
    );
    for (asked, blocked) in [("12.4", false), ("12.8", true), ("13.0", true)] {
        let answer = world.get(&format!("{check}?cuda={asked}")).await;
        assert_eq!(answer["is_blacklisted"], blocked, "{asked}");
    }

    // Filters and pages.
    let of = |query: &str| format!("{list}?{query}");
    let count = async |query: &str| world.get(&of(query)).await["items"].as_array().unwrap().len();
    assert_eq!(count("provider=vast").await, 4);
    assert_eq!(count("blacklist_type=manual").await, 2);
    assert_eq!(count("period=1h").await, 4);
    let first = world.get(&of("limit=3")).await;
    let next = first["next"].as_str().unwrap();
    let last = world.get(&of(&format!("limit=3&after={next}"))).await;
    assert_eq!(
        (last["items"].as_array().unwrap().len(), &last["next"]),
        (1, &Value::Null)
    );
    let end = last["items"][0]["id"].as_i64().unwrap();
    let (status, error) = world.call("GET", &of(&format!("after={end}")), None).await;
    assert_eq!((status, &error["code"]), (404, &json!("page_past_end")));

    let worst = world.get(&format!("{HISTORY}/problematic")).await;
    assert_eq!(
        worst["items"].as_array().unwrap().len(),
        3,
        "the scoped one is not blocked"
    );
    assert_eq!(
        world.get(&format!("{HISTORY}/reliable")).await["items"],
        json!([])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_and_writes_nothing() {
    let world = quiet().await;
    let list = format!("{HISTORY}/blacklist");
    let body = |machine: &str, more: &str| {
        format!(r#"{{"machine_id":{machine},"provider":"vast","reason":"r"{more}}}"#)
    };
    let long = format!("\"{}\"", "9".repeat(101));
    let posts = [
        (
            r#"{"machine_id":"1","provider":"azure","reason":"r"}"#.to_owned(),
            "unknown_provider",
        ),
        (
            r#"{"machine_id":"1","provider":"vast","reason":" "}"#.to_owned(),
            "invalid_request",
        ),
        (
            r#"{"machine_id":"1","provider":"vast","reason":"\u0007\n"}"#.to_owned(),
            "invalid_request",
        ),
        (
            r#"{"machine_id":"1","provider":"vast"}"#.to_owned(),
            "invalid_request",
        ),
        (
            format!(
                r#"{{"machine_id":"1","provider":"vast","reason":"{}"}}"#,
                "x".repeat(1_001)
            ),
            "invalid_request",
        ),
        (body("\"\"", ""), "invalid_request"),
        (body(&long, ""), "invalid_request"),
        (body(r#""1;DROP TABLE""#, ""), "invalid_request"),
        (body(r#""../etc""#, ""), "invalid_request"),
        (
            body("\"1\"", r#","blacklist_type":"eternal""#),
            "unknown_blacklist_type",
        ),
        (body("\"1\"", r#","for":"-3h""#), "invalid_duration"),
        (body("\"1\"", r#","for":"0s""#), "invalid_duration"),
        (body("\"1\"", r#","for":"9999999999999999y""#), "invalid_duration"),
        (body("\"1\"", r#","cuda":"new""#), "invalid_request"),
        (body("\"1\"", r#","colour":"red""#), "invalid_request"),
        ("not json".to_owned(), "invalid_request"),
        (r#"["vast","1","r"]"#.to_owned(), "invalid_request"),
        (String::new(), "invalid_request"),
    ];
    for (line, code) in posts {
        let (status, error) = world.curl("POST", &list, &line).await;
        assert_eq!((status, &error["code"]), (400, &json!(code)), "{line}: {error}");
        assert!(!error["hint"].as_str().unwrap().is_empty(), "{line}");
    }
    for path in [
        "blacklist/check/vast/%00",
        "blacklist/check/azure/1",
        "blacklist/check/vast/1?cuda=x",
        "blacklist?period=0s",
        "blacklist?period=0",
        "blacklist?period=-1h",
        "blacklist?blacklist_type=x",
        "blacklist?after=x",
        "blacklist?limit=0",
        "attempts?success=maybe",
        "attempts?machine_id=1",
        "attempts?after=1",
        "attempts?period=0s",
        "summary?period=soon",
        "stats/azure/1",
        "problematic?limit=501",
        "reliable?after=zz",
        "reliable?provider=azure",
    ] {
        let (status, error) = world.call("GET", &format!("{HISTORY}/{path}"), None).await;
        assert_eq!(status, 400, "{path}: {error}");
        assert!(
            error["code"].is_string() && !error["hint"].as_str().unwrap().is_empty(),
            "{path}"
        );
    }
    let (status, error) = world
        .call("GET", &format!("{HISTORY}/stats/vast/777"), None)
        .await;
    assert_eq!((status, &error["code"]), (404, &json!("machine_not_found")));
    assert_eq!(
        world.get(&format!("{list}?include_closed=true")).await["items"],
        json!([])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_count_once_a_day_and_never_block() {
    let world = quiet().await;
    let attempts = format!("{HISTORY}/attempts");
    let report = |reason: &str| json!({"provider": "vast", "machine_id": "777", "reason": reason});
    let first = world.post(&attempts, report("ssh_failed")).await;
    assert_eq!(
        (
            &first["counted"],
            &first["attempt"]["success"],
            &first["attempt"]["reporter"]
        ),
        (&json!(true), &json!(false), &json!("admin"))
    );
    for _ in 0..8 {
        let again = world.post(&attempts, report("ssh_failed")).await;
        assert_eq!(
            (&again["counted"], &again["attempt"]["success"]),
            (&json!(false), &Value::Null)
        );
        assert!(again["note"].is_string());
    }
    let ours = world.post(&attempts, report("no_money")).await;
    assert_eq!(ours["counted"], false, "not the machine's doing");

    let stats = world.get(&format!("{HISTORY}/stats/vast/777")).await;
    assert_eq!(
        (
            &stats["total_attempts"],
            &stats["failed_attempts"],
            &stats["uncounted_attempts"]
        ),
        (&json!(10), &json!(1), &json!(9))
    );
    assert_eq!(
        (
            &stats["reliability_status"],
            &stats["is_blacklisted"],
            &stats["reasons"]
        ),
        (
            &json!("poor"),
            &json!(false),
            &json!([{"reason": "ssh_failed", "count": 1}])
        )
    );
    assert!(stats["reliability_score"].as_f64().unwrap() < 0.85);
    let list = async |query: &str| {
        world.get(&format!("{attempts}?{query}")).await["items"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!(list("provider=vast&machine_id=777").await, 10);
    assert_eq!(list("success=false&period=1h").await, 1);
    assert_eq!(list("success=true").await, 0);
    assert_eq!(
        world.get(&format!("{HISTORY}/problematic")).await["items"][0]["machine_id"],
        "777"
    );
    let summary = world.get(&format!("{HISTORY}/summary?period=1h")).await;
    assert_eq!(
        (&summary["total_attempts"], &summary["success_rate"]),
        (&json!(10), &json!(0.0))
    );

    for (body, why) in [
        (json!({"provider": "vast", "machine_id": "777"}), "no reason"),
        (report("Not a word!"), "no word"),
        (
            json!({"provider": "vast", "machine_id": "777", "success": true, "reason": "x"}),
            "both",
        ),
        (
            json!({"provider": "vast", "machine_id": "777", "success": true, "ready_seconds": -1}),
            "time",
        ),
        (
            json!({"provider": "azure", "machine_id": "777", "reason": "x"}),
            "provider",
        ),
    ] {
        let (status, error) = world.call("POST", &attempts, Some(body)).await;
        assert_eq!(status, 400, "{why}: {error}");
    }
    // Said often enough: refused, and nothing grows.
    for reason in ["ssh_failed", "no_money"] {
        let (status, error) = world.call("POST", &attempts, Some(report(reason))).await;
        assert_eq!(
            (status, &error["code"]),
            (429, &json!("too_many_reports")),
            "{error}"
        );
        assert!(
            error["hint"].as_str().unwrap().contains("blacklist add"),
            "{error}"
        );
    }
    assert_eq!(list("provider=vast").await, 10, "nothing of it was written");

    // A driver too old for what was asked is not charged to the machine.
    let driver =
        json!({"provider": "vast", "machine_id": "778", "reason": "driver_mismatch", "cuda": "12.8"});
    assert_eq!(world.post(&attempts, driver).await["counted"], false);
    let driver = json!({"provider": "vast", "machine_id": "778", "reason": "driver_mismatch"});
    assert_eq!(world.post(&attempts, driver).await["counted"], true);
}

/// Lines of an export that say what a machine did elsewhere.
fn lines_of(machine: &str, won: usize, failed: usize) -> String {
    let line = |n: usize, outcome: &str| {
        json!({
            "kind": "attempt", "key": format!("{machine}-{outcome}-{n}"), "source": "elsewhere",
            "provider": "vast", "machine_id": machine, "attempt_type": "deploy", "outcome": outcome,
            "stage": "ready", "reason": (outcome == "failed").then_some("ssh_failed"),
            "error_message": null, "duration_seconds": 30.0, "ready_seconds": null,
            "created_at": 1_790_000_000_000_000_i64, "host_id": null, "gpu_name": "RTX 4090",
            "price": 0.3, "region": null, "image": null, "image_digest": null, "cuda": null,
            "provider_reliability": null, "inet_down_mbps": null, "score": null, "prior_mean": null,
            "score_s": 0.0, "score_f": 0.0,
        })
    };
    let all = (0..won)
        .map(|n| line(n, "won"))
        .chain((0..failed).map(|n| line(n, "failed")));
    all.map(|l| format!("{l}\n")).collect()
}

async fn machines_on_offer(world: &World) -> Vec<String> {
    let page = world.get("/instances/offers?limit=500").await;
    let items = page["items"].as_array().unwrap();
    items
        .iter()
        .map(|o| o["machine_id"].as_str().unwrap().to_owned())
        .collect()
}

async fn deploy_one(world: &World, name: &str) -> Value {
    let mut spec = world::spec(name);
    spec["failover"] = json!({ "racers": 1 });
    let created = world.post("/workspaces", json!({ "spec": spec })).await;
    world.ended(created["workflow_id"].as_str().unwrap()).await
}

fn said<'a>(workflow: &'a Value, start: &str) -> Option<&'a str> {
    let log = workflow["log"].as_array().unwrap();
    let mut lines = log.iter().filter_map(Value::as_str);
    lines.find(|l| l.starts_with(start))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_best_that_is_left_is_warned_of_where_it_is_fair_or_poor() {
    for (won, failed, level, numbers) in [
        (2, 2, "fair", "2 of 4"),
        (2, 4, "poor", "4 of 6"),
        (3, 1, "good", ""),
    ] {
        let world = World::instant().await;
        let lines: String = machines_on_offer(&world)
            .await
            .iter()
            .map(|m| lines_of(m, won, failed))
            .collect();
        let (status, report) = world.curl("POST", &format!("{HISTORY}/import"), &lines).await;
        assert_eq!(status, 200, "{report}");
        let workflow = deploy_one(&world, "w").await;
        assert_eq!(workflow["status"], "done", "{workflow:#}");
        let warning = said(&workflow, "the best that is left");
        if numbers.is_empty() {
            assert_eq!(warning, None, "{workflow:#}");
            continue;
        }
        let warning = warning.unwrap_or_else(|| panic!("{workflow:#}"));
        assert!(
            warning.starts_with(&format!("the best that is left is {level}: vast:"))
                && warning.ends_with(&format!("failed in {numbers} attempts, mostly ssh_failed")),
            "{warning}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_too_few_are_left_the_search_goes_below_the_bar_and_says_so() {
    let world = World::instant().await;
    let machines = machines_on_offer(&world).await;
    assert!(machines.len() > 2, "{machines:?}");
    let block = async |machine: &str, kind: &str| {
        let entry = json!({"provider": "vast", "machine_id": machine, "reason": "ssh_failed", "blacklist_type": kind});
        world.post(&format!("{HISTORY}/blacklist"), entry).await
    };
    // By hand all but the last two, of which one ends sooner.
    for machine in &machines[2..] {
        block(machine, "manual").await;
    }
    block(&machines[0], "automatic").await;
    block(&machines[1], "temporary").await;
    let workflow = deploy_one(&world, "w").await;
    assert_eq!(workflow["status"], "done", "{workflow:#}");
    let line = said(&workflow, "went below the bar").unwrap_or_else(|| panic!("{workflow:#}"));
    let soonest = format!("vast:{} (ssh_failed, for 2", machines[1]);
    assert!(
        line.contains("only 0 machines are free") && line.contains(&soonest),
        "{line}"
    );
    assert_eq!(
        world.get("/workspaces/w").await["instance"]["machine"],
        format!("vast:{}", machines[1])
    );
    // The entry stands; and what a person blocked is never passed over.
    let check = format!("{HISTORY}/blacklist/check/vast/{}", machines[1]);
    assert_eq!(world.get(&check).await["is_blacklisted"], true);
    for machine in &machines[..2] {
        block(machine, "manual").await;
    }
    let starved = deploy_one(&world, "x").await;
    assert_eq!(
        (&starved["status"], &starved["error"]["code"]),
        (&json!("failed"), &json!("no_offers")),
        "{starved:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn taken_literally_nothing_is_released() {
    let world = World::instant().await;
    let world = world
        .reconfigured(|w| w.blacklist.rules = dumont_core::blacklist::RuleSet::Literal)
        .await;
    for machine in machines_on_offer(&world).await {
        let entry =
            json!({"provider": "vast", "machine_id": machine, "reason": "x", "blacklist_type": "automatic"});
        world.post(&format!("{HISTORY}/blacklist"), entry).await;
    }
    let starved = deploy_one(&world, "w").await;
    assert_eq!(starved["error"]["code"], "no_offers", "{starved:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_team_shares_what_it_learned() {
    let (here, there) = (quiet().await, quiet().await);
    here.deployed("taught").await;
    let block = json!({"provider": "vast", "machine_id": "4", "reason": "noisy"});
    here.post(&format!("{HISTORY}/blacklist"), block).await;
    let lines = here.text(&format!("{HISTORY}/export")).await;
    let count = lines
        .lines()
        .filter(|l| l.contains(r#""kind":"attempt""#))
        .count();
    assert!(count > 0, "{lines}");

    let import = format!("{HISTORY}/import");
    // All or nothing where a line is wrong.
    let (status, error) = there
        .curl("POST", &import, &format!("{lines}{{\"kind\":\"x\"}}\n"))
        .await;
    assert_eq!((status, &error["code"]), (400, &json!("invalid_line")));
    assert_eq!(
        there.get(&format!("{HISTORY}/attempts")).await["items"],
        json!([])
    );

    let (status, error) = there.curl("POST", &import, "").await;
    assert_eq!((status, &error["code"]), (400, &json!("invalid_request")));

    let (status, report) = there.curl("POST", &import, &lines).await;
    assert_eq!(status, 200, "{report}");
    assert_eq!(
        (
            &report["attempts"],
            &report["blacklisted"],
            &report["entries_skipped"]
        ),
        (&json!(count), &json!(0), &json!(1)),
        "an import blocks nothing by itself"
    );
    let (_, again) = there.curl("POST", &import, &lines).await;
    assert_eq!((&again["attempts"], &again["known"]), (&json!(0), &json!(count)));
    let asked = format!("{import}?blacklist=true");
    assert_eq!(there.curl("POST", &asked, &lines).await.1["blacklisted"], 1);
    assert_eq!(there.curl("POST", &asked, &lines).await.1["blacklisted"], 0);
    let check = there.get(&format!("{HISTORY}/blacklist/check/vast/4")).await;
    assert_eq!(
        (&check["is_blacklisted"], &check["reason"]),
        (&json!(true), &json!("noisy"))
    );

    let rates = async |world: &World| {
        let summary = world.get(&format!("{HISTORY}/summary")).await;
        (summary["success_rate"].clone(), summary["total_attempts"].clone())
    };
    assert_eq!(rates(&here).await, rates(&there).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_only_counted_travels_too_and_never_twice() {
    let (here, there) = (quiet().await, quiet().await);
    let import = format!("{HISTORY}/import");
    let take = async |world: &World, lines: &str| {
        let (status, report) = world.curl("POST", &import, lines).await;
        assert_eq!(status, 200, "{report}");
        report
    };
    let stats = async |world: &World| {
        let s = world.get(&format!("{HISTORY}/stats/vast/7")).await;
        (
            s["total_attempts"].clone(),
            s["successful_attempts"].clone(),
            s["reasons"].clone(),
        )
    };
    let export = async |world: &World| world.text(&format!("{HISTORY}/export")).await;
    // Learned one by one, and sent so.
    take(&here, &lines_of("7", 3, 2)).await;
    let young = export(&here).await;
    assert_eq!(take(&there, &young).await["attempts"], 5);
    // Then it grows old here, and is only counted.
    let store = here.store().await;
    let later = dumont_core::time::Timestamp(1_791_000_000_000_000);
    assert_eq!(store.roll_up_attempts(later).await.unwrap(), 5);
    let old = export(&here).await;
    assert!(
        old.contains(r#""kind":"rollup""#) && !old.contains(r#""kind":"attempt""#),
        "{old}"
    );
    let again = take(&there, &old).await;
    assert_eq!(
        (&again["counted"], &again["attempts"]),
        (&json!(0), &json!(0)),
        "{again}"
    );
    assert_eq!(stats(&there).await, stats(&here).await);
    // Who never had the attempts takes the counts, once, and not the attempts after them.
    let third = quiet().await;
    assert_eq!(take(&third, &old).await["counted"], 5);
    assert_eq!(take(&third, &old).await["counted"], 0);
    assert_eq!(take(&third, &young).await["known"], 5);
    assert_eq!(stats(&third).await, stats(&here).await);
    assert_eq!(stats(&third).await.0, 5);
    let check = third.get(&format!("{HISTORY}/blacklist/check/vast/7")).await;
    assert_eq!(check["is_blacklisted"], false, "an import blocks nothing");
    // It comes back to where it was counted, and is known there.
    assert_eq!(take(&here, &export(&third).await).await["counted"], 0);
    for wrong in [
        old.replace(r#""attempts":3"#, r#""attempts":-3"#),
        old.replace(r#""ready_total_ms":0"#, r#""ready_total_ms":9"#),
        old.replace(r#""day":"#, r#""day":1"#),
        old.replace(r#""source":""#, r#""source":"../"#),
    ] {
        assert_ne!(wrong, old);
        let (status, error) = third.curl("POST", &import, &wrong).await;
        assert_eq!((status, &error["code"]), (400, &json!("invalid_line")), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn losses_of_the_host_block_for_a_day_and_the_accounts_own_do_not() {
    let world = World::instant().await;
    let world = world.reconfigured(|w| w.blacklist.interrupts = 1).await;
    let instance = async || {
        let workspace = world.get("/workspaces/w").await;
        let instance = &workspace["instance"];
        let of = |field: &str| instance[field].as_str().unwrap().to_owned();
        (of("instance_id"), of("machine").replace("vast:", ""))
    };
    world.deployed("w").await;
    // Stopped in the account, which looks like a higher bid: nothing is held against it.
    let (id, machine) = instance().await;
    world
        .admin("POST", &format!("/admin/instances/{id}/outbid"), None)
        .await;
    let event = world.failed_over("w").await;
    let stats = world.get(&format!("{HISTORY}/stats/vast/{machine}")).await;
    assert_eq!(stats["interrupts"][0]["cause"], "user_stop", "{event} {stats}");
    assert_eq!(stats["is_blacklisted"], false);
    // Gone by itself.
    let (id, machine) = instance().await;
    world.kill(&id).await;
    world.failed_over_again("w", event["id"].as_str().unwrap()).await;
    let check = world
        .get(&format!("{HISTORY}/blacklist/check/vast/{machine}"))
        .await;
    assert_eq!(
        (&check["blacklist_type"], &check["reason"]),
        (&json!("temporary"), &json!("frequent_interrupts")),
        "{check}"
    );
    let lasts = check["expires_at"].as_i64().unwrap() - check["blacklisted_at"].as_i64().unwrap();
    assert_eq!(lasts, 24 * 3_600_000_000);
    assert_ne!(instance().await.1, machine);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_race_that_is_called_off_leaves_an_attempt_of_each_racer() {
    let world = World::instant().await;
    world.arm(json!({ "fault": "stuck_loading", "count": 3 })).await;
    let mut spec = world::spec("w");
    spec["failover"] = json!({ "racers": 3 });
    let created = world.post("/workspaces", json!({ "spec": spec })).await;
    let workflow = created["workflow_id"].as_str().unwrap();
    while world.alive().await < 3 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let (status, started) = world.call("DELETE", "/workspaces/w", None).await;
    assert_eq!(status, 202, "{started}");
    world.done(&started["workflow_id"]).await;
    world.settles_at(0).await;
    let attempts = world.attempts(workflow).await;
    assert_eq!(attempts.len(), 3, "{attempts:#?}");
    for row in &attempts {
        let a = &row.attempt;
        assert_eq!(
            (
                row.success,
                a.outcome.as_str(),
                a.reason.as_ref().map(|r| r.as_str())
            ),
            (None, "not_host", Some("cancelled")),
            "{a:#?}"
        );
        assert_eq!((a.attempt_type.as_str(), a.stage.as_str()), ("deploy", "boot"));
    }
    let summary = world.get(&format!("{HISTORY}/summary")).await;
    assert_eq!(summary["uncounted_attempts"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_race_teaches_the_history_and_a_loss_is_remembered() {
    let world = World::instant().await;
    let workspace = world.deployed("learner").await;
    let machine = workspace["instance"]["machine"].as_str().unwrap().to_owned();
    let (provider, id) = machine.split_once(':').unwrap();
    let stats = world.get(&format!("{HISTORY}/stats/{provider}/{id}")).await;
    assert_eq!(
        (&stats["successful_attempts"], &stats["reliability_status"]),
        (&json!(1), &json!("excellent"))
    );
    let tried = world.get(&format!("{HISTORY}/attempts?success=true")).await;
    let won = &tried["items"][0];
    assert_eq!((&won["outcome"], &won["stage"]), (&json!("won"), &json!("ready")));
    assert!(won["ready_seconds"].is_f64() && won["host_id"].is_string() && won["price"].is_f64());

    world
        .kill(workspace["instance"]["instance_id"].as_str().unwrap())
        .await;
    world.failed_over("learner").await;
    // One loss is remembered and blocks nothing.
    let after = world.get(&format!("{HISTORY}/stats/{provider}/{id}")).await;
    assert_eq!(after["interrupts"].as_array().unwrap().len(), 1, "{after}");
    assert_eq!(after["interrupts"][0]["cause"], "host");
    assert_eq!(after["is_blacklisted"], false);
}
