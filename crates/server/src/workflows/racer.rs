//! One racer: from the intent to rent to a ready link, or out.
//!
//! The intent is in the database before the provider is asked, and the rent always runs to
//! its end: aborting a create in flight would lose an instance that costs money. What may be
//! abandoned at any time is the waiting after it.

use super::abandoned;
use super::ready::{NotReady, Promise, StageCell, make_ready};
use crate::app::App;
use crate::link::Link;
use crate::providers::{Access, ErrorClass, ProviderError, RentRequest};
use dumont_core::history::Reason;
use dumont_core::spec::WorkspaceSpec;
use dumont_store::{InstanceRow, InstanceState};
use std::sync::Arc;
use std::time::Duration;
use tokio::select;
use tokio_util::sync::CancellationToken;

/// How a racer ended.
pub enum End {
    Ready(Arc<Link>),
    Out(NotReady),
    /// The account, not the machine: nobody should rent any more.
    AccountFailed(ProviderError),
    /// It was told to stop.
    Abandoned,
}

/// What a racer's task needs.
pub struct Racer {
    pub app: Arc<App>,
    pub row: InstanceRow,
    pub spec: WorkspaceSpec,
    /// Bytes the restore needs on its disk.
    pub disk_bytes: u64,
    pub stage: StageCell,
    /// Stops the waiting, never a rent that is on its way.
    pub abandon: CancellationToken,
    /// After a crash the rent may have happened already: look before renting.
    pub resumed: bool,
}

impl Racer {
    pub async fn run(self) -> End {
        // Whatever it would say now is about our absence, not about the machine.
        if self.resumed && self.row.may_have_ended(self.app.now()) {
            return self.out(Reason::Cancelled, abandoned::words(&self.row));
        }
        let instance_id = match &self.row.instance_id {
            Some(id) => id.clone(),
            None => match self.rent().await {
                Ok(id) => id,
                Err(end) => return end,
            },
        };
        let Some(market) = self.app.market(&self.row.machine.provider) else {
            return self.out(Reason::ProviderError, "its provider is not configured".into());
        };
        let promise = Promise {
            offer: self.row.offer.clone(),
            disk_bytes: self.disk_bytes,
            cuda: self.spec.gpu.cuda,
            ssh_grace: self.left_of(self.app.config.timing.ssh_grace),
            key_grace: self.left_of(self.app.config.timing.key_grace),
            public_key: self.app.public_key.clone(),
        };
        let target = self
            .app
            .target(Vec::new(), Access::of(&self.row), &self.spec.path);
        let ready = select! {
            () = self.abandon.cancelled() => return End::Abandoned,
            ready = make_ready(market, &instance_id, target, &promise, &self.stage) => ready,
        };
        match ready {
            Err(not_ready) => End::Out(not_ready),
            Ok(link) => match self.keep_endpoint(&link).await {
                Ok(()) => End::Ready(Arc::new(link)),
                Err(message) => self.out(Reason::Cancelled, message),
            },
        }
    }

    /// What a crash left of a grace: when the machine came up is not known, when it was rented is.
    fn left_of(&self, grace: Duration) -> Duration {
        let Some(rented) = self.row.rented_at.filter(|_| self.resumed) else {
            return grace;
        };
        let waited = self.app.now().millis_since(rented).max(0).unsigned_abs();
        let least = self.app.config.timing.second_look.min(grace);
        grace.saturating_sub(Duration::from_millis(waited)).max(least)
    }

    async fn rent(&self) -> Result<String, End> {
        let found = if self.resumed { self.find().await? } else { None };
        let instance_id = match found {
            Some(id) => id,
            None if self.resumed => {
                return Err(self.out(
                    Reason::Cancelled,
                    "the controller stopped before it was rented".into(),
                ));
            }
            None => self.create().await?,
        };
        match self
            .app
            .store
            .set_instance_rented(&self.row.key, &instance_id, self.app.now())
            .await
        {
            Ok(row)
                if matches!(
                    row.state,
                    InstanceState::Destroying | InstanceState::Destroyed | InstanceState::Failed
                ) =>
            {
                Err(End::Abandoned)
            }
            Ok(_) => Ok(instance_id),
            // The row stays an intent; the reaper finds the instance by its label.
            Err(error) => Err(self.out(Reason::Cancelled, format!("the database failed: {error}"))),
        }
    }

    async fn find(&self) -> Result<Option<String>, End> {
        let Some(market) = self.app.market(&self.row.machine.provider) else {
            return Err(self.out(Reason::ProviderError, "its provider is not configured".into()));
        };
        match market.provider.find_by_label(&self.row.label).await {
            Ok(found) => Ok(found.map(|i| i.instance_id)),
            Err(error) => Err(self.out(
                Reason::ProviderError,
                format!("cannot look for its label: {error}"),
            )),
        }
    }

    async fn create(&self) -> Result<String, End> {
        let Some(market) = self.app.market(&self.row.machine.provider) else {
            return Err(self.out(Reason::ProviderError, "its provider is not configured".into()));
        };
        let request = RentRequest {
            offer: self.row.offer.clone(),
            label: self.row.label.clone(),
            image: self.spec.image.clone(),
            disk_gb: self.spec.disk_gb,
            // The workload's environment goes to the supervisor over SSH, not through the
            // provider: it may hold secrets of the user's.
            env: std::collections::BTreeMap::new(),
            ports: self.spec.ports.clone(),
            onstart: String::new(),
            bid: self.row.offer.bid,
            lease: self.row.lease(),
            withdrawn: self.abandon.clone(),
        };
        let error = match market.provider.rent(&request).await {
            Ok(instance_id) => return Ok(instance_id),
            Err(error) => error,
        };
        if !matches!(error.class, ErrorClass::Uncertain) {
            // Surely nothing was rented: the row owes nothing. If this write is lost, the
            // reaper looks for the label and finds nothing.
            let _ = self
                .app
                .store
                .set_instance_state(&self.row.key, InstanceState::Failed, self.app.now())
                .await;
        }
        Err(match error.class {
            ErrorClass::Auth | ErrorClass::Credit => End::AccountFailed(error),
            ErrorClass::BidTooLow => self.out(Reason::Outbid, error.to_string()),
            ErrorClass::OfferGone => self.out(Reason::NoSuchAsk, error.to_string()),
            ErrorClass::RateLimited { .. } => self.out(Reason::RateLimited, error.to_string()),
            _ => self.out(Reason::ProviderError, error.to_string()),
        })
    }

    async fn keep_endpoint(&self, link: &Link) -> Result<(), String> {
        let (store, now) = (&self.app.store, self.app.now());
        let failed = |e: dumont_store::Error| format!("the database failed: {e}");
        store
            .set_instance_endpoint(&self.row.key, &link.reached_at(), now)
            .await
            .map_err(failed)?;
        store
            .set_instance_clock_skew(&self.row.key, link.facts().clock_skew_ms)
            .await
            .map_err(failed)?;
        store
            .set_instance_state(&self.row.key, InstanceState::Ready, now)
            .await
            .map_err(failed)?;
        Ok(())
    }

    fn out(&self, reason: Reason, message: String) -> End {
        End::Out(NotReady {
            stage: self.stage.get(),
            reason,
            message,
        })
    }
}
