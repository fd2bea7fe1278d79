//! How a PostgreSQL database is reached.

use super::Db;
use crate::error::{Error, Result};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, Postgres};
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
/// and a server with the usual hundred has room for several replicas.
pub(super) const CONNECTIONS: u32 = 10;
/// How long a connection is trusted that nobody used.
const TRUSTED: Duration = Duration::from_secs(1);

/// A restart of the database costs no request. A connection that lay idle is tried before it is
/// lent; one in use a moment ago is not, as the trial would double the way there and back of
/// most queries. Should it have died in that moment, what has no effect yet is done again on
/// another ([`again`]), and a write that stands alone tries its connection first ([`live`]).
/// While the database is away, one waits for it this long.
fn postgres_pool() -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(Duration::from_secs(10))
        .test_before_acquire(false)
        .before_acquire(|conn, meta| {
            Box::pin(async move {
                if meta.idle_for > TRUSTED {
                    conn.ping().await?;
                }
                Ok(true)
            })
        })
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

/// Whether what failed, and had no effect, is worth another connection. Every one may have died
/// at once, and each failure removes one from the pool.
pub(super) fn again(error: &sqlx::Error, tries: u32) -> bool {
    let dead = match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => true,
        // Ended by the server, or by its crash.
        e => e
            .as_database_error()
            .and_then(|e| e.code())
            .is_some_and(|code| matches!(&*code, "57P01" | "57P02")),
    };
    dead && tries <= CONNECTIONS
}

/// A connection that answers.
pub(super) async fn live(pool: &PgPool) -> sqlx::Result<PoolConnection<Postgres>> {
    loop {
        let mut conn = pool.acquire().await?;
        if conn.ping().await.is_ok() {
            return Ok(conn);
        }
        conn.close_on_drop();
    }
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
