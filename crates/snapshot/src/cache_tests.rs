use super::*;
use crate::extras::Extras;
use proptest::prelude::*;

fn sample(id: &str) -> Cache {
    let chunk = digest(b"chunk");
    let extents = [Extent::Chunk { id: chunk, len: 5 }, Extent::Hole { len: 1 << 40 }];
    let known = |body| Known {
        attrs: Attrs::default(),
        ctime: Time { sec: 1, ns: 2 },
        ino: 3,
        body,
        more: Extras::some(Vec::new(), Some([9; 16])),
    };
    let entries = [
        (
            b"a\nb\xff".to_vec(),
            known(KnownBody::File {
                size: 9,
                extents: extents.into(),
            }),
        ),
        (b"l".to_vec(), known(KnownBody::Symlink(b"t".as_slice().into()))),
        (b"p".to_vec(), known(KnownBody::Fifo)),
    ];
    Cache {
        snapshot_id: id.into(),
        root: digest(b"root"),
        started_ns: 100_000_000_000,
        entries: entries.into(),
        chunks: [chunk, digest(b"old")].into(),
    }
}

#[test]
fn round_trips() {
    let c = sample("base-1-2");
    assert_eq!(Cache::decode("c", &c.encode()).unwrap(), c);
}

#[test]
fn pending_counts_only_once_it_is_a_parent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cache");
    write_current(&path, &sample("base-1-1")).unwrap();
    write_pending(&path, &sample("incr-1-2")).unwrap();
    // The commit failed: the old cache holds, the pending one goes.
    assert_eq!(load(&path, "base-1-1").unwrap().snapshot_id, "base-1-1");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    // The commit succeeded: the pending one takes its place.
    write_pending(&path, &sample("incr-1-3")).unwrap();
    write_pending(&path, &sample("incr-1-4")).unwrap();
    assert_eq!(load(&path, "incr-1-3").unwrap().snapshot_id, "incr-1-3");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(
        load(&path, "base-1-1")
            .unwrap_err()
            .contains("belongs to incr-1-3")
    );
}

#[test]
fn racy_files_are_read_again() {
    let mut c = sample("x");
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
        let known = c.entries.get_mut(b"a\nb\xff".as_slice()).unwrap();
        (known.ctime, known.attrs.mtime) = (at(ctime), at(mtime));
        c.unchanged(b"a\nb\xff", &file(at(ctime), at(mtime))).is_some()
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
        let mut bytes = sample("base-1-2").encode();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        prop_assert!(Cache::decode("c", &bytes).is_err());
        _ = Cache::parse(Reader::new(&random), random.len() % 2 == 0);
    }
}
