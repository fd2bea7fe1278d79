//! What a rented machine is made of, and who may log in to it.

use std::sync::{Arc, Weak};

use russh::keys::PublicKey;

use crate::faults::FaultKind;
use crate::machine::{GpuHealth, Gpus, Spec};
use crate::market::{Inner, now_ms};
use crate::sshd::KeyCheck;
use crate::sshd::openssh::KeyLines;
use crate::state::{BootTicket, State};

/// What the fault of that name puts in place of the machine's own driver and CUDA version.
const OLD_DRIVER: (&str, f64) = ("470.256.02", 11.4);

impl Inner {
    pub fn spec(&self, ticket: BootTicket) -> Option<Spec> {
        let mut state = self.state();
        let universe = Arc::clone(&state.universe);
        let instance = state.booting(ticket)?;
        let machine = universe.machines.get(instance.machine)?;
        let id = instance.id;
        let measure = |kind| instance.suffers(kind);
        let (driver, cuda) = match measure(FaultKind::OldDriver) {
            Some(_) => OLD_DRIVER,
            None => (machine.driver_version, machine.cuda_max_good),
        };
        let text = |k: &str, v: String| (k.to_owned(), v);
        let injects = instance.order.injects_ssh();
        Some(Spec {
            instance: id,
            dir: self.instance_dir(id),
            kind: self.kind,
            gpus: Gpus {
                name: machine.gpu_name.to_owned(),
                memory_mb: machine.gpu_ram_mb,
                driver: driver.to_owned(),
                cuda,
                watts: machine.gpu_watts,
                compute_cap: machine.compute_cap,
                machine_id: machine.machine_id,
                indices: instance.gpus.clone(),
                health: if instance.suffers(FaultKind::DriverMismatch).is_some() {
                    GpuHealth::DriverMismatch
                } else if instance.suffers(FaultKind::GpuMissing).is_some() {
                    GpuHealth::Missing
                } else {
                    GpuHealth::Well
                },
            },
            disk_mb: measure(FaultKind::DiskSmall).map(|m| m.size_mb.unwrap_or(1)),
            mbit: measure(FaultKind::SlowNetwork).map(|m| m.mbit.unwrap_or(10)),
            rewrite: measure(FaultKind::ClockOff)
                .and_then(|m| Some(self.config.clock_hook.as_ref()?.rewrite(m.offset_s.unwrap_or(0)))),
            noisy: measure(FaultKind::TmuxNoise).is_some(),
            busybox: is_busybox(&instance.order.image),
            traffic: Arc::clone(&instance.traffic),
            tap: self.tap_file(id),
            identity: vec![
                text("CONTAINER_ID", id.to_string()),
                text("VAST_CONTAINERLABEL", format!("C.{id}")),
                text("CONTAINER_API_KEY", instance.api_key.clone()),
                text("PUBLIC_IPADDR", "127.0.0.1".to_owned()),
                text("GPU_COUNT", instance.gpus.len().to_string()),
            ],
            env: instance.order.env.clone(),
            onstart: instance
                .order
                .onstart
                .clone()
                .filter(|s| injects && !s.trim().is_empty()),
            program: (!injects).then(|| instance.order.program()),
            volume: instance
                .volume
                .clone()
                .map(|(volume, path)| (self.volume_dir(volume), path)),
        })
    }
}

/// Images of a world without glibc and bash: all they have is busybox.
fn is_busybox(image: &str) -> bool {
    let name = image.rsplit('/').next().unwrap_or(image);
    ["alpine", "busybox"]
        .iter()
        .any(|n| name == *n || name.starts_with(&format!("{n}:")))
}

pub fn key_lines(inner: Weak<Inner>, id: u64) -> KeyLines {
    Arc::new(move || {
        let Some(inner) = inner.upgrade() else {
            return Vec::new();
        };
        let mut state = inner.state();
        let lags = state.alive_mut(id).is_none_or(|i| i.key_lags(now_ms()));
        if lags {
            Vec::new()
        } else {
            State::keys_of(&state, id)
        }
    })
}

pub fn key_check(inner: Weak<Inner>, id: u64) -> KeyCheck {
    Arc::new(move |offered: &PublicKey| {
        let Some(inner) = inner.upgrade() else {
            return false;
        };
        let mut state = inner.state();
        let known = State::keys_of(&state, id)
            .iter()
            .filter_map(|text| PublicKey::from_openssh(text.trim()).ok())
            .any(|key| key.key_data() == offered.key_data());
        known && state.alive_mut(id).is_some_and(|i| !i.key_lags(now_ms()))
    })
}
