//! The way to a machine's SSH through somebody else's port.
//!
//! Vast.ai runs proxies that reach machines without open ports. Their ports are few and are used
//! again, so the same address shows another machine's host key later. Here a freed port is the
//! first to be given out, which makes that happen at once instead of some day.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::net::{TcpListener, TcpStream};

use crate::machine::{Machine, lock};
use crate::net::Cuttable;

#[derive(Default)]
pub struct Proxy {
    /// Listeners that nobody uses, by port.
    free: Mutex<BTreeMap<u16, TcpListener>>,
}

impl Proxy {
    /// Takes connections for this machine until it dies; returns where.
    pub async fn open(self: &Arc<Self>, machine: &Arc<Machine>) -> io::Result<u16> {
        let kept = lock(&self.free).pop_first();
        let (port, listener) = match kept {
            Some(kept) => kept,
            None => {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
                (listener.local_addr()?.port(), listener)
            }
        };
        let (proxy, machine) = (Arc::clone(self), Arc::clone(machine));
        machine.clone().tasks.spawn(async move {
            let target = SocketAddr::from((machine.address(), machine.port()));
            loop {
                let accepted = tokio::select! {
                    () = machine.dead.cancelled() => break,
                    accepted = listener.accept() => accepted,
                };
                if let Ok((client, _)) = accepted {
                    machine
                        .tasks
                        .spawn(carry(Cuttable::new(client, machine.dead.clone()), target));
                }
            }
            lock(&proxy.free).insert(port, listener);
        });
        Ok(port)
    }
}

/// A proxy takes every connection, and drops those that it cannot carry on.
async fn carry(mut client: Cuttable, target: SocketAddr) {
    if let Ok(mut server) = TcpStream::connect(target).await {
        let _ = server.set_nodelay(true);
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    }
}
