//! What every part of the server shares.

use crate::history::Curves;
use crate::http::imports::Imports;
use crate::link::Target;
use crate::objects::ObjectStore;
use crate::providers::listing::Listing;
use crate::providers::{Provider, SshEndpoint};
use crate::sessions::Sessions;
use crate::settings::ServerConfig;
use axum::Router;
use dumont_core::snapshot::Progress;
use dumont_core::time::Timestamp;
use dumont_store::Store;
use russh::keys::PrivateKey;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

/// One provider's account.
pub struct Market {
    pub provider: Arc<dyn Provider>,
    pub listing: Listing,
}

/// Handles to everything, shared by routes, workflows and reconcilers.
pub struct App {
    pub store: Store,
    pub objects: Arc<dyn ObjectStore>,
    /// Answers agents' transfers with the embedded store; none where a bucket is used.
    pub object_routes: Option<Router>,
    pub markets: BTreeMap<&'static str, Market>,
    pub ssh_key: Arc<PrivateKey>,
    /// One OpenSSH line.
    pub public_key: String,
    pub config: ServerConfig,
    /// Of this installation; part of every label.
    pub controller_id: String,
    /// Of this process; owner of leases.
    pub process_id: String,
    pub sessions: Sessions,
    pub progress: ProgressBoard,
    pub imports: Imports,
    pub token_uses: crate::http::auth::Uses,
    pub curves: Curves,
    /// Who may pass over all machines: one at a time.
    pub passes: Semaphore,
    /// New or freed work for the engine.
    pub work: Notify,
    /// Something to destroy.
    pub reap: Notify,
    /// Instances with our label that no row knew when the reaper last looked.
    pub orphans: AtomicU64,
    /// A workspace began or ceased to live on a machine.
    pub watch: Notify,
    /// Where the API is reached, for URLs of the embedded store that a CLI uses.
    pub public_url: String,
    pub stopping: CancellationToken,
}

impl App {
    pub fn now(&self) -> Timestamp {
        Timestamp::from_system(SystemTime::now())
    }

    /// The account a machine or instance belongs to.
    pub fn market(&self, provider: &str) -> Option<&Market> {
        self.markets.get(provider)
    }

    /// How to reach a machine with our key and agent.
    pub fn target(&self, endpoints: Vec<SshEndpoint>, pinned: Option<String>, path: &str) -> Target {
        Target {
            endpoints,
            key: self.ssh_key.clone(),
            pinned,
            path: path.to_owned(),
            agent: self.config.agent,
            objects: self.object_routes.clone(),
            store_ca: self.objects.private_ca().map(str::to_owned),
        }
    }
}

/// Progress of running workflows: worth showing, not worth a write to the database.
#[derive(Debug, Default)]
pub struct ProgressBoard(Mutex<HashMap<String, Progress>>);

impl ProgressBoard {
    pub fn set(&self, workflow_id: &str, progress: Progress) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(workflow_id.to_owned(), progress);
    }

    pub fn get(&self, workflow_id: &str) -> Option<Progress> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(workflow_id)
            .copied()
    }

    pub fn clear(&self, workflow_id: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(workflow_id);
    }
}
