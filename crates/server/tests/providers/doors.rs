//! Which door is tried, and whose it must be: a whole link over OpenSSH's server.

use super::bench::key;
use super::sshd::Sshd;
use dumont_server::AgentBinary;
use dumont_server::link::{Link, LinkError, Target};
use dumont_server::providers::{Access, SshEndpoint};
use dumont_server::ssh::{SshError, connect};
use std::net::TcpListener;
use tempfile::TempDir;

fn user() -> String {
    std::env::var("USER").unwrap_or_else(|_| "root".into())
}

fn at(port: u16) -> SshEndpoint {
    SshEndpoint {
        host: "127.0.0.1".into(),
        port,
    }
}

/// A port that nobody listens on.
fn closed() -> u16 {
    TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

struct Scene {
    dir: TempDir,
    target: Target,
    line: String,
}

/// Doors in the order they are tried.
fn scene(ports: &[u16]) -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let (line, key) = key(&dir, "ours");
    let target = Target {
        endpoints: ports.iter().map(|p| at(*p)).collect(),
        key,
        access: Access {
            user: Some(user()),
            ..Access::default()
        },
        path: dir.path().join("workspace").to_str().unwrap().to_owned(),
        agent: AgentBinary {
            gz: dumont_agent_embed::AGENT_GZ,
            digest: dumont_agent_embed::AGENT_DIGEST,
        },
        objects: None,
        store_ca: None,
    };
    Scene { dir, target, line }
}

async fn host_key(scene: &Scene, port: u16) -> String {
    let open = connect(&at(port), &user(), &scene.target.key, None, None)
        .await
        .unwrap();
    open.host_key().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_door_is_tried_when_the_first_is_closed() {
    let sshd = Sshd::new();
    let scene = scene(&[closed(), sshd.port]);
    sshd.let_in(&scene.line);
    let link = Link::open(&scene.target).await.unwrap();
    assert_eq!(*link.endpoint(), at(sshd.port));
    // The agent is there, in the home that sshd gave, and not in ours.
    assert!(sshd.home().join(".dumont").is_dir());
    assert_eq!(link.facts().hostname, link.facts().hostname.trim());
    link.close().await;
}

/// A port that was given to somebody else: its host key is another, and it learns nothing of us.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_at_the_first_door_is_passed_by() {
    let (stranger, ours) = (Sshd::new(), Sshd::new());
    let mut scene = scene(&[stranger.port, ours.port]);
    for sshd in [&stranger, &ours] {
        sshd.let_in(&scene.line);
    }
    scene.target.access.host_key = Some(host_key(&scene, ours.port).await);
    let link = Link::open(&scene.target).await.unwrap();
    assert_eq!(*link.endpoint(), at(ours.port));
    assert!(!stranger.home().join(".dumont").exists());
    link.close().await;
    // Where there is no other door, it is said by name.
    scene.target.endpoints.truncate(1);
    let refused = Link::open(&scene.target).await.unwrap_err();
    assert!(
        matches!(refused, LinkError::Ssh(SshError::HostKeyChanged { .. })),
        "{refused}"
    );
}

/// One pin per instance, kept however often the address is used again.
#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_key_is_asked_for_ever_after() {
    let mut sshd = Sshd::new();
    let mut scene = scene(&[sshd.port]);
    sshd.let_in(&scene.line);
    let link = Link::open(&scene.target).await.unwrap();
    scene.target.access.host_key = Some(link.host_key().to_owned());
    link.close().await;
    Link::open(&scene.target).await.unwrap().close().await;
    sshd.stop();
    sshd.new_host_key();
    sshd.start();
    for _ in 0..2 {
        let refused = Link::open(&scene.target).await.unwrap_err();
        assert!(
            matches!(refused, LinkError::Ssh(SshError::HostKeyChanged { .. })),
            "{refused}"
        );
    }
    // Another instance at the same address has a pin of its own.
    scene.target.access.host_key = None;
    Link::open(&scene.target).await.unwrap().close().await;
    drop(scene.dir);
}

/// As while keys are on their way: it is the key that is missing, and nothing else is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_not_in_yet_is_told_from_a_closed_door() {
    let sshd = Sshd::new();
    let scene = scene(&[sshd.port]);
    let denied = Link::open(&scene.target).await.unwrap_err();
    assert!(matches!(denied, LinkError::Ssh(SshError::Denied(_))), "{denied}");
    sshd.let_in(&scene.line);
    Link::open(&scene.target).await.unwrap().close().await;
}
