//! The store as the snapshot engine wants it: for work on snapshots that needs no machine.

use super::{ObjectError, ObjectStore};
use dumont_core::id::Digest;
use dumont_core::snapshot::{ObjectKind, ObjectRef};
use dumont_snapshot::{ObjectSink, ObjectSource, StoreError};
use std::ops::Range;
use std::sync::Arc;
use tokio::runtime::Handle;
use ulid::Ulid;

/// One workspace's objects, and no others: an index is written by a machine, and may name what
/// is not its own. To be used on a blocking thread.
pub struct Bridge {
    objects: Arc<dyn ObjectStore>,
    runtime: Handle,
    /// `workspaces/{id}`; new objects are created below it.
    prefix: String,
}

impl Bridge {
    pub fn new(objects: Arc<dyn ObjectStore>, prefix: String) -> Self {
        Self {
            objects,
            runtime: Handle::current(),
            prefix,
        }
    }

    fn is_own(&self, key: &str) -> bool {
        key.strip_prefix(&self.prefix)
            .is_some_and(|rest| rest.starts_with('/'))
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
        if !self.is_own(key) {
            return Err(StoreError::Missing(key.into()));
        }
        let got = self.runtime.block_on(async {
            match range {
                Some(range) => self.objects.get_range(key, range).await,
                None => self.objects.get(key).await,
            }
        });
        got.map_err(told)
    }
}

impl ObjectSink for Bridge {
    fn put(&self, kind: ObjectKind, digest: Digest, body: &[u8]) -> Result<ObjectRef, StoreError> {
        let key = format!("{}/{}/{}", self.prefix, kind.folder(), Ulid::generate());
        let put = self.runtime.block_on(self.objects.put(&key, body));
        let version = put.map_err(told)?;
        Ok(ObjectRef {
            key,
            size: body.len() as u64,
            digest,
            version,
        })
    }
}
