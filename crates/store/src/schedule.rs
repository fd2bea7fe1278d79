//! Who may take a periodic snapshot now, and what is known of the last ones.

use crate::column::{args, record};
use crate::engine::statements;
use crate::{Page, Result, Store};
use dumont_core::id::WorkspaceName;
use dumont_core::schedule::Standing;
use dumont_core::spec::WorkspaceSpec;
use dumont_core::time::Timestamp;
use serde_json::Value;

statements! {
    // On a machine, at rest and whole: nothing else may be snapshotted.
    IDLE: ["SELECT w.id, w.name, w.spec_json, w.instance_key, COALESCE(i.ready_at, i.created_at) AS lives_since, \
            (SELECT MAX(s.created_at) FROM snapshots s \
             WHERE s.workspace_id = w.id AND s.state = 'visible') AS taken_at, \
            (SELECT CASE WHEN f.status = 'failed' THEN f.finished_at END FROM workflows f \
             WHERE f.workspace_id = w.id AND f.kind = 'snapshot' ORDER BY f.id DESC LIMIT 1) AS failed_at \
            FROM workspaces w JOIN instances i ON i.key = w.instance_key \
            WHERE w.deleted_at IS NULL AND w.state = 'running' AND w.half_restored IS NULL AND w.name > $1 \
            AND NOT EXISTS (SELECT 1 FROM workflows r WHERE r.workspace_id = w.id AND r.status = 'running') \
            ORDER BY w.name LIMIT $2"];
    RUNNING: ["SELECT COUNT(*) AS n FROM workflows WHERE status = 'running' AND kind = 'snapshot'"];
    LAST: ["SELECT error_json, finished_at FROM workflows WHERE workspace_id = $1 AND kind = 'snapshot' \
            AND status <> 'running' ORDER BY id DESC LIMIT 1"];
}

/// A workspace of which a snapshot could be taken now.
#[derive(Debug, Clone, PartialEq)]
pub struct Idle {
    pub id: String,
    pub name: WorkspaceName,
    pub spec: WorkspaceSpec,
    pub instance_key: String,
    pub lives_since: Timestamp,
    pub taken_at: Option<Timestamp>,
    pub failed_at: Option<Timestamp>,
}
record!(Idle {
    id,
    name,
    spec = "spec_json",
    instance_key,
    lives_since,
    taken_at,
    failed_at
});

impl Idle {
    pub fn standing(&self) -> Standing {
        Standing {
            lives_since: self.lives_since,
            taken_at: self.taken_at,
            failed_at: self.failed_at,
        }
    }
}

struct Count {
    n: u64,
}
record!(Count { n });

struct Last {
    error: Option<Value>,
    finished_at: Option<Timestamp>,
}
record!(Last {
    error = "error_json",
    finished_at
});

impl Store {
    /// Running workspaces that are whole and that nothing works on, in the order of names; `after`
    /// is a name.
    pub async fn idle_workspaces(&self, after: Option<&str>, limit: u32) -> Result<Page<Idle>> {
        let args = args![after.unwrap_or(""), u64::from(limit) + 1];
        let rows = self.db.all(IDLE, args).await?;
        Ok(Page::cut(rows, limit, |w: &Idle| w.name.to_string()))
    }

    /// Snapshots that are being taken, of all workspaces.
    pub async fn running_snapshots(&self) -> Result<u64> {
        let count: Option<Count> = self.db.first(RUNNING, args![]).await?;
        Ok(count.map_or(0, |c| c.n))
    }

    /// When and why the last try of a snapshot failed; `None` where it did not.
    pub async fn snapshot_failure(&self, workspace_id: &str) -> Result<Option<(Timestamp, Value)>> {
        let last: Option<Last> = self.db.first(LAST, args![workspace_id]).await?;
        Ok(last.and_then(|l| l.finished_at.zip(l.error)))
    }
}
