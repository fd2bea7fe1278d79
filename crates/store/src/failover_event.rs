//! Finished failovers: the plan's `failover_test_events`, with every phase in milliseconds.
//!
//! Written once, by id; the attempts of a failover are those of its workflow.

use crate::column::{args, json, record};
use crate::engine::{statements, transact};
use crate::{Page, Result, Store};
use dumont_core::blacklist::LossCause;
use dumont_core::id::WorkspaceName;
use dumont_core::snapshot::{ModelFiles, SnapshotType, Validation};
use dumont_core::time::Timestamp;

statements! {
    INSERT: ["INSERT INTO failover_test_events (id, workflow_id, workspace_id, workspace_name, success, \
              failure_reason, trigger_name, lost_at, detected_at, finished_at, detection_ms, search_ms, \
              gpu_provisioning_time_ms, restore_ms, validation_ms, start_ms, probe_ms, switch_ms, total_ms, \
              original_instance_id, original_ssh_host, original_ssh_port, new_instance_id, new_ssh_host, \
              new_ssh_port, snapshot_id, snapshot_type, base_snapshot_id, files_changed, validation_json, \
              bytes_restored, bytes_downloaded, data_loss_ms, complete_ms, cause) \
              VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, \
              $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35) \
              ON CONFLICT (id) DO NOTHING"];
    // A failover that was given up half-way, taken up again and then succeeded.
    DELETE_FAILED: ["DELETE FROM failover_test_events WHERE id = $1 AND NOT success"];
    GET: ["SELECT * FROM failover_test_events WHERE id = $1"];
    NOTE_MODELS: ["UPDATE failover_test_events SET model_files_json = $2 WHERE id = $1"];
    UNCOMPARED: ["SELECT * FROM failover_test_events WHERE id > $1 AND success AND model_files_json IS NULL \
                  AND validation_json IS NOT NULL ORDER BY id LIMIT 500"];
    LIST: ["SELECT * FROM failover_test_events WHERE id < $1 ORDER BY id DESC LIMIT $2"];
    LIST_OF: ["SELECT * FROM failover_test_events WHERE workspace_id = $3 AND id < $1 \
               ORDER BY id DESC LIMIT $2"];
}

/// Sorts after every ULID.
const AFTER_ALL: &str = "~";

#[derive(Debug, Clone, PartialEq)]
pub struct FailoverEventRow {
    pub id: String,
    /// Its attempts: `attempts_of_workflow`.
    pub workflow_id: String,
    pub workspace_id: String,
    pub workspace_name: WorkspaceName,
    pub success: bool,
    pub failure_reason: Option<String>,
    /// What decided that it was lost.
    pub trigger: String,
    /// What became of it; none where that is not known, or nothing did.
    pub cause: Option<LossCause>,
    pub lost_at: Timestamp,
    pub detected_at: Timestamp,
    pub finished_at: Timestamp,
    pub detection_ms: i64,
    pub search_ms: i64,
    pub gpu_provisioning_time_ms: i64,
    pub restore_ms: i64,
    pub validation_ms: i64,
    pub start_ms: i64,
    pub probe_ms: i64,
    /// From the loss to the last byte, where the workload did not wait for it.
    pub complete_ms: Option<i64>,
    pub switch_ms: i64,
    pub total_ms: i64,
    pub original_instance_id: Option<String>,
    pub original_ssh_host: Option<String>,
    pub original_ssh_port: Option<u16>,
    pub new_instance_id: Option<String>,
    pub new_ssh_host: Option<String>,
    pub new_ssh_port: Option<u16>,
    pub snapshot_id: Option<String>,
    pub snapshot_type: Option<SnapshotType>,
    pub base_snapshot_id: Option<String>,
    pub files_changed: Option<u64>,
    pub validation: Option<Validation>,
    /// Noted later, by `note_model_files`.
    pub model_files: Option<ModelFiles>,
    pub bytes_restored: u64,
    pub bytes_downloaded: u64,
    pub data_loss_ms: Option<i64>,
}
record!(FailoverEventRow {
    id,
    workflow_id,
    workspace_id,
    workspace_name,
    success,
    failure_reason,
    trigger = "trigger_name",
    cause,
    lost_at,
    detected_at,
    finished_at,
    detection_ms,
    search_ms,
    gpu_provisioning_time_ms,
    restore_ms,
    validation_ms,
    start_ms,
    probe_ms,
    complete_ms,
    switch_ms,
    total_ms,
    original_instance_id,
    original_ssh_host,
    original_ssh_port,
    new_instance_id,
    new_ssh_host,
    new_ssh_port,
    snapshot_id,
    snapshot_type,
    base_snapshot_id,
    files_changed,
    validation = "validation_json",
    model_files = "model_files_json",
    bytes_restored,
    bytes_downloaded,
    data_loss_ms
});

impl Store {
    /// False if the event was written before; the first one stands, but a success replaces a
    /// failure.
    pub async fn insert_failover_event(&self, e: &FailoverEventRow) -> Result<bool> {
        let validation = e.validation.as_ref().map(json).transpose()?;
        let args = args![
            &e.id,
            &e.workflow_id,
            &e.workspace_id,
            e.workspace_name.as_str(),
            e.success,
            e.failure_reason.as_deref(),
            &e.trigger,
            e.lost_at,
            e.detected_at,
            e.finished_at,
            e.detection_ms,
            e.search_ms,
            e.gpu_provisioning_time_ms,
            e.restore_ms,
            e.validation_ms,
            e.start_ms,
            e.probe_ms,
            e.switch_ms,
            e.total_ms,
            e.original_instance_id.as_deref(),
            e.original_ssh_host.as_deref(),
            e.original_ssh_port,
            e.new_instance_id.as_deref(),
            e.new_ssh_host.as_deref(),
            e.new_ssh_port,
            e.snapshot_id.as_deref(),
            e.snapshot_type,
            e.base_snapshot_id.as_deref(),
            e.files_changed,
            validation,
            e.bytes_restored,
            e.bytes_downloaded,
            e.data_loss_ms,
            e.complete_ms,
            e.cause,
        ];
        // The insert waits for another of the same id; only then is it known what to replace.
        transact!(self.db, |tx| {
            let mut written = tx.run(INSERT, args.clone()).await?;
            if written == 0 && e.success && tx.run(DELETE_FAILED, args![&e.id]).await? == 1 {
                written = tx.run(INSERT, args.clone()).await?;
            }
            Ok(written == 1)
        })
    }

    /// What was found out when nobody waited any more. False if there is no such event.
    pub async fn note_model_files(&self, id: &str, found: &ModelFiles) -> Result<bool> {
        Ok(self.db.run(NOTE_MODELS, args![id, json(found)?]).await? > 0)
    }

    /// Successes that restored something and whose model files nobody has compared, oldest first, at
    /// most 500; `after` is an event's id.
    pub async fn uncompared_failovers(&self, after: &str) -> Result<Vec<FailoverEventRow>> {
        self.db.all(UNCOMPARED, args![after]).await
    }

    pub async fn failover_event(&self, id: &str) -> Result<Option<FailoverEventRow>> {
        self.db.first(GET, args![id]).await
    }

    /// Newest first, of one workspace or of all; `after` is an event's id.
    pub async fn list_failover_events(
        &self,
        workspace_id: Option<&str>,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Page<FailoverEventRow>> {
        let (after, more) = (after.unwrap_or(AFTER_ALL), u64::from(limit) + 1);
        let rows = match workspace_id {
            Some(id) => self.db.all(LIST_OF, args![after, more, id]).await?,
            None => self.db.all(LIST, args![after, more]).await?,
        };
        Ok(Page::cut(rows, limit, |e: &FailoverEventRow| e.id.clone()))
    }
}
