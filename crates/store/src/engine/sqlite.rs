//! How a SQLite database is opened.

use super::Db;
use crate::error::{Error, Result};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use std::path::Path;
use std::time::Duration;

impl Db {
    /// The pools of one file, created for its owner only if it does not exist.
    pub(crate) async fn open_sqlite(path: &Path) -> Result<Self> {
        create_private(path).map_err(|source| Error::Create {
            path: path.to_owned(),
            source,
        })?;
        let options = sqlite_options().filename(path);
        let write = sqlite_pool(1).connect_with(options.clone()).await?;
        migrate_sqlite(&write).await?;
        let read = sqlite_pool(4).connect_with(options.read_only(true)).await?;
        Ok(Self::Sqlite { write, read })
    }

    /// A database of one connection that ends with it.
    pub(crate) async fn open_sqlite_in_memory() -> Result<Self> {
        let pool = sqlite_pool(1).idle_timeout(None).max_lifetime(None);
        let write = pool.connect_with(sqlite_options().in_memory(true)).await?;
        migrate_sqlite(&write).await?;
        Ok(Self::Sqlite {
            read: write.clone(),
            write,
        })
    }
}

pub(super) fn sqlite_options() -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(10))
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
}

fn sqlite_pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(30))
}

async fn migrate_sqlite(pool: &SqlitePool) -> Result<()> {
    Ok(sqlx::migrate!("./migrations/sqlite").run(pool).await?)
}

/// SQLite gives its WAL the mode of the file, so the file is made before it is opened.
fn create_private(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}
