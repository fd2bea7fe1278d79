//! One SSH connection: pinned host key, our key, optional reverse forwarding.

use super::SshError;
use crate::providers::SshEndpoint;
use axum::Router;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use russh::client::{self, AuthResult, ChannelOpenHandle, Handle, Msg, Session};
use russh::keys::{HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{Channel, Preferred, cipher};
use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// How long a TCP connection may take.
const DIAL: Duration = Duration::from_secs(5);
/// How long key exchange and authentication may take together.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Transfers a machine may have open at once; an agent uses a handful.
const MAX_FORWARDED: usize = 64;

/// AES-GCM first: with the CPU's own instructions it is several times faster than ChaCha20,
/// and bulk data passes through here.
const CIPHERS: &[cipher::Name] = &[
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_CTR,
];

/// An authenticated connection to one machine.
pub struct Connection {
    handle: Handle<Peer>,
    host_key: String,
    endpoint: SshEndpoint,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection({})", self.endpoint)
    }
}

/// Dials and authenticates as `user`. `pinned` is the host key seen before, as an OpenSSH line;
/// `service` answers what the machine sends through a reverse forward.
pub async fn connect(
    endpoint: &SshEndpoint,
    user: &str,
    key: &Arc<PrivateKey>,
    pinned: Option<&str>,
    service: Option<Router>,
) -> Result<Connection, SshError> {
    let stream = dial(endpoint).await?;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let peer = Peer {
        pinned: pinned.map(str::to_owned),
        seen: seen.clone(),
        service,
        slots: Arc::new(Semaphore::new(MAX_FORWARDED)),
    };
    let protocol = |reason: String| SshError::Protocol {
        endpoint: endpoint.to_string(),
        reason: bounded(&reason),
    };
    let attempt = async {
        let mut handle = client::connect_stream(Arc::new(config()), stream, peer).await?;
        let signer = PrivateKeyWithHashAlg::new(key.clone(), Some(HashAlg::Sha512));
        let auth = handle.authenticate_publickey(user, signer).await?;
        Ok::<_, russh::Error>((handle, auth))
    };
    let outcome = timeout(HANDSHAKE, attempt).await;
    let seen = std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
    if let (Some(expected), Some(found)) = (pinned, seen.refused) {
        return Err(SshError::HostKeyChanged {
            endpoint: endpoint.to_string(),
            expected: expected.to_owned(),
            found,
        });
    }
    match outcome {
        Err(_) => Err(protocol(format!(
            "no SSH handshake within {} s",
            HANDSHAKE.as_secs()
        ))),
        Ok(Err(error)) => Err(protocol(error.to_string())),
        Ok(Ok((handle, AuthResult::Success))) => {
            let host_key = seen
                .accepted
                .ok_or_else(|| protocol("no host key was shown".into()))?;
            Ok(Connection {
                handle,
                host_key,
                endpoint: endpoint.clone(),
            })
        }
        Ok(Ok((_, AuthResult::Failure { .. }))) => Err(SshError::Denied(endpoint.to_string())),
    }
}

async fn dial(endpoint: &SshEndpoint) -> Result<TcpStream, SshError> {
    let unreachable = |reason: String| SshError::Unreachable {
        endpoint: endpoint.to_string(),
        reason: bounded(&reason),
    };
    match timeout(DIAL, TcpStream::connect((endpoint.host.as_str(), endpoint.port))).await {
        Err(_) => Err(unreachable(format!("no answer within {} s", DIAL.as_secs()))),
        Ok(Err(e)) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
            Err(SshError::Refused(endpoint.to_string()))
        }
        Ok(Err(e)) => Err(unreachable(e.to_string())),
        Ok(Ok(stream)) => {
            stream.set_nodelay(true).map_err(|e| unreachable(e.to_string()))?;
            Ok(stream)
        }
    }
}

impl Connection {
    /// The machine's host key, one OpenSSH line.
    pub fn host_key(&self) -> &str {
        &self.host_key
    }

    /// A channel that runs `command`.
    pub async fn exec(&self, command: &str) -> Result<Channel<Msg>, SshError> {
        let channel = self
            .handle
            .channel_open_session()
            .await
            .map_err(|e| self.broken(&e))?;
        channel.exec(true, command).await.map_err(|e| self.broken(&e))?;
        Ok(channel)
    }

    /// Asks the machine to listen on a loopback port of its own and to send what arrives there
    /// to this connection's service. Gives the port.
    pub async fn forward(&self) -> Result<u16, SshError> {
        match self.handle.tcpip_forward("127.0.0.1", 0).await {
            Ok(port) => u16::try_from(port)
                .ok()
                .filter(|p| *p != 0)
                .ok_or_else(|| SshError::ForwardingRefused(self.endpoint.to_string())),
            Err(russh::Error::RequestDenied) => Err(SshError::ForwardingRefused(self.endpoint.to_string())),
            Err(e) => Err(self.broken(&e)),
        }
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// Says goodbye; errors do not matter any more.
    pub async fn close(&self) {
        let _ = self
            .handle
            .disconnect(russh::Disconnect::ByApplication, "", "")
            .await;
    }

    fn broken(&self, error: &russh::Error) -> SshError {
        SshError::Protocol {
            endpoint: self.endpoint.to_string(),
            reason: bounded(&error.to_string()),
        }
    }
}

fn config() -> client::Config {
    client::Config {
        preferred: Preferred {
            cipher: Cow::Borrowed(CIPHERS),
            ..Preferred::DEFAULT
        },
        nodelay: true,
        keepalive_interval: Some(Duration::from_secs(2)),
        keepalive_max: 3,
        window_size: 8 << 20,
        maximum_packet_size: 65_535,
        ..client::Config::default()
    }
}

/// What a peer says is shown to people: bounded, without control characters.
fn bounded(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[derive(Default)]
struct Seen {
    accepted: Option<String>,
    refused: Option<String>,
}

/// Our side of the protocol's callbacks.
struct Peer {
    pinned: Option<String>,
    seen: Arc<Mutex<Seen>>,
    service: Option<Router>,
    /// Machines are not trusted: one cannot open transfers without end.
    slots: Arc<Semaphore>,
}

impl client::Handler for Peer {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else {
            return Ok(false);
        };
        // Without the comment: two shows of one key compare equal as text.
        let line = russh::keys::PublicKey::new(key.key_data().clone(), "").to_openssh()?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let accepted = self.pinned.as_ref().is_none_or(|p| *p == line);
        if accepted {
            seen.accepted = Some(line);
        } else {
            seen.refused = Some(line);
        }
        Ok(accepted)
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<Msg>,
        _connected_address: &str,
        _connected_port: u32,
        _originator_address: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let (Some(service), Ok(slot)) = (self.service.clone(), self.slots.clone().try_acquire_owned()) else {
            // Dropping the reply refuses the channel.
            return Ok(());
        };
        reply.accept().await;
        tokio::spawn(async move {
            let _slot = slot;
            let io = TokioIo::new(channel.into_stream());
            let service = TowerToHyperService::new(service);
            // A broken transfer is the agent's to notice and repeat.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(io, service)
                .await;
        });
        Ok(())
    }
}
