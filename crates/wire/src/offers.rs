//! `GET /instances/offers`: what can be rented now, with what we know of each machine.
//!
//! The names are Vast.ai's own where it has one, as the source document shows them.

use dumont_core::blacklist::CudaVersion;
use dumont_core::spec::Providers;
use serde::{Deserialize, Serialize};

/// The provider's id of an offer: a number where it is one.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OfferId {
    Number(u64),
    Text(String),
}

impl From<&str> for OfferId {
    fn from(id: &str) -> Self {
        // `007` is not the number 7: only what reads back the same is a number.
        match id.parse::<u64>() {
            Ok(n) if n.to_string() == id => Self::Number(n),
            _ => Self::Text(id.into()),
        }
    }
}

impl std::fmt::Display for OfferId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(n) => n.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// One offer and the record of its machine.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    pub id: OfferId,
    pub provider: String,
    pub machine_id: String,
    /// Who operates the machine.
    pub host_id: Option<String>,
    pub gpu_name: String,
    pub num_gpus: u32,
    /// MB per GPU.
    pub gpu_ram: u64,
    /// Dollars per hour, the asked disk included.
    pub dph_total: f64,
    /// GB.
    pub disk_space: f64,
    pub geolocation: Option<String>,
    /// Mbit/s.
    pub inet_down: f64,
    pub inet_up: f64,
    pub cuda_max_good: Option<f64>,
    pub driver_version: Option<String>,
    pub verified: bool,
    pub datacenter: bool,
    /// The provider's own uptime score, 0 to 1.
    pub reliability: f64,

    pub is_blacklisted: bool,
    pub blacklist_reason: Option<String>,
    /// Of the attempts that count; null before the first.
    pub success_rate: Option<f64>,
    /// All attempts, those that do not count included.
    pub total_attempts: i64,
    pub successful_attempts: i64,
    pub failed_attempts: i64,
    /// excellent, good, fair, poor, blacklisted, unknown.
    pub reliability_status: String,
    /// What the ranking uses, 0 to 1.
    pub reliability_score: f64,
    /// Seconds from renting to a machine that answers, should it come: the mean of the boot
    /// curve of machines with its download speed that do not have the image yet.
    pub predicted_ready_seconds: f64,
}

/// The answer: a page, and what was left out of it.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OfferPage {
    pub items: Vec<Offer>,
    /// Pass as `?after=` for the next page; absent on the last.
    pub next: Option<String>,
    /// Offers that fit, before blacklisted ones were hidden and machines shown once.
    pub found: u64,
    /// Machines that fit and are hidden because they are blacklisted.
    pub blacklisted_hidden: u64,
}

/// `order=` of the search.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OfferOrder {
    /// Most reliable first.
    #[default]
    Score,
    /// Cheapest first.
    Price,
    /// Soonest ready first.
    Ready,
}

/// `verified=` of the search.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OfferVerified {
    True,
    False,
    Any,
}

/// `?gpu=&max_price=…`: all optional, all must hold.
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfferQuery {
    /// Whose: `vast`, `ssh` (your own), or `any`. Default: `vast`, or that of the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(inline))]
    pub provider: Option<Providers>,
    /// Marketplace name, e.g. `RTX 4090`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
    /// GPUs on the offer, 1 to 16, default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_count: Option<u32>,
    /// Least memory per GPU, GB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_ram_gb: Option<f64>,
    /// Dollars per hour, the disk included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_price: Option<f64>,
    /// Disk to rent, GB, default 20; prices include it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_gb: Option<u32>,
    /// Least rate, Mbit/s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_down_mbps: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_up_mbps: Option<f64>,
    /// A country's two letters (`CA`), or a part of the place's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Default: what the server's account is set to (verified only).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(inline))]
    pub verified: Option<OfferVerified>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datacenter: Option<bool>,
    /// CUDA version the driver must serve, e.g. `12.4`; blocks for it count, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(value_type = Option<String>, example = "12.4"))]
    pub cuda: Option<CudaVersion>,
    /// One machine only, e.g. `vast:12345`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(inline))]
    pub order: Option<OfferOrder>,
    /// Every offer of a machine, not only its best.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub all_offers: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include_blacklisted: Option<bool>,
    /// 1 to 500, default 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}
