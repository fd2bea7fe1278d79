//! The workspace's own commands around a snapshot: flush, `sync`, pause a trainer.
//!
//! What `before` paused, `after` has to start again, also when the snapshot fails, is given up,
//! or this process dies in the middle. So `after` is written down before `before` runs, and
//! whichever session next has the directory to itself runs what it finds there. A `before` that
//! fails ends the snapshot: what was meant to be quiet is not.

use crate::environment::environment;
use crate::exec;
use crate::home::{Home, write_private};
use crate::job::Job;
use crate::out::failure;
use crate::workload::{definition, io_failure};
use dumont_wire::agent::{Event, Failure, FailureCode, Hooks};
use serde::{Deserialize, Serialize};
use std::fs;
use std::time::Duration;

const OUTPUT: usize = 1024;

/// An `after` that is owed.
#[derive(Serialize, Deserialize)]
struct Owed {
    command: String,
    path: String,
    timeout_ms: u64,
}

/// Runs `before`. Whatever comes of it, [`close`] has to follow.
pub fn open(job: &Job, home: &Home, path: &str, hooks: &Hooks) -> Result<(), Failure> {
    if let Some(command) = &hooks.after {
        let owed = Owed {
            command: command.clone(),
            path: path.into(),
            timeout_ms: hooks.timeout_ms,
        };
        let text = serde_json::to_vec(&owed).map_err(|e| io_failure(&e.into()))?;
        write_private(&home.owed_hook(), &text).map_err(|e| io_failure(&e))?;
    }
    let Some(command) = &hooks.before else {
        return Ok(());
    };
    let stop = || job.is_cancelled();
    run(home, command, path, hooks.timeout_ms, &stop).map_err(|why| {
        if job.is_cancelled() {
            return crate::job::cancelled();
        }
        failure(
            FailureCode::Hook,
            format!("the command before the snapshot {why}"),
            "try snapshot.before by hand on the machine, or correct the specification",
        )
    })
}

/// Runs the `after` that is owed, if any; what it cannot do is a line in the log.
pub fn close(home: &Home, log: &dyn Fn(String)) {
    let file = home.owed_hook();
    let Ok(text) = fs::read(&file) else { return };
    if let Ok(owed) = serde_json::from_slice::<Owed>(&text) {
        // A cancelled snapshot ends the pause, too.
        if let Err(why) = run(home, &owed.command, &owed.path, owed.timeout_ms, &|| false) {
            log(format!("Warning: the command after the snapshot {why}"));
        }
    }
    if let Err(e) = fs::remove_file(&file) {
        log(format!("Warning: {} cannot be removed: {e}", file.display()));
    }
}

/// How long the `after` that is owed may take: whoever runs it has the directory meanwhile.
pub fn owed(home: &Home) -> Duration {
    let text = fs::read(home.owed_hook()).ok();
    let owed = text.and_then(|t| serde_json::from_slice::<Owed>(&t).ok());
    Duration::from_millis(owed.map_or(0, |o| o.timeout_ms))
}

pub fn line(job: &Job) -> impl Fn(String) {
    |line| job.out.send(job.id, Event::Log { line })
}

fn run(
    home: &Home,
    command: &str,
    path: &str,
    timeout_ms: u64,
    stop: &dyn Fn() -> bool,
) -> Result<(), String> {
    let workload = definition(&home.workload());
    let mut shell = exec::shell(command);
    shell
        .env_clear()
        .envs(environment(workload.as_ref()))
        .current_dir(path);
    let limit = Duration::from_millis(timeout_ms);
    let ran = exec::run_bounded(&mut shell, limit, OUTPUT, stop).map_err(|e| format!("did not run: {e}"))?;
    let said = String::from_utf8_lossy(&ran.tail);
    let said = match said.trim() {
        "" => String::new(),
        text => format!(": {text}"),
    };
    match ran.status.map(exec::exit_code) {
        Some(0) => Ok(()),
        Some(code) => Err(format!("exits with {code}{said}")),
        None => Err(format!("was ended after {} s{said}", limit.as_secs_f64())),
    }
}
