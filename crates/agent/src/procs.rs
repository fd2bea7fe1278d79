//! Looking at other processes: who is really alive, and who belongs to us.
//!
//! A pid alone proves nothing, because it may have been given to somebody else meanwhile; so
//! a pid is always remembered together with the process's start time. Children are found by
//! a mark in their environment, which they inherit however they detach themselves.

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    /// Clock ticks since boot, as the kernel has it; 0 where `/proc` is missing.
    pub started: u64,
}

impl Process {
    pub fn new(pid: u32) -> Self {
        Self {
            pid,
            started: stat(pid).map_or(0, |s| s.started),
        }
    }

    pub fn current() -> Self {
        Self::new(std::process::id())
    }

    /// Still the same one, and not merely a zombie that nobody has waited for.
    pub fn is_alive(self) -> bool {
        match stat(self.pid) {
            Some(s) => s.started == self.started && s.state != 'Z' && s.state != 'X',
            // No `/proc`: the kernel can still say whether the number is in use.
            None => !fs::exists("/proc/self/stat").unwrap_or(false) && exists(self.pid),
        }
    }

    /// Only if it is still the same process.
    pub fn signal(self, signal: Signal) {
        if self.is_alive()
            && let Some(pid) = as_pid(self.pid)
        {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// The file it runs, also when that was deleted or replaced.
    pub fn program(self) -> Option<PathBuf> {
        let link = fs::read_link(format!("/proc/{}/exe", self.pid)).ok()?;
        let text = link.to_str()?;
        Some(PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(text)))
    }

    /// Its first argument, the subcommand.
    pub fn subcommand(self) -> Option<String> {
        let line = fs::read(format!("/proc/{}/cmdline", self.pid)).ok()?;
        let word = line.split(|b| *b == 0).nth(1).unwrap_or_default();
        Some(String::from_utf8_lossy(word).into_owned())
    }
}

fn as_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

fn exists(pid: u32) -> bool {
    as_pid(pid).is_some_and(|p| rustix::process::test_kill_process(p).is_ok())
}

struct Stat {
    state: char,
    started: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, so count from its end.
    let mut fields = text[text.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some(Stat {
        state,
        started: fields.nth(18)?.parse().ok()?,
    })
}

/// How every mark begins. Whoever is marked will be killed, so a mark read from a damaged
/// file, an empty one above all, must not fit anybody.
pub const MARK: &str = "DUMONT_WORKLOAD=";

/// Every other process whose environment holds `mark`, zombies excluded.
pub fn marked(mark: &str) -> Vec<Process> {
    if mark.strip_prefix(MARK).is_none_or(str::is_empty) {
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|e| OsStr::to_str(&e.file_name())?.parse().ok());
    let holds = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment
            .split(|b| *b == 0)
            .any(|entry| entry == mark.as_bytes())
    };
    let others = pids.filter(|pid| *pid != std::process::id());
    others
        .filter(holds)
        .map(Process::new)
        .filter(|p| p.is_alive())
        .collect()
}

/// Kills them all, and those they start meanwhile; true when none is left.
pub fn kill_marked(mark: &str, limit: Duration) -> bool {
    let until = Instant::now() + limit;
    loop {
        let left = marked(mark);
        if left.is_empty() {
            return true;
        }
        left.iter().for_each(|p| p.signal(Signal::KILL));
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_live_and_our_number_with_another_start_does_not() {
        let me = Process::current();
        assert!(me.is_alive());
        assert!(
            !Process {
                started: me.started + 1,
                ..me
            }
            .is_alive()
        );
    }

    #[test]
    fn a_mark_finds_a_process_that_detached_itself() {
        let mark = format!("{MARK}test{}", std::process::id());
        let (name, value) = mark.split_once('=').unwrap();
        let mut child = std::process::Command::new("setsid")
            .args(["sleep", "60"])
            .env(name, value)
            .spawn()
            .unwrap();
        while marked(&mark).is_empty() {}
        assert!(kill_marked(&mark, Duration::from_secs(5)));
        child.wait().unwrap();
    }

    #[test]
    fn a_damaged_mark_fits_nobody() {
        for mark in ["", "PATH", MARK] {
            assert!(marked(mark).is_empty(), "{mark:?}");
        }
    }
}
