//! What the network, the hash and the disk alone would take: no engine can be faster than the
//! slowest of them, nor, where client and server share the cores, than what they cost together.

use anyhow::{Context, Result, bail};
use dumont_core::snapshot::ObjectRef;
use dumont_server::objects::ObjectStore;
use serde::Serialize;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use url::Url;

/// What the engine uses by default on two cores.
const CONNECTIONS: usize = 4;
const RANGE: u64 = 16 << 20;

/// Seconds; `None` where it could not be measured.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Limits {
    /// Reading the same objects by ranges, and nothing else.
    pub get_s: Option<f64>,
    /// BLAKE3 of all files, from the page cache, on all cores.
    pub hash_s: f64,
    /// Writing all files anew, from memory.
    pub write_s: f64,
}

pub async fn measure(
    store: &dyn ObjectStore,
    objects: &[ObjectRef],
    tree: &Path,
    to: &Path,
) -> Result<Limits> {
    let mut urls = Vec::new();
    for object in objects {
        let grant = store.grant_download("", &object.key).await?;
        urls.extend(grant.url.map(|url| (url, object.size)));
    }
    let (tree, to) = (tree.to_owned(), to.to_owned());
    tokio::task::spawn_blocking(move || {
        let files = files(&tree)?;
        Ok(Limits {
            get_s: get_all(&urls).ok(),
            hash_s: timed(|| each(&files, |(path, len)| hash(&tree.join(path), *len)))?,
            write_s: timed(|| write(&files, &to))?,
        })
    })
    .await?
}

fn timed(f: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begin = Instant::now();
    f()?;
    Ok(begin.elapsed().as_secs_f64())
}

/// Runs `f` over all items on as many threads as there are connections.
fn each<T: Sync>(items: &[T], f: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            f(item)?;
        }
        anyhow::Ok(())
    };
    std::thread::scope(|s| {
        let threads: Vec<_> = (0..CONNECTIONS).map(|_| s.spawn(work)).collect();
        let mut done = threads.into_iter().map(|t| t.join());
        done.try_for_each(|t| t.unwrap_or_else(|_| bail!("a thread panicked")))
    })
}

/// Names below `root`, and sizes.
fn files(root: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let (mut todo, mut out) = (vec![root.to_owned()], Vec::new());
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir)? {
            let (entry, meta) = entry.and_then(|e| e.metadata().map(|m| (e, m)))?;
            if meta.is_dir() {
                todo.push(entry.path());
            } else if meta.is_file() {
                out.push((entry.path().strip_prefix(root)?.to_owned(), meta.len()));
            }
        }
    }
    out.sort();
    Ok(out)
}

fn hash(path: &Path, len: u64) -> Result<()> {
    let (file, mut buffer, mut at) = (File::open(path)?, vec![0; len.min(1 << 20) as usize], 0);
    let mut hasher = blake3::Hasher::new();
    while at < len {
        let n = file.read_at(&mut buffer, at)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        at += n as u64;
    }
    std::hint::black_box(hasher.finalize());
    Ok(())
}

fn write(files: &[(PathBuf, u64)], to: &Path) -> Result<()> {
    for (path, _) in files {
        path.parent()
            .map_or(Ok(()), |dir| fs::create_dir_all(to.join(dir)))?;
    }
    let block = vec![0x5a; 1 << 20];
    each(files, |(path, len)| {
        let mut file = File::create(to.join(path))?;
        let mut left = *len;
        while left > 0 {
            let n = left.min(block.len() as u64);
            file.write_all(&block[..n as usize])?;
            left -= n;
        }
        Ok(())
    })
}

fn get_all(urls: &[(String, u64)]) -> Result<f64> {
    let ranges: Vec<(&str, u64, u64)> = urls
        .iter()
        .flat_map(|(url, size)| {
            let starts = (0..*size).step_by(RANGE as usize);
            starts.map(move |at| (url.as_str(), at, (at + RANGE).min(*size)))
        })
        .collect();
    let idle: std::sync::Mutex<Vec<Connection>> = std::sync::Mutex::default();
    timed(|| {
        each(&ranges, |(url, from, to)| {
            let kept = idle.lock().ok().and_then(|mut i| i.pop());
            let url = Url::parse(url)?;
            let mut connection = kept.map_or_else(|| Connection::open(&url), Ok)?;
            connection.get(&url, *from, *to)?;
            if let Ok(mut idle) = idle.lock() {
                idle.push(connection);
            }
            Ok(())
        })
    })
}

/// Just enough of HTTP to fetch a range over a connection that stays open.
struct Connection {
    stream: BufReader<TcpStream>,
    buffer: Vec<u8>,
}

impl Connection {
    fn open(url: &Url) -> Result<Self> {
        if url.scheme() != "http" {
            bail!("the limit is only measured without TLS");
        }
        let address = url.socket_addrs(|| None)?;
        let stream = TcpStream::connect(address.first().context("the store has no address")?)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::new(stream),
            buffer: vec![0; 256 << 10],
        })
    }

    fn get(&mut self, url: &Url, from: u64, to: u64) -> Result<()> {
        let host = &url[url::Position::BeforeHost..url::Position::AfterPort];
        let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
        let question = format!(
            "GET {path} HTTP/1.1\r\nhost: {host}\r\nrange: bytes={from}-{}\r\n\r\n",
            to - 1
        );
        self.stream.get_mut().write_all(question.as_bytes())?;
        let (mut line, mut first) = (String::new(), true);
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            if first && !line.contains(" 206 ") {
                bail!("the store answers {}", line.trim());
            }
            first = false;
            if line.trim().is_empty() {
                break;
            }
        }
        let mut left = to - from;
        while left > 0 {
            let most = left.min(self.buffer.len() as u64) as usize;
            let n = self.stream.read(&mut self.buffer[..most])?;
            if n == 0 {
                bail!("the store ended the connection");
            }
            left -= n as u64;
        }
        Ok(())
    }
}
