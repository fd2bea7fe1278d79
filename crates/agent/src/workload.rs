//! The session's side of the workload: its definition on disk and its supervisor's life.
//!
//! Everything that must be known when SSH is gone lies in files, and the supervisor's lock
//! decides whether there is one: a status file says what was, never what is.

use crate::exec;
use crate::home::{private_dir, write_private};
use crate::job::lock;
use crate::lock::{holder, is_held};
use crate::out::failure;
use crate::procs::{self, Process};
use dumont_wire::agent::{Failure, FailureCode, Workload, WorkloadStatus};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// From the spawn to the supervisor's first words; a loaded host takes its time.
const START_WAIT: Duration = Duration::from_secs(10);
/// The workload's grace, the sweep after it, and some.
const STOP_WAIT: Duration = Duration::from_secs(13);

/// Starting and stopping are not for two requests at once.
static ONE_CHANGE: Mutex<()> = Mutex::new(());

/// The files of one workload.
#[derive(Debug, Clone)]
pub struct Files {
    dir: PathBuf,
}

impl Files {
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }
    pub fn spec(&self) -> PathBuf {
        self.dir.join("spec.json")
    }
    pub fn status(&self) -> PathBuf {
        self.dir.join("status.json")
    }
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }
    /// What the supervisor says before it has a log.
    fn words(&self) -> PathBuf {
        self.dir.join("supervisor.log")
    }
    fn state(&self) -> Option<State> {
        serde_json::from_slice(&fs::read(self.status()).ok()?).ok()
    }
}

/// `spec.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    pub workload: Workload,
    /// `NAME=value`, in the environment of this run's processes and of no others.
    pub mark: String,
}

/// `status.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    pub supervisor: Process,
    pub mark: String,
    pub workload: Option<Process>,
    pub status: WorkloadStatus,
}

/// What the supervisor last wrote, corrected by who really lives.
pub fn status(dir: &Path) -> Option<WorkloadStatus> {
    let State {
        supervisor,
        workload,
        mut status,
        ..
    } = Files::new(dir).state()?;
    if !supervisor.is_alive() || !workload.is_some_and(Process::is_alive) {
        (status.running, status.pid) = (false, None);
    }
    Some(status)
}

/// The last definition, for probes.
pub fn definition(dir: &Path) -> Option<Workload> {
    let spec: Spec = serde_json::from_slice(&fs::read(Files::new(dir).spec()).ok()?).ok()?;
    Some(spec.workload)
}

/// Replaces whatever runs; the new supervisor's pid.
pub fn start(dir: &Path, workload: Workload) -> Result<u32, Failure> {
    check(&workload)?;
    let _alone = lock(&ONE_CHANGE);
    stop_supervisor(dir)?;
    let files = Files::new(dir);
    let random = RandomState::new().hash_one(std::process::id());
    let spec = Spec {
        workload,
        mark: format!("{}{random:016x}", procs::MARK),
    };
    let (pid, ended) = launch(&files, &spec).map_err(|e| io_failure(&e))?;
    let until = Instant::now() + START_WAIT;
    while Instant::now() < until {
        if files.state().is_some_and(|s| s.supervisor.pid == pid) {
            return Ok(pid);
        }
        if let Ok(status) = ended.recv_timeout(Duration::from_millis(5)) {
            let said = fs::read_to_string(files.words()).unwrap_or_default();
            let said: String = said.trim().chars().take(400).collect();
            let message = format!("the supervisor ended with {}: {said}", exec::exit_code(status));
            return Err(failure(
                FailureCode::Internal,
                message,
                "look into ~/.dumont/workload on the machine",
            ));
        }
    }
    let message = format!("the supervisor said nothing within {} s", START_WAIT.as_secs());
    Err(failure(
        FailureCode::Internal,
        message,
        "look into ~/.dumont/workload on the machine",
    ))
}

/// Returns when the workload and its supervisor are gone.
pub fn stop(dir: &Path) -> Result<(), Failure> {
    let _alone = lock(&ONE_CHANGE);
    stop_supervisor(dir)
}

fn check(workload: &Workload) -> Result<(), Failure> {
    let invalid = |what: &str, hint: &str| Err(failure(FailureCode::Invalid, what, hint));
    if workload.start.trim().is_empty() || workload.start.contains('\0') {
        return invalid(
            "the workload has no start command",
            "set `start` to a shell command",
        );
    }
    if !Path::new(&workload.path).is_absolute() {
        return invalid(
            &format!("path {:?} is not absolute", workload.path),
            "give the full path",
        );
    }
    let bad = |(k, v): (&String, &String)| k.is_empty() || k.contains(['=', '\0']) || v.contains('\0');
    if let Some((name, _)) = workload.env.iter().find(|e| bad(*e)) {
        return invalid(
            &format!("environment variable {name:?} is not possible"),
            "rename or remove it",
        );
    }
    if !Path::new(&workload.path).is_dir() {
        let message = format!("{} is not a directory", workload.path);
        return Err(failure(
            FailureCode::NoSuchPath,
            message,
            "restore the workspace first, or correct the path",
        ));
    }
    Ok(())
}

/// The channel tells when the supervisor ended; the thread behind it reaps it, too.
fn launch(files: &Files, spec: &Spec) -> io::Result<(u32, Receiver<ExitStatus>)> {
    private_dir(&files.dir)?;
    write_private(&files.spec(), &serde_json::to_vec(spec)?)?;
    match fs::remove_file(files.status()) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let words = File::create(files.words())?;
    let mut command = exec::ourselves();
    command.arg("supervise").arg(&files.dir).current_dir("/");
    command
        .stdin(Stdio::null())
        .stdout(words.try_clone()?)
        .stderr(words);
    let mut child = command.spawn()?;
    let (pid, (ended, end)) = (child.id(), channel());
    std::thread::Builder::new().name("reap".into()).spawn(move || {
        if let Ok(status) = child.wait() {
            let _ = ended.send(status);
        }
    })?;
    Ok((pid, end))
}

/// Asks, then insists; afterwards no process of the last run is left, not even of one whose
/// supervisor was killed.
fn stop_supervisor(dir: &Path) -> Result<(), Failure> {
    let files = Files::new(dir);
    let began = Instant::now();
    let mut asked = None;
    while is_held(&files.lock()).map_err(|e| io_failure(&e))? {
        let supervisor = holder(&files.lock());
        let late = began.elapsed() >= STOP_WAIT;
        if began.elapsed() >= STOP_WAIT + Duration::from_secs(2) {
            let who = supervisor.map_or("unknown".into(), |p| p.pid.to_string());
            let message = format!("the workload's supervisor (process {who}) does not end");
            return Err(failure(FailureCode::Busy, message, "end it on the machine"));
        }
        if let Some(process) = supervisor.filter(|p| late || asked != Some(*p)) {
            process.signal(if late { Signal::KILL } else { Signal::TERM });
            asked = Some(process);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    if let Some(state) = files.state() {
        if let Some(leader) = state.workload.filter(|w| w.is_alive()) {
            exec::kill_group(leader.pid, Signal::KILL);
        }
        if !procs::kill_marked(&state.mark, Duration::from_secs(5)) {
            let message = "processes of the last workload do not end";
            return Err(failure(
                FailureCode::Busy,
                message,
                "they may hang in a device; rent another machine",
            ));
        }
    }
    Ok(())
}

pub fn io_failure(e: &io::Error) -> Failure {
    let (code, hint) = match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            (FailureCode::DiskFull, "free some space")
        }
        _ => (
            FailureCode::Io,
            "check the permissions and the disk of the machine",
        ),
    };
    failure(code, e.to_string(), hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn impossible_definitions_are_refused_by_name() {
        let good = Workload {
            start: "true".into(),
            path: "/".into(),
            env: BTreeMap::new(),
        };
        assert!(check(&good).is_ok());
        let code = |w: Workload| check(&w).unwrap_err().code;
        assert_eq!(
            code(Workload {
                start: " ".into(),
                ..good.clone()
            }),
            FailureCode::Invalid
        );
        assert_eq!(
            code(Workload {
                path: "rel".into(),
                ..good.clone()
            }),
            FailureCode::Invalid
        );
        assert_eq!(
            code(Workload {
                path: "/nowhere".into(),
                ..good.clone()
            }),
            FailureCode::NoSuchPath
        );
        assert_eq!(
            code(Workload {
                env: [("A=B".into(), String::new())].into(),
                ..good
            }),
            FailureCode::Invalid
        );
    }
}
