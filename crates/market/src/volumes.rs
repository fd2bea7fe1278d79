//! Volumes: disk space of one machine that outlives the instances on it.
//!
//! A volume is local to its machine, has one size for life and cannot be deleted while an
//! instance mounts it, nor until a little after that instance was destroyed (public reports).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::cell::{columns, hardware_row};
use crate::hardware::Hardware;
use crate::offers::{HOURS_PER_MONTH, Machine, Universe};

/// A volume ask has a slot of its machine that no GPU ask ever has.
const SLOT: u64 = 60;
/// Every GPU that a machine may have.
const GPUS: &[u32] = &[0, 1, 2, 3, 4, 5, 6, 7];
/// The share of a machine's disk that its host lets as volumes.
const SHARE: f64 = 0.5;

/// What a create says of a volume.
#[derive(Debug, Clone, PartialEq)]
pub struct Wish {
    /// A volume ask where it is to be made, else the volume.
    pub id: u64,
    pub create: bool,
    pub mount_path: String,
    pub size_gb: f64,
    pub name: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Volume {
    pub id: u64,
    pub machine: usize,
    pub size_gb: f64,
    pub name: Option<String>,
    pub created_ms: i64,
    pub deleted_ms: Option<i64>,
}

impl Volume {
    pub fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("V.{}", self.id))
    }

    pub fn cost(&self, universe: &Universe, now: i64) -> f64 {
        let hours = (self.deleted_ms.unwrap_or(now) - self.created_ms).max(0) as f64 / 3_600_000.0;
        let price = universe
            .machines
            .get(self.machine)
            .map_or(0.0, |m| m.storage_cost);
        self.size_gb * price / HOURS_PER_MONTH * hours
    }
}

/// Every volume there ever was.
#[derive(Debug, Default)]
pub struct Volumes(BTreeMap<u64, Volume>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoVolume {
    NoSuchAsk,
    NoSpace,
}

impl Volumes {
    pub fn alive(&self, id: u64) -> Option<&Volume> {
        self.0.get(&id).filter(|v| v.deleted_ms.is_none())
    }

    pub fn all(&self) -> impl Iterator<Item = &Volume> {
        self.0.values()
    }

    pub fn all_alive(&self) -> impl Iterator<Item = &Volume> {
        self.all().filter(|v| v.deleted_ms.is_none())
    }

    /// GB of this machine that can still be had.
    pub fn free_gb(&self, universe: &Universe, machine: usize) -> f64 {
        let used: f64 = self
            .all_alive()
            .filter(|v| v.machine == machine)
            .map(|v| v.size_gb)
            .sum();
        let total = universe.machines.get(machine).map_or(0.0, |m| m.disk_gb * SHARE);
        (total - used).max(0.0).floor()
    }

    pub fn rent(&mut self, universe: &Universe, ask: u64, volume: Volume) -> Result<u64, NoVolume> {
        let machine = machine_of(universe, ask).ok_or(NoVolume::NoSuchAsk)?;
        if volume.size_gb <= 0.0 || volume.size_gb > self.free_gb(universe, machine) {
            return Err(NoVolume::NoSpace);
        }
        let id = volume.id;
        self.0.insert(id, Volume { machine, ..volume });
        Ok(id)
    }

    pub fn delete(&mut self, id: u64, now: i64) {
        if let Some(volume) = self.0.get_mut(&id) {
            volume.deleted_ms.get_or_insert(now);
        }
    }
}

pub fn ask_id(machine: &Machine) -> u64 {
    machine.machine_id * 64 + SLOT
}

fn machine_of(universe: &Universe, ask: u64) -> Option<usize> {
    universe.machines.iter().position(|m| ask_id(m) == ask)
}

/// Space on a machine.
pub struct VolumeAsk<'a> {
    pub machine: &'a Machine,
    pub free_gb: f64,
    pub storage_gb: f64,
    pub now_s: f64,
}

impl<'a> VolumeAsk<'a> {
    fn hardware(&self) -> Hardware<'a> {
        Hardware {
            machine: self.machine,
            // They are listed, and not rented with it.
            gpus: GPUS.get(..self.machine.gpu_count as usize).unwrap_or_default(),
        }
    }

    fn price(&self) -> f64 {
        self.storage_gb * self.machine.storage_cost / HOURS_PER_MONTH
    }
}

columns! { VolumeColumn<'a> of v: VolumeAsk<'a>; m = v.machine => {
    id: ask_id(m),
    ask_contract_id: ask_id(m),
    disk_space: v.free_gb,
    storage_cost: m.storage_cost,
    storage_total_cost: v.price(),
    dph_total: v.price(),
    external: (),
    size: v.free_gb,
    score: m.reliability,
    rentable: true,
    duration: m.max_duration_s,
    start_date: v.now_s - 30.0 * 86_400.0,
    end_date: v.now_s + m.max_duration_s,
}}

hardware_row!(VolumeAsk, VolumeColumn);

/// The row of a rented volume, mounted by these instances.
pub fn row(universe: &Universe, volume: &Volume, instances: &[u64]) -> Value {
    let Some(machine) = universe.machines.get(volume.machine) else {
        return Value::Null;
    };
    json!({
        "id": volume.id, "cluster_id": null, "label": volume.name(), "volume_name": volume.name(),
        "disk_space": volume.size_gb, "status": "online", "disk_name": "NVMe", "disk_bw": machine.disk_bw,
        "driver_version": machine.driver_version, "inet_up": machine.inet_up, "inet_down": machine.inet_down,
        "reliability2": machine.reliability, "start_date": crate::market::seconds(volume.created_ms),
        "end_date": crate::market::seconds(volume.created_ms) + machine.max_duration_s,
        "machine_id": machine.machine_id, "host_id": machine.host_id, "geolocation": machine.geolocation,
        "verification": machine.verification(),
        "storage_cost": machine.storage_cost, "instances": instances, "public_ipaddr": machine.public_ip,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_lets_no_more_than_it_has() {
        let universe = Universe::from_seed(1, 3);
        let mut volumes = Volumes::default();
        let ask = ask_id(&universe.machines[1]);
        let free = volumes.free_gb(&universe, 1);
        let volume = |id, size_gb| Volume {
            id,
            machine: 0,
            size_gb,
            name: None,
            created_ms: 0,
            deleted_ms: None,
        };
        assert_eq!(volumes.rent(&universe, ask, volume(7, free - 5.0)), Ok(7));
        assert_eq!(volumes.alive(7).map(|v| v.machine), Some(1));
        assert_eq!(
            volumes.rent(&universe, ask, volume(8, 6.0)),
            Err(NoVolume::NoSpace)
        );
        assert_eq!(
            volumes.rent(&universe, 5, volume(8, 6.0)),
            Err(NoVolume::NoSuchAsk)
        );
        volumes.delete(7, 3_600_000);
        assert_eq!(volumes.free_gb(&universe, 1), free);
        let cost: f64 = volumes.all().map(|v| v.cost(&universe, i64::MAX)).sum();
        let expected = (free - 5.0) * universe.machines[1].storage_cost / HOURS_PER_MONTH;
        assert!((cost - expected).abs() < 1e-9, "{cost} is not {expected}");
    }
}
