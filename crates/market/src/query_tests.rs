use proptest::prelude::*;
use serde_json::json;

use super::*;

fn row() -> Value {
    json!({"id": 5, "ask_contract_id": 5, "num_gpus": 2, "gpu_name": "RTX 4090", "dph_total": 0.5,
        "verification": "verified", "geolocation": "Quebec, CA", "external": null, "rentable": true,
        "driver_version": "535.86.05", "driver_vers": 535_086_005, "cuda_max_good": 12.4, "hosting_type": 1})
}

fn offer_matches(filter: Value) -> bool {
    Filter::parse(filter.as_object().expect("object"))
        .expect("parses")
        .matches_offer(&row())
}

#[test]
fn table_of_filters() {
    let yes = [
        json!({}),
        json!({"num_gpus": {"eq": "2"}}),
        json!({"num_gpus": {"eq": 2.0}}),
        json!({"num_gpus": {"gt": 1, "lte": "2"}}),
        json!({"num_gpus": 2}),
        json!({"num_gpus": null}),
        json!({"gpu_name": {"eq": "RTX_4090"}}),
        json!({"gpu_name": {"in": ["RTX 3090", "RTX 4090"]}}),
        json!({"gpu_name": {"in": "[RTX_3090,RTX_4090]"}}),
        json!({"gpu_name": {"notin": ["H100 SXM"]}}),
        json!({"gpu_name": {"neq": "H100 SXM"}}),
        json!({"verified": {"eq": true}}),
        json!({"verified": {"eq": "true"}}),
        json!({"external": {"eq": false}, "rentable": {"eq": true}}),
        json!({"geolocation": {"in": ["US", "CA"]}}),
        json!({"geolocation": {"notin": ["CN", "VN"]}}),
        json!({"driver_version": {"gte": 535_000_000}}),
        json!({"cuda_max_good": {"gte": "12.4"}}),
        json!({"datacenter": {"eq": true}}),
        json!({"ask_contract_id": {"eq": 5}}),
    ];
    for filter in yes {
        assert!(offer_matches(filter.clone()), "{filter}");
    }
    let no = [
        json!({"id": {"eq": 5}}),
        json!({"num_gpus": {"gte": "3"}}),
        json!({"num_gpus": {"eq": "two"}}),
        json!({"verified": {"eq": false}}),
        json!({"geolocation": {"eq": "Quebec, CA"}}),
        json!({"geolocation": {"in": ["US"]}}),
        json!({"cuda_max_good": {"gt": "12.4"}}),
        json!({"no_such_column": {"eq": 1}}),
    ];
    for filter in no {
        assert!(!offer_matches(filter.clone()), "{filter}");
    }
}

#[test]
fn what_is_not_understood_is_refused() {
    for body in [
        json!({"num_gpus": {"is": 1}}),
        json!({"type": "free"}),
        json!({"limit": "many"}),
        json!({"order": [["score", "up"]]}),
        json!({"order": ["score"]}),
    ] {
        assert!(
            OfferQuery::parse(body.as_object().expect("object")).is_err(),
            "{body}"
        );
    }
}

#[test]
fn limits_and_defaults() {
    let parse = |v: Value| OfferQuery::parse(v.as_object().expect("object")).expect("parses");
    let q = parse(json!({}));
    assert_eq!((q.limit, q.bid, q.storage_gb), (64, false, 8.0));
    assert_eq!(parse(json!({"limit": 1000})).limit, 64);
    assert_eq!(parse(json!({"limit": "3", "type": "ondemand"})).limit, 3);
    assert!(parse(json!({"type": "bid"})).bid);
    let rows = (0..100).map(|n| json!({"dph_total": n, "score": n}));
    assert_eq!(q.select(rows.clone())[0]["score"], 99);
    let q = parse(json!({"order": [["dph_total", "asc"]], "limit": 2}));
    assert_eq!(
        q.select(rows),
        [
            json!({"dph_total": 0, "score": 0}),
            json!({"dph_total": 1, "score": 1})
        ]
    );
}

proptest! {
    /// A number and its text filter alike, and each operator is the opposite of its twin.
    #[test]
    fn operators_agree(left in -1000i64..1000, right in -1000i64..1000) {
        let row = json!({"x": left});
        let holds = |op: &str, v: Value| {
            let filter = json!({"x": {op: v}});
            Filter::parse(filter.as_object().expect("object")).expect("parses").matches(&row)
        };
        for (op, twin) in [("eq", "neq"), ("gt", "lte"), ("lt", "gte")] {
            prop_assert_eq!(holds(op, json!(right)), holds(op, json!(right.to_string())));
            prop_assert_ne!(holds(op, json!(right)), holds(twin, json!(right)));
        }
        prop_assert_eq!(holds("in", json!([right])), holds("eq", json!(right)));
        prop_assert_ne!(holds("notin", json!([right])), holds("eq", json!(right)));
    }

    /// Whatever is sent, parsing answers and never panics.
    #[test]
    fn any_text_is_survived(field in ".{0,8}", op in ".{0,5}", value in ".{0,8}") {
        let body = json!({field: {op: value}});
        if let Ok(query) = OfferQuery::parse(body.as_object().expect("object")) {
            query.select([row()]);
        }
    }
}
