//! A small HTTP store in memory that can be told to misbehave: real sockets, real half-sent
//! answers, no knowledge of the agent.

use dumont_wire::agent::{DownloadGrant, UploadGrant, UploadWanted};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What happens to the next request instead of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// None: this request is answered as usual.
    Spared,
    Status(u16),
    /// The connection is reset before the request is read to its end.
    CutEarly,
    /// The request has its effect, and then the answer is lost or sent half.
    CutLate,
    /// No answer, for as long as the test runs.
    Stall,
}

pub struct Store {
    address: SocketAddr,
    /// What URLs begin with instead of the plain address.
    pub front: Mutex<Option<String>>,
    pub objects: Mutex<HashMap<String, Vec<u8>>>,
    pub faults: Mutex<VecDeque<Fault>>,
    pub connections: AtomicU64,
    pub requests: Mutex<Vec<String>>,
    /// Bytes of answers.
    pub sent: AtomicU64,
    next_key: AtomicU64,
}

impl Store {
    pub fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let store = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            front: Mutex::default(),
            objects: Mutex::default(),
            faults: Mutex::default(),
            connections: AtomicU64::new(0),
            requests: Mutex::default(),
            sent: AtomicU64::new(0),
            next_key: AtomicU64::new(0),
        });
        let shared = Arc::clone(&store);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                shared.connections.fetch_add(1, Ordering::Relaxed);
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        store
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn base(&self) -> String {
        let front = self.front.lock().unwrap().clone();
        front.unwrap_or_else(|| format!("http://{}", self.address))
    }

    pub fn fail_next(&self, faults: &[Fault]) {
        self.faults.lock().unwrap().extend(faults);
    }

    pub fn grant_upload(&self, wanted: &UploadWanted) -> UploadGrant {
        let n = self.next_key.fetch_add(1, Ordering::Relaxed);
        let key = format!("{}/{n:04}", wanted.kind.folder());
        let headers = BTreeMap::from([("x-signed".into(), wanted.digest.to_string())]);
        UploadGrant {
            url: format!("{}/{key}?put", self.base()),
            key,
            headers,
            parts: Vec::new(),
            addresses: vec![self.address.ip()],
        }
    }

    pub fn grant_download(&self, key: &str) -> DownloadGrant {
        let known = self.objects.lock().unwrap().contains_key(key);
        let url = known.then(|| format!("{}/{key}?get", self.base()));
        DownloadGrant {
            key: key.into(),
            url,
            headers: BTreeMap::new(),
            addresses: vec![self.address.ip()],
        }
    }

    pub fn keys(&self) -> Vec<String> {
        let mut keys: Vec<_> = self.objects.lock().unwrap().keys().cloned().collect();
        keys.sort();
        keys
    }

    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        while let Some(request) = Request::read(&mut reader) {
            self.requests
                .lock()
                .unwrap()
                .push(format!("{} {}", request.method, request.key));
            let fault = self.faults.lock().unwrap().pop_front();
            match fault {
                Some(Fault::CutEarly) => break,
                Some(Fault::Stall) => loop {
                    std::thread::sleep(Duration::from_secs(60));
                },
                _ => {}
            }
            let mut body = vec![0; request.length];
            if reader.read_exact(&mut body).is_err() {
                break;
            }
            let (status, mut answer) = match fault {
                Some(Fault::Status(status)) => (status, b"as the test wishes".to_vec()),
                _ => self.answer(&request, body),
            };
            let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n", answer.len());
            let late = fault == Some(Fault::CutLate);
            if late {
                answer.truncate(answer.len() / 2);
            }
            self.sent.fetch_add(answer.len() as u64, Ordering::Relaxed);
            let sent = if late && answer.is_empty() {
                Ok(())
            } else {
                writer.write_all(head.as_bytes())
            };
            if sent.and_then(|()| writer.write_all(&answer)).is_err() || late {
                break;
            }
        }
        let _ = writer.shutdown(Shutdown::Both);
    }

    /// Create-only, as stores that can do it are asked to be.
    fn answer(&self, request: &Request, body: Vec<u8>) -> (u16, Vec<u8>) {
        let mut objects = self.objects.lock().unwrap();
        match request.method.as_str() {
            "PUT" if objects.contains_key(&request.key) => (412, Vec::new()),
            "PUT" => {
                let digest = blake3::hash(&body).to_hex().to_string();
                if request.signed.as_deref() != Some(&digest) {
                    return (
                        400,
                        b"the signed header is missing or the body is not its digest".to_vec(),
                    );
                }
                objects.insert(request.key.clone(), body);
                (200, Vec::new())
            }
            _ => match (objects.get(&request.key), &request.range) {
                (None, _) => (404, Vec::new()),
                (Some(all), None) => (200, all.clone()),
                (Some(all), Some(r)) => match all.get(r.start..r.end.min(all.len())) {
                    Some(part) => (206, part.to_vec()),
                    None => (416, Vec::new()),
                },
            },
        }
    }
}

struct Request {
    method: String,
    key: String,
    length: usize,
    range: Option<Range<usize>>,
    signed: Option<String>,
}

impl Request {
    fn read(reader: &mut impl BufRead) -> Option<Self> {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        let mut words = line.split_whitespace();
        let (method, target) = (words.next()?.to_owned(), words.next()?);
        let key = target.trim_start_matches('/').split('?').next()?.to_owned();
        let mut request = Self {
            method,
            key,
            length: 0,
            range: None,
            signed: None,
        };
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                return Some(request);
            };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => request.length = value.parse().ok()?,
                "x-signed" => request.signed = Some(value.into()),
                "range" => {
                    let (from, to) = value.strip_prefix("bytes=")?.split_once('-')?;
                    request.range = Some(from.parse().ok()?..to.parse::<usize>().ok()? + 1);
                }
                _ => {}
            }
        }
    }
}
