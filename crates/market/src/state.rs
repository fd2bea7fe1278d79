//! Everything that changes on a market, behind one short lock.
//!
//! All decisions that must not race (is this GPU free, is this instance still
//! the one that was booting, is it already destroyed) are taken here in plain
//! synchronous code. Nothing in here waits: what takes time (a machine coming
//! up, a machine dying) happens outside and reports back with the *boot
//! number* it belongs to, so that a boot that was overtaken by a stop, a kill
//! or a destroy changes nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::faults::{FaultKind, Faults, Measure, Suffered};
use crate::machine::Machine;
use crate::money::Meter;
use crate::offers::{BootPlan, Price, Universe};

/// What `actual_status` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Created,
    Loading,
    Running,
    Exited,
    Offline,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Loading => "loading",
            Self::Running => "running",
            Self::Exited => "exited",
            Self::Offline => "offline",
        }
    }
}

/// A public key on the account or on one instance, as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshKey {
    pub id: u64,
    pub text: String,
    pub created_ms: i64,
}

/// What the renter asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Order {
    pub image: String,
    pub label: Option<String>,
    /// Environment variables and docker options, as pairs in their order.
    pub env: Vec<(String, String)>,
    pub onstart: Option<String>,
    pub disk_gb: f64,
    pub runtype: String,
    /// $/h where it is interruptible.
    pub bid: Option<f64>,
}

/// A rental, from create on; destroyed ones stay for the ledger.
#[derive(Debug)]
pub struct Instance {
    pub id: u64,
    pub machine: usize,
    pub offer_id: u64,
    pub gpus: Vec<u32>,
    pub order: Order,
    pub api_key: String,
    pub price: Price,
    pub meter: Meter,
    pub created_ms: i64,
    pub started_ms: Option<i64>,
    pub destroyed_ms: Option<i64>,
    pub killed_ms: Option<i64>,
    pub status: Status,
    pub status_msg: String,
    pub intended_running: bool,
    pub keys: Vec<SshKey>,
    /// Grows with everything that makes a boot in progress void.
    pub boot: u64,
    pub boot_plan: BootPlan,
    pub faults: Vec<Suffered>,
    /// Logins that a lagging key was refused; the lag counts from the first.
    pub refused_logins: u64,
    pub first_refused_ms: Option<i64>,
    pub live: Option<Arc<Machine>>,
}

impl Instance {
    pub fn alive(&self) -> bool {
        self.destroyed_ms.is_none()
    }

    pub fn ssh_port(&self) -> Option<u16> {
        self.live.as_ref().map(|m| m.port())
    }

    /// The measure of this fault, if the instance has it and the host can make it.
    pub fn suffers(&self, kind: FaultKind) -> Option<Measure> {
        let found = self.faults.iter().find(|s| s.fault == kind)?;
        found.without_effect.is_none().then_some(found.measure)
    }

    /// Are keys not here yet? The lag begins with the first login that it refuses.
    pub fn key_lags(&mut self, now: i64) -> bool {
        let Some(lag) = self.suffers(FaultKind::KeyLag) else {
            return false;
        };
        let first = *self.first_refused_ms.get_or_insert(now);
        let length = i64::try_from(lag.for_ms.unwrap_or(0)).unwrap_or(i64::MAX);
        let lags = self.refused_logins == 0 || now.saturating_sub(first) < length;
        self.refused_logins += u64::from(lags);
        lags
    }
}

/// A contract just made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rented {
    pub id: u64,
    /// Nobody will hear of it: the connection goes before the answer.
    pub reply_lost: bool,
}

/// Why a create or a start was not possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    NoSuchAsk,
    Taken,
}

/// A boot to run: the instance and the number that makes it the current one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootTicket {
    pub instance: u64,
    pub boot: u64,
}

pub struct State {
    pub universe: Arc<Universe>,
    pub instances: BTreeMap<u64, Instance>,
    pub account_keys: Vec<SshKey>,
    pub faults: Faults,
    /// `"GET /route/{id}/"` → how often.
    pub requests: BTreeMap<String, u64>,
    taken: HashSet<(usize, u32)>,
    rentals: HashMap<usize, u64>,
    /// How often each machine was asked for: what rules draw by.
    asks: HashMap<usize, u64>,
    next_instance: u64,
    next_key: u64,
}

impl State {
    pub fn new(universe: Arc<Universe>) -> Self {
        Self {
            universe,
            instances: BTreeMap::new(),
            account_keys: Vec::new(),
            faults: Faults::default(),
            requests: BTreeMap::new(),
            taken: HashSet::new(),
            rentals: HashMap::new(),
            asks: HashMap::new(),
            next_instance: 7_000_001,
            next_key: 1,
        }
    }

    pub fn is_free(&self, machine: usize, gpu: u32) -> bool {
        !self.taken.contains(&(machine, gpu))
    }

    /// The instance if it exists and was not destroyed.
    pub fn alive(&self, id: u64) -> Option<&Instance> {
        self.instances.get(&id).filter(|i| i.alive())
    }

    pub fn alive_mut(&mut self, id: u64) -> Option<&mut Instance> {
        self.instances.get_mut(&id).filter(|i| i.alive())
    }

    pub fn all_alive(&self) -> impl Iterator<Item = &Instance> {
        self.instances.values().filter(|i| i.alive())
    }

    /// Rents an offer. `api_key` becomes the instance's own key.
    pub fn rent(
        &mut self,
        offer_id: u64,
        order: Order,
        api_key: String,
        now: i64,
    ) -> Result<Rented, Refusal> {
        let universe = Arc::clone(&self.universe);
        let offer = universe.offers.get(&offer_id).ok_or(Refusal::NoSuchAsk)?;
        let machine = universe.machines.get(offer.machine).ok_or(Refusal::NoSuchAsk)?;
        if !offer.gpus.iter().all(|gpu| self.is_free(offer.machine, *gpu)) {
            return Err(Refusal::Taken);
        }
        let asked = self.asks.entry(offer.machine).or_insert(0);
        let fate = self.faults.meet(universe.seed, machine.machine_id, *asked);
        *asked += 1;
        if fate.refused {
            return Err(Refusal::Taken);
        }
        self.taken
            .extend(offer.gpus.iter().map(|gpu| (offer.machine, *gpu)));
        let rental = self.rentals.entry(offer.machine).or_insert(0);
        let boot_plan = universe.boot_plan(offer.machine, *rental);
        *rental += 1;
        let id = self.next_instance;
        self.next_instance += 1;
        let price = Price::of(machine, offer.gpus.len(), order.disk_gb, order.bid);
        self.instances.insert(
            id,
            Instance {
                id,
                machine: offer.machine,
                offer_id,
                gpus: offer.gpus.clone(),
                order,
                api_key,
                price,
                meter: Meter::created(now),
                created_ms: now,
                started_ms: None,
                destroyed_ms: None,
                killed_ms: None,
                status: Status::Created,
                status_msg: String::new(),
                intended_running: true,
                keys: Vec::new(),
                boot: 1,
                boot_plan,
                faults: fate.on_board,
                refused_logins: 0,
                first_refused_ms: None,
                live: None,
            },
        );
        Ok(Rented {
            id,
            reply_lost: fate.reply_lost,
        })
    }

    /// The instance for which this boot is still the one wanted.
    pub fn booting(&mut self, ticket: BootTicket) -> Option<&mut Instance> {
        self.alive_mut(ticket.instance).filter(|i| i.boot == ticket.boot)
    }

    /// Ends the rental. The machine that was up is the caller's to kill.
    pub fn destroy(&mut self, id: u64, now: i64) -> Option<Option<Arc<Machine>>> {
        let instance = self.instances.get_mut(&id).filter(|i| i.alive())?;
        instance.destroyed_ms = Some(now);
        instance.meter.destroy(now);
        instance.boot += 1;
        let live = instance.live.take();
        self.release(id);
        Some(live)
    }

    /// Stops it: the disk stays, the GPUs go back to the market.
    pub fn stop(&mut self, id: u64, now: i64) -> Option<Option<Arc<Machine>>> {
        let instance = self.alive_mut(id)?;
        instance.intended_running = false;
        if instance.status != Status::Offline {
            instance.status = Status::Exited;
        }
        instance.meter.halt(now);
        instance.boot += 1;
        let live = instance.live.take();
        self.release(id);
        Some(live)
    }

    /// A higher bid takes its GPUs: stopped as by its renter, who may start it again when they
    /// are free. They are not: until it is destroyed they are the other's.
    pub fn outbid(&mut self, id: u64, now: i64) -> Option<Option<Arc<Machine>>> {
        let instance = self.alive_mut(id)?;
        instance.intended_running = false;
        instance.status = Status::Exited;
        instance.meter.halt(now);
        instance.boot += 1;
        Some(instance.live.take())
    }

    /// Its host cannot be reached, or can again. Billed only while it can.
    pub fn plug(&mut self, id: u64, plugged: bool, now: i64) -> Option<Arc<Machine>> {
        let instance = self.alive_mut(id).filter(|i| i.killed_ms.is_none())?;
        let live = instance.live.clone()?;
        if plugged {
            instance.status = Status::Running;
            instance.meter.run(now);
        } else {
            instance.status = Status::Offline;
            instance.meter.halt(now);
        }
        Some(live)
    }

    /// Starts a stopped one again, if its GPUs are still free.
    pub fn resume(&mut self, id: u64) -> Result<Option<BootTicket>, Refusal> {
        let instance = self.alive(id).ok_or(Refusal::NoSuchAsk)?;
        if instance.intended_running {
            return Ok(None);
        }
        let (machine, gpus) = (instance.machine, instance.gpus.clone());
        if !gpus.iter().all(|gpu| self.is_free(machine, *gpu)) {
            return Err(Refusal::Taken);
        }
        self.taken.extend(gpus.iter().map(|gpu| (machine, *gpu)));
        let instance = self.alive_mut(id).ok_or(Refusal::NoSuchAsk)?;
        instance.intended_running = true;
        if instance.killed_ms.is_some() {
            return Ok(None); // the host is gone: wanted, but it will not come
        }
        instance.status = Status::Loading;
        instance.boot += 1;
        Ok(Some(BootTicket {
            instance: id,
            boot: instance.boot,
        }))
    }

    /// The host of this instance dies now; what was up is the caller's to kill.
    pub fn kill(&mut self, id: u64, now: i64) -> Option<Option<Arc<Machine>>> {
        let instance = self.alive_mut(id)?;
        instance.killed_ms.get_or_insert(now);
        instance.meter.halt(now);
        instance.boot += 1;
        // `live` stays: it still answers for the port and the pid that were.
        Some(instance.live.clone())
    }

    pub fn add_account_key(&mut self, text: String, now: i64) -> SshKey {
        let key = self.new_key(text, now);
        self.account_keys.push(key.clone());
        key
    }

    pub fn new_key(&mut self, text: String, now: i64) -> SshKey {
        let key = SshKey {
            id: self.next_key,
            text,
            created_ms: now,
        };
        self.next_key += 1;
        key
    }

    /// Every key that may log in to this instance.
    pub fn keys_of(&self, id: u64) -> Vec<String> {
        let own = self.alive(id).map_or(&[][..], |i| &i.keys);
        self.account_keys
            .iter()
            .chain(own)
            .map(|k| k.text.clone())
            .collect()
    }

    fn release(&mut self, id: u64) {
        let Some(instance) = self.instances.get(&id) else {
            return;
        };
        // A stopped one holds no GPU; releasing again must not free its successor's.
        let (machine, gpus) = (instance.machine, instance.gpus.clone());
        let held_by_other = |gpu: &u32| {
            self.instances.values().any(|other| {
                other.id != id
                    && other.alive()
                    && other.intended_running
                    && other.machine == machine
                    && other.gpus.contains(gpu)
            })
        };
        let free: Vec<u32> = gpus.into_iter().filter(|gpu| !held_by_other(gpu)).collect();
        for gpu in free {
            self.taken.remove(&(machine, gpu));
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
