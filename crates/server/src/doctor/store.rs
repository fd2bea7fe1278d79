//! The object store that `serve` would use, by the store's own look at itself.

use super::Check;
use crate::objects::file::FileStore;
use crate::objects::s3::{S3Config, S3Store};
use crate::objects::{ObjectStore, failed};
use crate::settings::ServerConfig;

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
        Ok(store) => looked_at(&store).await,
        Err(e) => vec![failed("store", &e)],
    }
}

/// No database is opened for it: what was found out earlier is tried again.
async fn examine_bucket(config: &S3Config) -> Vec<Check> {
    match S3Store::new(config.clone(), None) {
        Ok(store) => looked_at(&store).await,
        Err(e) => {
            let hint = "`dumont config show` prints the bucket's settings; correct the one that is named";
            vec![Check::failed("store", e.to_string(), hint)]
        }
    }
}

async fn looked_at(store: &dyn ObjectStore) -> Vec<Check> {
    let mut checks = vec![Check::ok("store", store.describe())];
    checks.extend(store.examine().await);
    checks
}
