//! The one file that knows which database there is.
//!
//! The rest of the crate sees statements, arguments and rows of no particular engine. There
//! is one text per statement, with `$1` placeholders, which both engines read; where they
//! must differ a statement names a word (`FOR_UPDATE`) that is spliced in per engine while
//! compiling, as sqlx takes static text only.
//!
//! sqlx's own `Any` driver was rejected: booleans fail on SQLite, and native types on
//! PostgreSQL.
//!
//! SQLite lets one connection write. Readers that turn writers in the middle of a
//! transaction fail with "database is locked" whatever the busy timeout (measured: 527 of 800
//! with eight writers), so all writes go through a pool of one connection, which queues fairly, and
//! begin with `BEGIN IMMEDIATE`; reads have connections of their own, which WAL never
//! blocks. `synchronous=FULL`: a committed intent to rent must survive a power cut, else an
//! instance is paid for that nobody knows; at our rates the extra sync costs nothing. Turns of a
//! provider's budget alone do without it ([`Db::change_unsynced`]).
//!
//! PostgreSQL lets everybody write, so what the one writer gave for nothing is asked for by
//! name. A transaction first locks the row that decides (`FOR_UPDATE`) and reads after that:
//! at READ COMMITTED each statement sees all that was committed before it. Locks are taken in
//! one order (workspace, workflow, snapshot, instance; a machine's statistics before its
//! blocks), so that nobody waits in a circle. Should one be found all the same, PostgreSQL
//! undoes one transaction whole and [`transact`] begins it anew. Else only what has
//! no effect is repeated (reads, and beginnings, on another connection): a write whose reply was
//! lost may have happened, and only its caller knows by which id to look.

mod inspect;
mod postgres;
mod sqlite;
#[cfg(test)]
mod tests;

use crate::column::{Arg, Record};
use crate::error::{Error, Result};
use futures::TryStreamExt as _;
use postgres::{again, live};
use sqlx::postgres::{PgPool, PgRow};
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{Decode, Postgres, Row as _, Sqlite, Transaction, Type};

/// One statement, in each engine's text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sql {
    pub sqlite: &'static str,
    pub postgres: &'static str,
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
    // Stamps of what is remembered (memory.rs, migration 0014): every change with a lower one is in
    // this snapshot; none that this database ever made has this one; whose stamps they are.
    (HORIZON) => {
        "(SELECT next FROM stamps)"
    };
    (AHEAD) => {
        "9223372036854775807"
    };
    (LIFE) => {
        "0"
    };
    ($text:literal) => {
        $text
    };
}
pub(crate) use sqlite_dialect;

/// What PostgreSQL writes for them.
macro_rules! postgres_dialect {
    // The clock of this moment: `now()` stands still while a transaction runs.
    (NOW) => {
        "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)"
    };
    // As strong as an UPDATE's own lock; rows that refer to this one may still be inserted.
    (FOR_UPDATE) => {
        " FOR NO KEY UPDATE"
    };
    (SKIP_LOCKED) => {
        " SKIP LOCKED"
    };
    (EACH_2) => {
        "jsonb_array_elements_text(CAST($2 AS jsonb)) AS each(value)"
    };
    (HORIZON) => {
        "CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS TEXT) AS BIGINT)"
    };
    // Rows restored from another cluster may have stamps that this one has yet to reach.
    (AHEAD) => {
        "CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS TEXT) AS BIGINT)"
    };
    // A start of the server, after which another history may have taken the place of this one, and
    // the tables' own storage, which a restore into a running server makes anew.
    (LIFE) => {
        "CAST(EXTRACT(EPOCH FROM pg_postmaster_start_time()) * 1000000 AS BIGINT) \
         + CAST(pg_relation_filenode('machine_stats') AS BIGINT)"
    };
    ($text:literal) => {
        $text
    };
}
pub(crate) use postgres_dialect;

/// Declares a file's statements, and lists them for the test that prepares every one.
macro_rules! statements {
    ($($(#[$meta:meta])* $name:ident: [$($part:tt)+];)+) => {
        $($(#[$meta])* const $name: $crate::engine::Sql = $crate::engine::Sql {
            sqlite: concat!($($crate::engine::sqlite_dialect!($part)),+),
            postgres: concat!($($crate::engine::postgres_dialect!($part)),+),
        };)+
        #[cfg(test)]
        pub(crate) const STATEMENTS: &[(&str, $crate::engine::Sql)] = &[$((stringify!($name), $name)),+];
    };
}
pub use inspect::Inspection;
pub(crate) use statements;

/// A connected database. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) enum Db {
    Sqlite { write: SqlitePool, read: SqlitePool },
    Postgres(PgPool),
}

/// A write transaction; rolled back when dropped.
#[derive(Debug)]
pub(crate) enum Tx {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

/// One row of an answer.
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Row {
    pub(crate) fn get<T>(&self, column: &'static str) -> Result<T>
    where
        T: for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres>,
    {
        let got = match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
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
            Arg::Text(v) => q.bind(v.map(storable)),
            Arg::Bool(v) => q.bind(v),
            Arg::Bytes(v) => q.bind(v),
        })
    };
}

/// PostgreSQL has no NUL in texts, and what a hostile machine printed may hold one.
fn storable(text: String) -> String {
    if text.contains('\0') {
        text.replace('\0', "\u{fffd}")
    } else {
        text
    }
}

impl Db {
    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite { write, read } => {
                read.close().await;
                write.close().await;
            }
            Self::Postgres(pool) => pool.close().await,
        }
    }

    /// Reads, outside any transaction.
    pub(crate) async fn all<T: Record>(&self, sql: Sql, args: Vec<Arg>) -> Result<Vec<T>> {
        match self {
            Self::Sqlite { read, .. } => {
                let rows = bound!(sql.sqlite, args).fetch_all(read).await?;
                rows.into_iter().map(|row| T::read(&Row::Sqlite(row))).collect()
            }
            Self::Postgres(pool) => {
                let mut tries = 0;
                let rows = loop {
                    match bound!(sql.postgres, args.clone()).fetch_all(pool).await {
                        Err(error) if again(&error, tries) => tries += 1,
                        done => break done?,
                    }
                };
                rows.into_iter().map(|row| T::read(&Row::Postgres(row))).collect()
            }
        }
    }

    /// Reads row by row, for answers that memory should not hold whole. Not repeated.
    pub(crate) async fn each<T: Record>(
        &self,
        sql: Sql,
        args: Vec<Arg>,
        mut visit: impl FnMut(T),
    ) -> Result<()> {
        match self {
            Self::Sqlite { read, .. } => {
                let mut rows = bound!(sql.sqlite, args).fetch(read);
                while let Some(row) = rows.try_next().await? {
                    visit(T::read(&Row::Sqlite(row))?);
                }
            }
            Self::Postgres(pool) => {
                let mut rows = bound!(sql.postgres, args).fetch(pool);
                while let Some(row) = rows.try_next().await? {
                    visit(T::read(&Row::Postgres(row))?);
                }
            }
        }
        Ok(())
    }

    /// Reads the first row.
    pub(crate) async fn first<T: Record>(&self, sql: Sql, args: Vec<Arg>) -> Result<Option<T>> {
        Ok(self.all(sql, args).await?.into_iter().next())
    }

    /// One writing statement, a transaction by itself; the number of rows it touched.
    pub(crate) async fn run(&self, sql: Sql, args: Vec<Arg>) -> Result<u64> {
        let mut tries = 0;
        loop {
            let args = args.clone();
            let done = match self {
                Self::Sqlite { write, .. } => {
                    let done = bound!(sql.sqlite, args).execute(write).await;
                    done.map(|done| done.rows_affected())
                }
                Self::Postgres(pool) => {
                    let mut conn = live(pool).await?;
                    let done = bound!(sql.postgres, args).execute(&mut *conn).await;
                    done.map(|done| done.rows_affected())
                }
            };
            match done.map_err(Error::from) {
                Err(error) if error.is_collision() && tries < COLLISIONS => tries += 1,
                done => return done,
            }
        }
    }

    /// [`Self::run`] for a statement that returns what it has changed.
    pub(crate) async fn change<T: Record>(&self, sql: Sql, args: Vec<Arg>) -> Result<Vec<T>> {
        match self {
            Self::Sqlite { write, .. } => {
                let rows = bound!(sql.sqlite, args).fetch_all(write).await?;
                rows.into_iter().map(|row| T::read(&Row::Sqlite(row))).collect()
            }
            Self::Postgres(pool) => {
                let rows = bound!(sql.postgres, args).fetch_all(pool).await?;
                rows.into_iter().map(|row| T::read(&Row::Postgres(row))).collect()
            }
        }
    }

    /// [`Self::change`] for what may be lost with the power, though not with the process: SQLite does
    /// not wait for the disk. The next commit that does takes it along.
    pub(crate) async fn change_unsynced<T: Record>(&self, sql: Sql, args: Vec<Arg>) -> Result<Vec<T>> {
        let Self::Sqlite { write, .. } = self else {
            return self.change(sql, args).await;
        };
        let write = write.clone();
        // A task of its own: who asks may give up or look away, and then write. The one connection
        // would be left as it should not be, or never.
        let work = tokio::spawn(async move {
            let mut connection = write.acquire().await?;
            sqlx::query(DO_NOT_WAIT).execute(&mut *connection).await?;
            let rows = bound!(sql.sqlite, args).fetch_all(&mut *connection).await;
            if let Err(error) = sqlx::query(WAIT).execute(&mut *connection).await {
                connection.close().await?;
                return Err(error);
            }
            rows
        });
        let rows = work.await.map_err(|_| sqlx::Error::WorkerCrashed)??;
        rows.into_iter().map(|row| T::read(&Row::Sqlite(row))).collect()
    }

    /// For [`transact`] alone.
    pub(crate) async fn begin(&self) -> Result<Tx> {
        match self {
            Self::Sqlite { write, .. } => Ok(Tx::Sqlite(write.begin_with("BEGIN IMMEDIATE").await?)),
            Self::Postgres(pool) => {
                let mut tries = 0;
                loop {
                    match pool.begin().await {
                        Err(error) if again(&error, tries) => tries += 1,
                        begun => break Ok(Tx::Postgres(begun?)),
                    }
                }
            }
        }
    }
}

/// For the disk. In WAL mode the file stays whole either way.
const DO_NOT_WAIT: &str = "PRAGMA synchronous = NORMAL";
const WAIT: &str = "PRAGMA synchronous = FULL";

/// How often a transaction is begun anew that PostgreSQL undid for the sake of another.
pub(crate) const COLLISIONS: u32 = 10;

/// `transact!(db, |tx| work)`: a write transaction, committed if `work` succeeds and undone if
/// it fails. `work` is the inside of an async block; it may run several times, and has no
/// effect but through `tx`. (A macro, because of a closure the compiler cannot tell that its
/// future may cross threads.)
macro_rules! transact {
    ($db:expr, |$tx:ident| $work:expr) => {{
        let mut tries = 0;
        loop {
            let mut transaction = $db.begin().await?;
            let done: $crate::Result<_> = {
                let $tx = &mut transaction;
                async { $work }.await
            };
            match transaction.end(done).await {
                Err(error) if error.is_collision() && tries < $crate::engine::COLLISIONS => tries += 1,
                done => break done,
            }
        }
    }};
}
pub(crate) use transact;

impl Tx {
    /// Every row is fetched: a statement with RETURNING takes effect whole or not at all.
    pub(crate) async fn all<T: Record>(&mut self, sql: Sql, args: Vec<Arg>) -> Result<Vec<T>> {
        match self {
            Self::Sqlite(tx) => {
                let rows = bound!(sql.sqlite, args).fetch_all(&mut **tx).await?;
                rows.into_iter().map(|row| T::read(&Row::Sqlite(row))).collect()
            }
            Self::Postgres(tx) => {
                let rows = bound!(sql.postgres, args).fetch_all(&mut **tx).await?;
                rows.into_iter().map(|row| T::read(&Row::Postgres(row))).collect()
            }
        }
    }

    pub(crate) async fn first<T: Record>(&mut self, sql: Sql, args: Vec<Arg>) -> Result<Option<T>> {
        Ok(self.all(sql, args).await?.into_iter().next())
    }

    pub(crate) async fn run(&mut self, sql: Sql, args: Vec<Arg>) -> Result<u64> {
        match self {
            Self::Sqlite(tx) => Ok(bound!(sql.sqlite, args).execute(&mut **tx).await?.rows_affected()),
            Self::Postgres(tx) => Ok(bound!(sql.postgres, args)
                .execute(&mut **tx)
                .await?
                .rows_affected()),
        }
    }

    /// For [`transact`] alone. What was already lost with its connection is undone as well.
    pub(crate) async fn end<T>(self, done: Result<T>) -> Result<T> {
        match (self, &done) {
            (Self::Sqlite(tx), Ok(_)) => tx.commit().await?,
            (Self::Postgres(tx), Ok(_)) => tx.commit().await?,
            (Self::Sqlite(tx), Err(_)) => drop(tx.rollback().await),
            (Self::Postgres(tx), Err(_)) => drop(tx.rollback().await),
        }
        done
    }
}
