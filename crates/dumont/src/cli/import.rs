//! Local files as a workspace's first snapshot: the same engine that runs on the machines,
//! run here, its objects sent to the URLs the server grants.

use super::workspace::path_of;
use crate::client::{Client, encode};
use crate::output;
use anyhow::Result;
use dumont_core::id::WorkspaceName;
use dumont_wire::rest::{Import, Snapshot};
use std::path::Path;

/// Stores `dir` as the first snapshot of the draft `name`.
pub async fn import(client: &Client, name: &WorkspaceName, dir: &Path, quiet: bool) -> Result<Snapshot> {
    let _import: Import = client.post(&format!("{}/imports", path_of(name)), &serde_json::json!({})).await?;
    let _ = (dir, quiet, encode(""));
    Err(crate::fail::fail("not_built", "this build has no snapshot engine", "build a newer version"))
}

/// What was stored, in one line.
pub fn summary(s: &Snapshot) -> String {
    format!(
        "Imported {}, {} ({} sent) as {}",
        output::count(s.files_total, "file"),
        output::bytes(s.total_bytes),
        output::bytes(s.uploaded_bytes),
        s.snapshot_id
    )
}
