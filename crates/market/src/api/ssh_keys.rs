//! SSH keys: of the account, and of one instance.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::{Shared, fail, no_such_instance, number, object, ok};
use crate::market::now_ms;
use crate::state::SshKey;

fn key_text(body: &Bytes) -> Result<String, Box<Response>> {
    let text = object(body)?
        .get("ssh_key")
        .and_then(Value::as_str)
        .map(|t| t.trim().to_owned());
    text.filter(|t| t.starts_with("ssh-") || t.starts_with("ecdsa-") || t.starts_with("sk-"))
        .ok_or_else(|| {
            Box::new(fail(
                StatusCode::BAD_REQUEST,
                "invalid_args",
                "ssh_key is not a public key.",
            ))
        })
}

/// `name` differs: `public_key` in the answer to an add, `key` in lists.
fn shown(key: &SshKey, name: &str) -> Value {
    json!({"id": key.id, "user_id": 1, name: key.text, "created_at": iso(key.created_ms), "deleted_at": null})
}

/// 404 when there is none, as the real one answers.
pub async fn list(State(inner): Shared) -> Response {
    let state = inner.state();
    if state.account_keys.is_empty() {
        return fail(StatusCode::NOT_FOUND, "not_found", "No SSH keys found.");
    }
    ok(state.account_keys.iter().map(|k| shown(k, "key")).collect())
}

pub async fn add(State(inner): Shared, body: Bytes) -> Response {
    match key_text(&body) {
        Ok(text) => {
            let key = inner.state().add_account_key(text, now_ms());
            ok(json!({"success": true, "key": shown(&key, "public_key")}))
        }
        Err(refused) => *refused,
    }
}

pub async fn replace(State(inner): Shared, id: Path<String>, body: Bytes) -> Response {
    let text = match key_text(&body) {
        Ok(text) => text,
        Err(refused) => return *refused,
    };
    let id = number(&id);
    let mut state = inner.state();
    match state.account_keys.iter_mut().find(|k| k.id == id) {
        Some(key) => {
            key.text = text;
            ok(json!({"success": true, "key": shown(key, "public_key")}))
        }
        None => fail(StatusCode::NOT_FOUND, "not_found", "SSH key not found."),
    }
}

pub async fn remove(State(inner): Shared, id: Path<String>) -> Response {
    let id = number(&id);
    let mut state = inner.state();
    let before = state.account_keys.len();
    state.account_keys.retain(|k| k.id != id);
    if state.account_keys.len() == before {
        return fail(StatusCode::NOT_FOUND, "not_found", "SSH key not found.");
    }
    ok(json!({"success": true}))
}

/// The keys come as a JSON *string* inside the JSON.
pub async fn list_attached(State(inner): Shared, id: Path<String>) -> Response {
    let state = inner.state();
    let Some(instance) = state.alive(number(&id)) else {
        return no_such_instance(&inner, &id.0);
    };
    let keys: Vec<Value> = instance.keys.iter().map(|k| shown(k, "public_key")).collect();
    ok(json!({"success": true, "ssh_keys": Value::Array(keys).to_string()}))
}

pub async fn attach(State(inner): Shared, id: Path<String>, body: Bytes) -> Response {
    let text = match key_text(&body) {
        Ok(text) => text,
        Err(refused) => return *refused,
    };
    let mut state = inner.state();
    let key = state.new_key(text, now_ms());
    let Some(instance) = state.alive_mut(number(&id)) else {
        return no_such_instance(&inner, &id.0);
    };
    if instance.keys.iter().all(|k| k.text != key.text) {
        instance.keys.push(key);
    }
    ok(json!({"success": true, "msg": "SSH key attached successfully"}))
}

pub async fn detach(State(inner): Shared, Path((id, key)): Path<(String, String)>) -> Response {
    let mut state = inner.state();
    let Some(instance) = state.alive_mut(id.parse().unwrap_or(0)) else {
        return no_such_instance(&inner, &id);
    };
    let key: u64 = key.parse().unwrap_or(0);
    instance.keys.retain(|k| k.id != key);
    ok(json!({"success": true, "msg": "SSH key detached successfully"}))
}

/// `2026-01-01T00:00:00Z`; the civil date from days is Howard Hinnant's.
pub fn iso(ms: i64) -> String {
    let (days, second) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000) / 1000);
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (
        doy - (153 * mp + 2) / 5 + 1,
        if mp < 10 { mp + 3 } else { mp - 9 },
    );
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn dates() {
        assert_eq!(super::iso(0), "1970-01-01T00:00:00Z");
        assert_eq!(super::iso(1_709_210_096_000), "2024-02-29T12:34:56Z");
    }
}
