//! Snapshots that no honest machine would make, and stores that lose or change bytes.

use super::*;
use crate::codec::Codec;
use crate::dir_store::DirStore;
use crate::events::NoEvents;
use crate::format::digest;
use crate::fsutil::Attrs;
use crate::index::Index;
use crate::pack::{Class, PackBuilder, PackEntry};
use crate::store::{ObjectSink, StoreError};
use crate::tree::{Body, Entry, Extent, Extents, Node};
use crate::{SnapshotOptions, snapshot};
use dumont_core::snapshot::{ObjectKind, ObjectRef};
use proptest::prelude::*;
use std::collections::HashSet;
use std::fs;
use std::ops::Range;

static NEVER: AtomicBool = AtomicBool::new(false);

struct Forge {
    temp: tempfile::TempDir,
    store: DirStore,
    chunks: Vec<(Class, Vec<u8>)>,
}

impl Forge {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let store = DirStore::new(temp.path().join("store"));
        fs::write(temp.path().join("outside"), b"precious").unwrap();
        Self {
            temp,
            store,
            chunks: Vec::new(),
        }
    }

    fn chunk(&mut self, class: Class, raw: &[u8]) -> Digest {
        self.chunks.push((class, raw.to_vec()));
        digest(raw)
    }

    fn file(&mut self, name: &[u8], raw: &[u8]) -> Entry {
        let id = self.chunk(Class::Data, raw);
        entry(
            name,
            raw.len() as u64,
            &[Extent::Chunk {
                id,
                len: raw.len() as u32,
            }],
        )
    }

    fn node(&mut self, entries: Vec<Entry>) -> Digest {
        let attrs = Attrs {
            mode: 0o755,
            ..Attrs::default()
        };
        let node = Node {
            attrs,
            more: None,
            entries,
        };
        let bytes = node.encode();
        self.chunk(Class::Tree, &bytes)
    }

    /// Stores what was made, letting `twist` change the index.
    fn head(&self, root: Digest, twist: impl FnOnce(&mut Index)) -> SnapshotHead {
        let mut index = Index::default();
        for class in [Class::Data, Class::Tree] {
            let mut pack = PackBuilder::new(class, Vec::new(), &Vault::default());
            for (_, raw) in self.chunks.iter().filter(|c| c.0 == class) {
                pack.add(digest(raw), raw.len() as u32, Codec::Raw, raw);
            }
            let (body, entries) = pack.seal();
            let number = index.packs.len() as u32;
            index.packs.push(self.put(ObjectKind::Pack, &body));
            index.entries.extend(entries.into_iter().map(|e| (number, e)));
        }
        twist(&mut index);
        let index = self.put(ObjectKind::Index, &index.encode().unwrap());
        SnapshotHead {
            snapshot_id: "base-1-1".into(),
            root,
            indexes: vec![index],
            files: 100,
            bytes: 1 << 20,
        }
    }

    fn put(&self, kind: ObjectKind, body: &[u8]) -> ObjectRef {
        self.store.put(kind, digest(body), body).unwrap()
    }

    fn out(&self) -> PathBuf {
        self.temp.path().join("out")
    }

    fn restore(&self, head: &SnapshotHead, source: &dyn ObjectSource) -> Result<RestoreReport, Error> {
        let opts = RestoreOptions {
            delete: true,
            workers: 2,
            ..RestoreOptions::new(self.out(), &NEVER)
        };
        restore(&opts, head, source, &NoEvents)
    }

    /// The restore is refused as corrupt, in words that contain `word`, with nothing written.
    fn refused(&self, head: &SnapshotHead, word: &str) {
        match self.restore(head, &self.store) {
            Err(e @ Error::Corrupt { .. }) => assert!(e.to_string().contains(word), "{e}"),
            other => panic!("not refused: {other:?}"),
        }
        assert!(!self.out().exists(), "something was written");
        assert_eq!(fs::read(self.temp.path().join("outside")).unwrap(), b"precious");
    }
}

fn entry(name: &[u8], size: u64, extents: &[Extent]) -> Entry {
    let attrs = Attrs {
        mode: 0o644,
        ..Attrs::default()
    };
    Entry {
        name: name.into(),
        attrs,
        body: Body::File {
            size,
            group: 0,
            extents: Extents::Here(extents.into()),
        },
        more: None,
    }
}

fn dir(name: &[u8], node: Digest) -> Entry {
    Entry {
        name: name.into(),
        attrs: Attrs::default(),
        body: Body::Dir { node },
        more: None,
    }
}

#[test]
fn names_that_lead_outside_are_refused() {
    for name in [
        b"../outside".as_slice(),
        b"..",
        b"/etc/x",
        b"a/../../outside",
        b"",
        b"a\0b",
    ] {
        let mut f = Forge::new();
        let bad = f.file(name, b"evil");
        let inner = f.node(vec![bad]);
        let root = f.node(vec![dir(b"sub", inner)]);
        f.refused(&f.head(root, |_| {}), "directory \"sub\"");
    }
}

#[test]
fn a_directory_cannot_also_be_a_link() {
    let mut f = Forge::new();
    let evil = f.file(b"outside", b"evil");
    let inner = f.node(vec![evil]);
    let link = |target: &[u8]| Body::Symlink {
        target: target.into(),
    };
    let root = f.node(vec![
        Entry {
            name: b"a".as_slice().into(),
            attrs: Attrs::default(),
            body: link(b".."),
            more: None,
        },
        dir(b"a", inner),
    ]);
    f.refused(&f.head(root, |_| {}), "not in order");
}

#[test]
fn sizes_must_add_up() {
    let mut f = Forge::new();
    let id = f.chunk(Class::Data, b"12345");
    let cases: [(&[Extent], u64, &str); 4] = [
        (&[Extent::Chunk { id, len: 5 }], 6, "do not add up"),
        (&[Extent::Chunk { id, len: 4 }], 4, "another length in the index"),
        (
            &[Extent::Chunk {
                id: digest(b"never stored"),
                len: 5,
            }],
            5,
            "is in no index",
        ),
        (
            &[Extent::Hole { len: 1 << 40 }],
            1 << 40,
            "more than its head says",
        ),
    ];
    for (extents, size, word) in cases {
        let root = f.node(vec![entry(b"f", size, extents)]);
        f.refused(&f.head(root, |_| {}), word);
    }
}

#[test]
fn a_tree_that_multiplies_itself_is_refused() {
    let mut f = Forge::new();
    let leaf = f.file(b"f", b"x");
    let mut node = f.node(vec![leaf]);
    for _ in 0..40 {
        node = f.node(vec![dir(b"a", node), dir(b"b", node)]);
    }
    // 2^40 files out of a few kilobytes; the head bounds them.
    let word = "more";
    f.refused(&f.head(node, |_| {}), word);
}

#[test]
fn too_many_parts_for_the_size_are_refused() {
    let mut f = Forge::new();
    let root = f.node(vec![entry(b"f", 0, &vec![Extent::Hole { len: 0 }; 250])]);
    let many = f.node(
        (0..90u8)
            .map(|i| dir(&[b'a' + i / 26, b'a' + i % 26], root))
            .collect(),
    );
    f.refused(&f.head(many, |_| {}), "more parts");
}

#[test]
fn an_index_cannot_point_outside_its_packs_or_lie_about_chunks() {
    let mut f = Forge::new();
    let file = f.file(b"f", b"12345");
    let root = f.node(vec![file]);
    f.refused(
        &f.head(root, |i| i.entries[0].1.offset = 1 << 40),
        "outside its pack",
    );
    f.refused(&f.head(root, |i| i.entries[0].0 = 7), "no pack");
    f.refused(
        &f.head(root, |i| i.entries[0].1.raw_len = u32::MAX),
        "longer than chunks",
    );
    let odd = f.restore(
        &f.head(root, |i| i.packs[1].key = "../../outside".into()),
        &f.store,
    );
    assert!(matches!(odd, Err(Error::ObjectMissing { key }) if key == "../../outside"));
}

#[test]
fn an_older_index_wins() {
    let mut f = Forge::new();
    let file = f.file(b"f", b"12345");
    let root = f.node(vec![file]);
    let mut head = f.head(root, |_| {});
    // A later machine claims that the same chunks lie elsewhere.
    let liar = f.head(root, |i| {
        i.packs.iter_mut().for_each(|p| p.key = "packs/nowhere".into())
    });
    head.indexes.extend(liar.indexes);
    f.restore(&head, &f.store).unwrap();
    assert_eq!(fs::read(f.out().join("f")).unwrap(), b"12345");
}

/// A real snapshot of two files and a directory, and its head.
fn real(f: &Forge) -> SnapshotHead {
    let work = f.temp.path().join("w");
    fs::create_dir_all(work.join("sub")).unwrap();
    let mut noise = vec![0; 700_000];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    fs::write(work.join("big"), &noise).unwrap();
    fs::write(work.join("sub/text"), "text ".repeat(1000)).unwrap();
    let opts = SnapshotOptions {
        path: work,
        stamp: "1-1".into(),
        parent: None,
        full: false,
        cache_path: f.temp.path().join("cache"),
        workers: 1,
        key: None,
        model_files: Vec::new(),
        cancelled: &NEVER,
    };
    let r = snapshot(&opts, &f.store, &NoEvents).unwrap();
    SnapshotHead {
        snapshot_id: r.snapshot_id,
        root: r.root,
        indexes: r.index.into_iter().collect(),
        files: r.files_total,
        bytes: r.total_bytes,
    }
}

fn objects(f: &Forge) -> Vec<String> {
    let list = |kind: ObjectKind| {
        let folder = f.temp.path().join("store").join(kind.folder());
        fs::read_dir(folder)
            .unwrap()
            .map(move |e| format!("{}/{}", kind.folder(), e.unwrap().file_name().to_str().unwrap()))
    };
    list(ObjectKind::Pack).chain(list(ObjectKind::Index)).collect()
}

#[test]
fn a_missing_object_is_named() {
    let f = Forge::new();
    let head = real(&f);
    for key in objects(&f) {
        let path = f.store.path_of(&key).unwrap();
        let kept = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        match f.restore(&head, &f.store) {
            Err(Error::ObjectMissing { key: named }) => assert_eq!(named, key),
            other => panic!("{other:?}"),
        }
        fs::write(&path, kept).unwrap();
    }
    f.restore(&head, &f.store).unwrap();
}

#[test]
fn a_flipped_bit_is_named_wherever_it_is() {
    let f = Forge::new();
    let head = real(&f);
    for key in objects(&f) {
        let path = f.store.path_of(&key).unwrap();
        let kept = fs::read(&path).unwrap();
        let mut bytes = kept.clone();
        // In the first frame of a pack, in the body of an index.
        bytes[70] ^= 4;
        fs::write(&path, bytes).unwrap();
        match f.restore(&head, &f.store) {
            Err(Error::Corrupt { object, detail }) => {
                assert_eq!(object, key);
                let said = detail.contains(" of big") || detail.contains(" of sub/text");
                assert!(
                    said || detail.contains("the tree") || key.starts_with("indexes"),
                    "{detail}"
                );
            }
            other => panic!("{other:?}"),
        }
        fs::write(&path, kept).unwrap();
    }
    f.restore(&head, &f.store).unwrap();
}

/// A source that spoils the first answer to each request for a range.
struct Flaky<'a>(&'a DirStore, Mutex<HashSet<String>>, fn(&mut Vec<u8>));

impl ObjectSource for Flaky<'_> {
    fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Vec<u8>, StoreError> {
        let mut bytes = self.0.get(key, range)?;
        if self.1.lock().unwrap().insert(key.into()) {
            self.2(&mut bytes);
        }
        Ok(bytes)
    }
}

#[test]
fn a_transfer_that_went_wrong_once_is_made_again() {
    let f = Forge::new();
    let head = real(&f);
    let spoil: [fn(&mut Vec<u8>); 2] = [|b| b.iter_mut().for_each(|x| *x ^= 1), |b| b.truncate(100)];
    for (i, how) in spoil.into_iter().enumerate() {
        let got = f.restore(&head, &Flaky(&f.store, Mutex::default(), how));
        if i == 0 {
            assert_eq!(got.unwrap().validation.validation, Verdict::Ok);
        } else {
            // Too short a tree pack is not asked for again as a whole.
            assert!(matches!(got, Ok(_) | Err(Error::Corrupt { .. })), "{got:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Any damage to any object: either it did not matter, or it is an error; never a panic, and
    /// never a tree that differs.
    #[test]
    fn damaged_objects_never_give_a_wrong_tree(which in 0usize..8, at in any::<u32>(), bit in 0u8..8, cut in any::<bool>()) {
        let f = Forge::new();
        let head = real(&f);
        let keys = objects(&f);
        let path = f.store.path_of(&keys[which % keys.len()]).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let at = at as usize % bytes.len();
        if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
        fs::write(&path, bytes).unwrap();
        if f.restore(&head, &f.store).is_ok() {
            for name in ["big", "sub/text"] {
                prop_assert!(fs::read(f.out().join(name)).unwrap() == fs::read(f.temp.path().join("w").join(name)).unwrap());
            }
        }
    }

    /// Nodes that are well framed, but random inside.
    #[test]
    fn random_nodes_never_panic_or_escape(raw in prop::collection::vec(any::<u8>(), 0..200), keep in 0usize..60) {
        let mut f = Forge::new();
        let good = f.file(b"f", b"12345");
        let mut bytes = Node { attrs: Attrs::default(), more: None, entries: vec![good] }.encode();
        bytes.truncate(keep);
        bytes.extend(raw);
        let root = f.chunk(Class::Tree, &bytes);
        _ = f.restore(&f.head(root, |_| {}), &f.store);
        prop_assert_eq!(fs::read(f.temp.path().join("outside")).unwrap(), b"precious");
    }
}

#[test]
fn a_disk_that_is_too_small_is_found_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let root = open_root(dir.path()).unwrap();
    check_space(&root, dir.path(), 1).unwrap();
    match check_space(&root, dir.path(), u64::MAX) {
        Err(Error::NoSpace {
            path,
            needed: u64::MAX,
            free,
        }) => {
            assert_eq!(path, dir.path().display().to_string());
            assert!(free > 0);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn trailers_rebuild_the_index() {
    let f = Forge::new();
    let head = real(&f);
    let decoded = Index::decode("i", &f.store.get(&head.indexes[0].key, None).unwrap()).unwrap();
    let rebuilt: Vec<(u32, PackEntry)> = decoded
        .packs
        .iter()
        .enumerate()
        .flat_map(|(n, p)| {
            let bytes = f.store.get(&p.key, None).unwrap();
            crate::read_pack(&p.key, &bytes)
                .unwrap()
                .into_iter()
                .map(move |e| (n as u32, e))
        })
        .collect();
    assert_eq!(decoded.entries, rebuilt);
}
