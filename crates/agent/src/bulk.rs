//! `dumont-agent bulk`: this machine's end of the bulk connection where its sshd forwards no
//! ports. Listens on loopback and carries each connection over stdio (`wire/src/mux.rs`).
//!
//! Stdin is never left waiting: each stream's bytes are queued (no more than its window) and
//! written by a thread of its own. When stdin ends, the process exits there and then.

use crate::job::lock;
use dumont_wire::frame::MARKER;
use dumont_wire::mux::{Decoder, Frame, MAX_PAYLOAD, MAX_STREAMS, WINDOW, encode};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

struct Pipe {
    out: Mutex<File>,
    streams: Mutex<HashMap<u32, Arc<Stream>>>,
}

struct Stream {
    socket: TcpStream,
    /// For the socket; `None` is the end.
    incoming: Mutex<Sender<Option<Vec<u8>>>>,
    credit: Mutex<usize>,
    more_credit: Condvar,
    /// Directions that have ended.
    ended: Mutex<u8>,
}

/// Returns when stdin ends.
pub fn run() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut out = File::from(rustix::io::dup(rustix::stdio::stdout())?);
    out.write_all(MARKER)?;
    out.write_all(&encode(0, &Frame::Listening(listener.local_addr()?.port())))?;
    let pipe = Arc::new(Pipe {
        out: Mutex::new(out),
        streams: Mutex::default(),
    });
    let accepting = Arc::clone(&pipe);
    std::thread::Builder::new()
        .name("accept".into())
        .spawn(move || accepting.accept(&listener))?;
    let mut stdin = File::from(rustix::io::dup(rustix::stdio::stdin())?);
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match stdin.read(&mut buffer) {
            Ok(0) | Err(_) => std::process::exit(0),
            Ok(n) => decoder.push(&buffer[..n]),
        }
        while let Some((id, frame)) = decoder.next_frame().map_err(io::Error::other)? {
            pipe.take(id, frame);
        }
    }
}

impl Pipe {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        let mut id = 0_u32;
        for socket in listener.incoming().flatten() {
            if lock(&self.streams).len() >= MAX_STREAMS {
                continue;
            }
            id = id.wrapping_add(1);
            // Without threads there is no stream: the client sees its connection close.
            let _ = self.begin(id, socket);
        }
    }

    fn begin(self: &Arc<Self>, id: u32, socket: TcpStream) -> io::Result<()> {
        socket.set_nodelay(true)?;
        let (incoming, queue) = channel();
        let stream = Arc::new(Stream {
            socket,
            incoming: Mutex::new(incoming),
            credit: Mutex::new(WINDOW),
            more_credit: Condvar::new(),
            ended: Mutex::new(0),
        });
        lock(&self.streams).insert(id, Arc::clone(&stream));
        self.send(id, &Frame::Open);
        let (pipe, reading) = (Arc::clone(self), Arc::clone(&stream));
        std::thread::Builder::new()
            .name(format!("out {id}"))
            .spawn(move || pipe.outwards(id, &reading))?;
        let pipe = Arc::clone(self);
        std::thread::Builder::new()
            .name(format!("in {id}"))
            .spawn(move || pipe.inwards(id, &stream, &queue))?;
        Ok(())
    }

    fn take(&self, id: u32, frame: Frame) {
        // A frame for a stream that has just ended crossed its end.
        let Some(stream) = lock(&self.streams).get(&id).cloned() else {
            return;
        };
        match frame {
            Frame::Data(bytes) => drop(lock(&stream.incoming).send(Some(bytes))),
            Frame::Eof => drop(lock(&stream.incoming).send(None)),
            Frame::Credit(n) => {
                *lock(&stream.credit) += n as usize;
                stream.more_credit.notify_all();
            }
            Frame::Reset => {
                lock(&self.streams).remove(&id);
                let _ = stream.socket.shutdown(Shutdown::Both);
                let _ = lock(&stream.incoming).send(None);
                stream.more_credit.notify_all();
            }
            Frame::Listening(_) | Frame::Open => {}
        }
    }

    /// From the socket to the controller.
    fn outwards(&self, id: u32, stream: &Stream) {
        let mut buffer = vec![0; MAX_PAYLOAD];
        loop {
            let room = stream.room(&|| !lock(&self.streams).contains_key(&id));
            let Some(room) = room else { break };
            match (&stream.socket).read(&mut buffer[..room.min(MAX_PAYLOAD)]) {
                Ok(n) if n > 0 => {
                    *lock(&stream.credit) -= n;
                    self.send(id, &Frame::Data(buffer[..n].to_vec()));
                }
                _ => break,
            }
        }
        self.send(id, &Frame::Eof);
        self.end(id, stream);
    }

    /// From the controller to the socket.
    fn inwards(&self, id: u32, stream: &Stream, queue: &Receiver<Option<Vec<u8>>>) {
        while let Ok(Some(bytes)) = queue.recv() {
            if (&stream.socket).write_all(&bytes).is_err() {
                self.send(id, &Frame::Reset);
                lock(&self.streams).remove(&id);
                let _ = stream.socket.shutdown(Shutdown::Both);
                stream.more_credit.notify_all();
                return;
            }
            self.send(id, &Frame::Credit(bytes.len() as u32));
        }
        let _ = stream.socket.shutdown(Shutdown::Write);
        self.end(id, stream);
    }

    fn end(&self, id: u32, stream: &Stream) {
        let mut ended = lock(&stream.ended);
        *ended += 1;
        if *ended == 2 {
            lock(&self.streams).remove(&id);
        }
    }

    fn send(&self, id: u32, frame: &Frame) {
        // The controller is gone: so will stdin be, which ends the process.
        let _ = lock(&self.out).write_all(&encode(id, frame));
    }
}

impl Stream {
    /// How much may be sent now; waits for credit. `None` when the stream is over.
    fn room(&self, over: &dyn Fn() -> bool) -> Option<usize> {
        let mut credit = lock(&self.credit);
        loop {
            if over() {
                return None;
            }
            if *credit > 0 {
                return Some(*credit);
            }
            credit = self
                .more_credit
                .wait(credit)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}
