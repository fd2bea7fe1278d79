//! Our end of the bulk connection where a machine's sshd forwards no ports: the agent listens
//! there itself and carries each connection over the stdio of an SSH channel, and here each is
//! answered in process, as a forwarded one would be (`wire/src/mux.rs`).
//!
//! The machine is not trusted: it may have so many streams and so many bytes under way, and a
//! frame beyond either ends the connection.

use super::{LinkError, Target, install};
use crate::ssh::Connection;
use axum::Router;
use dumont_wire::frame::MARKER;
use dumont_wire::mux::{Decoder, Frame, MAX_PAYLOAD, MAX_STREAMS, WINDOW, encode};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use russh::{ChannelMsg, ChannelReadHalf};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// Between a stream and the service that answers it.
const PIPE: usize = 256 << 10;
/// How long the other end may take to say where it listens.
const BEGIN: Duration = Duration::from_secs(15);
/// What a machine may print before our program speaks.
const NOISE: usize = 1 << 20;

/// Carries streams until it is dropped or the connection ends.
pub struct Carrier {
    /// The machine's loopback port that leads here.
    pub port: u16,
    _task: AbortOnDropHandle<()>,
}

/// Starts the agent's other end on `bulk`; its program is on the machine already.
pub async fn start(bulk: &Connection, target: &Target, service: Router) -> Result<Carrier, LinkError> {
    let line = format!("exec \"$HOME\"/{} bulk", install::place(&target.agent));
    let channel = bulk.exec(&install::at_home(target, &line)).await?;
    let (mut reader, writer) = channel.split();
    let mut decoder = Decoder::default();
    let port = timeout(BEGIN, listening(&mut reader, &mut decoder))
        .await
        .unwrap_or(Err(LinkError::Timeout(BEGIN)))?;
    let (outgoing, mut queue) = mpsc::channel::<Vec<u8>>(64);
    let task = tokio::spawn(async move {
        let writing = async {
            while let Some(bytes) = queue.recv().await {
                if writer.data_bytes(bytes).await.is_err() {
                    return;
                }
            }
        };
        let mut streams = Streams {
            open: HashMap::new(),
            outgoing,
            service,
            tasks: JoinSet::new(),
        };
        tokio::select! {
            () = writing => {}
            why = streams.run(&mut reader, &mut decoder) => tracing::debug!(why, "a carrier ended"),
        }
    });
    Ok(Carrier {
        port,
        _task: AbortOnDropHandle::new(task),
    })
}

/// Skips what the host prints, then reads the first frame.
async fn listening(reader: &mut ChannelReadHalf, decoder: &mut Decoder) -> Result<u16, LinkError> {
    let mut seen = Vec::new();
    loop {
        match reader.wait().await {
            Some(ChannelMsg::Data { data }) => seen.extend_from_slice(&data),
            Some(ChannelMsg::ExitStatus { .. } | ChannelMsg::Close) | None => {
                return Err(LinkError::NoAgent("its carrier ended at once".into()));
            }
            Some(_) => continue,
        }
        let marker = seen.windows(MARKER.len()).position(|w| w == MARKER);
        if let Some(at) = marker {
            seen.drain(..at + MARKER.len());
            break;
        }
        if seen.len() > NOISE {
            return Err(LinkError::NoAgent("the machine prints without end".into()));
        }
    }
    decoder.push(&seen);
    loop {
        match decoder.next_frame() {
            Ok(Some((0, Frame::Listening(port)))) if port != 0 => return Ok(port),
            Ok(None) => {}
            other => return Err(LinkError::Protocol(format!("its carrier began with {other:?}"))),
        }
        match reader.wait().await {
            Some(ChannelMsg::Data { data }) => decoder.push(&data),
            Some(ChannelMsg::Close) | None => {
                return Err(LinkError::NoAgent("its carrier ended at once".into()));
            }
            Some(_) => {}
        }
    }
}

struct Stream {
    /// For the service; closed at the machine's end of data.
    incoming: Option<mpsc::UnboundedSender<Vec<u8>>>,
    /// Received and not yet passed on.
    held: Arc<AtomicUsize>,
    credit: Arc<Semaphore>,
}

struct Streams {
    open: HashMap<u32, Stream>,
    outgoing: mpsc::Sender<Vec<u8>>,
    service: Router,
    tasks: JoinSet<u32>,
}

impl Streams {
    /// Gives why it ended.
    async fn run(&mut self, reader: &mut ChannelReadHalf, decoder: &mut Decoder) -> String {
        loop {
            loop {
                match decoder.next_frame() {
                    Ok(Some((id, frame))) => {
                        if let Err(why) = self.take(id, frame).await {
                            return why;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => return error.to_string(),
                }
            }
            tokio::select! {
                message = reader.wait() => match message {
                    Some(ChannelMsg::Data { data }) => decoder.push(&data),
                    Some(ChannelMsg::Close) | None => return "the channel closed".into(),
                    Some(_) => {}
                },
                Some(ended) = self.tasks.join_next() => {
                    if let Ok(id) = ended {
                        self.open.remove(&id);
                    }
                }
            }
        }
    }

    async fn take(&mut self, id: u32, frame: Frame) -> Result<(), String> {
        match frame {
            Frame::Open if self.open.len() >= MAX_STREAMS || self.open.contains_key(&id) => {
                self.send(id, &Frame::Reset).await;
            }
            Frame::Open => self.begin(id),
            Frame::Data(bytes) => {
                // A frame for a stream that has just ended crossed its end.
                let Some(stream) = self.open.get(&id) else {
                    return Ok(());
                };
                let held = stream.held.fetch_add(bytes.len(), Ordering::AcqRel) + bytes.len();
                if held > WINDOW {
                    return Err("it sends more than its window".into());
                }
                if let Some(incoming) = &stream.incoming {
                    let _ = incoming.send(bytes);
                }
            }
            Frame::Credit(n) => {
                if let Some(stream) = self.open.get(&id) {
                    let n = n as usize;
                    if stream.credit.available_permits().saturating_add(n) > WINDOW {
                        return Err("it gives more credit than its window".into());
                    }
                    stream.credit.add_permits(n);
                }
            }
            Frame::Eof => {
                if let Some(stream) = self.open.get_mut(&id) {
                    stream.incoming = None;
                }
            }
            Frame::Reset => {
                if let Some(stream) = self.open.remove(&id) {
                    // Its task must not wait for credit that will never come.
                    stream.credit.close();
                }
            }
            Frame::Listening(_) => return Err("it listens twice".into()),
        }
        Ok(())
    }

    fn begin(&mut self, id: u32) {
        let (ours, theirs) = tokio::io::duplex(PIPE);
        let service = TowerToHyperService::new(self.service.clone());
        let (incoming, queue) = mpsc::unbounded_channel();
        let (held, credit) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(WINDOW)));
        self.open.insert(
            id,
            Stream {
                incoming: Some(incoming),
                held: held.clone(),
                credit: credit.clone(),
            },
        );
        let (from_service, to_service) = tokio::io::split(ours);
        let outgoing = self.outgoing.clone();
        self.tasks.spawn(async move {
            // A broken transfer is the agent's to notice and repeat.
            let serving =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(theirs), service);
            let _ = tokio::join!(
                serving,
                inwards(id, queue, to_service, &held, &outgoing),
                outwards(id, from_service, &credit, &outgoing),
            );
            id
        });
    }

    async fn send(&self, id: u32, frame: &Frame) {
        let _ = self.outgoing.send(encode(id, frame)).await;
    }
}

/// From the machine to the service.
async fn inwards(
    id: u32,
    mut queue: mpsc::UnboundedReceiver<Vec<u8>>,
    mut to_service: WriteHalf<DuplexStream>,
    held: &AtomicUsize,
    outgoing: &mpsc::Sender<Vec<u8>>,
) {
    let mut open = true;
    while let Some(bytes) = queue.recv().await {
        // Drained on after the service has closed: the machine may not have seen that yet.
        open = open && to_service.write_all(&bytes).await.is_ok();
        held.fetch_sub(bytes.len(), Ordering::AcqRel);
        let credit = encode(id, &Frame::Credit(bytes.len() as u32));
        if outgoing.send(credit).await.is_err() {
            return;
        }
    }
    let _ = to_service.shutdown().await;
}

/// From the service to the machine.
async fn outwards(
    id: u32,
    mut from_service: ReadHalf<DuplexStream>,
    credit: &Semaphore,
    outgoing: &mpsc::Sender<Vec<u8>>,
) {
    let mut buffer = vec![0; MAX_PAYLOAD];
    while let Ok(n) = from_service.read(&mut buffer).await
        && n > 0
    {
        let Ok(permits) = credit.acquire_many(n as u32).await else {
            return;
        };
        permits.forget();
        if outgoing
            .send(encode(id, &Frame::Data(buffer[..n].to_vec())))
            .await
            .is_err()
        {
            return;
        }
    }
    let _ = outgoing.send(encode(id, &Frame::Eof)).await;
}
