//! Which database: PostgreSQL when anybody says so, else the file in the data directory.

use super::{Settings, Value};
use crate::fail::usage;
use anyhow::Result;
use dumont_server::Database;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

const PARTS: [&str; 5] = ["DB_USER", "DB_PASSWORD", "DB_HOST", "DB_PORT", "DB_NAME"];

impl Settings {
    /// `DATABASE_URL` wins; any of the `DB_*` asks for PostgreSQL as well.
    pub fn database(&self) -> Result<Database> {
        if let Some(url) = self.text("DATABASE_URL") {
            return Ok(Database::Postgres { url: url.to_owned() });
        }
        let Some(asked) = PARTS.iter().find(|name| self.value(name).is_some()) else {
            return Ok(Database::Embedded);
        };
        let url = self.composed_url(asked)?;
        Ok(Database::Postgres { url })
    }

    /// What `config show` says in one line, without the secrets.
    pub fn database_in_words(&self) -> Result<String> {
        Ok(match self.database()? {
            Database::Embedded => "SQLite in the data directory".into(),
            Database::Postgres { url } => super::redacted(&url),
        })
    }

    fn composed_url(&self, asked: &str) -> Result<String> {
        let needed = |name: &'static str| {
            let source = self.value(asked).map(|v: &Value| v.source.to_string());
            self.text(name).ok_or_else(|| {
                usage(
                    format!("{asked} asks for PostgreSQL, but {name} is not set"),
                    format!(
                        "set {name}, or DATABASE_URL, or remove {asked} (from {})",
                        source.unwrap_or_default()
                    ),
                )
            })
        };
        let (user, name) = (encoded(needed("DB_USER")?), encoded(needed("DB_NAME")?));
        let password = self.text("DB_PASSWORD").map(|p| format!(":{}", encoded(p)));
        let host = match self.text("DB_HOST").unwrap_or("localhost") {
            host if host.starts_with('/') => encoded(host),
            host if host.contains(':') && !host.starts_with('[') => format!("[{host}]"),
            host => host.to_owned(),
        };
        let port = self.text("DB_PORT").unwrap_or("5432");
        let password = password.unwrap_or_default();
        Ok(format!("postgres://{user}{password}@{host}:{port}/{name}"))
    }
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}
