//! How fast the machine history is, on generated data. `scripts/bench-history` runs it.
//!
//! What is timed is the store's own calls as the API makes them, JSON included where an answer
//! is built. Beside each stands what the database costs for nothing: an empty round trip, and
//! single rows inserted into a bare table by as many writers, since a figure without it says
//! more about the disk than about us.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark that cannot go on stops"
)]

use dumont_core::blacklist::Settings;
use dumont_core::history::{Level, Outcome, Reason, Stage};
use dumont_core::id::MachineRef;
use dumont_core::offer::Offer;
use dumont_core::reliability::Counts;
use dumont_core::time::Timestamp;
use dumont_store::{Conditions, NewAttempt, Store};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Executor};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

const USAGE: &str = "history --engine postgres|sqlite [--machines N] [--attempts N] [--seconds N]";
const WRITERS: u64 = 32;
/// Machines that the writers write to.
const WRITTEN: u64 = 1_000;

struct Size {
    machines: u64,
    attempts: u64,
    /// Of each timed part that runs for a while.
    seconds: u64,
}

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let given = |name: &str| {
        args.iter()
            .position(|a| a == name)
            .and_then(|at| args.get(at + 1))
    };
    let number = |name: &str, default| given(name).map_or(default, |n| n.parse().expect(USAGE));
    let size = Size {
        machines: number("--machines", 1_000_000),
        attempts: number("--attempts", 20_000_000),
        seconds: number("--seconds", 10),
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let built = if cfg!(debug_assertions) {
        "without optimisation"
    } else {
        "optimised"
    };
    println!(
        "{} machines, {} attempts, {cores} cores, built {built}",
        size.machines, size.attempts
    );
    match given("--engine").map(String::as_str) {
        Some("postgres") => postgres(&size).await,
        Some("sqlite") => sqlite(&size).await,
        _ => panic!("{USAGE}"),
    }
}

async fn postgres(size: &Size) {
    let cluster = dumont_temp_postgres::Cluster::start().expect("a PostgreSQL server");
    let url = cluster.create_database("bench").expect("a database");
    let store = Store::connect(&url).await.unwrap();
    let pool = PgPoolOptions::new()
        .max_connections(10)
        .connect(&url)
        .await
        .unwrap();
    timed("generate the data", async {
        for sql in generation(size) {
            let mut conn = pool.acquire().await.unwrap();
            conn.execute("SET synchronous_commit = off").await.unwrap();
            conn.execute(AssertSqlSafe(sql)).await.unwrap();
        }
        pool.execute("VACUUM ANALYZE").await.unwrap();
    })
    .await;
    reads(&store, size).await;

    pool.execute("CREATE TABLE bare (id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, k TEXT, v TEXT)")
        .await
        .unwrap();
    let bare = rate(size.seconds, move |key| {
        let pool = pool.clone();
        async move {
            sqlx::query("INSERT INTO bare (k, v) VALUES ($1, 'a row')")
                .bind(key.to_string())
                .execute(&pool)
                .await
                .unwrap();
        }
    })
    .await;
    let ours = writes(&store, size).await;
    println!(
        "record an attempt: {ours:.0}/s by {WRITERS} writers over {WRITTEN} machines, {:.2} of {bare:.0}/s bare \
         single-row inserts (10 connections, synchronous_commit = on)",
        ours / bare
    );
}

async fn sqlite(size: &Size) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dumont.db");
    let store = Store::open(&path).await.unwrap();
    timed("generate the data", async {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
        let mut conn = sqlx::ConnectOptions::connect(&options).await.unwrap();
        for sql in generation(size) {
            conn.execute(AssertSqlSafe(sql)).await.unwrap();
        }
        conn.execute("ANALYZE").await.unwrap();
    })
    .await;
    reads(&store, size).await;
    let ours = writes(&store, size).await;
    println!("record an attempt: {ours:.0}/s by {WRITERS} writers over {WRITTEN} machines");
}

/// Plausible rows in one text for both engines, a million attempts at a time.
fn generation(size: &Size) -> Vec<String> {
    let (machines, now) = (size.machines, now().0);
    let series = |from: u64, to: u64| {
        format!("WITH RECURSIVE g(n) AS (SELECT {from} UNION ALL SELECT n + 1 FROM g WHERE n + 1 < {to})")
    };
    let mut all = Vec::new();
    let mut from = 0;
    while from < size.attempts {
        let to = size.attempts.min(from + 1_000_000);
        all.push(format!(
            "INSERT INTO machine_attempts (provider, machine_id, attempt_type, success, duration_seconds, \
             created_at, attempt_key, host_id, gpu_name, price, region, image, stage, outcome, reason, \
             ready_seconds, provider_reliability, inet_down_mbps, score_s, score_f) {} \
             SELECT 'vast', CAST(n % {machines} AS TEXT), 'deploy', n % 13 <> 0, 61.5, \
             {now} - (n % 7776000) * 1000000, 'bench-' || n, 'host-' || (n % {machines} / 10), 'RTX 4090', 0.31, \
             'Quebec, CA', 'pytorch/pytorch:latest', CASE WHEN n % 13 = 0 THEN 'ssh' ELSE 'ready' END, \
             CASE WHEN n % 13 = 0 THEN 'failed' ELSE 'won' END, CASE WHEN n % 13 = 0 THEN 'ssh_failed' END, \
             CASE WHEN n % 13 = 0 THEN NULL ELSE 61.5 END, 0.99, 800, \
             CASE WHEN n % 13 = 0 THEN 0 ELSE 1 END, CASE WHEN n % 13 = 0 THEN 1 ELSE 0 END FROM g",
            series(from, to)
        ));
        from = to;
    }
    let won = "SUM(CASE WHEN success THEN 1 ELSE 0 END)";
    all.push(format!(
        "INSERT INTO machine_stats (provider, machine_id, total_attempts, successful_attempts, failed_attempts, \
         success_rate, avg_boot_time, last_attempt_at, reliability_score, uncounted_attempts, \
         consecutive_failures, ready_attempts, ready_total_ms, sum_s, sum_f, sums_at, host_id, bucket) \
         SELECT provider, machine_id, COUNT(*), {won}, COUNT(*) - {won}, 1.0 * {won} / COUNT(*), 61.5, \
         MAX(created_at), 0.9, 0, 0, {won}, {won} * 61500, SUM(score_s), SUM(score_f), MAX(created_at), \
         MIN(host_id), 'high' FROM machine_attempts GROUP BY provider, machine_id"
    ));
    let epoch = 140 * 86_400_000_000_i64;
    all.push(format!(
        "INSERT INTO reliability_sums (provider, kind, name, epoch, shard, s, f, as_of) \
         SELECT provider, 'operator', host_id, created_at / {epoch}, 0, SUM(score_s), SUM(score_f), \
         MAX(created_at) FROM machine_attempts GROUP BY provider, host_id, created_at / {epoch}"
    ));
    all.push(format!(
        "INSERT INTO reliability_sums (provider, kind, name, epoch, shard, s, f, as_of) {} \
         SELECT 'vast', 'bucket', CASE n % 4 WHEN 0 THEN 'low' WHEN 1 THEN 'medium' WHEN 2 THEN 'high' \
         ELSE 'top' END, {}, n / 4, 9.5, 1.5, {now} FROM g",
        series(0, 256),
        now / epoch
    ));
    all.push(format!(
        "INSERT INTO machine_blacklist (provider, machine_id, blacklist_type, reason, total_attempts, \
         failed_attempts, blacklisted_at, expires_at, is_active) {} SELECT 'vast', CAST(n * 200 AS TEXT), \
         'automatic', 'ssh_failed', 3, 3, {now}, {now} + 604800000000, TRUE FROM g",
        series(0, (machines / 200).max(1))
    ));
    all
}

async fn reads(store: &Store, size: &Size) {
    let mut dice = 88_172_645_463_325_252;
    let mut empty = Vec::new();
    for _ in 0..500 {
        let began = Instant::now();
        store.database_time().await.unwrap();
        empty.push(began.elapsed());
    }
    show("an empty round trip to the database", &mut empty);
    for (count, rounds) in [(64, 500), (10_000, 30)] {
        let mut times = Vec::new();
        for round in 0..rounds + 5 {
            let offers: Vec<Offer> = (0..count)
                .map(|_| offer(roll(&mut dice) % size.machines))
                .collect();
            let began = Instant::now();
            let bytes = annotated(store, &offers).await;
            // The first fill the caches.
            if round >= 5 {
                times.push(began.elapsed());
            }
            assert!(bytes > count * 50);
        }
        show(
            &format!("annotate {count} offers in two queries, JSON included"),
            &mut times,
        );
    }
    let mut times = checks(store, size, 2_000).await;
    let per_second = times.len() as u64 / size.seconds.max(1);
    show(&format!("check one machine, {per_second} a second"), &mut times);
}

/// What the offers' endpoint does between the provider's answer and its own.
async fn annotated(store: &Store, offers: &[Offer]) -> usize {
    let now = now();
    let known = store.standings("vast", offers, now).await.unwrap();
    let rows: Vec<_> = offers
        .iter()
        .map(|o| {
            let row = known.machine(&o.machine);
            let stats = row.map(|r| r.stats).unwrap_or_default();
            let block = known.blocks(&o.machine).first();
            serde_json::json!({
                "id": o.offer_id, "machine_id": o.machine.machine_id, "gpu_name": o.gpu_name,
                "dph_total": o.price, "is_blacklisted": block.is_some(),
                "blacklist_reason": block.map(|b| b.reason.as_str()),
                "success_rate": stats.success_rate(), "total_attempts": stats.total,
                "reliability_status": Level::of(stats.success_rate(), block.is_some()).as_str(),
                "reliability_score": known.posterior(o, now).score(),
            })
        })
        .collect();
    serde_json::to_vec(&rows).unwrap().len()
}

/// Asked at a fixed rate, whatever the answers take: a slow one must not slow the questions.
async fn checks(store: &Store, size: &Size, per_second: u64) -> Vec<Duration> {
    let (mut tasks, mut dice) = (Vec::new(), 4_711);
    let began = tokio::time::Instant::now();
    for n in 0..per_second * size.seconds {
        let due = began + Duration::from_micros(n * 1_000_000 / per_second);
        tokio::time::sleep_until(due).await;
        let (store, machine) = (store.clone(), machine(roll(&mut dice) % size.machines));
        tasks.push(tokio::spawn(async move {
            store.blocks_of(&machine, now()).await.unwrap();
            due.elapsed()
        }));
    }
    let mut times = Vec::new();
    for task in tasks {
        times.push(task.await.unwrap());
    }
    times
}

async fn writes(store: &Store, size: &Size) -> f64 {
    let settings = Arc::new(Settings::default());
    let most = size.machines.min(WRITTEN);
    let store = store.clone();
    rate(size.seconds, move |key| {
        let (store, settings) = (store.clone(), settings.clone());
        async move {
            let new = attempt(key, (key.wrapping_mul(2_654_435_761) >> 7) % most);
            store.record_attempt(&new, &settings).await.unwrap();
        }
    })
    .await
}

/// Calls a second that all writers make together, each as fast as it is answered.
async fn rate<F, W>(seconds: u64, work: W) -> f64
where
    W: Fn(u64) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send,
{
    static KEYS: AtomicU64 = AtomicU64::new(0);
    let (began, end) = (Instant::now(), Duration::from_secs(seconds));
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        let work = work.clone();
        writers.push(tokio::spawn(async move {
            let mut done = 0_u64;
            while began.elapsed() < end {
                work(KEYS.fetch_add(1, Ordering::Relaxed)).await;
                done += 1;
            }
            done
        }));
    }
    let mut done = 0;
    for writer in writers {
        done += writer.await.unwrap();
    }
    done as f64 / began.elapsed().as_secs_f64()
}

async fn timed(what: &str, work: impl Future<Output = ()>) {
    let began = Instant::now();
    work.await;
    println!("{what}: {:.1} s", began.elapsed().as_secs_f64());
}

fn show(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |q: f64| times[((times.len() - 1) as f64 * q) as usize].as_secs_f64() * 1_000.0;
    println!(
        "{what}: p50 {:.2} ms, p99 {:.2} ms, most {:.2} ms ({} times)",
        at(0.5),
        at(0.99),
        at(1.0),
        times.len()
    );
}

fn now() -> Timestamp {
    Timestamp::from_system(SystemTime::now())
}

/// xorshift: the same machines in every run.
fn roll(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state >> 11
}

fn machine(n: u64) -> MachineRef {
    MachineRef::new("vast", &n.to_string()).unwrap()
}

fn offer(n: u64) -> Offer {
    serde_json::from_value(serde_json::json!({
        "offer_id": format!("9{n}"), "machine": format!("vast:{n}"), "host_id": format!("host-{}", n / 10),
        "gpu_name": "RTX 4090", "gpu_count": 1, "gpu_ram_mb": 24_564, "price": 0.31, "region": "Quebec, CA",
        "provider_reliability": 0.99, "inet_down_mbps": 800.0, "inet_up_mbps": 800.0, "cuda_max": 12.8,
        "driver_version": null, "disk_gb": 100.0, "verified": true, "datacenter": false,
    }))
    .unwrap()
}

fn attempt(key: u64, n: u64) -> NewAttempt {
    let failed = key.is_multiple_of(13);
    NewAttempt {
        attempt_key: format!("writer-{key}"),
        machine: machine(n),
        attempt_type: "deploy".into(),
        workflow_id: None,
        workspace_id: None,
        host_id: Some(format!("host-{}", n / 10)),
        offer_id: Some(format!("9{n}")),
        instance_id: Some(key.to_string()),
        gpu_name: "RTX 4090".into(),
        price: 0.31,
        region: Some("Quebec, CA".into()),
        image: Some("pytorch/pytorch:latest".into()),
        stage: if failed { Stage::Ssh } else { Stage::Ready },
        outcome: if failed { Outcome::Failed } else { Outcome::Won },
        reason: failed.then_some(Reason::SshFailed),
        error_message: None,
        duration_seconds: 61.5,
        ready_seconds: (!failed).then_some(61.5),
        created_at: now(),
        conditions: Conditions {
            provider_reliability: Some([0.9, 0.97, 0.99, 0.999][n as usize % 4]),
            inet_down_mbps: Some(800.0),
            score: Some(0.9),
            prior_mean: Some(0.85),
            counts: if failed {
                Counts::new(0.0, 1.0)
            } else {
                Counts::new(1.0, 0.0)
            },
            ..Conditions::default()
        },
    }
}
