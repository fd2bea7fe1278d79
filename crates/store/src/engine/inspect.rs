//! A look at a database without touching it: `dumont doctor` must not migrate a schema that a
//! running server of another version uses.

use crate::error::{Error, Result};
use dumont_core::time::Timestamp;
use sqlx::migrate::Migrator;
use sqlx::{ConnectOptions as _, Connection as _};
use std::path::Path;

static SQLITE: Migrator = sqlx::migrate!("./migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("./migrations/postgres");

/// What a database says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// Engine and version, e.g. `SQLite 3.46.0`.
    pub version: String,
    /// Migrations that were applied, by number; none in an empty database.
    pub applied: Vec<i64>,
    /// Those this program knows.
    pub known: Vec<i64>,
    /// Its clock, by which leases go.
    pub now: Timestamp,
}

fn known(migrator: &Migrator) -> Vec<i64> {
    migrator.iter().map(|m| m.version).collect()
}

const APPLIED: &str = "SELECT version FROM _sqlx_migrations WHERE success ORDER BY version";

impl crate::Store {
    /// Of a SQLite file, which must exist.
    pub async fn inspect(path: impl AsRef<Path>) -> Result<Inspection> {
        let options = super::sqlite::sqlite_options().filename(path).read_only(true);
        let mut conn = options.connect().await?;
        let version: String = sqlx::query_scalar("SELECT sqlite_version()")
            .fetch_one(&mut conn)
            .await?;
        let migrated: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM sqlite_master WHERE name = '_sqlx_migrations'")
                .fetch_one(&mut conn)
                .await?;
        let applied = match migrated {
            0 => Vec::new(),
            _ => sqlx::query_scalar(APPLIED).fetch_all(&mut conn).await?,
        };
        let now: i64 =
            sqlx::query_scalar("SELECT CAST(ROUND(unixepoch('now', 'subsec') * 1000000) AS BIGINT)")
                .fetch_one(&mut conn)
                .await?;
        conn.close().await?;
        Ok(Inspection {
            version: format!("SQLite {version}"),
            applied,
            known: known(&SQLITE),
            now: Timestamp(now),
        })
    }

    /// Of a PostgreSQL database.
    pub async fn inspect_postgres(url: &str) -> Result<Inspection> {
        let mut conn = super::postgres::postgres_options(url)?.connect().await?;
        let version: String = sqlx::query_scalar("SHOW server_version")
            .fetch_one(&mut conn)
            .await?;
        let encoding: String = sqlx::query_scalar("SHOW server_encoding")
            .fetch_one(&mut conn)
            .await?;
        if encoding != "UTF8" {
            return Err(Error::Encoding { encoding });
        }
        let migrated: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
            .fetch_one(&mut conn)
            .await?;
        let applied = match migrated {
            false => Vec::new(),
            true => sqlx::query_scalar(APPLIED).fetch_all(&mut conn).await?,
        };
        let now: i64 = sqlx::query_scalar("SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::BIGINT")
            .fetch_one(&mut conn)
            .await?;
        conn.close().await?;
        Ok(Inspection {
            version: format!("PostgreSQL {version}"),
            applied,
            known: known(&POSTGRES),
            now: Timestamp(now),
        })
    }
}
