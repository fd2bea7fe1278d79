//! What lies between dumont and a service of others when the weather is bad: a proxy that
//! refuses, cuts, delays, doubles, truncates and corrupts, by the dice of a seed.
//!
//! It reads one request whole, sends it on over a connection of its own and passes the answer
//! back as it came. A store's signature covers the host's name, which is the proxy's for
//! everybody, so the store checks it as usual. Which faults there are is for the test to say.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "each test uses a part, and a proxy that does not start fails its test"
)]

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What is done to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Answered here; the service hears nothing of it.
    Refuse(u16, &'static str),
    /// The service did it, and the answer is an error all the same.
    Deny,
    /// The connection ends before the service hears of it.
    Cut,
    /// Half of the request arrives, then the connection ends.
    CutRequest,
    /// The service did it, and nobody hears of it.
    LoseAnswer,
    /// The service did it, and the answer is still on its way when the test ends.
    HoldAnswer,
    /// The answer ends in the middle.
    Truncate,
    /// One bit of an object's bytes on their way down.
    Corrupt,
    /// One bit of an object's bytes on their way up: what is stored is wrong.
    Rot,
    Delay(u64),
    /// The service hears it twice; the second answer is the one that comes back.
    Double,
}

/// What may happen to this request, by these dice.
pub type Faults = dyn FnMut(&mut StdRng, &Request) -> Option<Fault> + Send;

/// How bad it is.
pub struct Weather {
    dice: StdRng,
    /// Of a thousand requests so many meet a fault.
    permille: u32,
    faults: Box<Faults>,
}

impl Weather {
    pub fn new(
        seed: u64,
        permille: u32,
        faults: impl FnMut(&mut StdRng, &Request) -> Option<Fault> + Send + 'static,
    ) -> Self {
        Self {
            dice: StdRng::seed_from_u64(seed),
            permille,
            faults: Box::new(faults),
        }
    }

    fn fault(&mut self, request: &Request) -> Option<Fault> {
        let struck = self.dice.random_range(0..1000) < self.permille;
        struck.then(|| (self.faults)(&mut self.dice, request)).flatten()
    }
}

pub struct Proxy {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    store: SocketAddr,
    weather: Mutex<Option<Weather>>,
    requests: AtomicU64,
    faults: AtomicU64,
    rotten: AtomicU64,
    /// Of each request, if they are numbered.
    sent: Option<Mutex<Vec<Sent>>>,
}

/// One request as it came here, before anything befell it. Its number is its place, and the service
/// reads it in `X-Request-Id`.
#[derive(Debug, Clone)]
pub struct Sent {
    pub at: Instant,
    pub method: String,
    pub target: String,
    pub fault: Option<Fault>,
}

impl Proxy {
    /// One that takes note of all requests, and numbers them.
    pub async fn numbering(service: SocketAddr) -> Self {
        Self::on(service, Some(Mutex::default())).await
    }

    pub async fn start(store: SocketAddr) -> Self {
        Self::on(store, None).await
    }

    async fn on(store: SocketAddr, sent: Option<Mutex<Vec<Sent>>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shared = Arc::new(Shared {
            store,
            weather: Mutex::default(),
            requests: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            rotten: AtomicU64::new(0),
            sent,
        });
        let addr = listener.local_addr().unwrap();
        let serving = shared.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let shared = serving.clone();
                // What breaks here is broken for the client, who is there to bear it.
                tokio::spawn(async move { shared.serve(client).await });
            }
        });
        Self { addr, shared }
    }

    pub fn set(&self, weather: Option<Weather>) {
        *self.shared.weather.lock().unwrap() = weather;
    }

    pub fn sent(&self) -> Vec<Sent> {
        let sent = self.shared.sent.as_ref();
        sent.map(|all| all.lock().unwrap().clone()).unwrap_or_default()
    }

    /// Requests, faults, and objects that were stored damaged.
    pub fn counts(&self) -> [u64; 3] {
        let s = &self.shared;
        [&s.requests, &s.faults, &s.rotten].map(|n| n.load(Relaxed))
    }
}

pub struct Request {
    pub method: String,
    pub target: String,
    head: Vec<u8>,
    body: Vec<u8>,
}

impl Request {
    async fn read(from: &mut TcpStream) -> Option<Self> {
        let mut bytes = Vec::new();
        let end = loop {
            if let Some(at) = find(&bytes, b"\r\n\r\n") {
                break at + 4;
            }
            if from.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
        };
        let mut body = bytes.split_off(end);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let mut words = text.split_whitespace();
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut head = format!("{}\r\nconnection: close\r\n", text.lines().next()?);
        let mut length = 0;
        for line in text.lines().skip(1) {
            let name = line.split(':').next()?.to_ascii_lowercase();
            assert_ne!(name, "transfer-encoding", "a request without a length");
            if name == "content-length" {
                length = line.split(':').nth(1)?.trim().parse().ok()?;
            }
            if name != "connection" {
                head.push_str(line);
                head.push_str("\r\n");
            }
        }
        while body.len() < length {
            if from.read_buf(&mut body).await.ok()? == 0 {
                return None;
            }
        }
        Some(Self {
            method,
            target,
            head: head.into_bytes(),
            body,
        })
    }
}

impl Shared {
    /// Takes note of a request, and gives it its number.
    fn number(&self, request: &mut Request, fault: Option<Fault>) {
        let Some(sent) = &self.sent else { return };
        let mut sent = sent.lock().unwrap();
        let at = find(&request.head, b"\r\n").map_or(0, |end| end + 2);
        let line = format!("x-request-id: {}\r\n", sent.len());
        request.head.splice(at..at, line.into_bytes());
        sent.push(Sent {
            at: Instant::now(),
            method: request.method.clone(),
            target: request.target.clone(),
            fault,
        });
    }

    async fn ask(&self, request: &Request) -> Option<Vec<u8>> {
        let mut answer = Vec::new();
        let mut service = TcpStream::connect(self.store).await.ok()?;
        service.write_all(&request.head).await.ok()?;
        service.write_all(&request.body).await.ok()?;
        service.read_to_end(&mut answer).await.ok()?;
        Some(answer)
    }

    async fn serve(&self, mut client: TcpStream) -> Option<()> {
        let mut request = Request::read(&mut client).await?;
        self.requests.fetch_add(1, Relaxed);
        let fault = {
            let mut weather = self.weather.lock().unwrap();
            weather.as_mut().and_then(|w| w.fault(&request))
        };
        self.faults.fetch_add(u64::from(fault.is_some()), Relaxed);
        self.number(&mut request, fault);
        match fault {
            Some(Fault::Refuse(status, code)) => {
                return client.write_all(&refusal(status, code)).await.ok();
            }
            Some(Fault::Cut) => return None,
            Some(Fault::CutRequest) => {
                let half = request.body.len() / 2;
                let mut store = TcpStream::connect(self.store).await.ok()?;
                store.write_all(&request.head).await.ok()?;
                // One without a body would be complete.
                store.write_all(&request.body[..half]).await.ok()?;
                return None;
            }
            Some(Fault::Delay(ms)) => tokio::time::sleep(Duration::from_millis(ms)).await,
            Some(Fault::Rot) => {
                flip(&mut request.body);
                self.rotten.fetch_add(1, Relaxed);
            }
            Some(Fault::Double) => drop(self.ask(&request).await?),
            _ => {}
        }
        let mut answer = self.ask(&request).await?;
        let body_at = find(&answer, b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
        match fault {
            Some(Fault::LoseAnswer) => return None,
            Some(Fault::HoldAnswer) => std::future::pending().await,
            Some(Fault::Deny) => answer = refusal(500, "InternalError"),
            Some(Fault::Truncate) => answer.truncate(body_at + (answer.len() - body_at) / 2),
            Some(Fault::Corrupt) => flip(&mut answer[body_at..]),
            _ => {}
        }
        client.write_all(&answer).await.ok()?;
        client.shutdown().await.ok()
    }
}

fn refusal(status: u16, code: &str) -> Vec<u8> {
    let body = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>as the dice fell</Message></Error>"
    );
    let length = body.len();
    format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}").into_bytes()
}

fn flip(bytes: &mut [u8]) {
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 4;
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}
