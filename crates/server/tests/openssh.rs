//! The same life on machines whose SSH is OpenSSH's own: deploy, snapshot and restore through
//! its reverse forwarding, keys that change on the way, a peer that freezes, a host that is
//! somebody else. And on machines that have neither glibc nor bash.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot set up its world fails"
)]

mod world;

use dumont_market::Sshd;
use dumont_server::providers::SshEndpoint;
use dumont_server::ssh::{self, Connection, SshError};
use russh::ChannelMsg;
use russh::keys::PrivateKey;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use world::{World, spec};

const GIB: usize = 1 << 30;

async fn openssh(options: &[&str]) -> World {
    let options = options.iter().map(|o| (*o).to_owned()).collect();
    World::on_market(|config| {
        config.time_scale = 0.0;
        config.machines = 12;
        config.sshd = Sshd::OpenSsh(options);
    })
    .await
}

/// A machine, how it is reached, and the key that opens it.
struct Host {
    endpoint: SshEndpoint,
    key: Arc<PrivateKey>,
    dir: PathBuf,
    init: String,
}

async fn host(world: &World, name: &str) -> Host {
    let workspace = world.deployed(name).await;
    let instance = &workspace["instance"];
    let about = world
        .admin(
            "GET",
            &format!("/admin/instances/{}", instance["instance_id"].as_str().unwrap()),
            None,
        )
        .await;
    let key = ssh::load_or_create(&world.data_dir().join("id_ed25519")).unwrap();
    Host {
        endpoint: SshEndpoint {
            host: instance["ssh_host"].as_str().unwrap().to_owned(),
            port: instance["ssh_port"].as_u64().unwrap() as u16,
        },
        key: Arc::new(key),
        dir: about["dir"].as_str().unwrap().into(),
        init: about["init_pid"].to_string(),
    }
}

impl Host {
    async fn connect(&self, pinned: Option<&str>) -> Result<Connection, SshError> {
        ssh::connect(&self.endpoint, "root", &self.key, pinned, None).await
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("sshd.log")).unwrap_or_default()
    }

    /// Every process of the machine but its init, and those outside that wait for them.
    fn processes(&self) -> Vec<String> {
        let space = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let ours = space(&self.init).unwrap();
        let entered = format!("nsenter\0-t\0{}\0", self.init);
        let waits = |pid: &str| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).starts_with(&entered)
        };
        let pids = fs::read_dir("/proc").unwrap().flatten();
        pids.filter_map(|e| e.file_name().into_string().ok())
            .filter(|pid| *pid != self.init && (space(pid).as_ref() == Some(&ours) || waits(pid)))
            .collect()
    }

    fn signal_all(&self, signal: &str) {
        let _ = Command::new("kill").arg(signal).args(self.processes()).status();
    }
}

/// Runs a line, sends it `input` bytes of zeros, and counts what comes back.
async fn stream(connection: &Connection, line: &str, input: usize) -> usize {
    let (mut reader, writer) = connection.exec(line).await.unwrap().split();
    let send = tokio::spawn(async move {
        let chunk = vec![0_u8; 1 << 20];
        for at in (0..input).step_by(chunk.len()) {
            let part = &chunk[..chunk.len().min(input - at)];
            writer.data_bytes(part.to_vec()).await.unwrap();
        }
        writer.eof().await.unwrap();
        writer
    });
    let (mut got, mut status) = (0, None);
    while let Some(message) = reader.wait().await {
        match message {
            ChannelMsg::Data { data } => got += data.len(),
            ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
            _ => {}
        }
    }
    assert_eq!(status, Some(0), "{line}");
    send.await.unwrap();
    got
}

/// Neither compresses nor repeats itself: all of it has to travel.
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

/// Deploy, a snapshot, a hard loss, and every byte on the next machine.
async fn a_whole_life(world: &World, name: &str, image: &str) -> Value {
    let mut wanted = spec(name);
    wanted["image"] = json!(image);
    let created = world.post("/workspaces", json!({ "spec": wanted })).await;
    world.done(&created["workflow_id"]).await;
    let workspace = world.get(&format!("/workspaces/{name}")).await;
    let first = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    let dir = world.workspace_dir(&first).await;
    let noise = noise(24 << 20);
    fs::write(dir.join("weights.bin"), &noise).unwrap();
    let started = world
        .post(&format!("/workspaces/{name}/snapshots"), json!({}))
        .await;
    world.done(&started["workflow_id"]).await;
    world.kill(&first).await;
    let event = world.failed_over(name).await;
    assert_eq!(event["success"], true, "{event:#}");
    let workspace = world.get(&format!("/workspaces/{name}")).await;
    let second = workspace["instance"]["instance_id"].as_str().unwrap().to_owned();
    assert_ne!(first, second);
    let dir = world.workspace_dir(&second).await;
    assert!(fs::read(dir.join("weights.bin")).unwrap() == noise);
    world.settles_at(1).await;
    world
        .admin("GET", &format!("/admin/instances/{second}"), None)
        .await
}

/// With keys exchanged anew after every megabyte, so that a snapshot and a restore meet many.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: OpenSSH's server on a machine of its own"]
async fn a_lost_machine_is_replaced_over_openssh() {
    let world = openssh(&["RekeyLimit 1M", "LogLevel DEBUG1"]).await;
    let about = a_whole_life(&world, "life", "pytorch/pytorch:latest").await;
    let log = fs::read_to_string(PathBuf::from(about["dir"].as_str().unwrap()).join("sshd.log")).unwrap();
    assert!(log.contains("Accepted publickey for root"), "{log}");
    let rekeyed = log.matches("set_newkeys: rekeying").count();
    assert!(rekeyed > 8, "{rekeyed} times");
}

/// Ours is the client that asks for new keys after a gigabyte, in either direction.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: OpenSSH's server on a machine of its own"]
async fn more_than_a_gigabyte_passes_one_connection() {
    let world = openssh(&["LogLevel DEBUG1"]).await;
    let host = host(&world, "bulk").await;
    let connection = host.connect(None).await.unwrap();
    let much = GIB + (64 << 20);
    assert_eq!(
        stream(&connection, &format!("head -c {much} /dev/zero"), 0).await,
        much
    );
    assert_eq!(stream(&connection, "wc -c >/dev/null", much).await, 0);
    assert_eq!(stream(&connection, "echo still here", 0).await, 11);
    let log = host.log();
    assert!(log.contains("set_newkeys: rekeying"), "{log}");
}

/// Its kernel answers still, so nothing but the keepalive can tell.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: OpenSSH's server on a machine of its own"]
async fn a_frozen_peer_is_noticed_and_a_thawed_one_is_used_again() {
    let world = openssh(&[]).await;
    let host = host(&world, "frozen").await;
    let connection = host.connect(None).await.unwrap();
    assert_eq!(stream(&connection, "echo up", 0).await, 3);
    host.signal_all("-STOP");
    let begin = Instant::now();
    while !connection.is_closed() {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "the keepalive says nothing"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    host.signal_all("-CONT");
    let again = host.connect(Some(connection.host_key())).await.unwrap();
    assert_eq!(stream(&again, "echo up", 0).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: OpenSSH's server on a machine of its own"]
async fn a_host_key_is_pinned_and_another_one_is_refused_by_name() {
    let world = openssh(&[]).await;
    let host = host(&world, "pinned").await;
    let pinned = host.connect(None).await.unwrap().host_key().to_owned();
    host.connect(Some(&pinned)).await.unwrap();
    // What a stranger at the same address looks like: OpenSSH reads its key at each connection.
    let stranger = ssh::load_or_create(&host.dir.join("stranger")).unwrap();
    fs::rename(
        host.dir.join("stranger"),
        host.dir.join("etc/ssh/ssh_host_ed25519_key"),
    )
    .unwrap();
    let error = host.connect(Some(&pinned)).await.unwrap_err();
    let SshError::HostKeyChanged { expected, found, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(*expected, pinned);
    assert_eq!(
        *found,
        ssh::public_line(stranger.public_key())
            .unwrap()
            .trim_end_matches(" dumont")
    );
    assert!(
        error.to_string().contains("another machine answers there"),
        "{error}"
    );
    // Nor may one log in with a key that the account does not have.
    let nobody = Host {
        key: Arc::new(stranger),
        ..host
    };
    assert!(matches!(nobody.connect(None).await, Err(SshError::Denied(_))));
}

/// All it has is busybox: no glibc, no bash, no coreutils, no /usr.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and busybox-static"]
async fn a_machine_like_alpine_is_enough() {
    let world = World::instant().await;
    let about = a_whole_life(&world, "small", "alpine:3.20").await;
    let root = PathBuf::from(format!("/proc/{}/root", about["init_pid"]));
    assert!(!root.join("bin/bash").exists() && !root.join("lib").exists());
    assert_eq!(
        fs::read_link(root.join("bin/gzip")).unwrap().file_name().unwrap(),
        "busybox"
    );
}
