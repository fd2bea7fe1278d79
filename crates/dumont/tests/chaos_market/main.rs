//! Nothing rented is forgotten: many deploys on the worst market there is, behind a connection
//! that is cut, delayed and doubled, with workspaces moved and deleted at random and the server
//! killed now and then. Each deploy ends by itself, most of them in a machine that works; and
//! afterwards the market's own books decide (`judge`).
//!
//! A few deploys run with the tests, `scripts/chaos --market` runs two hundred. The binary is
//! the one of a user, the market is its preset `hell`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot run ends"
)]

mod judge;
mod pace;
#[path = "../proxy/mod.rs"]
mod proxy;
#[path = "../world/mod.rs"]
mod world;

use proxy::{Fault, Proxy, Request, Weather};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use world::{Run, World};

/// Deploys that are under way at once, and workspaces that live at once.
const IN_FLIGHT: usize = 4;
const LIVING: usize = 8;
/// Those that are left for the verdict.
const LEFT: usize = 2;
/// The longest that a race waits for its last machine, and some more.
const PATIENCE: Duration = Duration::from_secs(1_000);
/// Whoever has no time for that deletes a workspace that is worked on for so long. A new server knows
/// nothing of how quick the machines here are, and waits for its first ones as for real ones.
const OVERDUE: Duration = Duration::from_secs(20);
/// Of the deploys that nobody cancelled so many must end in a machine that works.
const WORK: f64 = 0.75;
/// How a deploy may fail in such weather: no machine came up, or the provider could not be asked.
const WEATHER: [&str; 3] = ["no_machine_ready", "provider_failed", "provider_busy"];

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().expect("a number"))
}

/// What happens to requests on the way to the market. A create that is heard twice costs a
/// machine for a minute, until the sweep finds it: `twice` is for runs that have it.
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

/// How a deploy ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// Its own mark was read on its machine.
    Works,
    /// It was done, and the machine was lost before somebody looked.
    Lost,
    /// Deleted while it was under way.
    Cancelled,
    Failed(String),
}

/// One that was asked for.
struct Deploy {
    name: String,
    workflow: String,
    mark: String,
    look: Option<JoinHandle<Run>>,
    verdict: Option<Verdict>,
}

pub struct Chaos {
    world: World,
    runtime: Runtime,
    proxy: Proxy,
    http: reqwest::Client,
    dice: StdRng,
    seed: u64,
    began: Instant,
    deploys: Vec<Deploy>,
    /// Workspaces that were made and not deleted.
    names: Vec<String>,
    /// Those that are worked on, since when that was seen; none where all are waited for.
    busy: Option<HashMap<String, Instant>>,
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
        let proxy = runtime.block_on(Proxy::numbering(market.socket_addrs(|| None).unwrap()[0]));
        world.set_env("VAST_URL", format!("http://{}", proxy.addr));
        world.set_env("VAST_LIMITS", limits.to_owned());
        world.serve();
        Self {
            world,
            runtime,
            proxy,
            http: reqwest::Client::new(),
            dice: StdRng::seed_from_u64(seed),
            seed,
            began: Instant::now(),
            deploys: Vec::new(),
            names: Vec::new(),
            busy: None,
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

    fn workspaces(&self) -> Vec<Value> {
        let (status, page) = self.call("GET", "/workspaces?limit=500", None);
        assert_eq!(status, 200, "{page}");
        page["items"].as_array().expect("items").clone()
    }

    /// Whether nothing is worked on; what is overdue is deleted, if that is the way of this run.
    fn at_rest(&mut self) -> bool {
        let all = self.workspaces();
        let working = all.iter().filter(|w| !w["workflow_id"].is_null());
        let names: HashSet<&str> = working.filter_map(|w| w["name"].as_str()).collect();
        let mut overdue = Vec::new();
        if let Some(busy) = &mut self.busy {
            busy.retain(|name, _| names.contains(name.as_str()));
            for name in &names {
                let since = busy.entry((*name).to_owned()).or_insert_with(Instant::now);
                if since.elapsed() > OVERDUE {
                    overdue.push((*name).to_owned());
                }
            }
        }
        overdue.retain(|name| self.names.contains(name));
        for name in overdue {
            self.delete(&name);
        }
        names.is_empty()
    }

    fn wait_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let began = Instant::now();
        while !done(self) {
            assert!(
                began.elapsed() < PATIENCE,
                "no {what} after {PATIENCE:?}: {:#}\n{:#?}",
                self.admin("GET", "/admin/ledger")["labels"],
                self.workspaces(),
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn deploy(&mut self, n: u64) {
        let name = format!("w{n}");
        let mark = format!("{name}-{:016x}", self.dice.random::<u64>());
        let spec = json!({
            "name": name,
            "start": format!("echo {mark} >\"$DUMONT_PATH/mark\" && echo up >/tmp/ready; exec sleep 100000"),
            "probe": { "kind": "command", "command": "test -s /tmp/ready", "timeout_s": 20 },
        });
        let (status, made) = self.call("POST", "/workspaces", Some(json!({ "spec": spec })));
        assert_eq!(status, 201, "{made}");
        self.names.push(name.clone());
        self.deploys.push(Deploy {
            name,
            workflow: made["workflow_id"].as_str().expect("a workflow").to_owned(),
            mark,
            look: None,
            verdict: None,
        });
        self.tell("deploys");
    }

    /// Looks how those that are under way are; how many still are.
    fn pending(&mut self) -> usize {
        self.at_rest();
        let mut deploys = std::mem::take(&mut self.deploys);
        for deploy in deploys.iter_mut().filter(|d| d.verdict.is_none()) {
            deploy.verdict = self.verdict(deploy);
        }
        self.deploys = deploys;
        self.deploys.iter().filter(|d| d.verdict.is_none()).count()
    }

    fn verdict(&mut self, deploy: &mut Deploy) -> Option<Verdict> {
        if let Some(look) = deploy.look.take_if(|l| l.is_finished()) {
            return Some(self.looked(deploy, &look.join().unwrap()));
        }
        let (_, workflow) = self.call("GET", &format!("/workflows/{}", deploy.workflow), None);
        let cancelled = !self.names.contains(&deploy.name);
        match workflow["status"].as_str()? {
            "running" => None,
            _ if cancelled => Some(Verdict::Cancelled),
            "done" => {
                if deploy.look.is_none() {
                    let mut ssh = self.world.command();
                    ssh.args(["ssh", &deploy.name, "--", "cat mark"]);
                    deploy.look = Some(std::thread::spawn(move || Run::of(&mut ssh)));
                }
                None
            }
            _ => {
                let code = workflow["error"]["code"].as_str().unwrap_or_default();
                assert!(WEATHER.contains(&code), "{}: {workflow:#}", deploy.name);
                Some(Verdict::Failed(code.to_owned()))
            }
        }
    }

    /// The market kills machines at any time, and we the server. Who finds no mark on a machine that
    /// lives, by a server that lives, has found a deploy that only said that it went well.
    fn looked(&mut self, deploy: &Deploy, run: &Run) -> Verdict {
        if run.out.trim() == deploy.mark {
            return Verdict::Works;
        }
        let (_, workspace) = self.call("GET", &format!("/workspaces/{}", deploy.name), None);
        let id = workspace["instance"]["instance_id"].as_str().unwrap_or_default();
        let at_market = self.admin("GET", &format!("/admin/instances/{id}"));
        let well = workspace["state"] == "running" && at_market["state"] == "running";
        let again = Run::of(self.world.command().args(["ssh", &deploy.name, "--", "cat mark"]));
        assert!(
            !well
                || again.out.trim() == deploy.mark
                || self.admin("GET", &format!("/admin/instances/{id}"))["state"] != "running",
            "{} has no mark: {run:?}, {again:?}, {workspace:#}",
            deploy.name
        );
        self.tell("lost before they were looked at");
        Verdict::Lost
    }

    /// One of those that are not under way, any more.
    fn any(&mut self) -> Option<String> {
        let under_way = |name: &String| {
            self.deploys
                .iter()
                .any(|d| d.name == *name && d.verdict.is_none())
        };
        let settled: Vec<&String> = self.names.iter().filter(|n| !under_way(n)).collect();
        let at = self.dice.random_range(0..settled.len().max(1));
        settled.get(at).map(|name| (*name).clone())
    }

    fn delete(&mut self, name: &str) {
        let (status, answer) = self.call("DELETE", &format!("/workspaces/{name}"), None);
        assert!(status == 202 || status == 409, "{answer}");
        self.names.retain(|n| n != name);
        self.tell("deleted");
    }

    fn restart(&mut self) {
        self.world.kill_server();
        self.world.serve();
        self.tell("kills of the server");
    }

    /// Something else befalls some workspace, or the server.
    fn meddle(&mut self) {
        match self.dice.random_range(0..20) {
            0 => {
                // The one that was begun last, after a while.
                std::thread::sleep(Duration::from_millis(self.dice.random_range(0..4_000)));
                if let Some(name) = self.names.last().cloned() {
                    self.delete(&name);
                }
            }
            1 => self.restart(),
            2..6 => {
                let Some(name) = self.any() else { return };
                let path = format!("/workspaces/{name}/failover");
                if self.call("POST", &path, Some(json!({}))).0 == 202 {
                    self.tell("moved");
                }
            }
            6..10 => {
                let Some(name) = self.any() else { return };
                let (_, workspace) = self.call("GET", &format!("/workspaces/{name}"), None);
                if let Some(id) = workspace["instance"]["instance_id"].as_str() {
                    self.admin("POST", &format!("/admin/instances/{id}/kill"));
                    self.tell("machines lost");
                }
            }
            _ => {}
        }
    }

    fn go(&mut self, deploys: u64) {
        // Twice, whatever the dice say.
        let kills = [deploys / 3, deploys * 2 / 3];
        for n in 0..deploys {
            self.wait_until("turn", |chaos| chaos.pending() < IN_FLIGHT);
            if self.names.len() >= LIVING
                && let Some(name) = self.any()
            {
                self.delete(&name);
            }
            self.deploy(n);
            self.meddle();
            if kills.contains(&n) {
                self.restart();
            }
            if n % 20 == 19 {
                println!(
                    "{:4.0} s: {n} deploys, {:?}",
                    self.began.elapsed().as_secs_f64(),
                    self.verdicts()
                );
            }
        }
        self.wait_until("verdict", |chaos| chaos.pending() == 0);
        self.wait_until("rest", |chaos| chaos.at_rest());
        while self.names.len() > LEFT
            && let Some(name) = self.any()
        {
            self.delete(&name);
        }
    }

    fn verdicts(&self) -> BTreeMap<String, usize> {
        let mut all = BTreeMap::new();
        for verdict in self.deploys.iter().filter_map(|d| d.verdict.as_ref()) {
            *all.entry(format!("{verdict:?}")).or_insert(0) += 1;
        }
        all
    }

    /// Ids of what workspaces live on.
    fn owned(&self) -> HashSet<String> {
        let all = self.workspaces();
        let ids = all.iter().filter_map(|w| w["instance"]["instance_id"].as_str());
        ids.map(str::to_owned).collect()
    }
}

impl Drop for Chaos {
    /// What the server said outlives the world.
    fn drop(&mut self) {
        let name = format!("chaos-market-{}.log", self.seed);
        let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        if std::fs::write(&log, self.world.log("serve")).is_ok() {
            println!("the server's log: {}", log.display());
        }
    }
}

#[test]
fn what_hell_rents_works_and_is_owned_or_given_back() {
    let deploys = setting("CHAOS_DEPLOYS", 6);
    let seed = setting("CHAOS_SEED", 1);
    let limits = std::env::var("CHAOS_LIMITS").unwrap_or_else(|_| "0.1".to_owned());
    let mut chaos = Chaos::start(seed, setting("CHAOS_MACHINES", 150), &limits);
    let short = deploys <= 6;
    chaos.busy = short.then(HashMap::new);
    chaos.storm(60, !short);
    chaos.go(deploys);
    chaos.proxy.set(None);
    let ledger = chaos.balanced();
    let [requests, faults, _] = chaos.proxy.counts();
    println!(
        "seed {seed}: {:.0} s, {:?}, {:?}, {} machines rented, {requests} requests, {faults} struck",
        chaos.began.elapsed().as_secs_f64(),
        chaos.story,
        chaos.verdicts(),
        ledger["totals"]["created"],
    );
    chaos.judge_pace(&limits);
    chaos.judge_spending(&ledger);
    chaos.judge_books(&ledger);
    let is = |wanted: &Verdict| {
        chaos
            .deploys
            .iter()
            .filter(|d| d.verdict.as_ref() == Some(wanted))
            .count()
    };
    let (work, counted) = (
        is(&Verdict::Works) + is(&Verdict::Lost),
        chaos.deploys.len() - is(&Verdict::Cancelled),
    );
    assert!(work as f64 >= WORK * counted as f64, "{work} of {counted} work");
    let offers = chaos.call("GET", "/instances/offers", None).1;
    assert!(
        offers["items"].as_array().is_some_and(|items| items.len() >= 3),
        "the blacklist leaves nothing to race: {offers:#}"
    );
    for name in chaos.names.clone() {
        chaos.delete(&name);
    }
    let ledger = chaos.balanced();
    assert_eq!(judge::alive(&ledger), HashSet::new());
}
