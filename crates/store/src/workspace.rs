//! Workspaces, and what a workflow's step does to its own.
//!
//! A step's [`Effect`]s are written in the transaction that commits the step, so a workspace
//! can never be seen switched by a workflow that still stands before the switch.

use crate::column::{args, json, record, words_as_text};
use crate::engine::{Tx, statements, transact};
use crate::{Error, Page, Result, Store};
use dumont_core::id::WorkspaceName;
use dumont_core::key::WorkspaceKey;
use dumont_core::spec::WorkspaceSpec;
use dumont_core::time::Timestamp;
use dumont_core::words;

statements! {
    INSERT_KEY: ["INSERT INTO workspace_keys (workspace_id, key) VALUES ($1, $2) \
                  ON CONFLICT (workspace_id) DO NOTHING"];
    KEY: ["SELECT key FROM workspace_keys WHERE workspace_id = $1"];
    INSERT: ["INSERT INTO workspaces (id, name, spec_json, state, fence, created_at) \
              VALUES ($1, $2, $3, $4, 0, $5) ON CONFLICT DO NOTHING"];
    BY_ID: ["SELECT * FROM workspaces WHERE id = $1"];
    LIVE_FOR_UPDATE: ["SELECT * FROM workspaces WHERE id = $1 AND deleted_at IS NULL" FOR_UPDATE];
    BY_NAME: ["SELECT * FROM workspaces WHERE name = $1 AND deleted_at IS NULL"];
    LIST: ["SELECT * FROM workspaces WHERE deleted_at IS NULL AND name > $1 ORDER BY name LIMIT $2"];
    SET_STATE: ["UPDATE workspaces SET state = $2, message = $3 WHERE id = $1 AND deleted_at IS NULL"];
    SET_SPEC: ["UPDATE workspaces SET spec_json = $2 WHERE id = $1 AND deleted_at IS NULL"];
    BUMP_FENCE: ["UPDATE workspaces SET fence = fence + 1 WHERE id = $1 AND deleted_at IS NULL"];
    SET_HALF: ["UPDATE workspaces SET half_restored = $2 WHERE id = $1 AND deleted_at IS NULL"];
    ATTACH: ["UPDATE workspaces SET instance_key = $2, half_restored = NULL, fence = fence + 1 \
              WHERE id = $1 AND deleted_at IS NULL"];
    OWN: ["UPDATE instances SET state = 'owned', updated_at = $3 \
           WHERE key = $2 AND workspace_id = $1 AND state IN ('rented', 'ready', 'owned')"];
    DELETE: ["UPDATE workspaces SET deleted_at = $2, instance_key = NULL, fence = fence + 1 \
              WHERE id = $1 AND deleted_at IS NULL"];
}

words! {
    /// Where a workspace is in its life; the words of the API.
    pub enum WorkspaceState: "workspace state" {
        Draft => "draft",
        Deploying => "deploying",
        Running => "running",
        FailingOver => "failing_over",
        Failed => "failed",
        Deleting => "deleting",
    }
}
words_as_text!(WorkspaceState);

#[derive(Debug, Clone)]
pub struct NewWorkspace {
    pub id: String,
    /// The workspace's name is the spec's.
    pub spec: WorkspaceSpec,
    pub state: WorkspaceState,
    /// Seals its snapshots.
    pub key: Option<WorkspaceKey>,
}

struct KeyRow {
    key: String,
}
record!(KeyRow { key });

#[derive(Debug, Clone, PartialEq)]
pub struct WorkspaceRow {
    pub id: String,
    pub name: WorkspaceName,
    pub spec: WorkspaceSpec,
    pub state: WorkspaceState,
    pub message: Option<String>,
    /// The instance it lives on.
    pub instance_key: Option<String>,
    /// Rises with every switch; a commit under an older one is refused.
    pub fence: i64,
    /// The snapshot whose restore onto this instance broke off for good.
    pub half_restored: Option<String>,
    pub created_at: Timestamp,
    pub deleted_at: Option<Timestamp>,
}
record!(WorkspaceRow {
    id,
    name,
    spec = "spec_json",
    state,
    message,
    instance_key,
    fence,
    half_restored,
    created_at,
    deleted_at
});

/// What the commit of a workflow's step does to its workspace, in the same transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    State {
        state: WorkspaceState,
        message: Option<String>,
    },
    /// Shuts out whoever holds the fence of now, e.g. the lost instance at the begin of a failover.
    BumpFence,
    /// The restore of this snapshot onto its instance broke off; `None`: what is there is whole.
    HalfRestored { snapshot_id: Option<String> },
    /// Makes it live on this instance, and raises the fence. `Stale` if the instance is
    /// already being destroyed.
    Attach { instance_key: String },
    /// It lives nowhere; raises the fence.
    Detach,
    /// Gives its name free; detaches, and raises the fence.
    Delete,
}

/// Applies effects; `Stale` where the workspace is deleted.
pub(crate) async fn apply(tx: &mut Tx, workspace: &str, effects: &[Effect], now: Timestamp) -> Result<()> {
    for effect in effects {
        let touched = match effect {
            Effect::State { state, message } => {
                tx.run(SET_STATE, args![workspace, *state, message.as_deref()])
                    .await?
            }
            Effect::HalfRestored { snapshot_id } => {
                tx.run(SET_HALF, args![workspace, snapshot_id.as_deref()]).await?
            }
            Effect::BumpFence => tx.run(BUMP_FENCE, args![workspace]).await?,
            Effect::Attach { instance_key } => {
                if tx.run(OWN, args![workspace, instance_key, now]).await? == 0 {
                    return Err(Error::stale("instance", instance_key));
                }
                tx.run(ATTACH, args![workspace, instance_key]).await?
            }
            Effect::Detach => tx.run(ATTACH, args![workspace, None::<&str>]).await?,
            Effect::Delete => tx.run(DELETE, args![workspace, now]).await?,
        };
        if touched == 0 {
            return Err(Error::stale("workspace", workspace));
        }
    }
    Ok(())
}

/// The workspace, locked until the transaction ends; `NotFound` if deleted.
pub(crate) async fn live_for_update(tx: &mut Tx, id: &str) -> Result<WorkspaceRow> {
    tx.first(LIVE_FOR_UPDATE, args![id])
        .await?
        .ok_or_else(|| Error::not_found("workspace", id))
}

impl Store {
    /// `Conflict` with the name where it is taken. Repeated with the same id: no change.
    pub async fn create_workspace(&self, new: &NewWorkspace, now: Timestamp) -> Result<WorkspaceRow> {
        let name = new.spec.name.as_str();
        let args = args![&new.id, name, json(&new.spec)?, new.state, now];
        // Together: an encrypted workspace without its key must never be seen.
        transact!(self.db, |tx| {
            let made = tx.run(INSERT, args.clone()).await?;
            if let Some(key) = new.key.as_ref().filter(|_| made == 1) {
                tx.run(INSERT_KEY, args![&new.id, key.to_text()]).await?;
            }
            Ok(())
        })?;
        match self.workspace(&new.id).await? {
            Some(row) if row.name == new.spec.name => Ok(row),
            _ => Err(Error::conflict("workspace", name)),
        }
    }

    /// What the snapshots of a workspace are sealed with; `None` where they are not. An encrypted
    /// workspace whose key is gone is an error, and never one that is not encrypted.
    pub async fn workspace_key(&self, workspace: &WorkspaceRow) -> Result<Option<WorkspaceKey>> {
        if !workspace.spec.snapshot.encrypt {
            return Ok(None);
        }
        let corrupt = |detail: String| Error::Corrupt {
            column: "workspace_keys.key",
            detail,
        };
        let row: Option<KeyRow> = self.db.first(KEY, args![&workspace.id]).await?;
        let row = row.ok_or_else(|| corrupt(format!("workspace {} has no key", workspace.name)))?;
        let key = row.key.parse();
        key.map(Some)
            .map_err(|_| corrupt(format!("that of workspace {}", workspace.name)))
    }

    /// By id, deleted ones too.
    pub async fn workspace(&self, id: &str) -> Result<Option<WorkspaceRow>> {
        self.db.first(BY_ID, args![id]).await
    }

    /// By name; never a deleted one.
    pub async fn workspace_by_name(&self, name: &WorkspaceName) -> Result<Option<WorkspaceRow>> {
        self.db.first(BY_NAME, args![name.as_str()]).await
    }

    /// In the order of names; `after` is a name. Deleted ones are left out.
    pub async fn list_workspaces(&self, after: Option<&str>, limit: u32) -> Result<Page<WorkspaceRow>> {
        let rows = self
            .db
            .all(LIST, args![after.unwrap_or(""), u64::from(limit) + 1])
            .await?;
        Ok(Page::cut(rows, limit, |w: &WorkspaceRow| w.name.to_string()))
    }

    pub async fn set_workspace_state(
        &self,
        id: &str,
        state: WorkspaceState,
        message: Option<&str>,
    ) -> Result<()> {
        self.db
            .run(SET_STATE, args![id, state, message])
            .await
            .and_then(|n| found(n, id))
    }

    pub async fn set_workspace_spec(&self, id: &str, spec: &WorkspaceSpec) -> Result<()> {
        self.db
            .run(SET_SPEC, args![id, json(spec)?])
            .await
            .and_then(|n| found(n, id))
    }

    /// Outside a workflow: makes the workspace live on an instance if its fence is still
    /// `expected`, and returns the new fence. Repeated: no change.
    pub async fn attach_instance(
        &self,
        id: &str,
        instance_key: &str,
        expected: i64,
        now: Timestamp,
    ) -> Result<i64> {
        let effects = [Effect::Attach {
            instance_key: instance_key.to_owned(),
        }];
        transact!(self.db, |tx| {
            let row = live_for_update(tx, id).await?;
            if row.instance_key.as_deref() == Some(instance_key) {
                return Ok(row.fence);
            }
            if row.fence != expected {
                return Err(Error::stale("workspace", id));
            }
            apply(tx, id, &effects, now).await?;
            Ok(expected + 1)
        })
    }

    /// Gives the name free. Repeated: `NotFound`.
    pub async fn mark_workspace_deleted(&self, id: &str, now: Timestamp) -> Result<()> {
        self.db
            .run(DELETE, args![id, now])
            .await
            .and_then(|n| found(n, id))
    }
}

fn found(touched: u64, id: &str) -> Result<()> {
    if touched == 0 {
        Err(Error::not_found("workspace", id))
    } else {
        Ok(())
    }
}
