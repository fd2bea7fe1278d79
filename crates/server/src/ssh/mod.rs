//! SSH to rented machines, without the user's `~/.ssh`.
//!
//! Two rules shape this module. Host keys are pinned on first contact and a changed key is
//! refused ever after: addresses of dead machines are given to strangers. And control and
//! bulk never share a connection, because one undrained channel stalls every channel of its
//! connection; callers therefore open two.

mod client;
mod keys;

pub use client::{Connection, connect};
pub use keys::{load_or_create, public_line};

use crate::providers::SshEndpoint;

/// Why a connection could not be made; what decides is the variant, never the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SshError {
    /// The host's kernel refused the connection.
    #[error("{0} refused the connection")]
    Refused(String),
    /// No answer in time, no route, name not found.
    #[error("{endpoint} cannot be reached: {reason}")]
    Unreachable { endpoint: String, reason: String },
    /// Our key is not let in (yet: keys take a while to propagate).
    #[error("{0} does not accept our key")]
    Denied(String),
    /// Another machine answers at this address.
    #[error("{endpoint} shows host key {found}, expected {expected}: another machine answers there")]
    HostKeyChanged {
        endpoint: String,
        expected: String,
        found: String,
    },
    /// The peer does not speak SSH as it should, or dropped us in the middle.
    #[error("{endpoint}: {reason}")]
    Protocol { endpoint: String, reason: String },
    /// `AllowTcpForwarding no`, or the like.
    #[error("{0} does not forward ports")]
    ForwardingRefused(String),
}

/// One word for a shell.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

impl std::fmt::Display for SshEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}
