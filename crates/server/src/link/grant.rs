//! Hands out URLs for single objects, and remembers which.
//!
//! This is where an untrusted machine meets the store. A machine may create objects only under
//! keys invented here, may read only what its own workspace has stored, and only while it is
//! the one that the workspace lives on: every batch asks the fence again. What it sends becomes
//! an object only when it is completed here, which asks the fence once more.

use super::LinkError;
use crate::objects::{ObjectError, ObjectStore};
use async_trait::async_trait;
use dumont_core::snapshot::{ObjectKind, ObjectRef, SnapshotReport};
use dumont_wire::agent::{DownloadGrant, Failure, FailureCode, UploadGrant, UploadWanted, objects_of};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::task::JoinSet;
use ulid::Ulid;

/// Objects asked for in one message, and in one snapshot (at 32 MB a pack: 3 TB).
const MOST_AT_ONCE: usize = 1_000;
const MOST_IN_ALL: usize = 100_000;
/// What the store answers to a part is a short tag.
const LONGEST_TAG: usize = 256;

/// Says whether this machine may still work for its workspace.
#[async_trait]
pub trait Fence: Send + Sync {
    async fn holds(&self) -> bool;
}

/// One object that may be created.
struct Granted {
    wanted: UploadWanted,
    /// Set while it is an upload that was not completed yet.
    upload_id: Option<String>,
    /// How many parts it has.
    parts: usize,
    /// What the store calls it, where it keeps versions.
    version: Option<String>,
}

type Completed = (String, Result<Option<String>, ObjectError>);

/// One machine's permission to move one snapshot.
pub struct Granter {
    objects: Arc<dyn ObjectStore>,
    base_url: String,
    /// `workspaces/{id}`; every key it grants lies below.
    prefix: String,
    /// The snapshot's stamp, for the key of its metadata.
    stamp: Option<String>,
    fence: Arc<dyn Fence>,
    /// The most bytes that may be uploaded, retries included.
    budget: u64,
    granted: Mutex<HashMap<String, Granted>>,
    completing: Mutex<JoinSet<Completed>>,
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
            budget: 0,
            granted: Mutex::default(),
            completing: Mutex::default(),
        }
    }

    /// For a snapshot with this stamp: creates objects, `budget` bytes at most.
    pub fn writing(
        objects: Arc<dyn ObjectStore>,
        base_url: &str,
        workspace_id: &str,
        stamp: &str,
        budget: u64,
        fence: Arc<dyn Fence>,
    ) -> Self {
        let mut granter = Self::reading(objects, base_url, workspace_id, fence);
        granter.stamp = Some(stamp.to_owned());
        granter.budget = budget;
        granter
    }

    /// URLs for new objects, in the order asked.
    pub async fn uploads(&self, wanted: &[UploadWanted]) -> Result<Vec<UploadGrant>, LinkError> {
        let Some(stamp) = &self.stamp else {
            return Err(LinkError::Protocol("it wants to upload during a restore".into()));
        };
        self.check_fence().await?;
        self.check_budget(wanted)?;
        let mut grants = Vec::with_capacity(wanted.len());
        for want in wanted {
            let key = match want.kind {
                ObjectKind::Metadata => self.metadata_key(stamp),
                kind => format!("{}/{}/{}", self.prefix, kind.folder(), Ulid::generate()),
            };
            let ticket = self.objects.grant_upload(&self.base_url, &key, want).await?;
            let granted = Granted {
                wanted: want.clone(),
                upload_id: ticket.upload_id,
                parts: ticket.grant.parts.len(),
                version: None,
            };
            self.lock().insert(key, granted);
            grants.push(ticket.grant);
        }
        Ok(grants)
    }

    /// Asked for again after a refused URL, it must not lie on the first.
    fn metadata_key(&self, stamp: &str) -> String {
        let folder = format!("{}/snapshots/{stamp}", self.prefix);
        let key = format!("{folder}/metadata.json");
        if self.lock().contains_key(&key) {
            return format!("{folder}/{}/metadata.json", Ulid::generate());
        }
        key
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
            grants.push(self.objects.grant_download(&self.base_url, key).await?);
        }
        Ok(grants)
    }

    /// Every part of `key` was sent: completes it, while the next ones come.
    pub async fn uploaded(&self, key: String, parts: Vec<String>) -> Result<(), LinkError> {
        self.check_fence().await?;
        let (upload_id, size) = {
            let mut granted = self.lock();
            let known = granted
                .get_mut(&key)
                .filter(|g| g.parts == parts.len() && parts.iter().all(|p| is_tag(p)));
            // Taken out: said twice, it is not completed twice.
            match known.and_then(|g| Some((g.upload_id.take()?, g.wanted.size))) {
                Some(upload) => upload,
                None => {
                    return Err(LinkError::Protocol(format!(
                        "it says that it uploaded {key:?}, which was not granted so"
                    )));
                }
            }
        };
        let objects = self.objects.clone();
        let mut completing = self.completing.lock().unwrap_or_else(PoisonError::into_inner);
        completing.spawn(async move {
            let done = objects.complete(&key, &upload_id, size, &parts).await;
            if done.is_err() {
                let _ = objects.abandon(&key, &upload_id).await;
            }
            (key, done)
        });
        Ok(())
    }

    /// When the machine has reported: waits until everything is completed, and puts the
    /// store's own versions into the report. Refuses objects that were not granted here with
    /// exactly this size and digest.
    pub async fn finish(&self, report: &mut SnapshotReport) -> Result<(), LinkError> {
        let mut completing =
            std::mem::take(&mut *self.completing.lock().unwrap_or_else(PoisonError::into_inner));
        while let Some(done) = completing.join_next().await {
            let (key, done) = done.map_err(|e| LinkError::Protocol(e.to_string()))?;
            let version = done?;
            if let Some(granted) = self.lock().get_mut(&key) {
                granted.version = version;
            }
        }
        let granted = self.lock();
        for object in objects_of(report) {
            let right = granted.get(&object.key).is_some_and(|g| {
                g.wanted.size == object.size && g.wanted.digest == object.digest && g.upload_id.is_none()
            });
            if !right {
                return Err(LinkError::Untrue(format!(
                    "it names object {:?}, which it was not allowed to create or did not finish",
                    object.key
                )));
            }
        }
        let own = |object: &mut ObjectRef| {
            object.version = granted.get(&object.key).and_then(|g| g.version.clone());
        };
        report.packs.iter_mut().for_each(own);
        report.index.iter_mut().for_each(own);
        report.metadata.iter_mut().for_each(own);
        Ok(())
    }

    fn check_budget(&self, wanted: &[UploadWanted]) -> Result<(), LinkError> {
        let granted = self.lock();
        if wanted.len() > MOST_AT_ONCE || granted.len() > MOST_IN_ALL {
            return Err(LinkError::Protocol(format!(
                "it wants {} more objects after {}",
                wanted.len(),
                granted.len()
            )));
        }
        let sum = |sizes: &mut dyn Iterator<Item = u64>| sizes.fold(0, u64::saturating_add);
        let before = sum(&mut granted.values().map(|g| g.wanted.size));
        let more = sum(&mut wanted.iter().map(|w| w.size));
        if before.saturating_add(more) <= self.budget {
            return Ok(());
        }
        Err(LinkError::Failed(Failure {
            code: FailureCode::OverBudget,
            message: format!(
                "the machine wants to upload {more} bytes more after {before}; one snapshot may have {}",
                self.budget
            ),
            hint: "the disk that was rented cannot hold so much: look at what this machine runs, or raise disk_gb"
                .into(),
        }))
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

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Granted>> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was begun and will not be completed is given up now; what a crash keeps from here, the
/// store's sweep finds later.
impl Drop for Granter {
    fn drop(&mut self) {
        let left: Vec<_> = self
            .lock()
            .drain()
            .filter_map(|(key, g)| Some((key, g.upload_id?)))
            .collect();
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if left.is_empty() {
            return;
        }
        let objects = self.objects.clone();
        runtime.spawn(async move {
            for (key, upload_id) in left {
                if let Err(error) = objects.abandon(&key, &upload_id).await {
                    tracing::debug!(key, %error, "an upload is left to the sweep");
                }
            }
        });
    }
}

/// It goes into XML that we sign.
fn is_tag(part: &str) -> bool {
    !part.is_empty()
        && part.len() <= LONGEST_TAG
        && part
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"\"-_./+=".contains(&b))
}

/// Where a workspace's objects lie.
pub fn prefix(workspace_id: &str) -> String {
    format!("workspaces/{workspace_id}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::file::FileStore;
    use dumont_core::id::Digest;
    use std::sync::atomic::{AtomicBool, Ordering};

    struct Gate(Arc<AtomicBool>);

    #[async_trait]
    impl Fence for Gate {
        async fn holds(&self) -> bool {
            self.0.load(Ordering::SeqCst)
        }
    }

    fn wanted(size: u64) -> UploadWanted {
        UploadWanted {
            kind: ObjectKind::Pack,
            size,
            digest: Digest([1; 32]),
        }
    }

    fn granter(budget: u64) -> (tempfile::TempDir, Granter, Arc<AtomicBool>) {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(FileStore::open(dir.path(), [7; 32]).unwrap());
        let open = Arc::new(AtomicBool::new(true));
        let fence = Arc::new(Gate(open.clone()));
        (
            dir,
            Granter::writing(store, "http://h", "w", "1-1", budget, fence),
            open,
        )
    }

    #[tokio::test]
    async fn a_machine_cannot_upload_more_than_its_budget() {
        let (_dir, granter, _) = granter(100);
        granter.uploads(&[wanted(60)]).await.unwrap();
        let refused = granter.uploads(&[wanted(30), wanted(11)]).await.unwrap_err();
        assert!(
            matches!(&refused, LinkError::Failed(f) if f.code == FailureCode::OverBudget && f.message.contains("100")),
            "{refused}"
        );
        granter.uploads(&[wanted(40)]).await.unwrap();
        assert!(granter.uploads(&[wanted(u64::MAX)]).await.is_err());
    }

    #[tokio::test]
    async fn a_machine_that_was_given_up_gets_nothing() {
        let (_dir, granter, open) = granter(100);
        open.store(false, Ordering::SeqCst);
        assert!(granter.uploads(&[wanted(1)]).await.is_err());
        assert!(granter.downloads(&["workspaces/w/packs/x".into()]).await.is_err());
        assert!(
            granter
                .uploaded("workspaces/w/packs/x".into(), vec!["t".into()])
                .await
                .is_err()
        );
    }

    #[tokio::test]
    async fn only_its_own_workspace_and_what_was_granted() {
        let (_dir, granter, _) = granter(100);
        for key in ["workspaces/other/packs/x", "workspaces/w2/packs/x", "doctor/x"] {
            assert!(granter.downloads(&[key.into()]).await.is_err(), "{key}");
        }
        let never = granter
            .uploaded("workspaces/w/packs/x".into(), vec!["tag".into()])
            .await;
        assert!(matches!(never, Err(LinkError::Protocol(_))));
        // The same snapshot's metadata twice: never the same key.
        let metadata = UploadWanted {
            kind: ObjectKind::Metadata,
            ..wanted(1)
        };
        let grants = granter.uploads(&[metadata.clone(), metadata]).await.unwrap();
        assert!(grants[0].key.ends_with("/snapshots/1-1/metadata.json"));
        assert_ne!(grants[0].key, grants[1].key);
    }

    #[test]
    fn tags_cannot_leave_their_element() {
        assert!(is_tag("\"9b2cf535f27731c974343645a3985328-2\""));
        for bad in ["", "<x/>", "a&b", "a b", &"a".repeat(257)] {
            assert!(!is_tag(bad), "{bad}");
        }
    }
}
