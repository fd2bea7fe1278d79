//! The control plane: REST API, workflows, monitors, provider clients and SSH.

pub mod objects;
pub mod providers;
