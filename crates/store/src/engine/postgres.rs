//! How a PostgreSQL database is reached.

use super::Db;
use crate::error::{Error, Result};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _};
use std::time::Duration;

impl Db {
    /// The pool of a PostgreSQL database that exists.
    pub(crate) async fn open_postgres(url: &str) -> Result<Self> {
        let options = postgres_options(url)?;
        migrate_postgres(&options).await?;
        Ok(Self::Postgres(postgres_pool().connect_with(options).await?))
    }
}

/// Commands of dumont come in bursts and are short: a few connections carry many workflows,
/// and a server with the usual hundred has room for several replicas. Each is tried before
/// it is lent, so that a restart of the database costs no request; while the database is
/// away, one waits for it this long.
fn postgres_pool() -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(10)
        .acquire_timeout(Duration::from_secs(10))
        .after_connect(|conn, _| {
            Box::pin(async move {
                // A lost controller's transaction must not hold its locks for ever.
                sqlx::raw_sql(
                    "SET statement_timeout = '30s'; SET lock_timeout = '20s'; \
                     SET idle_in_transaction_session_timeout = '30s'",
                )
                .execute(conn)
                .await
                .map(drop)
            })
        })
}

/// What sqlx says of a URL that it cannot read may hold the password.
pub(super) fn postgres_options(url: &str) -> Result<PgConnectOptions> {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(Error::BadUrl("it must begin with postgres://"));
    }
    url.parse::<PgConnectOptions>()
        .map(|options| options.application_name("dumont"))
        .map_err(|_| Error::BadUrl("it must look like postgres://USER:PASSWORD@HOST:5432/NAME, special characters in percent form"))
}

/// On a connection of its own, which may take as long as it needs.
async fn migrate_postgres(options: &PgConnectOptions) -> Result<()> {
    let mut conn = options.connect().await?;
    let encoding: String = sqlx::query_scalar("SHOW server_encoding")
        .fetch_one(&mut conn)
        .await?;
    if encoding != "UTF8" {
        return Err(Error::Encoding { encoding });
    }
    sqlx::migrate!("./migrations/postgres").run(&mut conn).await?;
    Ok(conn.close().await?)
}
