//! An encrypted workspace as its owner sees it: made, read with the key, and by nobody without.
#![allow(clippy::unwrap_used, reason = "a test that cannot run the binary fails")]

mod world;

use std::fs;
use std::path::{Path, PathBuf};
use world::{Run, World};

const TEXT: &str = "a line that no store may see\n";

fn stored(at: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            stored(&path, out);
        } else {
            out.push(path);
        }
    }
}

/// The one encrypted, the other not; rented is nothing.
fn made(world: &World) {
    let from = world.dir.path().join("from");
    fs::create_dir_all(from.join("names")).unwrap();
    fs::write(from.join("names/secret-name.txt"), TEXT.repeat(100)).unwrap();
    let from = from.to_str().unwrap();
    world.json(&[
        "workspace",
        "create",
        "sealed",
        "--from",
        from,
        "--no-deploy",
        "--encrypt",
    ]);
    world.json(&["workspace", "create", "open", "--from", from, "--no-deploy"]);
}

#[test]
fn its_snapshots_open_with_its_key_only() {
    let world = World::start(2);
    made(&world);
    let out = |name: &str| world.dir.path().join(name).display().to_string();

    // The server has the key, and so has whoever asks it with a token.
    let cat = world.run(&["snapshot", "cat", "sealed", "names/secret-name.txt"]);
    assert_eq!((cat.code, cat.out), (0, TEXT.repeat(100)), "{}", cat.err);
    let ls = world.json(&["snapshot", "ls", "sealed"]);
    assert!(ls.to_string().contains("secret-name.txt"));
    let check = world.json(&["snapshot", "check", "sealed"]);
    assert_eq!(check["damaged"].as_array().unwrap().len(), 0);
    assert_eq!(world.run(&["snapshot", "prune", "sealed"]).code, 0);
    assert_eq!(
        world
            .run(&["snapshot", "read", "sealed", "--to", &out("one")])
            .code,
        0
    );

    // The store alone does not.
    let ids: Vec<String> = ["sealed", "open"]
        .iter()
        .map(|name| {
            world.json(&["workspace", "show", name])["id"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let objects = world.dir.path().join("objects/objects");
    let shown = |id: &String| {
        let (mut files, needles) = (Vec::new(), [TEXT.trim(), "secret-name"]);
        stored(&objects.join("workspaces").join(id), &mut files);
        assert!(files.len() >= 4, "{files:?}");
        let holds = |p: &PathBuf| {
            let bytes = fs::read(p).unwrap();
            let has = |n: &&str| bytes.windows(n.len()).any(|w| w == n.as_bytes());
            needles.iter().any(has)
        };
        files.iter().filter(|p| holds(p)).count()
    };
    assert_eq!(shown(&ids[0]), 0);
    assert!(shown(&ids[1]) > 0, "the search finds what is there");

    // A copy of the store, and the key in a file, in the environment, or not at all.
    let root = world.dir.path().join("copy");
    copy(&objects, &root);
    let only = |id: &str| fs::remove_dir_all(root.join("workspaces").join(id)).unwrap();
    only(&ids[1]);
    let root = root.display().to_string();
    let key_file = out("key");
    let key = world.run(&["workspace", "key", "sealed", "--out", &key_file]);
    assert_eq!(key.code, 0);
    assert!(key.err.contains("so is the data"), "{}", key.err);
    assert_eq!(
        world
            .run(&["workspace", "key", "sealed", "--out", &key_file])
            .code,
        1,
        "never over a file"
    );
    let read = |to: &str, more: &[&str]| {
        let to = out(to);
        world.run(&[&["snapshot", "read", &root, "--to", &to], more].concat())
    };
    assert_eq!(read("two", &["--key-file", &key_file]).code, 0);
    let text = fs::read_to_string(world.dir.path().join("two/names/secret-name.txt")).unwrap();
    assert_eq!(text, TEXT.repeat(100));
    let variable = fs::read_to_string(&key_file).unwrap();
    let by_variable = Run::of(
        world
            .command()
            .args(["snapshot", "read", &root, "--to", &out("three")])
            .env("DUMONT_SNAPSHOT_KEY", variable.trim()),
    );
    assert_eq!(by_variable.code, 0, "{by_variable:?}");
    let without = read("four", &[]);
    assert!(
        without.code == 1 && without.err.contains("no key was given"),
        "{without:?}"
    );
    assert!(!world.dir.path().join("four").exists());
    let other = out("other-key");
    fs::write(&other, "0".repeat(64)).unwrap();
    let wrong = read("five", &["--key-file", &other]);
    assert!(wrong.code == 1 && wrong.err.contains("another key"), "{wrong:?}");

    // With the key a lost index is rebuilt from the packs: without a server in the copy,
    let lost = PathBuf::from(&root)
        .join("workspaces")
        .join(&ids[0])
        .join("indexes");
    for index in fs::read_dir(&lost).unwrap() {
        fs::write(index.unwrap().path(), "no index").unwrap();
    }
    let mend = |more: &[&str]| world.run(&[&["snapshot", "repair", &root], more].concat());
    let without = mend(&[]);
    assert!(
        without.code == 1 && without.err.contains("no key was given"),
        "{without:?}"
    );
    let wrong = mend(&["--key-file", &other]);
    assert!(wrong.code == 1 && wrong.err.contains("another key"), "{wrong:?}");
    let with = ["--key-file", key_file.as_str()];
    let repaired = mend(&with);
    assert!(
        repaired.code == 0 && repaired.out.contains("1 snapshot pointed to a new index"),
        "{repaired:?}"
    );
    assert_eq!(read("six", &with).code, 0);
    let text = fs::read_to_string(world.dir.path().join("six/names/secret-name.txt")).unwrap();
    assert_eq!(text, TEXT.repeat(100));
    let repaired = mend(&with);
    assert!(
        repaired.code == 0 && repaired.out.contains("nothing had to be done"),
        "{repaired:?}"
    );
    // and by the server in its own store.
    let indexes = objects.join("workspaces").join(&ids[0]).join("indexes");
    for index in fs::read_dir(&indexes).unwrap() {
        fs::remove_file(index.unwrap().path()).unwrap();
    }
    assert_eq!(world.run(&["snapshot", "check", "sealed"]).code, 1);
    let repaired = world.run(&["snapshot", "repair", "sealed"]);
    assert_eq!(repaired.code, 0, "{repaired:?}");
    assert!(
        repaired.out.contains("1 snapshot pointed to a new index"),
        "{repaired:?}"
    );
    assert_eq!(world.run(&["snapshot", "check", "sealed"]).code, 0);

    let none = world.run(&["workspace", "key", "open"]);
    assert!(none.code == 1 && none.err.contains("not encrypted"), "{none:?}");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}
