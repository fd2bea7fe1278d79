//! Where a snapshot lies: at a server, or in a plain directory of objects.
//!
//! A directory is what is left when all else is gone: a copy of the bucket, or the embedded
//! store's own. Its `snapshot.json` files say which snapshots there are.

use crate::cli::workspace::path_of;
use crate::cli::workspace_key::{self, KeyArgs};
use crate::client::{Client, Got, encode, is_passing, refused};
use crate::config::Globals;
use crate::fail::{body_of, fail, usage};
use anyhow::{Context, Result};
use dumont_core::id::WorkspaceName;
use dumont_core::key::WorkspaceKey;
use dumont_core::snapshot::SnapshotHead;
use dumont_core::time::Timestamp;
use dumont_snapshot::{DirStore, ObjectSource, StoreError};
use dumont_wire::agent::DownloadGrant;
use dumont_wire::rest::{OpenedSnapshot, ReadSnapshot, Snapshot};
use reqwest::StatusCode;
use serde::Deserialize;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;

/// Keys in one request.
const BATCH: usize = 500;
const TRIES: u32 = 4;

/// Where to look, and the snapshots there, newest first.
pub struct Place {
    pub source: Box<dyn ObjectSource + Send + Sync>,
    pub heads: Vec<SnapshotHead>,
    /// What they are sealed with.
    pub key: Option<WorkspaceKey>,
}

impl Place {
    /// `place` is a workspace's name, or a directory (with a slash in it). With `only`, that
    /// snapshot alone; with `newest`, the newest.
    pub async fn open(globals: &Globals, place: &str, wanted: Wanted<'_>, key: &KeyArgs) -> Result<Self> {
        let key = key.read()?;
        if is_directory(place) {
            return Self::directory(place.as_ref(), wanted, key);
        }
        let name: WorkspaceName = place.parse().map_err(|_| {
            usage(
                format!("{place:?} is neither a workspace's name nor a directory"),
                "write a directory with a slash: ./objects",
            )
        })?;
        Self::server(&globals.client()?, &name, wanted, key).await
    }

    async fn server(
        client: &Client,
        name: &WorkspaceName,
        wanted: Wanted<'_>,
        key: Option<WorkspaceKey>,
    ) -> Result<Self> {
        let base = format!("{}/snapshots", path_of(name));
        let ids: Vec<String> = match wanted {
            Wanted::These(ids) => ids.to_vec(),
            Wanted::Newest | Wanted::All => {
                let all: Vec<Snapshot> = client.list(&base).await?;
                let ids = all.into_iter().map(|s| s.snapshot_id);
                ids.take(if wanted.is_all() { usize::MAX } else { 1 }).collect()
            }
        };
        let mut heads = Vec::new();
        for id in &ids {
            let path = format!("{base}/{}/open", encode(id));
            let opened: OpenedSnapshot = client.post(&path, &ReadSnapshot::default()).await?;
            heads.push(opened.head);
        }
        let Some(first) = ids.first() else {
            return Err(fail(
                "no_snapshot",
                format!("workspace {name} has no snapshot"),
                format!("take one first: dumont snapshot create {name}"),
            ));
        };
        let key = match key {
            Some(key) => Some(key),
            None => workspace_key::of_workspace(client, &client.get(&path_of(name)).await?).await?,
        };
        let source = Remote {
            client: client.clone(),
            path: format!("{base}/{}/open", encode(first)),
            runtime: Handle::current(),
            grants: Mutex::default(),
        };
        Ok(Self {
            source: Box::new(source),
            heads,
            key,
        })
    }

    fn directory(dir: &Path, wanted: Wanted<'_>, key: Option<WorkspaceKey>) -> Result<Self> {
        let heads: Vec<_> = snapshots_in(dir)?.into_iter().map(|c| c.head).collect();
        let heads = match wanted {
            Wanted::All => heads,
            Wanted::Newest => heads.into_iter().take(1).collect(),
            Wanted::These(ids) => {
                let find = |id: &String| heads.iter().find(|h| h.snapshot_id == *id).cloned();
                let missing = |id: &String| {
                    fail(
                        "snapshot_not_found",
                        format!("{} has no snapshot {id:?}", dir.display()),
                        "`dumont snapshot check DIR` names those it has",
                    )
                };
                let found = ids.iter().map(|id| find(id).ok_or_else(|| missing(id)));
                found.collect::<Result<_>>()?
            }
        };
        if heads.is_empty() {
            return Err(fail(
                "no_snapshot",
                format!("there is no snapshot in {}", dir.display()),
                "name the directory that holds `workspaces/`: a copy of the bucket, or DATA/objects/objects",
            ));
        }
        Ok(Self {
            source: Box::new(DirStore::new(dir)),
            heads,
            key,
        })
    }
}

/// Is it a directory, and no workspace's name?
pub fn is_directory(place: &str) -> bool {
    place.contains('/') || Path::new(place).is_dir()
}

#[derive(Clone, Copy)]
pub enum Wanted<'a> {
    Newest,
    All,
    These(&'a [String]),
}

impl Wanted<'_> {
    fn is_all(self) -> bool {
        matches!(self, Self::All)
    }
}

/// What matters of a `snapshot.json`.
#[derive(Deserialize)]
pub struct Commit {
    snapshot_id: String,
    pub head: SnapshotHead,
    created_at: Timestamp,
    #[serde(skip)]
    pub file: PathBuf,
}

/// The snapshots of a directory, newest first. After a prune or a repair one may have several
/// commits: of those whose indexes are there the one with the youngest index is true (the names of
/// objects are ULIDs, which sort by time).
pub fn snapshots_in(dir: &Path) -> Result<Vec<Commit>> {
    let found = commits(dir).with_context(|| format!("read {}", dir.display()))?;
    let source = DirStore::new(dir);
    let rank = |commit: &Commit| {
        let there = |key: &str| source.path_of(key).is_some_and(|p| p.is_file());
        let keys = || commit.head.indexes.iter().map(|o| o.key.clone());
        (keys().all(|key| there(&key)), keys().max())
    };
    let mut out: Vec<Commit> = Vec::new();
    for commit in found {
        match out.iter_mut().find(|c| c.snapshot_id == commit.snapshot_id) {
            Some(known) if rank(&commit) > rank(known) => *known = commit,
            Some(_) => {}
            None => out.push(commit),
        }
    }
    Ok(out)
}

/// All of a directory, newest first. Files that are no such objects are none of ours.
fn commits(dir: &Path) -> std::io::Result<Vec<Commit>> {
    let (mut out, mut todo): (Vec<Commit>, Vec<PathBuf>) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if entry.file_type()?.is_dir() {
                todo.push(entry.path());
            } else if name.starts_with("snapshot") && name.ends_with(".json") {
                let text = std::fs::read(entry.path())?;
                out.extend(serde_json::from_slice(&text).map(|commit| Commit {
                    file: entry.path(),
                    ..commit
                }));
            }
        }
    }
    out.sort_by(|a, b| (b.created_at, &b.snapshot_id).cmp(&(a.created_at, &a.snapshot_id)));
    Ok(out)
}

/// Objects by URLs that the server grants.
struct Remote {
    client: Client,
    path: String,
    runtime: Handle,
    grants: Mutex<HashMap<String, DownloadGrant>>,
}

impl Remote {
    fn grants(&self) -> std::sync::MutexGuard<'_, HashMap<String, DownloadGrant>> {
        self.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, keys: &[String]) -> Result<()> {
        let keys = keys.to_vec();
        let opened: OpenedSnapshot = self.client.post(&self.path, &ReadSnapshot { keys }).await?;
        let mut grants = self.grants();
        grants.extend(opened.grants.into_iter().map(|g| (g.key.clone(), g)));
        Ok(())
    }

    /// A URL lives briefly: each try asks for a fresh one.
    async fn read(&self, key: &str, range: Option<Range<u64>>) -> Result<Option<Vec<u8>>> {
        let mut pause = Duration::from_millis(200);
        let mut left = TRIES;
        loop {
            let known = self.grants().get(key).cloned();
            let grant = match known {
                Some(grant) => grant,
                None => {
                    self.ask(&[key.to_owned()]).await?;
                    let asked = self.grants().get(key).cloned();
                    asked.with_context(|| format!("no URL for {key}"))?
                }
            };
            let Some(url) = &grant.url else {
                return Ok(None);
            };
            left -= 1;
            let why = match self.client.get_object(url, &grant.headers, range.clone()).await {
                Ok(Got::Bytes(bytes)) => return Ok(Some(bytes)),
                Ok(Got::Refused(StatusCode::NOT_FOUND, _)) => return Ok(None),
                // The object ends before: less came than was asked for, which is for the engine to say.
                Ok(Got::Refused(StatusCode::RANGE_NOT_SATISFIABLE, _)) => return Ok(Some(Vec::new())),
                Ok(Got::Refused(status, why)) => refused(status, why),
                Err(e) => e,
            };
            if left == 0 || !is_passing(&why) {
                return Err(why);
            }
            self.grants().remove(key);
            // In step with nobody else who lost the same store.
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause *= 2;
        }
    }
}

impl ObjectSource for Remote {
    fn prepare(&self, keys: &[String]) -> Result<(), StoreError> {
        let unknown: Vec<String> = {
            let grants = self.grants();
            keys.iter()
                .filter(|k| !grants.contains_key(*k))
                .cloned()
                .collect()
        };
        for batch in unknown.chunks(BATCH) {
            self.runtime
                .block_on(self.ask(batch))
                .map_err(|e| StoreError::Transfer(body_of(&e).message))?;
        }
        Ok(())
    }

    fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Vec<u8>, StoreError> {
        match self.runtime.block_on(self.read(key, range)) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => Err(StoreError::Missing(key.into())),
            Err(e) => Err(StoreError::Transfer(body_of(&e).message)),
        }
    }
}
