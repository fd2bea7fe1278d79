//! The SSH server of one machine.
//!
//! In-process, so that a machine costs no sshd and its death can cut every
//! connection in the same instant. It behaves as OpenSSH does where clients
//! can tell: keys only, user root, exit status sent when the process ends even
//! if a descendant still holds its output, no signal to a process without a
//! terminal when its channel goes away (its pipes just close).
//!
//! Flow control: what a process writes is taken only as the client's window
//! allows, so memory stays bounded outwards. Inwards russh grants the window
//! before we have consumed the data and then blocks the whole connection on a
//! full channel, where OpenSSH would simply not grant it. A bidirectional
//! stream could deadlock on that, so the queue of a channel is deep.

mod exec;
mod forward;
pub mod openssh;
mod pty;
mod session;

use std::sync::Arc;

use russh::keys::{Algorithm, PrivateKey, PublicKey};
use russh::{MethodKind, MethodSet, cipher, server};

use crate::error::MachineError;
use crate::machine::Machine;
use crate::net::{Cuttable, Eager};

/// Says whether a key may log in; asked at each login, so new keys work at once.
pub type KeyCheck = Arc<dyn Fn(&PublicKey) -> bool + Send + Sync>;

/// Messages that wait on a channel before the connection stalls (32 KiB each at most).
const CHANNEL_QUEUE: usize = 8192;
const EVENT_QUEUE: usize = 64;

/// Starts to accept on the machine's port; ends when the machine dies.
pub fn open(machine: &Arc<Machine>, keys: KeyCheck, forwarding: bool) -> Result<(), MachineError> {
    let host_key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519)
        .map_err(|error| MachineError::HostKey(error.to_string()))?;
    let Some(listener) = machine.listen() else {
        return Err(MachineError::Init("its ssh port is gone".to_owned()));
    };
    let config = Arc::new(config(host_key));
    let machine = Arc::clone(machine);
    machine.clone().tasks.spawn(async move {
        loop {
            let mut plugged = machine.plugged.subscribe();
            let cable = async { drop(plugged.wait_for(|on| *on).await) };
            tokio::select! { () = machine.dead.cancelled() => return, () = cable => {} }
            let stream = tokio::select! {
                () = machine.dead.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "accept failed");
                        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                        continue;
                    }
                },
            };
            let _ = stream.set_nodelay(true);
            let stream = Cuttable::new(stream, machine.dead.clone())
                .with_plug(machine.plugged.subscribe())
                .with_traffic(machine.traffic());
            let stream = Eager::new(stream);
            let handler = session::Session::new(Arc::clone(&machine), Arc::clone(&keys), forwarding);
            let config = Arc::clone(&config);
            machine.tasks.spawn(async move {
                if let Ok(running) = server::run_stream(config, stream, handler).await {
                    let _ = running.await;
                }
            });
        }
    });
    Ok(())
}

fn config(host_key: PrivateKey) -> server::Config {
    let mut preferred = russh::Preferred::DEFAULT;
    preferred.cipher = std::borrow::Cow::Borrowed(&[
        cipher::AES_128_GCM,
        cipher::AES_256_GCM,
        cipher::CHACHA20_POLY1305,
        cipher::AES_256_CTR,
        cipher::AES_128_CTR,
    ]);
    server::Config {
        server_id: russh::SshId::Standard("SSH-2.0-OpenSSH_8.9p1".into()),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: std::time::Duration::from_millis(50),
        auth_rejection_time_initial: Some(std::time::Duration::ZERO),
        keys: vec![host_key],
        preferred,
        channel_buffer_size: CHANNEL_QUEUE,
        event_buffer_size: EVENT_QUEUE,
        inactivity_timeout: None,
        nodelay: true,
        ..server::Config::default()
    }
}
