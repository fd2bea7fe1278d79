//! The embedded agent is the one promised: small, static, and able to run where nothing is.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use flate2::read::GzDecoder;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

fn unpacked() -> Vec<u8> {
    let mut bytes = Vec::new();
    GzDecoder::new(dumont_agent_embed::AGENT_GZ)
        .read_to_end(&mut bytes)
        .unwrap();
    bytes
}

fn install(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("agent");
    std::fs::write(&path, unpacked()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn it_is_small_and_what_its_digest_says() {
    let bytes = unpacked();
    assert!(
        dumont_agent_embed::AGENT_GZ.len() <= 3 << 20,
        "{}",
        dumont_agent_embed::AGENT_GZ.len()
    );
    assert_eq!(bytes.len(), dumont_agent_embed::AGENT_SIZE);
    assert_eq!(
        blake3::hash(&bytes).to_hex().as_str(),
        dumont_agent_embed::AGENT_DIGEST
    );
}

#[test]
fn it_runs_and_tells_its_version() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(install(dir.path()))
        .arg("--version")
        .output()
        .unwrap();
    assert!(output.status.success());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.starts_with(concat!("dumont-agent ", env!("CARGO_PKG_VERSION"), " protocol ")),
        "{said}"
    );
}

/// A program that asks for no interpreter loads no library of the host.
#[test]
fn it_is_static() {
    let elf = unpacked();
    assert_eq!(&elf[..6], b"\x7fELF\x02\x01", "64 bits, little-endian");
    let number = |at: usize, len: usize| {
        elf[at..at + len]
            .iter()
            .rev()
            .fold(0u64, |n, b| n << 8 | u64::from(*b))
    };
    let (table, size, count) = (
        number(32, 8) as usize,
        number(54, 2) as usize,
        number(56, 2) as usize,
    );
    let kinds: Vec<u64> = (0..count).map(|i| number(table + i * size, 4)).collect();
    const PT_LOAD: u64 = 1;
    const PT_INTERP: u64 = 3;
    assert!(kinds.contains(&PT_LOAD));
    assert!(!kinds.contains(&PT_INTERP), "{kinds:?}");
}

/// Nothing but the program itself: no libraries, no /proc, no /etc, no HOME.
fn in_an_empty_root(dir: &Path) -> Command {
    install(dir);
    let id = Command::new("id").arg("-u").output().unwrap();
    // Only root may change its root directory, if only the root of a user namespace.
    let mut words = vec!["unshare", "--map-root-user", "chroot"];
    words.drain(..if id.stdout.trim_ascii() == b"0" { 2 } else { 0 });
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .arg(dir)
        .arg("/agent")
        .env_remove("HOME");
    command
}

#[test]
fn it_runs_where_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let output = in_an_empty_root(dir.path()).arg("--version").output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn it_says_hello_where_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = in_an_empty_root(dir.path());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let hello = br#"{"id":1,"body":{"type":"hello","protocol":1,"now":0,"path":"/w","heartbeat_ms":0}}"#;
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&(hello.len() as u32).to_le_bytes()).unwrap();
    stdin.write_all(hello).unwrap();
    // The end of input ends the agent, so read the answer before it.
    let (mut said, mut buffer, mut stdout) = (Vec::new(), [0; 4096], child.stdout.take().unwrap());
    while !said.ends_with(b"}}") {
        let n = stdout.read(&mut buffer).unwrap();
        assert!(n > 0, "it ended: {}", String::from_utf8_lossy(&said));
        said.extend_from_slice(&buffer[..n]);
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
    let said = String::from_utf8_lossy(&said);
    assert!(
        said.contains(r#""of":"hello""#) && said.contains("nvidia-smi: not found"),
        "{said}"
    );
}
