//! The provider: key, money, clock, and whether our SSH key is let in.

use super::{Check, clock};
use crate::providers::vast::{KEY_HINT, Vast};
use crate::providers::{ErrorClass, ProviderError};
use crate::settings::ServerConfig;
use crate::ssh;
use dumont_core::lease;
use dumont_core::time::Timestamp;
use std::time::SystemTime;

pub async fn examine(config: &ServerConfig) -> Vec<Check> {
    let Some(account) = &config.vast else {
        return vec![Check::warning(
            "provider key",
            "VAST_API_KEY is not set: workspaces can live on machines of your own only",
            format!(
                "add machines with `dumont machine add` and say --provider ssh, or {KEY_HINT}; \
                 `dumont market` is one to try it with (VAST_URL)"
            ),
        )];
    };
    let base_url = account.base_url.clone();
    let vast = match Vast::new(account.clone()) {
        Ok(vast) => vast,
        Err(e) => return vec![Check::failed("provider", e.message, e.hint)],
    };
    let account = match vast.account().await {
        Ok(account) => account,
        Err(e) => return vec![failed("provider key", &e)],
    };
    let mut checks = vec![Check::ok("provider key", format!("{base_url} takes it"))];
    checks.push(balance(account.credit));
    if let Some(date) = account.date {
        let off = Timestamp::from_system(date).millis_since(Timestamp::from_system(SystemTime::now()));
        // It says whole seconds.
        checks.push(clock("provider clock", "the provider", off.saturating_add(500)));
    }
    checks.push(key(config, &vast).await);
    checks.push(lease(config));
    checks
}

/// Whether it works is seen on a machine only; what it needs there is said here.
fn lease(config: &ServerConfig) -> Check {
    let detail = match config.abandon_after {
        None => "go on for ever when no server is there (ABANDON_AFTER_MINUTES is 0)".to_owned(),
        Some(after) => format!(
            "stop themselves after {} without a server, if their image has curl, GNU wget or python3",
            lease::in_words(after)
        ),
    };
    Check::ok("provider machines", detail)
}

fn balance(credit: Option<f64>) -> Check {
    let name = "provider balance";
    let hint = "add credit: https://cloud.vast.ai/billing/";
    match credit {
        None => Check::warning(name, "the provider does not say", hint),
        Some(dollars) if dollars <= 0.0 => {
            Check::failed(name, format!("${dollars:.2}: nothing can be rented"), hint)
        }
        Some(dollars) if dollars < 1.0 => Check::warning(name, format!("${dollars:.2}"), hint),
        Some(dollars) => Check::ok(name, format!("${dollars:.2}")),
    }
}

async fn key(config: &ServerConfig, vast: &Vast) -> Check {
    let name = "provider SSH key";
    let path = config.data_dir.join("id_ed25519");
    if !path.exists() {
        return Check::warning(
            name,
            "this installation has none yet",
            "the first `dumont serve` makes it",
        );
    }
    let line = ssh::load_or_create(&path)
        .map_err(|e| e.to_string())
        .and_then(|key| ssh::public_line(key.public_key()).map_err(|e| e.to_string()));
    let line = match line {
        Ok(line) => line,
        Err(e) => return Check::failed(name, e, "move the file away and a new key is made"),
    };
    match vast.knows_key(&line).await {
        Ok(true) => Check::ok(name, "registered"),
        Ok(false) => Check::warning(
            name,
            "not registered",
            "`dumont serve` registers it when it starts",
        ),
        Err(e) => failed(name, &e),
    }
}

fn failed(name: &'static str, error: &ProviderError) -> Check {
    let hint = match error.class {
        ErrorClass::Auth => "set VAST_API_KEY to a key of https://console.vast.ai/manage-keys/",
        ErrorClass::Transient => "check the network, VAST_URL and https://status.vast.ai, then try again",
        ErrorClass::RateLimited { .. } | ErrorClass::QuotaUsedUp { .. } => "wait a minute and try again",
        _ => "check VAST_URL and VAST_API_KEY",
    };
    Check::failed(name, error.message.clone(), hint)
}
