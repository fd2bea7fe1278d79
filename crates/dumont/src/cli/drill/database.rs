//! The drill's database: embedded, or PostgreSQL.

use crate::config::Globals;
use crate::fail::fail;
use anyhow::Result;
use dumont_server::Database;
use dumont_store::Store;
use dumont_temp_postgres::Cluster;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Engine {
    Sqlite,
    Postgres,
}

/// What the drill's server is given; a temporary one ends with this value.
pub enum DrillDatabase {
    Embedded,
    Given { url: String },
    Temporary { _cluster: Cluster, url: String },
}

impl DrillDatabase {
    pub async fn prepare(engine: Engine, globals: &Globals) -> Result<Self> {
        if engine == Engine::Sqlite {
            return Ok(Self::Embedded);
        }
        if let Database::Postgres { url } = globals.settings()?.database()? {
            refuse_used(&url).await?;
            return Ok(Self::Given { url });
        }
        let no_postgres = |e: dumont_temp_postgres::Error| {
            fail(
                "no_postgres",
                format!("cannot start a temporary PostgreSQL: {e}"),
                "install it (apt-get install postgresql), or set DATABASE_URL to an empty database",
            )
        };
        let cluster = Cluster::start().map_err(no_postgres)?;
        let url = cluster.create_database("drill").map_err(no_postgres)?;
        Ok(Self::Temporary {
            _cluster: cluster,
            url,
        })
    }

    pub fn url(&self) -> Option<String> {
        match self {
            Self::Embedded => None,
            Self::Given { url } | Self::Temporary { url, .. } => Some(url.clone()),
        }
    }

    pub fn in_words(&self) -> &'static str {
        match self {
            Self::Embedded => "SQLite",
            Self::Given { .. } => "PostgreSQL",
            Self::Temporary { .. } => "temporary PostgreSQL",
        }
    }
}

/// The drill's server has a made-up market: on the database of a real one it would take the
/// real workspaces for its own and their machines for lost.
async fn refuse_used(url: &str) -> Result<()> {
    let store = Store::connect(url).await?;
    let owner = store.meta("controller_id").await?;
    store.close().await;
    match owner {
        None => Ok(()),
        Some(_) => Err(fail(
            "database_in_use",
            "the database that is set was used by a dumont before",
            "give the drill an empty one (DATABASE_URL), or unset DATABASE_URL and DB_* for a temporary one",
        )),
    }
}
