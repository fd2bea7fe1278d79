//! Nothing rented is forgotten: many deploys on the worst market there is, behind a connection
//! that is cut, delayed and doubled, with workspaces moved and deleted at random and the server
//! killed now and then. Afterwards the market's own books decide.
//!
//! A few deploys run with the tests, `scripts/chaos --market` runs two hundred. The binary is
//! the one of a user, the market is its preset `hell`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot run ends"
)]

#[path = "../proxy/mod.rs"]
mod proxy;
#[path = "../world/mod.rs"]
mod world;

use proxy::{Fault, Proxy, Request, Weather};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use world::World;

/// Workspaces that are worked on at once, and that live at once.
const IN_FLIGHT: usize = 4;
const LIVING: usize = 8;
/// Those that are left for the verdict.
const LEFT: usize = 2;
/// A user waits so long for a deploy or a move, and deletes the workspace. The server itself waits
/// longer for a machine that hangs.
const OVERDUE: Duration = Duration::from_secs(30);
/// Until the books balance: a create of which nothing was heard is looked for for minutes.
const PATIENCE: Duration = Duration::from_secs(300);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().expect("a number"))
}

/// What happens to requests on the way to the market. A create that is heard twice costs a
/// machine for minutes, until the sweep finds it: `twice` is for runs that have them.
fn on_the_way(dice: &mut StdRng, request: &Request, twice: bool) -> Option<Fault> {
    let fault = match dice.random_range(0..10) {
        0 => Fault::Refuse(502, "BadGateway"),
        1 => Fault::Deny,
        2 => Fault::Cut,
        3 => Fault::CutRequest,
        4 | 5 => Fault::LoseAnswer,
        6 => Fault::Truncate,
        7 => Fault::Double,
        _ => Fault::Delay(dice.random_range(0..3_000)),
    };
    let create = request.method == "PUT" && request.target.starts_with("/api/v0/asks/");
    (twice || !create || fault != Fault::Double).then_some(fault)
}

struct Chaos {
    world: World,
    runtime: Runtime,
    proxy: Proxy,
    http: reqwest::Client,
    dice: StdRng,
    /// Workspaces that were made and not deleted.
    names: Vec<String>,
    /// Those that are worked on, since when that was seen.
    busy: HashMap<String, Instant>,
    /// Their workflows, and those of what was deleted.
    deploys: Vec<String>,
    story: BTreeMap<&'static str, u64>,
}

impl Chaos {
    fn start(seed: u64, machines: u64, limits: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (seed_text, machines) = (seed.to_string(), machines.to_string());
        let hell = ["--preset", "hell", "--time-scale", "0.05", "--limits", limits];
        let args = [&hell[..], &["--seed", &seed_text, "--machines", &machines]].concat();
        let mut world = World::on_market(&args, Vec::new());
        let market: reqwest::Url = world.market_url.parse().unwrap();
        let proxy = runtime.block_on(Proxy::start(market.socket_addrs(|| None).unwrap()[0]));
        world.set_env("VAST_URL", format!("http://{}", proxy.addr));
        world.set_env("VAST_LIMITS", limits.to_owned());
        world.serve();
        Self {
            world,
            runtime,
            proxy,
            http: reqwest::Client::new(),
            dice: StdRng::seed_from_u64(seed),
            names: Vec::new(),
            busy: HashMap::new(),
            deploys: Vec::new(),
            story: BTreeMap::new(),
        }
    }

    fn storm(&mut self, permille: u32, twice: bool) {
        let faults = move |dice: &mut StdRng, request: &Request| on_the_way(dice, request, twice);
        let weather = Weather::new(self.dice.random(), permille, faults);
        self.proxy.set(Some(weather));
    }

    fn tell(&mut self, what: &'static str) {
        *self.story.entry(what).or_insert(0) += 1;
    }

    /// An API call to a server that runs.
    fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let dir = self.world.dir.path();
        let server: Value = serde_json::from_slice(&std::fs::read(dir.join("server.json")).unwrap()).unwrap();
        let token = std::fs::read_to_string(dir.join("admin.token")).unwrap();
        let url = format!("{}/api/v1{path}", server["url"].as_str().unwrap());
        let mut request = self
            .http
            .request(method.parse().unwrap(), url)
            .bearer_auth(token.trim())
            .timeout(Duration::from_secs(60));
        if let Some(body) = body {
            request = request.json(&body);
        }
        self.runtime.block_on(async {
            let answer = request.send().await.expect("the server answers");
            (
                answer.status().as_u16(),
                answer.json().await.unwrap_or(Value::Null),
            )
        })
    }

    fn admin(&self, method: &str, path: &str) -> Value {
        let url = format!("{}{path}", self.world.admin_url);
        let request = self.http.request(method.parse().unwrap(), url);
        self.runtime.block_on(async {
            let answer = request.send().await.expect("the market answers");
            answer.json().await.unwrap_or(Value::Null)
        })
    }

    fn all(&self, path: &str) -> Vec<Value> {
        let (status, page) = self.call("GET", path, None);
        assert_eq!(status, 200, "{path}: {page}");
        page["items"].as_array().expect("items").clone()
    }

    /// How many workspaces are worked on; those that take too long are given up.
    fn busy(&mut self) -> usize {
        let all = self.all("/workspaces?limit=500");
        let working = all.iter().filter(|w| !w["workflow_id"].is_null());
        let names: HashSet<String> = working
            .filter_map(|w| w["name"].as_str().map(str::to_owned))
            .collect();
        self.busy.retain(|name, _| names.contains(name));
        for name in &names {
            self.busy.entry(name.clone()).or_insert_with(Instant::now);
        }
        for name in self.names.clone() {
            if self.busy.get(&name).is_some_and(|at| at.elapsed() > OVERDUE) {
                self.delete(&name);
                self.tell("given up");
            }
        }
        names.len()
    }

    fn wait_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let began = Instant::now();
        while !done(self) {
            assert!(
                began.elapsed() < PATIENCE,
                "no {what} after {PATIENCE:?}: {:?}\n{:#}\n{:#?}\n{}",
                self.busy,
                self.admin("GET", "/admin/ledger")["labels"],
                self.owned(),
                self.world.log("serve")
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn any(&mut self) -> Option<String> {
        let at = self.dice.random_range(0..self.names.len().max(1));
        self.names.get(at).cloned()
    }

    fn deploy(&mut self, n: u64) {
        let name = format!("w{n}");
        let spec = json!({
            "name": name,
            "start": "echo up > /tmp/ready; exec sleep 100000",
            "probe": { "kind": "command", "command": "test -s /tmp/ready", "timeout_s": 20 },
        });
        let (status, made) = self.call("POST", "/workspaces", Some(json!({ "spec": spec })));
        assert_eq!(status, 201, "{made}");
        let id = made["workflow_id"].as_str().map(str::to_owned);
        self.deploys.extend(id);
        self.names.push(name);
        self.tell("deploys");
    }

    fn delete(&mut self, name: &str) {
        let (status, answer) = self.call("DELETE", &format!("/workspaces/{name}"), None);
        assert!(status == 202 || status == 409, "{answer}");
        self.names.retain(|n| n != name);
        self.tell("deleted");
    }

    /// Something else befalls some workspace, or the server.
    fn meddle(&mut self) {
        let Some(name) = self.any() else { return };
        let (_, workspace) = self.call("GET", &format!("/workspaces/{name}"), None);
        match self.dice.random_range(0..10) {
            0 | 1 => {
                let path = format!("/workspaces/{name}/failover");
                if self.call("POST", &path, Some(json!({}))).0 == 202 {
                    self.tell("moved");
                }
            }
            2 | 3 => {
                if let Some(id) = workspace["instance"]["instance_id"].as_str() {
                    self.admin("POST", &format!("/admin/instances/{id}/kill"));
                    self.tell("machines lost");
                }
            }
            4 => {
                std::thread::sleep(Duration::from_millis(self.dice.random_range(0..2_000)));
                self.delete(&name);
            }
            5 => {
                self.world.kill_server();
                self.world.serve();
                self.tell("kills of the server");
            }
            _ => {}
        }
    }

    fn go(&mut self, deploys: u64) {
        // Twice, whatever the dice say.
        let kills = [deploys / 3, deploys * 2 / 3];
        for n in 0..deploys {
            self.wait_until("turn", |chaos| chaos.busy() < IN_FLIGHT);
            if self.names.len() >= LIVING
                && let Some(name) = self.any()
            {
                self.delete(&name);
            }
            self.deploy(n);
            self.meddle();
            if kills.contains(&n) {
                self.world.kill_server();
                self.world.serve();
                self.tell("kills of the server");
            }
        }
        self.wait_until("rest", |chaos| chaos.busy() == 0);
        while self.names.len() > LEFT
            && let Some(name) = self.any()
        {
            self.delete(&name);
        }
    }

    /// Ids of what workspaces live on.
    fn owned(&self) -> HashSet<String> {
        let all = self.all("/workspaces?limit=500");
        let ids = all.iter().filter_map(|w| w["instance"]["instance_id"].as_str());
        ids.map(str::to_owned).collect()
    }

    /// The market's books once nothing is under way: what lives is owned, and nothing was rented
    /// twice. Machines of this market die all the time, so it is one moment that counts, and few
    /// may live for it to come.
    fn judge(&mut self) -> Value {
        let mut ledger = Value::Null;
        self.wait_until("balance", |chaos| {
            let owned = chaos.owned();
            ledger = chaos.admin("GET", "/admin/ledger");
            alive(&ledger) == owned && chaos.busy() == 0 && chaos.owned() == owned
        });
        let labels = ledger["labels"].as_object().expect("labels");
        let twice: Vec<_> = labels.iter().filter(|(_, l)| l["created"] != 1).collect();
        assert!(twice.is_empty(), "rented twice: {twice:#?}");
        ledger
    }

    /// How the deploys ended: how many went well, and what was said of the others.
    fn deployed(&self) -> (usize, BTreeMap<String, usize>) {
        let (mut well, mut said) = (0, BTreeMap::new());
        for id in &self.deploys {
            let (_, workflow) = self.call("GET", &format!("/workflows/{id}"), None);
            if workflow["status"] == "done" {
                well += 1;
                continue;
            }
            let of = |field: &str| workflow["error"][field].as_str().unwrap_or_default().to_owned();
            let why = format!("{}: {} {}", workflow["status"], of("code"), of("message"));
            *said.entry(why).or_insert(0) += 1;
        }
        (well, said)
    }
}

/// Ids of what lives at the market.
fn alive(ledger: &Value) -> HashSet<String> {
    let all = ledger["instances"].as_array().expect("instances");
    let alive = all.iter().filter(|i| i["state"] != "destroyed");
    alive.map(|i| i["id"].to_string()).collect()
}

#[test]
fn what_hell_rents_is_owned_or_given_back() {
    let deploys = setting("CHAOS_DEPLOYS", 6);
    let seed = setting("CHAOS_SEED", 1);
    let limits = std::env::var("CHAOS_LIMITS").unwrap_or_else(|_| "0.02".to_owned());
    let mut chaos = Chaos::start(seed, setting("CHAOS_MACHINES", 150), &limits);
    chaos.storm(60, deploys > 6);
    let began = Instant::now();
    chaos.go(deploys);
    chaos.proxy.set(None);
    let ledger = chaos.judge();

    let (well, failures) = chaos.deployed();
    let [requests, faults, _] = chaos.proxy.counts();
    let refused = chaos.admin("GET", "/admin/requests")["refused"].take();
    println!(
        "seed {seed}: {:.0} s, {:?}, {well} deploys went well, {} machines rented, {requests} requests, \
         {faults} struck, refused as too frequent: {refused}; the other deploys: {failures:#?}",
        began.elapsed().as_secs_f64(),
        chaos.story,
        ledger["totals"]["created"],
    );
    // So few may all be given up.
    assert!(well > 0 || deploys <= 6, "{failures:#?}");
    let offers = chaos.call("GET", "/instances/offers", None).1;
    assert!(
        offers["items"].as_array().is_some_and(|items| items.len() >= 3),
        "the blacklist leaves nothing to race: {offers:#}"
    );
    for name in chaos.names.clone() {
        chaos.delete(&name);
    }
    assert_eq!(alive(&chaos.judge()), HashSet::new());
}
