//! The life of a rental: `created → loading → running → sshd up`, and its ends.
//!
//! Each boot is a task with a ticket. Whatever ends or replaces a boot raises
//! the instance's boot number in the state, after which the ticket opens no
//! door any more; the task then clears away the machine it may have started.

use std::sync::{Arc, Weak};
use std::time::Duration;

use russh::keys::PublicKey;

use crate::faults::FaultKind;
use crate::machine::{Gpus, Machine, Spec};
use crate::market::{Inner, now_ms};
use crate::sshd::{self, KeyCheck};
use crate::state::{BootTicket, Instance, Order, Refusal, State, Status};

impl Inner {
    /// Rents an offer and sets its boot going.
    pub fn create(self: &Arc<Self>, offer: u64, order: Order) -> Result<(u64, String), Refusal> {
        let api_key = random_hex();
        let mut state = self.state();
        let id = state.rent(offer, order, api_key.clone(), now_ms())?;
        drop(state);
        self.begin(BootTicket {
            instance: id,
            boot: 1,
        });
        Ok((id, api_key))
    }

    /// `false` if there is no such instance (any more).
    pub async fn destroy(self: &Arc<Self>, id: u64) -> bool {
        let Some(live) = self.state().destroy(id, now_ms()) else {
            return false;
        };
        if let Some(machine) = live {
            machine.kill().await;
        }
        self.discard_disk(id);
        true
    }

    pub async fn stop_instance(&self, id: u64) -> bool {
        let Some(live) = self.state().stop(id, now_ms()) else {
            return false;
        };
        if let Some(machine) = live {
            machine.kill().await;
        }
        true
    }

    pub fn start_instance(self: &Arc<Self>, id: u64) -> Result<(), Refusal> {
        let ticket = self.state().resume(id)?;
        if let Some(ticket) = ticket {
            self.begin(ticket);
        }
        Ok(())
    }

    /// The host vanishes. Returns the Unix millisecond of its death.
    pub async fn kill(self: &Arc<Self>, id: u64, status_after: Duration) -> Option<i64> {
        let (died, live) = {
            let mut state = self.state();
            let live = state.kill(id, now_ms())?;
            (state.alive(id)?.killed_ms?, live)
        };
        if let Some(machine) = live {
            machine.kill().await;
        }
        if status_after.is_zero() {
            self.show_offline(id);
        } else {
            let inner = Arc::clone(self);
            self.tasks.spawn(async move {
                if inner.wait(status_after).await {
                    inner.show_offline(id);
                }
            });
        }
        Some(died)
    }

    fn show_offline(&self, id: u64) {
        if let Some(instance) = self.state().alive_mut(id) {
            instance.status = Status::Offline;
            instance.status_msg = "Host is offline".to_owned();
        }
    }

    /// `false` when the market closed meanwhile.
    async fn wait(&self, time: Duration) -> bool {
        tokio::select! { () = self.stop.cancelled() => false, () = tokio::time::sleep(time) => true }
    }

    fn begin(self: &Arc<Self>, ticket: BootTicket) {
        let inner = Arc::clone(self);
        self.tasks.spawn(async move {
            if inner.run_boot(ticket).await.is_none() {
                tracing::debug!(instance = ticket.instance, "boot overtaken");
            }
        });
    }

    /// `None` where something else happened to the instance meanwhile.
    async fn run_boot(self: &Arc<Self>, ticket: BootTicket) -> Option<()> {
        let (plan, fault) = self.step(ticket, |i| (i.boot_plan, i.fault))?;
        self.wait(self.scaled(plan.created_s)).await.then_some(())?;
        self.step(ticket, |i| i.status = Status::Loading)?;
        self.wait(self.scaled(plan.loading_s)).await.then_some(())?;
        if fault == Some(FaultKind::StuckLoading) {
            return Some(());
        }
        let spec = self.spec(ticket)?;
        let machine = match Machine::start(spec).await {
            Ok(machine) => machine,
            Err(error) => {
                tracing::warn!(instance = ticket.instance, %error, "the machine did not start");
                return self.step(ticket, |i| {
                    i.status = Status::Created;
                    i.status_msg = format!("Error response from daemon: OCI runtime create failed: {error}");
                });
            }
        };
        let up = Arc::clone(&machine);
        let running = self.step(ticket, move |i| {
            let now = now_ms();
            i.status = Status::Running;
            i.status_msg = format!("success, running {}/ssh", i.order.image.replace(':', "_"));
            i.started_ms.get_or_insert(now);
            i.meter.run(now);
            i.live = Some(up);
        });
        if running.is_none() || self.stop.is_cancelled() {
            machine.kill().await;
            if self.state().alive(ticket.instance).is_none() {
                self.discard_disk(ticket.instance);
            }
            return None;
        }
        self.wait(self.scaled(plan.sshd_s)).await.then_some(())?;
        if fault != Some(FaultKind::SshDead)
            && let Err(error) = sshd::open(&machine, key_check(Arc::downgrade(self), ticket.instance))
            && !machine.dead.is_cancelled()
        {
            tracing::warn!(instance = ticket.instance, %error, "sshd did not start");
        }
        Some(())
    }

    fn step<T>(&self, ticket: BootTicket, change: impl FnOnce(&mut Instance) -> T) -> Option<T> {
        self.state().booting(ticket).map(change)
    }

    fn spec(&self, ticket: BootTicket) -> Option<Spec> {
        let mut state = self.state();
        let universe = Arc::clone(&state.universe);
        let instance = state.booting(ticket)?;
        let machine = universe.machines.get(instance.machine)?;
        let id = instance.id;
        let text = |k: &str, v: String| (k.to_owned(), v);
        Some(Spec {
            instance: id,
            dir: self.instance_dir(id),
            kind: self.kind,
            gpus: Gpus {
                name: machine.gpu_name.to_owned(),
                memory_mb: machine.gpu_ram_mb,
                driver: machine.driver_version.to_owned(),
                cuda: machine.cuda_max_good,
                watts: machine.gpu_watts,
                compute_cap: machine.compute_cap,
                machine_id: machine.machine_id,
                indices: instance.gpus.clone(),
            },
            identity: vec![
                text("CONTAINER_ID", id.to_string()),
                text("VAST_CONTAINERLABEL", format!("C.{id}")),
                text("CONTAINER_API_KEY", instance.api_key.clone()),
                text("PUBLIC_IPADDR", "127.0.0.1".to_owned()),
                text("GPU_COUNT", instance.gpus.len().to_string()),
            ],
            env: instance.order.env.clone(),
            onstart: instance.order.onstart.clone().filter(|s| !s.trim().is_empty()),
        })
    }

    fn discard_disk(&self, id: u64) {
        let dir = self.instance_dir(id);
        self.tasks.spawn_blocking(move || {
            if let Err(error) = std::fs::remove_dir_all(&dir)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(%error, dir = %dir.display(), "cannot remove the disk");
            }
        });
    }
}

fn key_check(inner: Weak<Inner>, id: u64) -> KeyCheck {
    Arc::new(move |offered: &PublicKey| {
        let keys = inner
            .upgrade()
            .map(|inner| State::keys_of(&inner.state(), id))
            .unwrap_or_default();
        keys.iter()
            .filter_map(|text| PublicKey::from_openssh(text.trim()).ok())
            .any(|key| key.key_data() == offered.key_data())
    })
}

/// A key that only its holder can know.
fn random_hex() -> String {
    use std::fmt::Write;
    (0..4).fold(String::new(), |mut text, _| {
        let _ = write!(text, "{:016x}", rand::random::<u64>());
        text
    })
}
