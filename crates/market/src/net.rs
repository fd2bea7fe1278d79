//! Streams that can be cut from outside.
//!
//! A dead host does not say goodbye. Neither russh nor axum can drop a
//! connection from outside without their farewell, so both are given a stream
//! that fails as soon as its token is cancelled.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A TCP stream that fails once `cut` is cancelled; the peer sees a reset. While it is
/// unplugged nothing passes, and nobody is told.
pub struct Cuttable {
    inner: TcpStream,
    traffic: Option<Arc<Traffic>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    dead: bool,
    read_plug: Plug,
    write_plug: Plug,
}

/// Bytes that went into a machine and out of it.
#[derive(Debug, Default)]
pub struct Traffic {
    pub inwards: AtomicU64,
    pub outwards: AtomicU64,
}

/// One direction's view of the cable.
struct Plug {
    plugged: Option<watch::Receiver<bool>>,
    mended: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Plug {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(plugged) = &self.plugged else {
            return Poll::Ready(());
        };
        if *plugged.borrow() {
            self.mended = None;
            return Poll::Ready(());
        }
        let mended = self.mended.get_or_insert_with(|| {
            let mut plugged = plugged.clone();
            Box::pin(async move { drop(plugged.wait_for(|on| *on).await) })
        });
        ready!(mended.as_mut().poll(cx));
        self.mended = None;
        Poll::Ready(())
    }
}

impl Cuttable {
    pub fn new(inner: TcpStream, cut: CancellationToken) -> Self {
        Self {
            inner,
            traffic: None,
            cut: Box::pin(cut.cancelled_owned()),
            dead: false,
            read_plug: Plug {
                plugged: None,
                mended: None,
            },
            write_plug: Plug {
                plugged: None,
                mended: None,
            },
        }
    }

    /// Passes bytes only while `plugged` says true.
    pub fn with_plug(mut self, plugged: watch::Receiver<bool>) -> Self {
        self.read_plug.plugged = Some(plugged.clone());
        self.write_plug.plugged = Some(plugged);
        self
    }

    /// Counts what passes.
    pub fn with_traffic(mut self, traffic: Arc<Traffic>) -> Self {
        self.traffic = Some(traffic);
        self
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
        ready!(self.read_plug.poll(cx));
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if let Some(traffic) = &self.traffic {
            let bytes = buf.filled().len() - before;
            traffic.inwards.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for Cuttable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        ready!(self.write_plug.poll(cx));
        let wrote = Pin::new(&mut self.inner).poll_write(cx, buf);
        if let (Some(traffic), Poll::Ready(Ok(bytes))) = (&self.traffic, &wrote) {
            traffic.outwards.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
        wrote
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

/// Takes every write at once and sends it when the peer will have it.
///
/// A russh connection does not read while it writes. Two of them that fill each
/// other's socket buffers wait for each other for ever, where OpenSSH would
/// buffer and go on reading; a machine must behave as OpenSSH here. What can
/// pile up is bounded by the channel windows that the peer granted.
pub struct Eager {
    inner: Cuttable,
    queue: BytesMut,
}

/// No sum of windows comes near this; it guards against a peer that grants without end.
const EAGER_LIMIT: usize = 256 << 20;

impl Eager {
    pub fn new(inner: Cuttable) -> Self {
        Self {
            inner,
            queue: BytesMut::new(),
        }
    }

    /// Sends what it can. Ready when all is sent.
    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.queue.is_empty() {
            let n = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.queue))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.queue.advance(n);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Eager {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // The connection's task always waits here, so this is where the queue is driven.
        if let Poll::Ready(Err(error)) = self.drive(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Eager {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.drive(cx) {
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => {
                if let Poll::Ready(done) = Pin::new(&mut self.inner).poll_write(cx, buf) {
                    return Poll::Ready(done);
                }
            }
            Poll::Pending if self.queue.len() >= EAGER_LIMIT => return Poll::Pending,
            Poll::Pending => {}
        }
        self.queue.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.drive(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.drive(cx))?;
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
    pub ip: Option<IpAddr>,
}

impl Listener for CuttableListener {
    type Io = Cuttable;
    type Addr = Peer;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (stream, from) = Listener::accept(&mut self.listener).await;
        let cut = self.all.child_token();
        let _ = stream.set_nodelay(true);
        let ip = Some(from.ip());
        (Cuttable::new(stream, cut.clone()), Peer { cut, ip })
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(Peer {
            cut: self.all.clone(),
            ip: None,
        })
    }
}

impl Connected<IncomingStream<'_, CuttableListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, CuttableListener>) -> Self {
        stream.remote_addr().clone()
    }
}
