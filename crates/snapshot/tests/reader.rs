//! Looking into snapshots, checking them, and making room.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Lines, NEVER, World, noise, tree};
use dumont_core::snapshot::{SnapshotHead, Verdict};
use dumont_snapshot::{
    ChangeKind, EntryKind, Error, Reader, RestoreOptions, SnapshotOptions, check, compact, packs_of, restore,
    snapshot,
};
use proptest::prelude::*;
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

fn furnish(root: &Path) {
    fs::create_dir_all(root.join("src/deep")).unwrap();
    fs::create_dir(root.join("models")).unwrap();
    fs::write(root.join("src/a.py"), "print('a')\n").unwrap();
    fs::write(root.join("src/deep/b.py"), "print('b')\n").unwrap();
    fs::hard_link(root.join("src/a.py"), root.join("src/same.py")).unwrap();
    symlink("a.py", root.join("src/link")).unwrap();
    fs::write(root.join("models/w.bin"), noise(9_000_000, 1)).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
}

fn furnished() -> (World, SnapshotHead) {
    let mut world = World::new();
    furnish(&world.work());
    let (_, head, _) = world.snapshot();
    (world, head)
}

fn paths(list: &[dumont_snapshot::Entry]) -> Vec<String> {
    list.iter()
        .map(|e| String::from_utf8_lossy(&e.path).into_owned())
        .collect()
}

#[test]
fn a_snapshot_is_listed_and_read() {
    let (world, head) = furnished();
    let reader = Reader::open(&head, &world.store, None, &NEVER).unwrap();
    let all = reader.list(b"");
    assert_eq!(
        paths(&all),
        [
            "sparse",
            "models",
            "models/w.bin",
            "src",
            "src/a.py",
            "src/link",
            "src/same.py",
            "src/deep",
            "src/deep/b.py"
        ]
    );
    assert_eq!(all[4].kind, EntryKind::File { size: 11, links: 2 });
    assert_eq!(all[5].kind, EntryKind::Symlink(b"a.py".to_vec()));
    assert_eq!(paths(&reader.list(b"src/deep")), ["src/deep", "src/deep/b.py"]);
    assert_eq!(paths(&reader.list(b"src/a.py")), ["src/a.py"]);
    assert_eq!(paths(&reader.list(b"no/such")), [""; 0]);
    for name in ["models/w.bin", "sparse", "src/same.py"] {
        let mut out = Vec::new();
        reader.cat(name.as_bytes(), &mut out).unwrap();
        assert!(out == fs::read(world.work().join(name)).unwrap(), "{name}");
    }
    let refused = reader.cat(b"src", &mut Vec::new());
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
}

#[test]
fn two_snapshots_are_compared() {
    let (mut world, before) = furnished();
    let at = |world: &World, name: &str| world.work().join(name);
    fs::write(at(&world, "src/deep/b.py"), "print('c')\n").unwrap();
    fs::write(at(&world, "new"), "").unwrap();
    fs::remove_file(at(&world, "src/link")).unwrap();
    fs::rename(at(&world, "models"), at(&world, "weights")).unwrap();
    let w = fs::File::open(at(&world, "weights/w.bin")).unwrap();
    w.set_modified(std::time::UNIX_EPOCH).unwrap();
    fs::File::open(at(&world, "sparse"))
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH)
        .unwrap();
    let (_, after, _) = world.snapshot();
    let open = |head| Reader::open(head, &world.store, None, &NEVER).unwrap();
    let changes = open(&before).diff(&open(&after));
    let shown: Vec<_> = changes
        .iter()
        .map(|c| (String::from_utf8_lossy(&c.path).into_owned(), c.kind))
        .collect();
    let expected = [
        ("models", ChangeKind::Removed),
        ("models/w.bin", ChangeKind::Removed),
        ("new", ChangeKind::Added),
        ("sparse", ChangeKind::Attributes),
        ("src/deep/b.py", ChangeKind::Content),
        ("src/link", ChangeKind::Removed),
        ("weights", ChangeKind::Added),
        ("weights/w.bin", ChangeKind::Added),
    ];
    assert_eq!(shown, expected.map(|(p, k)| (p.to_owned(), k)));
    assert_eq!(open(&before).diff(&open(&before)), []);
}

#[test]
fn a_part_is_restored() {
    let (world, head) = furnished();
    let out = world.temp.path().join("part");
    let part = |globs: &[&str]| RestoreOptions {
        include: globs.iter().map(|g| (*g).into()).collect(),
        ..RestoreOptions::new(&out, &NEVER)
    };
    let report = restore(&part(&["src/**/*.py"]), &head, &world.store, &Lines::default()).unwrap();
    assert_eq!(report.validation.validation, Verdict::Ok);
    assert_eq!(report.files_restored, 3);
    assert!(report.downloaded_bytes < 64 << 10);
    let whole = tree(&world.work());
    for (path, text) in tree(&out) {
        if text.starts_with("file") {
            assert_eq!(whole.get(&path), Some(&text));
        }
    }
    assert!(!out.join("models").exists() && out.join("src/deep/b.py").exists());
    let nothing = restore(&part(&["*.exe"]), &head, &world.store, &Lines::default());
    assert!(matches!(nothing, Err(Error::Invalid { .. })));
}

/// What lies before the cut restores, and is not called lost.
#[test]
fn a_pack_that_was_cut_short_costs_what_lay_behind() {
    let mut world = World::new();
    for n in 0..4u64 {
        fs::write(world.work().join(format!("f{n}")), noise(500_000, n)).unwrap();
    }
    // Two readers would mix the chunks of their files in the pack.
    let options = SnapshotOptions {
        workers: 1,
        ..world.options()
    };
    let report = snapshot(&options, &world.store, &Lines::default()).unwrap();
    let head = world.commit(&report);
    let pack = report.packs.iter().max_by_key(|p| p.size).unwrap();
    let path = world.store.dir.path_of(&pack.key).unwrap();
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1_200_000)
        .unwrap();
    let found = check(std::slice::from_ref(&head), &world.store, None, &NEVER)
        .unwrap()
        .damaged;
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(
        (&found[0].object, found[0].files.len()),
        (&pack.key, 2),
        "{found:#?}"
    );
    for n in 0..4 {
        let lost = found[0].files.iter().any(|f| f.ends_with(&format!(":f{n}")));
        let out = world.temp.path().join(format!("out{n}"));
        let options = RestoreOptions {
            include: vec![format!("f{n}")],
            ..RestoreOptions::new(&out, &NEVER)
        };
        let restored = restore(&options, &head, &world.store, &Lines::default());
        assert_eq!(restored.is_err(), lost, "f{n}: {restored:?}");
    }
}

/// Two lines of snapshots may have a chunk each in a pack of its own.
#[test]
fn damage_to_one_copy_is_none_to_who_has_another() {
    let (mut world, _) = furnished();
    fs::write(world.work().join("late"), noise(500_000, 5)).unwrap();
    let (report, with, _) = world.snapshot();
    let pack = report.packs.iter().max_by_key(|p| p.size).unwrap();
    // One that builds on nothing stores all of it again.
    world.parent = None;
    world.indexes.clear();
    let (_, without, _) = world.snapshot();
    let path = world.store.dir.path_of(&pack.key).unwrap();
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let heads = [with.clone(), without.clone()];
    let found = check(&heads, &world.store, None, &NEVER).unwrap().damaged;
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(
        (&found[0].object, &found[0].snapshots),
        (&pack.key, &vec![with.snapshot_id])
    );
    let out = world.temp.path().join("out");
    restore(
        &RestoreOptions::new(&out, &NEVER),
        &without,
        &world.store,
        &Lines::default(),
    )
    .unwrap();
}

#[test]
fn damage_is_named_by_object_and_file() {
    let (mut world, first) = furnished();
    fs::write(world.work().join("late"), noise(500_000, 5)).unwrap();
    let (report, second, _) = world.snapshot();
    let heads = [first, second.clone()];
    let good = check(&heads, &world.store, None, &NEVER).unwrap();
    assert_eq!((good.snapshots, good.damaged.as_slice()), (2, &[][..]));
    assert!(good.bytes_read > 9_500_000);
    let spoil = |key: &str, at: usize| {
        let path = world.store.dir.path_of(key).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let data = report.packs.iter().find(|p| p.size > 400_000).unwrap();
    spoil(&data.key, 100_000);
    let found = check(&heads, &world.store, None, &NEVER).unwrap().damaged;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].object, data.key);
    assert_eq!(found[0].snapshots, std::slice::from_ref(&second.snapshot_id));
    assert_eq!(found[0].files, [format!("{}:late", second.snapshot_id)]);
    // Nothing else is called damaged, and a missing index costs its snapshot.
    fs::remove_file(world.store.dir.path_of(&second.indexes[1].key).unwrap()).unwrap();
    let found = check(&heads, &world.store, None, &NEVER).unwrap().damaged;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        (found[0].object.as_str(), found[0].problem.as_str()),
        (second.indexes[1].key.as_str(), "it is missing")
    );
}

/// What whoever keeps the heads does: new index for all, then the sweep.
fn make_room(world: &mut World, heads: &mut [SnapshotHead]) -> bool {
    let Some(done) = compact(heads, &world.store, &world.store, None, &NEVER).unwrap() else {
        return false;
    };
    for head in heads.iter_mut() {
        head.indexes = vec![done.index.clone()];
    }
    let mut needed: HashSet<String> = HashSet::from([done.index.key]);
    needed.extend(
        packs_of(&heads[0], &world.store, None, &NEVER)
            .unwrap()
            .into_iter()
            .map(|p| p.key),
    );
    for folder in ["packs", "indexes"] {
        for object in fs::read_dir(world.temp.path().join("store").join(folder)).unwrap() {
            let object = object.unwrap();
            let key = format!("{folder}/{}", object.file_name().to_string_lossy());
            if !needed.contains(&key) {
                fs::remove_file(object.path()).unwrap();
            }
        }
    }
    true
}

fn stored(world: &World) -> u64 {
    let packs = fs::read_dir(world.temp.path().join("store/packs")).unwrap();
    packs.map(|p| p.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn the_dead_make_room_and_the_living_stay() {
    let mut world = World::new();
    for i in 0..10 {
        fs::write(world.work().join(format!("f{i}")), noise(1_000_000, i)).unwrap();
    }
    world.snapshot();
    for i in 0..8 {
        fs::write(world.work().join(format!("f{i}")), noise(300_000, 100 + i)).unwrap();
    }
    let (_, head, _) = world.snapshot();
    let expected = tree(&world.work());
    let before = stored(&world);
    let mut heads = [head];
    assert!(make_room(&mut world, &mut heads));
    assert!(stored(&world) < before / 2, "{} of {before}", stored(&world));
    assert_eq!(world.restored(&heads[0]), expected);
    assert_eq!(check(&heads, &world.store, None, &NEVER).unwrap().damaged, []);
    // Nothing is left to gain.
    assert!(!make_room(&mut world, &mut heads));
    // The machine goes on with what it knew, and all that it builds on is there.
    world.indexes = heads[0].indexes.clone();
    fs::copy(world.work().join("f1"), world.work().join("copy")).unwrap();
    fs::write(world.work().join("f9"), noise(1_000_000, 0)).unwrap();
    let (report, head, _) = world.snapshot();
    assert_eq!(report.full_because, None);
    assert_eq!(world.restored(&head), tree(&world.work()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 100, ..ProptestConfig::default() })]

    /// Files come, go and come back, snapshots are dropped and room is made at any time: each
    /// one that is kept restores to its own moment.
    #[test]
    fn pruning_never_costs_a_kept_snapshot(
        steps in prop::collection::vec((prop::collection::vec((0usize..5, 0u64..6), 1..4), 0usize..6, any::<bool>()), 2..8),
    ) {
        let mut world = World::new();
        let mut kept: Vec<(SnapshotHead, _)> = Vec::new();
        for (edits, drop_one, prune) in steps {
            for (name, seed) in edits {
                let path = world.work().join(format!("f{name}"));
                if seed == 5 {
                    _ = fs::remove_file(path);
                } else {
                    fs::write(path, noise(80_000, seed)).unwrap();
                }
            }
            let (_, head, _) = world.snapshot();
            kept.push((head, tree(&world.work())));
            // Never the last one: the machine's next snapshot builds on it.
            if drop_one + 1 < kept.len() {
                kept.remove(drop_one);
            }
            if prune {
                let mut heads: Vec<_> = kept.iter().map(|k| k.0.clone()).collect();
                if make_room(&mut world, &mut heads) {
                    for (k, head) in kept.iter_mut().zip(&heads) {
                        k.0 = head.clone();
                    }
                    world.indexes = heads[0].indexes.clone();
                }
            }
        }
        for (head, expected) in &kept {
            prop_assert_eq!(&world.restored(head), expected);
        }
    }
}
