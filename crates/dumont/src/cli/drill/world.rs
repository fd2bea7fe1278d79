//! The drill's world: a market and a server as child processes with one temporary directory.
//!
//! They end with the drill whatever happens to it: told to on the way out, killed when the
//! guard is dropped, and by the kernel when the drill itself is killed.

use super::bucket::{Bucket, StoreWish};
use crate::cli::ssh::quote;
use crate::client::Client;
use crate::config::{Globals, MARKET_FILE, MarketFile, SERVER_FILE, ServerFile, TOKEN_FILE, read_if_there};
use crate::fail::fail;
use crate::settings::{SETTINGS, Surroundings};
use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// How long a child may take until it listens. The first start makes a database.
const START: Duration = Duration::from_secs(30);
/// How long children get to end by themselves. The market ends its machines in this time.
const END: Duration = Duration::from_secs(15);

/// What the market should be like.
#[derive(Debug, Clone)]
pub struct MarketWish {
    pub seed: u64,
    pub machines: u32,
    pub time_scale: f64,
    pub openssh: bool,
}

pub(super) struct Proc {
    name: &'static str,
    pub(super) child: Child,
    log: PathBuf,
}

pub struct World {
    dir: PathBuf,
    market: Proc,
    server: Proc,
    bucket: Option<Bucket>,
    pub market_urls: MarketFile,
    pub admin: Admin,
    pub client: Client,
    server_address: String,
    /// What the server is told beside its arguments.
    env: Vec<(&'static str, String)>,
}

impl World {
    /// Starts both; `crash_at` makes the server kill itself at that step of a failover.
    /// `database` is PostgreSQL's URL, where the state is not embedded.
    pub async fn start(
        dir: &Path,
        wish: &MarketWish,
        store: StoreWish,
        crash_at: Option<&str>,
        database: Option<String>,
    ) -> Result<Self> {
        // Whatever fails below, dropping a `Proc` kills it.
        let bucket = match store {
            StoreWish::File => None,
            StoreWish::S3 => Some(Bucket::start(dir).await?),
        };
        let mut market = start_market(dir, wish)?;
        let market_file = dir.join("market").join(MARKET_FILE);
        let market_urls: MarketFile = wait_for(&market_file, &mut market).await?;
        let mut env = bucket.as_ref().map_or_else(Vec::new, |b| b.env.to_vec());
        env.extend(database.map(|url| ("DATABASE_URL", url)));
        let mut server = start_server(dir, &market_urls, &env, "127.0.0.1:0", crash_at)?;
        let server_file: ServerFile = wait_for(&dir.join(SERVER_FILE), &mut server).await?;
        let client = globals(dir).client().with_context(|| tail(&server))?;
        let server_address = server_file
            .url
            .trim_start_matches("http://")
            .trim_end_matches('/')
            .to_owned();
        let admin = Admin::new(&market_urls.admin_url)?;
        Ok(Self {
            dir: dir.to_owned(),
            market,
            server,
            bucket,
            market_urls,
            admin,
            client,
            server_address,
            env,
        })
    }

    /// Where the objects are, if not in the data directory.
    pub fn bucket(&self) -> Option<&str> {
        self.bucket.as_ref().map(|b| b.about.as_str())
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the server process is gone, and how it went.
    pub fn server_ended(&mut self) -> Option<String> {
        self.server
            .child
            .try_wait()
            .ok()
            .flatten()
            .map(|status| status.to_string())
    }

    /// Starts the server again on the same port, without a crash point.
    pub async fn restart_server(&mut self) -> Result<()> {
        let file = self.dir.join(SERVER_FILE);
        let _ = fs::remove_file(&file);
        self.server = start_server(
            &self.dir,
            &self.market_urls,
            &self.env,
            &self.server_address,
            None,
        )?;
        let _: ServerFile = wait_for(&file, &mut self.server).await?;
        Ok(())
    }

    /// The last lines of both logs, for when something went wrong.
    pub fn tails(&self) -> String {
        format!("{}\n{}", tail(&self.server), tail(&self.market))
    }

    /// Copies the logs to where they outlive the drill.
    pub fn save_logs(&self) -> Result<PathBuf> {
        let dir = tempfile::Builder::new()
            .prefix("dumont-drill-logs-")
            .tempdir()?
            .keep();
        for proc in [&self.server, &self.market] {
            fs::copy(&proc.log, dir.join(format!("{}.log", proc.name)))?;
        }
        Ok(dir)
    }

    /// Ends both, the server first, and waits for them.
    pub async fn stop(mut self) {
        for proc in [&mut self.server, &mut self.market] {
            end(proc).await;
        }
        if let Some(bucket) = self.bucket.take() {
            bucket.stop().await;
        }
    }
}

pub(super) async fn end(proc: &mut Proc) {
    let pid = proc
        .child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw);
    if let Some(pid) = pid {
        let _ = kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(END, proc.child.wait()).await.is_err() {
        let _ = proc.child.kill().await;
    }
}

/// The options that lead the CLI to a data directory, and to nothing from the environment.
pub fn globals(data_dir: &Path) -> Globals {
    Globals {
        json: false,
        quiet: true,
        url: None,
        token: None,
        ca_file: None,
        data_dir: Some(data_dir.to_owned()),
        config: None,
        surroundings: Some(Surroundings::default()),
        die_with_parent: false,
    }
}

fn start_market(dir: &Path, wish: &MarketWish) -> Result<Proc> {
    let mut command = base(dir)?;
    command.args([
        "market",
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
    ]);
    command.arg("--seed").arg(wish.seed.to_string());
    command.arg("--machines").arg(wish.machines.to_string());
    command.arg("--time-scale").arg(wish.time_scale.to_string());
    if wish.openssh {
        command.arg("--openssh");
    }
    spawn("market", command, dir)
}

fn start_server(
    dir: &Path,
    market: &MarketFile,
    env: &[(&str, String)],
    listen: &str,
    crash_at: Option<&str>,
) -> Result<Proc> {
    let mut command = base(dir)?;
    command.args(["serve", "--listen", listen]);
    command.env("VAST_URL", &market.url).env("VAST_API_KEY", "drill");
    // As this market does: it refuses nothing.
    command.env("VAST_LIMITS", "off");
    command.envs(env.iter().map(|(name, value)| (name, value)));
    if let Some(step) = crash_at {
        command.arg("--crash-at").arg(step);
    }
    spawn("server", command, dir)
}

/// This very program, with our data directory and nothing that the user has set for the real
/// one: neither variables, nor `.env`, nor config files.
fn base(dir: &Path) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command
        .args(["--die-with-parent", "--quiet", "--data-dir"])
        .arg(dir);
    for setting in SETTINGS.iter().filter(|s| s.name != "DUMONT_LOG") {
        command.env_remove(setting.name);
    }
    let config = dir.join("config.toml");
    std::fs::write(&config, "").with_context(|| format!("write {}", config.display()))?;
    command.env("DUMONT_CONFIG", config).current_dir(dir);
    // A Ctrl-C in the terminal is for the drill; it ends its children in order.
    command.process_group(0).kill_on_drop(true).stdin(Stdio::null());
    Ok(command)
}

pub(super) fn spawn(name: &'static str, mut command: Command, dir: &Path) -> Result<Proc> {
    let log = dir.join(format!("{name}.log"));
    let file = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("open {}", log.display()))?;
    let child = command
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("start the {name}"))?;
    Ok(Proc { name, child, log })
}

/// Waits for the file in which a child says where it listens.
async fn wait_for<T: DeserializeOwned>(path: &Path, proc: &mut Proc) -> Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(text) = read_if_there(path)? {
            return serde_json::from_str(&text).with_context(|| format!("read {}", path.display()));
        }
        if let Some(status) = proc.child.try_wait()? {
            return Err(fail(
                "drill_child_ended",
                format!("the {} ended while it started ({status})", proc.name),
                tail(proc),
            ));
        }
        if begin.elapsed() > START {
            return Err(fail(
                "drill_child_silent",
                format!("the {} does not listen after {} s", proc.name, START.as_secs()),
                tail(proc),
            ));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The last lines of a child's log.
pub(super) fn tail(proc: &Proc) -> String {
    let text = fs::read_to_string(&proc.log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(15)..];
    format!("last lines of {}:\n{}", proc.log.display(), last.join("\n"))
}

/// The command line that makes the CLI use this world, for `--keep`.
pub fn how_to_look(world: &World) -> String {
    format!(
        "export DUMONT_URL={} DUMONT_TOKEN=$(cat {})",
        world.client.url(),
        quote(&world.dir().join(TOKEN_FILE).to_string_lossy())
    )
}

/// The market's operator port.
#[derive(Clone)]
pub struct Admin {
    http: reqwest::Client,
    base: String,
}

/// A rental in the market's books.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct LedgerEntry {
    pub id: u64,
    pub label: Option<String>,
}

#[derive(Debug, Clone, serde::Deserialize)]
pub struct Ledger {
    pub instances: Vec<LedgerEntry>,
    pub alive: u64,
    pub totals: Totals,
}

#[derive(Debug, Clone, serde::Deserialize, serde::Serialize)]
pub struct Totals {
    pub created: u64,
    pub destroyed: u64,
    pub alive: u64,
    pub killed: u64,
    /// Dollars.
    pub cost: f64,
}

/// Where a rented machine's files lie on this host.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Rented {
    pub workspace_dir: PathBuf,
    pub isolation: String,
    pub state: String,
    pub faults: Vec<Suffered>,
}

/// A fault that a rented machine has.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Suffered {
    pub fault: String,
}

#[derive(Debug, Clone, Copy, serde::Deserialize)]
pub struct Killed {
    /// Unix milliseconds.
    pub killed_ms: i64,
}

impl Admin {
    fn new(url: &str) -> Result<Self> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(20))
            .build()?;
        Ok(Self {
            http,
            base: url.trim_end_matches('/').into(),
        })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let send = self.http.get(format!("{}{path}", self.base)).send().await;
        let answer = send
            .and_then(reqwest::Response::error_for_status)
            .context("ask the market's operator port")?;
        answer
            .json()
            .await
            .with_context(|| format!("understand the market's answer to {path}"))
    }

    pub async fn ledger(&self) -> Result<Ledger> {
        self.get("/admin/ledger").await
    }

    pub async fn rented(&self, instance: &str) -> Result<Rented> {
        self.get(&format!("/admin/instances/{instance}")).await
    }

    /// For whoever needs no more of the answer than that it is a good one.
    pub async fn send(&self, method: &str, path: &str, body: &serde_json::Value) -> Result<()> {
        let request = self.http.request(method.parse()?, format!("{}{path}", self.base));
        request
            .json(body)
            .send()
            .await
            .and_then(reqwest::Response::error_for_status)
            .map(drop)
            .with_context(|| format!("ask the market's operator port for {path}"))
    }

    /// Kills a machine hard; says when it died.
    pub async fn kill(&self, instance: &str) -> Result<Killed> {
        let send = self
            .http
            .post(format!("{}/admin/instances/{instance}/kill", self.base))
            .send()
            .await;
        let answer = send
            .and_then(reqwest::Response::error_for_status)
            .context("kill the machine")?;
        answer
            .json()
            .await
            .context("understand the market's answer to the kill")
    }
}
