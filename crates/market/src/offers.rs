//! The market's machines, drawn from a seed: pure, no clock, no I/O.
//!
//! A *machine* is a box with some GPUs; an *offer* (Vast: ask) is a share of
//! it. A box is cut into chunks of one to three sizes and only the first free
//! chunk of each size is listed, so a box shows one to three rows, renting one
//! makes the overlapping ones vanish, and the next chunk of that size appears
//! under another id: ids race and churn as they do on the real market.
//!
//! Sources of the numbers: field names, types and units from the Vast.ai
//! OpenAPI files; price levels, 24 GB cards listing 24564 MB and ~720 h months
//! from Vast.ai docs; boot times (22..167 s to a working SSH for cached
//! images, sshd 30-90 s after `running` on bad days) from public reports.

use serde_json::{Value, json};

use crate::rng::Draw;

/// $/GB out of a machine and into it (Vast.ai docs).
pub const INET_UP_COST: f64 = 0.0046;
pub const INET_DOWN_COST: f64 = 0.0012;
/// Hours in a month by which Vast divides monthly storage prices (Vast.ai docs).
pub const HOURS_PER_MONTH: f64 = 720.0;

/// One GPU model: name as listed, usable MB, typical $/h, ×100 compute capability, TFLOPS, GB/s, W.
struct Model {
    name: &'static str,
    ram_mb: u64,
    price: f64,
    compute_cap: u32,
    tflops: f64,
    bandwidth: f64,
    watts: u32,
    weight: u64,
}

#[rustfmt::skip]
const MODELS: &[Model] = &[
    Model { name: "RTX 3090",  ram_mb: 24576, price: 0.16, compute_cap: 860,  tflops: 35.6,  bandwidth: 936.0,  watts: 350, weight: 20 },
    Model { name: "RTX 4090",  ram_mb: 24564, price: 0.33, compute_cap: 890,  tflops: 82.5,  bandwidth: 1008.0, watts: 450, weight: 30 },
    Model { name: "RTX 5090",  ram_mb: 32607, price: 0.48, compute_cap: 1200, tflops: 104.8, bandwidth: 1792.0, watts: 575, weight: 20 },
    Model { name: "RTX A6000", ram_mb: 49140, price: 0.45, compute_cap: 860,  tflops: 38.7,  bandwidth: 768.0,  watts: 300, weight: 8 },
    Model { name: "A100 PCIE", ram_mb: 40960, price: 0.62, compute_cap: 800,  tflops: 19.5,  bandwidth: 1555.0, watts: 250, weight: 6 },
    Model { name: "A100 SXM4", ram_mb: 81920, price: 0.95, compute_cap: 800,  tflops: 19.5,  bandwidth: 2039.0, watts: 400, weight: 8 },
    Model { name: "H100 SXM",  ram_mb: 81559, price: 1.95, compute_cap: 900,  tflops: 66.9,  bandwidth: 3350.0, watts: 700, weight: 8 },
];

/// Place as shown, with the two-letter code that filters match on at its end.
const PLACES: &[&str] = &[
    "Quebec, CA",
    "Ontario, CA",
    "California, US",
    "Texas, US",
    "Washington, US",
    "New York, US",
    "Germany, DE",
    "Sweden, SE",
    "Norway, NO",
    "Poland, PL",
    "Czechia, CZ",
    "Taiwan, TW",
    "Japan, JP",
    "South Korea, KR",
    "Australia, AU",
    "United Kingdom, GB",
];

const CPUS: &[(&str, u32)] = &[
    ("AMD EPYC 7K62 48-Core Processor", 96),
    ("AMD EPYC 7763 64-Core Processor", 128),
    ("AMD Ryzen 9 7950X 16-Core Processor", 32),
    ("Xeon® Gold 6248R", 96),
    ("AMD EPYC 9554 64-Core Processor", 128),
];

const DRIVERS: &[(&str, f64)] = &[
    ("535.183.01", 12.2),
    ("550.127.05", 12.4),
    ("565.77", 12.7),
    ("570.124.04", 12.8),
    ("580.65.06", 13.0),
];

/// One physical box.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    pub machine_id: u64,
    pub host_id: u64,
    pub gpu_name: &'static str,
    pub gpu_count: u32,
    pub gpu_ram_mb: u64,
    pub compute_cap: u32,
    pub tflops_per_gpu: f64,
    pub gpu_mem_bw: f64,
    pub gpu_watts: u32,
    /// $/h for one GPU, and the lowest bid for it.
    pub price_per_gpu: f64,
    pub min_bid_per_gpu: f64,
    /// $/GB/month.
    pub storage_cost: f64,
    pub geolocation: &'static str,
    pub reliability: f64,
    pub verified: bool,
    pub datacenter: bool,
    pub inet_down: f64,
    pub inet_up: f64,
    pub cuda_max_good: f64,
    pub driver_version: &'static str,
    pub disk_gb: f64,
    pub disk_bw: f64,
    pub cpu_name: &'static str,
    pub cpu_cores: u32,
    pub cpu_ram_mb: u64,
    pub public_ip: String,
    pub max_duration_s: f64,
    /// Sizes in which the box is cut, ascending.
    pub chunk_sizes: Vec<u32>,
    /// Median seconds from create to a working SSH on this box.
    pub boot_median_s: f64,
}

/// A share of a box that can be rented.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub id: u64,
    /// Index into [`Universe::machines`].
    pub machine: usize,
    /// Which GPUs of the box, by index.
    pub gpus: Vec<u32>,
}

/// How long one rental takes to boot, in seconds before `time_scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BootPlan {
    pub created_s: f64,
    pub loading_s: f64,
    /// From `running` to an sshd that answers.
    pub sshd_s: f64,
}

impl BootPlan {
    /// Of a container that is started again: its image is there.
    pub fn again(self) -> Self {
        Self {
            loading_s: self.loading_s * 0.1,
            ..self
        }
    }
}

/// All that exists on this market, rented or not.
#[derive(Debug, Clone, PartialEq)]
pub struct Universe {
    pub seed: u64,
    pub machines: Vec<Machine>,
    /// By id, ascending.
    pub offers: Vec<Offer>,
}

impl Universe {
    pub fn from_seed(seed: u64, count: usize) -> Self {
        let mut machines = Vec::with_capacity(count);
        let mut offers = Vec::new();
        let mut machine_id = 10_000 + Draw::for_parts(&[seed, 0xa]).below(5_000);
        for index in 0..count {
            let mut draw = Draw::for_parts(&[seed, 0xb, index as u64]);
            machine_id += 1 + draw.below(40);
            let machine = draw_machine(&mut draw, machine_id, seed, count);
            let mut slot = 0;
            for &size in &machine.chunk_sizes {
                for chunk in 0..machine.gpu_count / size {
                    let id = machine_id * 64 + slot;
                    slot += 1;
                    let gpus = (chunk * size..(chunk + 1) * size).collect();
                    offers.push(Offer {
                        id,
                        machine: index,
                        gpus,
                    });
                }
            }
            machines.push(machine);
        }
        Self {
            seed,
            machines,
            offers,
        }
    }

    pub fn offer(&self, id: u64) -> Option<&Offer> {
        let at = self.offers.binary_search_by_key(&id, |offer| offer.id).ok()?;
        self.offers.get(at)
    }

    /// The rows to show when `is_free(machine index, gpu)` says what is not rented.
    /// With their indices.
    pub fn listed(&self, is_free: impl Fn(usize, u32) -> bool) -> Vec<(usize, &Offer)> {
        let mut rows: Vec<(usize, &Offer)> = Vec::new();
        for (index, offer) in self.offers.iter().enumerate() {
            let size = offer.gpus.len();
            // Ids ascend by machine, then size, then chunk: a chunk of the same
            // size that is already shown is the row before this one.
            let shown = rows
                .last()
                .is_some_and(|(_, last)| last.machine == offer.machine && last.gpus.len() == size);
            if !shown && offer.gpus.iter().all(|gpu| is_free(offer.machine, *gpu)) {
                rows.push((index, offer));
            }
        }
        rows
    }

    /// Boot times of the n-th rental of a box: the same for the same seed.
    pub fn boot_plan(&self, machine: usize, rental: u64) -> BootPlan {
        let median = self.machines.get(machine).map_or(45.0, |m| m.boot_median_s);
        let mut draw = Draw::for_parts(&[self.seed, 0xc, machine as u64, rental]);
        let total = draw.lognormal(median, 0.30).clamp(8.0, 900.0);
        let (created, sshd) = (draw.range(0.03, 0.10), draw.range(0.08, 0.35));
        BootPlan {
            created_s: total * created,
            loading_s: total * (1.0 - created - sshd),
            sshd_s: total * sshd,
        }
    }
}

fn draw_machine(draw: &mut Draw, machine_id: u64, seed: u64, count: usize) -> Machine {
    // A host owns several boxes: about one host for every three.
    let hosts = (count as u64 / 3).max(1);
    let host_id = 50_000 + Draw::for_parts(&[seed, 0xd, draw.below(hosts)]).below(40_000);
    let total: u64 = MODELS.iter().map(|m| m.weight).sum();
    let mut ticket = draw.below(total);
    let model = MODELS
        .iter()
        .find(|m| {
            let hit = ticket < m.weight;
            ticket = ticket.saturating_sub(m.weight);
            hit
        })
        .unwrap_or(&MODELS[0]);
    let gpu_count = *draw.pick(&[1, 1, 1, 2, 2, 4, 4, 8]).unwrap_or(&1);
    let datacenter = model.price > 0.9 || draw.chance(0.2);
    let price = round(model.price * draw.lognormal(1.0, 0.18), 4);
    let (driver_version, cuda_max_good) = *draw.pick(DRIVERS).unwrap_or(&DRIVERS[0]);
    let (cpu_name, cpu_cores) = *draw.pick(CPUS).unwrap_or(&CPUS[0]);
    let chunk_sizes = match gpu_count {
        1 => vec![1],
        2 => vec![1, 2],
        4 => vec![1, 2, 4],
        _ => vec![1, 4, 8],
    };
    // Home lines and data-centre lines are different worlds (Mb/s).
    let inet_down = round(
        draw.lognormal(if datacenter { 3500.0 } else { 650.0 }, 0.5)
            .clamp(40.0, 20_000.0),
        1,
    );
    Machine {
        machine_id,
        host_id,
        gpu_name: model.name,
        gpu_count,
        gpu_ram_mb: model.ram_mb,
        compute_cap: model.compute_cap,
        tflops_per_gpu: model.tflops,
        gpu_mem_bw: model.bandwidth,
        gpu_watts: model.watts,
        price_per_gpu: price,
        min_bid_per_gpu: round(price * draw.range(0.35, 0.6), 4),
        storage_cost: round(draw.range(0.08, 0.25), 3),
        geolocation: draw.pick(PLACES).copied().unwrap_or("Quebec, CA"),
        reliability: round((1.0 - draw.lognormal(0.006, 1.0)).clamp(0.60, 0.9999), 4),
        verified: draw.chance(0.8),
        datacenter,
        inet_down,
        inet_up: round(inet_down * draw.range(0.5, 1.0), 1),
        cuda_max_good,
        driver_version,
        disk_gb: round(draw.range(200.0, 3000.0), 1),
        disk_bw: round(draw.range(500.0, 7000.0), 1),
        cpu_name,
        cpu_cores,
        cpu_ram_mb: *draw
            .pick(&[32_000, 64_000, 128_000, 257_000, 515_000])
            .unwrap_or(&64_000),
        public_ip: format!("203.0.113.{}", 1 + machine_id % 254),
        max_duration_s: round(draw.range(3.0, 90.0) * 86_400.0, 0),
        chunk_sizes,
        boot_median_s: draw.lognormal(42.0, 0.45).clamp(12.0, 400.0),
    }
}

pub fn round(x: f64, places: i32) -> f64 {
    let k = 10f64.powi(places);
    (x * k).round() / k
}

/// "570.124.04" as Vast counts it: 570124004.
pub fn driver_number(version: &str) -> u64 {
    let mut parts = version.split('.').map(|p| p.parse::<u64>().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    next() * 1_000_000 + next() * 1_000 + next()
}

/// What one GPU of a machine costs at some time, in $/h, and its disk in $/GB/month.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Quote {
    pub price: f64,
    pub min_bid: f64,
    pub storage: f64,
}

impl Machine {
    /// The price that its host has set.
    pub fn quote(&self) -> Quote {
        Quote {
            price: self.price_per_gpu,
            min_bid: self.min_bid_per_gpu,
            storage: self.storage_cost,
        }
    }
}

/// $/h of a share with a disk of `disk_gb`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Price {
    pub dph_base: f64,
    pub storage_total_cost: f64,
}

impl Price {
    pub fn of(quote: Quote, gpus: usize, disk_gb: f64, bid: Option<f64>) -> Self {
        Self {
            dph_base: bid.unwrap_or(quote.price * gpus as f64),
            storage_total_cost: disk_gb * quote.storage / HOURS_PER_MONTH,
        }
    }

    pub fn dph_total(&self) -> f64 {
        self.dph_base + self.storage_total_cost
    }

    /// The nested object that rows repeat their price in.
    pub fn as_search_value(&self) -> Value {
        json!({
            "gpuCostPerHour": self.dph_base, "diskHour": self.storage_total_cost, "totalHour": self.dph_total(),
            "discountTotalHour": 0, "discountedTotalPerHour": self.dph_total(),
        })
    }
}

pub fn dlperf(machine: &Machine, gpus: usize) -> f64 {
    round(machine.tflops_per_gpu * gpus as f64 * 1.21, 2)
}

pub fn score(machine: &Machine, gpus: usize, total: f64) -> f64 {
    round(dlperf(machine, gpus) / total * machine.reliability, 3)
}

/// What a search prices its rows with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ask {
    pub quote: Quote,
    pub disk_gb: f64,
    pub bid: bool,
    pub now_s: f64,
}

#[cfg(test)]
#[path = "offers_tests.rs"]
mod tests;
