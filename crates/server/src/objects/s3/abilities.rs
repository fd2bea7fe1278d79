//! What this very store can do beyond the basics: tried once, remembered.
//!
//! Stores that speak S3 differ in what protects against a late overwrite. B2 answers 501 to
//! conditions and keeps versions; others know conditions and keep none. Documentation is not
//! believed, an experiment is.

use super::S3Store;
use super::client::Answer;
use super::refusal::refused;
use crate::objects::{Check, ObjectError, ObjectStore, failed};
use bytes::Bytes;
use reqwest::Method;
use rusty_s3::S3Action;
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime};
use ulid::Ulid;

/// Signatures hold for a quarter of an hour around the store's clock.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(5 * 60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abilities {
    /// `If-None-Match: *` refuses an existing key.
    pub create_only: bool,
    /// Each PUT gives a version that can be read back.
    pub versions: bool,
    /// A body of another length than was signed is refused.
    pub signed_lengths: bool,
}

impl S3Store {
    /// From memory, from the database, or by trying it out.
    pub async fn abilities(&self) -> Result<Abilities, ObjectError> {
        self.abilities
            .get_or_try_init(|| async {
                let key = format!("objects.abilities:{}", self.client.place);
                if let Some(db) = &self.db
                    && let Some(known) = db.meta(&key).await?
                    && let Ok(known) = serde_json::from_str(&known)
                {
                    return Ok(known);
                }
                let found = self.probe().await?;
                tracing::info!(store = %self.client.place, ?found, "tried out what the object store can do");
                if let Some(db) = &self.db {
                    let text = serde_json::to_string(&found).unwrap_or_default();
                    db.meta_set(&key, &text).await?;
                }
                Ok(found)
            })
            .await
            .copied()
    }

    /// Tries it out under a key of its own.
    pub async fn probe(&self) -> Result<Abilities, ObjectError> {
        let key = format!("doctor/{}", Ulid::generate());
        let found = self.try_out(&key).await;
        for left in [key.clone(), length_key(&key)] {
            // Where versions are kept, this leaves only a marker.
            if self.delete_version(&left, None).await? {
                self.delete_versions(&left).await?;
            }
        }
        found
    }

    /// What is remembered for good must not come from a bad moment: whatever is not a plain yes
    /// or no ends the experiment.
    async fn try_out(&self, key: &str) -> Result<Abilities, ObjectError> {
        let first = self.put_plain(key, b"one", &[]).await?;
        if !first.ok() {
            return Err(self.unexpected(&format!("put {key}"), &first));
        }
        let second = self
            .put_plain(key, b"two", &[("if-none-match", "*".to_owned())])
            .await;
        let refused_it = match &second {
            Ok(answer) => matches!(answer.status, 409 | 412),
            // 501 is B2's answer; another refusal of the header means the same for us.
            Err(error) if ["not_implemented", "store_refused"].contains(&error.code()) => false,
            Err(_) => {
                second?;
                false
            }
        };
        Ok(Abilities {
            create_only: refused_it && self.get(key).await? == b"one",
            versions: first.version().is_some(),
            signed_lengths: self.checks_lengths(key).await?,
        })
    }

    /// A URL signed for three bytes, with four sent to it.
    async fn checks_lengths(&self, key: &str) -> Result<bool, ObjectError> {
        let other = length_key(key);
        let mut action = self
            .client
            .bucket
            .put_object(Some(&self.client.credentials), &other);
        action.headers_mut().insert("content-length", "3");
        let sent = self
            .client
            .send("put", &action, &[], Bytes::from_static(b"four"))
            .await;
        match sent {
            Ok(answer) => Ok(!answer.ok()),
            Err(ObjectError::Store(refusal)) if !refusal.transient => Ok(true),
            Err(error) => Err(error),
        }
    }

    pub(super) fn unexpected(&self, what: &str, answer: &Answer) -> ObjectError {
        refused(
            "store_refused",
            format!("{what} in {}: status {}", self.client.place, answer.status),
            "look the code up in the store's documentation".into(),
            false,
        )
    }

    /// The checks of `dumont doctor` beyond the basics.
    pub(super) async fn examine_more(&self) -> Vec<Check> {
        let mut checks = vec![self.examine_clock().await, self.examine_reach().await];
        match self.probe().await {
            Err(error) => checks.push(failed("store conditions", &error)),
            Ok(can) => checks.extend(judge(can)),
        }
        checks
    }

    async fn examine_clock(&self) -> Check {
        let mut list = self.client.bucket.list_objects_v2(Some(&self.client.credentials));
        list.with_max_keys(1);
        let url = list.sign(Duration::from_secs(60));
        let answer = match self.client.send_url("list", Method::GET, url).await {
            Ok(answer) => answer,
            Err(error) => return failed("store clock", &error),
        };
        let theirs = answer
            .header("date")
            .and_then(|d| httpdate::parse_http_date(d).ok());
        let Some(theirs) = theirs else {
            return Check::warning(
                "store clock",
                "the store does not tell its time",
                "keep this machine's clock set",
            );
        };
        let now = SystemTime::now();
        let (skew, word) = match now.duration_since(theirs) {
            Ok(ahead) => (ahead, "ahead of"),
            Err(e) => (e.duration(), "behind"),
        };
        let detail = format!("{} s {word} the store's", skew.as_secs());
        if skew > CLOCK_TOLERANCE {
            return Check::warning(
                "store clock",
                detail,
                "set this machine's clock: signatures fail beyond 15 minutes",
            );
        }
        Check::ok("store clock", detail)
    }

    /// Rented machines are elsewhere: an address of this machine or network is not theirs.
    async fn examine_reach(&self) -> Check {
        match self.addresses().await {
            Err(error) => failed("store reach", &error),
            Ok(found) => {
                let detail: Vec<_> = found.iter().map(ToString::to_string).collect();
                let detail = detail.join(", ");
                if found.iter().all(|ip| is_private(*ip)) {
                    return Check::warning(
                        "store reach",
                        format!("{detail}: an address that rented machines cannot reach"),
                        "use an endpoint with a public address, unless the machines are in this network",
                    );
                }
                Check::ok("store reach", detail)
            }
        }
    }
}

fn length_key(key: &str) -> String {
    format!("{key}-length")
}

fn is_private(ip: std::net::IpAddr) -> bool {
    match ip {
        std::net::IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        std::net::IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

fn judge(can: Abilities) -> Vec<Check> {
    let mut checks = Vec::new();
    checks.push(if can.create_only {
        Check::ok("store conditions", "an existing key is refused")
    } else {
        Check::ok(
            "store conditions",
            "not honoured; keys are unique and uploads are completed by the controller",
        )
    });
    checks.push(match (can.versions, can.create_only) {
        (true, _) => Check::ok("store versions", "kept; each object is read back by its version"),
        (false, true) => Check::ok("store versions", "not kept; conditions guard what exists"),
        (false, false) => Check::warning(
            "store versions",
            "neither versions nor conditions: an overwrite by another holder of the key is noticed, not undone",
            "switch the bucket's versioning on",
        ),
    });
    checks.push(if can.signed_lengths {
        Check::ok("store lengths", "a machine can send exactly what was granted")
    } else {
        Check::warning(
            "store lengths",
            "not checked: a hostile machine could send more than was granted",
            "what is larger than announced is refused when it is completed",
        )
    });
    checks
}
