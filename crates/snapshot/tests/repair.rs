//! A store that lost something: what can be had again is, and the rest is named.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Lines, NEVER, World, noise, settle, tree};
use dumont_core::key::WorkspaceKey;
use dumont_core::snapshot::{SnapshotHead, Verdict};
use dumont_snapshot::{Error, Repair, RestoreOptions, check, read_pack, repair, restore};
use std::fs;

/// Two snapshots in two data packs.
fn furnished(key: Option<WorkspaceKey>) -> (World, [SnapshotHead; 2]) {
    let mut world = World::new();
    world.key = key;
    let w = world.work();
    fs::create_dir(w.join("dir")).unwrap();
    fs::write(w.join("dir/first"), noise(200_000, 1)).unwrap();
    fs::write(w.join("small"), "small").unwrap();
    let (_, first, _) = world.snapshot();
    settle();
    fs::write(w.join("second"), noise(150_000, 2)).unwrap();
    let (_, second, _) = world.snapshot();
    (world, [first, second])
}

fn packs(world: &World) -> Vec<String> {
    let listed = fs::read_dir(world.temp.path().join("store/packs")).unwrap();
    let mut out: Vec<String> = listed
        .map(|e| format!("packs/{}", e.unwrap().file_name().to_string_lossy()))
        .collect();
    out.sort();
    out
}

/// Repairs, and points the heads to the new index as their keeper would.
fn repaired(world: &World, heads: &mut [SnapshotHead]) -> Repair {
    let key = world.key.as_ref();
    let done = repair(heads, &packs(world), &world.store, &world.store, key, &NEVER).unwrap();
    if let Some(index) = &done.index {
        heads.iter_mut().for_each(|h| h.indexes = vec![index.clone()]);
    }
    done
}

/// Spoils the chunks of a pack that are longer than `longer`, and says which pack.
fn spoil(world: &World, longer: u32) -> Vec<String> {
    let mut out = Vec::new();
    for key in packs(world) {
        let path = world.store.dir.path_of(&key).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let entries = read_pack(&key, &bytes).unwrap();
        for e in entries.iter().filter(|e| e.raw_len > longer) {
            bytes[e.offset as usize + 60] ^= 1;
            out.push(key.clone());
        }
        fs::write(path, bytes).unwrap();
    }
    out.dedup();
    out
}

fn damaged(world: &World, heads: &[SnapshotHead]) -> usize {
    let found = check(heads, &world.store, world.key.as_ref(), &NEVER).unwrap();
    found.damaged.len()
}

#[test]
fn a_store_that_is_whole_is_left_alone() {
    let (world, mut heads) = furnished(None);
    let done = repaired(&world, &mut heads);
    assert_eq!((done.index, done.damaged.len(), done.lost.len()), (None, 0, 0));
    assert!(done.packs_read >= 4 && done.bytes_read > 350_000);
}

#[test]
fn lost_and_damaged_indexes_are_rebuilt_from_the_packs() {
    for key in [None, Some(WorkspaceKey([4; 32]))] {
        let (world, mut heads) = furnished(key);
        let now = tree(&world.work());
        let [old, new] = [0, 1].map(|n| heads[1].indexes[n].key.clone());
        fs::remove_file(world.store.dir.path_of(&old).unwrap()).unwrap();
        let path = world.store.dir.path_of(&new).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 5;
        bytes[last] ^= 1;
        fs::write(path, bytes).unwrap();
        assert!(damaged(&world, &heads) > 0);
        let done = repaired(&world, &mut heads);
        assert_eq!(done.lost, []);
        let named: Vec<&str> = done.damaged.iter().map(|d| d.object.as_str()).collect();
        assert_eq!(named, [old.as_str(), &new]);
        assert_eq!(damaged(&world, &heads), 0);
        assert_eq!(world.restored(&heads[1]), now);
        assert_eq!(world.restored(&heads[0]).len(), now.len() - 1);
    }
}

/// Without its indexes nothing but the packs' headers tells a wrong key from damage.
#[test]
fn a_wrong_key_is_not_damage() {
    let (world, heads) = furnished(Some(WorkspaceKey([4; 32])));
    for index in &heads[1].indexes {
        fs::remove_file(world.store.dir.path_of(&index.key).unwrap()).unwrap();
    }
    for key in [None, Some(WorkspaceKey([5; 32]))] {
        let (packs, store) = (packs(&world), &world.store);
        let refused = repair(&heads, &packs, store, store, key.as_ref(), &NEVER).unwrap_err();
        assert!(matches!(refused, Error::Key { .. }), "{refused}");
    }
    let left = fs::read_dir(world.temp.path().join("store/indexes")).unwrap();
    assert_eq!(left.count(), 0, "nothing was written");
}

#[test]
fn a_header_that_lies_of_its_key_is_named_and_its_chunks_are_kept() {
    let (world, mut heads) = furnished(None);
    let lying = packs(&world).remove(0);
    let path = world.store.dir.path_of(&lying).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[11] ^= 1;
    fs::write(path, bytes).unwrap();
    let done = repaired(&world, &mut heads);
    assert_eq!(done.damaged.len(), 1);
    assert_eq!(done.damaged[0].object, lying);
    assert!(done.lost.is_empty());
}

#[test]
fn what_is_lost_is_named_and_stored_again_by_who_has_it() {
    let (mut world, mut heads) = furnished(None);
    let spoilt = spoil(&world, 180_000);
    assert_eq!(spoilt.len(), 1, "the first file is one chunk");
    let done = repaired(&world, &mut heads);
    assert_eq!(done.damaged.len(), 1);
    assert_eq!(done.damaged[0].object, spoilt[0]);
    let lost: Vec<_> = done
        .lost
        .iter()
        .map(|l| (&*l.snapshot_id, l.everything, &l.names[..]))
        .collect();
    let names = ["dir/first".to_owned()];
    let ids = [heads[0].snapshot_id.clone(), heads[1].snapshot_id.clone()];
    assert_eq!(
        lost,
        [(&*ids[0], false, &names[..]), (&*ids[1], false, &names[..])]
    );
    // All the rest restores; the lost file is refused by name and not made up.
    let out = tempfile::tempdir().unwrap();
    let refused = world.restore_to(&heads[1], out.path(), false).unwrap_err();
    assert!(refused.to_string().contains("dir/first"), "{refused}");
    let options = RestoreOptions {
        exclude: vec!["dir/first".into()],
        ..world.restore_options(out.path(), false)
    };
    let report = restore(&options, &heads[1], &world.store, &Lines::default()).unwrap();
    assert_eq!(
        (report.validation.validation, report.files_restored),
        (Verdict::Ok, 2)
    );
    // Its keeper lets the machine build on nothing: what it still has is stored again.
    world.parent = None;
    world.indexes = Vec::new();
    let (again, third, _) = world.snapshot();
    assert!(again.uploaded_bytes > 350_000, "{}", again.uploaded_bytes);
    assert_eq!(damaged(&world, std::slice::from_ref(&third)), 0);
    assert_eq!(world.restored(&third), tree(&world.work()));
    // And now the older ones have it, too.
    let done = repaired(&world, &mut heads);
    assert_eq!((done.lost.len(), done.index.is_some()), (0, true), "{done:?}");
    assert_eq!(world.restored(&heads[1]), tree(&world.work()));
}

#[test]
fn a_tree_that_is_gone_is_said_and_keeps_what_others_need() {
    let (world, mut heads) = furnished(None);
    // Small chunks are the trees' and the small file's.
    spoil(&world, 0);
    let done = repaired(&world, &mut heads);
    assert!(done.lost.iter().all(|l| l.everything));
    assert_eq!(done.lost.len(), 2);
    assert!(done.index.is_some());
}
