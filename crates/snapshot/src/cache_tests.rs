use super::*;
use crate::extras::Extras;
use crate::format::digest;
use proptest::prelude::*;
use std::io::Cursor;

fn entries() -> Vec<(Vec<u8>, Known)> {
    let extents = [
        Extent::Chunk {
            id: digest(b"chunk"),
            len: 5,
        },
        Extent::Hole { len: 1 << 40 },
        Extent::Chunk {
            id: digest(b"other"),
            len: 7,
        },
    ];
    let known = |body| Known {
        attrs: Attrs::default(),
        ctime: Time { sec: 1, ns: 2 },
        ino: 3,
        body,
        more: Extras::some(Vec::new(), Some([9; 16])),
    };
    let file = |extents: &[Extent]| KnownBody::File {
        size: 9,
        extents: extents.into(),
    };
    vec![
        (b"a\nb\xff".to_vec(), known(file(&extents))),
        (b"b".to_vec(), known(file(&extents[..1]))),
        (b"c".to_vec(), known(file(&[]))),
        (b"l".to_vec(), known(KnownBody::Symlink(b"t".as_slice().into()))),
        (b"p".to_vec(), known(KnownBody::Fifo)),
    ]
}

fn with_sample<T>(id: &str, f: impl FnOnce(NewCache<'_>) -> T) -> T {
    f(NewCache {
        snapshot_id: id,
        root: digest(b"root"),
        started_ns: 100_000_000_000,
        known: [&b"old"[..], b"node", b"chunk"].map(digest).to_vec(),
        nodes: &[digest(b"node")].into(),
        entries: &|each| entries().iter().for_each(|(path, known)| each(path, known)),
    })
}

fn encoded() -> Vec<u8> {
    let mut out = Vec::new();
    with_sample("base-1-2", |c| c.encode(&mut out)).unwrap();
    out
}

#[test]
fn round_trips() {
    let mut cache = Cache::open("c", Cursor::new(encoded())).unwrap();
    assert_eq!(
        (&*cache.snapshot_id, cache.started_ns),
        ("base-1-2", 100_000_000_000)
    );
    for _ in 0..2 {
        let mut found = Vec::new();
        cache
            .each(&mut |path, known| found.push((path.to_vec(), known)))
            .unwrap();
        assert_eq!(found, entries());
    }
    // What nothing is made of any more is forgotten, and what was not seen is not known.
    let mut known = [digest(b"chunk"), digest(b"node")];
    known.sort_unstable();
    assert_eq!(cache.known().unwrap(), known);
}

#[test]
fn a_cache_of_version_2_is_read() {
    // Its entries lie in the order of a hash map.
    let file = File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/version-2/cache")).unwrap();
    let (mut cache, mut paths) = (Cache::open("c", file).unwrap(), Vec::new());
    let known = cache.known().unwrap();
    cache
        .each(&mut |path, k| {
            assert!(k.chunks().all(|id| known.contains(id)));
            paths.push(String::from_utf8(path.to_vec()).unwrap());
        })
        .unwrap();
    paths.sort();
    let all = [
        "empty",
        "hole",
        "link",
        "sub/again",
        "sub/floats",
        "sub/noise",
        "text",
    ];
    assert_eq!(paths, all);
}

#[test]
fn entries_longer_than_what_is_read_at_once() {
    let extents: Vec<_> = (0..200_000u32)
        .map(|n| Extent::Chunk {
            id: digest(&[(n % 7) as u8]),
            len: n,
        })
        .collect();
    let mut known = entries().remove(0).1;
    known.body = KnownBody::File {
        size: 1,
        extents: extents[..].into(),
    };
    let mut bytes = Vec::new();
    with_sample("base-1-2", |c| {
        let entries: Entries<'_> = &|each| (0u8..9).for_each(|n| each(&[b'a' + n], &known));
        NewCache { entries, ..c }.encode(&mut bytes)
    })
    .unwrap();
    let (mut cache, mut seen) = (Cache::open("c", Cursor::new(bytes)).unwrap(), 0);
    cache
        .each(&mut |path, found| {
            assert_eq!((path, &found), (&[b'a' + seen][..], &known));
            seen += 1;
        })
        .unwrap();
    assert_eq!(seen, 9);
}

#[test]
fn pending_counts_only_once_it_is_a_parent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cache");
    let pending = |id: &str| with_sample(id, |c| write_pending(&path, c)).unwrap();
    with_sample("base-1-1", |c| write_current(&path, c)).unwrap();
    pending("incr-1-2");
    // The commit failed: the old cache holds, the pending one goes.
    assert_eq!(load(&path, "base-1-1").unwrap().snapshot_id, "base-1-1");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    // The commit succeeded: the pending one takes its place.
    pending("incr-1-3");
    pending("incr-1-4");
    assert_eq!(load(&path, "incr-1-3").unwrap().snapshot_id, "incr-1-3");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let why = load(&path, "base-1-1").err().unwrap();
    assert!(why.contains("belongs to incr-1-3"), "{why}");
}

#[test]
fn racy_files_are_read_again() {
    let mut known = entries().remove(0).1;
    let at = |ns: i64| Time {
        sec: ns / 1_000_000_000,
        ns: (ns % 1_000_000_000) as u32,
    };
    let file = |ctime: Time, mtime: Time| {
        let f = tempfile::tempfile().unwrap();
        let mut meta = Meta::fstat(&f).unwrap();
        (meta.ctime, meta.attrs.mtime, meta.ino, meta.size) = (ctime, mtime, 3, 9);
        meta
    };
    let mut check = |ctime: i64, mtime: i64| {
        (known.ctime, known.attrs.mtime) = (at(ctime), at(mtime));
        let now = file(at(ctime), at(mtime));
        known.unchanged(100_000_000_000, &now).is_some()
    };
    let old = 50_000_000_001;
    assert!(check(old, old) && check(old, 0));
    assert!(!check(100_000_000_001, old), "changed after the start");
    assert!(
        !check(99_999_999_999, old),
        "changed in the tick before the start"
    );
    assert!(!check(99_000_000_000, old), "a clock of whole seconds");
    assert!(!check(old, 200_000_000_001), "its mtime is in the future");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn damage_is_found_and_never_panics(at in 0usize..10_000, bit in 0u8..8, random in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = encoded();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        prop_assert!(Cache::open("c", Cursor::new(&bytes)).is_err());
        // What has a digest that fits may still be nonsense behind it.
        let mut nonsense = encoded()[..16].to_vec();
        nonsense.extend(&random);
        nonsense.extend(digest(&nonsense).0);
        if let Ok(mut cache) = Cache::open("c", Cursor::new(&nonsense)) {
            _ = (cache.known(), cache.each(&mut |_, _| {}));
        }
    }
}
