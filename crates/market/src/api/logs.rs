//! Logs of an instance, and the few commands that run in it from outside.
//!
//! Both answer with a URL at once and have the text there a moment later. What is read lies on
//! a disk that the renter writes to, so it is opened as what it must be, a plain file: a link
//! would lead to the files of this host.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path as FilePath, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};

use super::{Shared, fail, no_such_instance, number, object, ok};
use crate::boot::random_hex;
use crate::market::{Inner, now_ms};

/// The object is there so many seconds after it was asked for.
const READY_S: f64 = 1.0;
const DEFAULT_TAIL: usize = 1000;
/// Of a log, so much of the end is looked at.
const MAX_LOG: u64 = 4 << 20;
const COMMANDS: &[&str] = &["ls", "rm", "du"];
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

pub async fn request(State(inner): Shared, id: Path<String>, headers: HeaderMap, body: Bytes) -> Response {
    let body = match object(&body) {
        Ok(body) => body,
        Err(refused) => return *refused,
    };
    let id = number(&id);
    let daemon = body.get("daemon_logs").is_some_and(|d| d == "true" || d == true);
    let text = if daemon {
        let state = inner.state();
        let Some(instance) = state.alive(id) else {
            return no_such_instance(&inner, id);
        };
        let lines = instance
            .history
            .iter()
            .map(|(at, what)| format!("{} C.{id} {what}\n", super::ssh_keys::iso(*at)));
        lines.collect()
    } else {
        if inner.state().alive(id).is_none() {
            return no_such_instance(&inner, id);
        }
        let path = inner.instance_dir(id).join("root/onstart.log");
        tokio::task::spawn_blocking(move || end_of(&path))
            .await
            .unwrap_or_default()
    };
    let tail = body.get("tail").and_then(|t| match t {
        Value::String(s) => s.trim().parse().ok(),
        other => other.as_u64().and_then(|n| usize::try_from(n).ok()),
    });
    let wanted = body.get("filter").and_then(Value::as_str).unwrap_or_default();
    publish(
        &inner,
        &headers,
        cut(&text, wanted, tail.unwrap_or(DEFAULT_TAIL)),
        json!({}),
    )
}

/// The last `tail` lines that contain `wanted`.
fn cut(text: &str, wanted: &str, tail: usize) -> String {
    let lines: Vec<&str> = text.lines().filter(|l| l.contains(wanted)).collect();
    let from = lines.len().saturating_sub(tail);
    let mut text = lines.get(from..).unwrap_or_default().join("\n");
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

fn end_of(path: &FilePath) -> String {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(fd) = rustix::fs::open(path, flags, Mode::empty()) else {
        return String::new();
    };
    let mut file = std::fs::File::from(fd);
    let Some(length) = file.metadata().ok().filter(|m| m.is_file()).map(|m| m.len()) else {
        return String::new();
    };
    let mut bytes = Vec::new();
    let read = file
        .seek(SeekFrom::Start(length.saturating_sub(MAX_LOG)))
        .and_then(|_| file.take(MAX_LOG).read_to_end(&mut bytes));
    if let Err(error) = read {
        tracing::debug!(%error, "a log cannot be read");
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn publish(inner: &Arc<Inner>, headers: &HeaderMap, text: String, mut answer: Value) -> Response {
    let host = headers
        .get(header::HOST)
        .and_then(|h| h.to_str().ok())
        .unwrap_or("127.0.0.1");
    let token = random_hex();
    let url = format!("http://{host}/results/{token}");
    let ready = now_ms() + i64::try_from(inner.scaled(READY_S).as_millis()).unwrap_or(0);
    inner.state().results.put(token, text, ready);
    if let Value::Object(map) = &mut answer {
        map.insert("success".to_owned(), json!(true));
        map.insert("result_url".to_owned(), json!(url));
        map.insert("msg".to_owned(), json!("ok"));
    }
    ok(answer)
}

/// As the object store answers: forbidden until it is there.
pub async fn result(State(inner): Shared, Path(token): Path<String>) -> Response {
    match inner.state().results.get(&token, now_ms()) {
        Some(text) => text.to_owned().into_response(),
        None => (StatusCode::FORBIDDEN, "AccessDenied").into_response(),
    }
}

pub async fn execute(State(inner): Shared, id: Path<String>, headers: HeaderMap, body: Bytes) -> Response {
    let body = match object(&body) {
        Ok(body) => body,
        Err(refused) => return *refused,
    };
    let line = body.get("command").and_then(Value::as_str).unwrap_or_default();
    let words: Vec<&str> = line.split_whitespace().collect();
    if !words.first().is_some_and(|word| COMMANDS.contains(word)) {
        return fail(
            StatusCode::BAD_REQUEST,
            "invalid_args",
            "Only ls, rm and du are allowed.",
        );
    }
    let id = number(&id);
    let machine = match inner.state().alive(id) {
        Some(instance) => instance.live.clone(),
        None => return no_such_instance(&inner, id),
    };
    let Some(machine) = machine else {
        return fail(
            StatusCode::BAD_REQUEST,
            "invalid_args",
            "The instance is not running.",
        );
    };
    let mut command = machine.command(&words, &[], false);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let text = match tokio::time::timeout(COMMAND_LIMIT, command.output()).await {
        Ok(Ok(output)) => String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "timed out".to_owned(),
    };
    let place: PathBuf = PathBuf::from("/var/lib/docker/");
    publish(&inner, &headers, text, json!({"writeable_path": place}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_what_matches() {
        assert_eq!(cut("a1\nb\na2\na3\n", "a", 2), "a2\na3\n");
        assert_eq!(cut("", "", 5), "");
        assert_eq!(cut("x\n", "", 0), "");
    }

    #[test]
    fn a_link_is_no_log() {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "secret\n").expect("written");
        std::os::unix::fs::symlink(&file, &link).expect("linked");
        assert_eq!(end_of(&file), "secret\n");
        assert_eq!(end_of(&link), "");
        assert_eq!(end_of(dir.path()), "");
    }
}
