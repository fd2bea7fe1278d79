//! What a refusal of Vast.ai means.
//!
//! The service says the same thing in several ways: a wrong key is 401 or 404, a stale offer
//! is 400, 404 or 410, refusals also come as 200. So the words decide first (the `error` code,
//! then known phrases of the message) and the status only where no word is known. A server's
//! own failure (5xx) is never read for words: it may have acted or not.

use super::super::{ErrorClass, ProviderError};
use super::wire;
use dumont_core::budget::until_midnight;
use dumont_core::time::Timestamp;
use serde_json::Value;
use std::time::SystemTime;

/// Classifies an answer that is not a success. `Retry-After` is the caller's to add.
pub fn classify(status: u16, body: &[u8]) -> ProviderError {
    // Refusals are short; what is longer is a page of HTML or an attack.
    let body = &body[..body.len().min(64 * 1024)];
    match wire::parse(body) {
        Some(json) => classify_json(status, &json),
        None => classify_text(status, &String::from_utf8_lossy(body)),
    }
}

pub(super) fn classify_json(status: u16, json: &Value) -> ProviderError {
    let code = wire::text(json, "error").unwrap_or_default();
    let words = ["msg", "message", "detail"]
        .iter()
        .find_map(|f| wire::text(json, f))
        .unwrap_or_default();
    let said = match (code.is_empty(), words.is_empty()) {
        (false, false) => format!("{code}: {words}"),
        (false, true) => code.clone(),
        (true, false) => words.clone(),
        (true, true) => "no reason given".into(),
    };
    let class = by_words(status, &code.to_lowercase(), &words.to_lowercase()).unwrap_or(match status {
        200..=299 | 400..=499 => ErrorClass::Invalid,
        _ => by_status(status),
    });
    answered(status, class, &said)
}

fn classify_text(status: u16, text: &str) -> ProviderError {
    let text = wire::clean(text);
    if text.starts_with('<') {
        // A proxy's page: its words are not Vast.ai's.
        let class = if status == 429 {
            rate_limited()
        } else {
            by_status(status)
        };
        return answered(status, class, "a web page instead of JSON");
    }
    let class = by_words(status, "", &text.to_lowercase()).unwrap_or_else(|| by_status(status));
    answered(
        status,
        class,
        if text.is_empty() { "an empty body" } else { &text },
    )
}

fn by_words(status: u16, code: &str, words: &str) -> Option<ErrorClass> {
    let any = |phrases: &[&str]| phrases.iter().any(|p| code.contains(p) || words.contains(p));
    if status >= 500 {
        return None;
    }
    if code.contains("search_quota_exceeded") || words.contains("search_quota_exceeded") {
        Some(ErrorClass::QuotaUsedUp {
            resets_in: until_midnight(Timestamp::from_system(SystemTime::now())),
        })
    } else if status == 429 || any(&["rate_limit", "requests too frequent"]) {
        Some(rate_limited())
    } else if status == 401
        || any(&[
            "auth_error",
            "invalid user key",
            "invalid api key",
            "session expired",
        ])
    {
        Some(ErrorClass::Auth)
    } else if status == 402 || any(&["insufficient_credit", "insufficient credit", "lacks credit"]) {
        Some(ErrorClass::Credit)
    } else if any(&["bid_too_low", "bid too low", "bid is too low", "bid is lower"]) {
        Some(ErrorClass::BidTooLow)
    } else if any(&["no_such_ask", "no longer available", "resources_unavailable"]) {
        Some(ErrorClass::OfferGone)
    } else {
        None
    }
}

/// For answers without a word we know. A 3xx is no data, whatever its body says.
fn by_status(status: u16) -> ErrorClass {
    match status {
        401 => ErrorClass::Auth,
        402 => ErrorClass::Credit,
        408 | 425 | 500.. => ErrorClass::Transient,
        _ => ErrorClass::Protocol,
    }
}

fn rate_limited() -> ErrorClass {
    ErrorClass::RateLimited { retry_after: None }
}

fn answered(status: u16, class: ErrorClass, said: &str) -> ProviderError {
    ProviderError {
        class,
        message: format!("Vast.ai answered {status}, {said}"),
    }
}

/// An error of our own making.
pub(super) fn error(class: ErrorClass, message: impl Into<String>) -> ProviderError {
    ProviderError {
        class,
        message: message.into(),
    }
}

/// Puts what was being done before what went wrong.
pub(super) fn during(what: &str) -> impl Fn(ProviderError) -> ProviderError + '_ {
    move |e| ProviderError {
        class: e.class,
        message: format!("{what}: {}", e.message),
    }
}

/// Whether this 2xx body is a refusal after all.
pub(super) fn is_refusal(json: &Value) -> bool {
    match wire::truth(json, "success") {
        Some(success) => !success,
        None => wire::text(json, "error").is_some(),
    }
}

/// Whether the refusal says that the instance does not exist.
pub(super) fn is_no_instance(status: u16, json: &Value, codes: &[&str]) -> bool {
    let code = wire::text(json, "error").unwrap_or_default();
    (status == 404 || status == 410 || is_refusal(json)) && status < 500 && codes.contains(&code.as_str())
}
