//! Rented machines over SSH: programs, streams, terminals, forwarding.

// Helpers of tests are tests, which clippy cannot see.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Client, World, directory, echo, exec, exec_with, finish, port, round_trip, world, world_with};
use reqwest::Method;
use russh::ChannelMsg;
use russh::keys::{Algorithm, PrivateKey};
use serde_json::json;

fn noise(len: usize) -> Vec<u8> {
    let mut x = 1u32;
    let step = |_| {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        x as u8
    };
    (0..len).map(step).collect()
}

async fn a_machine_is_what_was_ordered(world: &World) {
    let order = json!({"env": {"GREETING": "hello there", "-p 8000:8000": "1"}, "label": "box",
        "onstart": "echo started > ~/onstart.out"});
    let (id, ssh) = world.machine(order).await;
    let out = exec(
        &ssh,
        "echo $VAST_CONTAINERLABEL $CONTAINER_ID; echo $GREETING; id -u; echo oops >&2; exit 3",
    )
    .await;
    assert_eq!(out.text(), format!("C.{id} {id}\nhello there\n0\n"));
    assert_eq!((out.stderr.as_slice(), out.status), (&b"oops\n"[..], Some(3)));
    let row = world.show(id).await;
    let smi = exec(
        &ssh,
        "nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits",
    )
    .await;
    let lines = smi.text();
    assert_eq!(lines.lines().count() as u64, row["num_gpus"].as_u64().unwrap());
    assert!(
        lines.lines().all(|l| row["gpu_ram"] == l.parse::<u64>().unwrap()),
        "{lines}"
    );
    let start = exec(
        &ssh,
        "for i in $(seq 100); do [ -s ~/onstart.out ] && break; sleep 0.05; done; cat ~/onstart.out",
    )
    .await;
    assert_eq!(start.text(), "started\n");
    assert_eq!(exec(&ssh, "kill -TERM $$").await.signal.as_deref(), Some("TERM"));
    assert_eq!(exec(&ssh, "no-such-program").await.status, Some(127));
    assert_eq!(world.destroy(id).await, reqwest::StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_in_namespaces() {
    let world = world().await;
    a_machine_is_what_was_ordered(&world).await;
    let (id, ssh) = world.machine(json!({})).await;
    let details = world
        .admin(Method::GET, &format!("/admin/instances/{id}"), None)
        .await;
    if details["isolation"] != "directory" {
        let out = exec(
            &ssh,
            "pwd; echo x > /workspace/file; ls -d /proc/[0-9]* | wc -l; touch /usr/x 2>&1",
        )
        .await;
        assert!(out.text().starts_with("/root\n"), "{}", out.text());
        assert!(out.text().contains("Read-only"), "{}", out.text());
        let file = std::path::Path::new(details["workspace_dir"].as_str().unwrap()).join("file");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "x\n");
        world.destroy(id).await;
    }
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_in_a_directory() {
    let world = world_with(directory).await;
    a_machine_is_what_was_ordered(&world).await;
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_streams_go_both_ways_at_once_on_many_channels() {
    let world = world().await;
    let (_, ssh) = world.machine(json!({})).await;
    let data = noise(8 << 20);
    let all = (0..6).map(|_| exec_with(&ssh, "cat", data.clone()));
    for out in futures_join(all).await {
        assert_eq!((out.stdout.len(), out.status), (data.len(), Some(0)));
        assert!(out.stdout == data);
    }
    // A program that ends without reading leaves the connection usable.
    assert_eq!(exec_with(&ssh, "exit 7", data.clone()).await.status, Some(7));
    let out = exec_with(&ssh, "sha256sum >&2; head -c 100000 /dev/zero", data).await;
    assert_eq!((out.stdout.len(), out.stderr.len()), (100_000, 68));
    world.shutdown().await;
}

async fn futures_join<T>(all: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut pending: Vec<_> = all.map(Box::pin).collect();
    let mut done = Vec::new();
    std::future::poll_fn(|cx| {
        pending.retain_mut(|f| match f.as_mut().poll(cx) {
            std::task::Poll::Ready(x) => {
                done.push(x);
                false
            }
            std::task::Poll::Pending => true,
        });
        if pending.is_empty() {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_works_and_hangs_up() {
    let world = world().await;
    let (_, ssh) = world.machine(json!({})).await;
    let channel = ssh.channel_open_session().await.unwrap();
    channel
        .request_pty(true, "vt100", 80, 24, 0, 0, &[])
        .await
        .unwrap();
    channel
        .exec(true, "test -t 0 && stty size && echo $TERM && tty")
        .await
        .unwrap();
    let out = finish(channel, Vec::new()).await;
    assert_eq!(out.status, Some(0));
    assert!(
        out.text().starts_with("24 80\r\nvt100\r\n/dev/pts/"),
        "{:?}",
        out.text()
    );

    let mut channel = ssh.channel_open_session().await.unwrap();
    channel
        .request_pty(true, "vt100", 80, 24, 0, 0, &[])
        .await
        .unwrap();
    channel
        .exec(
            true,
            "trap 'echo hup > /workspace/hup; exit' HUP; echo ready; while :; do sleep 0.05; done",
        )
        .await
        .unwrap();
    while let Some(message) = channel.wait().await {
        if matches!(message, ChannelMsg::Data { .. }) {
            break;
        }
    }
    channel.close().await.unwrap();
    let seen = exec(
        &ssh,
        "for i in $(seq 100); do [ -s /workspace/hup ] && break; sleep 0.05; done; cat /workspace/hup",
    )
    .await;
    assert_eq!(seen.text(), "hup\n");

    // Without a terminal nothing is signalled, but its input ends.
    let channel = ssh.channel_open_session().await.unwrap();
    channel
        .exec(true, "cat >/dev/null; echo eof > /workspace/eof")
        .await
        .unwrap();
    channel.close().await.unwrap();
    let seen = exec(
        &ssh,
        "for i in $(seq 100); do [ -s /workspace/eof ] && break; sleep 0.05; done; cat /workspace/eof",
    )
    .await;
    assert_eq!(seen.text(), "eof\n");
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_left_a_child_behind_has_still_ended() {
    let world = world().await;
    let (_, ssh) = world.machine(json!({})).await;
    let mut channel = ssh.channel_open_session().await.unwrap();
    channel.exec(true, "sleep 600 & echo out; exit 4").await.unwrap();
    let status = tokio::time::timeout(common::LIMIT, async {
        loop {
            match channel.wait().await {
                Some(ChannelMsg::ExitStatus { exit_status }) => return Some(exit_status),
                Some(_) => {}
                None => return None,
            }
        }
    });
    assert_eq!(status.await.unwrap(), Some(4));
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forwarding_in_both_directions() {
    let world = world().await;
    let id = world.rent(json!({})).await;
    let row = world.until_status(id, "running").await;
    let target = echo().await;
    let client = Client {
        forward_to: Some(target),
    };
    let ssh = world.login_with(port(&row), &world.key, client).await.unwrap();
    let bound = ssh.tcpip_forward("127.0.0.1", 0).await.unwrap();
    assert!(bound > 0);
    let data = noise(8 << 20);
    let back = round_trip(u16::try_from(bound).unwrap(), data.clone()).await;
    assert!(back == data, "{} of {} bytes came back", back.len(), data.len());
    ssh.cancel_tcpip_forward("127.0.0.1", bound).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert!(
        tokio::net::TcpStream::connect(("127.0.0.1", bound as u16))
            .await
            .is_err()
    );

    let channel = ssh
        .channel_open_direct_tcpip("127.0.0.1", target.port().into(), "127.0.0.1", 1)
        .await
        .unwrap();
    let out = finish(channel, data.clone()).await;
    assert!(out.stdout == data);
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_known_keys_get_in_and_attached_ones_at_once() {
    let world = world().await;
    let (id, _ssh) = world.machine(json!({})).await;
    let (other, _ssh) = world.machine(json!({})).await;
    let (port_one, port_two) = (port(&world.show(id).await), port(&world.show(other).await));
    let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
    assert!(world.login_with(port_one, &key, Client::default()).await.is_err());
    let text = key.public_key().to_openssh().unwrap();
    world
        .api(
            Method::POST,
            &format!("/api/v0/instances/{id}/ssh/"),
            Some(json!({"ssh_key": text})),
        )
        .await;
    assert!(world.login_with(port_one, &key, Client::default()).await.is_ok());
    assert!(world.login_with(port_two, &key, Client::default()).await.is_err());
    world.shutdown().await;
}
