//! URLs without the secrets in them.

use url::Url;

/// What stands for a secret.
pub const HIDDEN: &str = "***";

/// The URL with its password, and whatever of its query is named like a secret, hidden. What
/// is no URL is hidden whole.
pub fn redacted(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else {
        return HIDDEN.into();
    };
    if url.cannot_be_a_base() {
        return HIDDEN.into();
    }
    if url.password().is_some() && url.set_password(Some(HIDDEN)).is_err() {
        return HIDDEN.into();
    }
    if url.query().is_some() {
        let shown: Vec<_> = url
            .query_pairs()
            .map(|(name, value)| {
                let value = if is_secret(&name) { HIDDEN.into() } else { value };
                format!("{name}={value}")
            })
            .collect();
        url.set_query(Some(&shown.join("&")));
    }
    url.to_string()
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["pass", "secret", "token", "key", "sig", "credential"]
        .iter()
        .any(|word| name.contains(word))
}
