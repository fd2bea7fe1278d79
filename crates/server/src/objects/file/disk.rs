//! The directory: `objects/` holds what exists, `incoming/` what is being received.
//!
//! All of this blocks and is called on the blocking pool.

use super::super::{ObjectError, ObjectMeta};
use dumont_core::id::Digest;
use rustix::fs::{OFlags, XattrFlags};
use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// What lies in `incoming/` untouched for this long belongs to no living writer.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 3600);
const DIGEST_ATTRIBUTE: &str = "user.dumont.blake3";

/// Whether a key is one this store accepts.
pub fn check_key(key: &str) -> Result<(), ObjectError> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"._-/".contains(&b);
    // 255 bytes are what file systems allow a name.
    let segment = |s: &str| !s.is_empty() && s != "." && s != ".." && s.len() <= 255;
    if key.len() <= 512 && key.bytes().all(fine) && key.split('/').all(segment) {
        Ok(())
    } else {
        Err(ObjectError::InvalidKey(key.chars().take(100).collect()))
    }
}

#[derive(Debug)]
pub struct Disk {
    root: PathBuf,
    objects: PathBuf,
    incoming: PathBuf,
    /// Directories whose own entry is known to be on disk.
    durable: Mutex<HashSet<PathBuf>>,
}

/// An object being received; gone when dropped.
#[derive(Debug)]
pub struct Incoming {
    file: File,
    path: PathBuf,
    /// Two kilobytes, and this value moves between threads.
    hasher: Box<blake3::Hasher>,
    size: u64,
    root: PathBuf,
}

/// An object that can be read; stays readable if it is deleted meanwhile.
#[derive(Debug)]
pub struct Found {
    pub file: File,
    pub size: u64,
    /// As remembered from receiving.
    pub digest: Option<Digest>,
}

/// How a publication ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    New,
    /// The very same object was there already.
    Same,
}

impl Disk {
    pub fn open(root: &Path) -> Result<Self, ObjectError> {
        let (objects, incoming) = (root.join("objects"), root.join("incoming"));
        for dir in [&objects, &incoming] {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        sync_dir(root)?;
        let disk = Self {
            root: root.to_owned(),
            objects,
            incoming,
            durable: Mutex::default(),
        };
        disk.sweep()?;
        Ok(disk)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Removes what crashed writers left. Young files may be another process's: they stay.
    fn sweep(&self) -> Result<(), ObjectError> {
        for entry in fs::read_dir(&self.incoming)? {
            let entry = entry?;
            let modified = entry.metadata().and_then(|m| m.modified());
            let age = modified
                .ok()
                .and_then(|t| SystemTime::now().duration_since(t).ok());
            if age.is_some_and(|age| age > ABANDONED_AFTER) {
                tracing::info!(path = %entry.path().display(), "removing an abandoned upload");
                gone_is_fine(fs::remove_file(entry.path()))?;
            }
        }
        Ok(())
    }

    fn path(&self, key: &str) -> Result<PathBuf, ObjectError> {
        check_key(key)?;
        Ok(self.objects.join(key))
    }

    /// A new object, not visible yet.
    pub fn receive(&self) -> Result<Incoming, ObjectError> {
        let path = self
            .incoming
            .join(format!("{:032x}.part", rand::random::<u128>()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        let file = file.map_err(|e| full_or(e, &self.root))?;
        Ok(Incoming {
            file,
            path,
            hasher: Box::default(),
            size: 0,
            root: self.root.clone(),
        })
    }

    /// Makes a received object visible under `key`, durably, if the key is free.
    pub fn publish(&self, incoming: Incoming, key: &str) -> Result<Published, ObjectError> {
        let path = self.path(key)?;
        let digest = incoming.digest();
        // Only a memo: without it the digest is computed when asked for.
        let _ = rustix::fs::fsetxattr(&incoming.file, DIGEST_ATTRIBUTE, &digest.0, XattrFlags::empty());
        incoming.file.sync_all().map_err(|e| full_or(e, &self.root))?;
        let parent = path.parent().unwrap_or(&self.objects);
        self.make_dirs(parent, key)?;
        let outcome = match fs::hard_link(&incoming.path, &path) {
            Ok(()) => Published::New,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let held = self
                    .head(key)?
                    .ok_or_else(|| ObjectError::InvalidKey(key.into()))?;
                if held.size != incoming.size || held.digest != Some(digest) {
                    return Err(ObjectError::Exists(key.into()));
                }
                Published::Same
            }
            Err(e) => return Err(full_or(e, &self.root)),
        };
        // Also when another writer linked it: it may not have come this far yet.
        sync_dir(parent)?;
        Ok(outcome)
    }

    /// Creates `dir` below `objects/` with every entry on the way synced. Another writer may
    /// have made a directory and not synced it yet, so only what was synced here is skipped.
    fn make_dirs(&self, dir: &Path, key: &str) -> Result<(), ObjectError> {
        if dir == self.objects || self.lock_durable().contains(dir) {
            return Ok(());
        }
        let above = dir.parent().unwrap_or(&self.objects);
        self.make_dirs(above, key)?;
        match DirBuilder::new().mode(0o700).create(dir) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            // An object sits where a folder is needed.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory
                ) =>
            {
                return Err(ObjectError::InvalidKey(key.into()));
            }
            Err(e) => return Err(full_or(e, &self.root)),
        }
        sync_dir(above)?;
        self.lock_durable().insert(dir.to_owned());
        Ok(())
    }

    fn lock_durable(&self) -> std::sync::MutexGuard<'_, HashSet<PathBuf>> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn find(&self, key: &str) -> Result<Option<Found>, ObjectError> {
        let path = self.path(key)?;
        // Never through a link; and a pipe that somebody put there must not block.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
        let file = match OpenOptions::new()
            .read(true)
            .custom_flags(flags.cast_signed())
            .open(path)
        {
            Ok(file) => file,
            Err(e) if is_absent(&e) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Ok(None);
        }
        let mut memo = [0; 32];
        let read = rustix::fs::fgetxattr(&file, DIGEST_ATTRIBUTE, &mut memo);
        let digest = (read == Ok(memo.len())).then_some(Digest(memo));
        Ok(Some(Found {
            file,
            size: meta.len(),
            digest,
        }))
    }

    pub fn head(&self, key: &str) -> Result<Option<ObjectMeta>, ObjectError> {
        let Some(mut found) = self.find(key)? else {
            return Ok(None);
        };
        let digest = match found.digest {
            Some(digest) => digest,
            None => {
                let mut hasher = blake3::Hasher::new();
                let mut buffer = vec![0; 1 << 20];
                loop {
                    match found.file.read(&mut buffer)? {
                        0 => break Digest(*hasher.finalize().as_bytes()),
                        n => hasher.update(&buffer[..n]),
                    };
                }
            }
        };
        Ok(Some(ObjectMeta {
            key: key.into(),
            size: found.size,
            digest: Some(digest),
            version: None,
        }))
    }

    pub fn read(&self, key: &str) -> Result<Vec<u8>, ObjectError> {
        let mut found = self.find(key)?.ok_or_else(|| ObjectError::Missing(key.into()))?;
        let mut bytes = Vec::new();
        found.file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// What lies beyond its end is left out.
    pub fn read_range(&self, key: &str, range: &Range<u64>) -> Result<Vec<u8>, ObjectError> {
        let found = self.find(key)?.ok_or_else(|| ObjectError::Missing(key.into()))?;
        let length = range.end.min(found.size).saturating_sub(range.start);
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        found.file.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes)
    }

    /// Deleting what is not there is a success.
    pub fn delete(&self, key: &str) -> Result<(), ObjectError> {
        let path = self.path(key)?;
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => return Ok(()),
            Ok(_) => {}
            Err(e) if is_absent(&e) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
        gone_is_fine(fs::remove_file(&path))?;
        sync_dir(path.parent().unwrap_or(&self.objects))
    }

    /// Walks only what can hold the prefix, and never through a symbolic link.
    pub fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError> {
        let folder = prefix.rfind('/').map_or("", |slash| &prefix[..slash]);
        if !folder.is_empty() {
            check_key(folder)?;
        }
        let mut found = Vec::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            // The first folder comes from the caller: it may be missing, or be a link.
            let path = self.objects.join(&folder);
            let entries = match fs::symlink_metadata(&path).and_then(|m| {
                if m.is_dir() {
                    fs::read_dir(&path)
                } else {
                    Err(io::ErrorKind::NotADirectory.into())
                }
            }) {
                Ok(entries) => entries,
                Err(e) if is_absent(&e) => continue,
                Err(e) => return Err(e.into()),
            };
            for entry in entries {
                let entry = entry?;
                let name = entry.file_name();
                let Some(name) = name.to_str() else { continue };
                let key = if folder.is_empty() {
                    name.to_owned()
                } else {
                    format!("{folder}/{name}")
                };
                let kind = entry.file_type()?;
                let on_the_way = key.starts_with(prefix) || prefix.starts_with(&format!("{key}/"));
                if kind.is_dir() && on_the_way {
                    folders.push(key);
                } else if kind.is_file() && key.starts_with(prefix) && check_key(&key).is_ok() {
                    // Deleted since the directory was read: not listed.
                    if let Some(Found { size, digest, .. }) = self.find(&key)? {
                        found.push(ObjectMeta {
                            key,
                            size,
                            digest,
                            version: None,
                        });
                    }
                }
            }
        }
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }
}

impl Incoming {
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ObjectError> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|e| full_or(e, &self.root))
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn digest(&self) -> Digest {
        Digest(*self.hasher.finalize().as_bytes())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // Nothing to do about a failure; a later `open` sweeps.
        let _ = fs::remove_file(&self.path);
    }
}

fn sync_dir(dir: &Path) -> Result<(), ObjectError> {
    Ok(File::open(dir)?.sync_all()?)
}

/// Not there; also when a part of the way is a file or a link.
fn is_absent(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || e.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

fn gone_is_fine(result: io::Result<()>) -> Result<(), ObjectError> {
    match result {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}

fn full_or(e: io::Error, root: &Path) -> ObjectError {
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            ObjectError::Full(root.display().to_string())
        }
        _ => ObjectError::Io(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_cannot_leave_the_store() {
        for good in ["a", "w/1/packs/01ABC.pack", "..a", "a..b", "-", &"a".repeat(255)] {
            assert!(check_key(good).is_ok(), "{good}");
        }
        let long = "a/".repeat(256) + "b";
        for bad in [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "a/../b",
            "a/./b",
            "a b",
            "a\0",
            "é",
            "a%2e",
            "a\\b",
            &long,
            &"a".repeat(256),
        ] {
            assert!(check_key(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn old_leftovers_are_swept_and_young_ones_stay() {
        let root = tempfile::tempdir().unwrap();
        Disk::open(root.path()).unwrap();
        let (old, young) = (
            root.path().join("incoming/old.part"),
            root.path().join("incoming/young.part"),
        );
        fs::write(&young, "y").unwrap();
        let file = File::create(&old).unwrap();
        file.set_modified(SystemTime::now() - ABANDONED_AFTER - Duration::from_secs(60))
            .unwrap();
        Disk::open(root.path()).unwrap();
        assert!(!old.exists() && young.exists());
    }

    #[test]
    fn a_lost_memo_of_the_digest_is_computed_again() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path()).unwrap();
        fs::write(root.path().join("objects/copied"), "content").unwrap();
        assert_eq!(disk.find("copied").unwrap().unwrap().digest, None);
        let expected = Digest(*blake3::hash(b"content").as_bytes());
        assert_eq!(disk.head("copied").unwrap().unwrap().digest, Some(expected));
    }
}
