//! The one file that knows which database there is.
//!
//! The rest of the crate sees statements, arguments and rows of no particular engine. There
//! is one text per statement, with `$1` placeholders, which both engines read; where they
//! must differ a statement names a word (`FOR_UPDATE`) that is spliced in per engine while
//! compiling, as sqlx takes static text only. PostgreSQL is then one more variant of [`Db`],
//! [`Tx`] and [`Row`], one more field of [`Sql`], one more dialect macro.
//!
//! sqlx's own `Any` driver was rejected: booleans fail on SQLite, and native types on
//! PostgreSQL.
//!
//! SQLite lets one connection write. Readers that turn writers in the middle of a
//! transaction fail with "database is locked" whatever the busy timeout (measured: 527 of 800
//! with eight writers), so all writes go through a pool of one connection, which queues fairly, and
//! begin with `BEGIN IMMEDIATE`; reads have connections of their own, which WAL never
//! blocks. `synchronous=FULL`: a committed intent to rent must survive a power cut, else an
//! instance is paid for that nobody knows; at our rates the extra sync costs nothing.

use crate::column::{Arg, Record};
use crate::error::{Error, Result};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Decode, Row as _, Sqlite, Transaction, Type};
use std::path::Path;
use std::time::Duration;

/// One statement, in each engine's text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sql {
    pub sqlite: &'static str,
}

/// What SQLite writes for the words in which the engines differ.
macro_rules! sqlite_dialect {
    // Micros on the database's own clock (SQLite reads milliseconds), the only one that leases
    // are set and judged by: the controllers' clocks differ.
    (NOW) => {
        "CAST(ROUND(unixepoch('now', 'subsec') * 1000000) AS BIGINT)"
    };
    // Row locks: the one writer has none to wait for.
    (FOR_UPDATE) => {
        ""
    };
    (SKIP_LOCKED) => {
        ""
    };
    // The members of a JSON array of texts, as a table `each(value)`.
    (EACH_2) => {
        "json_each($2) AS each"
    };
    ($text:literal) => {
        $text
    };
}
pub(crate) use sqlite_dialect;

/// Declares a file's statements, and lists them for the test that prepares every one.
macro_rules! statements {
    ($($(#[$meta:meta])* $name:ident: [$($part:tt)+];)+) => {
        $($(#[$meta])* const $name: $crate::engine::Sql = $crate::engine::Sql {
            sqlite: concat!($($crate::engine::sqlite_dialect!($part)),+),
        };)+
        #[cfg(test)]
        pub(crate) const STATEMENTS: &[(&str, $crate::engine::Sql)] = &[$((stringify!($name), $name)),+];
    };
}
pub(crate) use statements;

/// A connected database. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) enum Db {
    Sqlite { write: SqlitePool, read: SqlitePool },
}

/// A write transaction; rolled back when dropped.
#[derive(Debug)]
pub(crate) enum Tx {
    Sqlite(Transaction<'static, Sqlite>),
}

/// One row of an answer.
pub(crate) enum Row {
    Sqlite(SqliteRow),
}

impl Row {
    pub(crate) fn get<T>(&self, column: &'static str) -> Result<T>
    where
        T: for<'r> Decode<'r, Sqlite> + Type<Sqlite>,
    {
        let got = match self {
            Self::Sqlite(row) => row.try_get(column),
        };
        got.map_err(|e| Error::Corrupt {
            column,
            detail: e.to_string(),
        })
    }
}

macro_rules! bound {
    ($sql:expr, $args:expr) => {
        $args.into_iter().fold(sqlx::query($sql), |q, arg| match arg {
            Arg::Int(v) => q.bind(v),
            Arg::Real(v) => q.bind(v),
            Arg::Text(v) => q.bind(v),
            Arg::Bool(v) => q.bind(v),
            Arg::Bytes(v) => q.bind(v),
        })
    };
}

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

    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite { write, read } => {
                read.close().await;
                write.close().await;
            }
        }
    }

    /// Reads, outside any transaction.
    pub(crate) async fn all<T: Record>(&self, sql: Sql, args: Vec<Arg>) -> Result<Vec<T>> {
        match self {
            Self::Sqlite { read, .. } => {
                let rows = bound!(sql.sqlite, args).fetch_all(read).await?;
                rows.into_iter().map(|row| T::read(&Row::Sqlite(row))).collect()
            }
        }
    }

    /// Reads the first row.
    pub(crate) async fn first<T: Record>(&self, sql: Sql, args: Vec<Arg>) -> Result<Option<T>> {
        Ok(self.all(sql, args).await?.into_iter().next())
    }

    /// One writing statement, a transaction by itself; the number of rows it touched.
    pub(crate) async fn run(&self, sql: Sql, args: Vec<Arg>) -> Result<u64> {
        match self {
            Self::Sqlite { write, .. } => Ok(bound!(sql.sqlite, args).execute(write).await?.rows_affected()),
        }
    }

    pub(crate) async fn begin(&self) -> Result<Tx> {
        match self {
            Self::Sqlite { write, .. } => Ok(Tx::Sqlite(write.begin_with("BEGIN IMMEDIATE").await?)),
        }
    }
}

impl Tx {
    /// Every row is fetched: a statement with RETURNING takes effect whole or not at all.
    pub(crate) async fn all<T: Record>(&mut self, sql: Sql, args: Vec<Arg>) -> Result<Vec<T>> {
        match self {
            Self::Sqlite(tx) => {
                let rows = bound!(sql.sqlite, args).fetch_all(&mut **tx).await?;
                rows.into_iter().map(|row| T::read(&Row::Sqlite(row))).collect()
            }
        }
    }

    pub(crate) async fn first<T: Record>(&mut self, sql: Sql, args: Vec<Arg>) -> Result<Option<T>> {
        Ok(self.all(sql, args).await?.into_iter().next())
    }

    pub(crate) async fn run(&mut self, sql: Sql, args: Vec<Arg>) -> Result<u64> {
        match self {
            Self::Sqlite(tx) => Ok(bound!(sql.sqlite, args).execute(&mut **tx).await?.rows_affected()),
        }
    }

    pub(crate) async fn commit(self) -> Result<()> {
        match self {
            Self::Sqlite(tx) => Ok(tx.commit().await?),
        }
    }
}

fn sqlite_options() -> SqliteConnectOptions {
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

#[cfg(test)]
mod tests {
    use super::*;
    use sqlx::{Executor as _, SqlStr};

    #[tokio::test]
    async fn every_statement_can_be_prepared() {
        let db = Db::open_sqlite_in_memory().await.unwrap();
        let Db::Sqlite { write, .. } = &db;
        let mut wrong = Vec::new();
        for (file, statements) in crate::all_statements() {
            for (name, sql) in statements {
                let mut conn = write.acquire().await.unwrap();
                if let Err(e) = conn.prepare(SqlStr::from_static(sql.sqlite)).await {
                    wrong.push(format!("{file} {name}: {e}\n{}", sql.sqlite));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    }

    /// So that the test above really sees every statement.
    #[test]
    fn every_file_with_statements_is_listed() {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut found: Vec<String> = std::fs::read_dir(src)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| std::fs::read_to_string(path).unwrap().contains("\nstatements! {"))
            .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        found.sort();
        let mut listed: Vec<_> = crate::all_statements()
            .iter()
            .map(|(file, _)| (*file).to_owned())
            .collect();
        listed.sort();
        assert_eq!(found, listed);
    }

    /// Runs one statement as another program would.
    async fn meddle(path: &Path, sql: &'static str) {
        let pool = sqlite_pool(1)
            .connect_with(sqlite_options().filename(path))
            .await
            .unwrap();
        sqlx::query(sql).execute(&pool).await.unwrap();
        pool.close().await;
    }

    #[tokio::test]
    async fn a_newer_schema_is_refused() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("dumont.db");
        Db::open_sqlite(&path).await.unwrap().close().await;
        meddle(
            &path,
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             VALUES (9999, 'later', TRUE, x'00', 0)",
        )
        .await;
        let refused = Db::open_sqlite(&path).await;
        assert!(
            matches!(refused, Err(Error::NewerSchema { version: 9999 })),
            "{refused:?}"
        );
    }

    #[tokio::test]
    async fn a_value_that_cannot_be_read_names_its_column() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("dumont.db");
        let store = crate::Store::open(&path).await.unwrap();
        meddle(
            &path,
            "INSERT INTO workspaces (id, name, spec_json, state, fence, created_at) \
             VALUES ('w', 'w', '{\"name\":\"w\"}', 'flying', 0, 0)",
        )
        .await;
        let err = store.workspace("w").await.unwrap_err();
        assert!(matches!(err, Error::Corrupt { column: "state", .. }), "{err}");
        assert!(
            err.to_string()
                .contains("\"flying\" is not a known workspace state"),
            "{err}"
        );
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn only_the_owner_can_read_the_files() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::TempDir::new().unwrap();
        let store = crate::Store::open(dir.path().join("dumont.db")).await.unwrap();
        store.meta_set("k", "v").await.unwrap();
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", entry.path().display());
        }
        assert!(
            matches!(Db::open_sqlite(dir.path()).await, Err(Error::Create { .. })),
            "a directory is no file"
        );
    }

    #[tokio::test]
    async fn a_database_in_memory_works_on_its_one_connection() {
        let store = crate::Store::open_in_memory().await.unwrap();
        assert_eq!(store.meta_get_or_insert("k", "v").await.unwrap(), "v");
        assert!(store.append_workflow_log("none", "x").await.is_err());
        assert_eq!(store.meta("k").await.unwrap().as_deref(), Some("v"));
    }
}
