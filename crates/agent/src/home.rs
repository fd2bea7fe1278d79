//! Where the agent keeps its few files: `~/.dumont`, outside the workspace, so that a
//! snapshot never contains them.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The agent's own directory.
#[derive(Debug, Clone)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// From `HOME`; without it `/root` or `/tmp`. The user database is never asked: that
    /// is a name service too.
    pub fn locate() -> Self {
        let home = std::env::var_os("HOME")
            .filter(|h| Path::new(h).is_absolute())
            .map(PathBuf::from);
        let fallback = || {
            if rustix::process::getuid().is_root() {
                "/root".into()
            } else {
                "/tmp".into()
            }
        };
        Self {
            root: home.unwrap_or_else(fallback).join(".dumont"),
        }
    }

    /// Held while a snapshot or a restore works on the directory.
    pub fn session_lock(&self) -> PathBuf {
        self.root.join("session.lock")
    }

    /// The command that ends a pause which a snapshot began.
    pub fn owed_hook(&self) -> PathBuf {
        self.root.join("after-snapshot.json")
    }

    /// What the engine remembers about the files of one workspace directory.
    pub fn cache_for(&self, path: &str) -> PathBuf {
        let name = blake3::hash(path.as_bytes()).to_hex();
        self.root.join("cache").join(format!("{name}.cache"))
    }

    /// The workload's definition, state and log.
    pub fn workload(&self) -> PathBuf {
        self.root.join("workload")
    }
}

/// Makes `dir` and its parents; only their owner may look in, for specs hold environments.
pub fn private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| at(dir, &e))
}

/// Writes a file that only its owner can read, whole or not at all.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(bytes)?;
    drop(file);
    fs::rename(&new, path).map_err(|e| at(path, &e))
}

/// The same error with the path in front, which std leaves out.
pub fn at(path: &Path, e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}
