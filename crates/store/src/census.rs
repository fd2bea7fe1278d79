//! How many there are of what, for metrics and diagnosis.

use crate::column::{args, record};
use crate::engine::statements;
use crate::{Result, Store};
use std::collections::BTreeMap;

statements! {
    RUNNING: ["SELECT kind AS word, COUNT(*) AS n FROM workflows WHERE status = 'running' GROUP BY kind"];
    WORKSPACES: ["SELECT state AS word, COUNT(*) AS n FROM workspaces WHERE deleted_at IS NULL GROUP BY state"];
}

struct Count {
    word: String,
    n: i64,
}
record!(Count { word, n });

impl Store {
    /// Workflows under way, by kind.
    pub async fn count_running_workflows(&self) -> Result<BTreeMap<String, i64>> {
        let rows: Vec<Count> = self.db.all(RUNNING, args![]).await?;
        Ok(rows.into_iter().map(|c| (c.word, c.n)).collect())
    }

    /// Workspaces that are not deleted, by state.
    pub async fn count_workspaces(&self) -> Result<BTreeMap<String, i64>> {
        let rows: Vec<Count> = self.db.all(WORKSPACES, args![]).await?;
        Ok(rows.into_iter().map(|c| (c.word, c.n)).collect())
    }
}
