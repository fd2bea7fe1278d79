//! Migrations meet tables that people have filled.
//!
//! A database is brought to every version in turn, each of its tables is given a row with a
//! value in every column, and then it goes on to the newest. The rows and their values must
//! still be there. A new column that old rows cannot have (NOT NULL without a default) is
//! refused by both engines here, not on somebody's database.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use dumont_temp_postgres::Cluster;
use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, SqliteConnection};
use std::collections::BTreeMap;
use tempfile::TempDir;

static SQLITE: Migrator = sqlx::migrate!("./migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("./migrations/postgres");

/// What would hurt every filled table.
const IMPOSSIBLE: &str = "ALTER TABLE workspaces ADD COLUMN impossible TEXT NOT NULL";

/// A table's columns by name, with their declared types in small letters.
type Tables = BTreeMap<String, Vec<(String, String)>>;

/// A literal that the type takes. One text everywhere, so that every reference holds.
fn literal(column: &str, kind: &str) -> &'static str {
    match kind {
        "text" if column.ends_with("_json") => "'{}'",
        "text" => "'x'",
        "bigint" | "integer" => "7",
        "double precision" => "0.5",
        "boolean" => "TRUE",
        "blob" | "bytea" => "'x'",
        other => panic!("{column} is of the type {other}, which this test does not know yet"),
    }
}

/// A statement per table that puts a row into it.
fn inserts(tables: &Tables, overriding: &str) -> Vec<String> {
    tables
        .iter()
        .map(|(table, columns)| {
            let names: Vec<_> = columns.iter().map(|(name, _)| name.as_str()).collect();
            let values: Vec<_> = columns.iter().map(|(name, kind)| literal(name, kind)).collect();
            format!(
                "INSERT INTO {table} ({}) {overriding} VALUES ({})",
                names.join(", "),
                values.join(", ")
            )
        })
        .collect()
}

/// Counts the row if all its old columns still hold what was put there.
fn look(table: &str, columns: &[(String, String)]) -> String {
    let same: Vec<_> = columns
        .iter()
        .map(|(name, kind)| format!("{name} = {}", literal(name, kind)))
        .collect();
    format!("SELECT COUNT(*) FROM {table} WHERE {}", same.join(" AND "))
}

macro_rules! every_version {
    ($migrator:expr, $open:expr, $tables:ident, $unchecked:literal, $overriding:literal) => {{
        let versions: Vec<i64> = $migrator.iter().map(|m| m.version).collect();
        for version in versions {
            let mut conn = $open(version).await;
            $migrator.run_to(version, &mut conn).await.unwrap();
            let tables = $tables(&mut conn).await;
            assert!(tables.len() >= 9, "{tables:?}");
            sqlx::raw_sql($unchecked).execute(&mut conn).await.unwrap();
            for insert in inserts(&tables, $overriding) {
                let done = sqlx::query(AssertSqlSafe(insert.as_str()))
                    .execute(&mut conn)
                    .await;
                done.unwrap_or_else(|e| panic!("at version {version}: {e}\n{insert}"));
            }
            let done = $migrator.run(&mut conn).await;
            done.unwrap_or_else(|e| panic!("from version {version}: {e}"));
            for (table, columns) in &tables {
                let row = sqlx::query(AssertSqlSafe(look(table, columns)))
                    .fetch_one(&mut conn)
                    .await
                    .unwrap();
                assert_eq!(row.get::<i64, _>(0), 1, "{table}, from version {version}");
            }
            let refused = sqlx::raw_sql(IMPOSSIBLE).execute(&mut conn).await;
            assert!(refused.is_err(), "the tables are not filled at all");
        }
    }};
}

#[tokio::test]
async fn filled_tables_are_migrated_on_sqlite() {
    let dir = TempDir::new().unwrap();
    let open = async |version: i64| {
        let url = format!("sqlite://{}/{version}.db?mode=rwc", dir.path().display());
        SqliteConnection::connect(&url).await.unwrap()
    };
    every_version!(SQLITE, open, sqlite_tables, "PRAGMA foreign_keys = OFF", "");
}

async fn sqlite_tables(conn: &mut SqliteConnection) -> Tables {
    let rows = sqlx::query(
        "SELECT m.name AS t, c.name AS c, LOWER(c.type) AS k FROM sqlite_master m, pragma_table_info(m.name) c \
         WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%' AND m.name <> '_sqlx_migrations'",
    )
    .fetch_all(&mut *conn)
    .await
    .unwrap();
    gather(rows.iter().map(|row| (row.get("t"), row.get("c"), row.get("k"))))
}

#[tokio::test]
async fn filled_tables_are_migrated_on_postgres() {
    let cluster = Cluster::start().unwrap();
    let open = async |version: i64| {
        let url = cluster.create_database(&format!("v{version}")).unwrap();
        PgConnection::connect(&url).await.unwrap()
    };
    every_version!(
        POSTGRES,
        open,
        postgres_tables,
        "SET session_replication_role = replica",
        "OVERRIDING SYSTEM VALUE"
    );
}

async fn postgres_tables(conn: &mut PgConnection) -> Tables {
    let rows = sqlx::query(
        "SELECT table_name::text AS t, column_name::text AS c, data_type::text AS k \
         FROM information_schema.columns \
         WHERE table_schema = 'public' AND table_name <> '_sqlx_migrations'",
    )
    .fetch_all(&mut *conn)
    .await
    .unwrap();
    gather(rows.iter().map(|row| (row.get("t"), row.get("c"), row.get("k"))))
}

fn gather(columns: impl Iterator<Item = (String, String, String)>) -> Tables {
    let mut tables = Tables::new();
    for (table, column, kind) in columns {
        tables.entry(table).or_default().push((column, kind));
    }
    tables
}

/// The source document's tables, with the columns that it names.
const DOCUMENT: [(&str, &str); 3] = [
    (
        "machine_attempts",
        "id provider machine_id attempt_type success error_message duration_seconds created_at",
    ),
    (
        "machine_blacklist",
        "id provider machine_id blacklist_type reason total_attempts failed_attempts failure_rate \
         blacklisted_at expires_at is_active",
    ),
    (
        "machine_stats",
        "id provider machine_id total_attempts successful_attempts failed_attempts success_rate avg_boot_time \
         last_attempt_at last_success_at last_failure_at reliability_score",
    ),
];

fn holds_the_document(tables: &Tables) {
    for (table, columns) in DOCUMENT {
        for column in columns.split_whitespace() {
            let there = tables[table].iter().any(|(name, _)| name == column);
            assert!(there, "{table}.{column}");
        }
    }
}

#[tokio::test]
async fn the_documents_tables_are_there_column_by_column() {
    let dir = TempDir::new().unwrap();
    let url = format!("sqlite://{}/all.db?mode=rwc", dir.path().display());
    let mut conn = SqliteConnection::connect(&url).await.unwrap();
    SQLITE.run(&mut conn).await.unwrap();
    holds_the_document(&sqlite_tables(&mut conn).await);
    let cluster = Cluster::start().unwrap();
    let url = cluster.create_database("all").unwrap();
    let mut conn = PgConnection::connect(&url).await.unwrap();
    POSTGRES.run(&mut conn).await.unwrap();
    holds_the_document(&postgres_tables(&mut conn).await);
}
