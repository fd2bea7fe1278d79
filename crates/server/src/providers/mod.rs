//! The marketplaces, behind one trait.
//!
//! The hard part of renting is what a failed call means. Every error carries a class, so that
//! callers decide without reading messages, and `rent` answers an uncertain create (a lost
//! reply, a 5xx) by looking for the label before it lets anyone repeat it.

pub mod budget;
pub mod listing;
pub mod own;
pub mod vast;

use async_trait::async_trait;
use dumont_core::offer::Offer;
use dumont_core::spec::Interruptible;
use dumont_store::InstanceRow;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What to search for. Everything is checked again on the answer: providers do not always
/// apply their own filters.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OfferQuery {
    pub gpu_name: Option<String>,
    pub gpu_count: u32,
    pub min_gpu_ram_mb: Option<u64>,
    /// Dollars per hour, disk included.
    pub max_price: Option<f64>,
    pub disk_gb: u32,
    /// This machine only, by the provider's id.
    pub machine_id: Option<String>,
    /// A country's two letters, or a part of the place's name.
    pub region: Option<String>,
    pub min_inet_down_mbps: Option<f64>,
    pub min_inet_up_mbps: Option<f64>,
    /// CUDA version that the driver must serve.
    pub min_cuda: Option<f64>,
    pub verified: Verified,
    pub datacenter: Option<bool>,
    /// Interruptible machines, with the bid that the workspace allows.
    pub interruptible: Option<Interruptible>,
}

/// Which machines, by the provider's own check of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verified {
    /// What the account is configured for.
    #[default]
    AsConfigured,
    Only(bool),
    Any,
}

impl Verified {
    /// The verification an offer must have, if it matters.
    pub fn wanted(self, only_verified: bool) -> Option<bool> {
        match self {
            Self::AsConfigured => only_verified.then_some(true),
            Self::Only(which) => Some(which),
            Self::Any => None,
        }
    }
}

/// One rent: what to put where. `label` is unique to this rent.
#[derive(Debug, Clone)]
pub struct RentRequest {
    pub offer: Offer,
    pub label: String,
    pub image: String,
    pub disk_gb: u32,
    pub env: BTreeMap<String, String>,
    pub ports: Vec<u16>,
    /// Shell text run at each start of the container.
    pub onstart: String,
    /// Dollars per hour for an interruptible machine; none rents on demand.
    pub bid: Option<f64>,
    /// It stops itself when no controller was there for so long, where the provider lets it.
    pub lease: Option<Duration>,
    /// Cancelled when nobody wants it any more: what was refused for coming too early is not sent again.
    pub withdrawn: CancellationToken,
}

/// What an instance is doing, folded from the provider's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceStatus {
    /// Being provisioned, created or pulling its image.
    Starting,
    /// The container is up; its sshd may still take a while.
    Running,
    /// Stopped, exited or frozen.
    Stopped,
    /// An interruptible one that a higher bid has taken.
    Outbid,
    /// The provider lost contact with the host.
    Offline,
    /// A word we do not know.
    Unknown,
}

impl InstanceStatus {
    /// Its disk is kept, and its GPUs cost nothing.
    pub fn stands_still(self) -> bool {
        matches!(self, Self::Stopped | Self::Outbid)
    }
}

/// One rented instance as the provider shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct ProviderInstance {
    pub instance_id: String,
    pub machine_id: String,
    pub label: Option<String>,
    pub status: InstanceStatus,
    /// The provider's own words, bounded, for error messages.
    pub status_message: Option<String>,
    /// Endpoints to try in this order (direct first, then proxy).
    pub ssh: Vec<SshEndpoint>,
    pub access: Access,
    pub price: f64,
    /// What it costs per hour while it stands still, if the provider says so.
    pub storage: Option<f64>,
    /// Of an interruptible one: the lowest bid that has its machine now.
    pub min_bid: Option<f64>,
}

/// How one logs in, and where one is then. The default is a container of one's own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Access {
    /// None is root.
    pub user: Option<String>,
    /// The directory that stands for the machine's root, where others live on it, too: paths of
    /// workspaces lie below it, and it is the home of everything that runs for them.
    pub home: Option<String>,
    /// The host key, where it is known before the first contact: one OpenSSH line without comment.
    pub host_key: Option<String>,
}

impl Access {
    /// As it was when the instance became ready.
    pub fn of(row: &InstanceRow) -> Self {
        Self {
            user: row.ssh_user.clone(),
            home: row.home.clone(),
            host_key: row.host_key.clone(),
        }
    }

    pub fn user(&self) -> &str {
        self.user.as_deref().unwrap_or("root")
    }

    /// Where a workspace's directory really lies.
    pub fn path(&self, path: &str) -> String {
        format!("{}{path}", self.home.as_deref().unwrap_or_default())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SshEndpoint {
    pub host: String,
    pub port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// The key is wrong or expired.
    Auth,
    /// The offer is no longer there: try another, not the machine's fault.
    OfferGone,
    /// The bid is lower than what is taken: try another, not the machine's fault.
    BidTooLow,
    /// The account has no money: stop renting and tell the user.
    Credit,
    /// Asked too often.
    RateLimited { retry_after: Option<Duration> },
    /// A day's quota is used up: nothing helps but to wait so long.
    QuotaUsedUp { resets_in: Duration },
    /// The act may or may not have happened, and looking for it did not tell.
    Uncertain,
    /// The network or the provider failed; nothing was done.
    Transient,
    /// The request itself is refused.
    Invalid,
    /// The provider answered something we cannot read.
    Protocol,
}

/// A provider call that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ProviderError {
    pub class: ErrorClass,
    /// Bounded and free of control characters, safe to show.
    pub message: String,
}

/// What dumont needs of a marketplace.
#[async_trait]
pub trait Provider: Send + Sync + 'static {
    /// The word before the colon of a machine, e.g. `vast`.
    fn name(&self) -> &'static str;

    /// Whether an instance can stop itself when nobody is there to do it (`RentRequest::lease`).
    fn ends_leases(&self) -> bool {
        false
    }

    async fn search(&self, query: &OfferQuery) -> Result<Vec<Offer>, ProviderError>;

    /// Waits until the account may rent once more. What decides on a rent waits here, so that it
    /// can still decide otherwise: dropping the wait rents nothing.
    async fn rent_turn(&self) -> Result<(), ProviderError> {
        Ok(())
    }

    /// Rents at once, at most once per label. Gives the instance's id.
    ///
    /// Nothing is looked up before the first create: a caller that cannot know whether it
    /// has asked already (it resumes, or dropped an earlier call) asks `find_by_label` first.
    async fn rent(&self, request: &RentRequest) -> Result<String, ProviderError>;

    /// Every instance of the account, to the last page, or an error: never a part.
    ///
    /// An empty list is what the provider said and no more: providers have answered so in
    /// outages, so nothing may be declared gone on the word of an empty list alone.
    async fn list(&self) -> Result<Vec<ProviderInstance>, ProviderError>;

    /// What the provider shows of these instances. One that is not shown is not for that gone.
    async fn look(&self, ids: &[String]) -> Result<Vec<ProviderInstance>, ProviderError> {
        let mut all = self.list().await?;
        all.retain(|i| ids.contains(&i.instance_id));
        Ok(all)
    }

    /// The instance that carries this label; `None` is as weak as an empty `list`.
    async fn find_by_label(&self, label: &str) -> Result<Option<ProviderInstance>, ProviderError> {
        Ok(self
            .list()
            .await?
            .into_iter()
            .find(|i| i.label.as_deref() == Some(label)))
    }

    /// `None` only when the provider itself says that the instance does not exist.
    async fn get(&self, instance_id: &str) -> Result<Option<ProviderInstance>, ProviderError>;

    /// Destroys; an instance that is already gone is a success.
    async fn destroy(&self, instance_id: &str) -> Result<(), ProviderError>;

    /// Starts one that was stopped; `OfferGone` where its GPUs are somebody else's by now. Safe to
    /// repeat.
    async fn start(&self, _instance_id: &str) -> Result<(), ProviderError> {
        Err(ProviderError {
            class: ErrorClass::Invalid,
            message: format!("{} stops and starts nothing", self.name()),
        })
    }

    /// Changes the bid for an interruptible instance. Safe to repeat.
    async fn raise_bid(&self, _instance_id: &str, _bid: f64) -> Result<(), ProviderError> {
        Err(ProviderError {
            class: ErrorClass::Invalid,
            message: format!("{} has no interruptible machines", self.name()),
        })
    }

    /// Makes sure the account has this public key (OpenSSH line). Safe to repeat.
    async fn register_key(&self, public_key: &str) -> Result<(), ProviderError>;

    /// Lets this public key into a running instance. Safe to repeat.
    async fn attach_key(&self, instance_id: &str, public_key: &str) -> Result<(), ProviderError>;
}
