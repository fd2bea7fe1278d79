//! Running other programs for a bounded time and with bounded output.
//!
//! Shell commands run through a tiny step of our own that asks the kernel to kill them when
//! their parent dies, and then becomes the shell: a supervisor killed with `kill -9` must not
//! leave a second writer behind. It is a step of its own because the request has to be made
//! in the child, between fork and exec, where Rust allows nothing without `unsafe`.

use crate::job::lock;
use rustix::process::{Pid, Signal};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The hidden subcommand: `bound PARENT COMMAND`.
pub const BOUND: &str = "bound";

/// How long a pipe may stay open after its program ended, held by some grandchild.
const STRAGGLERS: Duration = Duration::from_millis(200);

/// `sh -c command` in a process group of its own, which dies with the calling *thread*.
pub fn shell(command: &str) -> Command {
    let mut c = ourselves();
    c.arg(BOUND)
        .arg(std::process::id().to_string())
        .arg(command)
        .process_group(0);
    c
}

/// This program again, also when its file was replaced or deleted meanwhile.
pub fn ourselves() -> Command {
    let link = Path::new("/proc/self/exe");
    let own = std::env::args_os().next().unwrap_or_default();
    let mut c = Command::new(if link.exists() {
        link.as_os_str()
    } else {
        own.as_os_str()
    });
    c.arg0(&own);
    c
}

/// The hidden subcommand itself; comes back only with an error.
pub fn become_shell(parent: &OsStr, command: &OsStr) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let now = rustix::process::getppid().map(|p| p.as_raw_nonzero().to_string());
    if now.as_deref().map(OsStr::new) != Some(parent) {
        return Err(io::Error::other("the parent is gone already"));
    }
    Err(Command::new("/bin/sh").arg("-c").arg(command).exec())
}

/// What a bounded program left.
#[derive(Debug)]
pub struct Ran {
    /// None if it was killed because its time was over.
    pub status: Option<ExitStatus>,
    /// The end of stdout and stderr together.
    pub tail: Vec<u8>,
}

/// Runs `command`, which has to be in a process group of its own, for at most `limit`; the
/// whole group is gone afterwards.
pub fn run_bounded(
    command: &mut Command,
    limit: Duration,
    keep: usize,
    stop: &dyn Fn() -> bool,
) -> io::Result<Ran> {
    let until = Instant::now() + limit;
    let (mut reader, writer) = io::pipe()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()?;
    // The command keeps our ends of the pipe open otherwise, and it never ends.
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let tail = Arc::new(Mutex::new(Vec::new()));
    let (ended, end) = channel();
    let shared = Arc::clone(&tail);
    std::thread::Builder::new().name("output".into()).spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(n @ 1..) = reader.read(&mut buffer) {
            let mut tail = lock(&shared);
            tail.extend_from_slice(&buffer[..n]);
            let extra = tail.len().saturating_sub(keep);
            tail.drain(..extra);
        }
        let _ = ended.send(());
    })?;
    let status = wait_until(&mut child, until, stop);
    if status.is_some() {
        let _: Result<(), RecvTimeoutError> = end.recv_timeout(STRAGGLERS);
    }
    kill_group(child.id(), Signal::KILL);
    if status.is_none() {
        let _ = child.wait();
        let _ = end.recv_timeout(STRAGGLERS);
    }
    let tail = lock(&tail).clone();
    Ok(Ran { status, tail })
}

fn wait_until(child: &mut Child, until: Instant, stop: &dyn Fn() -> bool) -> Option<ExitStatus> {
    let mut nap = Duration::from_millis(1);
    while Instant::now() < until && !stop() {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(nap.min(until.saturating_duration_since(Instant::now()))),
            Ok(status) => return status,
            Err(_) => return None,
        }
        nap = (nap * 2).min(Duration::from_millis(50));
    }
    child.try_wait().ok().flatten()
}

/// Best effort: an empty group is what we want anyway.
pub fn kill_group(leader: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(leader).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process_group(pid, signal);
    }
}

/// The exit code, or the signal's number made negative.
pub fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .or_else(|| status.signal().map(|s| -s))
        .unwrap_or(-1)
}

/// Where a program lies: in `PATH`, or else where GPU images are known to keep it.
pub fn find(program: &str, also: &[&str]) -> Option<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(also.iter().map(Into::into));
    dirs.map(|d| d.join(program))
        .find(|p| p.is_file())
        .map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut c = Command::new("/bin/sh");
        c.arg("-c").arg(script).process_group(0);
        c
    }

    #[test]
    fn output_keeps_its_end_and_the_exit_code() {
        let ran = run_bounded(
            &mut sh("echo lost; printf 0123456789; exit 3"),
            Duration::from_secs(5),
            6,
            &|| false,
        );
        let ran = ran.unwrap();
        assert_eq!(ran.tail, b"456789");
        assert_eq!(ran.status.map(exit_code), Some(3));
    }

    #[test]
    fn a_background_child_neither_delays_nor_survives() {
        let began = Instant::now();
        let ran = run_bounded(
            &mut sh("sleep 60 & echo $!"),
            Duration::from_secs(30),
            100,
            &|| false,
        )
        .unwrap();
        assert!(began.elapsed() < Duration::from_secs(25), "it was waited for");
        let pid = String::from_utf8(ran.tail).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
    }
}
