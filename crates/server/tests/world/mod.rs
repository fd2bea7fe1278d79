//! A world for tests: the marketplace emulator with real machines, a real server, its REST API.
//!
//! Nothing inside dumont is replaced. Market and server run in this process on free loopback
//! ports; machines are processes of their own, reached over SSH.
#![allow(
    dead_code,
    clippy::expect_used,
    reason = "each test file uses a part, and a world that does not start fails its test"
)]

pub mod agents;
pub mod bucket;

use dumont_core::budget::Limits;
use dumont_market::{Market, MarketConfig};
use dumont_server::objects::s3::S3Config;
use dumont_server::providers::vast::{ApiKey, VastConfig};
use dumont_server::{AgentBinary, Database, Server, ServerConfig};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What the market's notifications are signed with.
pub const WEBHOOK_SECRET: &str = "whsec-of-the-tests";

pub struct World {
    pub market: Market,
    pub server: Option<Server>,
    pub http: reqwest::Client,
    pub dir: TempDir,
    pub database: Database,
    /// Waits and limits of the server; for those that a test wants shorter.
    pub timing: dumont_server::Timing,
    /// What the server thinks that the account may ask.
    pub limits: Limits,
    /// Where the server finds the market, if it is not the market itself.
    pub vast_url: Option<String>,
    pub race: dumont_core::plan::RaceSettings,
    /// Zero: none are taken unasked.
    pub snapshot_every: Duration,
    pub blacklist: dumont_core::blacklist::Settings,
    pub caps: dumont_core::spending::Caps,
    pub abandon_after: Option<Duration>,
    pub reaper_ceiling: usize,
    /// Where objects go; none is the embedded store.
    pub s3: Option<S3Config>,
    /// What machines get.
    pub agent: AgentBinary,
    token: String,
    url: String,
}

impl World {
    /// Machines boot at once.
    pub async fn instant() -> Self {
        Self::with(0.0, 12).await
    }

    pub async fn with(time_scale: f64, machines: usize) -> Self {
        Self::on_market(|config| {
            config.time_scale = time_scale;
            config.machines = machines;
        })
        .await
    }

    /// Objects go to this bucket.
    pub async fn on_bucket(s3: S3Config) -> Self {
        let small = |config: &mut MarketConfig| {
            config.time_scale = 0.0;
            config.machines = 12;
        };
        Self::begin(small, Some(s3), Database::Embedded).await
    }

    /// The same with an agent of the test's own.
    pub async fn with_agent(s3: S3Config, agent: AgentBinary) -> Self {
        let mut world = Self::on_bucket(s3).await;
        world.stop_server().await;
        world.agent = agent;
        world.start_server().await;
        world
    }

    pub async fn on_market(shape: impl FnOnce(&mut MarketConfig)) -> Self {
        Self::begin(shape, None, Database::Embedded).await
    }

    /// Machines boot at once, the state is kept there.
    pub async fn on_database(database: Database) -> Self {
        let small = |config: &mut MarketConfig| {
            config.time_scale = 0.0;
            config.machines = 12;
        };
        Self::begin(small, None, database).await
    }

    async fn begin(shape: impl FnOnce(&mut MarketConfig), s3: Option<S3Config>, database: Database) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut config = MarketConfig::new(dir.path().join("market"));
        config.seed = 7;
        shape(&mut config);
        let market = dumont_market::start(config).await.expect("the market starts");
        let mut world = Self {
            market,
            server: None,
            http: reqwest::Client::new(),
            dir,
            database,
            timing: Default::default(),
            limits: Limits::off(),
            vast_url: None,
            race: Default::default(),
            snapshot_every: Duration::ZERO,
            blacklist: Default::default(),
            caps: Default::default(),
            abandon_after: Some(Duration::from_secs(86_400)),
            reaper_ceiling: 20,
            s3,
            agent: AgentBinary {
                gz: dumont_agent_embed::AGENT_GZ,
                digest: dumont_agent_embed::AGENT_DIGEST,
            },
            token: String::new(),
            url: String::new(),
        };
        world.start_server().await;
        world
    }

    pub fn server_config(&self) -> ServerConfig {
        ServerConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            tls: None,
            public_url: None,
            data_dir: self.data_dir(),
            database: self.database.clone(),
            agent: self.agent,
            s3: self.s3.clone(),
            vast: Some(self.vast()),
            vast_webhook_secret: Some(dumont_server::WebhookSecret(WEBHOOK_SECRET.into())),
            ssh_inventory: None,
            race: self.race.clone(),
            adaptive: Default::default(),
            attempt_retention_days: 180,
            snapshot_every: self.snapshot_every,
            blacklist: self.blacklist.clone(),
            caps: self.caps,
            abandon_after: self.abandon_after,
            reaper_ceiling: self.reaper_ceiling,
            timing: self.timing.clone(),
            crash_at: None,
        }
    }

    /// The market of these tests allows everything, unless a test says otherwise.
    pub fn vast(&self) -> VastConfig {
        let key = ApiKey::new("test-key").expect("a key");
        let url = self.vast_url.clone().unwrap_or_else(|| self.market.url());
        let mut vast = VastConfig::new(&url, key).expect("a URL");
        vast.limits = self.limits.clone();
        vast
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// The admin's.
    pub fn token(&self) -> &str {
        self.token.trim()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("server")
    }

    /// Starts the server again with what `change` makes of its settings.
    pub async fn reconfigured(mut self, change: impl FnOnce(&mut Self)) -> Self {
        self.stop_server().await;
        change(&mut self);
        self.start_server().await;
        self
    }

    pub async fn start_server(&mut self) {
        let server = dumont_server::start(self.server_config())
            .await
            .expect("the server starts");
        self.url = server.url().to_owned();
        self.token = std::fs::read_to_string(self.data_dir().join("admin.token")).expect("an admin token");
        self.server = Some(server);
    }

    pub async fn stop_server(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown().await;
        }
    }

    /// Status and body of an API call; a 4xx is an answer too.
    pub async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let method = method.parse().expect("a method");
        let mut request = self
            .http
            .request(method, format!("{}/api/v1{path}", self.url))
            .bearer_auth(self.token.trim())
            .timeout(Duration::from_secs(60));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.expect("the server answers");
        (response.status().as_u16(), response.json().await.expect("JSON"))
    }

    /// Like `call`, with a body of any text, sent as `curl -d` sends it.
    pub async fn curl(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let method = method.parse().expect("a method");
        let request = self
            .http
            .request(method, format!("{}/api/v1{path}", self.url))
            .bearer_auth(self.token.trim())
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body.to_owned());
        let response = request.send().await.expect("the server answers");
        (response.status().as_u16(), response.json().await.expect("JSON"))
    }

    /// A body that is not one JSON value.
    pub async fn text(&self, path: &str) -> String {
        let request = self.http.get(format!("{}/api/v1{path}", self.url));
        let response = request.bearer_auth(self.token.trim()).send().await;
        let response = response.expect("the server answers");
        assert_eq!(response.status(), 200, "GET {path}");
        response.text().await.expect("text")
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, body) = self.call("GET", path, None).await;
        assert_eq!(status, 200, "GET {path}: {body}");
        body
    }

    pub async fn post(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.call("POST", path, Some(body)).await;
        assert!((200..300).contains(&status), "POST {path}: {status} {answer}");
        answer
    }

    /// Waits for a workflow's end and gives it, done or failed.
    pub async fn ended(&self, workflow_id: &str) -> Value {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let workflow = self.get(&format!("/workflows/{workflow_id}")).await;
            if workflow["status"] != "running" {
                return workflow;
            }
            assert!(Instant::now() < deadline, "no end in sight: {workflow:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until a workflow is in this step.
    pub async fn reaches(&self, workflow_id: &Value, step: &str) {
        let id = workflow_id.as_str().expect("an id");
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let workflow = self.get(&format!("/workflows/{id}")).await;
            if workflow["step"] == step {
                return;
            }
            assert!(
                workflow["status"] == "running" && Instant::now() < deadline,
                "it is not in {step}: {workflow:#}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The workflow that works on the workspace, once there is one.
    pub async fn working_on(&self, name: &str) -> Value {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let workspace = self.get(&format!("/workspaces/{name}")).await;
            if workspace["workflow_id"].is_string() {
                return workspace["workflow_id"].clone();
            }
            assert!(Instant::now() < deadline, "nothing works on it: {workspace:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Like `ended`, and it must have gone well.
    pub async fn done(&self, workflow_id: &Value) -> Value {
        let workflow = self.ended(workflow_id.as_str().expect("an id")).await;
        assert_eq!(workflow["status"], "done", "{workflow:#}");
        workflow
    }

    /// A running workspace with a workload that says so outside its directory.
    pub async fn deployed(&self, name: &str) -> Value {
        let created = self.post("/workspaces", json!({ "spec": spec(name) })).await;
        self.done(&created["workflow_id"]).await;
        self.get(&format!("/workspaces/{name}")).await
    }

    pub async fn admin(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let method = method.parse().expect("a method");
        let mut request = self
            .http
            .request(method, format!("{}{path}", self.market.admin_url()));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.expect("the admin port answers");
        assert!(response.status().is_success(), "{path}: {}", response.status());
        response.json().await.expect("JSON")
    }

    /// Where an instance's workspace lies on this host.
    pub async fn workspace_dir(&self, instance_id: &str) -> PathBuf {
        let about = self
            .admin("GET", &format!("/admin/instances/{instance_id}"), None)
            .await;
        PathBuf::from(about["workspace_dir"].as_str().expect("a directory"))
    }

    pub async fn kill(&self, instance_id: &str) {
        self.admin("POST", &format!("/admin/instances/{instance_id}/kill"), None)
            .await;
    }

    /// Arms one fault for the next create.
    pub async fn arm(&self, fault: Value) {
        self.admin("POST", "/admin/faults", Some(fault)).await;
    }

    /// The embedded database, beside the server that has it open.
    pub async fn store(&self) -> dumont_store::Store {
        dumont_store::Store::open(self.data_dir().join("dumont.db"))
            .await
            .expect("the database")
    }

    /// What a workflow tried, in its order: machine, outcome, stage and reason.
    pub async fn attempts(&self, workflow_id: &str) -> Vec<dumont_store::AttemptRow> {
        let store = self.store().await;
        let attempts = store.attempts_of_workflow(workflow_id).await;
        store.close().await;
        attempts.expect("attempts")
    }

    /// Why the machine of this instance was lost, the last time first.
    pub async fn losses(&self, instance_id: &str) -> Vec<dumont_core::blacklist::LossCause> {
        let path = format!("/admin/instances/{instance_id}");
        let row = self.admin("GET", &path, None).await;
        let machine = format!("vast:{}", row["machine_id"]).parse().expect("a machine");
        let store = self.store().await;
        let since = dumont_core::time::Timestamp(0);
        let losses = store
            .interrupts_of(&machine, since, 10)
            .await
            .expect("its losses");
        store.close().await;
        losses.iter().map(|l| l.cause).collect()
    }

    /// Instances that still cost money.
    pub async fn alive(&self) -> u64 {
        self.admin("GET", "/admin/ledger", None).await["alive"]
            .as_u64()
            .expect("a count")
    }

    /// Waits until exactly `n` instances cost money.
    pub async fn settles_at(&self, n: u64) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.alive().await != n {
            let ledger = self.admin("GET", "/admin/ledger", None).await;
            assert!(Instant::now() < deadline, "expected {n} alive: {ledger:#}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits for the failover away from this instance, and gives its event.
    pub async fn failed_over_since(&self, name: &str, lost: &str) -> Value {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let events = self.get(&format!("/failovers?workspace={name}")).await;
            let found = events["items"]
                .as_array()
                .and_then(|a| a.iter().find(|e| e["original_instance_id"] == lost));
            if let Some(event) = found {
                return self.over(event).await;
            }
            assert!(Instant::now() < deadline, "no failover from {lost}: {events:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The event is there a moment before its workflow has ended and lets others work.
    async fn over(&self, event: &Value) -> Value {
        if let Some(id) = event["id"].as_str() {
            self.ended(id).await;
        }
        event.clone()
    }

    /// Waits for the failover that the monitor starts, and gives its event.
    pub async fn failed_over(&self, name: &str) -> Value {
        self.failed_over_again(name, "").await
    }

    /// Like `failed_over`, where there was one already.
    pub async fn failed_over_again(&self, name: &str, last: &str) -> Value {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let events = self.get(&format!("/failovers?workspace={name}")).await;
            let items = events["items"].as_array().into_iter().flatten();
            if let Some(event) = items.rev().find(|e| e["id"].as_str() > Some(last)) {
                return self.over(event).await;
            }
            assert!(
                Instant::now() < deadline,
                "no failover: {:#}",
                self.get(&format!("/workflows?workspace={name}")).await
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

pub fn spec(name: &str) -> Value {
    json!({
        "name": name,
        "start": "echo up > /tmp/ready; exec sleep 100000",
        "probe": { "kind": "command", "command": "test -s /tmp/ready", "timeout_s": 20 },
    })
}
