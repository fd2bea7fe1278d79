//! Orders of rows: pure.

use std::cmp::Ordering;

use serde_json::Value;

use crate::cell::{Cell, Row};
use crate::query::BadQuery;

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

/// A total order over the values of such columns; nulls last, as SQL sorts them.
pub fn compare_keys(keys: &[SortKey], a: &[Cell<'_>], b: &[Cell<'_>]) -> Ordering {
    let pairs = keys.iter().zip(a.iter().zip(b));
    pairs.fold(Ordering::Equal, |order, (key, (x, y))| {
        order.then_with(|| match (x, y) {
            (Cell::Null, Cell::Null) => Ordering::Equal,
            (Cell::Null, _) => Ordering::Greater,
            (_, Cell::Null) => Ordering::Less,
            _ if key.descending => between(y, x),
            _ => between(x, y),
        })
    })
}

/// Two values of one column.
fn between(x: &Cell<'_>, y: &Cell<'_>) -> Ordering {
    let number = |cell: &Cell<'_>| match cell {
        Cell::Int(n) => Some(*n as f64),
        Cell::Float(x) => Some(*x),
        _ => None,
    };
    match (x, y) {
        (Cell::Text(x), Cell::Text(y)) => x.cmp(y),
        (Cell::Bool(x), Cell::Bool(y)) => x.cmp(y),
        _ => match (number(x), number(y)) {
            (Some(x), Some(y)) => x.total_cmp(&y),
            _ => Ordering::Equal,
        },
    }
}

/// The values by which rows are ordered, in one list for all of them.
pub struct Keys<'a> {
    keys: &'a [SortKey],
    cells: Vec<Cell<'a>>,
}

impl<'a> Keys<'a> {
    pub fn of<R: Row>(keys: &'a [SortKey], rows: &'a [R]) -> Self {
        let columns: Vec<Option<R::Column>> = keys.iter().map(|k| R::column(&k.column)).collect();
        let cells = rows
            .iter()
            .flat_map(|row| columns.iter().map(|c| row.at(c.as_ref())));
        Self {
            keys,
            cells: cells.collect(),
        }
    }

    pub fn get(&self, row: usize) -> &[Cell<'a>] {
        let width = self.keys.len();
        self.cells.get(row * width..(row + 1) * width).unwrap_or_default()
    }

    /// Cuts these rows to the first `limit` in order; what is equal stays as it came.
    pub fn first(&self, rows: &mut Vec<usize>, limit: usize) {
        let by = |a: &usize, b: &usize| {
            let order = compare_keys(self.keys, self.get(*a), self.get(*b));
            order.then(a.cmp(b))
        };
        if limit < rows.len() {
            rows.select_nth_unstable_by(limit, by);
            rows.truncate(limit);
        }
        rows.sort_unstable_by(by);
    }
}

/// The `order` of a search; by default the best score comes first.
pub fn parse(order: Option<&Value>) -> Result<Vec<SortKey>, BadQuery> {
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
