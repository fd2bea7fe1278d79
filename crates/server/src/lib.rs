//! The control plane: REST API, workflows, monitors, provider clients and SSH.

pub mod files;
pub mod link;
pub mod objects;
pub mod providers;
pub mod ssh;
