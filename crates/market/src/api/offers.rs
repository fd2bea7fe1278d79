//! Searching offers.

use std::collections::HashMap;

use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::{Shared, fail, object, ok};
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
    let rows: Vec<Value> = {
        let state = inner.state();
        let universe = &state.universe;
        let listed = state.listed(now);
        let views = listed.into_iter().filter_map(|offer| {
            let machine = universe.machines.get(offer.machine)?;
            let ask = Ask {
                quote: state.quote(offer.machine, now),
                disk_gb: query.storage_gb,
                bid: query.bid,
                now_s: seconds(now),
            };
            Some(OfferView { machine, offer, ask })
        });
        query.select(views).iter().map(OfferView::row).collect()
    };
    ok(json!({"offers": rows}))
}
