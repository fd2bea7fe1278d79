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
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
}

impl Error {
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
            other => Self::Migrate(other),
        }
    }
}
