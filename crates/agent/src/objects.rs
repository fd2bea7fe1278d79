//! The engine's two ways to the store, by way of URLs that the controller grants.
//!
//! A URL lives briefly, and a slow link may outlast it; so a refusal is answered by asking for
//! a fresh one, once. A refused upload asks for a new object, too: the controller never grants
//! the same key twice.

use crate::http::HttpError;
use crate::job::{Job, cancelled, lock};
use crate::out::failure;
use dumont_core::id::Digest;
use dumont_core::snapshot::{ObjectKind, ObjectRef};
use dumont_snapshot::{ObjectSink, ObjectSource, StoreError};
use dumont_wire::agent::{DownloadGrant, Failure, FailureCode, UploadGrant, UploadWanted};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Mutex;

/// Keys in one question; the answer must stay far below the longest frame.
const BATCH: usize = 500;

pub struct Sink<'a> {
    pub job: &'a Job,
}

impl ObjectSink for Sink<'_> {
    fn put(&self, kind: ObjectKind, digest: Digest, body: &[u8]) -> Result<ObjectRef, StoreError> {
        let size = body.len() as u64;
        let mut fresh = true;
        loop {
            let grant = self.job.ask_upload(UploadWanted { kind, size, digest });
            let grant = grant.map_err(|e| told(self.job, e))?;
            match self.send(&grant, body) {
                Ok(version) => {
                    return Ok(ObjectRef {
                        key: grant.key,
                        size,
                        digest,
                        version,
                    });
                }
                Err(HttpError::Refused(_)) if fresh => fresh = false,
                Err(e) => return Err(told(self.job, explain("upload", &grant.key, e))),
            }
        }
    }
}

impl Sink<'_> {
    fn send(&self, grant: &UploadGrant, mut body: &[u8]) -> Result<Option<String>, HttpError> {
        let Self { job } = self;
        if grant.parts.is_empty() {
            let put = job
                .http
                .put(job, &grant.url, &grant.addresses, &grant.headers, body)?;
            return Ok(put.version);
        }
        let mut parts = Vec::with_capacity(grant.parts.len());
        for part in &grant.parts {
            let (piece, rest) = usize::try_from(part.size)
                .ok()
                .and_then(|size| body.split_at_checked(size))
                .ok_or_else(|| HttpError::BadUrl("the parts do not fit the object".into()))?;
            body = rest;
            let put = job
                .http
                .put(job, &part.url, &grant.addresses, &grant.headers, piece)?;
            let tag = put
                .tag
                .ok_or_else(|| HttpError::Status(200, "without a tag for the part".into()))?;
            parts.push(tag);
        }
        // Its version is the controller's to learn: that is who completes it.
        job.uploaded(grant.key.clone(), parts);
        Ok(None)
    }
}

pub struct Source<'a> {
    job: &'a Job,
    grants: Mutex<HashMap<String, DownloadGrant>>,
}

impl<'a> Source<'a> {
    pub fn new(job: &'a Job) -> Self {
        Self {
            job,
            grants: Mutex::default(),
        }
    }

    fn granted(&self, key: &str) -> Result<DownloadGrant, StoreError> {
        if let Some(grant) = lock(&self.grants).get(key) {
            return Ok(grant.clone());
        }
        self.prepare(&[key.to_owned()])?;
        let grant = lock(&self.grants).get(key).cloned();
        grant.ok_or_else(|| StoreError::Transfer(format!("no URL for {key}")))
    }

    fn get_granted(
        &self,
        url: &str,
        grant: &DownloadGrant,
        range: Option<&Range<u64>>,
        out: &mut Vec<u8>,
    ) -> Result<(), HttpError> {
        self.job
            .http
            .get(self.job, url, &grant.addresses, &grant.headers, range, out)
    }

    /// Another thread may have done so already: only the URL that was refused is dropped.
    fn forget(&self, refused: &DownloadGrant) {
        let mut grants = lock(&self.grants);
        if grants.get(&refused.key) == Some(refused) {
            grants.remove(&refused.key);
        }
    }
}

impl ObjectSource for Source<'_> {
    fn prepare(&self, keys: &[String]) -> Result<(), StoreError> {
        let unknown: Vec<String> = {
            let grants = lock(&self.grants);
            keys.iter()
                .filter(|k| !grants.contains_key(*k))
                .cloned()
                .collect()
        };
        for batch in unknown.chunks(BATCH) {
            let grants = self.job.ask_downloads(batch).map_err(|e| told(self.job, e))?;
            lock(&self.grants).extend(grants.into_iter().map(|g| (g.key.clone(), g)));
        }
        Ok(())
    }

    fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Vec<u8>, StoreError> {
        let mut out = Vec::new();
        self.get_into(key, range, &mut out)?;
        Ok(out)
    }

    fn get_into(&self, key: &str, range: Option<Range<u64>>, out: &mut Vec<u8>) -> Result<(), StoreError> {
        let mut fresh = true;
        loop {
            let grant = self.granted(key)?;
            let Some(url) = &grant.url else {
                return Err(told(self.job, explain("download", key, HttpError::Missing)));
            };
            match self.get_granted(url, &grant, range.as_ref(), out) {
                Ok(()) => return Ok(()),
                Err(HttpError::Refused(_)) if fresh => {
                    fresh = false;
                    self.forget(&grant);
                }
                Err(e) => return Err(told(self.job, explain("download", key, e))),
            }
        }
    }
}

/// The engine has one word for most of this; the job keeps the rest for the report.
fn told(job: &Job, e: Failure) -> StoreError {
    job.remember(&e);
    match e.code {
        FailureCode::Cancelled => StoreError::Cancelled,
        // Its message is the key alone.
        FailureCode::ObjectMissing => StoreError::Missing(e.message),
        _ => StoreError::Transfer(e.message),
    }
}

fn explain(action: &str, key: &str, e: HttpError) -> Failure {
    let transfer =
        |what: String, hint: &str| failure(FailureCode::Transfer, format!("{action} of {key}: {what}"), hint);
    match e {
        HttpError::Cancelled => cancelled(),
        HttpError::Missing if action == "download" => {
            failure(FailureCode::ObjectMissing, key, "restore an older snapshot")
        }
        HttpError::Missing => transfer(
            "the store does not know the place".into(),
            "does the bucket exist?",
        ),
        HttpError::Refused(said) => {
            let what = format!("the store refused a fresh URL: {said}");
            transfer(
                what,
                "the URL may have expired on a slow link, or the store's key lacks the right",
            )
        }
        HttpError::Full(said) => transfer(format!("the store is full: {said}"), "free space in the store"),
        HttpError::Certificate(said) => transfer(
            format!("the store's certificate is not accepted: {said}"),
            "check the certificate's dates, name and issuer; a private authority's goes into S3_CA_FILE",
        ),
        HttpError::Status(status @ 300..400, _) => transfer(
            format!("the store redirects ({status}), which is not followed"),
            "set the bucket's own region and endpoint",
        ),
        HttpError::Status(0, said) => transfer(said, "report this with the store's name"),
        HttpError::Status(status, said) => transfer(
            format!("status {status} {said}"),
            "look up the status in the store's documentation",
        ),
        HttpError::BadUrl(said) => transfer(said, "report this as a bug of the controller"),
        HttpError::Exhausted(last) => transfer(
            format!("given up after several tries: {last}"),
            "can the machine reach the store?",
        ),
    }
}
