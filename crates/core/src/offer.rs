//! Offers: something rentable now on a machine.

use crate::id::MachineRef;
use serde::{Deserialize, Serialize};

/// One offer, in dumont's units, already checked (finite numbers, bounded texts).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// The provider's id of the offer; unstable, never used as a key of history.
    pub offer_id: String,
    pub machine: MachineRef,
    /// Who operates the machine, as the provider names them.
    pub host_id: Option<String>,
    pub gpu_name: String,
    pub gpu_count: u32,
    /// Per GPU.
    pub gpu_ram_mb: u64,
    /// Dollars per hour, the asked disk included.
    pub price: f64,
    pub region: Option<String>,
    /// The provider's own uptime score, 0 to 1.
    pub provider_reliability: f64,
    /// Mbit/s.
    pub inet_down_mbps: f64,
    pub inet_up_mbps: f64,
    /// Highest CUDA version the driver serves, e.g. 12.8.
    pub cuda_max: Option<f64>,
    pub driver_version: Option<String>,
    /// GB.
    pub disk_gb: f64,
    pub verified: bool,
    /// In a data centre, as the provider says; absent in offers stored before it was read.
    #[serde(default)]
    pub datacenter: bool,
    /// What to bid for it, dollars per hour without storage; none where it is rented on demand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bid: Option<f64>,
}
