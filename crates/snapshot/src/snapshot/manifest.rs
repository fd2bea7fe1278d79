//! Which files to read, and the tree of directories once they are.

use super::Tools;
use super::read::{ReadJob, ReadOutcome};
use crate::blob;
use crate::cache::{Cache, Known, KnownBody};
use crate::error::Error;
use crate::events::Events;
use crate::extras::{Extras, More};
use crate::format::digest;
use crate::fsutil::{Attrs, Meta, Time, join};
use crate::pack::Class;
use crate::printable::printable;
use crate::scan::{LeafKind, Scan};
use crate::seal::Vault;
use crate::tree::{Body, Entry, Extent, Extents, Node, encode_extents};
use crate::upload::Packer;
use dumont_core::id::Digest;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};

/// Where the content of one leaf comes from.
pub(super) enum Source {
    /// Symlinks and fifos: all is known already.
    Listed,
    /// Unchanged since the parent.
    Kept {
        extents: Arc<[Extent]>,
        more: More,
        group: u64,
    },
    /// Of the job's names, this is number `name`.
    Read { job: usize, name: usize, group: u64 },
    /// Another name of the leaf (dir, number), which comes first.
    Linked { dir: usize, leaf: usize, group: u64 },
}

/// What has to be done; `leaves` is parallel to the scan's.
pub(super) struct Plan {
    pub leaves: Vec<Vec<Source>>,
    pub jobs: Vec<ReadJob>,
    pub bytes_to_read: u64,
}

impl Plan {
    pub fn new(scan: &Scan, cache: Option<&Cache>, full: bool) -> Self {
        let paths = scan.paths();
        let order = scan.depth_first();
        let links = links(scan, &order);
        let mut plan = Self {
            leaves: scan.dirs.iter().map(|_| Vec::new()).collect(),
            jobs: Vec::new(),
            bytes_to_read: 0,
        };
        for dir in order {
            for (i, leaf) in scan.dirs[dir].leaves.iter().enumerate() {
                let source = if leaf.kind == LeafKind::File {
                    let names = links.get(&(leaf.meta.dev, leaf.meta.ino)).map(Vec::as_slice);
                    let path = join(&paths[dir], &leaf.name);
                    plan.source(scan, &paths, cache.filter(|_| !full), (dir, i), path, names)
                } else {
                    Source::Listed
                };
                plan.leaves[dir].push(source);
            }
        }
        plan
    }

    fn source(
        &mut self,
        scan: &Scan,
        paths: &[Vec<u8>],
        cache: Option<&Cache>,
        at: (usize, usize),
        path: Vec<u8>,
        names: Option<&[(usize, usize)]>,
    ) -> Source {
        let of = |(d, l): (usize, usize)| join(&paths[d], &scan.dirs[d].leaves[l].name);
        let group = names.map_or(0, |n| group_number(&of(n[0])));
        let meta = &scan.dirs[at.0].leaves[at.1].meta;
        if let Some(first) = names.map(|n| n[0]).filter(|first| *first != at) {
            return match self.leaves[first.0].get(first.1) {
                Some(Source::Read { job, .. }) => {
                    let job = *job;
                    self.jobs[job].paths.push(path);
                    Source::Read {
                        job,
                        name: self.jobs[job].paths.len() - 1,
                        group,
                    }
                }
                _ => Source::Linked {
                    dir: first.0,
                    leaf: first.1,
                    group,
                },
            };
        }
        if let Some((extents, more)) = cache.and_then(|c| c.unchanged(&path, meta)) {
            return Source::Kept {
                extents: Arc::clone(extents),
                more: more.clone(),
                group,
            };
        }
        self.bytes_to_read += meta.size;
        self.jobs.push(ReadJob { paths: vec![path] });
        Source::Read {
            job: self.jobs.len() - 1,
            name: 0,
            group,
        }
    }
}

/// Inodes with several names in the tree; the names in depth-first order.
fn links(scan: &Scan, order: &[usize]) -> HashMap<(u64, u64), Vec<(usize, usize)>> {
    let mut out: HashMap<_, Vec<_>> = HashMap::new();
    for &dir in order {
        for (i, leaf) in scan.dirs[dir].leaves.iter().enumerate() {
            if leaf.kind == LeafKind::File && leaf.meta.nlink > 1 {
                out.entry((leaf.meta.dev, leaf.meta.ino))
                    .or_default()
                    .push((dir, i));
            }
        }
    }
    out.retain(|_, names| names.len() > 1);
    out
}

fn group_number(first_path: &[u8]) -> u64 {
    let Digest([a, b, c, d, e, f, g, h, ..]) = digest(first_path);
    u64::from_le_bytes([a, b, c, d, e, f, g, h]) | 1
}

/// The tree as it was encoded and stored.
pub(super) struct Manifest {
    pub root: Digest,
    /// Files and symlinks.
    pub files: u64,
    /// Sizes of files, an inode counted once.
    pub bytes: u64,
    /// Files that were opened.
    pub files_read: u64,
    pub entries: HashMap<Vec<u8>, Known>,
    /// Chunks of the tree itself.
    pub nodes: HashSet<Digest>,
    pub torn: Vec<String>,
}

impl Manifest {
    pub fn files_by_path(&self) -> Vec<(Vec<u8>, Time)> {
        let listed = self.entries.iter().filter(|(_, k)| k.body != KnownBody::Fifo);
        listed.map(|(path, k)| (path.clone(), k.attrs.mtime)).collect()
    }
}

/// One file as it will be recorded.
#[derive(Clone)]
struct Content {
    meta: Meta,
    extents: Arc<[Extent]>,
    more: More,
    /// Not settled: to be read again next time whatever its times say.
    torn: bool,
}

struct Builder<'a> {
    scan: &'a Scan,
    sources: &'a [Vec<Source>],
    jobs: &'a [ReadJob],
    results: Vec<OnceLock<ReadOutcome>>,
    events: &'a dyn Events,
    vault: &'a Vault,
    out: Manifest,
}

/// Encodes every directory, children first, and stores the nodes that the store lacks.
pub(super) fn build(
    scan: &Scan,
    sources: &[Vec<Source>],
    jobs: &[ReadJob],
    results: Vec<OnceLock<ReadOutcome>>,
    packer: &Packer<'_>,
    events: &dyn Events,
    tools: &mut Tools,
) -> Result<Manifest, Error> {
    let out = Manifest {
        root: Digest([0; 32]),
        files: 0,
        bytes: 0,
        files_read: jobs.len() as u64,
        entries: HashMap::with_capacity(sources.iter().map(Vec::len).sum()),
        nodes: HashSet::new(),
        torn: Vec::new(),
    };
    let mut b = Builder {
        scan,
        sources,
        jobs,
        results,
        events,
        vault: packer.vault,
        out,
    };
    let paths = scan.paths();
    let mut nodes = vec![Digest([0; 32]); scan.dirs.len()];
    let mut used = HashSet::new();
    let mut put = |id: Digest, raw: &[u8]| {
        used.insert(id);
        if packer.claim(id) {
            let stored = tools.encoder.encode(raw)?;
            packer.add(Class::Tree, id, raw.len(), stored, &mut tools.sealed)?;
        }
        Ok(())
    };
    for i in (0..scan.dirs.len()).rev().filter(|i| !scan.dirs[*i].gone) {
        let node = b.node(i, &paths[i], &nodes, &mut put)?;
        nodes[i] = blob::store(&node.encode(), packer.vault, &mut put)?;
    }
    b.note_torn();
    b.out.root = nodes[0];
    b.out.nodes = used;
    Ok(b.out)
}

impl Builder<'_> {
    fn node(
        &mut self,
        dir: usize,
        path: &[u8],
        nodes: &[Digest],
        put: blob::Keep<'_>,
    ) -> Result<Node, Error> {
        let scan = self.scan;
        let d = &scan.dirs[dir];
        let subdirs = d.subdirs.iter().filter(|s| !scan.dirs[**s].gone);
        let mut entries: Vec<Entry> = subdirs
            .map(|&s| Entry {
                name: scan.dirs[s].name.clone(),
                attrs: Attrs::default(),
                body: Body::Dir { node: nodes[s] },
                more: None,
            })
            .collect();
        for i in 0..d.leaves.len() {
            entries.extend(self.entry(dir, i, path, put)?);
        }
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(Node {
            attrs: d.meta.attrs,
            more: Extras::some(d.xattrs.clone(), None),
            entries,
        })
    }

    /// The entry of a leaf, noted for the cache as well; `None` if it is gone.
    fn entry(
        &mut self,
        dir: usize,
        i: usize,
        dir_path: &[u8],
        put: blob::Keep<'_>,
    ) -> Result<Option<Entry>, Error> {
        let leaf = &self.scan.dirs[dir].leaves[i];
        let path = join(dir_path, &leaf.name);
        let (meta, torn, more, body, known) = match &leaf.kind {
            LeafKind::Symlink(target) => (
                leaf.meta,
                false,
                None,
                Body::Symlink {
                    target: target.clone(),
                },
                KnownBody::Symlink(target.clone()),
            ),
            LeafKind::Fifo => (leaf.meta, false, None, Body::Fifo, KnownBody::Fifo),
            LeafKind::Other => {
                self.events
                    .log(&format!("Left out: {} is a socket or device", printable(&path)));
                return Ok(None);
            }
            LeafKind::File => {
                let Some((content, group, first)) = self.content(dir, i) else {
                    self.events.log(&format!(
                        "Left out: {} went away or changed its type",
                        printable(&path)
                    ));
                    return Ok(None);
                };
                let size = content.meta.size;
                self.out.bytes += if first { size } else { 0 };
                let extents = if Extents::fits(&content.extents) {
                    Extents::Here(Arc::clone(&content.extents))
                } else {
                    Extents::Listed(blob::store(&encode_extents(&content.extents), self.vault, put)?)
                };
                let known = KnownBody::File {
                    size,
                    extents: content.extents,
                };
                (
                    content.meta,
                    content.torn,
                    content.more,
                    Body::File { size, group, extents },
                    known,
                )
            }
        };
        self.out.files += u64::from(leaf.kind != LeafKind::Fifo);
        let ctime = if torn { Time::default() } else { meta.ctime };
        let known = Known {
            attrs: meta.attrs,
            ctime,
            ino: meta.ino,
            body: known,
            more: more.clone(),
        };
        self.out.entries.insert(path, known);
        Ok(Some(Entry {
            name: leaf.name.clone(),
            attrs: meta.attrs,
            body,
            more,
        }))
    }

    /// A file's content, its hard-link group, and whether this is the first of its names.
    fn content(&self, dir: usize, i: usize) -> Option<(Content, u64, bool)> {
        match &self.sources[dir][i] {
            Source::Kept { extents, more, group } => {
                let meta = self.scan.dirs[dir].leaves[i].meta;
                Some((
                    Content {
                        meta,
                        extents: Arc::clone(extents),
                        more: more.clone(),
                        torn: false,
                    },
                    *group,
                    true,
                ))
            }
            Source::Linked { dir, leaf, group } => self
                .content(*dir, *leaf)
                .map(|(content, ..)| (content, *group, false)),
            Source::Read { job, name, group } => match self.results[*job].get()? {
                ReadOutcome::Read {
                    meta,
                    extents,
                    more,
                    torn,
                    gone,
                } if gone <= name => {
                    let content = Content {
                        meta: *meta,
                        extents: Arc::clone(extents),
                        more: more.clone(),
                        torn: *torn,
                    };
                    Some((content, *group, gone == name))
                }
                _ => None,
            },
            Source::Listed => None,
        }
    }

    fn note_torn(&mut self) {
        for (job, result) in self.jobs.iter().zip(&self.results) {
            let Some(ReadOutcome::Read { torn: true, gone, .. }) = result.get() else {
                continue;
            };
            let path = printable(&job.paths[*gone]);
            self.events.log(&format!(
                "Warning: {path} changed while it was read, three times; its copy is torn"
            ));
            self.out.torn.push(path);
        }
    }
}
