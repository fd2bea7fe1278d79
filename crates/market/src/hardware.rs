//! What an offer row and an instance row say about the hardware alike.

use serde_json::json;

use crate::cell::columns;
use crate::offers::{INET_DOWN_COST, INET_UP_COST, Machine, driver_number, round};

/// Some GPUs of a machine.
#[derive(Debug, Clone, Copy)]
pub struct Hardware<'a> {
    pub machine: &'a Machine,
    pub gpus: &'a [u32],
}

columns! { HardwareColumn<'a> of h: Hardware<'a>; m = h.machine, n = h.gpus.len() => {
    machine_id: m.machine_id,
    host_id: m.host_id,
    hosting_type: u8::from(m.datacenter),
    resource_type: "gpu",
    cluster_id: (),
    num_gpus: n,
    gpu_name: m.gpu_name,
    gpu_ram: m.gpu_ram_mb,
    gpu_total_ram: m.gpu_ram_mb * n as u64,
    gpu_totalram: m.gpu_ram_mb * n as u64,
    gpu_frac: h.share(),
    gpu_ids: json!(h.gpus),
    gpu_arch: "nvidia",
    gpu_lanes: 16,
    gpu_mem_bw: m.gpu_mem_bw,
    gpu_max_power: m.gpu_watts,
    gpu_max_temp: 88,
    gpu_display_active: false,
    compute_cap: m.compute_cap,
    cuda_max_good: m.cuda_max_good,
    driver_version: m.driver_version,
    driver_vers: driver_number(m.driver_version),
    total_flops: round(m.tflops_per_gpu * n as f64, 2),
    bw_nvlink: 0.0,
    cpu_name: m.cpu_name,
    cpu_cores: m.cpu_cores,
    cpu_cores_effective: round(f64::from(m.cpu_cores) * h.share(), 1),
    cpu_ghz: 2.6,
    cpu_ram: m.cpu_ram_mb,
    cpu_arch: "amd64",
    has_avx: 1,
    disk_bw: m.disk_bw,
    disk_name: "NVMe",
    pci_gen: 4.0,
    pcie_bw: 24.9,
    mobo_name: "H12SSL",
    os_version: "22.04",
    inet_up: m.inet_up,
    inet_down: m.inet_down,
    inet_up_cost: INET_UP_COST,
    inet_down_cost: INET_DOWN_COST,
    internet_up_cost_per_tb: 4.6,
    internet_down_cost_per_tb: 1.2,
    direct_port_count: 42,
    static_ip: m.datacenter,
    geolocation: m.geolocation,
    geolocode: 1,
    reliability: m.reliability,
    reliability2: m.reliability,
    reliability_mult: 0.9,
    expected_reliability: m.reliability,
    verification: m.verification(),
    vericode: u8::from(m.verified),
    logo: "/static/logos/vastai_small2.png",
    webpage: (),
}}

impl Hardware<'_> {
    /// Of the whole machine.
    pub fn share(&self) -> f64 {
        self.gpus.len() as f64 / f64::from(self.machine.gpu_count)
    }
}

impl Machine {
    pub fn verification(&self) -> &'static str {
        if self.verified { "verified" } else { "unverified" }
    }
}
