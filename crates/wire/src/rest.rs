//! Bodies of the REST API under `/api/v1`. Times are integers, microseconds since the epoch,
//! unless the name says otherwise.

use crate::agent::DownloadGrant;
use dumont_core::id::{MachineRef, WorkspaceName};
use dumont_core::key::WorkspaceKey;
use dumont_core::snapshot::{
    DamagedObject, LostFiles, ModelFiles, ObjectKind, Progress, SnapshotHead, SnapshotReport, SnapshotType,
    Validation,
};
use dumont_core::spec::WorkspaceSpec;
use dumont_core::time::Timestamp;
pub use dumont_core::workflow::{Kind as WorkflowKind, Status as WorkflowStatus};
use serde::{Deserialize, Serialize};

/// Every error has this body.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ErrorBody {
    /// Stable word for scripts, e.g. `workspace_not_found`.
    pub code: String,
    pub message: String,
    /// What to try next.
    pub hint: String,
    /// With `workspace_busy`: what works on the workspace already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<InTheWay>,
}

impl ErrorBody {
    pub fn new(code: impl Into<String>, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            hint: hint.into(),
            workflow: None,
        }
    }
}

/// A workflow that another one has to wait for.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InTheWay {
    pub id: String,
    pub kind: WorkflowKind,
}

/// One page of a list.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Pass as `?after=` for the next page; absent on the last.
    pub next: Option<String>,
}

/// `?limit=&after=` of every list.
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageQuery {
    /// 1 to 500, default 100.
    #[cfg_attr(feature = "openapi", param(minimum = 1, maximum = 500))]
    pub limit: Option<u32>,
    /// `next` of the page before.
    pub after: Option<String>,
}

/// `POST /workspaces`
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateWorkspace {
    pub spec: WorkspaceSpec,
    /// Rent a machine at once. False leaves it `draft`, e.g. to import files first.
    #[serde(default = "yes")]
    pub deploy: bool,
    /// This machine and no other, e.g. `vast:12345`; needs `deploy`.
    #[serde(default)]
    pub machine: Option<MachineRef>,
    /// Rent that machine though it is blacklisted.
    #[serde(default)]
    pub allow_blacklisted: bool,
}

/// `POST /workspaces/{name}/deploy`
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeployWorkspace {
    /// This machine and no other, e.g. `vast:12345`. A later failover is free to choose.
    #[serde(default)]
    pub machine: Option<MachineRef>,
    /// Rent that machine though it is blacklisted.
    #[serde(default)]
    pub allow_blacklisted: bool,
}

fn yes() -> bool {
    true
}

/// Where a workspace is in its life.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkspaceState {
    /// Known, nothing rented.
    Draft,
    Deploying,
    Running,
    /// Its machine is lost and a failover works on it.
    FailingOver,
    /// A deploy or failover gave up; files are safe in the last snapshot.
    Failed,
    Deleting,
}

#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workspace {
    pub id: String,
    pub name: WorkspaceName,
    pub spec: WorkspaceSpec,
    pub state: WorkspaceState,
    /// Why it is `failed`, with what to do next.
    pub message: Option<String>,
    pub instance: Option<Instance>,
    pub last_snapshot: Option<Snapshot>,
    /// When the next one is taken by itself, as long as it runs where it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_snapshot_at: Option<Timestamp>,
    /// Why there is no newer one: the last try failed, or what is there is not whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_problem: Option<ErrorBody>,
    /// The workflow that works on it now.
    pub workflow_id: Option<String>,
    pub created_at: Timestamp,
}

/// Answer of everything that starts long work: poll `GET /workflows/{id}`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    pub workflow_id: String,
}

#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    pub provider: String,
    /// The provider's id of the contract.
    pub instance_id: String,
    pub machine: MachineRef,
    pub label: String,
    pub gpu_name: String,
    pub gpu_count: u32,
    /// Dollars per hour now: its disk's alone while it stands still.
    pub price: f64,
    /// Dollars per hour while it runs.
    #[serde(default)]
    pub running_price: f64,
    pub region: Option<String>,
    pub ssh_host: Option<String>,
    pub ssh_port: Option<u16>,
    /// Its clock minus the server's when it became ready, milliseconds.
    pub clock_skew_ms: Option<i64>,
    pub created_at: Timestamp,
}

/// `GET /instances/orphans`: one that carries this controller's label, and no row of it.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Orphan {
    pub provider: String,
    /// The provider's id of the contract.
    pub instance_id: String,
    pub machine_id: String,
    pub label: String,
    /// Dollars per hour.
    pub price: f64,
}

/// `GET /spending`. Dollars, by UTC's days and months.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spending {
    pub today: f64,
    pub this_month: f64,
    /// What all that is rented costs now.
    pub per_hour: f64,
    /// `SPENDING_CAP_PER_DAY`; 0 is no cap.
    pub cap_per_day: f64,
    /// `SPENDING_CAP_PER_MONTH`; 0 is no cap.
    pub cap_per_month: f64,
    /// The most expensive first, the 500 first of them.
    pub workspaces: Vec<WorkspaceSpending>,
    /// Instances with this controller's label that nobody knows, when last looked for.
    pub orphans: u64,
}

#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkspaceSpending {
    pub workspace: String,
    pub today: f64,
    pub this_month: f64,
    pub per_hour: f64,
}

#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    pub snapshot_id: String,
    pub snapshot_type: SnapshotType,
    pub base_snapshot_id: Option<String>,
    pub files_total: u64,
    pub files_changed: u64,
    pub total_bytes: u64,
    pub uploaded_bytes: u64,
    /// Why a full one was taken though an incremental was asked for.
    pub full_because: Option<String>,
    pub torn: Vec<String>,
    pub created_at: Timestamp,
    /// Milliseconds from the request to its visibility.
    pub elapsed_ms: u64,
    /// Retention never takes it.
    #[serde(default)]
    pub pinned: bool,
}

/// `PUT /workspaces/{name}/snapshots/{id}/pin`
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    pub pinned: bool,
}

/// `POST /workspaces/{name}/snapshots`
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// Read every file again and start a new base.
    #[serde(default)]
    pub full: bool,
    /// Although the last restore broke off: what is there becomes the newest snapshot.
    #[serde(default)]
    pub as_it_is: bool,
}

/// `POST /workspaces/{name}/prune`
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prune {
    /// Only say which snapshots would go.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a prune did.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pruned {
    pub dry_run: bool,
    /// Ids of the snapshots that are gone, oldest first.
    pub expired: Vec<String>,
    /// Bytes of packs that were mostly dead and were written anew.
    pub freed_bytes: u64,
    /// Bytes that were copied for it.
    pub copied_bytes: u64,
    pub deleted_objects: u64,
    pub deleted_bytes: u64,
    /// Objects that nothing needs and that a later round deletes.
    pub waiting_objects: u64,
}

/// `POST /workspaces/{name}/snapshots/{id}/open`: what it takes to read a snapshot.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadSnapshot {
    /// Objects to read.
    #[serde(default)]
    pub keys: Vec<String>,
}

/// A snapshot's head, and URLs for the objects asked for, in their order.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenedSnapshot {
    pub head: SnapshotHead,
    pub grants: Vec<DownloadGrant>,
}

/// `POST /workspaces/{name}/restore`
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreSnapshot {
    /// Default: the newest.
    #[serde(default)]
    pub snapshot_id: Option<String>,
    /// Remove files the snapshot does not have.
    #[serde(default)]
    pub delete: bool,
    /// Globs of paths that are restored, e.g. `src/**`; none for all. Not with `delete`.
    #[serde(default)]
    pub include: Vec<String>,
    /// Globs of paths that are left alone. Not with `delete`.
    #[serde(default)]
    pub exclude: Vec<String>,
}

/// `POST /workspaces/{name}/failover`
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunFailover {
    #[serde(default)]
    pub reason: Option<String>,
    /// Default: the newest.
    #[serde(default)]
    pub snapshot_id: Option<String>,
}

/// `GET /workflows/{id}`
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workflow {
    pub id: String,
    pub kind: WorkflowKind,
    pub workspace: WorkspaceName,
    pub status: WorkflowStatus,
    /// The step it is in, e.g. `race`.
    pub step: String,
    pub steps: Vec<StepTime>,
    pub progress: Option<Progress>,
    /// Lines worth showing, oldest first, at most 100.
    pub log: Vec<String>,
    pub error: Option<ErrorBody>,
    /// What it made: the snapshot id of a snapshot, the event id of a failover.
    pub result: Option<serde_json::Value>,
    pub created_at: Timestamp,
    pub finished_at: Option<Timestamp>,
}

#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTime {
    pub step: String,
    pub started_at: Timestamp,
    pub elapsed_ms: u64,
}

/// One finished failover: a row of `failover_test_events`, `GET /failovers/{id}`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FailoverEvent {
    pub id: String,
    pub workspace: WorkspaceName,
    pub success: bool,
    pub failure_reason: Option<String>,
    /// What decided that the machine was lost, or why it was left.
    pub trigger: String,
    /// What became of it: `host`, `user_stop`, `outbid` or `abandoned`, which is known later. Null
    /// where it was not lost.
    #[serde(default)]
    pub cause: Option<String>,
    /// When the machine stopped serving, as well as we know.
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
    pub switch_ms: i64,
    /// From loss to a validated workload.
    pub total_ms: i64,
    /// From loss to the last byte, where the workload started before it was there (`ready_when`);
    /// `validation` is of all of it.
    pub complete_ms: Option<i64>,
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
    /// Null until model files were compared (or where they could not be).
    pub model_files: Option<ModelFiles>,
    pub bytes_restored: u64,
    pub bytes_downloaded: u64,
    /// Age of the restored snapshot when the machine was lost: the work that is gone, ms. 0 where the
    /// machine was had back.
    pub data_loss_ms: Option<i64>,
    pub attempts: Vec<Attempt>,
}

/// One try on one machine.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    pub machine: MachineRef,
    pub attempt_type: String,
    /// How far it came: rent, boot, ssh, hello, gpu, ready.
    pub stage: String,
    /// won, lost_race, failed, gave_up, not_host.
    pub outcome: String,
    /// Null when it does not count for or against the machine.
    pub success: Option<bool>,
    pub reason: Option<String>,
    pub error_message: Option<String>,
    pub gpu_name: String,
    /// Dollars per hour.
    pub price: f64,
    pub duration_seconds: f64,
    pub created_at: Timestamp,
}

/// A machine we have met: `GET /machines`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub machine: MachineRef,
    pub total_attempts: i64,
    pub successful_attempts: i64,
    pub failed_attempts: i64,
    pub uncounted_attempts: i64,
    /// Null before the first counted attempt.
    pub success_rate: Option<f64>,
    pub reliability_status: String,
    pub avg_boot_time: Option<f64>,
    pub is_blacklisted: bool,
    pub blacklist_reason: Option<String>,
    pub last_attempt_at: Option<Timestamp>,
}

/// `POST /workspaces/{name}/ssh`: lets this key in and says where.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SshAccess {
    /// One line of OpenSSH public key.
    pub public_key: String,
}

#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshTarget {
    pub host: String,
    pub port: u16,
    pub user: String,
    /// `ssh-ed25519 AAAA…`, pinned by the controller on first contact.
    pub host_key: String,
    pub path: String,
}

/// `POST /workspaces/{name}/repair`: what was found, and what is lost.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Repaired {
    /// Visible ones.
    pub snapshots: u64,
    /// Snapshots that were pointed to a new index; 0 if nothing had to be done.
    pub pointed: u64,
    pub packs_read: u64,
    pub bytes_read: u64,
    /// Objects that are missing or not what they should be.
    pub damaged: Vec<DamagedObject>,
    /// Snapshots that have lost something for good.
    pub lost: Vec<LostFiles>,
}

/// `GET /workspaces/{name}/key`: what an encrypted workspace's snapshots are sealed with.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownKey {
    pub key: WorkspaceKey,
}

/// `POST /workspaces/{name}/imports`: put local files into a draft workspace's first snapshot.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    pub import_id: String,
    /// `{instance}-{unix}` for the snapshot's id.
    pub stamp: String,
}

/// `POST /imports/{id}/uploads`
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportUpload {
    pub kind: ObjectKind,
    pub size: u64,
    pub digest: dumont_core::id::Digest,
}

/// `POST /imports/{id}/uploaded`: every part of an object was sent.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportUploaded {
    pub key: String,
    /// What the store answered to each part (`ETag`), in their order.
    pub parts: Vec<String>,
}

/// `POST /imports/{id}/commit`
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommitImport {
    pub report: SnapshotReport,
}

/// `POST /tokens`
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// Whose it is, for the list.
    #[cfg_attr(
        feature = "openapi",
        schema(
            max_length = 100,
            pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"
        )
    )]
    pub name: String,
}

/// A token at its making.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewToken {
    pub id: String,
    pub name: String,
    /// The secret, shown this once.
    pub token: String,
    pub created_at: Timestamp,
}

#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub id: String,
    pub name: String,
    pub created_at: Timestamp,
    /// To the minute.
    pub last_used_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

/// `GET /healthz`
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    pub status: HealthStatus,
    pub version: String,
}

#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    Ok,
    DatabaseUnavailable,
}
