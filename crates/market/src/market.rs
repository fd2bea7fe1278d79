//! The market as a whole: configuration, state, and what is running for it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{MarketConfig, Sshd};
use crate::error::MarketError;
use crate::limits::{self, Endpoint, Excess, Limits};
use crate::machine::{self, Kind, Machine};
use crate::offers::Universe;
use crate::proxy::Proxy;
use crate::sshd::openssh;
use crate::state::State;
use crate::webhook::Webhook;

const STARTING: usize = 16;

pub struct Inner {
    pub config: MarketConfig,
    pub kind: Kind,
    /// Cancelled when the market closes.
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
    pub limits: Limits,
    state: Mutex<State>,
    asked: Mutex<limits::Ledger>,
    refusals: AtomicUsize,
    pub proxy: Arc<Proxy>,
    pub webhook: Mutex<Option<Webhook>>,
    /// Machines that may come up at once: more would only wait for each other.
    pub starting: Semaphore,
}

impl Inner {
    pub async fn new(mut config: MarketConfig) -> Result<Arc<Self>, MarketError> {
        let dir = config.data_dir.join("instances");
        let made = std::fs::create_dir_all(&dir).and_then(|()| config.data_dir.canonicalize());
        config.data_dir = made.map_err(|source| MarketError::DataDir { path: dir, source })?;
        let kind = machine::probe(config.isolation).await?;
        if matches!(config.sshd, Sshd::OpenSsh(_)) {
            if kind != Kind::Namespace {
                return Err(MarketError::Invalid(format!(
                    "OpenSSH needs machines in namespaces made by root; these are {}",
                    kind.as_str()
                )));
            }
            openssh::available().map_err(MarketError::Invalid)?;
        }
        let universe = Arc::new(Universe::from_seed(config.seed, config.machines));
        let webhook = config.webhook.clone();
        let limits = config.limits.unwrap_or_else(|| config.preset.limits());
        let state = State::new(universe, &config, now_ms());
        Ok(Arc::new(Self {
            config,
            kind,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            limits,
            state: Mutex::new(state),
            asked: Mutex::default(),
            refusals: AtomicUsize::new(0),
            proxy: Arc::default(),
            webhook: Mutex::new(webhook),
            starting: Semaphore::new(STARTING),
        }))
    }

    /// The state. Never held across an await.
    pub fn state(&self) -> MutexGuard<'_, State> {
        machine::lock(&self.state)
    }

    /// Takes note of a request, or says why it comes too soon, and how often that was said.
    pub fn ask(&self, who: &str, endpoint: Endpoint) -> Result<(), (Excess, usize)> {
        machine::lock(&self.asked)
            .ask(self.limits, who, endpoint, now_ms())
            .map_err(|excess| (excess, self.refusals.fetch_add(1, Ordering::Relaxed)))
    }

    pub fn instance_dir(&self, id: u64) -> PathBuf {
        self.config.data_dir.join("instances").join(id.to_string())
    }

    pub fn volume_dir(&self, id: u64) -> PathBuf {
        self.config.data_dir.join("volumes").join(id.to_string())
    }

    pub fn tap_file(&self, id: u64) -> Option<PathBuf> {
        let dir = self.config.data_dir.join("taps");
        self.config.tap.then(|| dir.join(format!("{id}.tap")))
    }

    /// One of the market's own waits, scaled.
    pub fn scaled(&self, seconds: f64) -> Duration {
        Duration::try_from_secs_f64(seconds * self.config.time_scale).unwrap_or(Duration::MAX)
    }

    fn take_all_live(&self) -> Vec<Arc<Machine>> {
        self.state()
            .instances
            .values_mut()
            .filter_map(|i| i.live.take())
            .collect()
    }

    pub async fn end_all(&self) {
        self.stop.cancel();
        self.tasks.close();
        for machine in self.take_all_live() {
            machine.kill().await;
        }
        let _ = tokio::time::timeout(Duration::from_secs(20), self.tasks.wait()).await;
        for machine in self.take_all_live() {
            machine.kill().await;
        }
    }

    /// As [`Self::end_all`] where nobody can wait.
    pub fn abandon(&self) {
        for machine in self.take_all_live() {
            machine.abandon();
        }
    }
}

/// Now, in Unix milliseconds.
pub fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// Now, as Vast writes it: Unix seconds with a fraction.
pub fn seconds(ms: i64) -> f64 {
    ms as f64 / 1000.0
}
