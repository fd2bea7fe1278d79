//! The data directory: there, ours alone, writable, with room; and whether a server uses it.

use super::Check;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Less is trouble soon: a snapshot of a few GB, and the database beside it.
const ROOM: u64 = 5 << 30;
/// Less is trouble now.
const LEAST: u64 = 256 << 20;

pub fn examine(dir: &Path) -> Vec<Check> {
    let shown = dir.display();
    let metadata = match fs::metadata(dir) {
        Ok(metadata) if metadata.is_dir() => metadata,
        Ok(_) => {
            return vec![Check::failed(
                "data directory",
                format!("{shown} is not a directory"),
                "name another one with --data-dir",
            )];
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return vec![Check::warning(
                "data directory",
                format!("{shown} does not exist yet"),
                "the first `dumont serve` makes it",
            )];
        }
        Err(e) => {
            return vec![Check::failed(
                "data directory",
                format!("{shown}: {e}"),
                "run as the user who runs the server, or name another one with --data-dir",
            )];
        }
    };
    let mode = metadata.permissions().mode() & 0o777;
    let mut checks = vec![writable(dir)];
    if mode & 0o077 != 0 {
        checks.push(Check::warning(
            "data directory",
            format!("others may enter {shown} (mode {mode:o}); it holds keys and tokens"),
            format!("chmod 700 {shown}"),
        ));
    }
    checks.push(room(dir));
    checks.push(server(dir));
    checks
}

fn writable(dir: &Path) -> Check {
    let name = "data directory";
    let probe = dir.join(format!(".doctor-{}", std::process::id()));
    let tried = fs::write(&probe, b"dumont doctor").and_then(|()| fs::remove_file(&probe));
    match tried {
        Ok(()) => Check::ok(name, format!("{} can be written", dir.display())),
        Err(e) => Check::failed(
            name,
            format!("{} cannot be written: {e}", dir.display()),
            "check its owner, its mode and the free space",
        ),
    }
}

fn room(dir: &Path) -> Check {
    let name = "free space";
    match rustix::fs::statvfs(dir) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let detail = format!("{:.1} GB free", free as f64 / 1e9);
            let hint = "free some, or keep snapshots in an S3 bucket";
            match free {
                ..LEAST => Check::failed(name, detail, hint),
                LEAST..ROOM => Check::warning(name, detail, hint),
                _ => Check::ok(name, detail),
            }
        }
        Err(e) => Check::warning(name, format!("cannot be told: {e}"), "look with df"),
    }
}

/// The lock is asked for and given back at once; a server that starts in that moment tries again
/// by its supervisor.
fn server(dir: &Path) -> Check {
    let name = "server";
    let Ok(lock) = fs::File::open(dir.join("server.lock")) else {
        return Check::ok(name, "none has run here yet");
    };
    match lock.try_lock_shared() {
        Ok(()) => Check::ok(name, "none is running here"),
        Err(fs::TryLockError::WouldBlock) => {
            let about = fs::read_to_string(dir.join("server.json")).unwrap_or_default();
            let about: serde_json::Value = serde_json::from_str(&about).unwrap_or_default();
            let url = about["url"].as_str().unwrap_or("an unknown address");
            Check::ok(name, format!("one runs at {url}"))
        }
        Err(fs::TryLockError::Error(e)) => Check::warning(name, format!("cannot be told: {e}"), ""),
    }
}
