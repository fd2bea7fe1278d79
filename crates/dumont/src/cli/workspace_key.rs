//! The key of an encrypted workspace: shown, kept in a file, and handed to who reads snapshots.

use super::workspace::path_of;
use crate::client::Client;
use crate::config::Globals;
use crate::fail::{fail, usage};
use crate::output;
use anyhow::{Context, Result};
use clap::Args;
use dumont_core::id::WorkspaceName;
use dumont_core::key::WorkspaceKey;
use dumont_wire::rest::{ShownKey, Workspace};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Holds the key itself, for scripts.
const VARIABLE: &str = "DUMONT_SNAPSHOT_KEY";

const WARNING: &str = "Whoever has this key can read the workspace's snapshots in the store. Without it nobody can: \
     if the server and every copy of the key are lost, so is the data. Keep a copy away from the server.";

#[derive(Debug, Args)]
pub struct ShowArgs {
    name: WorkspaceName,
    /// Write it to a new file that only you can read, instead of to stdout
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Where the key comes from when snapshots are read.
#[derive(Debug, Clone, Default, Args)]
pub struct KeyArgs {
    /// Key of an encrypted workspace [default: DUMONT_SNAPSHOT_KEY, or the server's]
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

impl KeyArgs {
    /// The key that was named, if one was.
    pub fn read(&self) -> Result<Option<WorkspaceKey>> {
        let (source, text) = match (&self.key_file, std::env::var(VARIABLE)) {
            (Some(file), _) => {
                let text = std::fs::read_to_string(file).map_err(|e| {
                    usage(
                        format!("cannot read {}: {e}", file.display()),
                        "name the file that `dumont workspace key NAME --out FILE` wrote",
                    )
                })?;
                (file.display().to_string(), text)
            }
            (None, Ok(text)) if !text.trim().is_empty() => (VARIABLE.to_owned(), text),
            _ => return Ok(None),
        };
        let key = text.parse();
        key.map(Some).map_err(|e| {
            usage(
                format!("{source}: {e}"),
                "`dumont workspace key NAME` shows the right one",
            )
        })
    }
}

/// The server's key of a workspace; `None` if it is not encrypted.
pub async fn of_workspace(client: &Client, workspace: &Workspace) -> Result<Option<WorkspaceKey>> {
    if !workspace.spec.snapshot.encrypt {
        return Ok(None);
    }
    fetch(client, &workspace.name).await.map(Some)
}

async fn fetch(client: &Client, name: &WorkspaceName) -> Result<WorkspaceKey> {
    let shown: ShownKey = client.get(&format!("{}/key", path_of(name))).await?;
    Ok(shown.key)
}

pub async fn show(globals: &Globals, args: &ShowArgs) -> Result<()> {
    let key = fetch(&globals.client()?, &args.name).await?;
    match &args.out {
        Some(file) => {
            write(file, &key)?;
            output::note(&format!("The key of {} is in {}.", args.name, file.display()));
        }
        None if globals.json => output::json(&ShownKey { key })?,
        None => output::line(&key.to_text()),
    }
    output::note(WARNING);
    Ok(())
}

/// Never over another file: it may hold the only copy of another key.
fn write(file: &Path, key: &WorkspaceKey) -> Result<()> {
    let mut options = std::fs::OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o600).open(file);
    let mut opened = opened.map_err(|e| {
        fail(
            "io",
            format!("cannot create {}: {e}", file.display()),
            "name a file that is not there yet",
        )
    })?;
    let written = writeln!(opened, "{}", key.to_text()).and_then(|()| opened.sync_all());
    written.with_context(|| format!("write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_for_its_owner_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (file, key) = (dir.path().join("key"), WorkspaceKey([5; 32]));
        write(&file, &key).unwrap();
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(write(&file, &WorkspaceKey([6; 32])).is_err());
        let args = KeyArgs {
            key_file: Some(file.clone()),
        };
        assert_eq!(args.read().unwrap(), Some(key));
        std::fs::write(&file, "not a key").unwrap();
        let e = crate::fail::body_of(&args.read().unwrap_err());
        assert!(
            e.message.contains("64 hexadecimal digits") && !e.message.contains("not a key"),
            "{e:?}"
        );
    }
}
