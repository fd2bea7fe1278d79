//! What can go wrong, in the words a caller branches on.

use std::path::PathBuf;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such row.
    #[error("there is no {what} {id:?}")]
    NotFound { what: &'static str, id: String },
    /// Something that may exist once exists already; `id` names the one in the way.
    #[error("{what}: {id:?} is in the way")]
    Conflict { what: &'static str, id: String },
    /// The caller's fence, step or state is of the past: somebody else went on. Stop at once
    /// and undo nothing; whoever holds the newer fence looks after what was left.
    #[error("{what} {id:?} has moved on under another owner")]
    Stale { what: &'static str, id: String },
    /// A stored value that this version cannot read.
    #[error("the database holds a value that cannot be read, in column {column}: {detail}")]
    Corrupt { column: &'static str, detail: String },
    /// Written by a newer dumont.
    #[error("the database has schema version {version}, newer than this dumont knows; use a newer dumont")]
    NewerSchema { version: i64 },
    #[error("the database file {path} cannot be created")]
    Create { path: PathBuf, source: std::io::Error },
    #[error("the schema could not be brought up to date")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// The database's address cannot be used; says what is wrong, never the address itself.
    #[error("the database's URL cannot be used: {0}")]
    BadUrl(&'static str),
    #[error("the database keeps texts as {encoding}; dumont needs one that was created with ENCODING 'UTF8'")]
    Encoding { encoding: String },
    /// Nobody answers there now. A write that was under way may have happened or not.
    #[error("the database cannot be reached: {0}")]
    Unavailable(#[source] sqlx::Error),
    #[error("database: {0}")]
    Database(#[source] sqlx::Error),
}

/// SQLSTATEs of a server that goes, comes, is full, or only reads (it was replaced).
const AWAY: [&str; 5] = ["57P01", "57P02", "57P03", "53300", "25006"];

/// SQLSTATEs of a transaction that was undone for the sake of another.
const COLLISION: [&str; 2] = ["40001", "40P01"];

fn sqlstate(e: &sqlx::Error) -> Option<std::borrow::Cow<'_, str>> {
    e.as_database_error().and_then(|e| e.code())
}

impl From<sqlx::Error> for Error {
    fn from(e: sqlx::Error) -> Self {
        use sqlx::Error::{Io, PoolClosed, PoolTimedOut, Protocol, Tls, WorkerCrashed};
        let away = match &e {
            Io(_) | Tls(_) | Protocol(_) | PoolTimedOut | PoolClosed | WorkerCrashed => true,
            e => sqlstate(e).is_some_and(|code| AWAY.contains(&&*code) || code.starts_with("08")),
        };
        if away {
            Self::Unavailable(e)
        } else {
            Self::Database(e)
        }
    }
}

impl Error {
    /// Undone whole for the sake of another transaction: to be begun anew.
    pub(crate) fn is_collision(&self) -> bool {
        matches!(self, Self::Database(e) if sqlstate(e).is_some_and(|code| COLLISION.contains(&&*code)))
    }

    pub(crate) fn not_found(what: &'static str, id: &str) -> Self {
        Self::NotFound {
            what,
            id: id.to_owned(),
        }
    }

    pub(crate) fn conflict(what: &'static str, id: &str) -> Self {
        Self::Conflict {
            what,
            id: id.to_owned(),
        }
    }

    pub(crate) fn stale(what: &'static str, id: &str) -> Self {
        Self::Stale {
            what,
            id: id.to_owned(),
        }
    }
}

impl From<sqlx::migrate::MigrateError> for Error {
    fn from(e: sqlx::migrate::MigrateError) -> Self {
        match e {
            sqlx::migrate::MigrateError::VersionMissing(version) => Self::NewerSchema { version },
            sqlx::migrate::MigrateError::Execute(e) => match Self::from(e) {
                Self::Database(e) => Self::Migrate(sqlx::migrate::MigrateError::Execute(e)),
                away => away,
            },
            other => Self::Migrate(other),
        }
    }
}
