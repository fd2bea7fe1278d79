//! A market in this process, an HTTP client for it, an SSH client for its machines.
#![allow(dead_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use dumont_market::{Isolation, Market, MarketConfig};
use reqwest::{Method, StatusCode};
use russh::client::{self, Handle};
use russh::keys::{Algorithm, PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{Channel, ChannelMsg};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Long enough for a loaded machine, short enough to see a hang.
pub const LIMIT: Duration = Duration::from_secs(30);

pub struct World {
    pub market: Option<Market>,
    pub http: reqwest::Client,
    pub key: PrivateKey,
    pub dir: tempfile::TempDir,
    url: String,
    admin: String,
}

pub async fn world() -> World {
    world_with(|_| {}).await
}

pub async fn world_with(change: impl FnOnce(&mut MarketConfig)) -> World {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let mut config = MarketConfig::new(dir.path());
    config.time_scale = 0.0;
    change(&mut config);
    let market = dumont_market::start(config).await.unwrap();
    let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
    let (url, admin) = (market.url(), market.admin_url());
    let world = World {
        market: Some(market),
        http: reqwest::Client::new(),
        key,
        dir,
        url,
        admin,
    };
    let text = world.key.public_key().to_openssh().unwrap();
    let (status, _) = world
        .api(Method::POST, "/api/v0/ssh/", Some(json!({"ssh_key": text})))
        .await;
    assert_eq!(status, StatusCode::OK);
    world
}

impl World {
    pub async fn api(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        self.send(&self.url, method, path, body).await
    }

    pub async fn admin(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let (status, value) = self.send(&self.admin, method, path, body).await;
        assert_eq!(status, StatusCode::OK, "{path}: {value}");
        value
    }

    async fn send(&self, base: &str, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let request = self
            .http
            .request(method, format!("{base}{path}"))
            .bearer_auth("some-key")
            .timeout(LIMIT);
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        let response = request.send().await.unwrap();
        let kind = response
            .headers()
            .get("content-type")
            .map(|v| v.to_str().unwrap().to_owned());
        let is_json = kind.as_ref().is_some_and(|k| k.starts_with("application/json"));
        assert!(is_json, "{path}: {kind:?}");
        (response.status(), response.json().await.unwrap())
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub async fn offers(&self, query: Value) -> Vec<Value> {
        let (status, body) = self.api(Method::POST, "/api/v0/bundles/", Some(query)).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body["offers"].as_array().unwrap().clone()
    }

    /// Rents the cheapest offer.
    pub async fn rent(&self, body: Value) -> u64 {
        let offer = &self
            .offers(json!({"order": [["dph_total", "asc"]], "limit": 1}))
            .await[0];
        let mut order =
            json!({"image": "pytorch/pytorch:latest", "disk": 20, "runtype": "ssh_direc ssh_proxy"});
        order
            .as_object_mut()
            .unwrap()
            .extend(body.as_object().unwrap().clone());
        let (status, answer) = self
            .api(
                Method::PUT,
                &format!("/api/v0/asks/{}/", offer["id"]),
                Some(order),
            )
            .await;
        assert_eq!(
            (status, &answer["success"]),
            (StatusCode::OK, &json!(true)),
            "{answer}"
        );
        answer["new_contract"].as_u64().unwrap()
    }

    pub async fn show(&self, id: u64) -> Value {
        self.api(Method::GET, &format!("/api/v0/instances/{id}/?owner=me"), None)
            .await
            .1["instances"]
            .take()
    }

    pub async fn until_status(&self, id: u64, status: &str) -> Value {
        let start = Instant::now();
        loop {
            let row = self.show(id).await;
            if row["actual_status"] == status {
                return row;
            }
            assert!(
                start.elapsed() < LIMIT,
                "{id} is {} and not {status}: {}",
                row["actual_status"],
                row["status_msg"]
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A running instance and a login to it.
    pub async fn machine(&self, body: Value) -> (u64, Handle<Client>) {
        let id = self.rent(body).await;
        let row = self.until_status(id, "running").await;
        let host = row["ssh_host"].as_str().unwrap().to_owned();
        let ssh = self
            .login_at(&host, port(&row), &self.key, Client::default())
            .await;
        (id, ssh.unwrap())
    }

    pub async fn login(&self, port: u16) -> Result<Handle<Client>, russh::Error> {
        self.login_with(port, &self.key, Client::default()).await
    }

    /// Waits for sshd, then logs in.
    pub async fn login_with(
        &self,
        port: u16,
        key: &PrivateKey,
        client: Client,
    ) -> Result<Handle<Client>, russh::Error> {
        self.login_at("127.0.0.1", port, key, client).await
    }

    pub async fn login_at(
        &self,
        host: &str,
        port: u16,
        key: &PrivateKey,
        client: Client,
    ) -> Result<Handle<Client>, russh::Error> {
        let start = Instant::now();
        let stream = loop {
            match tokio::net::TcpStream::connect((host, port)).await {
                Ok(stream) => break stream,
                Err(error) if start.elapsed() > Duration::from_secs(5) => return Err(error.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let mut handle = client::connect_stream(Arc::new(client::Config::default()), stream, client).await?;
        let key = PrivateKeyWithHashAlg::new(Arc::new(key.clone()), None);
        if handle.authenticate_publickey("root", key).await?.success() {
            Ok(handle)
        } else {
            Err(russh::Error::NotAuthenticated)
        }
    }

    pub async fn destroy(&self, id: u64) -> StatusCode {
        self.api(
            Method::DELETE,
            &format!("/api/v0/instances/{id}/"),
            Some(json!({})),
        )
        .await
        .0
    }

    pub async fn ledger(&self) -> Value {
        self.admin(Method::GET, "/admin/ledger", None).await
    }

    pub async fn shutdown(mut self) {
        self.market.take().unwrap().shutdown().await;
    }
}

pub fn port(row: &Value) -> u16 {
    row["ports"]["22/tcp"][0]["HostPort"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

/// An SSH client that sends what is forwarded to it to a local address.
#[derive(Default)]
pub struct Client {
    pub forward_to: Option<std::net::SocketAddr>,
}

impl client::Handler for Client {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _key: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<client::Msg>,
        _address: &str,
        _port: u32,
        _originator: &str,
        _originator_port: u32,
        reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        let to = self.forward_to.unwrap();
        reply.accept().await;
        tokio::spawn(async move {
            let mut socket = tokio::net::TcpStream::connect(to).await.unwrap();
            let mut stream = channel.into_stream();
            let _ = tokio::io::copy_bidirectional(&mut socket, &mut stream).await;
        });
        Ok(())
    }
}

pub struct Output {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub status: Option<u32>,
    pub signal: Option<String>,
}

impl Output {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

pub async fn exec(session: &Handle<Client>, line: &str) -> Output {
    exec_with(session, line, Vec::new()).await
}

/// Runs a line, writes `input` and end-of-file to it while reading.
pub async fn exec_with(session: &Handle<Client>, line: &str, input: Vec<u8>) -> Output {
    let channel = session.channel_open_session().await.unwrap();
    channel.exec(true, line).await.unwrap();
    finish(channel, input).await
}

pub async fn finish(channel: Channel<client::Msg>, input: Vec<u8>) -> Output {
    let (mut reader, writer) = channel.split();
    let feed = tokio::spawn(async move {
        let _ = writer.data_bytes(input).await;
        let _ = writer.eof().await;
        writer
    });
    let mut out = Output {
        stdout: Vec::new(),
        stderr: Vec::new(),
        status: None,
        signal: None,
    };
    let read = async {
        while let Some(message) = reader.wait().await {
            match message {
                ChannelMsg::Data { data } => out.stdout.extend_from_slice(&data),
                ChannelMsg::ExtendedData { data, .. } => out.stderr.extend_from_slice(&data),
                ChannelMsg::ExitStatus { exit_status } => out.status = Some(exit_status),
                ChannelMsg::ExitSignal { signal_name, .. } => out.signal = Some(format!("{signal_name:?}")),
                _ => {}
            }
        }
    };
    tokio::time::timeout(LIMIT, read)
        .await
        .expect("the program ends in time");
    feed.abort();
    out
}

/// An echo server; returns where it is.
pub async fn echo() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut r, mut w) = stream.split();
                let _ = tokio::io::copy(&mut r, &mut w).await;
            });
        }
    });
    addr
}

/// Sends `data` to a port, closes the sending half, reads the rest.
pub async fn round_trip(port: u16, data: Vec<u8>) -> Vec<u8> {
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let send = tokio::spawn(async move {
        writer.write_all(&data).await.unwrap();
        writer.shutdown().await.unwrap();
        writer
    });
    let mut back = Vec::new();
    tokio::time::timeout(LIMIT, reader.read_to_end(&mut back))
        .await
        .unwrap()
        .unwrap();
    send.await.unwrap();
    back
}

/// Whether any process on this host has this word in its command line.
pub fn runs(word: &str) -> bool {
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(Result::ok)
        .any(|entry| {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(word)
        })
}

pub fn recorded(name: &str) -> Value {
    let path = format!("{}/tests/recorded/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

pub fn directory(config: &mut MarketConfig) {
    config.isolation = Isolation::Directory;
}
