//! Directories of clusters, and what is left of those whose owners were killed.

use crate::{Programs, Result, at};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tempfile::TempDir;

const PREFIX: &str = "dumont-postgres-";
const OWNER: &str = "owner.lock";

/// A private directory (whoever reaches the socket in it is let in), and the lock that says that its owner lives.
pub(crate) fn owned_dir(programs: &Programs) -> Result<(TempDir, File)> {
    sweep(&std::env::temp_dir());
    let dir = tempfile::Builder::new()
        .prefix(PREFIX)
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir()
        .map_err(at("make a directory for PostgreSQL"))?;
    // Locked before it is seen under its name.
    let unseen = dir.path().join("owner.new");
    let owner = File::create(&unseen).map_err(at("make the cluster's lock"))?;
    owner.lock().map_err(at("take the cluster's lock"))?;
    fs::rename(unseen, dir.path().join(OWNER)).map_err(at("show the cluster's lock"))?;
    programs.give(dir.path())?;
    Ok((dir, owner))
}

/// Removes what nobody owns any more. One that is just being made has no lock yet and is
/// left alone; whatever cannot be removed is somebody else's.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else {
        return;
    };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if ours
            && let Ok(owner) = File::open(entry.path().join(OWNER))
            && owner.try_lock().is_ok()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_owns_is_swept() {
        let base = TempDir::new().unwrap();
        let make = |name: &str| {
            let dir = base.path().join(name);
            fs::create_dir(&dir).unwrap();
            dir
        };
        let (owned, left, young, foreign) = (
            make("dumont-postgres-owned"),
            make("dumont-postgres-left"),
            make("dumont-postgres-young"),
            make("foreign"),
        );
        let owner = File::create(owned.join(OWNER)).unwrap();
        owner.lock().unwrap();
        for dir in [&left, &foreign] {
            File::create(dir.join(OWNER)).unwrap();
        }
        sweep(base.path());
        assert!(owned.exists() && young.exists() && foreign.exists());
        assert!(!left.exists());
    }
}
