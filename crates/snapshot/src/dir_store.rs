//! A store that is a plain directory: for tests, and for reading a snapshot with nothing else.

use crate::store::{ObjectSink, ObjectSource, StoreError};
use dumont_core::id::Digest;
use dumont_core::snapshot::{ObjectKind, ObjectRef};
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Objects as files named `{packs,indexes,metadata}/{digest}` under a directory.
#[derive(Debug)]
pub struct DirStore {
    root: PathBuf,
    next: AtomicU64,
}

impl DirStore {
    /// Nothing is created until the first object is stored.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            next: AtomicU64::new(0),
        }
    }

    /// Where an object of this key lies. `None` for keys that are no plain relative path.
    pub fn path_of(&self, key: &str) -> Option<PathBuf> {
        let plain = !key.is_empty()
            && Path::new(key)
                .components()
                .all(|c| matches!(c, Component::Normal(_)));
        plain.then(|| self.root.join(key))
    }
}

fn transfer(what: &Path) -> impl Fn(std::io::Error) -> StoreError {
    move |e| match e.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            StoreError::Full(format!("{}: {e}", what.display()))
        }
        _ => StoreError::Transfer(format!("{}: {e}", what.display())),
    }
}

impl ObjectSink for DirStore {
    fn put(&self, kind: ObjectKind, digest: Digest, body: &[u8]) -> Result<ObjectRef, StoreError> {
        let key = format!("{}/{digest}", kind.folder());
        let folder = self.root.join(kind.folder());
        fs::create_dir_all(&folder).map_err(transfer(&folder))?;
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let temporary = folder.join(format!(".{}-{n}.tmp", std::process::id()));
        fs::write(&temporary, body).map_err(transfer(&temporary))?;
        let path = self.root.join(&key);
        fs::rename(&temporary, &path).map_err(transfer(&path))?;
        Ok(ObjectRef {
            key,
            size: body.len() as u64,
            digest,
            version: None,
        })
    }
}

impl ObjectSource for DirStore {
    fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Vec<u8>, StoreError> {
        let missing = || StoreError::Missing(key.into());
        let path = self.path_of(key).ok_or_else(missing)?;
        let mut file = File::open(&path).map_err(|e| match e.kind() {
            ErrorKind::NotFound => missing(),
            _ => transfer(&path)(e),
        })?;
        let Some(range) = range else {
            let mut out = Vec::new();
            file.read_to_end(&mut out).map_err(transfer(&path))?;
            return Ok(out);
        };
        // Like a ranged GET: what lies beyond the end is left out, not an error.
        let size = file.metadata().map_err(transfer(&path))?.len();
        let end = range.end.min(size);
        let mut out = vec![0; usize::try_from(end.saturating_sub(range.start)).map_err(|_| missing())?];
        file.read_exact_at(&mut out, range.start)
            .map_err(transfer(&path))?;
        Ok(out)
    }
}
