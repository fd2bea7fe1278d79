//! Local files as a workspace's first snapshot: the same engine that runs on the machines,
//! run here, its objects sent to the URLs the server grants.

use super::workspace::path_of;
use crate::client::{Client, encode, is_passing};
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
                // In step with nobody else who lost the same store.
                Err(e) if is_passing(&e) => {
                    tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
                }
                done => return done,
            }
            pause *= 3;
        }
        self.send(wanted, body).await
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::serve;

    fn put(answers: Vec<(u16, &'static str)>) -> (Result<ObjectRef>, Vec<String>) {
        let grant = r#"{"key":"packs/1","url":"/objects/packs/1","headers":{},"addresses":[],"parts":[]}"#;
        let both = answers
            .into_iter()
            .flat_map(|(status, body)| [(200, grant.to_owned()), (status, body.to_owned())]);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (client, handle) = serve(both.collect());
        let sink = Sink {
            client,
            base: "/imports/1".into(),
            runtime: runtime.handle().clone(),
        };
        let wanted = ImportUpload {
            kind: ObjectKind::Pack,
            size: 3,
            digest: Digest([7; 32]),
        };
        let sent = runtime.block_on(sink.send_stubbornly(&wanted, b"abc"));
        (sent, handle.join().unwrap())
    }

    #[test]
    fn an_object_is_sent_again_to_a_fresh_url_while_the_store_says_later() {
        let failed = r#"{"code":"store_failed","message":"the store cannot write","hint":"see the log"}"#;
        let (sent, seen) = put(vec![(500, failed), (503, "<Code>SlowDown</Code>"), (200, "")]);
        assert_eq!(sent.unwrap().key, "packs/1");
        let puts = seen.iter().filter(|r| r.starts_with("PUT /objects/packs/1"));
        assert_eq!(puts.count(), 3, "{seen:?}");
    }

    #[test]
    fn a_full_store_is_said_at_once() {
        let full = r#"{"code":"store_full","message":"no space left","hint":"make room"}"#;
        let (sent, _) = put(vec![(507, full)]);
        let body = crate::fail::body_of(&sent.unwrap_err());
        assert_eq!(body.code, "store_full");
    }
}
