//! Machines of the user's own, as one more provider.
//!
//! There is no marketplace to ask, so this file is it: a lease is a row (`store/src/own_machine.rs`)
//! as a contract is a row at Vast.ai, and like a marketplace's it is there before and after any
//! machine is. Renting writes it and does nothing else, which makes "at most once per label" the
//! database's promise. What a lease puts on the machine comes later and under it, so there is
//! always a row that says where to clean up; the row goes last.
//!
//! The trap is silence. A marketplace that calls a host offline has a second look at it; here that
//! look would be our own, through the same network that has just failed. So a machine is called
//! offline only while another one of the inventory answers, and otherwise nothing is said.

mod host;
mod inventory;

pub use inventory::{Known, Source, check};

use super::{
    Access, ErrorClass, InstanceStatus, OfferQuery, Provider, ProviderError, ProviderInstance, RentRequest,
    SshEndpoint, Verified,
};
use crate::ssh::{Connection, SshError, connect, public_line};
use async_trait::async_trait;
use dumont_core::id::MachineRef;
use dumont_core::offer::Offer;
use dumont_core::own_machine::{OwnMachine, PROVIDER};
use dumont_core::time::Timestamp;
use dumont_store::{LeaseRow, NewLease, Store};
use futures::future::join_all;
use russh::keys::{PrivateKey, PublicKey};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpStream;
use tokio::time::timeout;
use ulid::Ulid;

pub const NAME: &str = PROVIDER;

/// How long a machine may take to accept a connection before it counts as away.
const KNOCK: Duration = Duration::from_secs(3);
/// What is said of a network that nobody knows, Mbit/s.
const NETWORK: f64 = 1_000.0;

/// The inventory and its leases.
pub struct OwnMachines {
    store: Store,
    key: Arc<PrivateKey>,
    /// One OpenSSH line: what a machine must let in.
    public_key: String,
    file: Option<PathBuf>,
}

impl OwnMachines {
    pub fn new(store: Store, key: Arc<PrivateKey>, public_key: String, file: Option<PathBuf>) -> Self {
        Self {
            store,
            key,
            public_key,
            file,
        }
    }

    /// Logs in, with the host key that the machine had before. What lives on it is reached there
    /// from then on: its address may have been corrected.
    async fn log_in(&self, machine: &OwnMachine) -> Result<Connection, ProviderError> {
        let endpoint = endpoint(machine);
        let pinned = self.pinned(machine).await.map_err(database)?;
        let connection = connect(&endpoint, &machine.user, &self.key, pinned.as_deref(), None)
            .await
            .map_err(|e| self.refused(machine, &e))?;
        let now = Timestamp::from_system(SystemTime::now());
        if pinned.is_none() {
            let at = endpoint.to_string();
            let pinning = self.store.pin_host_key(&at, connection.host_key(), now);
            pinning.await.map_err(database)?;
        }
        let reached = self.store.machine_reached(machine, connection.host_key(), now);
        reached.await.map_err(database)?;
        Ok(connection)
    }

    /// The key that it must show: the one that was told, else that of the machine which a workspace
    /// lives on, else what was seen first at its address.
    async fn pinned(&self, machine: &OwnMachine) -> Result<Option<String>, dumont_store::Error> {
        if let Some(told) = told_key(machine) {
            return Ok(Some(told));
        }
        match self.store.lived_on_host_key(&machine.machine).await? {
            Some(key) => Ok(Some(key)),
            None => self.store.pinned_host_key(&endpoint(machine).to_string()).await,
        }
    }

    fn refused(&self, machine: &OwnMachine, error: &SshError) -> ProviderError {
        let name = &machine.machine;
        match error {
            SshError::Denied(at) => ProviderError {
                class: ErrorClass::Auth,
                message: format!(
                    "{name} does not let {} in at {at}; put this line into ~/.ssh/authorized_keys there: {}",
                    machine.user, self.public_key
                ),
            },
            SshError::HostKeyChanged { .. } => ProviderError {
                class: ErrorClass::Auth,
                message: format!(
                    "{name}: {error}; correct its address (--host, --port), or if it was installed anew, tell its new key \
                     (--host-key, or host_key in the file)"
                ),
            },
            other => failed(ErrorClass::Transient, format!("{name}: {other}")),
        }
    }

    /// What it answers now, in words; `Ok` where it can be used.
    pub async fn visit(&self, machine: &OwnMachine) -> Result<(), ProviderError> {
        let connection = self.log_in(machine).await?;
        connection.close().await;
        Ok(())
    }

    /// Takes whatever host key the machine shows next.
    pub async fn forget_host_key(&self, machine: &OwnMachine) -> Result<(), ProviderError> {
        let at = endpoint(machine).to_string();
        self.store.unpin_host_key(&at).await.map_err(database)
    }

    /// How a lease's machine is reached now: its address and host key may have been corrected.
    async fn reached(&self, lease: &LeaseRow) -> OwnMachine {
        let now = self.described(&lease.machine.machine).await;
        now.unwrap_or_else(|| lease.machine.clone())
    }

    async fn described(&self, machine: &MachineRef) -> Option<OwnMachine> {
        let known = self.known().await.unwrap_or_default();
        let now = known.into_iter().find(|k| k.machine.machine == *machine);
        now.map(|k| k.machine)
    }

    /// Where its owner says that a machine is, and the host key where that was told, too.
    pub async fn address(&self, machine: &MachineRef) -> Option<(SshEndpoint, Option<String>)> {
        let described = self.described(machine).await?;
        Some((endpoint(&described), told_key(&described)))
    }

    /// The lease's directory on the machine, made if need be.
    async fn home(&self, lease: &LeaseRow) -> Result<String, ProviderError> {
        if let Some(home) = &lease.home {
            return Ok(home.clone());
        }
        let connection = self.log_in(&self.reached(lease).await).await?;
        if !self.store.touch_lease(&lease.id).await.map_err(database)? {
            return Err(failed(ErrorClass::OfferGone, "it was given back meanwhile"));
        }
        let home = host::prepare(&connection, lease).await;
        connection.close().await;
        let home = home?;
        self.store
            .set_lease_home(&lease.id, &home)
            .await
            .map_err(database)?;
        Ok(home)
    }

    /// The lease as an instance; an error where the machine's silence says nothing.
    async fn seen(&self, lease: &LeaseRow) -> Result<ProviderInstance, ProviderError> {
        let machine = self.reached(lease).await;
        let shown = |status, home, words| shown(lease, &machine, status, home, words);
        if lease.releasing {
            let words = "it is given back and not cleaned up yet";
            return Ok(shown(InstanceStatus::Stopped, None, Some(words.into())));
        }
        let fresh = lease.home.is_none();
        let answer = if fresh {
            self.home(lease).await
        } else if answers(&machine).await {
            Ok(lease.home.clone().unwrap_or_default())
        } else {
            let words = format!("{} takes no connection", lease.machine.machine);
            Err(failed(ErrorClass::Transient, words))
        };
        match answer {
            Ok(home) => Ok(shown(InstanceStatus::Running, Some(home), None)),
            Err(e) if e.class == ErrorClass::Auth || e.class == ErrorClass::Invalid => {
                Ok(shown(InstanceStatus::Stopped, None, Some(e.message)))
            }
            // Nobody waits for a machine that cannot even be begun on.
            Err(e) if fresh || self.another_answers(&lease.machine).await => {
                Ok(shown(InstanceStatus::Offline, None, Some(e.message)))
            }
            Err(e) => Err(e),
        }
    }

    /// Whether it is not we who are cut off.
    async fn another_answers(&self, but: &OwnMachine) -> bool {
        let Ok(known) = self.known().await else {
            return false;
        };
        let others = known.iter().filter(|k| k.machine.machine != but.machine);
        let knocks = others.take(8).map(|k| answers(&k.machine));
        join_all(knocks).await.contains(&true)
    }

    /// Each lease is certain, whatever its machine says.
    async fn all_seen(&self, leases: &[LeaseRow]) -> Vec<ProviderInstance> {
        let seen = leases.iter().map(async |lease| match self.seen(lease).await {
            Ok(seen) => seen,
            Err(e) => self.unseen(lease, Some(e.message)).await,
        });
        join_all(seen).await
    }

    /// The lease, of whose machine nothing is said.
    async fn unseen(&self, lease: &LeaseRow, words: Option<String>) -> ProviderInstance {
        let machine = self.reached(lease).await;
        shown(
            lease,
            &machine,
            InstanceStatus::Unknown,
            lease.home.clone(),
            words,
        )
    }

    async fn held(&self, instance_id: &str) -> Result<Option<LeaseRow>, ProviderError> {
        self.store.lease_by_id(instance_id).await.map_err(database)
    }
}

/// A lease on its machine, as that one is reached now.
fn shown(
    lease: &LeaseRow,
    machine: &OwnMachine,
    status: InstanceStatus,
    home: Option<String>,
    status_message: Option<String>,
) -> ProviderInstance {
    ProviderInstance {
        instance_id: lease.id.clone(),
        machine_id: machine.name().to_owned(),
        label: Some(lease.label.clone()),
        status,
        status_message,
        ssh: vec![endpoint(machine)],
        access: Access {
            user: Some(machine.user.clone()),
            home,
            host_key: told_key(machine),
        },
        price: machine.price,
        storage: None,
        min_bid: None,
    }
}

/// The key alone: shown twice, it must be the same text.
pub fn bare_key(line: &str) -> Option<String> {
    let key = PublicKey::from_openssh(line.trim()).ok()?;
    public_line(&PublicKey::new(key.key_data().clone(), "")).ok()
}

fn told_key(machine: &OwnMachine) -> Option<String> {
    machine.host_key.as_deref().and_then(bare_key)
}

fn endpoint(machine: &OwnMachine) -> SshEndpoint {
    SshEndpoint {
        host: machine.host.clone(),
        port: machine.port,
    }
}

/// Whether its SSH port takes a connection.
async fn answers(machine: &OwnMachine) -> bool {
    let dial = TcpStream::connect((machine.host.as_str(), machine.port));
    matches!(timeout(KNOCK, dial).await, Ok(Ok(_)))
}

fn failed(class: ErrorClass, message: impl Into<String>) -> ProviderError {
    let message: String = message.into();
    ProviderError {
        class,
        message: message.chars().filter(|c| !c.is_control()).take(500).collect(),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn database(error: dumont_store::Error) -> ProviderError {
    failed(ErrorClass::Transient, format!("the database failed: {error}"))
}

/// Whether the machine is what was asked for.
fn fits(machine: &OwnMachine, query: &OfferQuery) -> bool {
    let wanted = |name: &String| {
        machine.gpu.as_ref().is_some_and(|gpu| {
            gpu.replace('_', " ")
                .eq_ignore_ascii_case(&name.replace('_', " "))
        })
    };
    query.machine_id.as_deref().is_none_or(|id| id == machine.name())
        && query.gpu_name.as_ref().is_none_or(wanted)
        && machine.gpu_count >= query.gpu_count
        && query.min_gpu_ram_mb.is_none_or(|mb| gpu_ram_mb(machine) >= mb)
        && query.max_price.is_none_or(|most| machine.price <= most)
        // Its owner has looked at it; where it stands, nobody has said.
        && query.verified != Verified::Only(false)
        && query.datacenter != Some(true)
        && query.region.is_none()
        && query.min_inet_down_mbps.is_none_or(|least| least <= NETWORK)
        && query.min_inet_up_mbps.is_none_or(|least| least <= NETWORK)
}

fn gpu_ram_mb(machine: &OwnMachine) -> u64 {
    (machine.gpu_ram_gb * 1_000.0) as u64
}

fn offer(machine: &OwnMachine, query: &OfferQuery) -> Offer {
    Offer {
        offer_id: machine.name().to_owned(),
        machine: machine.machine.clone(),
        host_id: None,
        gpu_name: machine.gpu.clone().unwrap_or_default(),
        // All of them are there for who asks for fewer; what is promised is what was asked for.
        gpu_count: query.gpu_count.max(1),
        gpu_ram_mb: gpu_ram_mb(machine),
        price: machine.price,
        region: None,
        provider_reliability: 0.99,
        inet_down_mbps: NETWORK,
        inet_up_mbps: NETWORK,
        // The agent looks at the driver, the disk and the GPUs when it is there.
        cuda_max: None,
        driver_version: None,
        disk_gb: f64::from(query.disk_gb),
        verified: true,
        datacenter: false,
        bid: None,
    }
}

#[async_trait]
impl Provider for OwnMachines {
    fn name(&self) -> &'static str {
        NAME
    }

    /// Those with a free place that let us in now: a try at one that is switched off would be held
    /// against it, and would keep a failover waiting.
    async fn search(&self, query: &OfferQuery) -> Result<Vec<Offer>, ProviderError> {
        let leases = self.store.leases().await.map_err(database)?;
        let free = |machine: &OwnMachine| {
            let mut on = leases.iter().filter(|l| l.machine.machine == machine.machine);
            on.clone().count() < machine.workspaces as usize && !on.any(|l| l.releasing)
        };
        let known = self.known().await?;
        let fitting: Vec<&OwnMachine> = known
            .iter()
            .map(|k| &k.machine)
            .filter(|m| fits(m, query) && free(m))
            .collect();
        let looks = fitting.iter().map(|m| self.visit(m));
        let (mut offers, mut refused) = (Vec::new(), None);
        for (machine, looked) in fitting.iter().zip(join_all(looks).await) {
            match looked {
                Ok(()) => offers.push(offer(machine, query)),
                Err(error) => {
                    tracing::warn!(machine = %machine.machine, %error, "not offered");
                    refused = Some(error);
                }
            }
        }
        match refused {
            Some(error) if offers.is_empty() => Err(error),
            _ => Ok(offers),
        }
    }

    /// A row, and nothing on the machine yet. There is no container: image, environment, ports and
    /// start-up script are what containers have.
    async fn rent(&self, request: &RentRequest) -> Result<String, ProviderError> {
        let name = &request.offer.machine;
        let known = self.known().await?;
        let gone = |why: &str| failed(ErrorClass::OfferGone, format!("{name} {why}"));
        let found = known.iter().find(|k| k.machine.machine == *name);
        let machine = &found
            .ok_or_else(|| gone("is not in the inventory any more"))?
            .machine;
        let id = Ulid::generate().to_string().to_lowercase();
        let new = NewLease {
            id: &id,
            label: &request.label,
            machine,
        };
        let now = Timestamp::from_system(SystemTime::now());
        // A row that may have been written is found by its label: it was, or it was not.
        let leased = self
            .store
            .lease(&new, now)
            .await
            .map_err(|e| failed(ErrorClass::Uncertain, format!("the database failed: {e}")))?;
        match leased {
            Some(lease) if !lease.releasing => Ok(lease.id),
            _ => Err(gone("is taken, or not cleaned up yet")),
        }
    }

    async fn list(&self) -> Result<Vec<ProviderInstance>, ProviderError> {
        let leases = self.store.leases().await.map_err(database)?;
        Ok(self.all_seen(&leases).await)
    }

    /// Without the wait for others that are silent.
    async fn look(&self, ids: &[String]) -> Result<Vec<ProviderInstance>, ProviderError> {
        let mut leases = self.store.leases().await.map_err(database)?;
        leases.retain(|l| ids.contains(&l.id));
        Ok(self.all_seen(&leases).await)
    }

    async fn find_by_label(&self, label: &str) -> Result<Option<ProviderInstance>, ProviderError> {
        let lease = self.store.lease_by_label(label).await.map_err(database)?;
        match lease {
            Some(lease) => Ok(Some(self.unseen(&lease, None).await)),
            None => Ok(None),
        }
    }

    async fn get(&self, instance_id: &str) -> Result<Option<ProviderInstance>, ProviderError> {
        match self.held(instance_id).await? {
            Some(lease) => self.seen(&lease).await.map(Some),
            None => Ok(None),
        }
    }

    /// Ends everything of the lease on the machine, sees that it is gone, and only then forgets it.
    /// A machine that cannot be reached keeps its lease, and is offered to nobody.
    async fn destroy(&self, instance_id: &str) -> Result<(), ProviderError> {
        let released = self.store.release_lease(instance_id).await.map_err(database)?;
        let Some(lease) = released else {
            return Ok(());
        };
        if lease.touched {
            let connection = self.log_in(&self.reached(&lease).await).await?;
            let cleaned = host::clean(&connection, &lease).await;
            connection.close().await;
            cleaned?;
        }
        self.store.end_lease(&lease.id).await.map_err(database)
    }

    /// Nobody can do this for the owner: each machine must let the key in. What does not, says so
    /// with the line to add.
    async fn register_key(&self, _: &str) -> Result<(), ProviderError> {
        Ok(())
    }

    async fn attach_key(&self, instance_id: &str, public_key: &str) -> Result<(), ProviderError> {
        let held = self.held(instance_id).await?;
        let lease = held
            .filter(|l| !l.releasing)
            .ok_or_else(|| failed(ErrorClass::Invalid, format!("there is no lease {instance_id}")))?;
        let key = bare_key(public_key)
            .ok_or_else(|| failed(ErrorClass::Invalid, "that is not an OpenSSH public key"))?;
        let connection = self.log_in(&self.reached(&lease).await).await?;
        let let_in = if bare_key(&self.public_key).as_ref() == Some(&key) {
            // It has just opened the door.
            Ok(())
        } else if self.store.touch_lease(&lease.id).await.map_err(database)? {
            host::let_in(&connection, &lease, &key).await
        } else {
            Err(failed(ErrorClass::Invalid, "it was given back meanwhile"))
        };
        connection.close().await;
        let_in
    }
}
