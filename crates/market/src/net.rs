//! Streams that can be cut from outside.
//!
//! A dead host does not say goodbye. Neither russh nor axum can drop a
//! connection from outside without their farewell, so both are given a stream
//! that fails as soon as its token is cancelled.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A TCP stream that fails once `cut` is cancelled; the peer sees a reset.
pub struct Cuttable {
    inner: TcpStream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    dead: bool,
}

impl Cuttable {
    pub fn new(inner: TcpStream, cut: CancellationToken) -> Self {
        Self {
            inner,
            cut: Box::pin(cut.cancelled_owned()),
            dead: false,
        }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.dead && self.cut.as_mut().poll(cx).is_ready() {
            self.dead = true;
            // Best effort: without it the peer sees an orderly close instead of a reset.
            let _ = self.inner.set_zero_linger();
        }
        if self.dead {
            Err(io::ErrorKind::ConnectionReset.into())
        } else {
            Ok(())
        }
    }
}

impl AsyncRead for Cuttable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Cuttable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// The HTTP listener whose connections a handler can cut.
pub struct CuttableListener {
    pub listener: TcpListener,
    pub all: CancellationToken,
}

/// Handed to handlers with each request.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Cancelling it closes the connection without another byte.
    pub cut: CancellationToken,
}

impl Listener for CuttableListener {
    type Io = Cuttable;
    type Addr = Peer;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (stream, _) = Listener::accept(&mut self.listener).await;
        let cut = self.all.child_token();
        let _ = stream.set_nodelay(true);
        (Cuttable::new(stream, cut.clone()), Peer { cut })
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(Peer {
            cut: self.all.clone(),
        })
    }
}

impl Connected<IncomingStream<'_, CuttableListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, CuttableListener>) -> Self {
        stream.remote_addr().clone()
    }
}
