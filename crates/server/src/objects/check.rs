//! What `dumont doctor` finds out about a store, one line each.

use super::{ObjectError, ObjectStore};
use serde::Serialize;
use ulid::Ulid;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Ok,
    /// It works, but less safely or less well than it could.
    Warning,
    Failed,
}

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub level: Level,
    pub detail: String,
    /// Empty where nothing is to be done.
    pub hint: String,
}

impl Check {
    pub fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self::new(name, Level::Ok, detail, "")
    }

    pub fn warning(name: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(name, Level::Warning, detail, hint)
    }

    pub fn failed(name: &'static str, error: &ObjectError) -> Self {
        Self::new(
            name,
            Level::Failed,
            format!("{} ({})", error, error.code()),
            error.hint(),
        )
    }

    fn new(name: &'static str, level: Level, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            name,
            level,
            detail: detail.into(),
            hint: hint.into(),
        }
    }
}

/// List, put, get, delete: what every store must do. Stops at the first that fails, since the
/// others build on it.
pub async fn basics(store: &dyn ObjectStore) -> Vec<Check> {
    let key = format!("doctor/{}", Ulid::generate());
    let mut checks = Vec::new();
    if let Err((name, error)) = try_basics(store, &key, &mut checks).await {
        checks.push(Check::failed(name, &error));
        // Whatever was left behind; it is ours alone.
        let _ = store.delete(&key).await;
    }
    checks
}

async fn try_basics(
    store: &dyn ObjectStore,
    key: &str,
    checks: &mut Vec<Check>,
) -> Result<(), (&'static str, ObjectError)> {
    let body = b"dumont doctor";
    let differs = |what: &str| ObjectError::Io(std::io::Error::other(what.to_owned()));
    store.list("doctor/").await.map_err(|e| ("list", e))?;
    checks.push(Check::ok("list", store.describe()));
    store.put(key, body).await.map_err(|e| ("put", e))?;
    checks.push(Check::ok("put", key));
    let got = store.get(key).await.map_err(|e| ("get", e))?;
    let listed = store.list("doctor/").await.map_err(|e| ("list", e))?;
    if got != body {
        return Err(("get", differs("what was read is not what was written")));
    }
    if !listed.iter().any(|o| o.key == key && o.size == body.len() as u64) {
        return Err(("list", differs("what was just written is not listed")));
    }
    checks.push(Check::ok("get", format!("{} bytes, as written", got.len())));
    store.delete(key).await.map_err(|e| ("delete", e))?;
    if store.head(key).await.map_err(|e| ("delete", e))?.is_some() {
        return Err(("delete", differs("what was deleted is still there")));
    }
    checks.push(Check::ok("delete", "gone"));
    Ok(())
}
