//! Messages between the controller and the agent, over stdin and stdout of an SSH session.
//!
//! The controller opens with [`ToAgent`] `Hello`; every request carries an `id`, and the
//! agent answers it with any number of `Progress` and `UploadsWanted`/`DownloadsWanted`, and
//! at last exactly one `Done` or `Failed`. The agent asks for URLs when it needs them, so that
//! they live briefly and name single objects; it never sees a key of the store.
//! End of input ends the session: the agent stops its transfers and exits. Only the workload's
//! supervisor, a process of its own, lives on.

use dumont_core::id::Digest;
use dumont_core::key::WorkspaceKey;
use dumont_core::probe::Probe;
use dumont_core::snapshot::{
    ModelFiles, ObjectKind, ObjectRef, Progress, RestoreReport, SnapshotHead, SnapshotReport,
};
use dumont_core::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Version of this protocol. A peer that is newer is refused, one older is still served.
pub const PROTOCOL: u32 = 1;

/// The name of a session's process, by which the machine itself sees that a controller is there.
pub const SESSION: &str = "dumont-session";

/// Controller to agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToAgent {
    /// Chosen by the controller, never 0; replies repeat it.
    pub id: u64,
    pub body: Request,
}

/// Agent to controller. `id` 0 is for what nobody asked for (heartbeats).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FromAgent {
    pub id: u64,
    pub body: Event,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// Must be first.
    Hello {
        protocol: u32,
        /// The controller's clock; the agent measures its skew against it.
        now: Timestamp,
        /// The workspace directory, for the disk facts.
        path: String,
        /// Milliseconds between heartbeats; 0 for none.
        heartbeat_ms: u64,
        /// A certificate authority (PEM) of the object store's, besides the public ones.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        store_ca: Option<String>,
    },
    Snapshot(SnapshotRequest),
    Restore(RestoreRequest),
    /// Compares the MD5 of model files with the snapshot's.
    CompareModels(ModelsRequest),
    /// URLs for uploads asked for by `UploadsWanted`, in the same order. `id` is the snapshot's.
    Uploads {
        grants: Vec<UploadGrant>,
    },
    /// URLs for downloads asked for by `DownloadsWanted`, in the same order.
    Downloads {
        grants: Vec<DownloadGrant>,
    },
    /// Writes the workload's definition and (re)starts its supervisor.
    StartWorkload(Workload),
    /// Stops the workload and its supervisor, and waits until they are gone.
    StopWorkload,
    WorkloadStatus,
    /// Asks the workload once; a command has the workload's environment and directory.
    Probe {
        probe: Probe,
        timeout_ms: u64,
    },
    /// Gives up the request with this message's `id`; it then ends in `Failed`.
    Cancel,
    Ping,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    Heartbeat {
        now: Timestamp,
        workload: Option<WorkloadStatus>,
    },
    Progress(Progress),
    UploadsWanted {
        objects: Vec<UploadWanted>,
    },
    DownloadsWanted {
        keys: Vec<String>,
    },
    /// Every part of an upload was sent; the controller completes it. Not answered.
    Uploaded {
        key: String,
        /// What the store answered to each part, in their order.
        parts: Vec<String>,
    },
    /// A restore has brought what `ready_when` names: the workload may start.
    Ready {
        files: u64,
    },
    /// A line for the log, e.g. `Incremental: 3 files changed out of 120 total`.
    Log {
        line: String,
    },
    Done(Outcome),
    Failed(Failure),
}

/// How a request ended well.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "snake_case")]
pub enum Outcome {
    Hello(Box<Facts>),
    Snapshot(Box<SnapshotReport>),
    Restore(Box<RestoreReport>),
    Models(Box<ModelFiles>),
    WorkloadStarted { supervisor_pid: u32 },
    WorkloadStopped,
    WorkloadStatus { status: Option<WorkloadStatus> },
    Probe(ProbeAnswer),
    Pong,
}

/// What one try of a probe found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeAnswer {
    pub healthy: bool,
    /// In words, e.g. `exits with 3` or `answers 503`.
    pub verdict: String,
    /// The tail of stdout and stderr, or the begin of the body; at most 4 KB.
    pub output: String,
    pub elapsed_ms: u64,
}

/// How a request ended badly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({hint})")]
pub struct Failure {
    pub code: FailureCode,
    /// What happened, with the path, key or number that it concerns.
    pub message: String,
    /// What to do next.
    pub hint: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// The peer speaks a newer protocol or format.
    Version,
    /// The request itself is wrong.
    Invalid,
    /// The workspace path does not exist or is not a directory.
    NoSuchPath,
    /// No space left on the machine.
    DiskFull,
    /// A file could not be read or written.
    Io,
    /// An object is missing in the store.
    ObjectMissing,
    /// An object or chunk is not what its digest says.
    Corrupt,
    /// A transfer failed after its retries.
    Transfer,
    /// Another session still works on this directory.
    Busy,
    /// A command of the workspace's own failed.
    Hook,
    /// More bytes than one snapshot may have.
    OverBudget,
    Cancelled,
    /// Anything else; a bug worth reporting.
    Internal,
}

/// Facts about the machine, as the agent sees them. Untrusted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    pub protocol: u32,
    /// The agent's package version.
    pub agent_version: String,
    /// The machine's clock when it read our `Hello`.
    pub now: Timestamp,
    /// Its clock minus ours, milliseconds (network delay included).
    pub clock_skew_ms: i64,
    /// What was done about a clock that was plainly wrong.
    #[serde(default)]
    pub clock_fix: Option<ClockFix>,
    pub hostname: String,
    pub kernel: String,
    pub cpus: u32,
    pub memory_total_bytes: u64,
    pub memory_available_bytes: u64,
    /// Of the file system that holds the workspace path (or its nearest existing parent).
    pub disk_total_bytes: u64,
    pub disk_free_bytes: u64,
    pub gpus: Vec<GpuFact>,
    /// Why `gpus` is empty, e.g. `nvidia-smi: not found`.
    pub gpu_error: Option<String>,
    pub workload: Option<WorkloadStatus>,
}

/// A clock that was plainly wrong. Older agents do not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockFix {
    pub before: Timestamp,
    /// What it showed once it was set; `None` where the host does not let us.
    pub after: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GpuFact {
    pub name: String,
    pub memory_mb: u64,
    pub driver_version: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotRequest {
    /// Absolute path of the directory.
    pub path: String,
    /// `{instance}-{unix}`; the agent puts `base-` or `incr-` before it.
    pub stamp: String,
    /// The last snapshot that this very instance took or restored; none means full.
    pub parent: Option<String>,
    /// Read every file even if its times say it did not change.
    pub full: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// Ends of the names of files whose MD5 is taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub model_files: Vec<String>,
    /// The workspace's own; seals all that is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<WorkspaceKey>,
}

/// Shell commands around a snapshot, with the workload's environment and in its directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hooks {
    pub before: Option<String>,
    /// Runs whatever becomes of the snapshot, also after the agent died.
    pub after: Option<String>,
    /// For each of them.
    pub timeout_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestoreRequest {
    /// Absolute path; created if it does not exist.
    pub path: String,
    pub head: SnapshotHead,
    /// Remove what the snapshot does not have.
    pub delete: bool,
    /// Globs of paths below the directory that come first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub priority: Vec<String>,
    /// Globs of what must be there before the workload starts; none for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ready_when: Vec<String>,
    /// It runs already, and what `ready_when` names is its own.
    #[serde(default)]
    pub started: bool,
    /// Globs of what is restored; none for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// Globs of what is not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// The workspace's own, where its snapshots are sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<WorkspaceKey>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelsRequest {
    /// Absolute path of the directory that was restored.
    pub path: String,
    pub head: SnapshotHead,
    /// The workspace's own, where its snapshots are sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<WorkspaceKey>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UploadWanted {
    pub kind: ObjectKind,
    /// Exact bytes that will be sent.
    pub size: u64,
    pub digest: Digest,
}

/// Permission to create one object, once: by one PUT to `url`, or where there are `parts`, by
/// one PUT for each of them, after which the controller is told and completes the object.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UploadGrant {
    pub key: String,
    /// Empty where there are parts.
    #[serde(default)]
    pub url: String,
    /// Headers that the signature covers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartGrant>,
    /// Where the URLs' host is; who gets this resolves no names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub addresses: Vec<IpAddr>,
}

/// One piece of an object, in its order.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartGrant {
    pub url: String,
    /// Exact bytes; the signature covers them.
    pub size: u64,
}

/// Permission to read one object.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DownloadGrant {
    pub key: String,
    /// None if the store does not have it.
    pub url: Option<String>,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Where the URL's host is; who gets this resolves no names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub addresses: Vec<IpAddr>,
}

/// What the supervisor keeps running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Shell command, run by `sh -c` in `path`.
    pub start: String,
    pub path: String,
    pub env: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadStatus {
    pub running: bool,
    pub pid: Option<u32>,
    pub restarts: u64,
    /// Exit code of the last run that ended; negative for a signal.
    pub last_exit: Option<i32>,
    pub started_at: Option<Timestamp>,
}

/// The objects a report names, in upload order.
pub fn objects_of(report: &SnapshotReport) -> impl Iterator<Item = &ObjectRef> {
    report
        .packs
        .iter()
        .chain(report.index.iter())
        .chain(report.metadata.iter())
}
