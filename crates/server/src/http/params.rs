//! Path and query parameters and paging, with errors of ours.

use super::error::ApiError;
use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use dumont_wire::rest::PageQuery;
use serde::de::DeserializeOwned;

/// Most items in one page.
const MOST: u32 = 500;
const DEFAULT: u32 = 100;

/// Like `axum::extract::Query`; unknown parameters and wrong types are refused in JSON.
#[derive(Debug, Clone)]
pub struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        match Query::<T>::try_from_uri(&parts.uri) {
            Ok(Query(value)) => Ok(Self(value)),
            Err(e) => Err(ApiError::invalid(
                format!("the query is not what this endpoint takes: {}", e.body_text()),
                "check the names and types of the parameters; unknown ones are refused",
            )),
        }
    }
}

/// Like `axum::extract::Path`; a path that is no text is refused in JSON.
#[derive(Debug, Clone)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(e) => Err(ApiError::invalid(
                format!("the path is not what this endpoint takes: {}", e.body_text()),
                "check the names and ids in the path",
            )),
        }
    }
}

/// How many items were asked for, within bounds.
pub fn limit(page: &PageQuery) -> Result<u32, ApiError> {
    match page.limit.unwrap_or(DEFAULT) {
        n @ 1..=MOST => Ok(n),
        n => Err(ApiError::invalid(
            format!("limit={n} is not between 1 and {MOST}"),
            "ask for less and page with after=",
        )),
    }
}
