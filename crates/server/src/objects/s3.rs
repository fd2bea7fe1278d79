//! An S3-compatible bucket: B2, R2, AWS, MinIO, SeaweedFS and the like.
//!
//! What machines may do here is designed for the weakest store. Backblaze B2 has no
//! conditional PUT, so "never overwritten" cannot rest on one. A machine therefore never gets
//! a URL that writes a key: it gets the parts of a multipart upload that the controller began
//! under a key it just invented. Nothing is visible until the controller completes it, and
//! once it has, every URL of that upload is dead. Where the store knows conditions, completion
//! carries one as well; where the bucket keeps versions, the version is noted and every later
//! read names it, so that even an overwrite by another holder of the bucket's key changes
//! nothing that is restored.
//!
//! An upload whose controller or machine died is aborted by [`ObjectStore::sweep`], which
//! finds it by listing: no row needs to say that it exists.

mod abilities;
mod client;
mod config;
mod refusal;
mod sweep;
mod versions;

pub use abilities::Abilities;
pub use config::{Addressing, BadSetting, S3Config, VARIABLES};

use super::{Check, ObjectError, ObjectMeta, ObjectStore, Ticket, check};
use async_trait::async_trait;
use bytes::Bytes;
use client::{Answer, Client};
use dumont_store::Store;
use dumont_wire::agent::{DownloadGrant, PartGrant, UploadGrant, UploadWanted};
use refusal::{refused, tag};
use rusty_s3::S3Action;
use rusty_s3::actions::{CreateMultipartUpload, ListObjectsV2};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;

/// How long resolved addresses are handed out.
const ADDRESSES: Duration = Duration::from_secs(60);

/// Objects in a bucket.
pub struct S3Store {
    client: Client,
    config: S3Config,
    /// Remembers versions and abilities; the doctor does without.
    db: Option<Store>,
    /// Versions, where there is no database.
    noted: Mutex<HashMap<String, String>>,
    abilities: OnceCell<Abilities>,
    addresses: Mutex<Option<(Instant, Vec<IpAddr>)>>,
}

impl S3Store {
    pub fn new(config: S3Config, db: Option<Store>) -> Result<Self, BadSetting> {
        Ok(Self {
            client: Client::new(&config)?,
            config,
            db,
            noted: Mutex::default(),
            abilities: OnceCell::new(),
            addresses: Mutex::default(),
        })
    }

    fn key(&self) -> Option<&rusty_s3::Credentials> {
        Some(&self.client.credentials)
    }

    /// Makes the bucket, for servers that a drill or a test starts; fine if it is ours already.
    pub async fn create_bucket(&self) -> Result<(), ObjectError> {
        let action = self.client.bucket.create_bucket(&self.client.credentials);
        let answer = self
            .client
            .send("create the bucket", &action, &[], Bytes::new())
            .await?;
        if answer.ok() || answer.status == 409 {
            return Ok(());
        }
        Err(self.unexpected("create the bucket", &answer))
    }

    async fn put_plain(
        &self,
        key: &str,
        bytes: &[u8],
        headers: &[(&'static str, String)],
    ) -> Result<Answer, ObjectError> {
        let action = self.client.bucket.put_object(self.key(), key);
        let body = Bytes::copy_from_slice(bytes);
        self.client
            .send(&format!("put {key}"), &action, headers, body)
            .await
    }

    /// Whether that only laid a marker over older versions.
    async fn delete_version(&self, key: &str, version: Option<&str>) -> Result<bool, ObjectError> {
        let mut action = self.client.bucket.delete_object(self.key(), key);
        if let Some(version) = version {
            action.query_mut().insert("versionId", version.to_owned());
        }
        let what = format!("delete {key}");
        let answer = self.client.send(&what, &action, &[], Bytes::new()).await?;
        Ok(version.is_none() && answer.header("x-amz-delete-marker") == Some("true"))
    }

    /// The version that was noted when the object was made.
    async fn pinned(&self, key: &str) -> Result<Option<String>, ObjectError> {
        match &self.db {
            Some(db) => Ok(db.object_version(key).await?),
            None => Ok(self.noted().get(key).cloned()),
        }
    }

    async fn note(&self, key: &str, version: Option<&String>) -> Result<(), ObjectError> {
        let Some(version) = version else { return Ok(()) };
        match &self.db {
            Some(db) => db.note_object_version(key, version).await?,
            None => drop(self.noted().insert(key.to_owned(), version.clone())),
        }
        Ok(())
    }

    fn noted(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where machines find the store; they resolve no names themselves.
    async fn addresses(&self) -> Result<Vec<IpAddr>, ObjectError> {
        let host = match self.client.bucket.base_url().host() {
            Some(url::Host::Domain(name)) => name.to_owned(),
            Some(url::Host::Ipv4(ip)) => return Ok(vec![ip.into()]),
            Some(url::Host::Ipv6(ip)) => return Ok(vec![ip.into()]),
            None => String::new(),
        };
        let known = || {
            self.addresses
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
        };
        if let Some((at, found)) = known()
            && at.elapsed() < ADDRESSES
        {
            return Ok(found);
        }
        let looked_up = tokio::net::lookup_host((host.as_str(), 443)).await;
        let mut found: Vec<IpAddr> = match (looked_up, known()) {
            (Ok(found), _) => found.map(|a| a.ip()).collect(),
            // A name service that stumbles does not move the store.
            (Err(_), Some((_, before))) => before,
            (Err(error), None) => {
                return Err(refused(
                    "store_unreachable",
                    format!("{}: {host} has no address: {error}", self.client.place),
                    "check the endpoint's name and this machine's name service".into(),
                    true,
                ));
            }
        };
        // Many machines have no IPv6.
        found.sort_by_key(IpAddr::is_ipv6);
        found.dedup();
        *self.addresses.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), found.clone()));
        Ok(found)
    }

    async fn begin_upload(&self, key: &str) -> Result<String, ObjectError> {
        let action = self.client.bucket.create_multipart_upload(self.key(), key);
        let what = format!("begin {key}");
        let answer = self.client.send(&what, &action, &[], Bytes::new()).await?;
        let begun = CreateMultipartUpload::parse_response(&answer.text());
        match begun {
            Ok(begun) if answer.ok() => Ok(begun.upload_id().to_owned()),
            _ => Err(self.unexpected(&what, &answer)),
        }
    }

    fn part(&self, key: &str, upload_id: &str, number: u16, size: u64) -> PartGrant {
        let mut action = self.client.bucket.upload_part(self.key(), key, number, upload_id);
        action.headers_mut().insert("content-length", size.to_string());
        PartGrant {
            url: action.sign(self.config.url_lifetime).into(),
            size,
        }
    }

    /// A completion whose answer was lost shows by the object being there.
    async fn completed_before(&self, key: &str, size: u64) -> Result<Option<ObjectMeta>, ObjectError> {
        let seen = self.head_any(key, None).await?;
        Ok(seen.filter(|o| o.size == size))
    }

    /// The key is taken: fine if that was our own earlier try, whose answer was lost.
    async fn put_before(&self, key: &str, bytes: &[u8]) -> Result<Option<String>, ObjectError> {
        if self.get(key).await? != bytes {
            return Err(ObjectError::Exists(key.to_owned()));
        }
        let version = self.head(key).await?.and_then(|o| o.version);
        self.note(key, version.as_ref()).await?;
        Ok(version)
    }

    async fn head_any(&self, key: &str, version: Option<String>) -> Result<Option<ObjectMeta>, ObjectError> {
        let mut action = self.client.bucket.head_object(self.key(), key);
        if let Some(version) = &version {
            action.query_mut().insert("versionId", version.clone());
        }
        let what = format!("look at {key}");
        let answer = self.client.send(&what, &action, &[], Bytes::new()).await?;
        if answer.status == 404 {
            return Ok(None);
        }
        let size = answer.header("content-length").and_then(|s| s.parse().ok());
        match size {
            Some(size) if answer.ok() => Ok(Some(ObjectMeta {
                key: key.to_owned(),
                size,
                digest: None,
                version: answer.version().or(version),
            })),
            _ => Err(self.unexpected(&what, &answer)),
        }
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    async fn grant_upload(
        &self,
        _base_url: &str,
        key: &str,
        wanted: &UploadWanted,
    ) -> Result<Ticket, ObjectError> {
        let addresses = self.addresses().await?;
        let upload_id = self.begin_upload(key).await?;
        let count = wanted.size.div_ceil(self.config.part_size).max(1);
        let count = u16::try_from(count).map_err(|_| ObjectError::InvalidKey(key.into()))?;
        let parts = (1..=count).map(|number| {
            let before = u64::from(number - 1) * self.config.part_size;
            self.part(
                key,
                &upload_id,
                number,
                (wanted.size - before).min(self.config.part_size),
            )
        });
        Ok(Ticket {
            grant: UploadGrant {
                key: key.to_owned(),
                url: String::new(),
                headers: BTreeMap::new(),
                parts: parts.collect(),
                addresses,
            },
            upload_id: Some(upload_id),
        })
    }

    async fn complete(
        &self,
        key: &str,
        upload_id: &str,
        size: u64,
        parts: &[String],
    ) -> Result<Option<String>, ObjectError> {
        let can = self.abilities().await?;
        let etags: Vec<&str> = parts.iter().map(String::as_str).collect();
        let action =
            self.client
                .bucket
                .complete_multipart_upload(self.key(), key, upload_id, etags.into_iter());
        let body = Bytes::from(action.clone().body());
        let condition = [("if-none-match", "*".to_owned())];
        let headers: &[_] = if can.create_only { &condition } else { &[] };
        let what = format!("complete {key}");
        let sent = self.client.send(&what, &action, headers, body).await;
        let mut version = sent.as_ref().ok().and_then(Answer::version);
        if !matches!(&sent, Ok(answer) if answer.ok()) {
            // Stores differ in how they refuse an upload that is over: the object decides.
            version = match (self.completed_before(key, size).await?, sent) {
                (Some(there), _) => there.version,
                (None, Ok(answer)) => return Err(not_completed(&self.client.place, key, &answer)),
                (None, Err(error)) => return Err(error),
            }
        } else if version.is_none() && can.versions {
            version = self.head_any(key, None).await?.and_then(|o| o.version);
        }
        self.note(key, version.as_ref()).await?;
        Ok(version)
    }

    async fn abandon(&self, key: &str, upload_id: &str) -> Result<(), ObjectError> {
        let action = self
            .client
            .bucket
            .abort_multipart_upload(self.key(), key, upload_id);
        let what = format!("abort {key}");
        self.client
            .send(&what, &action, &[], Bytes::new())
            .await
            .map(drop)
    }

    /// Not looked up first: a restore asks for hundreds, and a missing one answers 404.
    async fn grant_download(&self, _base_url: &str, key: &str) -> Result<DownloadGrant, ObjectError> {
        let mut action = self.client.bucket.get_object(self.key(), key);
        if let Some(version) = self.pinned(key).await? {
            action.query_mut().insert("versionId", version);
        }
        Ok(DownloadGrant {
            key: key.to_owned(),
            url: Some(action.sign(self.config.url_lifetime).into()),
            headers: BTreeMap::new(),
            addresses: self.addresses().await?,
        })
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectMeta>, ObjectError> {
        let version = self.pinned(key).await?;
        self.head_any(key, version).await
    }

    async fn get(&self, key: &str) -> Result<Vec<u8>, ObjectError> {
        let mut action = self.client.bucket.get_object(self.key(), key);
        if let Some(version) = self.pinned(key).await? {
            action.query_mut().insert("versionId", version);
        }
        let what = format!("get {key}");
        let answer = self.client.send(&what, &action, &[], Bytes::new()).await?;
        match answer.status {
            404 => Err(ObjectError::Missing(key.to_owned())),
            _ if answer.ok() => Ok(answer.body.to_vec()),
            _ => Err(self.unexpected(&what, &answer)),
        }
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ObjectError> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let mut action = self.client.bucket.get_object(self.key(), key);
        if let Some(version) = self.pinned(key).await? {
            action.query_mut().insert("versionId", version);
        }
        let what = format!("get a part of {key}");
        let part = [("range", format!("bytes={}-{}", range.start, range.end - 1))];
        let answer = self.client.send(&what, &action, &part, Bytes::new()).await?;
        match answer.status {
            404 => Err(ObjectError::Missing(key.to_owned())),
            // It ends before.
            416 => Ok(Vec::new()),
            206 => Ok(answer.body.to_vec()),
            _ if answer.ok() => Ok(part_of(&answer.body, &range).to_vec()),
            _ => Err(self.unexpected(&what, &answer)),
        }
    }

    async fn put(&self, key: &str, bytes: &[u8]) -> Result<Option<String>, ObjectError> {
        let condition = [("if-none-match", "*".to_owned())];
        let headers: &[_] = if self.abilities().await?.create_only {
            &condition
        } else {
            // Keys are ours alone; this is for our own repetition after a crash.
            if self.head(key).await?.is_some() {
                return self.put_before(key, bytes).await;
            }
            &[]
        };
        let answer = self.put_plain(key, bytes, headers).await?;
        match answer.status {
            409 | 412 => self.put_before(key, bytes).await,
            _ if answer.ok() => {
                let version = answer.version();
                self.note(key, version.as_ref()).await?;
                Ok(version)
            }
            _ => Err(self.unexpected(&format!("put {key}"), &answer)),
        }
    }

    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        let can = self.abilities().await?;
        // Versioning may have been switched on since it was tried: then a marker is the answer.
        if can.versions || self.pinned(key).await?.is_some() || self.delete_version(key, None).await? {
            self.delete_versions(key).await?;
        }
        match &self.db {
            Some(db) => db.forget_object_version(key).await?,
            None => drop(self.noted().remove(key)),
        }
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError> {
        let what = format!("list {prefix}");
        let mut found = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let mut action = self.client.bucket.list_objects_v2(self.key());
            action.with_prefix(prefix);
            if let Some(token) = &after {
                action.with_continuation_token(token.clone());
            }
            let answer = self.client.send(&what, &action, &[], Bytes::new()).await?;
            if !answer.ok() {
                return Err(self.unexpected(&what, &answer));
            }
            // A listing that is cut off without saying how to go on is refused by the parser.
            let page = ListObjectsV2::parse_response(&answer.text()).map_err(|e| {
                refused(
                    "store_answer",
                    format!(
                        "{what} in {}: the answer is not understood: {e}",
                        self.client.place
                    ),
                    "report this with the store's name and version".into(),
                    false,
                )
            })?;
            found.extend(page.contents.into_iter().map(|o| ObjectMeta {
                key: o.key,
                size: o.size.unwrap_or(0),
                digest: None,
                version: None,
            }));
            match page.next_continuation_token {
                // A store that repeats itself must not keep us for ever.
                Some(next) if after.as_ref() != Some(&next) => after = Some(next),
                _ => break,
            }
        }
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    async fn examine(&self) -> Vec<Check> {
        let mut checks = check::basics(self).await;
        if checks.iter().all(|c| c.level == super::Level::Ok) {
            checks.extend(self.examine_more().await);
        }
        checks
    }

    async fn ping(&self) -> Result<(), ObjectError> {
        let mut action = self.client.bucket.list_objects_v2(self.key());
        action.with_max_keys(1);
        let answer = self.client.send("list", &action, &[], Bytes::new()).await?;
        if answer.ok() {
            return Ok(());
        }
        Err(self.unexpected("list", &answer))
    }

    async fn sweep(&self) -> Result<usize, ObjectError> {
        self.abort_abandoned(sweep::ABANDONED_AFTER).await
    }

    fn describe(&self) -> String {
        self.client.place.clone()
    }

    fn private_ca(&self) -> Option<&str> {
        self.config.ca_pem.as_deref()
    }
}

/// For servers that send all of it.
fn part_of<'a>(whole: &'a [u8], range: &Range<u64>) -> &'a [u8] {
    let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(whole.len());
    whole.get(at(range.start)..at(range.end)).unwrap_or_default()
}

fn not_completed(place: &str, key: &str, answer: &Answer) -> ObjectError {
    let text = answer.text();
    let said = tag(&text, "Code").unwrap_or("no code");
    refused(
        "upload_incomplete",
        format!(
            "complete {key} in {place}: {} {said}: what was granted was not sent, or was aborted",
            answer.status
        ),
        "take the snapshot again; nothing of it was visible".into(),
        false,
    )
}
