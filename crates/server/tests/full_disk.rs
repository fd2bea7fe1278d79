//! A full disk on either side: a clear error, nothing lost, and it works again with room.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up its world fails")]

mod world;

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use world::World;

/// Does not compress.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(len).collect()
}

/// Unmounts when the test ends, however it ends.
struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    fn mount(at: &'a Path, size: &str) -> Self {
        run(
            "mount",
            &["-t", "tmpfs", "-o", size, "none", at.to_str().unwrap()],
        );
        Self(at)
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status().unwrap();
    assert!(status.success(), "{program} {args:?}: {status}");
}

async fn snapshot(world: &World) -> Value {
    let started = world.post("/workspaces/full/snapshots", json!({})).await;
    world.ended(started["workflow_id"].as_str().unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, to mount a small file system"]
async fn a_full_store_fails_the_snapshot_and_keeps_the_others() {
    let mut world = World::instant().await;
    world.stop_server().await;
    let objects = world.data_dir().join("objects");
    fs::remove_dir_all(&objects).unwrap();
    fs::create_dir(&objects).unwrap();
    let small = objects.clone();
    let _tmpfs = Tmpfs::mount(&small, "size=8m");
    world.start_server().await;

    let workspace = world.deployed("full").await;
    let id = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let dir = world.workspace_dir(&id).await;
    fs::write(dir.join("small"), noise(1 << 20)).unwrap();
    assert_eq!(snapshot(&world).await["status"], "done");

    fs::write(dir.join("big"), noise(24 << 20)).unwrap();
    let failed = snapshot(&world).await;
    assert_eq!(failed["status"], "failed", "{failed:#}");
    let message = failed["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("full") || message.contains("space"),
        "{failed:#}"
    );
    let listed = world.get("/workspaces/full/snapshots").await;
    assert_eq!(
        listed["items"].as_array().unwrap().len(),
        1,
        "the first one is still there"
    );
    assert_eq!(world.get("/workspaces/full").await["state"], "running");

    run("mount", &["-o", "remount,size=64m", objects.to_str().unwrap()]);
    let done = snapshot(&world).await;
    assert_eq!(done["status"], "done", "{done:#}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, to mount a small file system"]
async fn a_full_machine_fails_the_restore_by_name() {
    let world = World::instant().await;
    let workspace = world.deployed("full").await;
    let id = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    fs::write(world.workspace_dir(&id).await.join("big"), noise(8 << 20)).unwrap();
    assert_eq!(snapshot(&world).await["status"], "done");

    let about = world.admin("GET", &format!("/admin/instances/{id}"), None).await;
    let init = about["init_pid"].to_string();
    let mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", "/workspace"];
    run(
        "nsenter",
        &[&["-t", init.as_str(), "-m", "-p", "-r", "-w"], &mount[..]].concat(),
    );
    let started = world.post("/workspaces/full/restore", json!({})).await;
    let failed = world.ended(started["workflow_id"].as_str().unwrap()).await;
    assert_eq!(failed["error"]["code"], "disk_full", "{failed:#}");
    assert!(
        failed["error"]["message"]
            .as_str()
            .unwrap()
            .contains("/workspace"),
        "{failed:#}"
    );
    let listed = world.get("/workspaces/full/snapshots").await;
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
}
