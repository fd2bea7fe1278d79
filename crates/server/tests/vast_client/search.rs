use crate::fake::{Fake, KEY, Reply, class, query};
use dumont_server::providers::vast::Vast;
use dumont_server::providers::{ErrorClass, OfferQuery, Provider};
use serde_json::{Value, json};

fn row(id: u64, price: Value) -> Value {
    json!({"id": id, "ask_contract_id": id, "machine_id": 88888, "host_id": 55555, "num_gpus": 1,
        "gpu_name": "RTX 4090", "gpu_ram": 24564, "cuda_max_good": 12.8, "driver_version": "570.124.04",
        "disk_space": 512.0, "inet_up": 765.4, "inet_down": 876.5, "dph_base": 0.33, "dph_total": price,
        "rentable": true, "rented": false, "is_bid": false, "external": null, "geolocation": "Quebec,\u{1b}[1m CA",
        "reliability": 0.9971, "reliability2": 0.9971, "verification": "verified"})
}

#[tokio::test]
async fn asks_as_the_real_client_does_and_reads_what_it_answers() {
    let fake = Fake::start(|_| Reply::Json(200, json!({"offers": [row(12345678, json!(0.3311))]}))).await;
    let query = OfferQuery {
        gpu_name: Some("RTX_4090".into()),
        gpu_count: 1,
        min_gpu_ram_mb: Some(20_000),
        max_price: Some(0.5),
        disk_gb: 40,
        machine_id: Some("88888".into()),
        region: Some("ca".into()),
        min_inet_down_mbps: Some(500.0),
        min_inet_up_mbps: Some(400.0),
        min_cuda: Some(12.4),
        datacenter: Some(false),
        ..OfferQuery::default()
    };
    let offers = fake.client().search(&query).await.unwrap();

    let asked = &fake.seen()[0];
    assert!(asked.is("POST", "/api/v0/bundles/"));
    assert_eq!(asked.headers["authorization"], format!("Bearer {KEY}"));
    // The service refuses anything but exactly this.
    assert_eq!(asked.headers["content-type"], "application/json");
    let body = json!({
        "verified": {"eq": true}, "external": {"eq": false}, "rentable": {"eq": true},
        "gpu_name": {"eq": "RTX 4090"}, "num_gpus": {"eq": 1}, "gpu_ram": {"gte": 20_000}, "disk_space": {"gte": 40},
        "machine_id": {"eq": 88888}, "geolocation": {"in": ["CA"]}, "inet_down": {"gte": 500.0},
        "inet_up": {"gte": 400.0}, "cuda_max_good": {"gte": 12.4}, "datacenter": {"eq": false},
        "order": [["dph_total", "asc"]], "type": "on-demand", "limit": 64, "allocated_storage": 40,
    });
    assert_eq!(asked.body, body);

    let [offer] = offers.as_slice() else {
        panic!("{offers:?}")
    };
    assert_eq!(
        (offer.offer_id.as_str(), offer.machine.to_string().as_str()),
        ("12345678", "vast:88888")
    );
    assert_eq!(
        (offer.gpu_ram_mb, offer.price, offer.verified),
        (24_564, 0.3311, true)
    );
    assert_eq!(
        (offer.inet_down_mbps, offer.cuda_max, offer.provider_reliability),
        (876.5, Some(12.8), 0.9971)
    );
    assert_eq!(
        (offer.region.as_deref(), offer.host_id.as_deref()),
        (Some("Quebec, [1m CA"), Some("55555"))
    );
}

#[tokio::test]
async fn numbers_as_text_are_read_and_bad_prices_cost_only_their_row() {
    let body = json!({"offers": [row(1, json!("0.25")), row(2, json!("NaN")), row(3, json!(-1)), row(4, Value::Null), 5]});
    // Python writes a bare NaN, which is not JSON at all.
    let text = body.to_string().replace("\"NaN\"", "NaN");
    let fake = Fake::start(move |_| Reply::Text(200, text.clone())).await;
    let offers = fake.client().search(&query()).await.unwrap();
    assert_eq!(
        offers
            .iter()
            .map(|o| (o.offer_id.as_str(), o.price))
            .collect::<Vec<_>>(),
        [("1", 0.25)]
    );
}

#[tokio::test]
async fn no_offers_is_an_answer_and_nonsense_is_not() {
    let fake = Fake::start(|_| Reply::Json(200, json!({"offers": []}))).await;
    assert!(fake.client().search(&query()).await.unwrap().is_empty());

    for body in [
        json!({}),
        json!([]),
        json!({"offers": 7}),
        json!({"offers": [{"id": 1}]}),
        json!("offers"),
    ] {
        let shown = body.clone();
        let fake = Fake::start(move |_| Reply::Json(200, body.clone())).await;
        assert_eq!(
            class(fake.client().search(&query()).await),
            ErrorClass::Protocol,
            "{shown}"
        );
    }
}

#[tokio::test]
async fn a_used_up_quota_is_not_asked_again() {
    let fake = Fake::start(|_| {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let body = json!({"success": false, "error": "search_quota_exceeded", "msg": "x"});
        let reset = now.as_secs() + 3_000;
        Reply::Header(429, "x-ratelimit-reset", reset.to_string(), body)
    })
    .await;
    let mut config = fake.config();
    config.limits = "search=600/min".parse().unwrap();
    let client = Vast::new(config).unwrap();
    for _ in 0..3 {
        match class(client.search(&query()).await) {
            ErrorClass::QuotaUsedUp { resets_in } => {
                assert!((2_900..3_100).contains(&resets_in.as_secs()), "{resets_in:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(fake.seen().len(), 1, "nobody asks before it comes back");
}
