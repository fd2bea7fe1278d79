//! TCP through the connection, both ways.
//!
//! A machine's loopback is mostly the host's, sometimes its own: a remote
//! forward is a listener on 127.0.0.1 whatever address was asked for, as an
//! sshd with `GatewayPorts no` does it. Every copy ends with the machine.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use russh::server::{ChannelOpenHandle, Handle, Msg};
use russh::{Channel, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::exec::CHUNK;
use crate::machine::Machine;

/// The forwards of one connection; dropping it closes their listeners.
pub struct Forwards {
    machine: Arc<Machine>,
    listeners: HashMap<(String, u32), DropGuard>,
}

impl Forwards {
    pub fn new(machine: Arc<Machine>) -> Self {
        Self {
            machine,
            listeners: HashMap::new(),
        }
    }

    /// Listens inside the machine; port 0 picks one. The bound port is returned.
    pub async fn listen(&mut self, address: &str, port: u32, handle: Handle) -> io::Result<u16> {
        let wanted = u16::try_from(port).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let listener = self.machine.listen_inside(wanted).await?;
        let bound = listener.local_addr()?.port();
        let stop = self.machine.dead.child_token();
        self.listeners
            .insert((address.to_owned(), u32::from(bound)), stop.clone().drop_guard());
        let (machine, address) = (Arc::clone(&self.machine), address.to_owned());
        self.machine.tasks.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = stop.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                let Ok((stream, from)) = accepted else { continue };
                let _ = stream.set_nodelay(true);
                let (handle, address, dead) = (handle.clone(), address.clone(), machine.dead.clone());
                machine.tasks.spawn(async move {
                    let opened = handle.channel_open_forwarded_tcpip(
                        address,
                        u32::from(bound),
                        from.ip().to_string(),
                        from.port().into(),
                    );
                    let opened =
                        tokio::select! { () = dead.cancelled() => return, opened = opened => opened };
                    if let Ok(channel) = opened {
                        join(stream, channel, dead).await;
                    }
                });
            }
        });
        Ok(bound)
    }

    pub fn cancel(&mut self, address: &str, port: u32) -> bool {
        self.listeners.remove(&(address.to_owned(), port)).is_some()
    }

    /// Connects from inside the machine.
    pub fn direct(&self, channel: Channel<Msg>, host: String, port: u16, reply: ChannelOpenHandle) {
        let machine = Arc::clone(&self.machine);
        self.machine.tasks.spawn(async move {
            let dead = machine.dead.clone();
            match machine.connect_inside(host, port).await {
                Ok(stream) => {
                    let _ = stream.set_nodelay(true);
                    reply.accept().await;
                    join(stream, channel, dead).await;
                }
                Err(_) => reply.reject(ChannelOpenFailure::ConnectFailed).await,
            }
        });
    }
}

/// Copies both ways, each half closing on its own, until both ends or the machine are done.
async fn join(stream: TcpStream, channel: Channel<Msg>, dead: CancellationToken) {
    let (from_socket, to_socket) = stream.into_split();
    let (from_channel, to_channel) = channel.split();
    // Cancelled once the client has nothing more to send.
    let ended = CancellationToken::new();
    let outwards = async {
        copy_out(from_socket, &to_channel).await;
        ended.cancelled().await;
    };
    tokio::select! {
        () = dead.cancelled() => {}
        () = copy_in(from_channel, to_socket, &ended) => {}
        // Both directions are through: as OpenSSH, close without waiting for the client's close.
        () = outwards => { let _ = to_channel.close().await; }
    }
}

/// Until the client closes the channel. Drains on after a failed write: a full queue stalls the connection.
async fn copy_in(mut channel: ChannelReadHalf, socket: OwnedWriteHalf, ended: &CancellationToken) {
    let mut socket = Some(socket);
    while let Some(message) = channel.wait().await {
        match message {
            ChannelMsg::Data { data } => {
                if let Some(open) = &mut socket
                    && open.write_all(&data).await.is_err()
                {
                    socket = None;
                }
            }
            ChannelMsg::Eof => {
                socket = None; // dropping the half sends our FIN
                ended.cancel();
            }
            ChannelMsg::Close => return,
            _ => {}
        }
    }
}

async fn copy_out(mut socket: OwnedReadHalf, channel: &ChannelWriteHalf<Msg>) {
    loop {
        let mut chunk = bytes::BytesMut::with_capacity(CHUNK);
        match socket.read_buf(&mut chunk).await {
            Ok(n) if n > 0 => {
                if channel.data_bytes(chunk.freeze()).await.is_err() {
                    return;
                }
            }
            _ => break,
        }
    }
    let _ = channel.eof().await;
}
