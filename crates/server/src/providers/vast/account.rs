//! The account behind the key: whether the key is right, and what money there is.

use super::error::during;
use super::http::Call;
use super::{Vast, wire};
use crate::providers::ProviderError;
use reqwest::Method;
use std::time::SystemTime;

/// What the provider says of an account.
#[derive(Debug, Clone, PartialEq)]
pub struct Account {
    /// Dollars that can be spent; `None` where it does not say.
    pub credit: Option<f64>,
    /// The provider's clock, to the second.
    pub date: Option<SystemTime>,
}

impl Vast {
    /// An error of class `Auth` says that the key is wrong.
    pub async fn account(&self) -> Result<Account, ProviderError> {
        let what = "reading the account";
        let call = Call::new(Method::GET, "/api/v0/users/current/");
        let answer = self
            .http
            .answer(call)
            .await
            .map_err(|lost| during(what)(lost.error))?;
        let date = answer.date;
        let json = answer.into_success().map_err(during(what))?;
        Ok(Account {
            credit: wire::number(&json, "credit"),
            date,
        })
    }

    /// Whether the account lets this public key into new instances.
    pub async fn knows_key(&self, public_key: &str) -> Result<bool, ProviderError> {
        self.has_account_key(public_key).await
    }
}
