//! The account, and the names of the GPUs on offer.

use std::collections::BTreeSet;

use axum::extract::State;
use axum::response::Response;
use serde_json::json;

use super::{Shared, ok};
use crate::market::now_ms;

pub async fn current(State(inner): Shared) -> Response {
    let (state, now) = (inner.state(), now_ms());
    let spent = state.spent(now);
    let key = state.account_keys.first().map(|k| k.text.clone());
    ok(json!({
        "id": 1, "email": "renter@example.com", "username": "renter", "credit": state.credit - spent, "balance": 0.0,
        "can_pay": true, "ssh_key": key, "balance_threshold": 0.0, "balance_threshold_enabled": false,
        "billed_expected": 0.0, "billed_verified": 0.0, "billing_creditonly": 0, "email_verified": true,
        "fullname": "A Renter", "got_signup_credit": 0, "has_billing": true, "has_payout": false,
        "last4": "4242", "host_agreement_accepted": false, "total_spend": spent,
    }))
}

pub async fn gpu_names(State(inner): Shared) -> Response {
    let names: BTreeSet<&str> = inner
        .state()
        .universe
        .machines
        .iter()
        .map(|m| m.gpu_name)
        .collect();
    ok(json!({"gpu_names": names}))
}
