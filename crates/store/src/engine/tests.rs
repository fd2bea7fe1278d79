use super::*;
use crate::column::args;
use dumont_temp_postgres::Cluster;
use sqlx::{Executor as _, SqlStr};
use std::path::{Path, PathBuf};

/// Messages of the statements that a connection refuses to prepare.
macro_rules! refused {
    ($pool:expr, $text:ident) => {{
        let mut wrong = Vec::new();
        for (file, statements) in crate::all_statements() {
            for (name, sql) in statements {
                let mut conn = $pool.acquire().await.unwrap();
                if let Err(e) = conn.prepare(SqlStr::from_static(sql.$text)).await {
                    wrong.push(format!("{file} {name}: {e}\n{}", sql.$text));
                }
            }
        }
        wrong.join("\n\n")
    }};
}

#[tokio::test]
async fn every_statement_can_be_prepared_on_sqlite() {
    let Db::Sqlite { write, .. } = Db::open_sqlite_in_memory().await.unwrap() else {
        unreachable!();
    };
    let wrong = refused!(write, sqlite);
    assert!(wrong.is_empty(), "{wrong}");
}

#[tokio::test]
async fn every_statement_can_be_prepared_on_postgres() {
    let (_cluster, url) = postgres();
    let Db::Postgres(pool) = Db::open_postgres(&url).await.unwrap() else {
        unreachable!();
    };
    let wrong = refused!(pool, postgres);
    assert!(wrong.is_empty(), "{wrong}");
}

/// So that the tests above really see every statement.
#[test]
fn every_file_with_statements_is_listed() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found: Vec<String> = std::fs::read_dir(src)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
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

/// A schema's number means the same on both engines.
#[test]
fn both_folders_hold_the_same_names() {
    let names = |engine: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("migrations")
            .join(engine);
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("sqlite"), names("postgres"));
}

/// See the head of migrations/postgres/0001_first_slice.sql.
#[tokio::test]
async fn every_text_on_postgres_collates_by_bytes() {
    let (cluster, url) = postgres();
    Db::open_postgres(&url).await.unwrap().close().await;
    let others = cluster
        .sql(
            "dumont",
            "SELECT table_name || '.' || column_name FROM information_schema.columns \
             WHERE table_schema = 'public' AND data_type IN ('text', 'character varying') \
             AND collation_name IS DISTINCT FROM 'C' AND table_name <> '_sqlx_migrations'",
        )
        .unwrap();
    assert_eq!(others, "", "these need COLLATE \"C\"");
}

fn postgres() -> (Cluster, String) {
    let cluster = Cluster::start().unwrap();
    let url = cluster.create_database("dumont").unwrap();
    (cluster, url)
}

/// A database of one engine, and a way to do in it what dumont never would.
enum Meddle {
    Sqlite(tempfile::TempDir),
    Postgres(Cluster, String),
}

impl Meddle {
    fn both() -> [Self; 2] {
        let (cluster, url) = postgres();
        [
            Self::Sqlite(tempfile::TempDir::new().unwrap()),
            Self::Postgres(cluster, url),
        ]
    }

    fn path(dir: &tempfile::TempDir) -> PathBuf {
        dir.path().join("dumont.db")
    }

    async fn open(&self) -> Result<crate::Store> {
        match self {
            Self::Sqlite(dir) => crate::Store::open(Self::path(dir)).await,
            Self::Postgres(_, url) => crate::Store::connect(url).await,
        }
    }

    /// Runs one statement as another program would.
    async fn run(&self, sql: &'static str) {
        match self {
            Self::Sqlite(dir) => {
                let url = format!("sqlite://{}", Self::path(dir).display());
                let pool = SqlitePool::connect(&url).await.unwrap();
                sqlx::query(sql).execute(&pool).await.unwrap();
                pool.close().await;
            }
            Self::Postgres(cluster, _) => drop(cluster.sql("dumont", sql).unwrap()),
        }
    }
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    for db in Meddle::both() {
        db.open().await.unwrap().close().await;
        db.run(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             VALUES (9999, 'later', TRUE, 'x', 0)",
        )
        .await;
        let refused = db.open().await;
        assert!(
            matches!(refused, Err(Error::NewerSchema { version: 9999 })),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn a_value_that_cannot_be_read_names_its_column() {
    for db in Meddle::both() {
        let store = db.open().await.unwrap();
        db.run(
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

#[tokio::test]
async fn an_address_that_cannot_be_used_is_refused_without_its_secret() {
    for url in [
        "mysql://u:hidden@h/d",
        "postgres://u:hidden@h:port/d",
        "hidden",
        "postgres://u:hidden@h/d?sslmode=hidden",
    ] {
        let refused = crate::Store::connect(url).await.unwrap_err();
        assert!(matches!(refused, Error::BadUrl(_)), "{url}: {refused:?}");
        assert!(!format!("{refused} {refused:?}").contains("hidden"));
    }
}

#[tokio::test]
async fn a_database_that_cannot_keep_every_text_is_refused() {
    let (cluster, _) = postgres();
    cluster
        .sql(
            "postgres",
            "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0 LOCALE_PROVIDER libc",
        )
        .unwrap();
    let refused = crate::Store::connect(&cluster.url("latin")).await;
    assert!(matches!(refused, Err(Error::Encoding { .. })), "{refused:?}");
}

#[tokio::test]
async fn who_is_not_there_and_who_is_not_let_in_are_told_apart() {
    let (cluster, _) = postgres();
    // Over the network, with a password full of what URLs do not like.
    crate::Store::connect(&cluster.tcp_url("dumont"))
        .await
        .unwrap()
        .close()
        .await;
    let wrong = format!("postgres://postgres:wrong@127.0.0.1:{}/dumont", cluster.port());
    let refused = crate::Store::connect(&wrong).await;
    assert!(matches!(refused, Err(Error::Database(_))), "{refused:?}");
    cluster.stop(dumont_temp_postgres::Stop::Fast);
    let refused = crate::Store::connect(&cluster.tcp_url("dumont")).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
}

/// Whoever writes after a turn waits for the disk again, though nobody waited for the turn's end.
#[tokio::test]
async fn a_write_that_does_not_wait_for_the_disk_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open_sqlite(&dir.path().join("dumont.db")).await.unwrap();
    let Db::Sqlite { write, .. } = &db else {
        unreachable!();
    };
    let level = async || -> i64 {
        let asked = sqlx::query_scalar("PRAGMA synchronous").fetch_one(write);
        asked.await.unwrap()
    };
    let full = level().await;
    assert_eq!(full, 2, "FULL");
    let add = Sql {
        sqlite: "INSERT INTO meta (key, value) VALUES ($1, 'x') RETURNING value",
        postgres: "",
    };
    for n in 0..50 {
        let turn = db.change_unsynced::<Value>(add, args![format!("k{n}")]);
        if n % 2 == 0 {
            assert_eq!(turn.await.unwrap().len(), 1);
        } else {
            let mut turn = Box::pin(turn);
            for _ in 0..n / 2 {
                if futures::poll!(turn.as_mut()).is_ready() {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        }
        assert_eq!(level().await, full, "after {n}");
    }
    // A statement that fails is no exception.
    assert!(db.change_unsynced::<Value>(add, args!["k0"]).await.is_err());
    assert_eq!(level().await, full);
}

struct Value;

impl Record for Value {
    fn read(row: &Row) -> Result<Self> {
        row.get::<String>("value").map(|_| Self)
    }
}
