//! What the client needs to know of an account, checked before the first request.
//!
//! The key opens the user's purse, so it is sent in clear to nobody but this very machine:
//! plain HTTP is for emulators on loopback.

use dumont_core::budget::{Endpoint, Limits};
use dumont_store::Account;
use reqwest::header::HeaderValue;
use std::fmt;
use std::time::Duration;
use url::{Host, Url};

/// Where the real service lives.
pub const DEFAULT_URL: &str = "https://console.vast.ai";

/// How an account comes to be known.
pub const KEY_HINT: &str = "export VAST_API_KEY=… with a key from https://console.vast.ai/manage-keys/";

/// The account's key. Shown nowhere, not even in debug output.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// Surrounding white space is cut; what is left must fit into a header.
    pub fn new(key: &str) -> Result<Self, ConfigError> {
        let key = key.trim();
        if key.is_empty() || key.len() > 512 || !key.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ConfigError {
                message: "the Vast.ai API key is empty or not made of printable ASCII characters".into(),
                hint: "copy it from https://console.vast.ai/manage-keys/ and set VAST_API_KEY".into(),
            });
        }
        Ok(Self(key.into()))
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }

    pub(super) fn bearer(&self) -> Result<HeaderValue, ConfigError> {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", self.0)).map_err(|_| ConfigError {
            message: "the Vast.ai API key does not fit into a header".into(),
            hint: "set VAST_API_KEY to the key as the console shows it".into(),
        })?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(hidden)")
    }
}

/// What is wrong with the configuration and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}: {hint}")]
pub struct ConfigError {
    pub message: String,
    pub hint: String,
}

/// How to reach an account and how patient to be with it.
#[derive(Debug, Clone)]
pub struct VastConfig {
    pub base_url: Url,
    pub api_key: ApiKey,
    /// What the account may ask, by endpoint.
    pub limits: Limits,
    /// Least time between two creates, where the account may more.
    pub stagger: Duration,
    pub connect_timeout: Duration,
    /// For a whole request, the body of the answer included.
    pub timeout: Duration,
    /// Waits before a request that was rate limited is sent again.
    pub rate_limit_backoff: Vec<Duration>,
    /// Waits before each look for an instance whose create was not answered. Listings may
    /// show a new instance late, so the looks are spread over some seconds.
    pub lookup_waits: Vec<Duration>,
    /// All looks together; after it the create stays uncertain.
    pub lookup_limit: Duration,
    /// Offer only machines that Vast.ai has verified.
    pub only_verified: bool,
}

impl VastConfig {
    pub fn new(base_url: &str, api_key: ApiKey) -> Result<Self, ConfigError> {
        let seconds = |all: &[u64]| all.iter().map(|s| Duration::from_secs(*s)).collect();
        Ok(Self {
            base_url: parse_base(base_url)?,
            api_key,
            limits: Limits::default(),
            stagger: Duration::from_millis(200),
            connect_timeout: Duration::from_secs(10),
            timeout: Duration::from_secs(30),
            rate_limit_backoff: seconds(&[1, 2, 4]),
            lookup_waits: seconds(&[0, 1, 2, 4]),
            lookup_limit: Duration::from_secs(60),
            only_verified: true,
        })
    }

    /// `VAST_URL` (default the real service), `VAST_API_KEY` and `VAST_LIMITS`. Without a key
    /// there is no account; an address without one is a slip.
    pub fn from_vars(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, ConfigError> {
        let set = |name| get(name).filter(|v| !v.trim().is_empty());
        let Some(key) = set("VAST_API_KEY") else {
            return match set("VAST_URL").filter(|url| url != DEFAULT_URL) {
                None => Ok(None),
                Some(_) => Err(ConfigError {
                    message: "VAST_URL is set and VAST_API_KEY is not".into(),
                    hint: format!("{KEY_HINT}; `dumont market` takes any. Without VAST_URL no key is needed"),
                }),
            };
        };
        let mut config = Self::new(
            set("VAST_URL").as_deref().unwrap_or(DEFAULT_URL),
            ApiKey::new(&key)?,
        )?;
        if let Some(limits) = set("VAST_LIMITS") {
            config.limits = limits.parse().map_err(|e| ConfigError {
                message: format!("VAST_LIMITS: {e}"),
                hint: "leave it out for the documented limits".into(),
            })?;
        }
        Ok(Some(config))
    }

    pub(super) fn budget(&self) -> Limits {
        self.limits.clone().at_least(Endpoint::Create, self.stagger)
    }

    /// The name under which replicas share the account's budget; the key cannot be had from it.
    pub(super) fn account(&self) -> Account {
        let mut hash = blake3::Hasher::new_derive_key("dumont 2026-11-26 provider account");
        hash.update(self.base_url.as_str().as_bytes());
        hash.update(self.api_key.0.as_bytes());
        Account {
            provider: super::NAME.into(),
            name: hash.finalize().to_hex()[..32].to_owned(),
        }
    }
}

fn parse_base(text: &str) -> Result<Url, ConfigError> {
    let bad = |message: String| ConfigError {
        message,
        hint: format!("set VAST_URL to e.g. {DEFAULT_URL}, or http://127.0.0.1:PORT for an emulator"),
    };
    let url = Url::parse(text.trim()).map_err(|e| bad(format!("the Vast.ai URL cannot be read ({e})")))?;
    // A URL may hold a password, so it is never repeated in the message.
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("the Vast.ai URL holds a user name or a password".into()));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("the Vast.ai URL has a query or a fragment".into()));
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_loopback(&url) => Ok(url),
        "http" => Err(bad("plain HTTP would show the API key to the network".into())),
        other => Err(bad(format!("the Vast.ai URL has the scheme {other:?}"))),
    }
}

/// Whether the URL can only mean this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Option<VastConfig>, ConfigError> {
        VastConfig::from_vars(|n| vars.iter().find(|(k, _)| *k == n).map(|(_, v)| (*v).to_owned()))
    }

    fn from(vars: &[(&str, &str)]) -> Result<VastConfig, ConfigError> {
        read(vars).map(|config| config.expect("there is a key"))
    }

    #[test]
    fn the_real_service_is_the_default_and_the_key_is_never_shown() {
        let config = from(&[("VAST_API_KEY", " s3cretkey\n")]).unwrap();
        assert_eq!(config.base_url.as_str(), "https://console.vast.ai/");
        assert_eq!(config.api_key.expose(), "s3cretkey");
        assert!(!format!("{config:?}").contains("s3cretkey"));
        assert!(!format!("{:?}", config.api_key.bearer().unwrap()).contains("s3cretkey"));
    }

    #[test]
    fn without_a_key_there_is_no_account_and_an_address_alone_is_a_slip() {
        assert!(
            read(&[("VAST_API_KEY", " "), ("VAST_LIMITS", "off")])
                .unwrap()
                .is_none()
        );
        let error = read(&[("VAST_URL", "http://127.0.0.1:9")]).unwrap_err();
        assert!(error.to_string().contains("export VAST_API_KEY"), "{error}");
    }

    #[test]
    fn the_key_goes_in_clear_to_loopback_only() {
        for good in [
            "http://127.0.0.1:9",
            "http://[::1]:9/",
            "http://localhost:1",
            "https://example.com",
        ] {
            assert!(
                from(&[("VAST_API_KEY", "k"), ("VAST_URL", good)]).is_ok(),
                "{good}"
            );
        }
        let bad = [
            "http://10.0.0.1",
            "http://localhost.evil.com",
            "ftp://127.0.0.1",
            "x",
            "https://u:p@h",
            "https://h/?a",
        ];
        for url in bad {
            assert!(
                from(&[("VAST_API_KEY", "k"), ("VAST_URL", url)]).is_err(),
                "{url}"
            );
        }
        for key in ["a b", "a\nb", "é"] {
            assert!(from(&[("VAST_API_KEY", key)]).is_err(), "{key:?}");
        }
    }
}
