//! A network of a machine's own, as slow as wanted.
//!
//! Machines share the host's network, so nothing would slow their bytes down. One with a slow
//! line gets a network namespace and a pair of virtual interfaces with a token bucket on either
//! end; its SSH port is on its own end, so that every byte to and from it passes there. The
//! namespace goes with the machine's last process and socket, and the interfaces with it.
//!
//! A socket belongs to the namespace in which it was made, whoever uses it later. Sockets of
//! the machine are therefore made by threads that enter it and end.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::process::Command;

use super::Kind;
use crate::error::MachineError;

/// What RFC 2544 sets aside for measuring: 198.18.0.0/15, cut in pairs of four addresses.
const FIRST: u32 = 0xc612_0000;
const PAIRS: u32 = 1 << 15;

/// Says why a machine here cannot have one.
pub async fn can_have_network(kind: Kind) -> Result<(), String> {
    if kind != Kind::Namespace {
        return Err("a slow network needs network namespaces, and those need root".to_owned());
    }
    // What is tried here is all that `set_up` does; it vanishes with the process.
    let tried = "ip link set lo up && ip link add probe type veth peer name other && \
                 tc qdisc add dev probe root tbf rate 1mbit burst 64kb latency 200ms";
    run("unshare", &["--net", "sh", "-c", tried])
        .await
        .map_err(|error| {
            format!("a slow network needs root, iproute2 and the kernel's veth and tbf: {error}")
        })
}

/// Joins the machine's empty namespace to the host; gives its address.
pub async fn set_up(init_pid: i32, mbit: u64) -> Result<Ipv4Addr, MachineError> {
    let (here, there) = pair(init_pid);
    let (pid, name) = (init_pid.to_string(), format!("mach{init_pid}"));
    let bucket = format!("root tbf rate {mbit}mbit burst 64kb latency 200ms");
    let outside = format!(
        "ip link add {name} type veth peer name eth0 netns {pid} && ip addr add {here}/30 dev {name} && \
         ip link set {name} up && tc qdisc add dev {name} {bucket}"
    );
    let inside = format!(
        "ip link set lo up && ip addr add {there}/30 dev eth0 && ip link set eth0 up && \
         ip route add default via {here} && tc qdisc add dev eth0 {bucket}"
    );
    for (program, args) in [
        ("sh", vec!["-c", &outside]),
        ("nsenter", vec!["-t", &pid, "-n", "sh", "-c", &inside]),
    ] {
        run(program, &args)
            .await
            .map_err(|why| MachineError::Init(format!("its network: {why}")))?;
    }
    Ok(there)
}

/// Of the running machines, each has a pid of its own.
fn pair(init_pid: i32) -> (Ipv4Addr, Ipv4Addr) {
    let base = FIRST + (init_pid.unsigned_abs() % PAIRS) * 4;
    (Ipv4Addr::from(base + 1), Ipv4Addr::from(base + 2))
}

async fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(args).kill_on_drop(true).output().await;
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

/// Does `what` as a process of that machine would.
pub async fn within<T: Send + 'static>(
    init_pid: i32,
    what: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("network".into())
        .spawn(move || {
            let entered = File::open(format!("/proc/{init_pid}/ns/net")).and_then(|ns| {
                move_into_link_name_space(ns.as_fd(), Some(LinkNameSpaceType::Network)).map_err(Into::into)
            });
            let _ = tell.send(entered.and_then(|()| what()));
        })?;
    told.await
        .unwrap_or_else(|_| Err(io::Error::other("the thread in the machine's network ended")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_lie_in_the_range_and_apart() {
        let (here, there) = pair(1);
        assert_eq!(
            (here, there),
            (Ipv4Addr::new(198, 18, 0, 5), Ipv4Addr::new(198, 18, 0, 6))
        );
        assert_eq!(pair(32_767).1, Ipv4Addr::new(198, 19, 255, 254));
    }
}
