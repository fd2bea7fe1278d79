//! The paged list of instances.
//!
//! Pages are cut by *value*, not by offset: the token holds the sort values of
//! the last row shown. With an offset, destroying an instance between two pages
//! would hide another from the reader, and a list that misses an instance is
//! how money is lost.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::{Shared, fail, ok};
use crate::market::now_ms;
use crate::query::{BadQuery, Filter, Row, SortKey, compare_keys, key_of};
use crate::view::InstanceView;

/// Page sizes (Vast.ai docs).
const MAX_PAGE: usize = 25;
const MIN_PAGE: usize = 5;

/// Columns that are stored; filters and orders on computed ones are refused.
const STORED: &[&str] = &[
    "id",
    "label",
    "machine_id",
    "host_id",
    "actual_status",
    "intended_status",
    "cur_state",
    "next_state",
    "gpu_name",
    "verification",
    "image_uuid",
    "start_date",
];

pub async fn deprecated() -> Response {
    let msg = "/api/v0/instances/ is deprecated. Use /api/v1/instances/ instead.";
    fail(StatusCode::GONE, "deprecated_endpoint", msg)
}

pub async fn list(State(inner): Shared, Query(query): Query<HashMap<String, String>>) -> Response {
    let page = match Page::parse(&query) {
        Ok(page) => page,
        Err(bad) => return fail(StatusCode::BAD_REQUEST, "invalid_request", &bad.to_string()),
    };
    let (state, now_ms) = (inner.state(), now_ms());
    let view = |instance| InstanceView {
        state: &state,
        instance,
        now_ms,
    };
    let views = state.all_alive().map(view).collect();
    ok(page.cut(views, InstanceView::row))
}

/// What there is to filter by.
pub async fn filters(State(inner): Shared) -> Response {
    let state = inner.state();
    let now_ms = now_ms();
    let pick = |instance| {
        let view = InstanceView {
            state: &state,
            instance,
            now_ms,
        };
        let columns = ["actual_status", "verification", "gpu_name"];
        Value::Object(columns.iter().map(|c| ((*c).to_owned(), view.field(c))).collect())
    };
    let filters: Vec<Value> = state.all_alive().map(pick).collect();
    ok(json!({"filters": filters}))
}

/// A parsed query string.
#[derive(Debug)]
struct Page {
    filter: Filter,
    order: Vec<SortKey>,
    limit: usize,
    after: Option<Value>,
    columns: Option<Vec<String>>,
}

impl Page {
    fn parse(query: &HashMap<String, String>) -> Result<Self, BadQuery> {
        let value = |key: &str| -> Result<Value, BadQuery> {
            let Some(text) = query.get(key).filter(|t| !t.is_empty()) else {
                return Ok(Value::Null);
            };
            serde_json::from_str(text).map_err(|_| BadQuery(format!("{key} is not JSON")))
        };
        let filter = match value("select_filters")? {
            Value::Null => Filter::default(),
            Value::Object(map) => Filter::parse(&map)?,
            _ => return Err(BadQuery("select_filters is an object".to_owned())),
        };
        for column in filter.fields() {
            stored(column)?;
        }
        let limit = match query.get("limit").map(|l| l.trim_matches('"').parse::<i64>()) {
            None => MAX_PAGE,
            Some(Ok(n)) if n <= 0 => MIN_PAGE,
            Some(Ok(n)) => usize::try_from(n).unwrap_or(MAX_PAGE).min(MAX_PAGE),
            Some(Err(_)) => return Err(BadQuery("limit is a number".to_owned())),
        };
        let after = query
            .get("after_token")
            .map(|t| t.trim_matches('"'))
            .filter(|t| !t.is_empty() && *t != "null");
        Ok(Self {
            filter,
            order: order(&value("order_by")?)?,
            limit,
            after: after.map(read_token).transpose()?,
            columns: columns(&value("select_cols")?),
        })
    }

    /// The answer for these rows, those of the page written out.
    fn cut<R: Row>(&self, rows: Vec<R>, written: impl Fn(&R) -> Value) -> Value {
        let total = rows.len();
        let found: Vec<R> = rows.into_iter().filter(|r| self.filter.matches(r)).collect();
        let mut labels: BTreeMap<String, u64> = BTreeMap::new();
        for row in &found {
            let label = row.field("label").as_str().unwrap_or("").to_owned();
            *labels.entry(label).or_insert(0) += 1;
        }
        let count = found.len();
        let mut found: Vec<(Vec<Value>, R)> =
            found.into_iter().map(|r| (key_of(&self.order, &r), r)).collect();
        found.sort_by(|(a, _), (b, _)| compare_keys(&self.order, a, b));
        if let Some(after) = &self.after {
            let after = key_of(&self.order, after);
            found.retain(|(key, _)| compare_keys(&self.order, key, &after) == Ordering::Greater);
        }
        let more = found.len() > self.limit;
        found.truncate(self.limit);
        let token = found.last().filter(|_| more).map(|(key, _)| self.token(key));
        let rows: Vec<Value> = found
            .iter()
            .map(|(_, row)| self.columns_of(written(row)))
            .collect();
        json!({
            "success": true, "instances_found": count, "total_instances": total, "label_counts": labels,
            "next_token": token, "instances": rows,
        })
    }

    fn token(&self, key: &[Value]) -> String {
        let columns = self.order.iter().map(|k| k.column.clone());
        let values: Map<String, Value> = columns.zip(key.iter().cloned()).collect();
        Value::Object(values)
            .to_string()
            .bytes()
            .map(|b| format!("{b:02x}"))
            .collect()
    }

    fn columns_of(&self, row: Value) -> Value {
        match &self.columns {
            None => row,
            Some(columns) => columns
                .iter()
                .map(|c| (c.clone(), row[c].clone()))
                .collect::<Map<_, _>>()
                .into(),
        }
    }
}

fn stored(column: &str) -> Result<(), BadQuery> {
    if STORED.contains(&column) {
        Ok(())
    } else {
        Err(BadQuery(format!("cannot filter or order by {column:?}")))
    }
}

/// The id comes last, so that the order is total and a page's end is one place.
fn order(value: &Value) -> Result<Vec<SortKey>, BadQuery> {
    let mut keys = Vec::new();
    for part in value.as_array().into_iter().flatten() {
        let column = part["col"].as_str().unwrap_or("id");
        stored(column)?;
        keys.push(SortKey::new(column, part["dir"].as_str().unwrap_or("asc"))?);
    }
    if keys.iter().all(|k| k.column != "id") {
        keys.push(SortKey::new("id", "asc")?);
    }
    Ok(keys)
}

fn columns(value: &Value) -> Option<Vec<String>> {
    let names: Vec<String> = value
        .as_array()?
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    (!names.is_empty() && !names.iter().any(|n| n == "*")).then_some(names)
}

fn read_token(token: &str) -> Result<Value, BadQuery> {
    let bad = || BadQuery("after_token is not one of ours".to_owned());
    let digits: Vec<u8> = token
        .chars()
        .map(|c| c.to_digit(16).map(|d| d as u8))
        .collect::<Option<_>>()
        .ok_or_else(bad)?;
    let bytes: Vec<u8> = digits
        .chunks(2)
        .map(|p| p.iter().fold(0, |n, d| n << 4 | d))
        .collect();
    serde_json::from_slice::<Value>(&bytes)
        .ok()
        .filter(Value::is_object)
        .ok_or_else(bad)
}

#[cfg(test)]
#[path = "listing_tests.rs"]
mod tests;
