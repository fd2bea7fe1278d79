//! The life of a rental: `created → loading → running → sshd up`, and its ends.
//!
//! Each boot is a task with a ticket. Whatever ends or replaces a boot raises
//! the instance's boot number in the state, after which the ticket opens no
//! door any more; the task then clears away the machine it may have started.

use std::sync::Arc;
use std::time::Duration;

use crate::config::Sshd;
use crate::error::MachineError;
use crate::faults::FaultKind;
use crate::machine::{self, Kind, Machine};
use crate::market::{Inner, now_ms};
use crate::outfit::{key_check, key_lines};
use crate::sshd::{self, openssh};
use crate::state::{BootTicket, Instance, Order, Refusal, Rented, Status};
use crate::switches::HostLoss;

impl Inner {
    /// Rents an offer and sets its boot going.
    pub fn create(self: &Arc<Self>, offer: u64, order: Order) -> Result<(Rented, String), Refusal> {
        let api_key = random_hex();
        let mut state = self.state();
        let rented = state.rent(offer, order, api_key.clone(), now_ms())?;
        drop(state);
        if !rented.stopped {
            self.begin(BootTicket {
                instance: rented.id,
                boot: 1,
            });
        }
        Ok((rented, api_key))
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

    /// `false` if there is no such instance.
    pub async fn outbid(&self, id: u64, by: Option<f64>) -> bool {
        let Some(live) = self.state().outbid(id, by, now_ms()) else {
            return false;
        };
        self.notify("outbid", id);
        if let Some(machine) = live {
            machine.kill().await;
        }
        true
    }

    /// Cuts the host's cable, or mends it. `false` if there is no machine to do that to.
    pub fn plug(&self, id: u64, plugged: bool) -> bool {
        let Some(machine) = self.state().plug(id, plugged, now_ms()) else {
            return false;
        };
        machine.plugged.send_replace(plugged);
        if !plugged {
            self.notify("instance_offline", id);
        }
        true
    }

    /// Nothing in it moves or answers until it is `online` again. `false` if none is running.
    pub fn freeze(&self, id: u64) -> bool {
        let Some(machine) = self.state().freeze(id, now_ms()) else {
            return false;
        };
        machine.plugged.send_replace(false);
        true
    }

    /// Unreachable, for a time or until it is mended.
    pub fn offline(self: &Arc<Self>, id: u64, length: Option<Duration>) -> bool {
        let cut = self.plug(id, false);
        if let Some(length) = length.filter(|_| cut) {
            let inner = Arc::clone(self);
            self.tasks.spawn(async move {
                if inner.wait(length).await {
                    inner.plug(id, true);
                }
            });
        }
        cut
    }

    pub async fn stop_instance(&self, id: u64) -> bool {
        let Some(live) = self.state().stop(id, now_ms()) else {
            return false;
        };
        self.notify("instance_stopped", id);
        if let Some(machine) = live {
            machine.kill().await;
        }
        true
    }

    pub fn start_instance(self: &Arc<Self>, id: u64) -> Result<(), Refusal> {
        let ticket = self.state().resume(id, now_ms())?;
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
        let mut state = self.state();
        let lost = state.switches.host_loss;
        if let Some(instance) = state.alive_mut(id) {
            let status = match lost {
                HostLoss::Offline => Status::Offline,
                HostLoss::Unknown => Status::Unknown,
            };
            instance.turn(status, "Host is offline", now_ms());
            self.notify("instance_offline", id);
        }
    }

    /// `false` when the market closed meanwhile.
    pub async fn wait(&self, time: Duration) -> bool {
        tokio::select! { () = self.stop.cancelled() => false, () = tokio::time::sleep(time) => true }
    }

    pub fn begin(self: &Arc<Self>, ticket: BootTicket) {
        let inner = Arc::clone(self);
        self.tasks.spawn(async move {
            if inner.run_boot(ticket).await.is_none() {
                tracing::debug!(instance = ticket.instance, "boot overtaken");
            }
        });
    }

    /// `None` where something else happened to the instance meanwhile.
    async fn run_boot(self: &Arc<Self>, ticket: BootTicket) -> Option<()> {
        let (plan, stuck, fails, ssh_dead) = self.step(ticket, |i| {
            let suffers = |kind| i.suffers(kind).is_some();
            let plan = if i.boot == 1 {
                i.boot_plan
            } else {
                i.boot_plan.again()
            };
            (
                plan,
                suffers(FaultKind::StuckLoading),
                suffers(FaultKind::BootFails),
                suffers(FaultKind::SshDead) || !i.order.injects_ssh(),
            )
        })?;
        self.wait(self.scaled(plan.created_s / 2.0)).await.then_some(())?;
        self.step(ticket, |i| {
            // One that is started again says what it said until its container is there.
            if i.status == Status::Provisioning {
                i.turn(Status::Created, "", now_ms());
            }
        })?;
        self.wait(self.scaled(plan.created_s / 2.0)).await.then_some(())?;
        self.step(ticket, |i| {
            if i.status != Status::Rebooting {
                i.turn(Status::Loading, "", now_ms());
            }
        })?;
        self.wait(self.scaled(plan.loading_s)).await.then_some(())?;
        if stuck {
            return Some(());
        }
        if fails {
            let why = "Error response from daemon: failed to create task for container: failed to create \
                       shim task: OCI runtime create failed: runc create failed: unable to start container process";
            return self.step(ticket, |i| i.turn(Status::Created, why, now_ms()));
        }
        self.leave_out(ticket).await?;
        let spec = self.spec(ticket)?;
        let permit = self.starting.acquire().await.ok()?;
        let started = Machine::start(spec).await;
        drop(permit);
        let machine = match started {
            Ok(machine) => machine,
            Err(error) => {
                tracing::warn!(instance = ticket.instance, %error, "the machine did not start");
                return self.step(ticket, |i| {
                    let why = format!("Error response from daemon: OCI runtime create failed: {error}");
                    i.turn(Status::Created, why, now_ms());
                });
            }
        };
        let up = Arc::clone(&machine);
        let running = self.step(ticket, move |i| {
            let now = now_ms();
            i.turn(Status::Running, i.running_message(), now);
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
        self.open_proxy(ticket, &machine).await;
        self.strike_later(ticket);
        self.watch_program(ticket, &machine);
        self.wait(self.scaled(plan.sshd_s)).await.then_some(())?;
        if !ssh_dead
            && let Err(error) = self.open_ssh(&machine, ticket.instance)
            && !machine.dead.is_cancelled()
        {
            tracing::warn!(instance = ticket.instance, %error, "sshd did not start");
        }
        Some(())
    }

    fn open_ssh(self: &Arc<Self>, machine: &Arc<Machine>, id: u64) -> Result<(), MachineError> {
        let market = Arc::downgrade(self);
        match &self.config.sshd {
            Sshd::InProcess => sshd::open(machine, key_check(market, id), self.config.forwarding),
            Sshd::OpenSsh(options) => openssh::open(machine, key_lines(market, id), options),
        }
    }

    async fn open_proxy(&self, ticket: BootTicket, machine: &Arc<Machine>) {
        let wanted = self.state().weather.as_ref().is_some_and(|w| w.proxy);
        if !wanted {
            return;
        }
        match self.proxy.open(machine).await {
            Ok(port) => drop(self.step(ticket, |i| i.proxy_port = Some(port))),
            Err(error) => tracing::warn!(%error, "no port for the proxy"),
        }
    }

    /// A container lives as long as its program, where that is the image's own.
    fn watch_program(self: &Arc<Self>, ticket: BootTicket, machine: &Arc<Machine>) {
        let Some(mut child) = machine.take_program() else {
            return;
        };
        let (inner, machine) = (Arc::clone(self), Arc::clone(machine));
        self.tasks.spawn(async move {
            let ended =
                tokio::select! { () = machine.dead.cancelled() => return, ended = child.wait() => ended };
            let why = match ended {
                Ok(status) => format!("container exited with {}", status.code().unwrap_or(255)),
                Err(error) => format!("container lost: {error}"),
            };
            let exited = inner.step(ticket, |i| {
                let now = now_ms();
                i.meter.halt(now);
                i.turn(Status::Exited, why, now);
                i.live = None;
            });
            if exited.is_some() {
                machine.kill().await;
            }
        });
    }

    /// Stops and starts the container in its place; `anew` gives it a fresh disk, too.
    /// `false` where there is none running.
    pub async fn restart(self: &Arc<Self>, id: u64, anew: bool) -> bool {
        let Some((ticket, live)) = self.state().restart(id, now_ms()) else {
            return false;
        };
        if let Some(machine) = live {
            machine.kill().await;
        }
        if anew {
            let _ = tokio::fs::remove_dir_all(self.instance_dir(id)).await;
        }
        self.begin(ticket);
        true
    }

    /// `None` where there is no such interruptible instance.
    pub fn change_bid(self: &Arc<Self>, id: u64, price: Option<f64>) -> Option<()> {
        if let Some(ticket) = self.state().change_bid(id, price, now_ms())? {
            self.begin(ticket);
        }
        Some(())
    }

    /// Notes which faults this host cannot make, and why.
    async fn leave_out(&self, ticket: BootTicket) -> Option<()> {
        let wanted = self.step(ticket, |i| i.faults.clone())?;
        let mut impossible = Vec::new();
        for suffered in &wanted {
            if let Err(why) = self.can_make(suffered.fault).await {
                tracing::warn!(instance = ticket.instance, fault = ?suffered.fault, %why, "a fault without effect");
                impossible.push((suffered.fault, why));
            }
        }
        self.step(ticket, |i| {
            for (kind, why) in impossible {
                for suffered in i.faults.iter_mut().filter(|s| s.fault == kind) {
                    suffered.without_effect = Some(why.clone());
                }
            }
        })
    }

    async fn can_make(&self, fault: FaultKind) -> Result<(), String> {
        match fault {
            FaultKind::DiskSmall if self.kind == Kind::Directory => {
                Err("machines are plain directories here: a small file system needs namespaces".to_owned())
            }
            FaultKind::Offline | FaultKind::ClockOff | FaultKind::TmuxNoise
                if self.config.sshd != Sshd::InProcess =>
            {
                Err("only the market's own SSH server does that".to_owned())
            }
            FaultKind::SlowNetwork => machine::can_have_network(self.kind).await,
            FaultKind::ClockOff if self.config.clock_hook.is_none() => Err(
                "no namespace changes the wall clock, and this market was not told how its renter's \
                 programs take another one (clock_hook)"
                    .to_owned(),
            ),
            _ => Ok(()),
        }
    }

    /// Sets off what strikes a running machine.
    fn strike_later(self: &Arc<Self>, ticket: BootTicket) {
        let Some(faults) = self.step(ticket, |i| i.faults.clone()) else {
            return;
        };
        let late = [FaultKind::Dies, FaultKind::Outbid, FaultKind::Offline];
        for suffered in faults.into_iter().filter(|s| late.contains(&s.fault)) {
            let inner = Arc::clone(self);
            self.tasks.spawn(async move {
                let measure = suffered.measure;
                let after = Duration::from_millis(measure.after_ms.unwrap_or(0));
                let still_up = inner.wait(after).await && inner.step(ticket, |_| ()).is_some();
                let id = ticket.instance;
                match suffered.fault {
                    _ if !still_up => {}
                    FaultKind::Dies => drop(inner.kill(id, Duration::ZERO).await),
                    FaultKind::Outbid => drop(inner.outbid(id, None).await),
                    _ => drop(inner.offline(id, measure.for_ms.map(Duration::from_millis))),
                }
            });
        }
    }

    fn step<T>(&self, ticket: BootTicket, change: impl FnOnce(&mut Instance) -> T) -> Option<T> {
        self.state().booting(ticket).map(change)
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

/// A key that only its holder can know.
pub fn random_hex() -> String {
    use std::fmt::Write;
    (0..4).fold(String::new(), |mut text, _| {
        let _ = write!(text, "{:016x}", rand::random::<u64>());
        text
    })
}
