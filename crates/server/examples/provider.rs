//! What the client of a marketplace costs, on the emulator: `scripts/bench-provider`.
//!
//! Four figures, each by its name. `overhead`: what a request takes longer through the client than by itself, without a budget and
//! with one that is shared through the database. `race`: how long after the decision for a race its first
//! create has happened at the market, where the account's budget is free. `idle`: what a server asks in a
//! minute while nothing happens, with an account of so many instances, against what is documented.
//! `deploys`, only if asked for: how many of 30 deploys succeed on the market as Vast.ai is known,
//! with real boot times and documented limits, one every 15 s; some fifteen minutes.
//! Market, server, machines and this program share the cores.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark that cannot go on stops"
)]

#[path = "../tests/world/mod.rs"]
mod world;

use dumont_core::budget::{Endpoint, Limits};
use dumont_core::workflow::Step;
use dumont_market::{Limits as MarketLimits, Preset};
use dumont_server::providers::vast::Vast;
use dumont_server::providers::{OfferQuery, Provider};
use dumont_store::Store;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use world::World;

/// Between two calls: the database counts an account's turns in milliseconds.
const FREE: Duration = Duration::from_millis(3);
const USAGE: &str = "provider [overhead|race|idle|deploys]… [--small]";

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let small = args.iter().any(|a| a == "--small");
    let parts: Vec<&str> = args
        .iter()
        .map(String::as_str)
        .filter(|a| *a != "--small")
        .collect();
    let known = ["overhead", "race", "idle", "deploys"];
    assert!(parts.iter().all(|part| known.contains(part)), "{USAGE}");
    let wanted = |part| parts.is_empty() || parts.contains(&part);
    if wanted("overhead") {
        overhead(if small { 50 } else { 3_000 }).await;
    }
    if wanted("race") {
        race(if small { 2 } else { 30 }).await;
    }
    if wanted("idle") {
        // Long enough for one look at the whole account and the rest after it.
        let (contracts, workspaces, seconds) = if small { (60, 2, 8) } else { (1_000, 10, 520) };
        idle(contracts, workspaces, seconds).await;
    }
    if parts.contains(&"deploys") {
        deploys(if small { 2 } else { 30 }, Duration::from_secs(15)).await;
    }
}

/// Milliseconds at the middle, and at 99 of 100.
fn figures(mut all: Vec<f64>) -> (f64, f64) {
    all.sort_by(f64::total_cmp);
    let at = |share: f64| all[((all.len() - 1) as f64 * share) as usize];
    (at(0.5), at(0.99))
}

/// The same call made in turns, so that what disturbs one disturbs all.
struct Compared(Vec<(&'static str, Vec<f64>)>);

impl Compared {
    fn note(&mut self, name: &'static str, since: Instant) {
        let ms = since.elapsed().as_secs_f64() * 1e3;
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some((_, all)) => all.push(ms),
            None => self.0.push((name, vec![ms])),
        }
    }

    fn print(self, what: &str) {
        let mut bare = None;
        for (name, all) in self.0 {
            let (p50, p99) = figures(all);
            let more = bare.map_or_else(String::new, |bare| format!("  {:+.3} ms", p50 - bare));
            bare = bare.or(Some(p50));
            println!("{what}: {name:<34} p50 {p50:7.3} ms  p99 {p99:7.3} ms{more}");
        }
    }
}

/// Never in the way, and asked before each request all the same.
fn no_wait() -> Limits {
    let all = [
        "list", "show", "change", "destroy", "create", "bid", "add_key", "search",
    ];
    all.map(|name| format!("{name}=0.000001"))
        .join(",")
        .parse()
        .unwrap()
}

async fn overhead(rounds: usize) {
    let world = World::on_market(|market| (market.time_scale, market.machines) = (0.0, 100)).await;
    let store = Store::open(world.dir.path().join("budget.db")).await.unwrap();
    let mut limited = world.vast();
    limited.limits = no_wait();
    let (free, shared) = (
        Vast::new(world.vast()).unwrap(),
        Vast::shared(limited, store).unwrap(),
    );
    let ids = rent(&world, 1).await;
    let id = &ids[0];
    let bare = async |method: Method, path: &str, body: Option<&Value>| {
        let request = world
            .http
            .request(method, format!("{}{path}", world.market.url()));
        let request = request.bearer_auth("test-key");
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        let answer = request.send().await.unwrap().error_for_status().unwrap();
        answer.bytes().await.unwrap().len()
    };

    let path = format!("/api/v0/instances/{id}/?owner=me");
    let mut one = Compared(Vec::new());
    for _ in 0..rounds {
        tokio::time::sleep(FREE).await;
        let since = Instant::now();
        bare(Method::GET, &path, None).await;
        one.note("HTTP by itself", since);
        for (name, client) in [
            ("the client", &free),
            ("the client with its budget (SQLite)", &shared),
        ] {
            tokio::time::sleep(FREE).await;
            let since = Instant::now();
            client.get(id).await.unwrap().expect("it is there");
            one.note(name, since);
        }
    }
    one.print("one instance");

    let query = OfferQuery {
        gpu_count: 1,
        disk_gb: 20,
        ..OfferQuery::default()
    };
    let found = free.search(&query).await.unwrap().len();
    let body = json!({"limit": found, "num_gpus": {"eq": 1}});
    let mut search = Compared(Vec::new());
    for _ in 0..rounds / 10 {
        let since = Instant::now();
        bare(Method::POST, "/api/v0/bundles/", Some(&body)).await;
        search.note("HTTP by itself, as many rows", since);
        let since = Instant::now();
        free.search(&query).await.unwrap();
        search.note("the client", since);
    }
    search.print(&format!("a search that finds {found}"));
}

/// Contracts of the account that are none of the server's, each made with a key of its own: the market
/// limits by key.
async fn rent(world: &World, count: usize) -> Vec<String> {
    let call = async |method: Method, path: &str, n: usize, body: &Value| -> Value {
        let request = world
            .http
            .request(method, format!("{}{path}", world.market.url()));
        let answer = request.bearer_auth(format!("renter-{n}")).json(body).send().await;
        answer.unwrap().error_for_status().unwrap().json().await.unwrap()
    };
    let order = json!({"image": "pytorch/pytorch", "disk": 10, "runtype": "ssh_direc ssh_proxy", "label": "another's"});
    let mut ids = Vec::new();
    while ids.len() < count {
        let query = json!({"num_gpus": {"eq": 1}, "order": [["machine_id", "asc"]], "limit": 64});
        let found = call(Method::POST, "/api/v0/bundles/", ids.len(), &query).await;
        let offers = found["offers"].as_array().expect("offers").clone();
        assert!(!offers.is_empty(), "the market is sold out");
        for offer in offers.iter().take(count - ids.len()) {
            let path = format!("/api/v0/asks/{}/", offer["id"]);
            let made = call(Method::PUT, &path, ids.len(), &order).await;
            ids.push(made["new_contract"].to_string());
        }
    }
    ids
}

async fn race(rounds: usize) {
    let world = World::on_market(|market| (market.time_scale, market.machines) = (0.0, 100)).await;
    // A budget is asked, and it is free: what is done in between takes longer than its distances.
    let limits = "search=0.05,create=0.2,destroy=0.05,show=0.05,list=0.05,add_key=0.05,change=0.05";
    let world = world
        .reconfigured(|world| world.limits = limits.parse().unwrap())
        .await;
    let mut all = Vec::new();
    for n in 0..rounds {
        let name = format!("race-{n}");
        let created = world
            .post("/workspaces", json!({ "spec": world::spec(&name) }))
            .await;
        let workflow = created["workflow_id"].as_str().expect("a workflow").to_owned();
        world.done(&created["workflow_id"]).await;
        all.push(to_first_create(&world, &workflow).await);
        let (_, started) = world.call("DELETE", &format!("/workspaces/{name}"), None).await;
        world.done(&started["workflow_id"]).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let most = all.iter().copied().fold(0.0, f64::max);
    let (p50, _) = figures(all);
    println!("from the race's begin to its first contract: p50 {p50:.0} ms, most {most:.0} ms of {rounds}");
}

/// From the begin of the race's step to its first contract by the market's clock, which is this one.
async fn to_first_create(world: &World, workflow: &str) -> f64 {
    let row = world.store().await.workflow(workflow).await.unwrap().unwrap();
    let began = row
        .steps
        .iter()
        .find(|s| s.step == Step::Race)
        .unwrap()
        .started_at
        .0 as f64
        / 1e3;
    let ledger = world.admin("GET", "/admin/ledger", None).await;
    let created = ledger["instances"].as_array().unwrap().iter();
    let created = created.filter_map(|i| i["created_ms"].as_f64());
    // The market's clock shows whole milliseconds.
    let first = created
        .filter(|ms| *ms + 1.0 > began)
        .fold(f64::INFINITY, f64::min);
    (first - began).max(0.0)
}

async fn idle(contracts: usize, workspaces: usize, seconds: u64) {
    let world = World::on_market(|market| {
        (market.time_scale, market.machines) = (0.0, contracts * 2);
        market.limits = Some(MarketLimits::DOCUMENTED);
    })
    .await;
    rent(&world, contracts.saturating_sub(workspaces)).await;
    // Of the first server, which knew of no limits, nothing must be left.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let world = world
        .reconfigured(|world| {
            world.limits = Limits::default();
            if seconds < 60 {
                world.timing.sweep = Duration::from_secs(1);
            }
        })
        .await;
    for n in 0..workspaces {
        world.deployed(&format!("idle-{n}")).await;
    }
    // The losers of races are given back.
    world.settles_at(contracts as u64).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let asked = async || -> (BTreeMap<String, u64>, u64) {
        let requests = world.admin("GET", "/admin/requests", None).await;
        let of = |key: &str| {
            let map = requests[key].as_object().cloned().unwrap_or_default();
            let counts = map.into_iter().filter_map(|(k, n)| Some((k, n.as_u64()?)));
            counts.collect::<BTreeMap<_, _>>()
        };
        (of("counts"), of("refused").values().sum())
    };
    let (before, refused) = asked().await;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let (after, more) = asked().await;
    println!(
        "{contracts} instances, {workspaces} of them of running workspaces, {seconds} s in which nothing happens:"
    );
    let may = 60.0 / Limits::default().rule(Endpoint::List).interval.as_secs_f64();
    let mut others = 0;
    for (route, n) in &after {
        let n = n - before.get(route).unwrap_or(&0);
        if route.contains("/api/v1/instances") {
            let a_minute = n as f64 * 60.0 / seconds as f64;
            println!("  listing pages: {n}, {a_minute:.1} a minute of {may:.0} allowed");
        } else {
            others += n;
        }
    }
    println!("  other requests: {others}");
    println!("  refused: {}", more - refused);
}

async fn deploys(count: usize, apart: Duration) {
    let world = World::on_market(|market| {
        (market.preset, market.machines, market.seed) = (Preset::Vast, 400, 5);
        market.time_scale = 1.0;
    })
    .await;
    let world = world.reconfigured(|world| world.limits = Limits::default()).await;
    let one = async |n: usize| {
        tokio::time::sleep(apart * n as u32).await;
        let since = Instant::now();
        let spec = world::spec(&format!("w{n}"));
        let created = world.post("/workspaces", json!({ "spec": spec })).await;
        let path = format!("/workflows/{}", created["workflow_id"].as_str().unwrap());
        loop {
            let workflow = world.get(&path).await;
            if workflow["status"] != "running" {
                let seconds = since.elapsed().as_secs_f64();
                let why = workflow["error"]["message"].as_str().unwrap_or_default();
                println!("  deploy {n}: {} after {seconds:.0} s {why}", workflow["status"]);
                return (workflow["status"] == "done").then_some(seconds);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let ended = futures::future::join_all((0..count).map(one)).await;
    let took: Vec<f64> = ended.into_iter().flatten().collect();
    let done = took.len();
    let most = took.iter().copied().fold(0.0, f64::max);
    let middle = if took.is_empty() {
        f64::NAN
    } else {
        figures(took).0
    };
    println!("{done} of {count} deploys succeeded, p50 {middle:.0} s, most {most:.0} s");
    let requests = world.admin("GET", "/admin/requests", None).await;
    let ledger = world.admin("GET", "/admin/ledger", None).await;
    println!(
        "  creates: {}, contracts: {}",
        requests["counts"]["PUT /api/v0/asks/{id}/"], ledger["totals"]["created"]
    );
    println!("  refused as too frequent: {}", requests["refused"]);
}
