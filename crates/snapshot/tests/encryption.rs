//! With a key, the store learns nothing of what is in a workspace, and nothing else changes.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Lines, NEVER, World, noise, settle, tree};
use dumont_core::key::WorkspaceKey;
use dumont_core::snapshot::SnapshotType;
use dumont_snapshot::{
    Error, ObjectSource, Reader, check, compact, open_metadata, packs_of, read_pack, restore,
};
use std::fs;
use std::path::Path;

fn sealed(byte: u8) -> World {
    let mut world = World::new();
    world.key = Some(WorkspaceKey([byte; 32]));
    world
}

/// Weights, text that compresses, and a tree: names and contents that can be looked for.
fn fill(world: &World) {
    let w = world.work();
    fs::create_dir(w.join("directory-name")).unwrap();
    fs::write(
        w.join("directory-name/file-name"),
        "plain words of a file\n".repeat(500),
    )
    .unwrap();
    fs::write(w.join("noise"), noise(3_000_000, 1)).unwrap();
    fs::write(w.join("tiny"), "tiny content").unwrap();
    std::os::unix::fs::symlink("where-it-leads", w.join("link")).unwrap();
}

fn objects(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut out = Vec::new();
    for folder in fs::read_dir(dir).unwrap() {
        for object in fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = object.unwrap().path();
            out.push((path.display().to_string(), fs::read(path).unwrap()));
        }
    }
    out
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

#[test]
fn no_object_shows_a_name_or_a_byte_of_a_file() {
    let secrets: [&[u8]; 5] = [
        b"plain words",
        b"tiny content",
        b"file-name",
        b"directory-name",
        b"where-it-leads",
    ];
    let count = |world: &mut World| {
        fill(world);
        world.snapshot();
        let objects = objects(&world.temp.path().join("store"));
        assert!(objects.len() >= 4, "packs, index and metadata: {}", objects.len());
        let raw = noise(3_000_000, 1);
        let all: Vec<&[u8]> = secrets.into_iter().chain([&raw[..64]]).collect();
        let shown = |s: &&&[u8]| objects.iter().any(|o| holds(&o.1, s));
        all.iter().filter(shown).count()
    };
    assert_eq!(count(&mut sealed(1)), 0);
    // The search finds what is there: names in metadata.json, raw chunks in packs.
    assert!(count(&mut World::new()) >= 4);
}

#[test]
fn two_workspaces_share_no_id_and_no_length() {
    let ids = |mut world: World| {
        fill(&world);
        world.snapshot();
        let packs = fs::read_dir(world.temp.path().join("store/packs")).unwrap();
        let mut out = Vec::new();
        for pack in packs {
            for e in read_pack("p", &fs::read(pack.unwrap().path()).unwrap()).unwrap() {
                out.push((e.id, e.raw_len));
            }
        }
        out
    };
    let (one, two, open) = (ids(sealed(1)), ids(sealed(2)), ids(World::new()));
    for (a, b) in [(&one, &two), (&one, &open), (&two, &open)] {
        assert!(a.iter().all(|x| b.iter().all(|y| x.0 != y.0)));
        // Cuts of the large file, too, are the workspace's own.
        let long = |x: &&(_, u32)| x.1 > 300_000;
        assert!(a.iter().filter(long).all(|x| b.iter().all(|y| x.1 != y.1)));
    }
    // Of one workspace they are the same each time (directories hold times, and differ).
    let again = ids(sealed(1));
    let long = |x: &&(_, u32)| x.1 > 300_000;
    assert!(again.iter().filter(long).count() >= 2);
    assert!(again.iter().filter(long).all(|x| one.contains(x)));
}

#[test]
fn incrementals_reader_check_and_compaction_work_with_the_key() {
    let mut world = sealed(1);
    fill(&world);
    let (_, first, _) = world.snapshot();
    let before = tree(&world.work());
    settle();
    fs::remove_file(world.work().join("noise")).unwrap();
    fs::write(world.work().join("more"), "more").unwrap();
    let (report, second, lines) = world.snapshot();
    assert_eq!(report.snapshot_type, SnapshotType::Incremental);
    assert!(lines.has("Incremental: 2 files changed out of 4 total"));
    assert!(report.uploaded_bytes < 20_000, "{}", report.uploaded_bytes);
    assert_eq!(world.restored(&first), before);
    assert_eq!(world.restored(&second), tree(&world.work()));

    let key = world.key.clone();
    let key = key.as_ref();
    let mut out = Vec::new();
    let reader = Reader::open(&second, &world.store, key, &NEVER).unwrap();
    reader.cat(b"more", &mut out).unwrap();
    assert_eq!(out, b"more");
    let metadata = report.metadata.unwrap();
    let json = open_metadata("m", &world.store.get(&metadata.key, None).unwrap(), key.unwrap()).unwrap();
    assert!(json.starts_with(b"{\"snapshot_id\":\"incr-"));

    let heads = [second.clone()];
    let old = packs_of(&second, &world.store, key, &NEVER).unwrap();
    let done = compact(&heads, &world.store, &world.store, key, &NEVER)
        .unwrap()
        .unwrap();
    for pack in old.iter().filter(|p| !done.packs.contains(p)).take(1) {
        fs::remove_file(world.store.dir.path_of(&pack.key).unwrap()).unwrap();
    }
    let mut compacted = second;
    compacted.indexes = vec![done.index];
    let checked = check(&[compacted.clone()], &world.store, key, &NEVER).unwrap();
    assert_eq!(checked.damaged, []);
    assert_eq!(world.restored(&compacted), tree(&world.work()));
}

#[test]
fn no_key_a_wrong_key_and_a_needless_key_are_told_apart() {
    let mut world = sealed(1);
    fill(&world);
    let (_, head, _) = world.snapshot();
    let refused = |world: &World, key: Option<WorkspaceKey>, head: &_| {
        let out = world.temp.path().join("out");
        let options = dumont_snapshot::RestoreOptions {
            key,
            ..world.restore_options(&out, false)
        };
        let e = restore(&options, head, &world.store, &Lines::default()).unwrap_err();
        assert!(matches!(e, Error::Key { .. }), "{e}");
        assert!(!out.exists(), "something was written");
        e.to_string()
    };
    assert!(refused(&world, None, &head).contains("no key was given"));
    assert!(refused(&world, Some(WorkspaceKey([2; 32])), &head).contains("another key"));
    let mut open = World::new();
    fill(&open);
    let (_, head, _) = open.snapshot();
    assert!(refused(&open, Some(WorkspaceKey([1; 32])), &head).contains("is not encrypted"));
}

#[test]
fn a_sealed_chunk_cannot_be_passed_off_as_another() {
    let mut world = sealed(1);
    fill(&world);
    let (report, head, _) = world.snapshot();
    for pack in &report.packs {
        let path = world.store.dir.path_of(&pack.key).unwrap();
        let good = fs::read(&path).unwrap();
        let entries = read_pack("p", &good).unwrap();
        let mut bad = good.clone();
        // One bit of each sealed chunk.
        for e in &entries {
            bad[e.offset as usize + 48 + 30] ^= 1;
        }
        fs::write(&path, &bad).unwrap();
        let out = tempfile::tempdir().unwrap();
        let e = world.restore_to(&head, out.path(), false).unwrap_err();
        assert!(matches!(e, Error::Corrupt { .. }), "{e}");
        fs::write(&path, &good).unwrap();
    }
}
