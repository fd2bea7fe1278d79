//! What the one who starts a market decides.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::MarketError;
use crate::limits::Limits;
use crate::presets::Preset;
use crate::switches::Switches;
use crate::webhook::Webhook;

/// How far the processes of a rented machine are kept from the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Isolation {
    /// Namespaces where the host lets us make them, else a directory.
    #[default]
    Auto,
    /// Mount, PID, IPC and host-name namespaces with a root of their own.
    Namespace,
    /// Plain processes with their home in a directory of the instance.
    Directory,
}

impl FromStr for Isolation {
    type Err = MarketError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "auto" => Ok(Self::Auto),
            "namespace" => Ok(Self::Namespace),
            "directory" => Ok(Self::Directory),
            other => Err(MarketError::Invalid(format!(
                "isolation is auto, namespace or directory, not {other:?}"
            ))),
        }
    }
}

/// How the programs of a renter are told another time.
///
/// No namespace changes the wall clock, so a wrong one needs the programs' cooperation: on a
/// machine whose clock is off, `find` in the command lines that come over SSH becomes
/// `replace`, with `{ms}` the offset in milliseconds. Who starts the market knows the programs
/// that will run; the market does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClockHook {
    pub find: String,
    pub replace: String,
}

impl ClockHook {
    pub(crate) fn rewrite(&self, offset_s: i64) -> (String, String) {
        let ms = offset_s.saturating_mul(1_000).to_string();
        (self.find.clone(), self.replace.replace("{ms}", &ms))
    }
}

/// Which SSH server the machines run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Sshd {
    /// The market's own, which costs nothing and can be unplugged.
    #[default]
    InProcess,
    /// OpenSSH, with these lines after the market's in its configuration. Needs root.
    OpenSsh(Vec<String>),
}

/// Everything a market needs to start.
#[derive(Debug, Clone)]
pub struct MarketConfig {
    /// Where the Vast protocol is served.
    pub listen: SocketAddr,
    /// Where the operator's side is served; refused unless it is loopback or `admin_remote`.
    pub admin_listen: SocketAddr,
    /// The operator's side has no password: who reaches it kills machines and reads disks' places.
    pub admin_remote: bool,
    /// The same seed gives the same machines, prices and boot times.
    pub seed: u64,
    /// How many physical machines there are; each lists up to three offers.
    pub machines: usize,
    /// Multiplies the market's own waits only; 0 boots at once.
    pub time_scale: f64,
    /// Where the disks of the rented machines lie.
    pub data_dir: PathBuf,
    /// Keys that are let in; empty lets in any non-empty key.
    pub api_keys: Vec<String>,
    pub isolation: Isolation,
    pub sshd: Sshd,
    /// Keeps what clients send and get over SSH (the market's own server only), one file per
    /// instance below `data_dir`: for those who want to know what their program tells a machine.
    pub tap: bool,
    /// Makes `clock_off` possible.
    pub clock_hook: Option<ClockHook>,
    /// What happens by itself.
    pub preset: Preset,
    /// None: those of the preset.
    pub limits: Option<Limits>,
    pub switches: Switches,
    /// What the account starts with, in dollars.
    pub credit: f64,
    /// Where notifications of losses go; the operator's side may change it.
    pub webhook: Option<Webhook>,
    /// Whether the machines' sshd forwards ports, as `AllowTcpForwarding` decides it.
    pub forwarding: bool,
}

impl MarketConfig {
    /// A market on two free loopback ports with its disks below `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            admin_remote: false,
            seed: 1,
            machines: 100,
            time_scale: 1.0,
            data_dir: data_dir.into(),
            api_keys: Vec::new(),
            isolation: Isolation::Auto,
            sshd: Sshd::InProcess,
            tap: false,
            clock_hook: None,
            preset: Preset::Calm,
            limits: None,
            switches: Switches::default(),
            credit: 1000.0,
            webhook: None,
            forwarding: true,
        }
    }

    pub(crate) fn check(&self) -> Result<(), MarketError> {
        if !self.admin_listen.ip().is_loopback() && !self.admin_remote {
            return Err(MarketError::AdminNotLoopback(self.admin_listen));
        }
        if !self.time_scale.is_finite() || self.time_scale < 0.0 {
            return Err(MarketError::Invalid(format!(
                "time_scale is a number of at least 0, not {}",
                self.time_scale
            )));
        }
        if !self.credit.is_finite() {
            return Err(MarketError::Invalid("credit is a number of dollars".to_owned()));
        }
        Ok(())
    }
}
