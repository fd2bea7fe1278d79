//! Facts about this installation, such as the controller's id.

use crate::column::{args, record};
use crate::engine::statements;
use crate::{Error, Result, Store};

statements! {
    GET: ["SELECT value FROM meta WHERE key = $1"];
    INSERT: ["INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING"];
    SET: ["INSERT INTO meta (key, value) VALUES ($1, $2) \
           ON CONFLICT (key) DO UPDATE SET value = excluded.value"];
}

struct Value {
    value: String,
}
record!(Value { value });

impl Store {
    pub async fn meta(&self, key: &str) -> Result<Option<String>> {
        Ok(self.db.first::<Value>(GET, args![key]).await?.map(|v| v.value))
    }

    /// The stored value; `value` becomes it where there is none. Of many callers at once all
    /// get the same.
    pub async fn meta_get_or_insert(&self, key: &str, value: &str) -> Result<String> {
        self.db.run(INSERT, args![key, value]).await?;
        self.meta(key)
            .await?
            .ok_or_else(|| Error::not_found("meta value", key))
    }

    pub async fn meta_set(&self, key: &str, value: &str) -> Result<()> {
        self.db.run(SET, args![key, value]).await.map(drop)
    }
}
