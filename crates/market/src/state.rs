//! Everything that changes on a market, behind one short lock.
//!
//! All decisions that must not race (is this GPU free, is this instance still
//! the one that was booting, is it already destroyed) are taken here in plain
//! synchronous code. Nothing in here waits: what takes time (a machine coming
//! up, a machine dying) happens outside and reports back with the *boot
//! number* it belongs to, so that a boot that was overtaken by a stop, a kill
//! or a destroy changes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::asked::Log;
use crate::board::Boards;
use crate::config::MarketConfig;
use crate::faults::Faults;
pub use crate::instance::{Instance, Order, SshKey, Status};
use crate::machine::Machine;
use crate::money::Meter;
use crate::offers::{Price, Universe};
use crate::presets::Weather;
use crate::results::Results;
use crate::switches::{AccountKeys, LowBid, StoppedStatus, Switches};
use crate::tides::Outcome;
use crate::volumes::{self, NoVolume, Volume, Volumes, Wish};

/// A contract just made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rented {
    pub id: u64,
    /// Nobody will hear of it: the connection goes before the answer.
    pub reply_lost: bool,
    /// Made, but not started: its bid is too low.
    pub stopped: bool,
}

/// Why a create or a start was not possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    NoSuchAsk,
    Taken,
    /// There is no such volume on this machine, or no space for it.
    NoVolume,
    LowBid,
    NoCredit,
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
    /// How often which was refused because it came too soon.
    pub refused: BTreeMap<String, u64>,
    pub asked: Log,
    pub volumes: Volumes,
    pub results: Results,
    pub switches: Switches,
    pub weather: Option<Weather>,
    /// What there was, in dollars.
    pub credit: f64,
    pub opened_ms: i64,
    pub time_scale: f64,
    /// Which machine pulled which image when, in hours since the market opened.
    pub pulled: HashMap<(usize, String), f64>,
    pub operators: usize,
    pub board: Boards,
    /// What is not destroyed, and whose key it is.
    living: BTreeSet<u64>,
    keys: HashMap<String, u64>,
    /// Of each machine the GPUs that are rented, a bit each.
    taken: Vec<u32>,
    rentals: HashMap<usize, u64>,
    /// How often each machine was asked for: what rules draw by.
    pub asks: HashMap<usize, u64>,
    next_instance: u64,
    next_key: u64,
}

impl State {
    pub fn new(universe: Arc<Universe>, config: &MarketConfig, now: i64) -> Self {
        let operators: HashSet<u64> = universe.machines.iter().map(|m| m.host_id).collect();
        Self {
            switches: config.switches,
            weather: config.preset.weather(),
            credit: config.credit,
            opened_ms: now,
            time_scale: config.time_scale,
            pulled: HashMap::new(),
            operators: operators.len(),
            board: Boards::default(),
            living: BTreeSet::new(),
            keys: HashMap::new(),
            taken: vec![0; universe.machines.len()],
            universe,
            instances: BTreeMap::new(),
            account_keys: Vec::new(),
            faults: Faults::default(),
            requests: BTreeMap::new(),
            refused: BTreeMap::new(),
            asked: Log::default(),
            volumes: Volumes::default(),
            results: Results::default(),
            rentals: HashMap::new(),
            asks: HashMap::new(),
            next_instance: 7_000_001,
            next_key: 1,
        }
    }

    pub fn is_free(&self, machine: usize, gpu: u32) -> bool {
        self.taken.get(machine).is_some_and(|bits| bits >> gpu & 1 == 0)
    }

    /// These GPUs are somebody's now, or nobody's.
    fn set_taken(&mut self, machine: usize, gpus: &[u32], taken: bool) {
        self.board.changed();
        let mask = gpus.iter().fold(0, |mask, gpu| mask | 1 << gpu);
        if let Some(bits) = self.taken.get_mut(machine) {
            *bits = if taken { *bits | mask } else { *bits & !mask };
        }
    }

    /// The instance that this key was made for, if it lives.
    pub fn owner(&self, key: &str) -> Option<u64> {
        let id = self.keys.get(key)?;
        self.alive(*id).map(|i| i.id)
    }

    /// The instance if it exists and was not destroyed.
    pub fn alive(&self, id: u64) -> Option<&Instance> {
        self.instances.get(&id).filter(|i| i.alive())
    }

    pub fn alive_mut(&mut self, id: u64) -> Option<&mut Instance> {
        self.instances.get_mut(&id).filter(|i| i.alive())
    }

    pub fn all_alive(&self) -> impl Iterator<Item = &Instance> {
        self.living.iter().filter_map(|id| self.instances.get(id))
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
        let offer = universe.offer(offer_id).ok_or(Refusal::NoSuchAsk)?;
        let machine = universe.machines.get(offer.machine).ok_or(Refusal::NoSuchAsk)?;
        if !offer.gpus.iter().all(|gpu| self.is_free(offer.machine, *gpu)) {
            return Err(Refusal::Taken);
        }
        self.check_volume(offer.machine, &order)?;
        if self.credit_left(now) <= 0.0 {
            return Err(Refusal::NoCredit);
        }
        let quote = self.quote(offer.machine, now);
        let floor = self.floor(offer.machine, offer.gpus.len(), now);
        if order.bid.is_none() && floor.is_infinite() {
            return Err(Refusal::Taken);
        }
        let low = order.bid.is_some_and(|bid| bid < floor);
        if low && (order.cancel_unavail || self.switches.low_bid == LowBid::Refused) {
            return Err(Refusal::LowBid);
        }
        let asked = self.asks.entry(offer.machine).or_insert(0);
        let mut fate = self.faults.meet(universe.seed, machine.machine_id, *asked);
        *asked += 1;
        let drawn = self.draw_fate(offer.machine, &order.image, now);
        if fate.refused || drawn.as_ref().is_some_and(|d| d.outcome == Outcome::Gone) {
            return Err(Refusal::Taken);
        }
        self.set_taken(offer.machine, &offer.gpus, true);
        let rental = self.rentals.entry(offer.machine).or_insert(0);
        let mut boot_plan = universe.boot_plan(offer.machine, *rental);
        *rental += 1;
        if let Some(drawn) = drawn {
            boot_plan = drawn.boot;
            self.befall(&mut fate, drawn);
        }
        let id = self.next_id();
        let volume = self.take_volume(order.volume.as_ref(), now)?;
        let price = Price::of(quote, offer.gpus.len(), order.disk_gb, order.bid);
        let ends_ms = now.saturating_add((machine.max_duration_s * 1000.0) as i64);
        self.living.insert(id);
        self.keys.insert(api_key.clone(), id);
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
                ends_ms,
                status: if low { Status::Exited } else { Status::Provisioning },
                status_msg: String::new(),
                intended_running: !low,
                keys: Vec::new(),
                boot: 1,
                boot_plan,
                faults: fate.on_board,
                refused_logins: 0,
                first_refused_ms: None,
                live: None,
                history: VecDeque::new(),
                volume,
                outbid_by: low.then_some(floor),
                rivals: low,
                away: false,
                queued: false,
                traffic: Arc::default(),
                proxy_port: None,
            },
        );
        Ok(Rented {
            id,
            reply_lost: fate.reply_lost,
            stopped: low,
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
        self.living.remove(&id);
        self.release(id);
        Some(live)
    }

    /// Stops it: the disk stays, the GPUs go back to the market.
    pub fn stop(&mut self, id: u64, now: i64) -> Option<Option<Arc<Machine>>> {
        let stopped = match self.switches.stopped_status {
            StoppedStatus::Exited => Status::Exited,
            StoppedStatus::Stopped => Status::Stopped,
        };
        let instance = self.alive_mut(id)?;
        instance.intended_running = false;
        instance.queued = false;
        if instance.status != Status::Offline {
            instance.turn(stopped, "", now);
        }
        instance.meter.halt(now);
        instance.boot += 1;
        let live = instance.live.take();
        self.release(id);
        Some(live)
    }

    /// Starts a stopped one again, if its GPUs are still free, and its bid still has them.
    pub fn resume(&mut self, id: u64, now: i64) -> Result<Option<BootTicket>, Refusal> {
        let instance = self.alive(id).ok_or(Refusal::NoSuchAsk)?;
        if instance.intended_running {
            return Ok(None);
        }
        if self.credit_left(now) <= 0.0 {
            return Err(Refusal::NoCredit);
        }
        if instance.ends_ms <= now {
            return Err(Refusal::Taken); // its contract is over
        }
        let (machine, gpus) = (instance.machine, instance.gpus.clone());
        let low = instance
            .order
            .bid
            .is_some_and(|bid| bid < self.floor(machine, gpus.len(), now));
        let rival = instance.outbid_by.is_some();
        if low || rival || !gpus.iter().all(|gpu| self.is_free(machine, *gpu)) {
            return Err(Refusal::Taken);
        }
        self.set_taken(machine, &gpus, true);
        let instance = self.alive_mut(id).ok_or(Refusal::NoSuchAsk)?;
        Ok(instance.wake())
    }

    /// Restarts the container in its place: the GPUs are never given up. The ticket is for the
    /// new boot, the machine the caller's to kill. `None` where none is running.
    pub fn restart(&mut self, id: u64, now: i64) -> Option<(BootTicket, Option<Arc<Machine>>)> {
        let instance = self
            .alive_mut(id)
            .filter(|i| i.intended_running && i.killed_ms.is_none())?;
        instance.meter.halt(now);
        instance.turn(Status::Rebooting, "", now);
        let live = instance.live.take();
        Some((instance.wake()?, live))
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

    /// A contract's number; instances and volumes count together.
    pub fn next_id(&mut self) -> u64 {
        self.next_instance += 1;
        self.next_instance - 1
    }

    fn check_volume(&self, machine: usize, order: &Order) -> Result<(), Refusal> {
        let Some(wish) = &order.volume else {
            return Ok(());
        };
        let there = if wish.create {
            let host = self.universe.machines.get(machine);
            host.is_some_and(|m| volumes::ask_id(m) == wish.id)
                && wish.size_gb <= self.volumes.free_gb(&self.universe, machine)
        } else {
            self.volumes.alive(wish.id).is_some_and(|v| v.machine == machine)
        };
        there.then_some(()).ok_or(Refusal::NoVolume)
    }

    fn take_volume(&mut self, wish: Option<&Wish>, now: i64) -> Result<Option<(u64, String)>, Refusal> {
        let Some(wish) = wish else {
            return Ok(None);
        };
        let mut id = wish.id;
        if wish.create {
            let made = self.rent_volume(wish.id, wish.size_gb, wish.name.clone(), now);
            id = made.map_err(|_| Refusal::NoVolume)?;
        }
        Ok(Some((id, wish.mount_path.clone())))
    }

    pub fn rent_volume(
        &mut self,
        ask: u64,
        size_gb: f64,
        name: Option<String>,
        now: i64,
    ) -> Result<u64, NoVolume> {
        let volume = Volume {
            id: self.next_id(),
            machine: 0,
            size_gb,
            name,
            created_ms: now,
            deleted_ms: None,
        };
        self.volumes.rent(&self.universe, ask, volume)
    }

    /// The instances that mount it; one destroyed after `since` still does.
    pub fn users_of_volume(&self, id: u64, since: i64) -> Vec<u64> {
        self.instances
            .values()
            .filter(|i| i.volume.as_ref().is_some_and(|(volume, _)| *volume == id))
            .filter(|i| i.destroyed_ms.is_none_or(|at| at > since))
            .map(|i| i.id)
            .collect()
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
        let Some(instance) = self.alive(id) else {
            return Vec::new();
        };
        let all = self.switches.account_keys == AccountKeys::All;
        let reaches = |key: &&SshKey| all || key.created_ms <= instance.created_ms;
        self.account_keys
            .iter()
            .filter(reaches)
            .chain(&instance.keys)
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
            self.all_alive().any(|other| {
                other.id != id
                    && other.intended_running
                    && other.machine == machine
                    && other.gpus.contains(gpu)
            })
        };
        let free: Vec<u32> = gpus.into_iter().filter(|gpu| !held_by_other(gpu)).collect();
        self.set_taken(machine, &free, false);
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
