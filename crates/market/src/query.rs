//! Vast's filter language over rows: pure.
//!
//! A filter object is `field: {op: value}`. The official client sends most
//! values as *strings* (`"num_gpus": {"eq": "1"}`), so a comparison takes its
//! type from the row, never from the filter. A few fields filter differently
//! from how they read: `verified` is no column at all, `geolocation` filters by
//! country code while the row says "Quebec, CA", `id` matches nothing in a
//! search, `driver_version` arrives as the integer that `driver_vers` holds.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::{Map, Value};

use crate::cell::{Cell, Row};
use crate::order::{self, Keys, SortKey};

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
    /// One, or the members of a list.
    values: Vec<Operand>,
}

impl Condition {
    fn new(field: &str, op: Op, value: &Value) -> Self {
        let values = match op {
            Op::In | Op::NotIn => members(value).iter().map(Operand::new).collect(),
            _ => vec![Operand::new(value)],
        };
        Self {
            field: field.to_owned(),
            op,
            values,
        }
    }

    fn holds(&self, left: &Cell<'_>) -> bool {
        let order = || self.values.first().and_then(|right| right.compare(left));
        let equal = || self.values.iter().any(|right| right.equals(left));
        match self.op {
            Op::Eq | Op::In => equal(),
            Op::Neq | Op::NotIn => !equal(),
            Op::Gt => order() == Some(Ordering::Greater),
            Op::Gte => matches!(order(), Some(Ordering::Greater | Ordering::Equal)),
            Op::Lt => order() == Some(Ordering::Less),
            Op::Lte => matches!(order(), Some(Ordering::Less | Ordering::Equal)),
        }
    }
}

/// What a filter compares with, read once in each way that a column may want it.
#[derive(Debug, Clone, PartialEq)]
struct Operand {
    null: bool,
    is_number: bool,
    number: Option<f64>,
    boolean: Option<bool>,
    /// As it is, and as the shell's words mean it: RTX_4090 is "RTX 4090".
    text: Option<[String; 2]>,
}

impl Operand {
    fn new(value: &Value) -> Self {
        Self {
            null: value.is_null(),
            is_number: value.is_number(),
            number: as_number(value),
            boolean: as_bool(value),
            text: value.as_str().map(|s| [s.to_owned(), s.replace('_', " ")]),
        }
    }

    fn compare(&self, left: &Cell<'_>) -> Option<Ordering> {
        match left {
            Cell::Int(n) => (*n as f64).partial_cmp(&self.number?),
            Cell::Float(x) => x.partial_cmp(&self.number?),
            Cell::Bool(b) => Some(b.cmp(&self.boolean?)),
            Cell::Text(s) => match &self.text {
                Some([same, _]) if s == same => Some(Ordering::Equal),
                Some([_, spaced]) => Some(s.as_ref().cmp(spaced)),
                None if self.is_number => s.parse::<f64>().ok()?.partial_cmp(&self.number?),
                None => None,
            },
            Cell::Null | Cell::Json(_) => None,
        }
    }

    fn equals(&self, left: &Cell<'_>) -> bool {
        (self.null && *left == Cell::Null) || self.compare(left) == Some(Ordering::Equal)
    }
}

/// How an offer filter looks at a column.
#[derive(Debug, Clone, Copy)]
enum Lens {
    Plain,
    Verified,
    Country,
    Yes,
    Datacenter,
    /// Matches nothing.
    Blind,
}

impl Lens {
    /// Which column an offer filter on `field` looks at, and how.
    fn of(field: &str) -> (&str, Self) {
        match field {
            // Really so: the ask is only found by `ask_contract_id`.
            "id" => ("id", Self::Blind),
            "verified" => ("verification", Self::Verified),
            "geolocation" => ("geolocation", Self::Country),
            // Null in rows of ordinary offers, and yet `external=false` finds them.
            "external" => ("external", Self::Yes),
            "driver_version" => ("driver_vers", Self::Plain),
            "datacenter" => ("hosting_type", Self::Datacenter),
            other => (other, Self::Plain),
        }
    }

    fn see<'a>(self, cell: Cell<'a>) -> Option<Cell<'a>> {
        let country = |place: &str| place.rsplit(", ").next().unwrap_or_default().to_owned();
        Some(match self {
            Self::Plain => cell,
            Self::Verified => Cell::Bool(cell == Cell::from("verified")),
            Self::Country => match cell {
                Cell::Text(Cow::Borrowed(place)) => Cell::from(place.rsplit(", ").next()),
                Cell::Text(Cow::Owned(place)) => Cell::from(country(&place)),
                _ => Cell::from(""),
            },
            Self::Yes => Cell::Bool(cell == Cell::Bool(true)),
            Self::Datacenter => Cell::Bool(matches!(cell, Cell::Int(n) if n >= 1)),
            Self::Blind => return None,
        })
    }
}

/// A condition on a column of these rows.
struct Check<'f, C> {
    condition: &'f Condition,
    column: Option<C>,
    lens: Lens,
}

/// A filter over rows of one kind: names are looked up once and not for each row.
pub struct Sieve<'f, C>(Vec<Check<'f, C>>);

impl<C> Sieve<'_, C> {
    pub fn lets(&self, row: &impl Row<Column = C>) -> bool {
        self.0.iter().all(|check| {
            let cell = check.lens.see(row.at(check.column.as_ref()));
            cell.is_some_and(|cell| check.condition.holds(&cell))
        })
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
                        conditions.push(Condition::new(field, Op::parse(op)?, value));
                    }
                }
                bare => conditions.push(Condition::new(field, Op::Eq, bare)),
            }
        }
        Ok(Self(conditions))
    }

    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|c| c.field.as_str())
    }

    pub fn sieve<R: Row>(&self) -> Sieve<'_, R::Column> {
        self.sieve_by::<R>(|field| (field, Lens::Plain))
    }

    /// As [`Self::sieve`], with the oddities of offer search.
    pub fn offer_sieve<R: Row>(&self) -> Sieve<'_, R::Column> {
        self.sieve_by::<R>(Lens::of)
    }

    fn sieve_by<R: Row>(&self, look: impl Fn(&str) -> (&str, Lens)) -> Sieve<'_, R::Column> {
        let check = |condition| {
            let Condition { field, .. }: &Condition = condition;
            let (column, lens) = look(field);
            let column = R::column(column);
            Check {
                condition,
                column,
                lens,
            }
        };
        Sieve(self.0.iter().map(check).collect())
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
            Some(v) => as_number(v)
                .filter(|gb| gb.is_finite())
                .ok_or_else(|| BadQuery("allocated_storage is a number".to_owned()))?,
        };
        Ok(Self {
            filter,
            order: order::parse(body.get("order"))?,
            limit,
            bid,
            storage_gb,
        })
    }

    /// Filters, orders and cuts.
    pub fn select<R: Row>(&self, rows: impl IntoIterator<Item = R>) -> Vec<R> {
        let sieve = self.filter.offer_sieve::<R>();
        let found: Vec<R> = rows.into_iter().filter(|row| sieve.lets(row)).collect();
        let mut first = (0..found.len()).collect();
        Keys::of(&self.order, &found).first(&mut first, self.limit);
        let mut found: Vec<Option<R>> = found.into_iter().map(Some).collect();
        first
            .into_iter()
            .filter_map(|at| found.get_mut(at)?.take())
            .collect()
    }
}

#[cfg(test)]
#[path = "query_tests.rs"]
mod tests;
