//! Local files as a workspace's first snapshot: the same engine that runs on the machines,
//! run here, its objects sent to the URLs the server grants.

use super::workspace::path_of;
use crate::client::{Client, encode};
use crate::fail::fail;
use crate::output;
use crate::progress::Show;
use anyhow::{Context, Result};
use dumont_core::id::{Digest, WorkspaceName};
use dumont_core::key::WorkspaceKey;
use dumont_core::snapshot::{ObjectKind, ObjectRef, Progress};
use dumont_snapshot::{Error, Events, ObjectSink, SnapshotOptions, StoreError};
use dumont_wire::agent::UploadGrant;
use dumont_wire::rest::{CommitImport, Import, ImportUpload, ImportUploaded, Snapshot, Workspace};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;

/// How often an object is sent before the import is given up.
const TRIES: u32 = 4;

/// Stores `dir` as the first snapshot of the draft `name`. What was sent before an error
/// belongs to no snapshot; the draft is as before.
pub async fn import(client: &Client, name: &WorkspaceName, dir: &Path, quiet: bool) -> Result<Snapshot> {
    let begun: Import = client
        .post(&format!("{}/imports", path_of(name)), &serde_json::json!({}))
        .await?;
    let workspace: Workspace = client.get(&path_of(name)).await?;
    let key = super::workspace_key::of_workspace(client, &workspace).await?;
    let base = format!("/imports/{}", encode(&begun.import_id));
    let cache = tempfile::tempdir().context("make a temporary directory")?;
    let stop = StopOnDrop(Arc::new(AtomicBool::new(false)));
    let job = Job {
        sink: Sink {
            client: client.clone(),
            base: base.clone(),
            runtime: Handle::current(),
        },
        dir: dir.to_owned(),
        stamp: begun.stamp,
        cache_path: cache.path().join("cache"),
        stop: Arc::clone(&stop.0),
        key,
        model_files: workspace.spec.snapshot.model_files,
        quiet,
    };
    let report = tokio::task::spawn_blocking(move || job.run()).await?;
    let report = report.map_err(|e| explained(&e, dir))?;
    client
        .post(&format!("{base}/commit"), &CommitImport { report })
        .await
}

/// When whoever waits goes away, the engine's threads stop, too.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Job {
    sink: Sink,
    dir: std::path::PathBuf,
    stamp: String,
    cache_path: std::path::PathBuf,
    stop: Arc<AtomicBool>,
    key: Option<WorkspaceKey>,
    model_files: Vec<String>,
    quiet: bool,
}

impl Job {
    fn run(self) -> Result<dumont_core::snapshot::SnapshotReport, Error> {
        let options = SnapshotOptions {
            path: self.dir,
            stamp: self.stamp,
            parent: None,
            full: true,
            cache_path: self.cache_path,
            workers: 0,
            key: self.key,
            model_files: self.model_files,
            cancelled: &self.stop,
        };
        dumont_snapshot::snapshot(&options, &self.sink, &Shown(Show::new(self.quiet)))
    }
}

/// The engine's progress on the terminal; its log lines are for machines.
struct Shown(Show);

impl Events for Shown {
    fn progress(&self, progress: Progress) {
        self.0.bytes("import", &progress);
    }
    fn log(&self, _: &str) {}
}

/// Each object: leave to create it, then its bytes.
struct Sink {
    client: Client,
    /// `/imports/{id}`
    base: String,
    runtime: Handle,
}

impl Sink {
    async fn send(&self, wanted: &ImportUpload, body: &[u8]) -> Result<ObjectRef> {
        let grant: UploadGrant = self
            .client
            .post(&format!("{}/uploads", self.base), wanted)
            .await?;
        if grant.parts.is_empty() {
            self.client
                .put_object(&grant.url, &grant.headers, body.to_vec())
                .await?;
        } else {
            self.send_parts(&grant, body).await?;
        }
        Ok(ObjectRef {
            key: grant.key,
            size: wanted.size,
            digest: wanted.digest,
            version: None,
        })
    }

    /// A bucket takes it in parts, and the server completes it.
    async fn send_parts(&self, grant: &UploadGrant, mut body: &[u8]) -> Result<()> {
        let mut parts = Vec::with_capacity(grant.parts.len());
        for part in &grant.parts {
            let (piece, rest) = usize::try_from(part.size)
                .ok()
                .and_then(|size| body.split_at_checked(size))
                .context("the server's parts do not fit the object")?;
            body = rest;
            let tag = self
                .client
                .put_object(&part.url, &grant.headers, piece.to_vec())
                .await?;
            parts.push(tag.context("the store gave no tag for a part")?);
        }
        let sent = ImportUploaded {
            key: grant.key.clone(),
            parts,
        };
        self.client.post(&format!("{}/uploaded", self.base), &sent).await
    }

    async fn send_stubbornly(&self, wanted: &ImportUpload, body: &[u8]) -> Result<ObjectRef> {
        let mut pause = Duration::from_millis(200);
        for _ in 1..TRIES {
            match self.send(wanted, body).await {
                Err(e) if worth_trying_again(&e) => tokio::time::sleep(pause).await,
                done => return done,
            }
            pause *= 3;
        }
        self.send(wanted, body).await
    }
}

/// A refusal in the server's own words stays one; what the network did may pass.
fn worth_trying_again(e: &anyhow::Error) -> bool {
    crate::client::is_unreachable(e) || crate::fail::body_of(e).code == "unexpected_answer"
}

impl ObjectSink for Sink {
    fn put(&self, kind: ObjectKind, digest: Digest, body: &[u8]) -> Result<ObjectRef, StoreError> {
        let wanted = ImportUpload {
            kind,
            size: body.len() as u64,
            digest,
        };
        self.runtime
            .block_on(self.send_stubbornly(&wanted, body))
            .map_err(|e| {
                let body = crate::fail::body_of(&e);
                if body.code.contains("full") || body.code.contains("space") {
                    StoreError::Full(body.message)
                } else {
                    StoreError::Transfer(body.message)
                }
            })
    }
}

fn explained(e: &Error, dir: &Path) -> anyhow::Error {
    let (code, hint) = match e {
        Error::NoSuchPath { .. } => ("no_such_path", "check the directory's name"),
        Error::Io { .. } => ("io", "can this user read every file below it?"),
        Error::StoreFull { .. } => ("store_full", "make room where the server keeps its data"),
        Error::Cancelled => ("cancelled", "run it again"),
        _ => (
            "import_failed",
            "run it again; if it stays, report it with the server's log",
        ),
    };
    fail(code, format!("{}: {e}", dir.display()), hint)
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
