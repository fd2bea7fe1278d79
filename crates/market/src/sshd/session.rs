//! What one client may do on one connection.

use std::collections::HashMap;
use std::sync::Arc;

use russh::keys::PublicKey;
use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, Pty, Sig};
use tokio::sync::mpsc;

use super::KeyCheck;
use super::exec::{self, Control, Request};
use super::forward::Forwards;
use super::pty::Size;
use crate::machine::Machine;

/// A session channel before and while its program runs.
#[derive(Default)]
struct Slot {
    channel: Option<Channel<Msg>>,
    env: Vec<(String, String)>,
    terminal: Option<(String, Size)>,
    control: Option<mpsc::UnboundedSender<Control>>,
}

pub struct Session {
    machine: Arc<Machine>,
    keys: KeyCheck,
    slots: HashMap<ChannelId, Slot>,
    forwards: Forwards,
    /// `AllowTcpForwarding`
    forwarding: bool,
}

impl Session {
    pub fn new(machine: Arc<Machine>, keys: KeyCheck, forwarding: bool) -> Self {
        let forwards = Forwards::new(Arc::clone(&machine));
        Self {
            machine,
            keys,
            slots: HashMap::new(),
            forwards,
            forwarding,
        }
    }

    fn check(&self, user: &str, key: &PublicKey) -> Auth {
        if user == "root" && (self.keys)(key) {
            Auth::Accept
        } else {
            Auth::reject()
        }
    }

    /// Runs `argv` on the channel and answers the request.
    fn run(
        &mut self,
        id: ChannelId,
        argv: Vec<String>,
        session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        let Some(slot) = self.slots.get_mut(&id) else {
            return session.channel_failure(id);
        };
        let Some(channel) = slot.channel.take() else {
            return session.channel_failure(id);
        };
        let (env, terminal) = (std::mem::take(&mut slot.env), slot.terminal.take());
        let request = Request {
            argv,
            env,
            terminal,
            handle: session.handle(),
        };
        match exec::start(&self.machine, channel, request) {
            Ok(control) => {
                slot.control = Some(control);
                session.channel_success(id)
            }
            Err(error) => {
                tracing::warn!(%error, "exec failed");
                session.channel_failure(id)?;
                session.close(id)
            }
        }
    }

    fn control(&self, id: ChannelId, control: Control) {
        if let Some(sender) = self.slots.get(&id).and_then(|slot| slot.control.as_ref()) {
            let _ = sender.send(control);
        }
    }
}

impl Handler for Session {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(self.check(user, offer.public_key))
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        Ok(self.check(user, key.public_key))
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        self.slots.insert(
            channel.id(),
            Slot {
                channel: Some(channel),
                ..Slot::default()
            },
        );
        reply.accept().await;
        Ok(())
    }

    async fn channel_close(
        &mut self,
        id: ChannelId,
        _session: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        self.slots.remove(&id);
        Ok(())
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.env.push((name.to_owned(), value.to_owned()));
        }
        session.channel_success(id)
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        _pix_width: u32,
        _pix_height: u32,
        _modes: &[(Pty, u32)],
        session: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        let Some(slot) = self.slots.get_mut(&id) else {
            return session.channel_failure(id);
        };
        slot.terminal = Some((term.to_owned(), Size { columns, rows }));
        session.channel_success(id)
    }

    async fn shell_request(
        &mut self,
        id: ChannelId,
        session: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        self.run(
            id,
            vec![self.machine.shell().to_owned(), "-l".to_owned()],
            session,
        )
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        data: &[u8],
        session: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        self.machine.tap(data);
        let line = self.machine.line(&String::from_utf8_lossy(data));
        self.run(
            id,
            vec![self.machine.shell().to_owned(), "-c".to_owned(), line],
            session,
        )
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        const SFTP: &str = "/usr/lib/openssh/sftp-server";
        if name == "sftp" && std::path::Path::new(SFTP).exists() {
            return self.run(id, vec![SFTP.to_owned()], session);
        }
        session.channel_failure(id)
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        columns: u32,
        rows: u32,
        _pix_width: u32,
        _pix_height: u32,
        _session: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        self.control(id, Control::Resize(Size { columns, rows }));
        Ok(())
    }

    async fn signal(
        &mut self,
        id: ChannelId,
        signal: Sig,
        _session: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        self.control(id, Control::Signal(signal));
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator_address: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        match u16::try_from(port) {
            _ if !self.forwarding => {
                reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
            }
            Ok(port) => self.forwards.direct(channel, host.to_owned(), port, reply),
            Err(_) => reply.reject(ChannelOpenFailure::ConnectFailed).await,
        }
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut russh::server::Session,
    ) -> Result<bool, Self::Error> {
        if !self.forwarding {
            return Ok(false);
        }
        match self.forwards.listen(address, *port, session.handle()).await {
            Ok(bound) => {
                *port = u32::from(bound);
                Ok(true)
            }
            Err(error) => {
                tracing::debug!(%error, address, port, "remote forwarding refused");
                Ok(false)
            }
        }
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _session: &mut russh::server::Session,
    ) -> Result<bool, Self::Error> {
        Ok(self.forwards.cancel(address, port))
    }
}
