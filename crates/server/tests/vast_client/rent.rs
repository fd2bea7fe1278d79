use crate::fake::{Fake, LABEL, Reply, Seen, class, instance, listing, offer, request};
use dumont_server::providers::vast::Vast;
use dumont_server::providers::{ErrorClass, Provider, RentRequest};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

const ASK: &str = "/api/v0/asks/12345678/";
const LIST: &str = "/api/v1/instances/";

fn created() -> Value {
    json!({"success": true, "new_contract": 7654321, "instance_api_key": "0000"})
}

/// A server whose creates answer so and whose listings answer by how often they were asked.
async fn server(
    create: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    list: impl Fn(usize) -> Reply + Send + Sync + 'static,
) -> Fake {
    let listings = std::sync::atomic::AtomicUsize::new(0);
    Fake::start(move |seen| match seen.method.as_str() {
        "PUT" => create(seen),
        "GET" => list(listings.fetch_add(1, std::sync::atomic::Ordering::SeqCst)),
        _ => Reply::Json(200, json!({"success": true})),
    })
    .await
}

#[tokio::test]
async fn sends_what_the_real_client_sends() {
    let fake = server(|_| Reply::Json(200, created()), |_| listing(vec![])).await;
    assert_eq!(fake.client().rent(&request()).await.unwrap(), "7654321");
    let seen = fake.seen();
    assert_eq!(
        seen.len(),
        1,
        "nothing is looked up around a create that is answered"
    );
    assert!(seen[0].is("PUT", ASK));
    let body = json!({
        "client_id": "me", "image": "pytorch/pytorch:latest", "env": {"A": "b", "-p 8000:8000": "1"}, "price": null,
        "disk": 40.0, "label": LABEL, "extra": null, "onstart": "touch ~/.no_auto_tmux\necho up", "image_login": null,
        "python_utf8": false, "lang_utf8": false, "use_jupyter_lab": false, "jupyter_dir": null, "force": false,
        "cancel_unavail": true, "template_hash_id": null, "user": null, "runtype": "ssh_direc ssh_proxy",
    });
    assert_eq!(seen[0].body, body);
}

#[tokio::test]
async fn refusals_are_typed_and_prove_that_nothing_was_rented() {
    let gone = "error 404/3603: no_such_ask Instance type by id 5 is not available.";
    let cases = [
        (
            404,
            json!({"success": false, "error": "invalid_args", "msg": gone}),
            ErrorClass::OfferGone,
        ),
        (
            410,
            json!({"error": "no_such_ask", "msg": "error 410/3907"}),
            ErrorClass::OfferGone,
        ),
        (
            400,
            json!({"msg": "This offer is no longer available"}),
            ErrorClass::OfferGone,
        ),
        (
            200,
            json!({"success": false, "error": "no_such_ask"}),
            ErrorClass::OfferGone,
        ),
        (200, json!({"error": "insufficient_credit"}), ErrorClass::Credit),
        (
            400,
            json!({"success": false, "error": "insufficient_credit", "msg": "x"}),
            ErrorClass::Credit,
        ),
        (
            404,
            json!({"error": "auth_error", "msg": "Invalid user key"}),
            ErrorClass::Auth,
        ),
        (401, json!({"msg": "who?"}), ErrorClass::Auth),
        (
            400,
            json!({"error": "invalid_price", "ask_id": 5}),
            ErrorClass::Invalid,
        ),
        (
            403,
            json!({"error": "invalid_args", "msg": "Offer 5 is not your own"}),
            ErrorClass::Invalid,
        ),
    ];
    for (status, body, expected) in cases {
        let reply = body.clone();
        let fake = server(move |_| Reply::Json(status, reply.clone()), |_| listing(vec![])).await;
        assert_eq!(
            class(fake.client().rent(&request()).await),
            expected,
            "{status} {body}"
        );
        assert_eq!(fake.seen().len(), 1, "{status} {body}");
    }
}

type Answer = fn(&Seen) -> Reply;

/// Everything after which nobody knows whether the server has acted.
fn unclear() -> Vec<(&'static str, Answer)> {
    vec![
        ("cut", |_| Reply::Cut),
        ("502", |_| Reply::Text(502, "<html>Bad gateway</html>".into())),
        ("500", |_| Reply::Json(500, json!({"error": "no_such_ask"}))),
        ("504", |_| Reply::Text(504, String::new())),
        ("redirect", |_| Reply::Json(301, created())),
        ("html", |_| Reply::Text(200, "<html>Welcome</html>".into())),
        ("half", |_| {
            Reply::Text(200, "{\"success\": true, \"new_con".into())
        }),
        ("no number", |_| Reply::Json(200, json!({"success": true}))),
        ("bad number", |_| {
            Reply::Json(200, json!({"success": true, "new_contract": -5}))
        }),
        ("no success", |_| {
            Reply::Json(200, json!({"new_contract": 7654321}))
        }),
        ("flood", |_| Reply::Flood(4 << 20)),
    ]
}

#[tokio::test]
async fn an_unanswered_create_is_found_by_its_label_even_late() {
    for (name, reply) in unclear() {
        let other = || instance(1, "unit-b");
        let late = move |n| {
            listing(if n < 2 {
                vec![other()]
            } else {
                vec![other(), instance(7654321, LABEL)]
            })
        };
        let fake = server(reply, late).await;
        assert_eq!(fake.client().rent(&request()).await.unwrap(), "7654321", "{name}");
        assert_eq!(
            (fake.count("PUT", ASK), fake.count("GET", LIST)),
            (1, 3),
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_silent_server_is_looked_at_again_after_the_timeout() {
    let fake = server(|_| Reply::Hang, |_| listing(vec![instance(7654321, LABEL)])).await;
    let mut config = fake.config();
    config.timeout = Duration::from_millis(300);
    assert_eq!(
        Vast::new(config).unwrap().rent(&request()).await.unwrap(),
        "7654321"
    );
}

#[tokio::test]
async fn absence_in_complete_listings_means_that_nothing_was_done() {
    for (name, reply) in unclear() {
        let fake = server(reply, |_| listing(vec![instance(1, "unit-b")])).await;
        assert_eq!(
            class(fake.client().rent(&request()).await),
            ErrorClass::Transient,
            "{name}"
        );
        assert_eq!(
            (fake.count("PUT", ASK), fake.count("GET", LIST)),
            (1, 4),
            "{name}: looked several times"
        );
    }
}

#[tokio::test]
async fn empty_failed_or_cut_listings_leave_it_uncertain() {
    type List = fn(usize) -> Reply;
    let cases: [(&str, List); 4] = [
        ("empty", |_| listing(vec![])),
        ("failed", |_| Reply::Text(500, "oops".into())),
        ("failed at last", |n| {
            if n < 3 {
                listing(vec![instance(1, "b")])
            } else {
                Reply::Json(500, json!({}))
            }
        }),
        ("truncated", |_| {
            Reply::Json(
                200,
                json!({"instances": [instance(1, "b")], "instances_found": 2}),
            )
        }),
    ];
    for (name, list) in cases {
        let fake = server(|_| Reply::Cut, list).await;
        assert_eq!(
            class(fake.client().rent(&request()).await),
            ErrorClass::Uncertain,
            "{name}"
        );
        assert_eq!(fake.count("PUT", ASK), 1, "{name}");
    }
}

#[tokio::test]
async fn looking_ends_in_time() {
    let fake = server(|_| Reply::Cut, |_| Reply::Hang).await;
    let mut config = fake.config();
    config.lookup_limit = Duration::from_millis(200);
    let started = Instant::now();
    assert_eq!(
        class(Vast::new(config).unwrap().rent(&request()).await),
        ErrorClass::Uncertain
    );
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn of_a_doubled_create_the_oldest_instance_stays() {
    let double = |_: usize| {
        listing(vec![
            instance(9, LABEL),
            instance(3, "unit-b"),
            instance(5, LABEL),
        ])
    };
    let fake = server(|_| Reply::Cut, double).await;
    assert_eq!(fake.client().rent(&request()).await.unwrap(), "5");
    let destroyed: Vec<_> = fake
        .seen()
        .into_iter()
        .filter(|s| s.method == "DELETE")
        .map(|s| s.path)
        .collect();
    assert_eq!(destroyed, ["/api/v0/instances/9/"]);
}

#[tokio::test]
async fn a_contract_left_by_a_refusal_is_destroyed() {
    for status in [200, 400, 410] {
        let refusal = json!({"success": false, "error": "no_such_ask", "msg": "x", "new_contract": "777"});
        let fake = server(move |_| Reply::Json(status, refusal.clone()), |_| listing(vec![])).await;
        assert_eq!(class(fake.client().rent(&request()).await), ErrorClass::OfferGone);
        let last = fake.seen().pop().unwrap();
        assert!(last.is("DELETE", "/api/v0/instances/777/"), "{last:?}");
        assert_eq!(last.body, json!({}));
    }
    let fake = Fake::start(|seen| match seen.method.as_str() {
        "PUT" => Reply::Json(
            200,
            json!({"success": false, "msg": "bid too low", "new_contract": 777}),
        ),
        _ => Reply::Json(500, json!({})),
    })
    .await;
    let error = fake.client().rent(&request()).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Uncertain);
    assert!(error.message.contains("777"), "{error}");
}

#[tokio::test]
async fn rate_limits_are_waited_out_and_then_told() {
    let bodies = [
        Reply::Text(429, "API requests too frequent".into()),
        Reply::Json(429, json!({"detail": "endpoint threshold=4.5"})),
        Reply::Json(429, json!({"success": false, "error": "rate_limit_exceeded"})),
    ];
    let bodies = std::sync::Mutex::new(Vec::from(bodies));
    let fake = server(
        move |_| {
            bodies
                .lock()
                .unwrap()
                .pop()
                .unwrap_or(Reply::Json(200, created()))
        },
        |_| listing(vec![]),
    )
    .await;
    assert_eq!(fake.client().rent(&request()).await.unwrap(), "7654321");
    let at: Vec<_> = fake.seen().iter().map(|s| s.at).collect();
    for (n, least) in [10, 20, 40].into_iter().enumerate() {
        assert!(at[n + 1] - at[n] >= Duration::from_millis(least), "wait {n}");
    }

    let fake = server(
        |_| Reply::Text(429, "API requests too frequent".into()),
        |_| listing(vec![]),
    )
    .await;
    assert_eq!(
        class(fake.client().rent(&request()).await),
        ErrorClass::RateLimited { retry_after: None }
    );
    assert_eq!((fake.count("PUT", ASK), fake.seen().len()), (4, 4));
}

/// What was refused is not sent again for a race that is over: its machine would be nobody's.
#[tokio::test]
async fn a_rent_that_nobody_wants_any_more_is_not_sent_again() {
    let too_early = |_: &Seen| Reply::Header(429, "retry-after", "0.3".into(), json!({}));
    let fake = server(too_early, |_| listing(vec![])).await;
    let (client, request) = (fake.client(), request());
    let withdrawn = request.withdrawn.clone();
    let rent = client.rent(&request);
    let over = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        withdrawn.cancel();
    };
    let (rented, ()) = tokio::join!(rent, over);
    assert!(matches!(class(rented), ErrorClass::RateLimited { .. }));
    assert_eq!(fake.seen().len(), 1);
}

#[tokio::test]
async fn retry_after_is_honoured_up_to_a_minute() {
    let reply = |s: &Seen| match s.nth {
        0 => Reply::Header(429, "retry-after", "0.2".into(), json!({})),
        _ => Reply::Json(200, created()),
    };
    let fake = server(reply, |_| listing(vec![])).await;
    fake.client().rent(&request()).await.unwrap();
    let seen = fake.seen();
    assert!(seen[1].at - seen[0].at >= Duration::from_millis(200));

    let fake = server(
        |_| Reply::Header(429, "retry-after", "3600".into(), json!({})),
        |_| listing(vec![]),
    )
    .await;
    let limited = ErrorClass::RateLimited {
        retry_after: Some(Duration::from_secs(3600)),
    };
    assert_eq!(class(fake.client().rent(&request()).await), limited);
    assert_eq!(fake.seen().len(), 1);
}

#[tokio::test]
async fn creates_keep_their_distance() {
    let fake = server(|_| Reply::Json(200, created()), |_| listing(vec![])).await;
    let mut config = fake.config();
    config.stagger = Duration::from_millis(60);
    let client = Arc::new(Vast::new(config).unwrap());
    let started = Instant::now();
    let rents = (0..4).map(|_| {
        let client = Arc::clone(&client);
        async move {
            client.rent_turn().await?;
            client.rent(&request()).await
        }
    });
    futures::future::try_join_all(rents).await.unwrap();
    let at: Vec<_> = fake.seen().iter().map(|s| s.at).collect();
    assert!(
        at[0] - started < Duration::from_millis(50),
        "the first one does not wait"
    );
    // The server's view is a little blurred by scheduling; the sum is not.
    assert!(at[3] - at[0] >= Duration::from_millis(160), "{:?}", at[3] - at[0]);
}

#[tokio::test]
async fn what_vast_would_refuse_late_is_refused_before_it_is_sent() {
    let fake = server(|_| Reply::Json(200, created()), |_| listing(vec![])).await;
    let client = fake.client();
    type Change = fn(&mut RentRequest);
    let changes: Vec<(&str, Change)> = vec![
        ("offer", |r| r.offer.offer_id = "1/../../users".into()),
        ("provider", |r| r.offer.machine = "ssh:1".parse().unwrap()),
        ("label", |r| r.label = String::new()),
        ("label", |r| r.label = "a\nb".into()),
        ("label", |r| r.label = "x".repeat(257)),
        ("image", |r| r.image = String::new()),
        ("disk", |r| r.disk_gb = 7),
        ("onstart", |r| r.onstart = "x".repeat(4096)),
        ("ports", |r| r.ports = vec![0]),
        ("ports", |r| r.ports = (1..=65).collect()),
        ("env option", |r| {
            drop(r.env.insert("-p 22:22".into(), "1".into()))
        }),
        ("env name", |r| {
            drop(r.env.insert("--privileged".into(), "1".into()))
        }),
        ("env value", |r| drop(r.env.insert("A".into(), "x".repeat(257)))),
    ];
    for (name, change) in changes {
        let mut bad = request();
        change(&mut bad);
        assert_eq!(class(client.rent(&bad).await), ErrorClass::Invalid, "{name}");
    }
    assert_eq!(offer().offer_id, "12345678");
    assert!(fake.seen().is_empty());
}

#[tokio::test]
async fn a_bid_is_sent_and_one_that_is_too_low_leaves_nothing() {
    let fake = server(|_| Reply::Json(200, created()), |_| listing(vec![])).await;
    let bid = RentRequest {
        bid: Some(0.125),
        ..request()
    };
    fake.client().rent(&bid).await.unwrap();
    assert_eq!(fake.seen()[0].body["price"], json!(0.125));
    let low = json!({"success": false, "error": "bid_too_low", "msg": "x", "new_contract": 777});
    let fake = server(move |_| Reply::Json(200, low.clone()), |_| listing(vec![])).await;
    assert_eq!(class(fake.client().rent(&bid).await), ErrorClass::BidTooLow);
    assert!(fake.seen().pop().unwrap().is("DELETE", "/api/v0/instances/777/"));
    let odd = RentRequest {
        bid: Some(f64::NAN),
        ..request()
    };
    assert_eq!(class(fake.client().rent(&odd).await), ErrorClass::Invalid);
}
