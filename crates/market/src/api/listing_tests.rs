use super::*;

fn rows(n: u64) -> Vec<Value> {
    (1..=n)
        .map(|id| json!({"id": id, "label": (id % 3 != 0).then(|| format!("l{}", id % 2)), "dph_total": 0.1}))
        .collect()
}

fn page(pairs: &[(&str, &str)]) -> Result<Page, BadQuery> {
    Page::parse(
        &pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
    )
}

impl Page {
    fn shows(&self, rows: &[Value]) -> Value {
        json!(self.cut(rows))
    }
}

fn ids(answer: &Value) -> Vec<u64> {
    answer["instances"]
        .as_array()
        .expect("array")
        .iter()
        .filter_map(|r| r["id"].as_u64())
        .collect()
}

#[test]
fn pages_follow_on_even_when_rows_vanish_between_them() {
    let order = r#"[{"col":"label","dir":"desc"}]"#;
    let mut all = rows(60);
    let first = page(&[("order_by", order)]).expect("parses").shows(&all);
    assert_eq!((ids(&first).len(), &first["instances_found"]), (25, &json!(60)));
    let shown = ids(&first);
    let (dropped, last) = (shown[3], shown[24]);
    all.retain(|r| r["id"] != json!(dropped) && r["id"] != json!(last));
    let mut seen = shown;
    let mut token = first["next_token"].as_str().expect("more").to_owned();
    loop {
        let next = page(&[("order_by", order), ("after_token", &token)])
            .expect("parses")
            .shows(&all);
        seen.extend(ids(&next));
        match next["next_token"].as_str() {
            Some(more) => token = more.to_owned(),
            None => break,
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, (1..=60).collect::<Vec<_>>());
}

#[test]
fn limits_columns_labels() {
    let cut = |pairs: &[(&str, &str)]| page(pairs).expect("parses").shows(&rows(30));
    assert_eq!(ids(&cut(&[("limit", "100")])).len(), 25);
    assert_eq!(ids(&cut(&[("limit", "0")])).len(), 5);
    assert_eq!(ids(&cut(&[("limit", "7")])), [1, 2, 3, 4, 5, 6, 7]);
    let some = cut(&[("select_cols", r#"["id","nonsense"]"#), ("limit", "1")]);
    assert_eq!(some["instances"][0], json!({"id": 1, "nonsense": null}));
    assert_eq!(cut(&[])["label_counts"], json!({"": 10, "l0": 10, "l1": 10}));
    let filtered = cut(&[("select_filters", r#"{"label":{"eq":"l1"}}"#)]);
    assert_eq!(
        (&filtered["instances_found"], &filtered["total_instances"]),
        (&json!(10), &json!(30))
    );
}

#[test]
fn what_cannot_be_is_refused() {
    for pairs in [
        ("select_filters", r#"{"dph_total":{"lt":1}}"#),
        ("select_filters", "nonsense"),
        ("order_by", r#"[{"col":"num_gpus","dir":"asc"}]"#),
        ("after_token", "zz"),
        ("after_token", "5b5d"),
        ("limit", "x"),
    ] {
        assert!(page(&[pairs]).is_err(), "{pairs:?}");
    }
}
