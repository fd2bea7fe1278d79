//! One at a time: file locks that name their holder.
//!
//! A session whose network died half-way lives until the kernel gives the connection up,
//! which takes minutes, and may still be restoring into the directory that the next session
//! wants. The kernel drops a lock with its holder, so the lock itself is always true; the
//! holder's name in the file is only a hint about whom to end. Nobody is killed on the word
//! of a number: it must be the same process (start time), run the agent's program, serve a
//! session, and be older than we are.

use crate::home::at;
use crate::job::cancelled;
use crate::out::failure;
use crate::procs::Process;
use dumont_wire::agent::{Failure, FailureCode};
use rustix::process::Signal;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// The older session may just be about to end: after a cancelled snapshot, for instance.
const GRACE: Duration = Duration::from_secs(2);
const WAIT: Duration = Duration::from_secs(10);

/// A lock held until this is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct Held {
    _file: File,
}

/// `None` if somebody else holds it.
pub fn try_hold(path: &Path) -> io::Result<Option<Held>> {
    let Some(mut file) = open_free(path)? else {
        return Ok(None);
    };
    let me = serde_json::to_vec(&Process::current())?;
    file.set_len(0)?;
    file.write_all(&me)?;
    Ok(Some(Held { _file: file }))
}

/// Whether somebody holds it; says nothing about a moment later.
pub fn is_held(path: &Path) -> io::Result<bool> {
    if !path.exists() {
        return Ok(false);
    }
    Ok(open_free(path)?.is_none())
}

fn open_free(path: &Path) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path);
    let file = file.map_err(|e| at(path, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(at(path, &e)),
    }
}

/// Who wrote its name into the file last.
pub fn holder(path: &Path) -> Option<Process> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Waits for the lock of a session, `longer` than usual where that is known to be needed, and ends
/// an older session that keeps it.
pub fn take_over(path: &Path, longer: Duration, stop: &dyn Fn() -> bool) -> Result<Held, Failure> {
    let wait = WAIT + longer;
    let began = Instant::now();
    loop {
        let held = try_hold(path);
        match held.map_err(|e| {
            failure(
                FailureCode::Io,
                e.to_string(),
                "make the agent's directory writable",
            )
        })? {
            Some(held) => return Ok(held),
            None if stop() => return Err(cancelled()),
            None => {}
        }
        let older = holder(path);
        if began.elapsed() >= wait {
            let who = older.map_or("an unknown process".into(), |p| format!("process {}", p.pid));
            let message = format!("{who} still works on the directory after {} s", wait.as_secs());
            return Err(failure(
                FailureCode::Busy,
                message,
                "wait until it ends, or end it on the machine",
            ));
        }
        if began.elapsed() >= GRACE
            && let Some(older) = older.filter(|p| is_older_session(*p))
        {
            older.signal(Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn is_older_session(other: Process) -> bool {
    let me = Process::current();
    let (Some(theirs), Some(ours)) = (other.program(), me.program()) else {
        return false;
    };
    // An agent of another version lies beside us, under the name of its digest.
    let same = theirs == ours || theirs.parent() == ours.parent() && is_agent_name(&theirs);
    let serves = matches!(other.subcommand().as_deref(), Some("" | "session"));
    other.pid != me.pid && same && serves && (other.started, other.pid) < (me.started, me.pid)
}

fn is_agent_name(program: &Path) -> bool {
    let name = program.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    name == "dumont-agent" || name.starts_with("agent-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_names_its_holder_and_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert!(!is_held(&path).unwrap());
        let held = try_hold(&path).unwrap().unwrap();
        assert!(is_held(&path).unwrap());
        assert!(try_hold(&path).unwrap().is_none());
        assert_eq!(holder(&path), Some(Process::current()));
        drop(held);
        assert!(!is_held(&path).unwrap());
    }

    #[test]
    fn nobody_is_taken_for_an_older_session_by_its_number() {
        assert!(!is_older_session(Process::current()));
        assert!(!is_older_session(Process::new(1)));
    }
}
