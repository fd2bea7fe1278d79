//! URLs that allow one act on one key until one moment.

use dumont_core::id::Digest;
use dumont_core::time::Timestamp;
use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use sha2::Sha256;
use std::time::Duration;

/// How long a URL works: longer than the transfer of one object takes on a slow line, and
/// the agent asks again for what comes later.
pub const GRANT_LIFETIME: Duration = Duration::from_secs(3600);

/// What a URL allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Put {
        size: u64,
        digest: Digest,
    },
    /// Also HEAD, also by range.
    Get,
}

/// The query of a signed URL, as it came.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed {
    op: String,
    size: Option<u64>,
    digest: Option<Digest>,
    /// Unix seconds.
    expires: i64,
    sig: String,
}

/// Why a URL is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    Forged,
    Expired { at: i64 },
}

pub struct Signer(Hmac<Sha256>);

impl Signer {
    pub fn new(secret: [u8; 32]) -> Self {
        // HMAC fills a key up to its block with zeros; this is that, without a failing path.
        let mut block = [0; 64];
        block[..32].copy_from_slice(&secret);
        Self(Hmac::new(&block.into()))
    }

    /// `key` consists of characters that mean themselves in a URL.
    pub fn url(&self, base_url: &str, key: &str, act: &Act, now: Timestamp) -> String {
        let expires = now.plus(GRANT_LIFETIME).unix_seconds();
        let sig = hex::encode(self.mac(key, act, expires).finalize().into_bytes());
        let base = base_url.trim_end_matches('/');
        match act {
            Act::Put { size, digest } => {
                format!("{base}/o/{key}?op=put&size={size}&digest={digest}&expires={expires}&sig={sig}")
            }
            Act::Get => format!("{base}/o/{key}?op=get&expires={expires}&sig={sig}"),
        }
    }

    /// What this URL allows on `key`. The signature comes first: an expiry is only believed,
    /// and only told, when it is ours.
    pub fn check(&self, key: &str, query: &Signed, now: Timestamp) -> Result<Act, Refused> {
        let act = match (query.op.as_str(), query.size, query.digest) {
            ("put", Some(size), Some(digest)) => Act::Put { size, digest },
            ("get", None, None) => Act::Get,
            _ => return Err(Refused::Forged),
        };
        let sig = hex::decode(&query.sig).map_err(|_| Refused::Forged)?;
        // Compares in constant time.
        self.mac(key, &act, query.expires)
            .verify_slice(&sig)
            .map_err(|_| Refused::Forged)?;
        if now.unix_seconds() >= query.expires {
            return Err(Refused::Expired { at: query.expires });
        }
        Ok(act)
    }

    /// No field can hold a line feed, so no two acts have the same text.
    fn mac(&self, key: &str, act: &Act, expires: i64) -> Hmac<Sha256> {
        let act = match act {
            Act::Put { size, digest } => format!("put\n{size}\n{digest}"),
            Act::Get => "get\n-\n-".to_owned(),
        };
        let mut mac = self.0.clone();
        mac.update(format!("dumont-object-1\n{act}\n{expires}\n{key}").as_bytes());
        mac
    }
}
