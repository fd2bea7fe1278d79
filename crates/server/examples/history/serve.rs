//! The real server, on a marketplace that answers at once.

use crate::client::Client;
use async_trait::async_trait;
use dumont_core::offer::Offer;
use dumont_server::providers::{OfferQuery, Provider, ProviderError, ProviderInstance, RentRequest};
use dumont_server::{AgentBinary, Database, Server, ServerConfig};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub struct Served {
    pub server: Server,
    pub shelf: Arc<Shelf>,
    token: String,
}

impl Served {
    pub async fn start(database: Database, dir: &Path) -> Self {
        let config = ServerConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            tls: None,
            public_url: None,
            data_dir: dir.to_owned(),
            database,
            agent: AgentBinary {
                gz: dumont_agent_embed::AGENT_GZ,
                digest: dumont_agent_embed::AGENT_DIGEST,
            },
            s3: None,
            vast: None,
            vast_webhook_secret: None,
            ssh_inventory: None,
            race: Default::default(),
            adaptive: Default::default(),
            attempt_retention_days: 180,
            snapshot_every: Duration::ZERO,
            blacklist: Default::default(),
            caps: Default::default(),
            abandon_after: None,
            reaper_ceiling: 20,
            timing: Default::default(),
            crash_at: None,
        };
        let shelf = Arc::new(Shelf::default());
        let server = dumont_server::start_with(config, shelf.clone()).await.unwrap();
        let token = std::fs::read_to_string(dir.join("admin.token")).unwrap();
        Self {
            server,
            shelf,
            token: token.trim().to_owned(),
        }
    }

    pub async fn client(&self) -> Client {
        Client::new(self.server.addr(), &self.token).await
    }
}

/// A marketplace with these offers and nothing else.
#[derive(Default)]
pub struct Shelf(Mutex<Vec<Offer>>);

impl Shelf {
    /// What the next search finds.
    pub fn put(&self, offers: Vec<Offer>) {
        *self.0.lock().unwrap() = offers;
    }
}

#[async_trait]
impl Provider for Shelf {
    fn name(&self) -> &'static str {
        "vast"
    }
    async fn search(&self, _: &OfferQuery) -> Result<Vec<Offer>, ProviderError> {
        Ok(std::mem::take(&mut *self.0.lock().unwrap()))
    }
    async fn rent(&self, _: &RentRequest) -> Result<String, ProviderError> {
        unreachable!("nobody rents here")
    }
    async fn list(&self) -> Result<Vec<ProviderInstance>, ProviderError> {
        Ok(Vec::new())
    }
    async fn get(&self, _: &str) -> Result<Option<ProviderInstance>, ProviderError> {
        Ok(None)
    }
    async fn destroy(&self, _: &str) -> Result<(), ProviderError> {
        Ok(())
    }
    async fn register_key(&self, _: &str) -> Result<(), ProviderError> {
        Ok(())
    }
    async fn attach_key(&self, _: &str, _: &str) -> Result<(), ProviderError> {
        Ok(())
    }
}
