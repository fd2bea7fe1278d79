//! Vast's filter language over JSON rows: pure.
//!
//! A filter object is `field: {op: value}`. The official client sends most
//! values as *strings* (`"num_gpus": {"eq": "1"}`), so a comparison takes its
//! type from the row, never from the filter. A few fields filter differently
//! from how they read: `verified` is no column at all, `geolocation` filters by
//! country code while the row says "Quebec, CA", `id` matches nothing in a
//! search, `driver_version` arrives as the integer that `driver_vers` holds.

use std::cmp::Ordering;

use serde_json::{Map, Value};

/// Why a query was refused; the text goes out in `msg`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadQuery(pub String);

/// More offers than this are never returned, whatever `limit` says (public reports).
pub const MAX_OFFERS: usize = 64;
/// The disk that offers are priced with when the search names none (Vast.ai docs).
const DEFAULT_STORAGE_GB: f64 = 8.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Eq,
    Neq,
    Gt,
    Gte,
    Lt,
    Lte,
    In,
    NotIn,
}

impl Op {
    fn parse(name: &str) -> Result<Self, BadQuery> {
        Ok(match name {
            "eq" => Self::Eq,
            "neq" => Self::Neq,
            "gt" => Self::Gt,
            "gte" => Self::Gte,
            "lt" => Self::Lt,
            "lte" => Self::Lte,
            "in" => Self::In,
            "notin" => Self::NotIn,
            other => return Err(BadQuery(format!("unknown operator {other:?}"))),
        })
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Condition {
    field: String,
    op: Op,
    value: Value,
}

/// Something with named values.
pub trait Row {
    /// Null where there is no such field.
    fn field(&self, name: &str) -> Value;
}

impl Row for Value {
    fn field(&self, name: &str) -> Value {
        self.get(name).cloned().unwrap_or(Value::Null)
    }
}

/// Conditions that a row must all meet.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter(Vec<Condition>);

impl Filter {
    pub fn parse<'a>(fields: impl IntoIterator<Item = (&'a String, &'a Value)>) -> Result<Self, BadQuery> {
        let mut conditions = Vec::new();
        for (field, spec) in fields {
            match spec {
                Value::Null => {}
                Value::Object(ops) => {
                    for (op, value) in ops {
                        let (op, value) = (Op::parse(op)?, value.clone());
                        conditions.push(Condition {
                            field: field.clone(),
                            op,
                            value,
                        });
                    }
                }
                bare => conditions.push(Condition {
                    field: field.clone(),
                    op: Op::Eq,
                    value: bare.clone(),
                }),
            }
        }
        Ok(Self(conditions))
    }

    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|c| c.field.as_str())
    }

    pub fn matches(&self, row: &impl Row) -> bool {
        self.0.iter().all(|c| holds(&row.field(&c.field), c.op, &c.value))
    }

    /// As [`Self::matches`], with the oddities of offer search.
    pub fn matches_offer(&self, row: &impl Row) -> bool {
        self.0.iter().all(|c| match c.field.as_str() {
            // Really so: the ask is only found by `ask_contract_id`.
            "id" => false,
            field => holds(&offer_field(row, field), c.op, &c.value),
        })
    }
}

/// The value that an offer filter on `field` looks at.
fn offer_field(row: &impl Row, field: &str) -> Value {
    match field {
        "verified" => Value::Bool(row.field("verification") == "verified"),
        "geolocation" => {
            let place = row.field("geolocation");
            let place = place.as_str().unwrap_or("");
            Value::from(place.rsplit(", ").next().unwrap_or(place))
        }
        // Null in rows of ordinary offers, and yet `external=false` finds them.
        "external" => Value::Bool(row.field("external").as_bool().unwrap_or(false)),
        "driver_version" => row.field("driver_vers"),
        "datacenter" => Value::Bool(row.field("hosting_type").as_u64().is_some_and(|t| t >= 1)),
        other => row.field(other),
    }
}

fn holds(left: &Value, op: Op, right: &Value) -> bool {
    let order = || compare(left, right);
    match op {
        Op::Eq => equal(left, right),
        Op::Neq => !equal(left, right),
        Op::Gt => order() == Some(Ordering::Greater),
        Op::Gte => matches!(order(), Some(Ordering::Greater | Ordering::Equal)),
        Op::Lt => order() == Some(Ordering::Less),
        Op::Lte => matches!(order(), Some(Ordering::Less | Ordering::Equal)),
        Op::In => members(right).iter().any(|r| equal(left, r)),
        Op::NotIn => !members(right).iter().any(|r| equal(left, r)),
    }
}

/// `[..]`, or the string `"[US,CA]"` that some clients send.
fn members(value: &Value) -> Vec<Value> {
    match value {
        Value::Array(all) => all.clone(),
        Value::String(s) => {
            let inner = s.trim().trim_start_matches('[').trim_end_matches(']');
            inner
                .split(',')
                .map(|part| Value::from(part.trim().trim_matches(['"', '\''])))
                .collect()
        }
        other => vec![other.clone()],
    }
}

fn equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Null, Value::Null) => true,
        _ => compare(left, right) == Some(Ordering::Equal),
    }
}

fn compare(left: &Value, right: &Value) -> Option<Ordering> {
    match left {
        Value::Number(n) => n.as_f64()?.partial_cmp(&as_number(right)?),
        Value::Bool(b) => Some(b.cmp(&as_bool(right)?)),
        Value::String(s) => match right {
            // Names come with underscores from the shell: RTX_4090.
            Value::String(r) if s == r => Some(Ordering::Equal),
            Value::String(r) => Some(s.as_str().cmp(r.replace('_', " ").as_str())),
            Value::Number(r) => s.parse::<f64>().ok()?.partial_cmp(&r.as_f64()?),
            _ => None,
        },
        _ => None,
    }
}

fn as_number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(n) => n.as_f64(),
        Value::Bool(b) => Some(f64::from(u8::from(*b))),
        Value::String(s) => s.trim().parse().ok(),
        _ => None,
    }
}

fn as_bool(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(b) => Some(*b),
        Value::Number(n) => n.as_f64().map(|x| x != 0.0),
        Value::String(s) => match s.trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" => Some(true),
            "false" | "0" | "no" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// Sort keys: column and whether it descends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SortKey {
    pub column: String,
    pub descending: bool,
}

impl SortKey {
    pub fn new(column: &str, direction: &str) -> Result<Self, BadQuery> {
        match direction {
            "asc" | "desc" => Ok(Self {
                column: column.to_owned(),
                descending: direction == "desc",
            }),
            other => Err(BadQuery(format!("order direction is asc or desc, not {other:?}"))),
        }
    }
}

/// The values that a row is ordered by.
pub fn key_of(keys: &[SortKey], row: &impl Row) -> Vec<Value> {
    keys.iter().map(|key| row.field(&key.column)).collect()
}

/// A total order over such values; nulls last, as SQL sorts them.
pub fn compare_keys(keys: &[SortKey], a: &[Value], b: &[Value]) -> Ordering {
    let pairs = keys.iter().zip(a.iter().zip(b));
    pairs.fold(Ordering::Equal, |order, (key, (x, y))| {
        order.then_with(|| match (x.is_null(), y.is_null()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let order = compare(x, y).unwrap_or(Ordering::Equal);
                if key.descending { order.reverse() } else { order }
            }
        })
    })
}

/// A parsed `POST /bundles/` body.
#[derive(Debug, Clone, PartialEq)]
pub struct OfferQuery {
    pub filter: Filter,
    pub order: Vec<SortKey>,
    pub limit: usize,
    pub bid: bool,
    pub storage_gb: f64,
}

/// Keys of the flat body that are no filters.
const CONTROL: &[&str] = &[
    "order",
    "limit",
    "type",
    "allocated_storage",
    "disable_bundling",
    "select_cols",
    "q",
    "resource_type",
];

impl OfferQuery {
    pub fn parse(body: &Map<String, Value>) -> Result<Self, BadQuery> {
        let filter = Filter::parse(body.iter().filter(|(k, _)| !CONTROL.contains(&k.as_str())))?;
        let bid = match body.get("type").and_then(Value::as_str) {
            None | Some("on-demand" | "ondemand" | "reserved") => false,
            Some("bid") => true,
            Some(other) => return Err(BadQuery(format!("unknown type {other:?}"))),
        };
        let limit = match body.get("limit") {
            None | Some(Value::Null) => MAX_OFFERS,
            Some(v) => match as_number(v) {
                Some(n) if n >= 0.0 => (n as usize).min(MAX_OFFERS),
                _ => return Err(BadQuery("limit is a number".to_owned())),
            },
        };
        let storage_gb = match body.get("allocated_storage") {
            None | Some(Value::Null) => DEFAULT_STORAGE_GB,
            Some(v) => as_number(v).ok_or_else(|| BadQuery("allocated_storage is a number".to_owned()))?,
        };
        Ok(Self {
            filter,
            order: parse_order(body.get("order"))?,
            limit,
            bid,
            storage_gb,
        })
    }

    /// Filters, orders and cuts.
    pub fn select<R: Row>(&self, rows: impl IntoIterator<Item = R>) -> Vec<R> {
        let found = rows.into_iter().filter(|r| self.filter.matches_offer(r));
        let mut found: Vec<(Vec<Value>, R)> = found.map(|r| (key_of(&self.order, &r), r)).collect();
        found.sort_by(|(a, _), (b, _)| compare_keys(&self.order, a, b));
        found.truncate(self.limit);
        found.into_iter().map(|(_, row)| row).collect()
    }
}

fn parse_order(order: Option<&Value>) -> Result<Vec<SortKey>, BadQuery> {
    let Some(Value::Array(pairs)) = order else {
        return Ok(vec![SortKey {
            column: "score".to_owned(),
            descending: true,
        }]);
    };
    pairs
        .iter()
        .map(|pair| {
            match (
                pair.get(0).and_then(Value::as_str),
                pair.get(1).and_then(Value::as_str),
            ) {
                (Some(column), Some(direction)) => SortKey::new(column, direction),
                _ => Err(BadQuery("order is a list of [column, direction]".to_owned())),
            }
        })
        .collect()
}

#[cfg(test)]
#[path = "query_tests.rs"]
mod tests;
