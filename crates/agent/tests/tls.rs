//! A store behind TLS: whose certificate, at whose time, at which address, and no detours.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::store::Store;
use common::{Agent, Machine, now};
use dumont_core::time::Timestamp;
use dumont_wire::agent::{Failure, FailureCode, Outcome, PROTOCOL, Request, SnapshotRequest};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

const NAME: &str = "store.test";

/// A private authority, and a TLS server in front of `store` with a certificate of its own
/// that is good in the year 2031 only.
struct Front {
    port: u16,
    ca: String,
}

impl Front {
    fn start(store: SocketAddr, redirect: bool) -> Self {
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::<String>::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let key = KeyPair::generate().unwrap();
        let mut leaf = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        leaf.not_before = date_time_ymd(2031, 1, 1);
        leaf.not_after = date_time_ymd(2031, 12, 31);
        let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let conn = ServerConnection::new(config.clone()).unwrap();
                let client = BufReader::new(StreamOwned::new(conn, socket));
                std::thread::spawn(move || relay(client, store, redirect));
            }
        });
        Self { port, ca: ca_pem }
    }
}

/// Request by request, until one side ends.
fn relay<S: Read + Write>(mut client: BufReader<S>, store: SocketAddr, redirect: bool) -> Option<()> {
    let mut server = BufReader::new(TcpStream::connect(store).ok()?);
    loop {
        let request = message(&mut client)?;
        if redirect {
            let answer = "HTTP/1.1 307 x\r\nlocation: https://elsewhere.test/\r\ncontent-length: 0\r\n\r\n";
            client.get_mut().write_all(answer.as_bytes()).ok()?;
            client.get_mut().flush().ok()?;
            continue;
        }
        server.get_mut().write_all(&request).ok()?;
        let answer = message(&mut server)?;
        client.get_mut().write_all(&answer).ok()?;
        client.get_mut().flush().ok()?;
    }
}

/// A head, and the body that its length announces.
fn message(from: &mut impl BufRead) -> Option<Vec<u8>> {
    let (mut out, mut length) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        from.read_line(&mut line).ok().filter(|n| *n > 0)?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        out.extend_from_slice(line.as_bytes());
        if line == "\r\n" {
            break;
        }
    }
    let head = out.len();
    out.resize(head + length, 0);
    from.read_exact(&mut out[head..]).ok()?;
    Some(out)
}

/// A snapshot through `front`, with the controller's time and authority as given.
fn snapshot(front: &Front, store: &Arc<Store>, time: Timestamp, ca: Option<&str>) -> Result<(), Failure> {
    let machine = Machine::new();
    fs::write(machine.workspace().join("a"), "content").unwrap();
    *store.front.lock().unwrap() = Some(format!("https://{NAME}:{}", front.port));
    let mut agent = Agent::spawn(machine.path()).with_store(store);
    let hello = Request::Hello {
        protocol: PROTOCOL,
        now: time,
        path: "/".into(),
        heartbeat_ms: 0,
        store_ca: ca.map(Into::into),
    };
    assert!(matches!(agent.ask(hello), Ok(Outcome::Hello(_))));
    let request = SnapshotRequest {
        model_files: Vec::new(),
        key: None,
        path: machine.workspace().to_str().unwrap().into(),
        stamp: "4711-1".into(),
        parent: None,
        full: false,
        hooks: None,
    };
    agent.ask(Request::Snapshot(request)).map(|_| ())
}

/// The middle of 2031.
fn then() -> Timestamp {
    Timestamp(1_940_000_000_000_000)
}

#[test]
fn the_certificate_is_judged_at_the_controllers_time() {
    let store = Store::start();
    let front = Front::start(store.address(), false);
    // This host's own clock says that the certificate is years away; the controller's counts.
    snapshot(&front, &store, then(), Some(&front.ca)).unwrap();
    assert!(!store.keys().is_empty());
    let refused = snapshot(&front, &store, now(), Some(&front.ca)).unwrap_err();
    assert_eq!(refused.code, FailureCode::Transfer);
    assert!(refused.message.contains("certificate"), "{refused}");
}

#[test]
fn a_strangers_certificate_is_refused() {
    let store = Store::start();
    let front = Front::start(store.address(), false);
    let other = Front::start(store.address(), false);
    for ca in [None, Some(other.ca.as_str())] {
        let refused = snapshot(&front, &store, then(), ca).unwrap_err();
        assert!(refused.message.contains("certificate"), "{refused}");
        assert!(refused.hint.contains("S3_CA_FILE"), "{refused}");
    }
    assert!(store.keys().is_empty());
}

#[test]
fn a_redirect_is_not_followed() {
    let store = Store::start();
    let front = Front::start(store.address(), true);
    let refused = snapshot(&front, &store, then(), Some(&front.ca)).unwrap_err();
    assert!(refused.message.contains("redirects (307)"), "{refused}");
}
