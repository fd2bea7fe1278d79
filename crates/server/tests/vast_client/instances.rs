use crate::fake::{Fake, Reply, class, instance, listing};
use dumont_server::providers::{ErrorClass, InstanceStatus, Provider};
use serde_json::{Value, json};

/// Pages of two out of `n` instances, the token being the number of the next row.
fn page(n: u64, after: Option<&String>, next: impl Fn(u64) -> Value) -> Value {
    let from: u64 = after.map_or(0, |t| t.trim_matches('"').parse().unwrap());
    let rows: Vec<_> = (from..n.min(from + 2))
        .map(|i| instance(i + 1, &format!("u{i}")))
        .collect();
    let token = if from + 2 < n { next(from + 2) } else { Value::Null };
    json!({"success": true, "instances_found": n, "total_instances": n, "next_token": token, "instances": rows})
}

#[tokio::test]
async fn lists_to_the_last_page_and_reads_the_rows() {
    let fake =
        Fake::start(|s| Reply::Json(200, page(5, s.query.get("after_token"), |n| json!(n.to_string()))))
            .await;
    let client = fake.client();
    let all = client.list().await.unwrap();
    assert_eq!(
        all.iter().map(|i| i.instance_id.as_str()).collect::<Vec<_>>(),
        ["1", "2", "3", "4", "5"]
    );
    let first = &fake.seen()[0];
    assert!(first.is("GET", "/api/v1/instances/"));
    assert_eq!(
        (first.query["limit"].as_str(), first.query["select_cols"].as_str()),
        ("25", r#"["*"]"#)
    );
    assert_eq!(first.query["order_by"], r#"[{"col": "id", "dir": "asc"}]"#);
    let one = &all[0];
    assert_eq!(
        (one.machine_id.as_str(), one.label.as_deref(), one.price),
        ("88888", Some("u0"), 0.3311)
    );
    assert_eq!(one.status, InstanceStatus::Running);
    let ssh: Vec<_> = one.ssh.iter().map(|e| (e.host.as_str(), e.port)).collect();
    assert_eq!(ssh, [("203.0.113.42", 41022), ("ssh5.vast.ai", 34320)]);

    assert_eq!(
        client.find_by_label("u3").await.unwrap().unwrap().instance_id,
        "4"
    );
    assert_eq!(client.find_by_label("u").await.unwrap(), None);
}

/// Jupyter has the proxy's port that the row names, and SSH the next one.
#[tokio::test]
async fn beside_jupyter_the_proxys_port_is_the_next_one() {
    let fake = Fake::start(|_| {
        let mut both = instance(1, "a");
        both["image_runtype"] = json!("jupyter_direc ssh_direc ssh_proxy");
        let mut last = both.clone();
        last["id"] = json!(2);
        last["ssh_port"] = json!(65_535);
        let mut closed = both.clone();
        closed["id"] = json!(3);
        closed["ports"] = Value::Null;
        listing(vec![both, last, closed])
    })
    .await;
    let all = fake.client().list().await.unwrap();
    let ssh = |at: usize| -> Vec<_> { all[at].ssh.iter().map(|e| (e.host.as_str(), e.port)).collect() };
    assert_eq!(ssh(0), [("203.0.113.42", 41022), ("ssh5.vast.ai", 34321)]);
    assert_eq!(ssh(1), [("203.0.113.42", 41022)], "there is no port 65536");
    assert_eq!(
        ssh(2),
        [("ssh5.vast.ai", 34321)],
        "no direct port: the proxy alone"
    );
}

#[tokio::test]
async fn tokens_that_are_not_text_are_followed_too() {
    let fake = Fake::start(|s| Reply::Json(200, page(5, s.query.get("after_token"), |n| json!(n)))).await;
    assert_eq!(fake.client().list().await.unwrap().len(), 5);
}

#[tokio::test]
async fn a_part_of_a_listing_is_an_error() {
    let two = || json!([instance(1, "a"), instance(2, "b")]);
    let fixed = [
        (
            "fewer than found",
            json!({"instances": two(), "instances_found": 3}),
        ),
        (
            "the same token again",
            json!({"instances": two(), "next_token": "x"}),
        ),
        (
            "a row without an id",
            json!({"instances": [instance(1, "a"), {"label": "b"}]}),
        ),
        ("a row that is none", json!({"instances": [7]})),
        ("no list", json!({"success": true})),
        ("null", json!({"instances": null})),
        ("an object", json!({"instances": {"id": 1}})),
    ];
    for (name, body) in fixed {
        let fake = Fake::start(move |_| Reply::Json(200, body.clone())).await;
        assert_eq!(class(fake.client().list().await), ErrorClass::Protocol, "{name}");
    }
    let second: [(fn() -> Reply, ErrorClass); 4] = [
        (|| Reply::Json(500, json!({})), ErrorClass::Transient),
        (|| Reply::Cut, ErrorClass::Transient),
        (
            || Reply::Json(410, json!({"error": "deprecated_endpoint", "msg": "use v1"})),
            ErrorClass::Invalid,
        ),
        (
            || Reply::Text(200, "{\"instances\": [".into()),
            ErrorClass::Protocol,
        ),
    ];
    for (reply, expected) in second {
        let fake = Fake::start(move |s| match s.query.get("after_token") {
            None => Reply::Json(200, page(5, None, |n| json!(n.to_string()))),
            Some(_) => reply(),
        })
        .await;
        assert_eq!(class(fake.client().list().await), expected);
    }
    // A token that always changes must end as well.
    let fake =
        Fake::start(|s| Reply::Json(200, json!({"instances": [], "next_token": s.nth.to_string()}))).await;
    assert_eq!(class(fake.client().list().await), ErrorClass::Protocol);
}

#[tokio::test]
async fn an_empty_listing_is_told_as_it_is() {
    let fake = Fake::start(|_| listing(vec![])).await;
    assert_eq!(fake.client().list().await.unwrap(), []);
}

#[tokio::test]
async fn only_the_providers_own_word_means_gone() {
    let cases = [
        (200, json!({"instances": null}), None),
        (
            404,
            json!({"success": false, "error": "no_such_instance", "msg": "x"}),
            None,
        ),
        (200, json!({"instances": instance(7, "a")}), Some(Ok(()))),
        (
            200,
            json!({"instances": [instance(6, "b"), instance(7, "a")]}),
            Some(Ok(())),
        ),
        (
            200,
            json!({"instances": instance(8, "a")}),
            Some(Err(ErrorClass::Protocol)),
        ),
        (200, json!({"instances": []}), Some(Err(ErrorClass::Protocol))),
        (200, json!({}), Some(Err(ErrorClass::Protocol))),
        (
            404,
            json!({"error": "auth_error", "msg": "Invalid user key"}),
            Some(Err(ErrorClass::Auth)),
        ),
        (404, json!({"error": "not_found"}), Some(Err(ErrorClass::Invalid))),
        (
            500,
            json!({"error": "no_such_instance"}),
            Some(Err(ErrorClass::Transient)),
        ),
        (301, json!({"instances": null}), Some(Err(ErrorClass::Protocol))),
    ];
    for (status, body, expected) in cases {
        let reply = body.clone();
        let fake = Fake::start(move |_| Reply::Json(status, reply.clone())).await;
        let got = fake.client().get("7").await.map_err(|e| e.class);
        match (&got, expected) {
            (Ok(None), None) => {}
            (Ok(Some(i)), Some(Ok(()))) => assert_eq!(i.instance_id, "7"),
            (Err(class), Some(Err(expected))) => assert_eq!(*class, expected, "{status} {body}"),
            other => panic!("{status} {body}: {other:?}"),
        }
        assert_eq!(fake.seen()[0].query["owner"], "me");
    }
    let fake = Fake::start(|_| Reply::Text(404, "<html>Not found</html>".into())).await;
    assert_eq!(class(fake.client().get("7").await), ErrorClass::Protocol);
}

#[tokio::test]
async fn destroying_what_is_gone_succeeds_and_a_wrong_key_does_not() {
    let cases = [
        (200, json!({"success": true}), Ok(())),
        (
            404,
            json!({"success": false, "error": "not_found", "msg": "x"}),
            Ok(()),
        ),
        (
            404,
            json!({"success": false, "error": "no_such_instance"}),
            Ok(()),
        ),
        (
            200,
            json!({"success": false, "error": "no_such_instance"}),
            Ok(()),
        ),
        (
            200,
            json!({"success": false, "error": "busy"}),
            Err(ErrorClass::Invalid),
        ),
        (404, json!({"error": "auth_error"}), Err(ErrorClass::Auth)),
        (500, json!({"error": "not_found"}), Err(ErrorClass::Transient)),
        (302, json!({"success": true}), Err(ErrorClass::Protocol)),
    ];
    for (status, body, expected) in cases {
        let reply = body.clone();
        let fake = Fake::start(move |_| Reply::Json(status, reply.clone())).await;
        let got = fake.client().destroy("7").await.map_err(|e| e.class);
        assert_eq!(got, expected, "{status} {body}");
        let asked = &fake.seen()[0];
        assert!(
            asked.is("DELETE", "/api/v0/instances/7/") && asked.body == json!({}),
            "{asked:?}"
        );
    }
    let fake = Fake::start(|_| Reply::Text(404, "<html>Not found</html>".into())).await;
    assert_eq!(class(fake.client().destroy("7").await), ErrorClass::Protocol);
    for id in ["", "x", "7/../8", "-7", "7?x=1"] {
        assert_eq!(
            class(fake.client().destroy(id).await),
            ErrorClass::Invalid,
            "{id:?}"
        );
    }
}
