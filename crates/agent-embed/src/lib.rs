//! agent-embed
