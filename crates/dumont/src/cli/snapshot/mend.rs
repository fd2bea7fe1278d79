//! Repair: by the server that keeps the snapshots, or without one on a directory of objects.
//!
//! In a directory a repair is what it is in a store: one new index for each workspace, and beside each
//! snapshot's commit another one that points to it. Nothing is changed or removed.

use super::look::explained;
use super::place::{Commit, is_directory, snapshots_in};
use crate::cli::workspace::path_of;
use crate::cli::workspace_key::KeyArgs;
use crate::config::Globals;
use crate::fail::{body_of, fail, usage};
use crate::turn;
use anyhow::Result;
use clap::Args;
use dumont_core::id::{Digest, WorkspaceName};
use dumont_core::key::WorkspaceKey;
use dumont_core::snapshot::{ObjectKind, ObjectRef, SnapshotHead};
use dumont_snapshot::{DirStore, ObjectSink, StoreError, repair as rebuild};
use dumont_wire::rest::Repaired;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use ulid::Ulid;

/// Ctrl-C ends the program, and with it the engine.
static NEVER: AtomicBool = AtomicBool::new(false);

#[derive(Debug, Args)]
pub struct RepairArgs {
    /// Workspace, or a directory of objects (with a slash: ./objects)
    place: String,
    #[command(flatten)]
    key: KeyArgs,
}

pub async fn repair(globals: &Globals, args: &RepairArgs) -> Result<Repaired> {
    if is_directory(&args.place) {
        let (dir, key) = (PathBuf::from(&args.place), args.key.read()?);
        return tokio::task::spawn_blocking(move || in_directory(&dir, key.as_ref())).await?;
    }
    let name: WorkspaceName = args.place.parse().map_err(|_| {
        usage(
            format!("{:?} is neither a workspace's name nor a directory", args.place),
            "write a directory with a slash: ./objects",
        )
    })?;
    let path = format!("{}/repair", path_of(&name));
    turn::post(&globals.client()?, &path, &json!({}), globals.quiet).await
}

fn in_directory(dir: &Path, key: Option<&WorkspaceKey>) -> Result<Repaired> {
    // `workspaces/{id}`: one's chunks are never another's.
    let mut workspaces: BTreeMap<String, Vec<Commit>> = BTreeMap::new();
    for commit in snapshots_in(dir)? {
        let index = commit.head.indexes.first();
        if let Some((prefix, _)) = index.and_then(|o| o.key.split_once("/indexes/"))
            && dir.join(prefix).is_dir()
        {
            workspaces.entry(prefix.to_owned()).or_default().push(commit);
        }
    }
    if workspaces.is_empty() {
        return Err(fail(
            "no_snapshot",
            format!("there is no snapshot in {}", dir.display()),
            "name the directory that holds `workspaces/`: a copy of the bucket, or DATA/objects/objects",
        ));
    }
    let mut all = Repaired::default();
    for (prefix, commits) in &workspaces {
        let done = one_workspace(dir, prefix, commits, key)?;
        all.snapshots += done.snapshots;
        all.pointed += done.pointed;
        all.packs_read += done.packs_read;
        all.bytes_read += done.bytes_read;
        all.damaged.extend(done.damaged);
        all.lost.extend(done.lost);
    }
    Ok(all)
}

fn one_workspace(
    dir: &Path,
    prefix: &str,
    commits: &[Commit],
    key: Option<&WorkspaceKey>,
) -> Result<Repaired> {
    let heads: Vec<SnapshotHead> = commits.iter().map(|c| c.head.clone()).collect();
    let mut packs = Vec::new();
    // Without the folder every pack is missing, which is for the engine to say.
    for entry in fs::read_dir(dir.join(prefix).join("packs")).into_iter().flatten() {
        packs.push(format!("{prefix}/packs/{}", entry?.file_name().to_string_lossy()));
    }
    packs.sort();
    let (source, sink) = (DirStore::new(dir), Sink { dir, prefix });
    let found = rebuild(&heads, &packs, &source, &sink, key, &NEVER).map_err(|e| explained(&e))?;
    let mut pointed = 0;
    for commit in commits {
        let Some(index) = &found.index else { break };
        let mut facts: Value = serde_json::from_slice(&fs::read(&commit.file)?)?;
        facts["head"]["indexes"] = json!([index]);
        facts["packs"] = json!(found.packs);
        let name = format!("snapshot-{}.json", &index.digest.to_string()[..16]);
        write(&commit.file.with_file_name(name), facts.to_string().as_bytes())?;
        pointed += 1;
    }
    Ok(Repaired {
        snapshots: commits.len() as u64,
        pointed,
        packs_read: found.packs_read,
        bytes_read: found.bytes_read,
        damaged: found.damaged,
        lost: found.lost,
    })
}

/// One workspace's part of the directory, for new objects.
struct Sink<'a> {
    dir: &'a Path,
    prefix: &'a str,
}

impl ObjectSink for Sink<'_> {
    fn put(&self, kind: ObjectKind, digest: Digest, body: &[u8]) -> Result<ObjectRef, StoreError> {
        let key = format!("{}/{}/{}", self.prefix, kind.folder(), Ulid::generate());
        write(&self.dir.join(&key), body).map_err(|e| StoreError::Transfer(body_of(&e).message))?;
        Ok(ObjectRef {
            key,
            size: body.len() as u64,
            digest,
            version: None,
        })
    }
}

/// All of it or nothing, whenever this ends.
fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let folder = file.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut new = tempfile::NamedTempFile::new_in(folder)?;
        new.write_all(bytes)?;
        new.as_file().sync_all()?;
        new.persist(file)?;
        Ok::<_, std::io::Error>(())
    };
    write().map_err(|e| {
        fail(
            "io",
            format!("cannot write {}: {e}", file.display()),
            "may this user write there, and is there room?",
        )
    })
}
