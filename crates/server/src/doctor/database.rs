//! The database: reachable, of a schema we know, with a clock near ours.

use super::{Check, clock};
use crate::settings::ServerConfig;
use dumont_core::time::Timestamp;
use dumont_store::{Inspection, Store};
use std::time::{Duration, SystemTime};

const PATIENCE: Duration = Duration::from_secs(15);

pub async fn examine(config: &ServerConfig) -> Vec<Check> {
    let name = "database";
    let path = config.data_dir.join("dumont.db");
    if !path.exists() {
        return vec![Check::warning(
            name,
            format!("{} does not exist yet", path.display()),
            "the first `dumont serve` makes it",
        )];
    }
    let asked = now();
    let found = match tokio::time::timeout(PATIENCE, Store::inspect(&path)).await {
        Ok(Ok(found)) => found,
        Ok(Err(e)) => {
            let hint = "is the file a database of dumont, and may you read it? Restore it from a backup if it is damaged";
            return vec![Check::failed(name, format!("{}: {e}", path.display()), hint)];
        }
        Err(_) => {
            let detail = format!(
                "{} does not answer within {} s",
                path.display(),
                PATIENCE.as_secs()
            );
            return vec![Check::failed(
                name,
                detail,
                "what holds a lock on it? `fuser` shows",
            )];
        }
    };
    // Half of the way there and back belongs to neither clock.
    let answered = now();
    let middle = Timestamp(asked.0 + (answered.0 - asked.0) / 2);
    vec![
        Check::ok(name, format!("{} at {}", found.version, path.display())),
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
