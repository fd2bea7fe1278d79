//! Searching offers.

use std::collections::HashMap;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Shared, fail, object};
use crate::market::{Inner, now_ms, seconds};
use crate::offers::Ask;
use crate::query::OfferQuery;
use crate::view::OfferView;

pub async fn search(State(inner): Shared, body: Bytes) -> Response {
    match object(&body) {
        Ok(body) => answer(&inner, &body),
        Err(refused) => *refused,
    }
}

/// The older form: `?q={..}`, JSON in the query.
pub async fn search_by_query(State(inner): Shared, Query(query): Query<HashMap<String, String>>) -> Response {
    let text = query.get("q").map_or("{}", String::as_str);
    search(State(inner), Bytes::copy_from_slice(text.as_bytes())).await
}

/// The newer form: `{"select_cols": [..], "q": {..}}`.
pub async fn search_asks(State(inner): Shared, body: Bytes) -> Response {
    match object(&body) {
        Ok(mut body) => match body.remove("q") {
            Some(Value::Object(query)) => answer(&inner, &query),
            _ => fail(StatusCode::BAD_REQUEST, "invalid_args", "q is missing."),
        },
        Err(refused) => *refused,
    }
}

fn answer(inner: &Inner, body: &Map<String, Value>) -> Response {
    let query = match OfferQuery::parse(body) {
        Ok(query) => query,
        Err(bad) => return fail(StatusCode::BAD_REQUEST, "invalid_args", &bad.to_string()),
    };
    let now = now_ms();
    let board = inner.state().board(now);
    let views = board.rows().map(|(machine, offer, quote)| OfferView {
        machine,
        offer,
        ask: Ask {
            quote,
            disk_gb: query.storage_gb,
            bid: query.bid,
            now_s: seconds(now),
        },
    });
    Json(Offers {
        offers: query.select(views),
    })
    .into_response()
}

#[derive(Serialize)]
struct Offers<'a> {
    offers: Vec<OfferView<'a>>,
}
