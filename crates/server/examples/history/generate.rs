//! Plausible rows, made by the database itself: one in twenty machines is a lemon, one in two
//! hundred is blocked, attempts come in the order of their time.

use crate::{Size, now};
use sqlx::postgres::PgPool;
use sqlx::{AssertSqlSafe, Executor};
use std::path::Path;

/// Over how long the attempts are spread: 90 days.
const SPAN_MICROS: i64 = 90 * 86_400_000_000;
/// Apart from `machines` in every factor, so that each machine gets its share.
const STRIDE: u64 = 7_919;
/// Attempts in one statement.
const BATCH: u64 = 2_000_000;

/// Indexes are made after the rows, as for any large load.
pub async fn postgres(pool: &PgPool, size: &Size) {
    let mut conn = pool.acquire().await.unwrap();
    conn.execute("SET synchronous_commit = off; SET work_mem = '1GB'")
        .await
        .unwrap();
    let constraints: Vec<(String, String)> = sqlx::query_as(
        "SELECT 'ALTER TABLE machine_attempts DROP CONSTRAINT ' || conname, 'ALTER TABLE machine_attempts ADD \
         CONSTRAINT ' || conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint \
         WHERE conrelid = 'machine_attempts'::regclass AND contype IN ('p', 'u')",
    )
    .fetch_all(&mut *conn)
    .await
    .unwrap();
    let indexes: Vec<(String, String)> = sqlx::query_as(
        "SELECT 'DROP INDEX ' || indexname, indexdef FROM pg_indexes WHERE tablename = 'machine_attempts' \
         AND indexname NOT IN (SELECT conname FROM pg_constraint)",
    )
    .fetch_all(&mut *conn)
    .await
    .unwrap();
    let both = || constraints.iter().chain(&indexes);
    let drops = both().map(|(drop, _)| drop.clone());
    let makes = both().map(|(_, make)| make.clone());
    let rest = [
        "CREATE EXTENSION pg_stat_statements".into(),
        "VACUUM ANALYZE".into(),
        "CHECKPOINT".into(),
    ];
    for sql in drops
        .chain(attempts(size))
        .chain(makes)
        .chain(derived(size))
        .chain(rest)
    {
        conn.execute(AssertSqlSafe(sql)).await.unwrap();
    }
}

pub async fn sqlite(path: &Path, size: &Size) {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let mut conn = sqlx::ConnectOptions::connect(&options).await.unwrap();
    let first = [
        "PRAGMA synchronous = off".into(),
        "PRAGMA cache_size = -500000".into(),
    ];
    let rest = ["ANALYZE".into(), "PRAGMA wal_checkpoint(TRUNCATE)".into()];
    for sql in first
        .into_iter()
        .chain(attempts(size))
        .chain(derived(size))
        .chain(rest)
    {
        conn.execute(AssertSqlSafe(sql)).await.unwrap();
    }
}

fn series(from: u64, to: u64) -> String {
    format!(
        "WITH RECURSIVE g(n) AS (SELECT CAST({from} AS BIGINT) UNION ALL SELECT n + 1 FROM g WHERE n + 1 < {to})"
    )
}

fn attempts(size: &Size) -> Vec<String> {
    let (machines, begin) = (size.machines, now().0 - SPAN_MICROS);
    let apart = SPAN_MICROS / i64::try_from(size.attempts).unwrap();
    let mut all = Vec::new();
    let mut from = 0;
    while from < size.attempts {
        let to = size.attempts.min(from + BATCH);
        all.push(format!(
            "INSERT INTO machine_attempts (provider, machine_id, attempt_type, success, duration_seconds, \
             created_at, attempt_key, host_id, gpu_name, price, region, image, stage, outcome, reason, \
             ready_seconds, provider_reliability, inet_down_mbps, score_s, score_f) {}, \
             a(n, m, failed) AS (SELECT n, n * {STRIDE} % {machines}, CASE WHEN n * {STRIDE} % {machines} % 20 = 0 \
             THEN n % 3 <> 0 ELSE n % 13 = 0 END FROM g) \
             SELECT 'vast', CAST(m AS TEXT), 'deploy', NOT failed, 61.5, {begin} + n * {apart}, 'bench-' || n, \
             'host-' || (m / 10), 'RTX 4090', 0.31, 'Quebec, CA', 'pytorch/pytorch:latest', \
             CASE WHEN failed THEN 'ssh' ELSE 'ready' END, CASE WHEN failed THEN 'failed' ELSE 'won' END, \
             CASE WHEN failed THEN 'ssh_failed' END, CASE WHEN NOT failed THEN 30.0 + n % 97 END, 0.99, \
             CAST(100 + n % 10 * 100 AS DOUBLE PRECISION), CASE WHEN failed THEN 0 ELSE 1 END, \
             CASE WHEN failed THEN 1 ELSE 0 END FROM a",
            series(from, to)
        ));
        from = to;
    }
    all
}

/// What recording them would have left: statistics, sums, blocks.
fn derived(size: &Size) -> Vec<String> {
    let now = now().0;
    let epoch = 140 * 86_400_000_000_i64;
    let won = "SUM(CASE WHEN success THEN 1 ELSE 0 END)";
    vec![
        format!(
            "INSERT INTO machine_stats (provider, machine_id, total_attempts, successful_attempts, failed_attempts, \
             success_rate, avg_boot_time, last_attempt_at, reliability_score, uncounted_attempts, \
             consecutive_failures, ready_attempts, ready_total_ms, sum_s, sum_f, sums_at, host_id, bucket) \
             SELECT provider, machine_id, COUNT(*), {won}, COUNT(*) - {won}, 1.0 * {won} / COUNT(*), 61.5, \
             MAX(created_at), 0.9, 0, 0, {won}, {won} * 61500, SUM(score_s), SUM(score_f), MAX(created_at), \
             MIN(host_id), 'high' FROM machine_attempts GROUP BY provider, machine_id"
        ),
        format!(
            "INSERT INTO reliability_sums (provider, kind, name, epoch, shard, s, f, as_of) \
             SELECT provider, 'operator', host_id, created_at / {epoch}, 0, SUM(score_s), SUM(score_f), \
             MAX(created_at) FROM machine_attempts GROUP BY provider, host_id, created_at / {epoch}"
        ),
        format!(
            "INSERT INTO reliability_sums (provider, kind, name, epoch, shard, s, f, as_of) {} \
             SELECT 'vast', 'bucket', CASE n % 4 WHEN 0 THEN 'low' WHEN 1 THEN 'medium' WHEN 2 THEN 'high' \
             ELSE 'top' END, {}, n / 4, 9.5, 1.5, {now} FROM g",
            series(0, 256),
            now / epoch
        ),
        format!(
            "INSERT INTO machine_blacklist (provider, machine_id, blacklist_type, reason, total_attempts, \
             failed_attempts, blacklisted_at, expires_at, is_active) {} SELECT 'vast', CAST(n * 200 AS TEXT), \
             'automatic', 'ssh_failed', 3, 3, {now}, {now} + 604800000000, TRUE FROM g",
            series(0, (size.machines / 200).max(1))
        ),
    ]
}
