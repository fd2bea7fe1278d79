//! What every part of the server shares.

use crate::hints::Hints;
use crate::history::Curves;
use crate::http::imports::Imports;
use crate::link::Target;
use crate::objects::ObjectStore;
use crate::providers::listing::Listing;
use crate::providers::own::{self, OwnMachines};
use crate::providers::{Access, OfferQuery, Provider, ProviderError, SshEndpoint};
use crate::sessions::Sessions;
use crate::settings::ServerConfig;
use crate::workflows::dispose::Disposals;
use axum::Router;
use dumont_core::offer::Offer;
use dumont_core::snapshot::Progress;
use dumont_core::spec::Providers;
use dumont_core::time::Timestamp;
use dumont_store::{InstanceRow, Store};
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

/// What several providers answered.
#[derive(Debug, Default)]
pub struct Searched {
    pub offers: Vec<Offer>,
    pub failed: Vec<(&'static str, ProviderError)>,
}

/// Handles to everything, shared by routes, workflows and reconcilers.
pub struct App {
    pub store: Store,
    pub objects: Arc<dyn ObjectStore>,
    /// Answers agents' transfers with the embedded store; none where a bucket is used.
    pub object_routes: Option<Router>,
    pub markets: BTreeMap<&'static str, Market>,
    /// The market of the user's own machines, by its other side.
    pub own: Arc<OwnMachines>,
    pub ssh_key: Arc<PrivateKey>,
    /// One OpenSSH line.
    pub public_key: String,
    pub config: ServerConfig,
    /// Of this installation; part of every label.
    pub controller_id: String,
    /// Of this process; owner of leases.
    pub process_id: String,
    pub sessions: Sessions,
    pub disposals: Disposals,
    pub progress: ProgressBoard,
    pub imports: Imports,
    pub token_uses: crate::http::auth::Uses,
    pub curves: Curves,
    /// Who may pass over all machines: one at a time.
    pub passes: Semaphore,
    /// New or freed work for the engine.
    pub work: Notify,
    /// A workflow took over from others, which end at once where they are driven here.
    pub preempted: Notify,
    /// Something to destroy.
    pub reap: Notify,
    /// Instances with our label that no row knew when the reaper last looked.
    pub orphans: AtomicU64,
    /// A workspace began or ceased to live on a machine.
    pub watch: Notify,
    /// Held by the race that chooses its next machine and writes its intent.
    pub renting: tokio::sync::Mutex<()>,
    /// What providers tell by themselves.
    pub hints: Hints,
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

    /// Whether any of them is known here.
    pub fn knows(&self, among: Providers) -> bool {
        self.markets.keys().any(|name| among.allow(name))
    }

    /// Asks all of them at once: what they offer, and who of them failed.
    pub async fn search(&self, among: Providers, query: &OfferQuery) -> Searched {
        let asked = self.markets.values().filter(|m| among.allow(m.provider.name()));
        let answers = asked.map(async |m| (m.provider.name(), m.provider.search(query).await));
        let mut out = Searched::default();
        for (name, answer) in futures::future::join_all(answers).await {
            match answer {
                Ok(offers) => out.offers.extend(offers),
                Err(error) => out.failed.push((name, error)),
            }
        }
        out
    }

    /// How to reach the machine that an instance lives on: where it was reached last, but one of the
    /// user's own first where the inventory says that it is now.
    pub async fn target_of(&self, row: &InstanceRow, path: &str) -> Target {
        let (mut endpoints, mut access) = (Vec::new(), Access::of(row));
        if row.machine.provider == own::NAME
            && let Some((address, told)) = self.own.address(&row.machine).await
        {
            endpoints.push(address);
            access.host_key = told.or(access.host_key);
        }
        if let (Some(host), Some(port)) = (row.ssh_host.clone(), row.ssh_port) {
            let last = SshEndpoint { host, port };
            if !endpoints.contains(&last) {
                endpoints.push(last);
            }
        }
        self.target(endpoints, access, path)
    }

    /// How to reach a machine with our key and agent.
    pub fn target(&self, endpoints: Vec<SshEndpoint>, access: Access, path: &str) -> Target {
        Target {
            endpoints,
            key: self.ssh_key.clone(),
            access,
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
