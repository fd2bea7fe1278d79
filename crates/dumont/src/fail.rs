//! Errors as a person meets them: what happened, then what to do next.
//!
//! Inside, errors are `anyhow`; the ones that know a next step carry an [`ErrorBody`], the
//! same words the API uses, so that `--json` prints one shape wherever an error was born.

use crate::output;
use dumont_wire::rest::ErrorBody;
use std::process::ExitCode;

/// The code of errors in what the user typed; the exit code is then 2 as for clap's own.
const USAGE: &str = "usage";
/// Only says which exit code to leave with: all was said already.
#[derive(Debug, thiserror::Error)]
#[error("exit code {0}")]
struct Leave(u8);

/// An error with a stable word, a message and the next step.
pub fn fail(code: &str, message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    ErrorBody::new(code, message, hint).into()
}

/// Something in the command line or in a file it names is wrong.
pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    fail(USAGE, message, hint)
}

/// Leaves with exit code 1 and prints nothing more.
pub fn silent() -> anyhow::Error {
    leave(1)
}

/// Leaves with this exit code and prints nothing more.
pub fn leave(code: u8) -> anyhow::Error {
    Leave(code).into()
}

/// The body of an error, made up where it has none.
pub fn body_of(error: &anyhow::Error) -> ErrorBody {
    let message = chain(error);
    match error.downcast_ref::<ErrorBody>() {
        Some(body) => ErrorBody {
            message,
            ..body.clone()
        },
        None => ErrorBody::new("failed", message, ""),
    }
}

/// The whole chain on one line, without saying the same thing twice.
fn chain(error: &anyhow::Error) -> String {
    let mut out = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if out.contains(&text) {
            continue;
        }
        if !out.is_empty() {
            out.push_str(": ");
        }
        out.push_str(&text);
    }
    out
}

/// Errors quote providers and hosts; lines of ours stay lines.
fn quoted(text: &str) -> String {
    text.lines()
        .map(output::safe)
        .collect::<Vec<_>>()
        .join("\n       ")
}

/// Prints the error on stderr and says what to exit with.
pub fn report(error: &anyhow::Error, json: bool) -> ExitCode {
    if let Some(Leave(code)) = error.downcast_ref() {
        return ExitCode::from(*code);
    }
    let body = body_of(error);
    if json {
        output::note(&serde_json::to_string_pretty(&body).unwrap_or(body.message));
    } else {
        output::note(&format!(
            "{} {}",
            output::red_err("error:"),
            quoted(&body.message)
        ));
        if !body.hint.is_empty() {
            output::note(&format!("{} {}", output::dim_err(" hint:"), quoted(&body.hint)));
        }
    }
    if body.code == USAGE {
        ExitCode::from(2)
    } else {
        ExitCode::FAILURE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn context_keeps_the_hint_and_nothing_is_said_twice() {
        let e: anyhow::Error = Err::<(), _>(fail("gone", "it is gone", "look elsewhere"))
            .context("while looking")
            .context("it is gone")
            .unwrap_err();
        let body = body_of(&e);
        assert_eq!(body.code, "gone");
        assert_eq!(body.hint, "look elsewhere");
        assert_eq!(body.message, "it is gone: while looking");
    }
}
