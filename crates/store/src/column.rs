//! Values on their way into statements and out of rows.
//!
//! Five kinds are enough for both engines: integers, reals, texts, booleans, bytes. All else
//! (times, words, JSON) is one of them in disguise; a stored value that its type refuses is
//! a `Corrupt` error that names the column, never a panic or a default.

use crate::engine::Row;
use crate::error::{Error, Result};
use dumont_core::blacklist::{BlacklistType, CudaVersion, LossCause, Rule};
use dumont_core::history::{Level, Outcome, Reason, Stage};
use dumont_core::id::{Digest, MachineRef, WorkspaceName};
use dumont_core::offer::Offer;
use dumont_core::own_machine::OwnMachine;
use dumont_core::reliability::Bucket;
use dumont_core::snapshot::{ModelFiles, ObjectRef, Progress, SnapshotHead, SnapshotType, Validation};
use dumont_core::spec::WorkspaceSpec;
use dumont_core::time::Timestamp;
use dumont_core::workflow::{Kind, Status, Step};
use serde::Serialize;

/// An argument; NULL keeps its type, which PostgreSQL wants to know.
#[derive(Debug, Clone)]
pub(crate) enum Arg {
    Int(Option<i64>),
    Real(Option<f64>),
    Text(Option<String>),
    Bool(Option<bool>),
    Bytes(Option<Vec<u8>>),
}

pub(crate) trait ToArg {
    const NULL: Arg;
    fn to_arg(self) -> Arg;
}

/// `args![a, b]`: the arguments `$1`, `$2`.
macro_rules! args {
    ($($value:expr),* $(,)?) => {
        vec![$($crate::column::ToArg::to_arg($value)),*]
    };
}
pub(crate) use args;

impl<T: ToArg> ToArg for Option<T> {
    const NULL: Arg = T::NULL;
    fn to_arg(self) -> Arg {
        self.map_or(T::NULL, T::to_arg)
    }
}

macro_rules! to_arg {
    ($($type:ty => $kind:ident, $value:ident -> $convert:expr;)+) => {$(
        impl $crate::column::ToArg for $type {
            const NULL: $crate::column::Arg = $crate::column::Arg::$kind(None);
            fn to_arg(self) -> $crate::column::Arg {
                let $value = self;
                $crate::column::Arg::$kind(Some($convert))
            }
        }
    )+};
}

to_arg! {
    i64 => Int, v -> v;
    u16 => Int, v -> i64::from(v);
    u32 => Int, v -> i64::from(v);
    u64 => Int, v -> i64::try_from(v).unwrap_or(i64::MAX);
    Timestamp => Int, v -> v.0;
    f64 => Real, v -> v;
    bool => Bool, v -> v;
    &str => Text, v -> v.to_owned();
    &String => Text, v -> v.clone();
    String => Text, v -> v;
    &[u8] => Bytes, v -> v.to_vec();
    SnapshotType => Text, v -> v.as_str().to_owned();
    &Reason => Text, v -> v.as_str().to_owned();
    Digest => Text, v -> v.to_string();
}

/// A value as JSON text.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::Corrupt {
        column: "(to be written)",
        detail: e.to_string(),
    })
}

/// Something that a column can be read as.
pub(crate) trait Column: Sized {
    fn read(row: &Row, column: &'static str) -> Result<Self>;
}

/// A row, or a part of one.
pub(crate) trait Record: Sized {
    fn read(row: &Row) -> Result<Self>;
}

/// `record!(Type { field, field = "column" })`
macro_rules! record {
    ($type:ty { $($field:ident $(= $column:literal)?),+ $(,)? }) => {
        impl $crate::column::Record for $type {
            fn read(row: &$crate::engine::Row) -> $crate::error::Result<Self> {
                Ok(Self {
                    $($field: $crate::column::Column::read(row, $crate::column::record!(@ $field $($column)?))?,)+
                })
            }
        }
    };
    (@ $field:ident) => { stringify!($field) };
    (@ $field:ident $column:literal) => { $column };
}
pub(crate) use record;

macro_rules! native {
    ($($type:ty),+) => {$(
        impl Column for $type {
            fn read(row: &Row, column: &'static str) -> Result<Self> {
                row.get(column)
            }
        }
        impl Column for Option<$type> {
            fn read(row: &Row, column: &'static str) -> Result<Self> {
                row.get(column)
            }
        }
    )+};
}
native!(i64, f64, bool, String, Vec<u8>);

/// Types read from a native one by a function that may refuse.
macro_rules! derived {
    ($($type:ty: $native:ty => $convert:expr;)+) => {$(
        impl $crate::column::Column for $type {
            fn read(row: &$crate::engine::Row, column: &'static str) -> $crate::error::Result<Self> {
                let raw: $native = row.get(column)?;
                $crate::column::convert(column, raw, $convert)
            }
        }
        impl $crate::column::Column for Option<$type> {
            fn read(row: &$crate::engine::Row, column: &'static str) -> $crate::error::Result<Self> {
                let raw: Option<$native> = row.get(column)?;
                raw.map(|raw| $crate::column::convert(column, raw, $convert)).transpose()
            }
        }
    )+};
}

pub(crate) fn convert<R, T, E: std::fmt::Display>(
    column: &'static str,
    raw: R,
    f: impl FnOnce(R) -> Result<T, E>,
) -> Result<T> {
    f(raw).map_err(|e| Error::Corrupt {
        column,
        detail: e.to_string(),
    })
}

derived! {
    u16: i64 => u16::try_from;
    u64: i64 => u64::try_from;
    Timestamp: i64 => |v| Ok::<_, Error>(Timestamp(v));
    Reason: String => |v| Ok::<_, Error>(Reason::from(v));
    Digest: String => |v| v.parse::<Digest>();
    CudaVersion: String => |v| v.parse::<CudaVersion>();
    WorkspaceName: String => |v| v.parse::<WorkspaceName>();
    WorkspaceSpec: String => |v| serde_json::from_str::<WorkspaceSpec>(&v);
    Offer: String => |v| serde_json::from_str::<Offer>(&v);
    OwnMachine: String => |v| serde_json::from_str::<OwnMachine>(&v);
    SnapshotHead: String => |v| serde_json::from_str::<SnapshotHead>(&v);
    Vec<ObjectRef>: String => |v| serde_json::from_str::<Vec<ObjectRef>>(&v);
    Vec<String>: String => |v| serde_json::from_str::<Vec<String>>(&v);
    Progress: String => |v| serde_json::from_str::<Progress>(&v);
    ModelFiles: String => |v| serde_json::from_str::<ModelFiles>(&v);
    Validation: String => |v| serde_json::from_str::<Validation>(&v);
    serde_json::Value: String => |v| serde_json::from_str::<serde_json::Value>(&v);
    SnapshotType: String => |v| match v.as_str() {
        "full" => Ok(SnapshotType::Full),
        "incremental" => Ok(SnapshotType::Incremental),
        other => Err(format!("{other:?} is not a snapshot type")),
    };
}

/// Enums made by `dumont_core::words!`.
macro_rules! words_as_text {
    ($($type:ty),+ $(,)?) => {
        $crate::column::to_arg! { $($type => Text, v -> v.as_str().to_owned();)+ }
        $crate::column::derived! { $($type: String => |v| v.parse::<$type>();)+ }
    };
}
pub(crate) use {derived, to_arg, words_as_text};

/// A machine is two columns, which every table calls the same.
impl Column for MachineRef {
    fn read(row: &Row, column: &'static str) -> Result<Self> {
        let (provider, machine_id): (String, String) = (row.get("provider")?, row.get("machine_id")?);
        convert(column, (), |()| Self::new(&provider, &machine_id))
    }
}

words_as_text!(
    Kind,
    Status,
    Step,
    Outcome,
    Stage,
    Level,
    BlacklistType,
    Rule,
    LossCause,
    Bucket
);
