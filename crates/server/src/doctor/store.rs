//! The object store: what every store must do, tried with one small object.

use super::Check;
use crate::objects::file::FileStore;
use crate::objects::s3::{S3Config, S3Store};
use crate::objects::{self, ObjectError, ObjectStore};
use crate::settings::ServerConfig;
use ulid::Ulid;

pub async fn examine(config: &ServerConfig) -> Vec<Check> {
    if let Some(bucket) = &config.s3 {
        return examine_bucket(bucket).await;
    }
    let root = config.data_dir.join("objects");
    if !root.exists() {
        return vec![Check::warning(
            "store",
            format!("{} does not exist yet", root.display()),
            "the first `dumont serve` makes it",
        )];
    }
    // It signs nothing here, so any secret does.
    match FileStore::open(&root, [0; 32]) {
        Ok(store) => {
            let mut checks = vec![Check::ok("store", format!("files in {}", root.display()))];
            checks.extend(basics(&store).await);
            checks
        }
        Err(e) => vec![failed("store", &e)],
    }
}

/// The bucket that `serve` would use, by the store's own look at itself. No database is opened
/// for it: what was found out earlier is tried again.
async fn examine_bucket(config: &S3Config) -> Vec<Check> {
    let store = match S3Store::new(config.clone(), None) {
        Ok(store) => store,
        Err(e) => {
            let hint = "`dumont config show` prints the bucket's settings; correct the one that is named";
            return vec![Check::failed("store", e.to_string(), hint)];
        }
    };
    let mut checks = vec![Check::ok("store", format!("objects in {}", store.describe()))];
    checks.extend(store.examine().await.into_iter().map(shown));
    checks
}

fn shown(found: objects::Check) -> Check {
    let name = match found.name {
        "list" => "store list",
        "put" => "store put",
        "get" => "store get",
        "delete" => "store delete",
        "clock" => "store clock",
        "reach" => "store reach",
        "conditions" => "store conditions",
        "versions" => "store versions",
        "signed_lengths" => "store lengths",
        other => other,
    };
    match found.level {
        objects::Level::Ok => Check::ok(name, found.detail),
        objects::Level::Warning => Check::warning(name, found.detail, found.hint),
        objects::Level::Failed => Check::failed(name, found.detail, found.hint),
    }
}

/// List, put, get, conditions, delete. Stops at the first that fails: the others build on it.
pub async fn basics(store: &dyn ObjectStore) -> Vec<Check> {
    let key = format!("doctor/{}", Ulid::generate());
    let mut checks = Vec::new();
    if let Err((name, error)) = try_basics(store, &key, &mut checks).await {
        checks.push(failed(name, &error));
        // Whatever was left behind is ours alone.
        let _ = store.delete(&key).await;
    }
    checks
}

type Tried<T> = Result<T, (&'static str, ObjectError)>;

async fn try_basics(store: &dyn ObjectStore, key: &str, checks: &mut Vec<Check>) -> Tried<()> {
    let body = b"dumont doctor";
    let differs = |what: &str| ObjectError::Io(std::io::Error::other(what.to_owned()));
    store.list("doctor/").await.map_err(|e| ("store list", e))?;
    store.put(key, body).await.map_err(|e| ("store put", e))?;
    checks.push(Check::ok("store put", format!("{} bytes", body.len())));
    let listed = store.list("doctor/").await.map_err(|e| ("store list", e))?;
    if !listed.iter().any(|o| o.key == key && o.size == body.len() as u64) {
        return Err(("store list", differs("what was just written is not listed")));
    }
    checks.push(Check::ok("store list", "shows what was written"));
    if store.get(key).await.map_err(|e| ("store get", e))? != body {
        return Err(("store get", differs("what was read is not what was written")));
    }
    checks.push(Check::ok("store get", "the bytes that were written"));
    checks.push(match store.put(key, b"another").await {
        Err(ObjectError::Exists(_)) => Check::ok("store conditions", "an object is never overwritten"),
        Err(e) => return Err(("store conditions", e)),
        Ok(()) => Check::failed(
            "store conditions",
            "a second write under the same key was taken",
            "the store must refuse to overwrite; look at what else writes there",
        ),
    });
    store.delete(key).await.map_err(|e| ("store delete", e))?;
    if store.head(key).await.map_err(|e| ("store delete", e))?.is_some() {
        return Err(("store delete", differs("what was deleted is still there")));
    }
    checks.push(Check::ok("store delete", "gone"));
    Ok(())
}

fn failed(name: &'static str, error: &ObjectError) -> Check {
    let hint = match error {
        ObjectError::Full(_) => "free some space or move the data directory",
        _ => "check owner, mode and free space of the store",
    };
    Check::failed(name, error.to_string(), hint)
}
