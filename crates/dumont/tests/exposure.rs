//! What is reachable from where: refusals of open addresses, HTTPS with a certificate of a
//! private authority, its renewal, tokens by the command line. The real binary, as a user runs it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot run the binary fails"
)]

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn dumont(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dumont"));
    command.env_clear().env("HOME", dir).env("DUMONT_DATA_DIR", dir);
    command.current_dir(dir).stdin(Stdio::null());
    command
}

/// What a failing command said, as `--json` says it.
fn refusal(output: &Output) -> (i32, Value) {
    assert!(!output.status.success(), "{output:?}");
    let body = serde_json::from_slice(&output.stderr).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    (output.status.code().unwrap(), body)
}

/// A server with TLS; it rents nothing, so no provider answers it.
struct Server {
    dir: TempDir,
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An authority of its own, whose certificate lies at the path that is returned.
fn authority(dir: &Path, name: &str) -> (PathBuf, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let path = dir.join(name);
    std::fs::write(&path, params.self_signed(&key).unwrap().pem()).unwrap();
    (path, Issuer::new(params, key))
}

/// A certificate for 127.0.0.1, signed by the authority, put where the server reads it.
fn certify(dir: &Path, issuer: &Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
    let cert = params.signed_by(&key, issuer).unwrap();
    std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
    std::fs::write(dir.join("cert.pem"), cert.pem()).unwrap();
}

impl Server {
    fn start(dir: TempDir) -> Self {
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = dumont(dir.path())
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(["--tls-cert", "cert.pem", "--tls-key", "key.pem"])
            .env("VAST_URL", "http://127.0.0.1:9")
            .env("VAST_API_KEY", "test-key")
            .env("VAST_LIMITS", "off")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Self { dir, child };
        server.until("it serves", |s| s.log().contains("serving"));
        server
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !holds(self) {
            assert!(Instant::now() < deadline, "{what} in vain:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn ask(&self, ca: Option<&Path>, args: &[&str]) -> Output {
        let mut command = dumont(self.dir.path());
        if let Some(ca) = ca {
            command.arg("--ca-file").arg(ca);
        }
        command.arg("--json").args(args).output().unwrap()
    }

    fn hang_up(&self) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-HUP", &pid])
                .status()
                .unwrap()
                .success()
        );
    }
}

#[test]
fn https_with_a_private_authority_and_a_renewed_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (first, issuer) = authority(dir.path(), "ca1.pem");
    let (second, other) = authority(dir.path(), "ca2.pem");
    certify(dir.path(), &issuer);
    let server = Server::start(dir);
    let list = ["workspace", "list"];

    let output = server.ask(Some(&first), &list);
    assert!(output.status.success(), "{output:?}");
    for stranger in [None, Some(second.as_path())] {
        let (_, body) = refusal(&server.ask(stranger, &list));
        assert_eq!(body["code"], "untrusted_certificate", "{body}");
        assert!(body["hint"].as_str().unwrap().contains("--ca-file"), "{body}");
    }
    let about = std::fs::read_to_string(server.dir.path().join("server.json")).unwrap();
    assert!(about.contains("https://127.0.0.1:"), "{about}");

    // Renewed by another authority, without a restart.
    certify(server.dir.path(), &other);
    server.hang_up();
    server.until("the new certificate is served", |s| {
        s.ask(Some(&second), &list).status.success()
    });
    assert_eq!(
        refusal(&server.ask(Some(&first), &list)).1["code"],
        "untrusted_certificate"
    );

    // What cannot be used changes nothing.
    std::fs::write(server.dir.path().join("cert.pem"), "nonsense").unwrap();
    server.hang_up();
    server.until("the bad one is refused", |s| s.log().contains("stays in force"));
    assert!(server.ask(Some(&second), &list).status.success());
}

#[test]
fn files_that_are_no_certificate_are_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("cert.pem"), "nonsense").unwrap();
    std::fs::write(dir.path().join("key.pem"), "nonsense").unwrap();
    let mut serve = dumont(dir.path());
    serve.args([
        "--json",
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--tls-cert",
        "cert.pem",
    ]);
    serve.args(["--tls-key", "key.pem"]).env("VAST_API_KEY", "k");
    let output = serve.env("DUMONT_LOG", "off").output().unwrap();
    let (_, body) = refusal(&output);
    assert_eq!(body["code"], "bad_certificate", "{body}");
    assert!(body["message"].as_str().unwrap().contains("cert.pem"), "{body}");

    let empty = dir.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let mut ask = dumont(dir.path());
    ask.args([
        "--json",
        "--url",
        "https://127.0.0.1:9",
        "--token",
        "t",
        "--ca-file",
    ]);
    let output = ask.arg(&empty).args(["workspace", "list"]).output().unwrap();
    assert_eq!(refusal(&output).0, 2);
}

#[test]
fn an_open_address_needs_a_word_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &str, &str); 3] = [
        (
            &["serve", "--listen", "0.0.0.0:0"],
            "in the clear",
            "--allow-remote",
        ),
        (
            &["market", "--listen", "0.0.0.0:0"],
            "runs programs",
            "--allow-remote",
        ),
        (
            &["market", "--listen", "127.0.0.1:0", "--admin-listen", "[::]:0"],
            "no password",
            "--allow-remote-admin",
        ),
    ];
    for (args, why, flag) in cases {
        let output = dumont(dir.path()).arg("--json").args(args).output().unwrap();
        let (code, body) = refusal(&output);
        assert_eq!(code, 2, "{body}");
        assert!(body["message"].as_str().unwrap().contains(why), "{body}");
        assert!(body["hint"].as_str().unwrap().contains(flag), "{body}");
    }
}

#[test]
fn tokens_are_made_used_and_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, issuer) = authority(dir.path(), "ca.pem");
    certify(dir.path(), &issuer);
    let server = Server::start(dir);

    let made = server.ask(Some(&ca), &["token", "create", "ci"]);
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    let token = made["token"].as_str().unwrap();
    let with = |token: &str| {
        let mut command = dumont(server.dir.path());
        command.arg("--json").arg("--ca-file").arg(&ca);
        command
            .env("DUMONT_TOKEN", token)
            .args(["token", "list"])
            .output()
            .unwrap()
    };
    let list = with(token);
    assert!(list.status.success(), "{list:?}");
    let list: Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 2, "{list}");

    let revoked = server.ask(Some(&ca), &["token", "revoke", "ci"]);
    assert!(revoked.status.success(), "{revoked:?}");
    assert_eq!(refusal(&with(token)).1["code"], "token_revoked");
    let last = server.ask(Some(&ca), &["token", "revoke", "admin"]);
    assert_eq!(refusal(&last).1["code"], "last_token");
}
