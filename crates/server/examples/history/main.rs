//! How fast the machine history is, on generated data: `scripts/bench-history`.
//!
//! Reads go over HTTP to the real server, as anybody's do: connection, token, queries, JSON. Only
//! the marketplace is replaced, by one that answers at once, since a search must not time Vast.
//! Attempts are recorded by the store's own call, which is what a race makes. Beside each figure
//! stands what the database costs for it, by its own word (`pg_stat_statements`), and what it
//! costs for nothing: an empty round trip, and single rows inserted into a bare table by as many
//! writers. Everything shares the cores that are printed, this program's clients included.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark that cannot go on stops"
)]

mod client;
mod generate;
mod measure;
mod serve;

use dumont_core::time::Timestamp;
use dumont_server::Database;
use dumont_store::Store;
use dumont_temp_postgres::Cluster;
use measure::{rate, timed};
use serve::Served;
use sqlx::Executor;
use sqlx::postgres::{PgPool, PgPoolOptions};
use std::time::SystemTime;

const USAGE: &str = "history --engine postgres|sqlite [--machines N] [--attempts N] [--seconds N] [--checks PER_SECOND] \
                     [--pages N] [--offers N] [--pause] [--database URL]";
/// As a small server of its own would have them: a quarter of 8 GB, and room between checkpoints.
const SETTINGS: &[&str] = &[
    "shared_buffers=2GB",
    "max_wal_size=8GB",
    "maintenance_work_mem=512MB",
    "shared_preload_libraries=pg_stat_statements",
];
/// Connections, as many as the server's own pool has.
const CONNECTIONS: u32 = 10;

pub struct Size {
    pub machines: u64,
    pub attempts: u64,
    /// Of each timed part that runs for a while.
    pub seconds: u64,
    /// Checks a second.
    pub checks: u64,
    /// Searches that are timed.
    pub pages: usize,
    /// Of a large search.
    pub offers: usize,
    /// A PostgreSQL of one's own, to measure there or to keep the data; generated where empty.
    pub database: Option<String>,
    /// Waits for a line on stdin between generating and measuring, to make the machine idle.
    pub pause: bool,
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
        checks: number("--checks", 2_000),
        pages: number("--pages", 500) as usize,
        offers: number("--offers", 10_000) as usize,
        database: given("--database").cloned(),
        pause: args.iter().any(|a| a == "--pause"),
    };
    let _ = rustls::crypto::ring::default_provider().install_default();
    println!(
        "{} machines, {} attempts, {} cores, built {}",
        size.machines,
        size.attempts,
        std::thread::available_parallelism().map_or(0, usize::from),
        if cfg!(debug_assertions) {
            "without optimisation"
        } else {
            "optimised"
        }
    );
    match given("--engine").map(String::as_str) {
        Some("postgres") => postgres(&size).await,
        Some("sqlite") => sqlite(&size).await,
        _ => panic!("{USAGE}"),
    }
}

async fn postgres(size: &Size) {
    let (url, _cluster) = match &size.database {
        Some(url) => (url.clone(), None),
        None => {
            let cluster = Cluster::start_durable(SETTINGS).expect("a PostgreSQL server");
            (
                cluster.create_database("bench").expect("a database"),
                Some(cluster),
            )
        }
    };
    let store = Store::connect(&url).await.unwrap();
    let pool = PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .connect(&url)
        .await
        .unwrap();
    let about: String = sqlx::query_scalar(
        "SELECT 'PostgreSQL ' || current_setting('server_version') || ', synchronous_commit ' || \
         current_setting('synchronous_commit') || ', fsync ' || current_setting('fsync') || ', shared_buffers ' \
         || current_setting('shared_buffers')",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    println!("{about}");
    let empty: bool = sqlx::query_scalar("SELECT NOT EXISTS (SELECT 1 FROM machine_attempts)")
        .fetch_one(&pool)
        .await
        .unwrap();
    if empty {
        timed("generate the data", generate::postgres(&pool, size)).await;
    }
    pause(size);
    measured_on(&Database::Postgres { url }, Some(&pool), &store, size).await;

    pool.execute("DROP TABLE IF EXISTS bare").await.unwrap();
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
    let ours = measure::writes(&store, size).await;
    println!(
        "record an attempt: {ours:.0}/s by {} writers over {} machines, {:.2} of the {bare:.0}/s of bare single-row \
         inserts ({CONNECTIONS} connections each)",
        measure::WRITERS,
        size.machines.min(measure::WRITTEN),
        ours / bare
    );
}

async fn sqlite(size: &Size) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dumont.db");
    let store = Store::open(&path).await.unwrap();
    timed("generate the data", generate::sqlite(&path, size)).await;
    pause(size);
    let served = Served::start(Database::Embedded, dir.path()).await;
    measure::reads(&served, None, &store, size).await;
    let ours = measure::writes(&store, size).await;
    println!(
        "record an attempt: {ours:.0}/s by {} writers over {} machines",
        measure::WRITERS,
        size.machines.min(measure::WRITTEN)
    );
}

async fn measured_on(database: &Database, pool: Option<&PgPool>, store: &Store, size: &Size) {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(database.clone(), dir.path()).await;
    measure::reads(&served, pool, store, size).await;
    served.server.shutdown().await;
}

fn pause(size: &Size) {
    if size.pause {
        println!("press Enter to measure");
        let _ = std::io::stdin().read_line(&mut String::new());
    }
}

pub fn now() -> Timestamp {
    Timestamp::from_system(SystemTime::now())
}
