//! What is timed, and how it is said.

use crate::serve::Served;
use crate::{Size, now};
use dumont_core::blacklist::Settings;
use dumont_core::history::{Outcome, Reason, Stage};
use dumont_core::id::MachineRef;
use dumont_core::offer::Offer;
use dumont_core::reliability::Counts;
use dumont_store::{Conditions, NewAttempt, Store};
use sqlx::postgres::PgPool;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub const WRITERS: u64 = 32;
/// Machines that the writers write to.
pub const WRITTEN: u64 = 1_000;
/// Attempts recorded while searches are timed.
const WRITTEN_A_SECOND: u32 = 100;
/// Connections of those who check.
const CHECKERS: u64 = 64;
/// Of attempts, each its own.
static KEYS: AtomicU64 = AtomicU64::new(0);

pub async fn reads(served: &Served, pool: Option<&PgPool>, store: &Store, size: &Size) {
    let mut empty = Vec::new();
    for _ in 0..500 {
        let began = Instant::now();
        store.database_time().await.unwrap();
        empty.push(began.elapsed());
    }
    show("an empty round trip to the database", &mut empty);
    let mut market = Market::new(size);
    searches(
        served,
        pool,
        size.pages,
        "64 offers of other machines each time",
        || market.others(64),
    )
    .await;
    let (offers, few) = (size.offers, (size.pages / 10).max(1));
    searches(
        served,
        pool,
        few,
        &format!("{offers} offers, other machines each time"),
        || market.others(offers),
    )
    .await;
    let same = format!("{offers} offers, 1 in 100 another machine than before");
    searches(served, pool, few, &same, || market.mostly_the_same(offers)).await;
    let writing = Writing::begin(store, market.shown.clone());
    let meanwhile = format!("{same}, {WRITTEN_A_SECOND} attempts a second on them meanwhile");
    searches(served, pool, few, &meanwhile, || market.mostly_the_same(offers)).await;
    writing.end().await;
    let statements = Statements::begin(pool).await;
    let mut times = checks(served, size).await;
    let asked = times.len();
    show(
        &format!("check one machine, {} a second over HTTP", size.checks),
        &mut times,
    );
    statements.show(asked).await;
    let mut client = served.client().await;
    for path in ["problematic", "reliable", "summary"] {
        let mut times = Vec::new();
        for _ in 0..3 {
            let began = Instant::now();
            client.get(&format!("/machines/history/{path}")).await;
            times.push(began.elapsed());
        }
        show(&format!("GET /machines/history/{path}"), &mut times);
    }
}

/// Which machines a search finds.
struct Market {
    dice: u64,
    machines: u64,
    shown: Vec<u64>,
}

impl Market {
    fn new(size: &Size) -> Self {
        Self {
            dice: 88_172_645_463_325_252,
            machines: size.machines,
            shown: Vec::new(),
        }
    }

    fn others(&mut self, offers: usize) -> Vec<Offer> {
        self.shown = (0..offers)
            .map(|_| roll(&mut self.dice) % self.machines)
            .collect();
        self.offers()
    }

    /// A real market: what it shows is what it showed a minute ago, nearly.
    fn mostly_the_same(&mut self, offers: usize) -> Vec<Offer> {
        for _ in 0..offers / 100 {
            let at = roll(&mut self.dice) as usize % self.shown.len();
            self.shown[at] = roll(&mut self.dice) % self.machines;
        }
        self.offers()
    }

    fn offers(&self) -> Vec<Offer> {
        self.shown.iter().map(|n| offer(*n)).collect()
    }
}

/// Attempts that are recorded at a steady rate, while something else is timed.
struct Writing {
    stop: tokio_util::sync::CancellationToken,
    task: tokio::task::JoinHandle<u64>,
}

impl Writing {
    fn begin(store: &Store, machines: Vec<u64>) -> Self {
        let stop = tokio_util::sync::CancellationToken::new();
        let (store, stopped) = (store.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let (mut dice, mut written) = (4_711, 0);
            let mut due = tokio::time::interval(Duration::from_secs(1) / WRITTEN_A_SECOND);
            while !stopped.is_cancelled() {
                due.tick().await;
                let machine = machines[roll(&mut dice) as usize % machines.len()];
                let new = attempt(KEYS.fetch_add(1, Ordering::Relaxed), machine);
                store.record_attempt(&new, &Settings::default()).await.unwrap();
                written += 1;
            }
            written
        });
        Self { stop, task }
    }

    async fn end(self) {
        self.stop.cancel();
        println!(
            "    {} attempts were recorded meanwhile",
            self.task.await.unwrap()
        );
    }
}

/// Searches one after the other.
async fn searches(
    served: &Served,
    pool: Option<&PgPool>,
    pages: usize,
    what: &str,
    mut found: impl FnMut() -> Vec<Offer>,
) {
    let mut client = served.client().await;
    let mut times = Vec::new();
    // The first fill the caches of the database.
    let first = 5.min(pages);
    let mut statements = Statements::begin(None).await;
    for round in 0..pages + first {
        if round == first {
            statements = Statements::begin(pool).await;
        }
        let found = found();
        let offers = found.len();
        served.shelf.put(found);
        let began = Instant::now();
        let body = client
            .get("/instances/offers?all_offers=true&include_blacklisted=true&limit=500")
            .await;
        if round >= first {
            times.push(began.elapsed());
        }
        assert!(body.len() > offers.min(500) * 50);
    }
    show(&format!("annotate {what}, over HTTP, JSON included"), &mut times);
    let asked = statements.show(pages).await;
    // Two for the machines; the boot curve is read again now and then, by none of them.
    assert!(asked <= 2 * pages as u64 + 2, "{asked} queries for {pages} pages");
}

/// What PostgreSQL says that it did since, in the statements that read the history; those that lock
/// are a writer's.
struct Statements(Option<PgPool>);

impl Statements {
    async fn begin(pool: Option<&PgPool>) -> Self {
        if let Some(pool) = pool {
            sqlx::query("SELECT pg_stat_statements_reset()")
                .execute(pool)
                .await
                .unwrap();
        }
        Self(pool.cloned())
    }

    /// Prints the database's own share; how many statements read the history.
    async fn show(&self, asked: usize) -> u64 {
        let Some(pool) = &self.0 else { return 0 };
        let (calls, millis): (i64, f64) = sqlx::query_as(
            "SELECT COALESCE(SUM(calls), 0)::BIGINT, COALESCE(SUM(total_exec_time), 0) FROM pg_stat_statements \
             WHERE query LIKE 'SELECT%' AND query ~ 'machine_|reliability_sums' AND query !~ 'FOR NO KEY UPDATE'",
        )
        .fetch_one(pool)
        .await
        .unwrap();
        let asked = asked.max(1) as f64;
        println!(
            "    of it in the database, without the way there: {:.2} ms in {:.2} queries each",
            millis / asked,
            calls as f64 / asked
        );
        u64::try_from(calls).unwrap_or_default()
    }
}

/// Asked at a fixed rate, whatever the answers take: a slow one must not slow the questions,
/// and is counted from when it was due.
async fn checks(served: &Served, size: &Size) -> Vec<Duration> {
    let every = Duration::from_micros(1_000_000 * CHECKERS / size.checks);
    let each = size.checks * size.seconds / CHECKERS;
    let mut tasks = Vec::new();
    let begin = tokio::time::Instant::now() + Duration::from_millis(200);
    for checker in 0..CHECKERS {
        let mut client = served.client().await;
        let first = begin + every * u32::try_from(checker).unwrap() / u32::try_from(CHECKERS).unwrap();
        let (machines, mut dice) = (size.machines, 4_711 + checker);
        tasks.push(tokio::spawn(async move {
            let mut times = Vec::new();
            for n in 0..each {
                let due = first + every * u32::try_from(n).unwrap();
                tokio::time::sleep_until(due).await;
                let machine = roll(&mut dice) % machines;
                client
                    .get(&format!("/machines/history/blacklist/check/vast/{machine}"))
                    .await;
                times.push(due.elapsed());
            }
            times
        }));
    }
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.unwrap());
    }
    times
}

pub async fn writes(store: &Store, size: &Size) -> f64 {
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
pub async fn rate<F, W>(seconds: u64, work: W) -> f64
where
    W: Fn(u64) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send,
{
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

pub async fn timed(what: &str, work: impl Future<Output = ()>) {
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
        attempt_key: format!("writer-{}-{key}", std::process::id()),
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
