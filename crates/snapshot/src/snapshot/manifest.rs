//! The tree of directories, once all files are read.

use super::Tools;
use super::plan::{At, Plan};
use crate::blob;
use crate::error::Error;
use crate::events::Events;
use crate::extras::Extras;
use crate::fsutil::Attrs;
use crate::pack::Class;
use crate::printable::printable;
use crate::seal::Vault;
use crate::tree::{Body, Entry, Extents, Node, encode_extents};
use crate::upload::Packer;
use dumont_core::id::Digest;
use rustix::fs::FileType;
use std::collections::HashSet;

/// The tree as it was encoded and stored.
pub(super) struct Manifest {
    pub root: Digest,
    /// Files and symlinks.
    pub files: u64,
    /// Sizes of files, an inode counted once.
    pub bytes: u64,
    /// Paths that are no directories.
    pub entries: u64,
    /// Chunks of the tree itself.
    pub nodes: HashSet<Digest>,
    pub torn: Vec<String>,
}

struct Builder<'a> {
    plan: &'a Plan<'a>,
    events: &'a dyn Events,
    vault: &'a Vault,
    out: Manifest,
}

/// Encodes every directory, children first, and stores the nodes that the store lacks.
pub(super) fn build(
    plan: &Plan<'_>,
    packer: &Packer<'_>,
    events: &dyn Events,
    tools: &mut Tools<'_>,
) -> Result<Manifest, Error> {
    let out = Manifest {
        root: Digest([0; 32]),
        files: 0,
        bytes: 0,
        entries: 0,
        nodes: HashSet::new(),
        torn: Vec::new(),
    };
    let mut b = Builder {
        plan,
        events,
        vault: packer.vault,
        out,
    };
    let dirs = &plan.scan.dirs;
    let mut nodes = vec![Digest([0; 32]); dirs.len()];
    let mut used = HashSet::new();
    let mut put = |id: Digest, raw: &[u8]| {
        used.insert(id);
        if packer.claim(id) {
            let stored = tools.encoder.encode(raw)?;
            packer.add(Class::Tree, id, raw.len(), stored, &mut tools.sealed)?;
        }
        Ok(())
    };
    for i in (0..dirs.len()).rev().filter(|i| !dirs[*i].gone) {
        let node = b.node(i, &nodes, &mut put)?;
        nodes[i] = blob::store(&node.encode(), packer.vault, &mut put)?;
    }
    b.note_torn();
    b.out.root = nodes[0];
    b.out.nodes = used;
    Ok(b.out)
}

impl Builder<'_> {
    fn node(&mut self, dir: usize, nodes: &[Digest], put: blob::Keep<'_>) -> Result<Node, Error> {
        let scan = self.plan.scan;
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
            entries.extend(self.entry((dir, i), put)?);
        }
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(Node {
            attrs: d.meta.attrs,
            more: Extras::some(d.xattrs.clone(), None),
            entries,
        })
    }

    /// The entry of a leaf; `None` if it is gone.
    fn entry(&mut self, at: At, put: blob::Keep<'_>) -> Result<Option<Entry>, Error> {
        let (plan, dir) = (self.plan, &self.plan.scan.dirs[at.0]);
        let listed = plan.listed(at);
        let (attrs, more, body) = match listed.kind {
            FileType::Symlink => {
                let target = dir.target(at.1).into();
                (listed.attrs, None, Body::Symlink { target })
            }
            FileType::Fifo => (listed.attrs, None, Body::Fifo),
            FileType::RegularFile => {
                let Some(file) = plan.file(at) else {
                    self.left_out(at, "went away or changed its type");
                    return Ok(None);
                };
                let (size, group) = (file.meta.size, file.group);
                self.out.bytes += if file.first { size } else { 0 };
                let extents = if Extents::fits(file.extents) {
                    Extents::Here(file.extents.clone())
                } else {
                    Extents::Listed(blob::store(&encode_extents(file.extents), self.vault, put)?)
                };
                let body = Body::File { size, group, extents };
                (file.meta.attrs, file.more.clone(), body)
            }
            _ => {
                self.left_out(at, "is a socket or device");
                return Ok(None);
            }
        };
        self.out.entries += 1;
        self.out.files += u64::from(listed.kind != FileType::Fifo);
        Ok(Some(Entry {
            name: dir.leaf_name(at.1).into(),
            attrs,
            body,
            more,
        }))
    }

    fn left_out(&self, at: At, why: &str) {
        let path = printable(&self.plan.path(at));
        self.events.log(&format!("Left out: {path} {why}"));
    }

    fn note_torn(&mut self) {
        for path in self.plan.torn() {
            let path = printable(&path);
            self.events.log(&format!(
                "Warning: {path} changed while it was read, three times; its copy is torn"
            ));
            self.out.torn.push(path);
        }
    }
}
