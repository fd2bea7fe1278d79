//! Versions of stored objects, where the bucket keeps them.
//!
//! Written when an object is completed, read before every read of it. Keys are used once, so
//! the first version noted is the only right one: a second is never taken.

use crate::column::{args, record};
use crate::engine::statements;
use crate::{Result, Store};

statements! {
    GET: ["SELECT version FROM object_versions WHERE key = $1"];
    INSERT: ["INSERT INTO object_versions (key, version) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING"];
    DELETE: ["DELETE FROM object_versions WHERE key = $1"];
}

struct Version {
    version: String,
}
record!(Version { version });

impl Store {
    pub async fn object_version(&self, key: &str) -> Result<Option<String>> {
        let found: Option<Version> = self.db.first(GET, args![key]).await?;
        Ok(found.map(|v| v.version))
    }

    /// Repeated: no change.
    pub async fn note_object_version(&self, key: &str, version: &str) -> Result<()> {
        self.db.run(INSERT, args![key, version]).await.map(drop)
    }

    /// When the object is gone.
    pub async fn forget_object_version(&self, key: &str) -> Result<()> {
        self.db.run(DELETE, args![key]).await.map(drop)
    }
}
