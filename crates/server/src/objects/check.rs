//! What a store finds out about itself, one line each: what every store must do, tried with one
//! small object under a name of its own.

use super::{ObjectError, ObjectStore};
use crate::check::Check;
use ulid::Ulid;

/// What went wrong, with the store's own word and its hint.
pub fn failed(name: &'static str, error: &ObjectError) -> Check {
    Check::failed(name, format!("{error} ({})", error.code()), error.hint())
}

/// List, put, get, delete. Stops at the first that fails, since the others build on it.
pub async fn basics(store: &dyn ObjectStore) -> Vec<Check> {
    let key = format!("doctor/{}", Ulid::generate());
    let mut checks = Vec::new();
    if let Err((name, error)) = try_basics(store, &key, &mut checks).await {
        checks.push(failed(name, &error));
        // Whatever was left behind; it is ours alone.
        let _ = store.delete(&key).await;
    }
    checks
}

/// Whether a key that is taken is refused, where the store itself promises it.
pub async fn refuses_to_overwrite(store: &dyn ObjectStore) -> Check {
    const NAME: &str = "store conditions";
    let key = format!("doctor/{}", Ulid::generate());
    let tried = async {
        store.put(&key, b"one").await?;
        store.put(&key, b"another").await
    };
    let found = match tried.await {
        Err(ObjectError::Exists(_)) => Check::ok(NAME, "an object is never overwritten"),
        Err(e) => failed(NAME, &e),
        Ok(_) => Check::failed(
            NAME,
            "a second write under the same key was taken",
            "the store must refuse to overwrite; look at what else writes there",
        ),
    };
    let _ = store.delete(&key).await;
    found
}

type Tried<T> = Result<T, (&'static str, ObjectError)>;

async fn try_basics(store: &dyn ObjectStore, key: &str, checks: &mut Vec<Check>) -> Tried<()> {
    let body = b"dumont doctor";
    let differs = |what: &str| ObjectError::Io(std::io::Error::other(what.to_owned()));
    // First, as it needs the least: a wrong key or bucket shows here.
    store.list("doctor/").await.map_err(|e| ("store list", e))?;
    store.put(key, body).await.map_err(|e| ("store put", e))?;
    let listed = store.list("doctor/").await.map_err(|e| ("store list", e))?;
    if !listed.iter().any(|o| o.key == key && o.size == body.len() as u64) {
        return Err(("store list", differs("what was just written is not listed")));
    }
    checks.push(Check::ok("store list", "shows what was written"));
    checks.push(Check::ok("store put", format!("{} bytes", body.len())));
    if store.get(key).await.map_err(|e| ("store get", e))? != body {
        return Err(("store get", differs("what was read is not what was written")));
    }
    checks.push(Check::ok("store get", "the bytes that were written"));
    store.delete(key).await.map_err(|e| ("store delete", e))?;
    if store.head(key).await.map_err(|e| ("store delete", e))?.is_some() {
        return Err(("store delete", differs("what was deleted is still there")));
    }
    checks.push(Check::ok("store delete", "gone"));
    Ok(())
}
