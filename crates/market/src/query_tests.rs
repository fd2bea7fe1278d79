use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::offers::{Ask, Universe};
use crate::view::{OfferColumn, OfferView};

fn row() -> Value {
    json!({"id": 5, "ask_contract_id": 5, "num_gpus": 2, "gpu_name": "RTX 4090", "dph_total": 0.5,
        "verification": "verified", "geolocation": "Quebec, CA", "external": null, "rentable": true,
        "driver_version": "535.86.05", "driver_vers": 535_086_005, "cuda_max_good": 12.4, "hosting_type": 1})
}

fn offer_matches(filter: Value) -> bool {
    let filter = Filter::parse(filter.as_object().expect("object")).expect("parses");
    filter.offer_sieve::<Value>().lets(&row())
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
            let filter = Filter::parse(filter.as_object().expect("object")).expect("parses");
            filter.sieve::<Value>().lets(&row)
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

/// The language as it is described, over whole rows of JSON and with no thought of speed.
mod plainly {
    use super::*;

    fn compare(left: &Value, right: &Value) -> Option<Ordering> {
        match left {
            Value::Number(n) => n.as_f64()?.partial_cmp(&as_number(right)?),
            Value::Bool(b) => Some(b.cmp(&as_bool(right)?)),
            Value::String(s) => match right {
                Value::String(r) if s == r => Some(Ordering::Equal),
                Value::String(r) => Some(s.as_str().cmp(r.replace('_', " ").as_str())),
                Value::Number(r) => s.parse::<f64>().ok()?.partial_cmp(&r.as_f64()?),
                _ => None,
            },
            _ => None,
        }
    }

    fn holds(left: &Value, op: &str, right: &Value) -> bool {
        let order = compare(left, right);
        let equal = |r: &Value| left.is_null() && r.is_null() || compare(left, r) == Some(Ordering::Equal);
        match op {
            "eq" => equal(right),
            "neq" => !equal(right),
            "gt" => order == Some(Ordering::Greater),
            "gte" => order.is_some_and(Ordering::is_ge),
            "lt" => order == Some(Ordering::Less),
            "lte" => order.is_some_and(Ordering::is_le),
            "in" => members(right).iter().any(equal),
            _ => !members(right).iter().any(equal),
        }
    }

    fn seen(row: &Value, field: &str) -> Value {
        match field {
            "verified" => json!(row["verification"] == "verified"),
            "geolocation" => json!(row["geolocation"].as_str().and_then(|p| p.rsplit(", ").next())),
            "external" => json!(row["external"] == true),
            "driver_version" => row["driver_vers"].clone(),
            "datacenter" => json!(row["hosting_type"].as_u64() >= Some(1)),
            other => row[other].clone(),
        }
    }

    pub fn select(body: &Value, mut rows: Vec<Value>) -> Vec<Value> {
        let filters = body.as_object().expect("an object").iter();
        for (field, ops) in filters.filter(|(field, _)| !CONTROL.contains(&field.as_str())) {
            for (op, value) in ops.as_object().expect("operators") {
                rows.retain(|row| field != "id" && holds(&seen(row, field), op, value));
            }
        }
        for key in body["order"].as_array().expect("an order").iter().rev() {
            let column = key[0].as_str().expect("a column");
            rows.sort_by(|a, b| match (&a[column], &b[column]) {
                (Value::Null, y) => y.is_null().cmp(&true).reverse(),
                (_, Value::Null) => Ordering::Less,
                (x, y) if key[1] == "desc" => compare(y, x).unwrap_or(Ordering::Equal),
                (x, y) => compare(x, y).unwrap_or(Ordering::Equal),
            });
        }
        rows.truncate(body["limit"].as_u64().expect("a limit") as usize);
        rows
    }
}

/// Names that mean something else in a filter, names of columns, and names of nothing.
fn field() -> impl Strategy<Value = String> {
    const NAMES: &[&str] = &["id", "verified", "external", "datacenter", "nonsense", "gpu_ids"];
    const KNOWN: &[&str] = &[
        "gpu_name",
        "num_gpus",
        "dph_total",
        "geolocation",
        "verification",
        "driver_version",
    ];
    prop_oneof![
        1 => prop::sample::select(NAMES).prop_map(str::to_owned),
        3 => prop::sample::select(KNOWN).prop_map(str::to_owned),
        2 => prop::sample::select(OfferColumn::ALL).prop_map(|c| c.name().to_owned()),
        2 => prop::sample::select(crate::hardware::HardwareColumn::ALL).prop_map(|c| c.name().to_owned()),
    ]
}

/// A value near what some row has in that field, as one of the types that clients send.
fn body() -> impl Strategy<Value = Value> {
    let op = prop::sample::select(vec!["eq", "neq", "gt", "gte", "lt", "lte", "in", "notin"]);
    let filter = (field(), op, any::<prop::sample::Index>(), 0..7u8);
    let order = (field(), any::<bool>());
    let parts = (
        prop::collection::vec(filter, 0..4),
        prop::collection::vec(order, 0..4),
        0..=MAX_OFFERS,
    );
    parts.prop_map(|(filters, order, limit)| {
        let rows = written();
        let mut body = Map::new();
        for (field, op, row, form) in filters {
            let there = plainly_at(&rows[row.index(rows.len())], &field);
            let value = match form {
                0 => Value::Null,
                1 => json!(true),
                2 => json!(there.to_string().trim_matches('"').replace(' ', "_")),
                3 => json!([there, "CA", 2]),
                4 => json!(format!("[{there}, US]")),
                5 => json!("false"),
                _ => there,
            };
            body.insert(field, json!({op: value}));
        }
        let order: Vec<_> = order
            .iter()
            .map(|(column, down)| json!([column, if *down { "desc" } else { "asc" }]))
            .collect();
        body.insert("order".to_owned(), json!(order));
        body.insert("limit".to_owned(), json!(limit));
        Value::Object(body)
    })
}

fn plainly_at(row: &Value, field: &str) -> Value {
    row.get(field).cloned().unwrap_or(Value::Null)
}

fn universe() -> &'static Universe {
    static UNIVERSE: std::sync::OnceLock<Universe> = std::sync::OnceLock::new();
    UNIVERSE.get_or_init(|| Universe::from_seed(11, 80))
}

fn views() -> impl Iterator<Item = OfferView<'static>> {
    universe().offers.iter().map(|offer| {
        let machine = &universe().machines[offer.machine];
        let ask = Ask {
            quote: machine.quote(),
            disk_gb: 8.0,
            bid: false,
            now_s: 1e9,
        };
        OfferView { machine, offer, ask }
    })
}

fn written() -> &'static [Value] {
    static ROWS: std::sync::OnceLock<Vec<Value>> = std::sync::OnceLock::new();
    ROWS.get_or_init(|| views().map(|view| json!(view)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whether columns are looked at one by one or in whole rows, the same is found.
    #[test]
    fn a_search_finds_what_its_words_say(body in body()) {
        let query = OfferQuery::parse(body.as_object().expect("object")).expect("parses");
        let found: Vec<u64> = query.select(views()).iter().map(|view| view.offer.id).collect();
        let plainly = plainly::select(&body, written().to_vec());
        let plainly: Vec<u64> = plainly.iter().filter_map(|row| row["ask_contract_id"].as_u64()).collect();
        prop_assert_eq!(found, plainly);
    }
}
