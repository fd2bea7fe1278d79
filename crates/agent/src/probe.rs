//! Asking the workload how it is, once: a shell command in its directory and environment, an
//! HTTP request, or an inference. Requests go to loopback by address, so that nothing is
//! resolved and nothing leaves the machine.

use crate::environment::environment;
use crate::exec;
use crate::job::Job;
use crate::out::failure;
use crate::workload::definition;
use dumont_core::probe::Probe;
use dumont_wire::agent::{Failure, FailureCode, Outcome, ProbeAnswer};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

const OUTPUT: usize = 4096;

/// What was found, before it is timed.
struct Found {
    healthy: bool,
    verdict: String,
    output: String,
}

impl Found {
    fn sick(verdict: impl Into<String>, output: impl Into<String>) -> Self {
        Self {
            healthy: false,
            verdict: verdict.into(),
            output: output.into(),
        }
    }
}

/// One try. That the workload is not well is an answer; only a probe that cannot be asked fails.
pub fn run(
    job: &Job,
    dir: &Path,
    fallback: &str,
    probe: &Probe,
    limit: Duration,
) -> Result<Outcome, Failure> {
    probe
        .check()
        .map_err(|e| failure(FailureCode::Invalid, e.to_string(), "correct it"))?;
    let started = Instant::now();
    let found = match probe {
        Probe::Command { command, .. } => ask_command(job, dir, fallback, command, limit)?,
        Probe::Http {
            port,
            path,
            status,
            contains,
            ..
        } => ask_http(job, *port, path, *status, contains.as_deref(), limit),
        Probe::Ollama {
            model,
            prompt,
            contains,
            port,
            ..
        } => ask_ollama(job, *port, model, prompt, contains.as_deref(), limit),
    };
    if job.is_cancelled() {
        return Err(crate::job::cancelled());
    }
    Ok(Outcome::Probe(ProbeAnswer {
        healthy: found.healthy,
        verdict: found.verdict,
        output: found.output,
        elapsed_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    }))
}

fn ask_command(
    job: &Job,
    dir: &Path,
    fallback: &str,
    command: &str,
    limit: Duration,
) -> Result<Found, Failure> {
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
    let ran = exec::run_bounded(&mut shell, limit, OUTPUT, &|| job.is_cancelled());
    let ran = ran.map_err(|e| {
        failure(
            FailureCode::Io,
            format!("probe: {e}"),
            "does the image have /bin/sh?",
        )
    })?;
    let code = ran.status.map(exec::exit_code);
    Ok(Found {
        healthy: code == Some(0),
        verdict: code.map_or_else(|| "was killed on time-out".into(), |c| format!("exits with {c}")),
        output: tail(&ran.tail),
    })
}

fn ask_http(
    job: &Job,
    port: u16,
    path: &str,
    status: Option<u16>,
    contains: Option<&str>,
    limit: Duration,
) -> Found {
    let url = format!("http://127.0.0.1:{port}{path}");
    let (got, body) = match job.http.ask(&url, None, limit) {
        Ok(answer) => answer,
        Err(why) => return Found::sick(format!("has no answer from {url}: {why}"), ""),
    };
    let wanted = status.map_or((200..300).contains(&got), |s| s == got);
    let text = String::from_utf8_lossy(&body);
    let holds = contains.is_none_or(|c| text.contains(c));
    Found {
        healthy: wanted && holds,
        verdict: match (wanted, contains) {
            (true, Some(c)) if !holds => format!("is answered {got} without {c:?}"),
            _ => format!("is answered {got}"),
        },
        output: head(&text),
    }
}

/// One inference, not streamed: <https://github.com/ollama/ollama/blob/main/docs/api.md>.
fn ask_ollama(
    job: &Job,
    port: u16,
    model: &str,
    prompt: &str,
    contains: Option<&str>,
    limit: Duration,
) -> Found {
    let url = format!("http://127.0.0.1:{port}/api/generate");
    // The same question has the same answer, so that `contains` can be relied on.
    let question = json!({
        "model": model, "prompt": prompt, "stream": false,
        "options": { "temperature": 0, "seed": 0 },
    });
    let (status, body) = match job.http.ask(&url, Some(&question), limit) {
        Ok(answer) => answer,
        Err(why) => return Found::sick(format!("has no answer from {url}: {why}"), ""),
    };
    let text = String::from_utf8_lossy(&body);
    if status != 200 {
        return Found::sick(format!("is answered {status}"), head(&text));
    }
    let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
    let said = answer["response"].as_str().unwrap_or_default();
    if said.trim().is_empty() || answer["done"] == Value::Bool(false) {
        return Found::sick("got no inference", head(&text));
    }
    match contains {
        Some(c) if !said.contains(c) => Found::sick(format!("got an inference without {c:?}"), head(said)),
        _ => Found {
            healthy: true,
            verdict: "inference OK".into(),
            output: head(said),
        },
    }
}

/// Bytes that are no text become longer when they are shown; the bound holds all the same.
fn tail(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let from = (text.len().saturating_sub(OUTPUT)..)
        .find(|i| text.is_char_boundary(*i))
        .unwrap_or(0);
    text[from..].to_owned()
}

fn head(text: &str) -> String {
    let to = (0..=OUTPUT.min(text.len()))
        .rev()
        .find(|i| text.is_char_boundary(*i))
        .unwrap_or(0);
    text[..to].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_stays_bounded_whatever_it_is() {
        assert_eq!(tail(b"all of it"), "all of it");
        assert!(tail(&[0xff; OUTPUT]).len() <= OUTPUT);
        assert_eq!(head("all of it"), "all of it");
        assert!(head(&"é".repeat(OUTPUT)).len() <= OUTPUT);
    }
}
