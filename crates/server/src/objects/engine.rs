//! The store as the snapshot engine wants it: for work on snapshots that needs no machine.

use super::{ObjectError, ObjectStore};
use dumont_core::id::Digest;
use dumont_core::snapshot::{ObjectKind, ObjectRef};
use dumont_snapshot::{ObjectSink, ObjectSource, StoreError};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;
use ulid::Ulid;

/// Objects kept in memory, for an engine that reads many parts of one: a pack has 32 MiB.
const KEPT: usize = 2;

/// One workspace's objects. To be used on a blocking thread.
pub struct Bridge {
    objects: Arc<dyn ObjectStore>,
    runtime: Handle,
    /// `workspaces/{id}`; new objects are created below it.
    prefix: String,
    kept: Mutex<VecDeque<(String, Arc<Vec<u8>>)>>,
}

impl Bridge {
    pub fn new(objects: Arc<dyn ObjectStore>, prefix: String) -> Self {
        Self {
            objects,
            runtime: Handle::current(),
            prefix,
            kept: Mutex::default(),
        }
    }

    fn whole(&self, key: &str) -> Result<Arc<Vec<u8>>, StoreError> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = kept().iter().find(|k| k.0 == key) {
            return Ok(bytes.clone());
        }
        let bytes = self.runtime.block_on(self.objects.get(key)).map_err(told)?;
        let bytes = Arc::new(bytes);
        let mut kept = kept();
        kept.truncate(KEPT - 1);
        kept.push_front((key.to_owned(), bytes.clone()));
        Ok(bytes)
    }
}

fn told(e: ObjectError) -> StoreError {
    match e {
        ObjectError::Missing(key) => StoreError::Missing(key),
        ObjectError::Full(_) => StoreError::Full(e.to_string()),
        other => StoreError::Transfer(other.to_string()),
    }
}

impl ObjectSource for Bridge {
    fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Vec<u8>, StoreError> {
        let whole = self.whole(key)?;
        let Some(range) = range else {
            return Ok(whole.to_vec());
        };
        let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(whole.len());
        let (from, to) = (at(range.start), at(range.end));
        Ok(whole.get(from..to).unwrap_or_default().to_vec())
    }
}

impl ObjectSink for Bridge {
    fn put(&self, kind: ObjectKind, digest: Digest, body: &[u8]) -> Result<ObjectRef, StoreError> {
        let key = format!("{}/{}/{}", self.prefix, kind.folder(), Ulid::generate());
        self.runtime
            .block_on(self.objects.put(&key, body))
            .map_err(told)?;
        Ok(ObjectRef {
            key,
            size: body.len() as u64,
            digest,
            version: None,
        })
    }
}
