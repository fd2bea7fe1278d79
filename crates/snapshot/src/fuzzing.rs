//! The parsers of everything that lies in a store or in a cache, for `crates/fuzz`.
//!
//! Formats with a checksum are entered behind it as well: what a hostile machine writes has one
//! that is right.

use crate::cache::{Cache, Known, KnownBody, NewCache};
use crate::codec::{Budget, Codec, Decoder, Encoder};
use crate::extras::Extras;
use crate::format::digest;
use crate::fsutil::{Attrs, Time};
use crate::index::Index;
use crate::pack::{Class, Opener, PackBuilder, read_pack};
use crate::reader::{Reader, check};
use crate::seal::Vault;
use crate::store::{ObjectSource, StoreError};
use crate::tree::{
    Body, Entry, Extent, Extents, Node, decode_extents, decode_pieces, encode_extents, encode_pieces,
};
use dumont_core::id::Digest;
use dumont_core::snapshot::{ObjectRef, SnapshotHead};
use std::collections::{HashMap, HashSet};
use std::io::Cursor;
use std::ops::Range;
use std::sync::atomic::AtomicBool;

static NEVER: AtomicBool = AtomicBool::new(false);

pub fn pack(data: &[u8]) {
    let (Ok(entries), Ok(mut opener)) = (read_pack("fuzz", data), Opener::new(&Vault::default())) else {
        return;
    };
    for e in entries {
        _ = e.open(&data[e.offset as usize..e.end() as usize], &mut opener);
    }
}

/// With a footer that fits whatever it says of its length.
pub fn pack_sealed(data: &[u8]) {
    let mut bytes = data.to_vec();
    let Some(footer) = bytes.len().checked_sub(48) else {
        return;
    };
    let count = u32::from_le_bytes([
        bytes[footer],
        bytes[footer + 1],
        bytes[footer + 2],
        bytes[footer + 3],
    ]);
    let Some(start) = footer.checked_sub((count as usize).saturating_mul(50)) else {
        return;
    };
    let check = digest(&bytes[start..footer]);
    bytes[footer + 8..footer + 40].copy_from_slice(&check.0);
    pack(&bytes);
}

pub fn index(data: &[u8]) {
    _ = Index::decode("fuzz", data);
}

pub fn index_payload(data: &[u8]) {
    if let Ok(index) = Index::parse(data)
        && let Ok(bytes) = index.encode()
    {
        assert_eq!(Index::decode("fuzz", &bytes).ok(), Some(index));
    }
}

/// Any object of the tree: there is one way to write each.
pub fn tree(data: &[u8]) {
    if let Ok(node) = Node::decode(data) {
        assert_eq!(node.encode(), data);
    }
    if let Ok(list) = decode_extents(data) {
        assert_eq!(encode_extents(&list), data);
    }
    if let Ok(Some(pieces)) = decode_pieces(data) {
        assert_eq!(encode_pieces(&pieces), data);
    }
}

/// A codec, a raw length, and what is stored.
pub fn chunk(data: &[u8]) {
    let Some((head, stored)) = data.split_first_chunk::<5>() else {
        return;
    };
    let raw_len = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
    if let (Ok(codec), Ok(mut decoder)) = (Codec::from_byte(head[0]), Decoder::new())
        && let Ok(raw) = decoder.decode(codec, stored, raw_len)
    {
        assert_eq!(raw.len(), raw_len as usize);
    }
}

/// Whatever it is made of, a chunk comes back.
pub fn chunk_back(data: &[u8]) {
    let budget = Budget::of(data.len() as u64 % 3 * 100_000);
    let (Ok(mut encoder), Ok(mut decoder)) = (Encoder::new(&budget), Decoder::new()) else {
        return;
    };
    if let Ok((codec, stored)) = encoder.encode(data) {
        let raw_len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        assert_eq!(decoder.decode(codec, stored, raw_len), Ok(data));
    }
}

/// Behind its checksum.
pub fn cache(data: &[u8]) {
    let bytes = [data, &digest(data).0].concat();
    let Ok(mut cache) = Cache::open("fuzz", Cursor::new(bytes)) else {
        return;
    };
    let mut entries = Vec::new();
    let read = cache.each(&mut |path, known| entries.push((path.to_vec(), known)));
    let (Ok(()), Ok(known)) = (read, cache.known()) else {
        return;
    };
    // Its table may hold ids that nothing names, and is then written without them.
    let again = encode_cache(&cache.snapshot_id, known, &entries);
    let mut again = Cache::open("fuzz", Cursor::new(again)).ok();
    let mut count = 0;
    let read = again.as_mut().map(|c| c.each(&mut |_, _| count += 1));
    assert!(matches!(read, Some(Ok(()))) && count == entries.len());
}

fn encode_cache(snapshot_id: &str, known: Vec<Digest>, entries: &[(Vec<u8>, Known)]) -> Vec<u8> {
    let mut out = Vec::new();
    let cache = NewCache {
        snapshot_id,
        root: Digest([0xAA; 32]),
        started_ns: 1,
        known,
        nodes: &HashSet::new(),
        entries: &|each| entries.iter().for_each(|(path, known)| each(path, known)),
    };
    _ = cache.encode(&mut out);
    out
}

struct Objects(HashMap<String, Vec<u8>>);

impl ObjectSource for Objects {
    fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Vec<u8>, StoreError> {
        let whole = self.0.get(key).ok_or_else(|| StoreError::Missing(key.into()))?;
        let range = range.unwrap_or(0..whole.len() as u64);
        let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(whole.len());
        Ok(whole
            .get(at(range.start)..at(range.end))
            .unwrap_or_default()
            .to_vec())
    }
}

/// A whole snapshot of one pack: parts of the input, each after its length (u16), are its chunks,
/// and the last is the root. Where a part holds 32 bytes `0xAA`, the id of the part before is put.
pub fn manifest(data: &[u8]) {
    let mut pack = PackBuilder::new(Class::Tree, Vec::new(), &Vault::default());
    let (mut rest, mut last) = (data, None);
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(after.len());
        let (part, after) = after.split_at(length);
        let mut part = part.to_vec();
        if let Some(id) = last {
            put_id(&mut part, id);
        }
        let id = digest(&part);
        pack.add(id, u32::try_from(part.len()).unwrap_or(0), Codec::Raw, &part);
        (rest, last) = (after, Some(id));
    }
    let Some(root) = last else { return };
    let (body, entries) = pack.seal();
    let object = |key: &str, bytes: &[u8]| ObjectRef {
        key: key.into(),
        size: bytes.len() as u64,
        digest: digest(bytes),
        version: None,
    };
    let index = Index {
        packs: vec![object("pack", &body)],
        entries: entries.into_iter().map(|e| (0, e)).collect(),
    };
    let Ok(bytes) = index.encode() else {
        return;
    };
    let head = SnapshotHead {
        snapshot_id: "fuzz".into(),
        root,
        indexes: vec![object("index", &bytes)],
        files: 1_000,
        bytes: 1 << 30,
    };
    let source = Objects([("pack".into(), body), ("index".into(), bytes)].into());
    if let Ok(reader) = Reader::open(&head, &source, None, &NEVER) {
        reader.list(b"");
        assert!(reader.diff(&reader).is_empty());
    }
    _ = check(&[head], &source, None, &NEVER);
}

fn put_id(part: &mut [u8], id: Digest) {
    let marks = part.windows(32).position(|w| w.iter().all(|b| *b == 0xAA));
    if let Some(at) = marks {
        part[at..at + 32].copy_from_slice(&id.0);
    }
}

/// Good inputs to begin from, by target.
pub fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let text = b"all work and no play makes jack a dull boy ".repeat(40);
    let floats: Vec<u8> = (0..9_000u32)
        .flat_map(|n| [(n * 37) as u8, 0x3c + (n % 3) as u8])
        .collect();
    let mut out = Vec::new();
    let mut pack = PackBuilder::new(Class::Data, Vec::new(), &Vault::default());
    if let Ok(mut encoder) = Encoder::new(&Budget::default()) {
        for raw in [&text[..], &floats, b"short", b""] {
            if let Ok((codec, stored)) = encoder.encode(raw) {
                let raw_len = u32::try_from(raw.len()).unwrap_or(0);
                pack.add(digest(raw), raw_len, codec, stored);
                out.push((
                    "chunk",
                    [&[codec as u8][..], &raw_len.to_le_bytes(), stored].concat(),
                ));
            }
            out.push(("chunk_back", raw.to_vec()));
        }
    }
    let (body, entries) = pack.seal();
    let index = Index {
        packs: vec![ObjectRef {
            key: "workspaces/w/packs/p".into(),
            size: body.len() as u64,
            digest: digest(&body),
            version: None,
        }],
        entries: entries.iter().map(|e| (0, *e)).collect(),
    };
    out.push(("pack", body.clone()));
    out.push(("pack_sealed", body));
    out.extend(index.encode().ok().map(|bytes| ("index", bytes)));
    out.push(("index_payload", index.payload()));
    let (nodes, cache) = small_tree();
    for bytes in &nodes {
        out.push(("tree", bytes.clone()));
    }
    let parts = nodes.iter().flat_map(|n| {
        let length = u16::try_from(n.len()).unwrap_or(0).to_le_bytes();
        [length.to_vec(), n.clone()].concat()
    });
    out.push(("manifest", parts.collect()));
    out.push(("cache", cache[..cache.len() - 32].to_vec()));
    out
}

/// Extents, pieces, and directories of which the last holds the one before; and what a machine
/// remembers of such.
fn small_tree() -> (Vec<Vec<u8>>, Vec<u8>) {
    let mark = Digest([0xAA; 32]);
    let attrs = Attrs {
        mode: 0o644,
        uid: 1,
        gid: 2,
        mtime: Time {
            sec: -1,
            ns: 999_999_999,
        },
    };
    let extents = [Extent::Chunk { id: mark, len: 7 }, Extent::Hole { len: 1 << 20 }];
    let file = |name: &[u8], group, extents| Entry {
        name: name.into(),
        attrs,
        body: Body::File {
            size: (1 << 20) + 7,
            group,
            extents,
        },
        more: Extras::some(Vec::new(), Some([5; 16])),
    };
    let plain = |name: &[u8], body| Entry {
        name: name.into(),
        attrs,
        body,
        more: None,
    };
    let xattr = ((*b"user.a").into(), (*b"v").into());
    let inner = Node {
        attrs,
        more: Extras::some(vec![xattr], None),
        entries: vec![
            file(b"a", 0, Extents::Here(extents[..].into())),
            file(b"b", 9, Extents::Listed(mark)),
            plain(
                b"c\n",
                Body::Symlink {
                    target: (*b"../a").into(),
                },
            ),
            plain(b"d", Body::Fifo),
        ],
    };
    let dir = Entry {
        name: (*b"dir").into(),
        attrs: Attrs::default(),
        body: Body::Dir { node: mark },
        more: None,
    };
    let outer = Node {
        attrs,
        more: None,
        entries: vec![dir],
    };
    let nodes = vec![
        encode_pieces(&[(mark, 100)]),
        encode_extents(&extents),
        inner.encode(),
        outer.encode(),
    ];
    let known = |body| Known {
        attrs,
        ctime: attrs.mtime,
        ino: 77,
        body,
        more: Extras::some(Vec::new(), Some([5; 16])),
    };
    let content = KnownBody::File {
        size: (1 << 20) + 7,
        extents: extents[..].into(),
    };
    let entries = [
        (b"dir/a".to_vec(), known(content)),
        (b"dir/c\n".to_vec(), known(KnownBody::Symlink((*b"../a").into()))),
        (b"dir/d".to_vec(), known(KnownBody::Fifo)),
    ];
    let cache = encode_cache("base-1-2", vec![mark, digest(b"other")], &entries);
    (nodes, cache)
}
