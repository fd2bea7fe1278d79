//! What the server is told from outside. Defaults are the documented ones.

use crate::http::webhooks::WebhookSecret;
use crate::link::AgentBinary;
use crate::objects::s3::S3Config;
use crate::providers::vast::VastConfig;
use crate::tls::TlsFiles;
use dumont_core::blacklist;
use dumont_core::plan::RaceSettings;
use dumont_core::plan::adaptive::AdaptiveSettings;
use dumont_core::spending::Caps;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Everything `serve` needs.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    pub listen: SocketAddr,
    /// Without it the API is plain HTTP.
    pub tls: Option<TlsFiles>,
    /// How others call this server, where it is not the address it listens on.
    pub public_url: Option<String>,
    /// Holds the embedded database, the objects, the keys and the admin token.
    pub data_dir: PathBuf,
    pub database: Database,
    pub agent: AgentBinary,
    /// The bucket for objects; none keeps them in the data directory.
    pub s3: Option<S3Config>,
    /// The account at Vast.ai; none knows only machines of the user's own.
    pub vast: Option<VastConfig>,
    /// `VAST_WEBHOOK_SECRET`: what Vast.ai's notifications are signed with; none takes none.
    pub vast_webhook_secret: Option<WebhookSecret>,
    /// `SSH_INVENTORY`: a file of the user's own machines, read again at each use.
    pub ssh_inventory: Option<PathBuf>,
    /// Where a workspace asks for a fixed number of racers.
    pub race: RaceSettings,
    /// Where it does not.
    pub adaptive: AdaptiveSettings,
    pub blacklist: blacklist::Settings,
    /// `PERIODIC_SNAPSHOT_INTERVAL_MINUTES`, for workspaces that say nothing else; zero takes none.
    pub snapshot_every: Duration,
    /// `ATTEMPT_RETENTION_DAYS`: older attempts are only counted.
    pub attempt_retention_days: u32,
    pub caps: Caps,
    /// `ABANDON_AFTER_MINUTES`: what is rented stops itself when no controller was there for so
    /// long, where its provider lets it; none never.
    pub abandon_after: Option<Duration>,
    /// `REAPER_CEILING`: orphans destroyed in one round at most.
    pub reaper_ceiling: usize,
    pub timing: Timing,
    /// `kind:step` at which the process kills itself, for crash drills.
    pub crash_at: Option<CrashPoint>,
}

/// Where the state is kept.
#[derive(Clone, PartialEq, Eq)]
pub enum Database {
    /// SQLite in the data directory.
    Embedded,
    Postgres {
        url: String,
    },
}

/// The URL may hold a password.
impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Embedded => "Embedded",
            Self::Postgres { .. } => "Postgres",
        })
    }
}

/// Waits of ours. None of them is a time limit on a machine's boot; the race has that.
#[derive(Debug, Clone)]
pub struct Timing {
    /// Least time between two listings of an account (documented limit: 1 s).
    pub listing: Duration,
    /// How long sshd may take after the provider says running (reported: up to 90 s).
    pub ssh_grace: Duration,
    /// How long our key may be refused after that: keys take a while to reach a machine
    /// (reported: up to 180 s), which is not the machine's fault.
    pub key_grace: Duration,
    /// What a machine that was rented before a crash gets at least after it, however long we were away.
    pub second_look: Duration,
    /// Between two searches of a race that has tried all it found.
    pub search_again: Duration,
    /// A workflow's lease; a crashed controller's work is taken over after it.
    pub lease: Duration,
    /// Between two rounds of the reaper.
    pub reap: Duration,
    /// Between two looks for snapshots that are due.
    pub schedule: Duration,
    /// Between two looks for instances that no row knows; each costs a listing of the whole account.
    pub sweep: Duration,
    /// `REAPER_GRACE_SECONDS`: how old such an instance must be. A fresh rent may be listed before
    /// its row says so.
    pub orphan_grace: Duration,
    /// How long an intended rent may still appear at the provider after its reply was lost.
    pub intent_grace: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            listing: Duration::from_secs(1),
            ssh_grace: Duration::from_secs(120),
            key_grace: Duration::from_secs(180),
            second_look: Duration::from_secs(60),
            search_again: Duration::from_secs(60),
            lease: Duration::from_secs(15),
            reap: Duration::from_secs(10),
            schedule: Duration::from_secs(10),
            sweep: Duration::from_secs(60),
            orphan_grace: Duration::from_secs(120),
            intent_grace: Duration::from_secs(60),
        }
    }
}

/// Where a crash drill kills the server: `restore`, `failover:restore`, `race:begin`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrashPoint {
    pub kind: String,
    pub step: String,
    /// At the step's begin; else when its effects are done and not yet committed, which is
    /// the worst moment.
    pub begin: bool,
}

impl std::str::FromStr for CrashPoint {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (rest, begin) = match s.strip_suffix(":begin") {
            Some(rest) => (rest, true),
            None => (s, false),
        };
        let (kind, step) = rest.split_once(':').unwrap_or(("failover", rest));
        let kind: dumont_core::workflow::Kind = kind.parse().map_err(|e| format!("{e}"))?;
        let step: dumont_core::workflow::Step = step.parse().map_err(|e| format!("{e}"))?;
        if !kind.steps().contains(&step) {
            let known: Vec<_> = kind.steps().iter().map(|s| s.as_str()).collect();
            return Err(format!("{kind} has no step {step}; it has {}", known.join(", ")));
        }
        Ok(Self {
            kind: kind.as_str().into(),
            step: step.as_str().into(),
            begin,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crash_points_default_to_the_failover() {
        let at: CrashPoint = "restore".parse().unwrap();
        assert_eq!(
            (at.kind.as_str(), at.step.as_str(), at.begin),
            ("failover", "restore", false)
        );
        let at: CrashPoint = "deploy:race:begin".parse().unwrap();
        assert_eq!(
            (at.kind.as_str(), at.step.as_str(), at.begin),
            ("deploy", "race", true)
        );
        assert!(
            "deploy:detect"
                .parse::<CrashPoint>()
                .unwrap_err()
                .contains("search")
        );
        assert!("nonsense".parse::<CrashPoint>().is_err());
    }
}
