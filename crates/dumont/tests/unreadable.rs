//! A file that its owner cannot read is named; nothing is left out in silence.
#![allow(clippy::unwrap_used, reason = "a test that cannot run the binary fails")]

mod world;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use world::{Run, World};

/// Whoever owns nothing.
const NOBODY: u32 = 65_534;

#[test]
fn an_import_with_a_file_that_cannot_be_read_fails_by_its_name() {
    let world = World::start(2);
    let from = world.dir.path().join("from");
    fs::create_dir_all(&from).unwrap();
    fs::write(from.join("readable"), "text").unwrap();
    fs::write(from.join("locked-away"), "text").unwrap();
    fs::set_permissions(from.join("locked-away"), fs::Permissions::from_mode(0o000)).unwrap();
    for path in [world.dir.path(), &from] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let at: serde_json::Value =
        serde_json::from_slice(&fs::read(world.dir.path().join("server.json")).unwrap()).unwrap();
    let token = fs::read_to_string(world.dir.path().join("admin.token")).unwrap();
    let from = from.display().to_string();
    let mut command = world.command();
    command
        .args(["workspace", "create", "box", "--no-deploy", "--from", &from])
        .env("DUMONT_URL", at["url"].as_str().unwrap())
        .env("DUMONT_TOKEN", token.trim())
        .env("HOME", "/nonexistent");
    // Root reads everything.
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY);
    }
    let run = Run::of(&mut command);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.err.contains("locked-away"), "{run:?}");
    assert!(run.err.contains("read every file"), "{run:?}");
    // Nothing of it became visible.
    let snapshots = world.json(&["snapshot", "list", "box"]);
    assert_eq!(snapshots.as_array().unwrap().len(), 0);
}
