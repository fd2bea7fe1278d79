//! What can go wrong when a market is started or a machine is made.

use std::io;
use std::path::PathBuf;

/// A failure of the market itself, as opposed to an error it *answers* with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MarketError {
    #[error("the admin address {0} is not a loopback address: it has no authentication")]
    AdminNotLoopback(std::net::SocketAddr),
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        addr: std::net::SocketAddr,
        source: io::Error,
    },
    #[error("cannot use the data directory {path}: {source}")]
    DataDir { path: PathBuf, source: io::Error },
    #[error("namespaces were asked for but cannot be made here: {0}")]
    NoNamespaces(String),
    #[error("{0}")]
    Invalid(String),
}

/// Why one machine could not be brought up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    #[error("{what}: {source}")]
    Io { what: &'static str, source: io::Error },
    #[error("the machine's init did not come up: {0}")]
    Init(String),
    #[error("the machine's host key could not be made: {0}")]
    HostKey(String),
}

impl MachineError {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}
