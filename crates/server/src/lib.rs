//! The control plane: REST API, workflows, monitors, provider clients and SSH.
//!
//! `start` puts the parts together. What survives a crash is in the database and the object
//! store; everything in [`app::App`] besides can be lost at any line.

pub mod app;
mod check;
pub mod doctor;
pub mod files;
mod hints;
pub mod history;
pub mod http;
pub mod link;
pub mod metrics;
pub mod objects;
pub mod providers;
pub mod reconcilers;
mod repair;
pub mod sessions;
pub mod settings;
pub mod ssh;
mod startup;
pub mod tls;
pub mod workflows;

pub use dumont_store::Error as StoreError;
pub use http::webhooks::WebhookSecret;
pub use link::AgentBinary;
pub use settings::{CrashPoint, Database, ServerConfig, Timing};
pub use startup::{Server, ServerError, start, start_with};
