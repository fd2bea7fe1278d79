//! `POST /providers/vast/webhook`: what Vast.ai tells by itself about the account's instances.
//!
//! Not behind a token, as Vast.ai sends none: the signature is the permission. It covers the time of
//! the delivery, which bounds replays, and the bytes as they came, so it is checked before anything
//! reads them. Even a true event is only a hint: the account's own API decides what is so.

use super::error::{ApiError, ApiResult};
use crate::app::App;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use dumont_store::{InstanceRow, InstanceState};
use dumont_wire::rest::ErrorBody;
use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use serde_json::Value;
use sha2::Sha256;
use std::fmt;
use std::sync::Arc;

/// Largest accepted body; the data in one is at most 4 KB.
const LIMIT: usize = 64 << 10;
/// How far the time of a delivery may be from ours, seconds: Vast.ai's own advice.
const WINDOW: i64 = 300;
/// What may be the loss of a machine. Subscriptions add `client:` in front.
const LOSSES: [&str; 4] = [
    "outbid",
    "instance_offline",
    "instance_stopped",
    "instance_deleted",
];
/// Where an event may name the instance; which one it does is not documented.
const NAMES: [&str; 4] = ["instance_id", "contract_id", "instance", "id"];

/// The key that notifications are signed with; it shows itself to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookSecret(pub String);

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookSecret(…)")
    }
}

#[derive(Deserialize)]
struct Notification {
    #[serde(default)]
    event_id: String,
    notif_type: String,
    #[serde(default)]
    data: Value,
}

/// A signed notification of Vast.ai. Those that may mean a lost machine make dumont look at it at
/// once; all others are accepted and ignored. Takes no token but `X-Vast-Signature-256`.
#[utoipa::path(
    post,
    path = "/providers/vast/webhook",
    tag = "webhooks",
    request_body(content = Value, description = "As Vast.ai documents it"),
    responses(
        (status = 202, description = "Accepted"),
        (status = 400, description = "Signed, but not a notification", body = ErrorBody),
        (status = 401, description = "Not signed, not with our secret, or too long ago", body = ErrorBody),
        (status = 413, description = "The body is too large", body = ErrorBody),
        (status = 500, description = "The server or its database failed; the log says how", body = ErrorBody),
    ),
)]
pub async fn vast(State(app): State<Arc<App>>, request: Request) -> ApiResult<StatusCode> {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, LIMIT).await.map_err(|_| {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("the body is over {LIMIT} bytes or broke off"),
            "notifications are smaller",
        )
    })?;
    let now = app.now().0 / 1_000_000;
    checked(
        app.config.vast_webhook_secret.as_ref(),
        &parts.headers,
        &body,
        now,
    )?;
    let event: Notification = serde_json::from_slice(&body).map_err(|e| {
        ApiError::invalid(
            format!("it is signed, but is no notification: {e}"),
            "send JSON with notif_type",
        )
    })?;
    let kind = event.notif_type.trim_start_matches("client:");
    if !LOSSES.contains(&kind) || !app.hints.is_new(&event.event_id) {
        return Ok(StatusCode::ACCEPTED);
    }
    let named = named(&event.data);
    let open = app.store.list_open_instances().await?;
    let meant = |row: &InstanceRow| {
        row.state == InstanceState::Owned
            && row.machine.provider == "vast"
            // One that names none may mean any.
            && (named.is_empty() || row.instance_id.as_ref().is_some_and(|id| named.contains(id)))
    };
    let keys: Vec<String> = open.into_iter().filter(meant).map(|row| row.key).collect();
    tracing::info!(event = kind, instances = keys.len(), "Vast.ai gives a hint");
    app.hints.raise(keys);
    Ok(StatusCode::ACCEPTED)
}

/// Ids of instances in an event's data.
fn named(data: &Value) -> Vec<String> {
    let ids = NAMES.iter().filter_map(|name| match data.get(name)? {
        Value::Number(n) => Some(n.to_string()),
        Value::String(s) => Some(s.clone()),
        _ => None,
    });
    ids.collect()
}

/// Whether Vast.ai signed these very bytes just now.
fn checked(secret: Option<&WebhookSecret>, headers: &HeaderMap, body: &[u8], now: i64) -> ApiResult<()> {
    let refused = |code: &str, message: &str, hint: &str| {
        Err(ApiError::new(StatusCode::UNAUTHORIZED, code, message, hint))
    };
    let Some(secret) = secret else {
        return refused(
            "webhook_not_configured",
            "this server has no secret for notifications",
            "set VAST_WEBHOOK_SECRET to the secret that Vast.ai showed when the webhook was made",
        );
    };
    let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let signed = header("x-vast-signature-256").and_then(|s| s.strip_prefix("sha256="));
    let (Some(time), Some(signature)) = (header("x-vast-timestamp"), signed) else {
        return refused(
            "signature_missing",
            "the notification is not signed",
            "Vast.ai sends X-Vast-Timestamp and X-Vast-Signature-256",
        );
    };
    let valid = hex::decode(signature).is_ok_and(|signature| {
        Hmac::<Sha256>::new_from_slice(secret.0.as_bytes()).is_ok_and(|mut mac| {
            mac.update(time.as_bytes());
            mac.update(b".");
            mac.update(body);
            // In constant time.
            mac.verify_slice(&signature).is_ok()
        })
    });
    if !valid {
        return refused(
            "signature_invalid",
            "the notification is signed with another secret, or was changed",
            "compare VAST_WEBHOOK_SECRET with the webhook's; rotating it makes a new one",
        );
    }
    if !time
        .parse::<i64>()
        .is_ok_and(|t| now.abs_diff(t) <= WINDOW.unsigned_abs())
    {
        return refused(
            "signature_expired",
            "the notification was signed too long ago, or the clocks differ",
            "notifications are good for five minutes; check this server's clock",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_772_490_000;
    const BODY: &[u8] = br#"{"notif_type":"outbid"}"#;

    fn sign(secret: &str, time: &str, body: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
        mac.update(format!("{time}.").as_bytes());
        mac.update(body);
        format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
    }

    fn headers(time: &str, signature: &str) -> HeaderMap {
        let mut map = HeaderMap::new();
        map.insert("x-vast-timestamp", time.parse().unwrap());
        map.insert("x-vast-signature-256", signature.parse().unwrap());
        map
    }

    fn code(map: &HeaderMap, body: &[u8]) -> Option<String> {
        let secret = WebhookSecret("s3cret".into());
        checked(Some(&secret), map, body, NOW).err().map(|e| {
            assert_eq!(e.status, StatusCode::UNAUTHORIZED);
            e.body.code
        })
    }

    /// Computed by Python's hmac over `1772490000.{"notif_type":"outbid"}` with the key `s3cret`.
    #[test]
    fn the_signature_is_the_documented_one() {
        let signature = "sha256=7d5bfecb48a03740aa84a2fd7ff31455a99440346c30fe86f3dec6b5df6e2055";
        assert_eq!(sign("s3cret", "1772490000", BODY), signature);
        assert_eq!(code(&headers("1772490000", signature), BODY), None);
    }

    #[test]
    fn what_is_not_signed_just_now_with_our_secret_is_refused() {
        let at = |time: i64| headers(&time.to_string(), &sign("s3cret", &time.to_string(), BODY));
        assert_eq!(code(&at(NOW), BODY), None);
        assert_eq!(code(&at(NOW - WINDOW), BODY), None);
        for time in [NOW - WINDOW - 1, NOW + WINDOW + 1, i64::MAX, i64::MIN] {
            assert_eq!(
                code(&at(time), BODY).as_deref(),
                Some("signature_expired"),
                "{time}"
            );
        }
        let invalid = Some("signature_invalid".to_owned());
        assert_eq!(code(&at(NOW), b"{}"), invalid, "another body");
        let other = headers(&NOW.to_string(), &sign("other", &NOW.to_string(), BODY));
        assert_eq!(code(&other, BODY), invalid);
        // A true signature under another time.
        let moved = headers(&(NOW + 1).to_string(), &sign("s3cret", &NOW.to_string(), BODY));
        assert_eq!(code(&moved, BODY), invalid);
        for short in ["sha256=", "sha256=00", "sha256=zz"] {
            assert_eq!(code(&headers(&NOW.to_string(), short), BODY), invalid, "{short}");
        }
        assert_eq!(
            code(&HeaderMap::new(), BODY).as_deref(),
            Some("signature_missing")
        );
        assert_eq!(
            code(&headers("1", "md5=00"), BODY).as_deref(),
            Some("signature_missing")
        );
        let none = checked(None, &at(NOW), BODY, NOW).unwrap_err();
        assert_eq!(none.body.code, "webhook_not_configured");
    }

    #[test]
    fn ids_are_read_wherever_they_stand() {
        assert_eq!(named(&serde_json::json!({"instance_id": 12, "x": 1})), ["12"]);
        assert_eq!(named(&serde_json::json!({"id": "12"})), ["12"]);
        assert!(named(&Value::Null).is_empty() && named(&serde_json::json!([1])).is_empty());
    }
}
