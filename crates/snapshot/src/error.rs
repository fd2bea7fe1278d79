//! What can go wrong, each naming the path, key or chunk it is about.

use crate::store::StoreError;
use rustix::io::Errno;
use std::fmt::Display;

/// An engine error. The agent maps the variants one to one onto its failure codes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory to snapshot is not there or is not a directory.
    #[error("{path}: {reason}")]
    NoSuchPath { path: String, reason: String },
    /// The request itself is wrong, e.g. a stamp that is not `{instance}-{unix}`.
    #[error("{what}")]
    Invalid { what: String },
    /// Found before anything was written.
    #[error("{path}: {needed} bytes are needed and {free} are free")]
    NoSpace { path: String, needed: u64, free: u64 },
    /// The file system or quota said so during a write to `path`.
    #[error("{path}: no space left on the device")]
    DiskFull { path: String },
    /// A file could not be read or written.
    #[error("could not {action} {path}: {source}")]
    Io {
        path: String,
        action: &'static str,
        source: std::io::Error,
    },
    /// The store does not have an object that the snapshot needs.
    #[error("object {key} is missing in the store")]
    ObjectMissing { key: String },
    /// An object, chunk or manifest is not what it should be.
    #[error("{object} is corrupt: {detail}")]
    Corrupt { object: String, detail: String },
    /// Written by a newer version of the format.
    #[error("{object} has format version {found}, this program reads up to {known}")]
    Version { object: String, found: u16, known: u16 },
    /// It is sealed and the key does not fit, or the other way round.
    #[error("{object} {problem}")]
    Key { object: String, problem: &'static str },
    /// A transfer failed after the retries of whoever makes the transfers.
    #[error("transfer of {object} failed: {message}")]
    Transfer { object: String, message: String },
    /// The store takes no more from us (a budget, a quota, a full disk over there).
    #[error("the store refused {object}: {message}")]
    StoreFull { object: String, message: String },
    #[error("cancelled")]
    Cancelled,
    /// A bug worth reporting.
    #[error("internal error: {what}")]
    Internal { what: String },
}

impl Error {
    pub(crate) fn io(path: impl Display, action: &'static str, source: impl Into<std::io::Error>) -> Self {
        let source = source.into();
        let full = [Errno::NOSPC, Errno::DQUOT]
            .iter()
            .any(|e| source.raw_os_error() == Some(e.raw_os_error()));
        if full {
            Self::DiskFull {
                path: path.to_string(),
            }
        } else {
            Self::Io {
                path: path.to_string(),
                action,
                source,
            }
        }
    }

    pub(crate) fn corrupt(object: impl Display, detail: impl Display) -> Self {
        Self::Corrupt {
            object: object.to_string(),
            detail: detail.to_string(),
        }
    }

    pub(crate) fn internal(what: impl Display) -> Self {
        Self::Internal {
            what: what.to_string(),
        }
    }

    /// `object` says what was being moved when the store's error does not.
    pub(crate) fn store(object: &str, e: StoreError) -> Self {
        match e {
            StoreError::Missing(key) => Self::ObjectMissing { key },
            StoreError::Transfer(message) => Self::Transfer {
                object: object.into(),
                message,
            },
            StoreError::Full(message) => Self::StoreFull {
                object: object.into(),
                message,
            },
            StoreError::Cancelled => Self::Cancelled,
        }
    }
}
