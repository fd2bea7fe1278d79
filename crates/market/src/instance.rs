//! One rental: what was ordered, what it is now, what it has cost.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::faults::{FaultKind, Measure, Suffered};
use crate::machine::Machine;
use crate::money::Meter;
use crate::net::Traffic;
use crate::offers::{BootPlan, INET_DOWN_COST, INET_UP_COST, Price};
use crate::state::BootTicket;
use crate::volumes::Wish;

/// So many changes of an instance are remembered for its daemon log.
const HISTORY: usize = 200;

/// What `actual_status` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Null: being provisioned.
    Provisioning,
    Created,
    Loading,
    Running,
    /// Its container is being restarted.
    Rebooting,
    /// Paused with its memory.
    Frozen,
    Stopped,
    Exited,
    /// No heartbeat lately.
    Unknown,
    Offline,
}

impl Status {
    pub fn as_str(self) -> Option<&'static str> {
        Some(match self {
            Self::Provisioning => return None,
            Self::Created => "created",
            Self::Loading => "loading",
            Self::Running => "running",
            Self::Rebooting => "rebooting",
            Self::Frozen => "frozen",
            Self::Stopped => "stopped",
            Self::Exited => "exited",
            Self::Unknown => "unknown",
            Self::Offline => "offline",
        })
    }

    /// For logs and the operator.
    pub fn word(self) -> &'static str {
        self.as_str().unwrap_or("provisioning")
    }
}

/// A public key on the account or on one instance, as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshKey {
    pub id: u64,
    pub text: String,
    pub created_ms: i64,
}

/// What the renter asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Order {
    pub image: String,
    pub label: Option<String>,
    /// Environment variables and docker options, as pairs in their order.
    pub env: Vec<(String, String)>,
    pub onstart: Option<String>,
    pub disk_gb: f64,
    pub runtype: String,
    /// Whether its SSH port is opened on the host itself.
    pub direct: bool,
    /// Rather no contract at all than a stopped one.
    pub cancel_unavail: bool,
    /// What the image's entrypoint gets where nothing is injected (`runtype` is `args`).
    pub args: Vec<String>,
    pub template: Option<String>,
    pub volume: Option<Wish>,
    /// $/h where it is interruptible.
    pub bid: Option<f64>,
}

impl Order {
    /// Whether SSH is put into the container, which `args` leaves as it is.
    pub fn injects_ssh(&self) -> bool {
        self.runtype != "args"
    }

    /// What runs in a container that is left as it is: the entrypoint, or the image's own.
    pub fn program(&self) -> Vec<String> {
        let entrypoint = self.onstart.as_deref().unwrap_or_default().split_whitespace();
        let mut words: Vec<String> = entrypoint.map(str::to_owned).collect();
        words.extend(self.args.iter().cloned());
        if words.is_empty() {
            words = vec!["sleep".to_owned(), "infinity".to_owned()];
        }
        words
    }
}

/// A rental, from create on; destroyed ones stay for the ledger.
#[derive(Debug)]
pub struct Instance {
    pub id: u64,
    pub machine: usize,
    pub offer_id: u64,
    pub gpus: Vec<u32>,
    pub order: Order,
    pub api_key: String,
    pub price: Price,
    pub meter: Meter,
    pub created_ms: i64,
    pub started_ms: Option<i64>,
    pub destroyed_ms: Option<i64>,
    pub killed_ms: Option<i64>,
    pub status: Status,
    pub status_msg: String,
    pub intended_running: bool,
    pub keys: Vec<SshKey>,
    /// Grows with everything that makes a boot in progress void.
    pub boot: u64,
    pub boot_plan: BootPlan,
    pub faults: Vec<Suffered>,
    /// Logins that a lagging key was refused; the lag counts from the first.
    pub refused_logins: u64,
    pub first_refused_ms: Option<i64>,
    pub live: Option<Arc<Machine>>,
    /// When it changed, and to what.
    pub history: VecDeque<(i64, String)>,
    /// A volume of the same machine, and where it is mounted.
    pub volume: Option<(u64, String)>,
    /// When its contract is over.
    pub ends_ms: i64,
    /// $/h of the one who has its GPUs by a higher bid.
    pub outbid_by: Option<f64>,
    /// That one is of the market's own making, and goes as he came.
    pub rivals: bool,
    /// Its host is offline by the market's own making.
    pub away: bool,
    /// Bytes over SSH.
    pub traffic: Arc<Traffic>,
    /// Where the proxy takes connections for it.
    pub proxy_port: Option<u16>,
    /// Wanted running, but its GPUs are somebody else's until further notice.
    pub queued: bool,
}

impl Instance {
    pub fn alive(&self) -> bool {
        self.destroyed_ms.is_none()
    }

    /// Changes the status and remembers when.
    pub fn turn(&mut self, status: Status, why: impl Into<String>, now: i64) {
        self.status = status;
        self.status_msg = why.into();
        let line = format!("{} {}", status.word(), self.status_msg);
        self.note(line.trim_end().to_owned(), now);
    }

    pub fn note(&mut self, line: String, now: i64) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back((now, line));
    }

    /// $ for what went over its line.
    pub fn bandwidth_cost(&self) -> f64 {
        const GB: f64 = 1e9;
        let bytes =
            |count: &std::sync::atomic::AtomicU64| count.load(std::sync::atomic::Ordering::Relaxed) as f64;
        bytes(&self.traffic.outwards) / GB * INET_UP_COST + bytes(&self.traffic.inwards) / GB * INET_DOWN_COST
    }

    /// $ for all of it.
    pub fn cost(&self, now: i64) -> f64 {
        self.meter.gpu_cost(self.price, now)
            + self.meter.storage_cost(self.price, now)
            + self.bandwidth_cost()
    }

    /// What `status_msg` says of one that is well.
    pub fn running_message(&self) -> String {
        let how = if self.order.injects_ssh() { "ssh" } else { "args" };
        format!("success, running {}/{how}", self.order.image.replace(':', "_"))
    }

    /// Wants it running and makes any boot before this one void. No ticket where its host is
    /// gone: wanted, but it will not come.
    pub fn wake(&mut self) -> Option<BootTicket> {
        self.intended_running = true;
        self.queued = false;
        if self.killed_ms.is_some() {
            return None;
        }
        self.boot += 1;
        Some(BootTicket {
            instance: self.id,
            boot: self.boot,
        })
    }

    pub fn ssh_port(&self) -> Option<u16> {
        self.live.as_ref().map(|m| m.port())
    }

    /// The measure of this fault, if the instance has it and the host can make it.
    pub fn suffers(&self, kind: FaultKind) -> Option<Measure> {
        let found = self.faults.iter().find(|s| s.fault == kind)?;
        found.without_effect.is_none().then_some(found.measure)
    }

    /// Are keys not here yet? The lag begins with the first login that it refuses.
    pub fn key_lags(&mut self, now: i64) -> bool {
        let Some(lag) = self.suffers(FaultKind::KeyLag) else {
            return false;
        };
        let first = *self.first_refused_ms.get_or_insert(now);
        let length = i64::try_from(lag.for_ms.unwrap_or(0)).unwrap_or(i64::MAX);
        let lags = self.refused_logins == 0 || now.saturating_sub(first) < length;
        self.refused_logins += u64::from(lags);
        lags
    }
}
