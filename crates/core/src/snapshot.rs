//! What a snapshot is, as the parts tell each other about it.
//!
//! The engine (`dumont-snapshot`) fills these in on the machine, the controller checks and
//! keeps them. The controller composes the list of index objects itself, from snapshots it
//! has already committed plus the one new index a machine uploads: a hostile machine can
//! therefore never redefine a chunk that an earlier snapshot needs (older indexes win).

use crate::id::Digest;
use serde::{Deserialize, Serialize};

/// One immutable object in the store. `digest` is BLAKE3 over the whole object.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectRef {
    pub key: String,
    /// Bytes.
    pub size: u64,
    pub digest: Digest,
    /// The store's version id where the bucket keeps versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// What an object holds; part of its key and of what the controller allows.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectKind {
    /// Chunks of files and of the manifest tree, one after the other.
    Pack,
    /// Where each chunk of some packs lies.
    Index,
    /// The plan's `metadata.json`.
    Metadata,
}

impl ObjectKind {
    /// The folder under a workspace's prefix.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Pack => "packs",
            Self::Index => "indexes",
            Self::Metadata => "metadata",
        }
    }
}

/// Everything a restore needs to begin.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotHead {
    /// E.g. `base-29049571-1766230181`.
    pub snapshot_id: String,
    /// Chunk id of the root directory's node.
    pub root: Digest,
    /// Oldest first; the first definition of a chunk wins.
    pub indexes: Vec<ObjectRef>,
    /// Regular files, symlinks included, hard links counted once per name.
    pub files: u64,
    /// Sum of the sizes of regular files.
    pub bytes: u64,
}

/// `full` (`base-…`) read every file; `incremental` (`incr-…`) only those that changed.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotType {
    Full,
    Incremental,
}

impl SnapshotType {
    /// The word in the database and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Incremental => "incremental",
        }
    }

    /// The document's id: `base-{instance}-{unix}` or `incr-{instance}-{unix}`.
    pub fn snapshot_id(self, instance: &str, unix_seconds: i64) -> String {
        let prefix = match self {
            Self::Full => "base",
            Self::Incremental => "incr",
        };
        format!("{prefix}-{instance}-{unix_seconds}")
    }
}

/// What the engine says when it has uploaded everything a new snapshot needs.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotReport {
    pub snapshot_id: String,
    pub snapshot_type: SnapshotType,
    /// Why an incremental was asked for and a full one was taken.
    pub full_because: Option<String>,
    pub root: Digest,
    pub files_total: u64,
    pub files_changed: u64,
    /// Files that were opened, a file with several names once.
    #[serde(default)]
    pub files_read: u64,
    pub total_bytes: u64,
    /// New packs, in the order of upload.
    pub packs: Vec<ObjectRef>,
    /// The new index; absent when nothing new was stored.
    pub index: Option<ObjectRef>,
    /// Absent when nothing changed: the parent's metadata holds.
    pub metadata: Option<ObjectRef>,
    /// Bytes sent, all objects together.
    pub uploaded_bytes: u64,
    /// Paths that changed while they were read, in printable form.
    pub torn: Vec<String>,
    /// Wall time of the engine, milliseconds.
    pub elapsed_ms: u64,
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreReport {
    pub files_restored: u64,
    pub bytes_restored: u64,
    pub downloaded_bytes: u64,
    /// Bytes of files that were there and right, and so not fetched.
    #[serde(default)]
    pub reused_bytes: u64,
    /// The most that transfers held in memory at any time.
    #[serde(default)]
    pub peak_buffer_bytes: u64,
    /// GET requests made.
    pub requests: u64,
    /// All of it, the validation included.
    pub elapsed_ms: u64,
    /// Comparing the restored tree with the manifest.
    pub validation_ms: u64,
    pub validation: Validation,
}

/// The document's answer: `{"validation":"ok","files_restored":X,"files_expected":Y}`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Validation {
    /// `ok` or `failed`.
    pub validation: Verdict,
    pub files_restored: u64,
    pub files_expected: u64,
    /// What does not match, by path; at most 100.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// An object of the store that is missing or not what it should be.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedObject {
    pub object: String,
    pub problem: String,
}

/// What a snapshot has lost.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostFiles {
    pub snapshot_id: String,
    /// Its tree is gone, so none of it can be restored.
    pub everything: bool,
    /// How many files.
    pub files: u64,
    /// Their paths, at most 1000; none where everything is lost.
    pub names: Vec<String>,
}

/// The MD5 of model files, compared with that of the snapshot when nobody waits any more.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelFiles {
    /// `failed` if the MD5 of any file is another one.
    pub validation: Verdict,
    pub files_checked: u64,
    /// Files of which the snapshot has an MD5.
    pub files_expected: u64,
    /// Files that the workload had changed or removed before they were looked at.
    pub changed: u64,
    /// Files whose MD5 is another one; at most 100.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mismatched: Vec<String>,
    pub elapsed_ms: u64,
}

#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    #[default]
    Ok,
    Failed,
}

/// Progress of a snapshot or a restore; `total_bytes` may grow while a tree is scanned.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    pub done_bytes: u64,
    pub total_bytes: u64,
    pub done_files: u64,
    pub total_files: u64,
}
