//! The database: reachable, of a schema we know, with a clock near ours.

use super::{Check, clock};
use crate::settings::{Database, ServerConfig};
use dumont_core::time::Timestamp;
use dumont_store::{Inspection, Store};
use std::path::Path;
use std::time::{Duration, SystemTime};

const NAME: &str = "database";
const PATIENCE: Duration = Duration::from_secs(15);

pub async fn examine(config: &ServerConfig) -> Vec<Check> {
    match &config.database {
        Database::Embedded => embedded(&config.data_dir.join("dumont.db")).await,
        Database::Postgres { url } => {
            let hint =
                "does it run, and do DATABASE_URL or DB_* lead to it? `dumont config show` prints them";
            look("the address that is set", hint, Store::inspect_postgres(url)).await
        }
    }
}

async fn embedded(path: &Path) -> Vec<Check> {
    if !path.exists() {
        return vec![Check::warning(
            NAME,
            format!("{} does not exist yet", path.display()),
            "the first `dumont serve` makes it",
        )];
    }
    let hint = "is the file a database of dumont, may you read it, and what holds a lock on it (`fuser`)? \
                Restore it from a backup if it is damaged";
    look(&path.display().to_string(), hint, Store::inspect(path)).await
}

async fn look(
    place: &str,
    hint: &str,
    inspect: impl Future<Output = dumont_store::Result<Inspection>>,
) -> Vec<Check> {
    let asked = now();
    let found = match tokio::time::timeout(PATIENCE, inspect).await {
        Ok(Ok(found)) => found,
        Ok(Err(e)) => return vec![Check::failed(NAME, format!("{place}: {e}"), hint)],
        Err(_) => {
            let detail = format!("{place} does not answer within {} s", PATIENCE.as_secs());
            return vec![Check::failed(NAME, detail, hint)];
        }
    };
    // Half of the way there and back belongs to neither clock.
    let answered = now();
    let middle = Timestamp(asked.0 + (answered.0 - asked.0) / 2);
    vec![
        Check::ok(NAME, format!("{} at {place}", found.version)),
        migrations(&found),
        clock("database clock", "the database", found.now.millis_since(middle)),
    ]
}

fn now() -> Timestamp {
    Timestamp::from_system(SystemTime::now())
}

/// A schema that is older is brought up to date at the next start, a newer one cannot be used.
fn migrations(found: &Inspection) -> Check {
    let name = "database schema";
    let newest = found.applied.last().copied().unwrap_or(0);
    let unknown = found.applied.iter().any(|v| !found.known.contains(v));
    let pending = found.known.iter().filter(|v| !found.applied.contains(v)).count();
    match (unknown, pending) {
        (true, _) => Check::failed(
            name,
            format!("version {newest} is of a newer dumont"),
            "use that newer dumont; an older one would damage what it does not know",
        ),
        (false, 0) => Check::ok(name, format!("version {newest}, up to date")),
        (false, n) => Check::warning(
            name,
            format!("version {newest}, {n} to be applied"),
            "the next `dumont serve` applies them; make a backup first",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn an_older_schema_waits_and_a_newer_one_is_refused() {
        let of = |applied: &[i64]| {
            migrations(&Inspection {
                version: "X".into(),
                applied: applied.to_vec(),
                known: vec![1, 2],
                now: Timestamp(0),
            })
        };
        assert_eq!(of(&[1, 2]).level, Level::Ok);
        assert_eq!(of(&[1]).level, Level::Warning);
        assert_eq!(of(&[]).level, Level::Warning);
        assert_eq!(of(&[1, 2, 3]).level, Level::Failed);
        assert_eq!(of(&[1, 3]).level, Level::Failed);
    }
}
