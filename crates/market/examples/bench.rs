//! What a market costs: memory with many machines rented, requests per second.
//!
//! `scripts/bench-market` builds and runs it. Everything is counted that the market needs: this
//! process, which also is the client, and every process of every rented machine, shared pages by
//! their share (PSS).

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dumont_market::{MarketConfig, start};
use reqwest::{Client, Method};
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Requests in flight at once.
const CLIENTS: usize = 16;

struct Bench {
    http: Client,
    url: String,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut numbers = std::env::args().skip(1).map(|a| a.parse::<usize>());
    let mut number = |default| numbers.next().unwrap_or(Ok(default));
    let (machines, rented, seconds) = (number(2000)?, number(500)?, number(5)?);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir()?;
    let mut config = MarketConfig::new(dir.path());
    config.machines = machines;
    config.time_scale = 0.0;
    let market = start(config).await?;
    let bench = Arc::new(Bench {
        http: Client::new(),
        url: market.url(),
    });
    let empty = memory_mb()?;
    let started = Instant::now();
    let ids = bench.rent(rented).await?;
    let took = started.elapsed();
    let full = memory_mb()?;
    println!("machines {machines}, isolation {}", market.isolation());
    println!("memory, nothing rented   {:8.1} MB", empty.0);
    println!(
        "memory, {rented} rented      {:8.1} MB in {} processes ({:.2} MB a machine)",
        full.0,
        full.1,
        (full.0 - empty.0) / rented.max(1) as f64
    );
    println!("renting until all run    {:8.1} s", took.as_secs_f64());

    let one = format!(
        "/api/v0/instances/{}/?owner=me",
        ids.first().copied().unwrap_or(0)
    );
    let filters = "/api/v1/instances/?limit=25&select_filters=%7B%22actual_status%22:%22running%22%7D";
    let plain = json!({"limit": 20});
    let query = json!({"gpu_name": {"eq": "RTX 4090"}, "num_gpus": {"eq": "1"}, "verified": {"eq": true},
        "inet_down": {"gt": "200"}, "order": [["dph_total", "asc"]], "limit": 20});
    let calls: [(&str, Method, &str, Option<Value>); 5] = [
        ("GET one instance", Method::GET, &one, None),
        ("GET 25 of all instances", Method::GET, filters, None),
        ("GET user", Method::GET, "/api/v0/users/current/", None),
        (
            "POST search, filtered",
            Method::POST,
            "/api/v0/bundles/",
            Some(query),
        ),
        (
            "POST search, everything",
            Method::POST,
            "/api/v0/bundles/",
            Some(plain),
        ),
    ];
    for (name, method, path, body) in calls {
        let rate = bench.rate(&method, path, body.as_ref(), seconds).await?;
        println!("{name:<24} {rate:8.0} requests/s");
    }
    market.shutdown().await;
    Ok(())
}

impl Bench {
    async fn call(&self, method: &Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        Ok(serde_json::from_slice(&self.send(method, path, body).await?)?)
    }

    /// The whole answer as it came: to understand it is the client's work, not the market's.
    async fn send(&self, method: &Method, path: &str, body: Option<&Value>) -> Result<Bytes, Failure> {
        let mut request = self
            .http
            .request(method.clone(), format!("{}{path}", self.url))
            .bearer_auth("bench");
        if let Some(body) = body {
            request = request.json(body);
        }
        Ok(request.send().await?.error_for_status()?.bytes().await?)
    }

    async fn rent(&self, count: usize) -> Result<Vec<u64>, Failure> {
        let order = json!({"image": "pytorch/pytorch", "disk": 10, "runtype": "ssh_direc ssh_proxy"});
        let mut ids = Vec::new();
        while ids.len() < count {
            let query = json!({"num_gpus": {"eq": 1}, "order": [["machine_id", "asc"]]});
            let found = self.call(&Method::POST, "/api/v0/bundles/", Some(&query)).await?;
            let offers = found["offers"].as_array().cloned().unwrap_or_default();
            if offers.is_empty() {
                return Err("there are not so many offers".into());
            }
            for offer in offers.iter().take(count - ids.len()) {
                let path = format!("/api/v0/asks/{}/", offer["id"]);
                let made = self.call(&Method::PUT, &path, Some(&order)).await?;
                ids.push(made["new_contract"].as_u64().ok_or("no contract")?);
            }
        }
        for id in &ids {
            let path = format!("/api/v0/instances/{id}/");
            while self.call(&Method::GET, &path, None).await?["instances"]["actual_status"] != "running" {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(ids)
    }

    async fn rate(
        self: &Arc<Self>,
        method: &Method,
        path: &str,
        body: Option<&Value>,
        seconds: usize,
    ) -> Result<f64, Failure> {
        let (done, until) = (Arc::new(AtomicU64::new(0)), Duration::from_secs(seconds as u64));
        let started = Instant::now();
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..CLIENTS {
            let (bench, done) = (Arc::clone(self), Arc::clone(&done));
            let (method, path, body) = (method.clone(), path.to_owned(), body.cloned());
            clients.spawn(async move {
                while started.elapsed() < until {
                    bench.send(&method, &path, body.as_ref()).await?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<(), Failure>(())
            });
        }
        while let Some(client) = clients.join_next().await {
            client??;
        }
        Ok(done.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64())
    }
}

/// PSS of this process and of all that descend from it, and how many they are.
fn memory_mb() -> Result<(f64, usize), Failure> {
    let mut parents = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")?.filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        // `pid (name) state ppid`: the name may have spaces.
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.split(' ').nth(1)?.parse::<u32>().ok());
        parents.insert(pid, parent.unwrap_or(0));
    }
    let mut ours = HashSet::from([std::process::id()]);
    loop {
        let before = ours.len();
        ours.extend(
            parents
                .iter()
                .filter(|(_, parent)| ours.contains(parent))
                .map(|(pid, _)| *pid)
                .collect::<Vec<_>>(),
        );
        if ours.len() == before {
            break;
        }
    }
    let pss = |pid: &u32| -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("Pss:"));
        line.and_then(|l| l.split_whitespace().next()?.parse().ok())
            .unwrap_or(0.0)
    };
    Ok((ours.iter().map(pss).sum::<f64>() / 1024.0, ours.len()))
}
