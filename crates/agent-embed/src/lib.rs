//! The agent as bytes. It is part of the one binary so that there is nothing to download, to
//! publish or to mismatch: a controller always installs the agent it was built with.
//!
//! It lies on a machine as `~/.dumont/agent-{AGENT_DIGEST}`: the name says whether it is the
//! right one, and a newer controller never overwrites a program that is still running.

include!(concat!(env!("OUT_DIR"), "/agent.rs"));

/// The agent, gzip-compressed: what every machine can unpack with its own tools.
pub static AGENT_GZ: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent.gz"));
