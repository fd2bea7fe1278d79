//! SSH keys of the account and of single instances.
//!
//! The documentation contradicts itself on whether an account's key reaches instances that
//! run already, so callers do both: register before renting, attach after.

use super::super::{ErrorClass, ProviderError};
use super::error::{during, error};
use super::http::Call;
use super::instances::instance_path;
use super::{Vast, wire};
use dumont_core::budget::Endpoint;
use reqwest::Method;
use serde_json::{Value, json};

const PATH: &str = "/api/v0/ssh/";

impl Vast {
    pub(super) async fn register_account_key(&self, public_key: &str) -> Result<(), ProviderError> {
        let key = checked(public_key)?;
        if self.has_account_key(key).await? {
            return Ok(());
        }
        let call = Call::new(Method::POST, PATH)
            .json(json!({ "ssh_key": key }))
            .at(Endpoint::AddKey);
        let Err(refused) = self.http.success(call).await else {
            return Ok(());
        };
        // The reply may be lost after the act, or another replica was faster.
        match self.has_account_key(key).await {
            Ok(true) => Ok(()),
            _ => Err(during("registering the SSH key")(refused)),
        }
    }

    pub(super) async fn has_account_key(&self, key: &str) -> Result<bool, ProviderError> {
        let what = "reading the account's SSH keys";
        let call = Call::new(Method::GET, PATH).listing();
        let answer = self
            .http
            .answer(call)
            .await
            .map_err(|lost| during(what)(lost.error))?;
        // So the service says that there are none yet; a wrong key is a 404 as well.
        let none_yet = answer.status == 404
            && answer.json.is_some()
            && answer.refusal().is_none_or(|e| e.class != ErrorClass::Auth);
        if none_yet {
            return Ok(false);
        }
        let json = answer.into_success().map_err(during(what))?;
        let rows = json
            .as_array()
            .or_else(|| json.get("keys").or(json.get("ssh_keys"))?.as_array());
        let rows =
            rows.ok_or_else(|| error(ErrorClass::Protocol, format!("{what}: the answer is not a list")))?;
        Ok(rows.iter().any(|row| is_key(row, key)))
    }

    pub(super) async fn attach_instance_key(&self, id: &str, public_key: &str) -> Result<(), ProviderError> {
        let key = checked(public_key)?;
        let path = format!("{}ssh/", instance_path(id)?);
        let what = format!("attaching the SSH key to instance {id}");
        // Attaching twice is what the caller may do anyway.
        let call = Call::new(Method::POST, &path)
            .json(json!({ "ssh_key": key }))
            .at(Endpoint::AddKey)
            .harmless();
        match self.http.success(call).await {
            Ok(_) => Ok(()),
            // No documented code says this; the wording is from third-party reports.
            Err(e) if e.class == ErrorClass::Invalid && e.message.to_lowercase().contains("already") => {
                Ok(())
            }
            Err(e) => Err(during(&what)(e)),
        }
    }
}

/// One OpenSSH line of a public key. A private key pasted by mistake must not leave.
fn checked(public_key: &str) -> Result<&str, ProviderError> {
    let key = public_key.trim();
    if material(key).is_none() || key.contains(['\n', '\r']) || key.len() > 16_384 {
        let message = "the SSH public key is not one line like `ssh-ed25519 AAAA… comment`";
        return Err(error(ErrorClass::Invalid, message));
    }
    Ok(key)
}

/// Type and key; the comment is anybody's.
fn material(key: &str) -> Option<(&str, &str)> {
    let mut words = key.split_ascii_whitespace();
    let (kind, blob) = (words.next()?, words.next()?);
    let known = ["ssh-", "ecdsa-", "sk-"].iter().any(|p| kind.starts_with(p));
    let base64 = blob
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b));
    (known && base64).then_some((kind, blob))
}

fn is_key(row: &Value, key: &str) -> bool {
    // Not `wire::text`: an RSA key is longer than any text that is shown.
    let listed = ["key", "public_key", "ssh_key"]
        .iter()
        .find_map(|f| row.get(*f)?.as_str())
        .or(row.as_str());
    let deleted = wire::text(row, "deleted_at").is_some();
    !deleted && listed.and_then(material) == material(key)
}
