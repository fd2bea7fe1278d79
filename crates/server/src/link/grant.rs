//! Hands out URLs for single objects, and remembers which.
//!
//! This is where an untrusted machine meets the store. A machine may create objects only under
//! keys invented here, may read only what its own workspace has stored, and only while it is
//! the one that the workspace lives on: every batch asks the fence again.

use super::LinkError;
use crate::objects::{ObjectError, ObjectStore};
use async_trait::async_trait;
use dumont_core::snapshot::{ObjectKind, ObjectRef};
use dumont_wire::agent::{DownloadGrant, Failure, FailureCode, UploadGrant, UploadWanted};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use ulid::Ulid;

/// Objects asked for in one message, and in one snapshot (at 32 MB a pack: 3 TB).
const MOST_AT_ONCE: usize = 1_000;
const MOST_IN_ALL: usize = 100_000;

/// Says whether this machine may still work for its workspace.
#[async_trait]
pub trait Fence: Send + Sync {
    async fn holds(&self) -> bool;
}

/// One machine's permission to move one snapshot.
pub struct Granter {
    objects: Arc<dyn ObjectStore>,
    base_url: String,
    /// `workspaces/{id}`; every key it grants lies below.
    prefix: String,
    /// The snapshot's stamp, for the key of its metadata.
    stamp: Option<String>,
    fence: Arc<dyn Fence>,
    granted: Mutex<HashMap<String, UploadWanted>>,
}

impl Granter {
    /// For a restore: reads only.
    pub fn reading(
        objects: Arc<dyn ObjectStore>,
        base_url: &str,
        workspace_id: &str,
        fence: Arc<dyn Fence>,
    ) -> Self {
        Self {
            objects,
            base_url: base_url.to_owned(),
            prefix: prefix(workspace_id),
            stamp: None,
            fence,
            granted: Mutex::default(),
        }
    }

    /// For a snapshot with this stamp: creates objects.
    pub fn writing(
        objects: Arc<dyn ObjectStore>,
        base_url: &str,
        workspace_id: &str,
        stamp: &str,
        fence: Arc<dyn Fence>,
    ) -> Self {
        Self {
            stamp: Some(stamp.to_owned()),
            ..Self::reading(objects, base_url, workspace_id, fence)
        }
    }

    /// URLs for new objects, in the order asked.
    pub async fn uploads(&self, wanted: &[UploadWanted]) -> Result<Vec<UploadGrant>, LinkError> {
        let Some(stamp) = &self.stamp else {
            return Err(LinkError::Protocol("it wants to upload during a restore".into()));
        };
        self.check_fence().await?;
        let held = self.granted.lock().unwrap_or_else(PoisonError::into_inner).len();
        if wanted.len() > MOST_AT_ONCE || held > MOST_IN_ALL {
            return Err(LinkError::Protocol(format!(
                "it wants {} more objects after {held}",
                wanted.len()
            )));
        }
        let mut grants = Vec::with_capacity(wanted.len());
        for want in wanted {
            let key = match want.kind {
                ObjectKind::Metadata => format!("{}/snapshots/{stamp}/metadata.json", self.prefix),
                kind => format!("{}/{}/{}", self.prefix, kind.folder(), Ulid::generate()),
            };
            let grant = self
                .objects
                .grant_upload(&self.base_url, &key, want)
                .await
                .map_err(store_failure)?;
            self.granted
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(key, want.clone());
            grants.push(grant);
        }
        Ok(grants)
    }

    /// URLs for existing objects, in the order asked.
    pub async fn downloads(&self, keys: &[String]) -> Result<Vec<DownloadGrant>, LinkError> {
        self.check_fence().await?;
        let mut grants = Vec::with_capacity(keys.len());
        for key in keys {
            if !key.starts_with(&format!("{}/", self.prefix)) {
                return Err(LinkError::Protocol(format!(
                    "it wants to read {key:?}, which is not its workspace's"
                )));
            }
            grants.push(
                self.objects
                    .grant_download(&self.base_url, key)
                    .await
                    .map_err(store_failure)?,
            );
        }
        Ok(grants)
    }

    /// Whether `object` was granted here with exactly this size and digest.
    pub fn was_granted(&self, object: &ObjectRef) -> bool {
        let granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        granted
            .get(&object.key)
            .is_some_and(|w| w.size == object.size && w.digest == object.digest)
    }

    async fn check_fence(&self) -> Result<(), LinkError> {
        if self.fence.holds().await {
            return Ok(());
        }
        Err(LinkError::Failed(Failure {
            code: FailureCode::Cancelled,
            message: "the workspace has moved to another machine".into(),
            hint: "this session is over; work goes on there".into(),
        }))
    }
}

/// Where a workspace's objects lie.
pub fn prefix(workspace_id: &str) -> String {
    format!("workspaces/{workspace_id}")
}

fn store_failure(error: ObjectError) -> LinkError {
    let code = match &error {
        ObjectError::Missing(_) => FailureCode::ObjectMissing,
        ObjectError::Full(_) => FailureCode::DiskFull,
        _ => FailureCode::Transfer,
    };
    LinkError::Failed(Failure {
        code,
        message: error.to_string(),
        hint: "look at the server's log and at its data directory's free space".into(),
    })
}
