//! What stands before every call: who it is, how often, and in what clothes answers go out.

use std::collections::HashMap;

use axum::Json;
use axum::extract::{ConnectInfo, MatchedPath, Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::Shared;
use crate::limits::{Endpoint, Excess};
use crate::market::{Inner, now_ms};
use crate::net::Peer;
use crate::switches::{AuthFailure, BarePath, ContentType, InstanceKey, RateLimitBody, RateLimitHeaders};

/// Nobody needs a key to search, to name GPUs or to read a result whose URL he knows.
fn is_public(path: &str) -> bool {
    is_search(path) || path == "/api/v0/gpu_names/unique" || path.starts_with("/results/")
}

fn is_search(path: &str) -> bool {
    matches!(path, "/api/v0/bundles" | "/api/v0/search/asks")
}

/// The key in the header, else the legacy one in the query.
fn key<'a>(headers: &'a HeaderMap, query: &'a HashMap<String, String>) -> Option<&'a str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    bearer
        .and_then(|v| v.strip_prefix("Bearer "))
        .map(str::trim)
        .filter(|key| !key.is_empty())
        .or_else(|| query.get("api_key").map(String::as_str))
        .filter(|key| !key.is_empty())
}

/// The request came with the key that lies inside an instance.
#[derive(Debug, Clone, Copy)]
pub struct FromInside;

pub async fn authorize(
    State(inner): Shared,
    Query(query): Query<HashMap<String, String>>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path().trim_end_matches('/');
    let key = key(request.headers(), &query);
    let instance = key.and_then(|key| inner.state().owner(key));
    let allowed = match (key, instance) {
        (None, _) => is_public(path),
        (Some(_), Some(id)) => from_inside(&inner, id, request.method(), path),
        (Some(key), None) => {
            inner.config.api_keys.is_empty() || inner.config.api_keys.iter().any(|k| k == key)
        }
    };
    if !allowed {
        let what = match instance {
            Some(_) => "Unable to authorize instance API key",
            None => "Invalid user key",
        };
        return unauthorized(&inner, path, what);
    }
    if instance.is_some() {
        request.extensions_mut().insert(FromInside);
    }
    next.run(request).await
}

pub fn unauthorized(inner: &Inner, path: &str, what: &str) -> Response {
    let status = match inner.config.switches.auth_failure {
        AuthFailure::NotFound => StatusCode::NOT_FOUND,
        AuthFailure::Documented if is_search(path) => StatusCode::NOT_FOUND,
        AuthFailure::Unauthorized | AuthFailure::Documented => StatusCode::UNAUTHORIZED,
    };
    let body = json!({"success": false, "error": "auth_error", "msg": what});
    (status, Json(body)).into_response()
}

/// The key inside an instance may show, start, stop and destroy that one, and nothing else. What
/// of its own body is more than a start or a stop, the handler refuses.
fn from_inside(inner: &Inner, id: u64, method: &Method, path: &str) -> bool {
    inner.config.switches.instance_key == InstanceKey::Acts
        && path == format!("/api/v0/instances/{id}")
        && [Method::GET, Method::PUT, Method::DELETE].contains(method)
}

/// Identities are what the documentation says: the key and the address together.
pub async fn limit(
    State(inner): Shared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Query(query): Query<HashMap<String, String>>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let route = path.as_ref().map_or("", |p| p.as_str()).trim_end_matches('/');
    if let Some(endpoint) = Endpoint::of(request.method().as_str(), route) {
        let ip = peer.ip.map(|ip| ip.to_string()).unwrap_or_default();
        let who = format!("{} {ip}", key(request.headers(), &query).unwrap_or_default());
        let asked = inner.ask(&who, endpoint);
        let id = request
            .headers()
            .get("x-request-id")
            .and_then(|v| v.to_str().ok());
        inner.state().asked.add(now_ms(), endpoint, asked.is_err(), id);
        if let Err((excess, nth)) = asked {
            let key = format!("{} {route}/", request.method());
            *inner.state().refused.entry(key).or_insert(0) += 1;
            return refusal(&inner, excess, nth);
        }
    }
    next.run(request).await
}

fn refusal(inner: &Inner, excess: Excess, nth: usize) -> Response {
    const FREQUENT: &str = "API requests too frequent";
    let switches = inner.config.switches;
    let (threshold, wait_ms) = match excess {
        Excess::TooFrequent { threshold_s, wait_ms } => (threshold_s, wait_ms),
        Excess::Quota { reset_ms } => return quota(reset_ms),
    };
    let detailed = format!("{FREQUENT}: endpoint threshold={threshold:.1}");
    let turns = [
        RateLimitBody::Plain,
        RateLimitBody::Threshold,
        RateLimitBody::Detail,
        RateLimitBody::Json,
    ];
    let form = match switches.rate_limit_body {
        RateLimitBody::Mixed => turns.get(nth % turns.len()).copied().unwrap_or_default(),
        form => form,
    };
    let mut answer = match form {
        RateLimitBody::Mixed | RateLimitBody::Plain => FREQUENT.into_response(),
        RateLimitBody::Threshold => detailed.into_response(),
        RateLimitBody::Detail => Json(json!({"detail": detailed})).into_response(),
        RateLimitBody::Json => {
            Json(json!({"success": false, "error": "rate_limit_exceeded", "msg": detailed})).into_response()
        }
    };
    *answer.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    if switches.rate_limit_headers == RateLimitHeaders::RetryAfter {
        let seconds = wait_ms.max(0).div_euclid(1000) + 1;
        answer
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    answer
}

/// The day's searches are used up.
fn quota(reset_ms: i64) -> Response {
    const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
    let body =
        json!({"success": false, "error": "search_quota_exceeded", "msg": "Daily search quota exceeded"});
    let mut answer = (StatusCode::TOO_MANY_REQUESTS, Json(body)).into_response();
    answer
        .headers_mut()
        .insert(RESET, HeaderValue::from(reset_ms / 1000));
    answer
}

/// What the switches say of paths and of content types.
pub async fn dress(State(inner): Shared, request: Request, next: Next) -> Response {
    let switches = inner.config.switches;
    let path = request.uri().path().to_owned();
    if switches.bare_path == BarePath::Redirect && path.starts_with("/api/") && !path.ends_with('/') {
        let mut to = format!("{path}/");
        if let Some(query) = request.uri().query() {
            to = format!("{to}?{query}");
        }
        // With a body that reads like data, as the real one's does.
        let body = Json(json!({"success": true, "msg": "Moved Permanently", "instances": []}));
        return (StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, to)], body).into_response();
    }
    let mut answer = next.run(request).await;
    let bare = HeaderValue::from_static("application/json");
    if switches.content_type == ContentType::Charset
        && !is_search(path.trim_end_matches('/'))
        && answer.headers().get(header::CONTENT_TYPE) == Some(&bare)
    {
        let charset = HeaderValue::from_static("application/json; charset=utf-8");
        answer.headers_mut().insert(header::CONTENT_TYPE, charset);
    }
    answer
}
