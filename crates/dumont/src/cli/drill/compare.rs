//! Two directories, compared in everything a restore promises: names, bytes, modes, times to
//! the nanosecond, symbolic links, hard links, empty directories, holes.

use anyhow::{Context, Result};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A path below the root, as bytes; the root itself is empty.
pub type RelPath = Vec<u8>;

/// Everything below (and including) a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<RelPath, Entry>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub what: What,
    /// Permission bits; links have none of their own.
    pub mode: u32,
    pub mtime_ns: i128,
    /// The first name of the same file, where it has several inside the tree.
    pub same_file_as: Option<RelPath>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Directory,
    File {
        size: u64,
        digest: [u8; 32],
        sparse: bool,
    },
    Symlink {
        target: Vec<u8>,
    },
    /// Pipes, sockets, devices.
    Other,
}

impl What {
    fn noun(&self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::File { .. } => "file",
            Self::Symlink { .. } => "symbolic link",
            Self::Other => "special file",
        }
    }
}

/// One thing that is not the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub path: RelPath,
    pub how: How,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    Missing,
    Extra,
    Type {
        expected: &'static str,
        found: &'static str,
    },
    Bytes {
        expected: u64,
        found: u64,
    },
    Mode {
        expected: u32,
        found: u32,
    },
    Mtime {
        expected: i128,
        found: i128,
    },
    Target,
    HardLink,
    Holes,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = printable(&self.path);
        match &self.how {
            How::Missing => write!(f, "{path}: missing"),
            How::Extra => write!(f, "{path}: should not be there"),
            How::Type { expected, found } => write!(f, "{path}: is a {found}, should be a {expected}"),
            How::Bytes { expected, found } if expected == found => write!(f, "{path}: other content"),
            How::Bytes { expected, found } => write!(f, "{path}: {found} bytes, should be {expected}"),
            How::Mode { expected, found } => write!(f, "{path}: mode {found:o}, should be {expected:o}"),
            How::Mtime { expected, found } => write!(f, "{path}: mtime {found} ns, should be {expected}"),
            How::Target => write!(f, "{path}: the link points elsewhere"),
            How::HardLink => write!(f, "{path}: its hard links are not the same"),
            How::Holes => write!(f, "{path}: its holes were filled"),
        }
    }
}

/// A path for people: `.` for the root, escapes for what a terminal cannot show.
pub fn printable(path: &[u8]) -> String {
    if path.is_empty() {
        ".".into()
    } else {
        path.escape_ascii().to_string()
    }
}

impl Tree {
    /// Regular files and symbolic links, each name counted.
    pub fn files(&self) -> u64 {
        self.0
            .values()
            .filter(|e| !matches!(e.what, What::Directory | What::Other))
            .count() as u64
    }

    /// Sum of the sizes of regular files.
    pub fn bytes(&self) -> u64 {
        let size = |e: &Entry| {
            if let What::File { size, .. } = e.what {
                size
            } else {
                0
            }
        };
        self.0.values().map(size).sum()
    }

    pub fn special_files(&self) -> usize {
        self.0.values().filter(|e| e.what == What::Other).count()
    }
}

/// Reads a whole directory. Special files are listed and not opened.
pub fn scan(root: &Path) -> Result<Tree> {
    let mut entries = BTreeMap::new();
    let mut inodes: HashMap<(u64, u64), Vec<RelPath>> = HashMap::new();
    let mut todo: Vec<RelPath> = vec![Vec::new()];
    while let Some(rel) = todo.pop() {
        let path = absolute(root, &rel);
        let named = || format!("read {}", path.display());
        let meta = fs::symlink_metadata(&path).with_context(named)?;
        let what = look(&path, &meta).with_context(named)?;
        if what == What::Directory {
            for child in fs::read_dir(&path).with_context(named)? {
                let name = child.with_context(named)?.file_name().into_vec();
                todo.push(if rel.is_empty() {
                    name
                } else {
                    [rel.as_slice(), b"/", name.as_slice()].concat()
                });
            }
        } else if meta.nlink() > 1 {
            inodes
                .entry((meta.dev(), meta.ino()))
                .or_default()
                .push(rel.clone());
        }
        let mode = if matches!(what, What::Symlink { .. }) {
            0
        } else {
            meta.mode() & 0o7777
        };
        let mtime_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        entries.insert(
            rel,
            Entry {
                what,
                mode,
                mtime_ns,
                same_file_as: None,
            },
        );
    }
    for mut names in inodes.into_values().filter(|n| n.len() > 1) {
        names.sort();
        let first = names[0].clone();
        for name in names {
            if let Some(entry) = entries.get_mut(&name) {
                entry.same_file_as = Some(first.clone());
            }
        }
    }
    Ok(Tree(entries))
}

fn absolute(root: &Path, rel: &[u8]) -> PathBuf {
    if rel.is_empty() {
        root.to_owned()
    } else {
        root.join(OsStr::from_bytes(rel))
    }
}

fn look(path: &Path, meta: &Metadata) -> Result<What> {
    let kind = meta.file_type();
    Ok(if kind.is_dir() {
        What::Directory
    } else if kind.is_symlink() {
        What::Symlink {
            target: fs::read_link(path)?.into_os_string().into_vec(),
        }
    } else if kind.is_file() {
        // Small files may be stored inline or round up; only clear holes count.
        let sparse = meta.size() >= 1 << 20 && meta.blocks() * 512 + (1 << 20) <= meta.size();
        let (size, digest) = digest(path)?;
        What::File { size, digest, sparse }
    } else {
        What::Other
    })
}

fn digest(path: &Path) -> Result<(u64, [u8; 32])> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok((size, *hasher.finalize().as_bytes()));
        }
        hasher.update(&buffer[..n]);
        size += n as u64;
    }
}

/// Everything in which `found` is not `expected`, by path.
pub fn diff(expected: &Tree, found: &Tree) -> Vec<Difference> {
    let mut out = Vec::new();
    for (path, e) in &expected.0 {
        let mut add = |how| {
            out.push(Difference {
                path: path.clone(),
                how,
            })
        };
        match found.0.get(path) {
            None => add(How::Missing),
            Some(f) => entry_diff(e, f, &mut add),
        }
    }
    for path in found.0.keys().filter(|p| !expected.0.contains_key(*p)) {
        out.push(Difference {
            path: path.clone(),
            how: How::Extra,
        });
    }
    out.sort_by(|a, b| a.path.cmp(&b.path));
    out
}

fn entry_diff(e: &Entry, f: &Entry, add: &mut impl FnMut(How)) {
    match (&e.what, &f.what) {
        (
            What::File { size, digest, sparse },
            What::File {
                size: found,
                digest: found_digest,
                sparse: found_sparse,
            },
        ) => {
            if size != found || digest != found_digest {
                add(How::Bytes {
                    expected: *size,
                    found: *found,
                });
            } else if *sparse && !found_sparse {
                add(How::Holes);
            }
        }
        (What::Symlink { target }, What::Symlink { target: found }) if target != found => add(How::Target),
        (a, b) if a.noun() != b.noun() => {
            return add(How::Type {
                expected: a.noun(),
                found: b.noun(),
            });
        }
        _ => {}
    }
    if e.mode != f.mode {
        add(How::Mode {
            expected: e.mode,
            found: f.mode,
        });
    }
    if e.mtime_ns != f.mtime_ns {
        add(How::Mtime {
            expected: e.mtime_ns,
            found: f.mtime_ns,
        });
    }
    if e.same_file_as != f.same_file_as {
        add(How::HardLink);
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
