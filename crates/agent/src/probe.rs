//! Asking the workload how it is: a shell command in its directory and environment.

use crate::exec;
use crate::job::Job;
use crate::out::failure;
use crate::workload::{definition, environment};
use dumont_wire::agent::{Failure, FailureCode, Outcome};
use std::path::Path;
use std::time::Duration;

const OUTPUT: usize = 4096;

/// A probe whose time is over has no exit code; its output says how far it came.
pub fn run(
    job: &Job,
    dir: &Path,
    fallback: &str,
    command: &str,
    timeout_ms: u64,
) -> Result<Outcome, Failure> {
    if command.contains('\0') {
        return Err(failure(
            FailureCode::Invalid,
            "the probe's command contains a zero byte",
            "correct it",
        ));
    }
    let workload = definition(dir);
    let cwd = workload.as_ref().map_or(fallback, |w| &w.path);
    if !Path::new(cwd).is_dir() {
        let message = format!("{cwd} is not a directory");
        return Err(failure(
            FailureCode::NoSuchPath,
            message,
            "restore the workspace before it is probed",
        ));
    }
    let mut shell = exec::shell(command);
    shell
        .env_clear()
        .envs(environment(workload.as_ref()))
        .current_dir(cwd);
    let limit = Duration::from_millis(timeout_ms);
    let ran = exec::run_bounded(&mut shell, limit, OUTPUT, &|| job.is_cancelled());
    let ran = ran.map_err(|e| {
        failure(
            FailureCode::Io,
            format!("probe: {e}"),
            "does the image have /bin/sh?",
        )
    })?;
    if job.is_cancelled() {
        return Err(crate::job::cancelled());
    }
    let output = text(&ran.tail);
    let elapsed_ms = u64::try_from(ran.elapsed.as_millis()).unwrap_or(u64::MAX);
    Ok(Outcome::Probe {
        exit_code: ran.status.map(exec::exit_code),
        output,
        elapsed_ms,
    })
}

/// Bytes that are no text become longer when they are shown; the bound holds all the same.
fn text(tail: &[u8]) -> String {
    let text = String::from_utf8_lossy(tail);
    let from = (text.len().saturating_sub(OUTPUT)..)
        .find(|i| text.is_char_boundary(*i))
        .unwrap_or(0);
    text[from..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_stays_bounded_whatever_it_is() {
        assert_eq!(text(b"all of it"), "all of it");
        assert!(text(&[0xff; OUTPUT]).len() <= OUTPUT);
    }
}
