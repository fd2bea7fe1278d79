//! JSON bodies that refuse what they do not know, with the place of the mistake.

use super::error::ApiError;
use axum::body::to_bytes;
use axum::extract::{FromRequest, Request};
use serde::de::DeserializeOwned;

/// Largest accepted body, bytes; a commit of a large import names many packs.
const LIMIT: usize = 16 << 20;

/// Like `axum::Json`, but an empty body reads as `{}`, no content type is asked for (the
/// source document's own curl lines send none), and errors are ours.
#[derive(Debug, Clone)]
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, Self::Rejection> {
        let bytes = to_bytes(request.into_body(), LIMIT).await.map_err(|_| {
            ApiError::new(
                axum::http::StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                format!("the body is over {LIMIT} bytes or broke off"),
                "send a smaller body",
            )
        })?;
        let text: &[u8] = if bytes.iter().all(u8::is_ascii_whitespace) {
            b"{}"
        } else {
            &bytes
        };
        // serde also reads a list as a structure, field by field; nobody means that.
        if !text.trim_ascii_start().starts_with(b"{") {
            return Err(ApiError::invalid(
                "the body is not a JSON object",
                "send {\"field\": value, …}, with the names of the documentation",
            ));
        }
        serde_json::from_slice(text).map(Body).map_err(|e| {
            ApiError::invalid(
                format!("the body is not what this endpoint takes: {e}"),
                "compare field names and types with the documentation; unknown fields are refused",
            )
        })
    }
}
