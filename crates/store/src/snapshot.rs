//! Snapshots: pending until the controller has seen every object, visible by one UPDATE.
//!
//! That UPDATE is also where a given-up instance is kept out: it names the workspace's fence
//! and the instance it lives on, and touches nothing when either has changed. Checking before
//! writing would leave a gap in which a failover fits. The workspace is locked for it, as a
//! reader of PostgreSQL is stopped by nobody's write.

use crate::column::{args, json, record, words_as_text};
use crate::engine::{statements, transact};
use crate::{Error, Page, Result, Store, instance};
use dumont_core::id::Digest;
use dumont_core::snapshot::{ObjectRef, SnapshotHead, SnapshotType};
use dumont_core::time::Timestamp;
use dumont_core::words;

statements! {
    // A repeat replaces what is pending; never what is visible.
    INSERT: ["INSERT INTO snapshots (id, workspace_id, instance_key, snapshot_type, base_snapshot_id, \
              parent_id, root, head_json, packs_json, metadata_key, files_total, files_changed, \
              total_bytes, uploaded_bytes, full_because, torn_json, state, created_at, elapsed_ms) \
              VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, 'pending', $17, 0) \
              ON CONFLICT (id) DO UPDATE SET instance_key = excluded.instance_key, \
              snapshot_type = excluded.snapshot_type, base_snapshot_id = excluded.base_snapshot_id, \
              parent_id = excluded.parent_id, root = excluded.root, head_json = excluded.head_json, \
              packs_json = excluded.packs_json, metadata_key = excluded.metadata_key, \
              files_total = excluded.files_total, files_changed = excluded.files_changed, \
              total_bytes = excluded.total_bytes, uploaded_bytes = excluded.uploaded_bytes, \
              full_because = excluded.full_because, torn_json = excluded.torn_json, \
              created_at = excluded.created_at \
              WHERE snapshots.state = 'pending' AND snapshots.workspace_id = excluded.workspace_id"];
    GET: ["SELECT * FROM snapshots WHERE id = $1"];
    LOCK_WORKSPACE: ["SELECT w.fence FROM workspaces w WHERE w.id = \
                      (SELECT s.workspace_id FROM snapshots s WHERE s.id = $1)" FOR_UPDATE];
    COMMIT: ["UPDATE snapshots SET state = 'visible', committed_at = $3, elapsed_ms = $4 \
              WHERE id = $1 AND state = 'pending' AND EXISTS (SELECT 1 FROM workspaces w \
              WHERE w.id = snapshots.workspace_id AND w.deleted_at IS NULL AND w.fence = $2 \
              AND w.instance_key IS NOT DISTINCT FROM snapshots.instance_key)"];
    FIRST_PAGE: ["SELECT * FROM snapshots WHERE workspace_id = $1 AND state = 'visible' \
                  ORDER BY created_at DESC, id DESC LIMIT $2"];
    NEXT_PAGE: ["SELECT * FROM snapshots WHERE workspace_id = $1 AND state = 'visible' \
                 AND (created_at, id) < (SELECT s.created_at, s.id FROM snapshots s WHERE s.id = $2) \
                 ORDER BY created_at DESC, id DESC LIMIT $3"];
    PENDING: ["SELECT * FROM snapshots WHERE workspace_id = $1 AND state = 'pending' \
               ORDER BY created_at, id"];
    // Nothing that a machine's next snapshot builds on, or that is being restored.
    EXPIRE: ["DELETE FROM snapshots WHERE id = $1 AND state = 'visible' AND NOT pinned \
              AND NOT EXISTS (SELECT 1 FROM instances i WHERE i.last_snapshot_id = snapshots.id \
              AND i.state <> 'destroyed') \
              AND NOT EXISTS (SELECT 1 FROM workflows w WHERE w.workspace_id = snapshots.workspace_id \
              AND w.status = 'running' AND w.kind <> 'snapshot')"];
    REPLACE_HEAD: ["UPDATE snapshots SET head_json = $3 WHERE id = $1 AND head_json = $2 \
                    AND state = 'visible'"];
    PIN: ["UPDATE snapshots SET pinned = $2 WHERE id = $1 AND state = 'visible'"];
    DELETE_PENDING: ["DELETE FROM snapshots WHERE id = $1 AND state = 'pending'"];
}

words! {
    pub enum SnapshotState: "snapshot state" {
        Pending => "pending",
        Visible => "visible",
    }
}
words_as_text!(SnapshotState);

#[derive(Debug, Clone, PartialEq)]
pub struct NewSnapshot {
    /// The document's id, e.g. `base-29049571-1766230181`.
    pub id: String,
    pub workspace_id: String,
    /// Who took it; `None` for an import into a draft.
    pub instance_key: Option<String>,
    pub snapshot_type: SnapshotType,
    /// The full one that an incremental goes back to.
    pub base_snapshot_id: Option<String>,
    /// The one right before it.
    pub parent_id: Option<String>,
    pub head: SnapshotHead,
    pub packs: Vec<ObjectRef>,
    pub metadata_key: Option<String>,
    pub files_changed: u64,
    pub uploaded_bytes: u64,
    pub full_because: Option<String>,
    pub torn: Vec<String>,
    /// The moment whose files it holds.
    pub created_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotRow {
    pub id: String,
    pub workspace_id: String,
    pub instance_key: Option<String>,
    pub snapshot_type: SnapshotType,
    pub base_snapshot_id: Option<String>,
    pub parent_id: Option<String>,
    pub root: Digest,
    pub head: SnapshotHead,
    pub packs: Vec<ObjectRef>,
    pub metadata_key: Option<String>,
    pub files_total: u64,
    pub files_changed: u64,
    pub total_bytes: u64,
    pub uploaded_bytes: u64,
    pub full_because: Option<String>,
    pub torn: Vec<String>,
    pub state: SnapshotState,
    pub created_at: Timestamp,
    pub committed_at: Option<Timestamp>,
    pub elapsed_ms: u64,
    /// Retention never takes it.
    pub pinned: bool,
}
record!(SnapshotRow {
    id,
    workspace_id,
    instance_key,
    snapshot_type,
    base_snapshot_id,
    parent_id,
    root,
    head = "head_json",
    packs = "packs_json",
    metadata_key,
    files_total,
    files_changed,
    total_bytes,
    uploaded_bytes,
    full_because,
    torn = "torn_json",
    state,
    created_at,
    committed_at,
    elapsed_ms,
    pinned
});

impl Store {
    /// Notes what a machine says it uploaded; nobody can see it yet. `Conflict` if a visible
    /// snapshot, or another workspace's, has the id.
    pub async fn insert_pending_snapshot(&self, new: &NewSnapshot) -> Result<()> {
        let args = args![
            &new.id,
            &new.workspace_id,
            new.instance_key.as_deref(),
            new.snapshot_type,
            new.base_snapshot_id.as_deref(),
            new.parent_id.as_deref(),
            new.head.root,
            json(&new.head)?,
            json(&new.packs)?,
            new.metadata_key.as_deref(),
            new.head.files,
            new.files_changed,
            new.head.bytes,
            new.uploaded_bytes,
            new.full_because.as_deref(),
            json(&new.torn)?,
            new.created_at,
        ];
        match self.db.run(INSERT, args).await? {
            0 => Err(Error::conflict("snapshot", &new.id)),
            _ => Ok(()),
        }
    }

    /// The one act that makes a snapshot exist: to be called when every object was seen. It
    /// also notes it on its instance. `Stale` if the workspace's fence is no longer `fence` or
    /// it lives elsewhere. Repeated: no change, and no error though the fence has moved on.
    pub async fn commit_snapshot(
        &self,
        id: &str,
        fence: i64,
        elapsed_ms: u64,
        now: Timestamp,
    ) -> Result<SnapshotRow> {
        transact!(self.db, |tx| {
            tx.run(LOCK_WORKSPACE, args![id]).await?;
            let touched = tx.run(COMMIT, args![id, fence, now, elapsed_ms]).await?;
            let row: Option<SnapshotRow> = tx.first(GET, args![id]).await?;
            let row = row.ok_or_else(|| Error::not_found("snapshot", id))?;
            if row.state != SnapshotState::Visible {
                return Err(Error::stale("snapshot", id));
            }
            if touched == 1
                && let Some(key) = &row.instance_key
            {
                instance::set_last_snapshot(tx, key, id).await?;
            }
            Ok(row)
        })
    }

    /// Pending ones too.
    pub async fn snapshot(&self, id: &str) -> Result<Option<SnapshotRow>> {
        self.db.first(GET, args![id]).await
    }

    /// The newest visible one.
    pub async fn latest_snapshot(&self, workspace_id: &str) -> Result<Option<SnapshotRow>> {
        self.db.first(FIRST_PAGE, args![workspace_id, 1_u32]).await
    }

    /// Visible ones, newest first; `after` is an id.
    pub async fn list_snapshots(
        &self,
        workspace_id: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Page<SnapshotRow>> {
        let more = u64::from(limit) + 1;
        let rows = match after {
            None => self.db.all(FIRST_PAGE, args![workspace_id, more]).await?,
            Some(after) => self.db.all(NEXT_PAGE, args![workspace_id, after, more]).await?,
        };
        Ok(Page::cut(rows, limit, |s: &SnapshotRow| s.id.clone()))
    }

    /// Oldest first: what a crash left behind.
    pub async fn pending_snapshots(&self, workspace_id: &str) -> Result<Vec<SnapshotRow>> {
        self.db.all(PENDING, args![workspace_id]).await
    }

    /// Removes a visible one. False if it is pinned, or its objects are still needed: by an
    /// instance whose next snapshot builds on it, or by work that may restore it.
    pub async fn expire_snapshot(&self, id: &str) -> Result<bool> {
        Ok(self.db.run(EXPIRE, args![id]).await? > 0)
    }

    /// Points a visible one to other objects that hold the same. False if its head is no longer
    /// `old`.
    pub async fn replace_snapshot_head(
        &self,
        id: &str,
        old: &SnapshotHead,
        new: &SnapshotHead,
    ) -> Result<bool> {
        let args = args![id, json(old)?, json(new)?];
        Ok(self.db.run(REPLACE_HEAD, args).await? > 0)
    }

    /// Whether retention may take it. False if there is no such visible one.
    pub async fn pin_snapshot(&self, id: &str, pinned: bool) -> Result<bool> {
        Ok(self.db.run(PIN, args![id, pinned]).await? > 0)
    }

    /// False if there is none, or it is visible.
    pub async fn delete_pending_snapshot(&self, id: &str) -> Result<bool> {
        Ok(self.db.run(DELETE_PENDING, args![id]).await? > 0)
    }
}
