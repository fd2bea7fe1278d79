//! Vast.ai behind the [`Provider`] trait.
//!
//! The hard decision is what an answer of Vast.ai proves. Its service answers auth failures
//! with 404, refusals with 200, redirects with JSON and outages with HTML, so nothing here
//! looks at a status alone, and only a few answers count as proof:
//!
//! * an instance exists when a reply or a listing names it;
//! * it does not exist when a single read says `null` or `no_such_instance`;
//! * a create did nothing when the request never left, when the server refused it in words,
//!   or when complete, non-empty listings go on not showing its label.
//!
//! Everything else is an error with a class. `search` turns a server's rows into offers that
//! are checked again here, `rent` holds the way of an uncertain create, `http` bounds what a
//! server may cost in time and memory.

mod abandon;
mod account;
mod config;
mod error;
mod http;
mod instances;
mod keys;
mod rent;
mod search;
mod wire;

pub use account::Account;
pub use config::{ApiKey, ConfigError, KEY_HINT, VastConfig};
pub use error::classify;

use super::budget::{Budget, as_class};
use super::{OfferQuery, Provider, ProviderError, ProviderInstance, RentRequest};
use async_trait::async_trait;
use dumont_core::budget::{Class, Endpoint};
use dumont_core::offer::Offer;
use dumont_store::Store;
use std::sync::Arc;

/// The word before the colon of a machine.
const NAME: &str = "vast";

/// A client of one Vast.ai account. Cheap to share, holds its connections open.
#[derive(Debug)]
pub struct Vast {
    config: VastConfig,
    http: http::Http,
    budget: Arc<Budget>,
}

impl Vast {
    /// Checks the configuration; talks to nobody yet. Keeps the account's limits by itself.
    pub fn new(config: VastConfig) -> Result<Self, ConfigError> {
        let budget = Budget::own(config.budget());
        Self::with_budget(config, budget)
    }

    /// One that shares the account's limits with all others on this database.
    pub fn shared(config: VastConfig, store: Store) -> Result<Self, ConfigError> {
        let budget = Budget::shared(config.budget(), store, config.account());
        Self::with_budget(config, budget)
    }

    fn with_budget(config: VastConfig, budget: Arc<Budget>) -> Result<Self, ConfigError> {
        let http = http::Http::new(&config, budget.clone())?;
        Ok(Self { config, http, budget })
    }
}

#[async_trait]
impl Provider for Vast {
    fn name(&self) -> &'static str {
        NAME
    }

    fn ends_leases(&self) -> bool {
        true
    }

    async fn search(&self, query: &OfferQuery) -> Result<Vec<Offer>, ProviderError> {
        self.search_offers(query).await
    }

    async fn rent_turn(&self) -> Result<(), ProviderError> {
        self.budget.turn(Endpoint::Create).await
    }

    async fn rent(&self, request: &RentRequest) -> Result<String, ProviderError> {
        self.rent_offer(request).await
    }

    async fn list(&self) -> Result<Vec<ProviderInstance>, ProviderError> {
        self.list_instances().await
    }

    async fn look(&self, ids: &[String]) -> Result<Vec<ProviderInstance>, ProviderError> {
        self.list_these(ids).await
    }

    async fn find_by_label(&self, label: &str) -> Result<Option<ProviderInstance>, ProviderError> {
        Ok(self.list_labelled(label).await?.rows.into_iter().next())
    }

    async fn get(&self, instance_id: &str) -> Result<Option<ProviderInstance>, ProviderError> {
        self.get_instance(instance_id).await
    }

    async fn destroy(&self, instance_id: &str) -> Result<(), ProviderError> {
        // Whoever asks for it: money runs until it is done.
        as_class(Class::Urgent, self.destroy_instance(instance_id)).await
    }

    async fn start(&self, instance_id: &str) -> Result<(), ProviderError> {
        self.start_instance(instance_id).await
    }

    async fn raise_bid(&self, instance_id: &str, bid: f64) -> Result<(), ProviderError> {
        self.change_bid(instance_id, bid).await
    }

    async fn register_key(&self, public_key: &str) -> Result<(), ProviderError> {
        self.register_account_key(public_key).await
    }

    async fn attach_key(&self, instance_id: &str, public_key: &str) -> Result<(), ProviderError> {
        self.attach_instance_key(instance_id, public_key).await
    }
}
