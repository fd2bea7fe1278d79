//! The course of things: what befalls instances that nobody asked for.
//!
//! Four times a second the market looks what is due (a contract that is over, credit that is used
//! up, a higher bid, a host that lost its line or has it back, a start that waited for its GPUs)
//! and lets it happen. *What* is due is decided here from the state and the time alone.

use std::sync::Arc;
use std::time::Duration;

use crate::machine::Machine;
use crate::market::{Inner, now_ms};
use crate::state::{BootTicket, Instance, State, Status};

/// How much more the one pays who outbids an instance.
const OVERBID: f64 = 1.25;
/// How often it is looked.
const PERIOD: Duration = Duration::from_millis(250);
/// What is stopped at the end of its contract may be deleted so much later (Vast.ai docs).
const KEPT_MS: i64 = 48 * 3_600_000;

/// Something that is due.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Due {
    Stop(u64),
    Destroy(u64),
    /// By somebody who pays so much.
    Outbid(u64, f64),
    /// Its rival has gone.
    Return(u64),
    Offline(u64),
    Online(u64),
    /// It waited for its GPUs.
    Start(u64),
}

impl State {
    /// Dollars that are left.
    pub fn credit_left(&self, now: i64) -> f64 {
        self.credit - self.spent(now)
    }

    pub fn spent(&self, now: i64) -> f64 {
        let instances: f64 = self.instances.values().map(|i| i.cost(now)).sum();
        let volumes: f64 = self.volumes.all().map(|v| v.cost(&self.universe, now)).sum();
        instances + volumes
    }

    /// What is due now.
    pub fn due(&self, now: i64) -> Vec<Due> {
        let broke = self.credit_left(now) <= 0.0;
        let due = |i: &Instance| {
            if i.ends_ms.saturating_add(KEPT_MS) <= now {
                return Some(Due::Destroy(i.id));
            }
            if i.intended_running && (broke || i.ends_ms <= now) {
                return Some(Due::Stop(i.id));
            }
            if broke {
                return None;
            }
            let free = || i.gpus.iter().all(|gpu| self.is_free(i.machine, *gpu));
            if i.queued && i.ends_ms > now && free() {
                return Some(Due::Start(i.id));
            }
            self.weathered(i, now)
        };
        self.all_alive().filter_map(due).collect()
    }

    fn weathered(&self, i: &Instance, now: i64) -> Option<Due> {
        let (tides, machine) = (self.tides()?, self.universe.machines.get(i.machine)?);
        if let Some(bid) = i.order.bid {
            let rival = self.floor(i.machine, i.gpus.len(), now);
            if i.intended_running && bid < rival {
                return Some(Due::Outbid(i.id, rival));
            }
            if i.rivals && i.outbid_by.is_some() && bid >= rival {
                return Some(Due::Return(i.id));
            }
        }
        let out = tides.outage(machine, self.hour(now));
        match (out, i.away) {
            (true, false) if i.status == Status::Running => Some(Due::Offline(i.id)),
            (false, true) => Some(Due::Online(i.id)),
            _ => None,
        }
    }

    /// A higher bid takes its GPUs: stopped as by its renter, who gets them back by a bid above
    /// the other's. Until then, or until it is destroyed, they are the other's. Without a price
    /// it is the operator's doing, and only a higher bid undoes it.
    pub fn outbid(&mut self, id: u64, by: Option<f64>, now: i64) -> Option<Option<Arc<Machine>>> {
        let instance = self.alive_mut(id)?;
        instance.intended_running = false;
        instance.rivals = by.is_some();
        instance.outbid_by = Some(by.unwrap_or(instance.price.dph_base * OVERBID));
        if instance.status != Status::Loading {
            // One that was outbid while it was pulled says `loading` still.
            instance.turn(Status::Exited, "", now);
        }
        instance.meter.halt(now);
        instance.boot += 1;
        Some(instance.live.take())
    }

    /// Changes the bid of an interruptible one; `None` is the bid that wins. A ticket where
    /// that gives it its GPUs back.
    pub fn change_bid(&mut self, id: u64, price: Option<f64>, now: i64) -> Option<Option<BootTicket>> {
        let instance = self.alive(id)?;
        let (machine, gpus, rivals) = (instance.machine, instance.gpus.len(), instance.rivals);
        let (floor, now_asked) = (self.quote(machine, now).min_bid, self.floor(machine, gpus, now));
        let instance = self.alive_mut(id).filter(|i| i.order.bid.is_some())?;
        // A rival of the market's own making bids as the market does now.
        let rival = instance.outbid_by.map(|by| if rivals { now_asked } else { by });
        let floor = floor * gpus as f64;
        let winning = |r: f64| floor.max(r * 1.01);
        let bid = price.unwrap_or_else(|| rival.filter(|r| r.is_finite()).map_or(floor, winning));
        let old = instance.price;
        instance.meter.reprice(old, now);
        instance.price.dph_base = bid;
        instance.order.bid = Some(bid);
        if rival.is_none_or(|rival| bid <= rival) {
            return Some(None);
        }
        instance.outbid_by = None;
        Some(instance.wake())
    }

    /// The rival of an outbid one has gone: it runs again by itself.
    fn give_back(&mut self, id: u64) -> Option<BootTicket> {
        let instance = self.alive_mut(id).filter(|i| i.outbid_by.is_some())?;
        instance.outbid_by = None;
        instance.wake()
    }

    /// Its host cannot be reached, or can again. Billed only while it can.
    pub fn plug(&mut self, id: u64, plugged: bool, now: i64) -> Option<Arc<Machine>> {
        let instance = self.alive_mut(id).filter(|i| i.killed_ms.is_none())?;
        let live = instance.live.clone()?;
        if plugged {
            let well = instance.running_message();
            instance.turn(Status::Running, well, now);
            instance.meter.run(now);
        } else {
            instance.turn(Status::Offline, "Host is offline", now);
            instance.meter.halt(now);
        }
        Some(live)
    }

    /// Paused with its memory, and billed on. `None` where none is running.
    pub fn freeze(&mut self, id: u64, now: i64) -> Option<Arc<Machine>> {
        let running = |i: &&mut Instance| i.status == Status::Running;
        let instance = self.alive_mut(id).filter(running)?;
        instance.turn(Status::Frozen, "", now);
        instance.live.clone()
    }

    /// Its host sends no heartbeat, though all goes on. `false` where none is running.
    pub fn silence(&mut self, id: u64, now: i64) -> bool {
        let running = |i: &&mut Instance| i.status == Status::Running;
        match self.alive_mut(id).filter(running) {
            Some(instance) => {
                instance.turn(Status::Unknown, "No heartbeat", now);
                true
            }
            None => false,
        }
    }

    /// Its contract is over now.
    pub fn end(&mut self, id: u64, now: i64) -> bool {
        self.alive_mut(id).map(|i| i.ends_ms = now).is_some()
    }
}

impl Inner {
    pub fn run_course(self: &Arc<Self>) {
        let inner = Arc::clone(self);
        self.tasks.spawn(async move {
            while inner.wait(PERIOD).await {
                let due = inner.state().due(now_ms());
                for due in due {
                    inner.befall(due).await;
                }
            }
        });
    }

    async fn befall(self: &Arc<Self>, due: Due) {
        match due {
            Due::Stop(id) => drop(self.stop_instance(id).await),
            Due::Destroy(id) => drop(self.destroy(id).await),
            Due::Outbid(id, by) => drop(self.outbid(id, Some(by)).await),
            Due::Return(id) => {
                let ticket = self.state().give_back(id);
                if let Some(ticket) = ticket {
                    self.begin(ticket);
                }
            }
            Due::Offline(id) | Due::Online(id) => {
                let out = matches!(due, Due::Offline(_));
                if let Some(instance) = self.state().alive_mut(id) {
                    instance.away = out;
                }
                self.plug(id, !out);
            }
            Due::Start(id) => drop(self.start_instance(id)),
        }
    }
}

#[cfg(test)]
#[path = "course_tests.rs"]
mod tests;
