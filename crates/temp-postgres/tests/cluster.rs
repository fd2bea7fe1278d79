//! A cluster lives as long as its owner, and survives what tests do to it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use dumont_temp_postgres::{Cluster, Stop};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[test]
fn it_is_stopped_and_started_again_and_leaves_nothing() {
    let cluster = Cluster::start().unwrap();
    let dir = socket_dir(&cluster.create_database("kept").unwrap());
    let mode = std::os::unix::fs::MetadataExt::mode(&dir.metadata().unwrap());
    assert_eq!(mode & 0o777, 0o700, "whoever reaches the socket is let in");
    cluster
        .sql("kept", "CREATE TABLE t (n INT); INSERT INTO t VALUES (7)")
        .unwrap();
    for how in [Stop::Fast, Stop::Immediate] {
        cluster.stop(how);
        assert!(cluster.sql("kept", "SELECT n FROM t").is_err(), "it is stopped");
        cluster.resume().unwrap();
        assert_eq!(cluster.sql("kept", "SELECT n FROM t").unwrap(), "7");
    }
    let other = Cluster::start().unwrap();
    assert_ne!(other.port(), cluster.port());
    assert!(other.sql("kept", "SELECT 1").is_err(), "nothing is shared");
    let pid = server_pid(&dir);
    drop(cluster);
    assert!(!dir.exists() && !runs(pid));
}

#[test]
fn a_killed_owner_takes_its_server_along() {
    let mut owner = Command::new(env!("CARGO_BIN_EXE_dumont-temp-postgres"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut url = String::new();
    BufReader::new(owner.stdout.take().unwrap())
        .read_line(&mut url)
        .unwrap();
    let dir = socket_dir(url.trim_end());
    let pid = server_pid(&dir);
    assert!(runs(pid));
    owner.kill().unwrap();
    owner.wait().unwrap();
    while runs(pid) {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let next = Cluster::start().unwrap();
    assert!(!dir.exists(), "the next start sweeps what was left");
    drop(next);
}

fn socket_dir(url: &str) -> PathBuf {
    url.split_once("?host=").unwrap().1.into()
}

fn server_pid(dir: &Path) -> u32 {
    let text = std::fs::read_to_string(dir.join("data/postmaster.pid")).unwrap();
    text.lines().next().unwrap().parse().unwrap()
}

fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
