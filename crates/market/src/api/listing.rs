//! The paged list of instances.
//!
//! Pages are cut by *value*, not by offset: the token holds the sort values of
//! the last row shown. With an offset, destroying an instance between two pages
//! would hide another from the reader, and a list that misses an instance is
//! how money is lost.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Shared, fail, ok};
use crate::cell::{Cell, Row};
use crate::market::now_ms;
use crate::order::{Keys, SortKey, compare_keys};
use crate::query::{BadQuery, Filter};
use crate::rows::InstanceView;

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
    let views = state
        .all_alive()
        .filter_map(|i| InstanceView::new(&state, i, now_ms));
    Json(page.cut(&views.collect::<Vec<_>>())).into_response()
}

/// What there is to filter by.
pub async fn filters(State(inner): Shared) -> Response {
    let state = inner.state();
    let now_ms = now_ms();
    let columns = ["actual_status", "verification", "gpu_name"].map(str::to_owned);
    let views: Vec<_> = state
        .all_alive()
        .filter_map(|i| InstanceView::new(&state, i, now_ms))
        .collect();
    let filters: Vec<_> = views.iter().map(|view| picked(view, &columns)).collect();
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

    /// The answer for these rows.
    fn cut<'a, R: Row>(&'a self, rows: &'a [R]) -> Answer<'a, R> {
        let (sieve, label) = (self.filter.sieve::<R>(), R::column("label"));
        let mut shown: Vec<usize> = (0..rows.len()).filter(|at| sieve.lets(&rows[*at])).collect();
        let instances_found = shown.len();
        let mut label_counts = BTreeMap::new();
        for at in &shown {
            let label = match rows[*at].at(label.as_ref()) {
                Cell::Text(label) => label.into_owned(),
                _ => String::new(),
            };
            *label_counts.entry(label).or_insert(0) += 1;
        }
        let keys = Keys::of(&self.order, rows);
        if let Some(after) = &self.after {
            let after = Keys::of(&self.order, std::slice::from_ref(after));
            shown.retain(|at| compare_keys(&self.order, keys.get(*at), after.get(0)) == Ordering::Greater);
        }
        let more = shown.len() > self.limit;
        keys.first(&mut shown, self.limit);
        let last = shown.last().filter(|_| more);
        let write = |at: &usize| match &self.columns {
            None => Shown::Whole(&rows[*at]),
            Some(columns) => Shown::Some(picked(&rows[*at], columns)),
        };
        Answer {
            success: true,
            instances_found,
            total_instances: rows.len(),
            label_counts,
            next_token: last.map(|at| self.token(keys.get(*at))),
            instances: shown.iter().map(write).collect(),
        }
    }

    fn token(&self, key: &[Cell<'_>]) -> String {
        let columns = self.order.iter().map(|k| k.column.as_str());
        let values: BTreeMap<&str, &Cell<'_>> = columns.zip(key).collect();
        let text = json!(values).to_string();
        text.bytes().map(|b| format!("{b:02x}")).collect()
    }
}

#[derive(Serialize)]
struct Answer<'a, R> {
    success: bool,
    instances_found: usize,
    total_instances: usize,
    label_counts: BTreeMap<String, u64>,
    next_token: Option<String>,
    instances: Vec<Shown<'a, R>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Shown<'a, R> {
    Whole(&'a R),
    Some(Map<String, Value>),
}

/// These columns of a row; null where there is no such.
fn picked(row: &impl Row, columns: &[String]) -> Map<String, Value> {
    let pick = |name: &String| (name.clone(), json!(row.named(name)));
    columns.iter().map(pick).collect()
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
