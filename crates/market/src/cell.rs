//! One value of a row, looked at before the row is written out.
//!
//! A search goes over every offer and shows at most 64. Written out, an offer has a hundred
//! fields; what a search filters and orders by are a few. So a row is a table of columns, each
//! with how its value is come by: one is asked for alone, all are asked for where the row is
//! shown, and nothing is copied in between.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::Value;

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Cell<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Cow<'a, str>),
    /// What nobody filters or orders by.
    Json(Value),
}

macro_rules! cell_from {
    ($($from:ty => |$x:ident| $cell:expr),* $(,)?) => {
        $(impl From<$from> for Cell<'_> {
            fn from($x: $from) -> Self {
                $cell
            }
        })*
    };
}

cell_from! {
    bool => |b| Self::Bool(b),
    i32 => |n| Self::Int(n.into()),
    u8 => |n| Self::Int(n.into()),
    u16 => |n| Self::Int(n.into()),
    u32 => |n| Self::Int(n.into()),
    u64 => |n| Self::Int(n as i64),
    usize => |n| Self::Int(n as i64),
    // JSON has no infinity.
    f64 => |x| if x.is_finite() { Self::Float(x) } else { Self::Null },
    String => |s| Self::Text(s.into()),
    () => |_nothing| Self::Null,
}

impl<'a> From<&'a str> for Cell<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text.into())
    }
}

impl<'a, T: Into<Cell<'a>>> From<Option<T>> for Cell<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

impl From<Value> for Cell<'_> {
    fn from(value: Value) -> Self {
        Self::Json(value)
    }
}

impl<'a> From<&'a Value> for Cell<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(b) => Self::Bool(*b),
            Value::Number(n) => match n.as_i64() {
                Some(whole) => Self::Int(whole),
                None => n.as_f64().into(),
            },
            Value::String(text) => Self::Text(text.into()),
            other => Self::Json(other.clone()),
        }
    }
}

/// Something with named values.
pub trait Row {
    type Column;
    fn column(name: &str) -> Option<Self::Column>;
    fn cell(&self, column: &Self::Column) -> Cell<'_>;

    /// Null where there is no such column.
    fn at(&self, column: Option<&Self::Column>) -> Cell<'_> {
        column.map_or(Cell::Null, |c| self.cell(c))
    }

    fn named(&self, name: &str) -> Cell<'_> {
        self.at(Self::column(name).as_ref())
    }
}

impl Row for Value {
    type Column = String;

    fn column(name: &str) -> Option<String> {
        Some(name.to_owned())
    }

    fn cell(&self, column: &String) -> Cell<'_> {
        self.get(column).map_or(Cell::Null, Cell::from)
    }
}

/// Names the columns of a row and says how each is come by.
macro_rules! columns {
    ($column:ident<$life:lifetime> of $r:ident: $row:ty; $($x:ident = $e:expr),* => { $($name:ident: $value:expr),* $(,)? }) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(non_camel_case_types, reason = "they are the names on the wire")]
        pub enum $column {
            $($name),*
        }

        impl $column {
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name)),*
                }
            }

            pub fn parse(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|column| column.name() == name)
            }

            pub fn of<$life>(self, $r: &$row) -> $crate::cell::Cell<$life> {
                $(let $x = $e;)*
                match self {
                    $(Self::$name => $value.into()),*
                }
            }
        }
    };
}

/// A row of columns of its own and of those of its hardware (`fn hardware(&self)`). A column in
/// the last list is left out where it is null.
macro_rules! hardware_row {
    ($row:ident, $own:ident $(, optional $optional:ident)*) => {
        impl $crate::cell::Row for $row<'_> {
            type Column = Result<$own, $crate::hardware::HardwareColumn>;

            fn column(name: &str) -> Option<Self::Column> {
                let hardware = || $crate::hardware::HardwareColumn::parse(name).map(Err);
                $own::parse(name).map(Ok).or_else(hardware)
            }

            fn cell(&self, column: &Self::Column) -> $crate::cell::Cell<'_> {
                match column {
                    Ok(own) => own.of(self),
                    Err(hardware) => hardware.of(&self.hardware()),
                }
            }
        }

        impl serde::Serialize for $row<'_> {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeMap;
                let (mut map, hardware) = (to.serialize_map(None)?, self.hardware());
                for column in $crate::hardware::HardwareColumn::ALL {
                    map.serialize_entry(column.name(), &column.of(&hardware))?;
                }
                for column in $own::ALL {
                    let cell = column.of(self);
                    let left_out = false $(|| *column == $own::$optional)*;
                    if !(left_out && cell == $crate::cell::Cell::Null) {
                        map.serialize_entry(column.name(), &cell)?;
                    }
                }
                map.end()
            }
        }
    };
}

pub(crate) use {columns, hardware_row};
