//! PUT and GET on URLs that the controller signed; nothing here knows what is behind them.
//!
//! No name is ever resolved: a URL's host is an address, or its addresses came with it. Glibc's
//! resolver, linked statically, loads the host's modules and may crash; and a host's resolver
//! is not ours to trust. Redirects are not followed: where an object is, the controller said.
//! Proxies from the environment are ignored for the same reason.
//!
//! What is tried again: a broken or silent connection and the statuses by which a store says
//! "later". Everything else is an answer. A store's "not implemented" (501) stays 501.

use crate::job::{Job, lock};
use crate::tls::{Tls, Trust};
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use ureq::config::Config;
use ureq::http::{Response, Uri};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Connector, NextTimeout, TcpConnector};
use ureq::{Agent, Body, Error};

/// Tries of one request, the first included: some 8 s of waiting when all fail at once.
const ATTEMPTS: u32 = 5;
/// An object is tens of MB; a host that streams more is not answering our question.
const MAX_BODY: u64 = 1 << 30;
/// Bytes of an error's body that are worth repeating.
const DETAIL: u64 = 400;

/// Bytes of a probed service's answer that are looked at.
const ANSWER: u64 = 1 << 20;

/// Why a transfer did not happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpError {
    Cancelled,
    /// The store has no such object.
    Missing,
    /// The signature does not hold, mostly because its time is over.
    Refused(String),
    /// The store has no room left.
    Full(String),
    /// Any other status, and what the store said with it.
    Status(u16, String),
    /// The store's certificate, or its TLS, is not accepted.
    Certificate(String),
    /// It is not a URL that the agent can use.
    BadUrl(String),
    /// Tried often enough; the last error.
    Exhausted(String),
}

/// One try that failed.
enum Failed {
    Final(HttpError),
    /// `unclear`: the request may have had its effect.
    Again {
        why: String,
        unclear: bool,
    },
}

/// The connections of one job: kept alive between its requests, cut when it is cancelled.
#[derive(Debug)]
pub struct Http {
    agent: Agent,
    names: Names,
}

/// What a good PUT said.
#[derive(Debug, Default)]
pub struct Put {
    /// The store's version id, if it names one.
    pub version: Option<String>,
    /// Its tag for what it took.
    pub tag: Option<String>,
}

impl Http {
    pub fn new(trust: &Trust) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent(concat!("dumont-agent/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_per_read(Some(Duration::from_secs(30)))
            .timeout_per_write(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(90)))
            .max_idle_connections(32)
            .max_idle_connections_per_host(32)
            .build();
        let names = Names::default();
        let connector = Connector::<()>::chain(TcpConnector::default(), Tls(trust.clone()));
        Self {
            agent: Agent::with_parts(config, connector, names.clone()),
            names,
        }
    }

    /// Ends every request in flight, and makes later ones fail.
    pub fn cut(&self) {
        self.agent.clone().shutdown();
    }

    /// One question to a service on this machine: a GET, or a POST of JSON. Gives the status,
    /// whatever it is, and at most 1 MiB of the body; there are no retries, a probe has its own.
    pub fn ask(
        &self,
        url: &str,
        question: Option<&serde_json::Value>,
        limit: Duration,
    ) -> Result<(u16, Vec<u8>), String> {
        let answer = match question {
            None => {
                let request = self.agent.get(url).config().timeout_global(Some(limit)).build();
                request.call()
            }
            Some(json) => {
                let request = self.agent.post(url).header("content-type", "application/json");
                let request = request.config().timeout_global(Some(limit)).build();
                request.send(json.to_string())
            }
        };
        let mut response = answer.map_err(|e| e.to_string())?;
        let mut body = Vec::new();
        let mut reader = response.body_mut().as_reader().take(ANSWER);
        reader.read_to_end(&mut body).map_err(|e| e.to_string())?;
        Ok((response.status().as_u16(), body))
    }

    /// Creates an object, or a part of one.
    pub fn put(
        &self,
        job: &Job,
        url: &str,
        addresses: &[IpAddr],
        headers: &BTreeMap<String, String>,
        body: &[u8],
    ) -> Result<Put, HttpError> {
        self.names.note(url, addresses);
        with_retries(job, |unclear_before| {
            let mut request = self.agent.put(url);
            for (name, value) in granted(headers) {
                request = request.header(name, value);
            }
            let response = request.send(body).map_err(|e| classify(&e))?;
            let header = |name| response.headers().get(name)?.to_str().ok().map(str::to_owned);
            let said = Put {
                version: header("x-amz-version-id"),
                tag: header("etag"),
            };
            match check(response) {
                Ok(mut response) => {
                    // An unread answer costs the connection.
                    let _ = io::copy(&mut response.body_mut().as_reader().take(DETAIL), &mut io::sink());
                    Ok(said)
                }
                // Create-only, and our own earlier try had got through after all.
                Err(Failed::Final(HttpError::Status(412, _))) if unclear_before => Ok(said),
                Err(e) => Err(e),
            }
        })
    }

    /// Reads an object or a part of it into `out`, whose content it replaces.
    pub fn get(
        &self,
        job: &Job,
        url: &str,
        addresses: &[IpAddr],
        headers: &BTreeMap<String, String>,
        range: Option<&Range<u64>>,
        out: &mut Vec<u8>,
    ) -> Result<(), HttpError> {
        self.names.note(url, addresses);
        out.clear();
        if range.is_some_and(Range::is_empty) {
            return Ok(());
        }
        // What came before a connection broke is not asked for again.
        with_retries(job, |_| {
            let mut request = self.agent.get(url);
            for (name, value) in granted(headers) {
                request = request.header(name, value);
            }
            let rest = range.map(|r| r.start.saturating_add(out.len() as u64)..r.end);
            if let Some(r) = &rest {
                request = request.header("range", format!("bytes={}-{}", r.start, r.end.saturating_sub(1)));
            }
            let response = request.call().map_err(|e| classify(&e))?;
            if range.is_some() && response.status().as_u16() == 416 {
                return Ok(());
            }
            read(check(response)?, rest.as_ref(), out)
        })
    }
}

/// What the signature covers, less what the client sets from the body itself.
fn granted(headers: &BTreeMap<String, String>) -> impl Iterator<Item = (&String, &String)> {
    headers
        .iter()
        .filter(|(name, _)| !name.eq_ignore_ascii_case("content-length"))
}

fn with_retries<T>(job: &Job, mut once: impl FnMut(bool) -> Result<T, Failed>) -> Result<T, HttpError> {
    let (mut last, mut maybe_done) = (String::new(), false);
    for attempt in 0..ATTEMPTS {
        if attempt > 0 && !job.sleep(pause(attempt)) || job.is_cancelled() {
            return Err(HttpError::Cancelled);
        }
        match once(maybe_done) {
            Ok(done) => return Ok(done),
            Err(Failed::Final(e)) => return Err(e),
            Err(Failed::Again { why, unclear }) => (last, maybe_done) = (why, maybe_done || unclear),
        }
    }
    Err(if job.is_cancelled() {
        HttpError::Cancelled
    } else {
        HttpError::Exhausted(last)
    })
}

/// 0.5 s, 1 s, 2 s, 4 s, each shortened by up to half: machines that lost the same store
/// must not come back in step.
fn pause(attempt: u32) -> Duration {
    let full = 250u64 << attempt.min(4);
    // Hash keys are seeded by the kernel: randomness enough, and no dependency.
    let jitter = RandomState::new().hash_one(attempt) % (full / 2);
    Duration::from_millis(full - jitter)
}

/// The body of a good answer is still to be read.
fn check(mut response: Response<Body>) -> Result<Response<Body>, Failed> {
    let status = response.status().as_u16();
    if (200..300).contains(&status) {
        return Ok(response);
    }
    let mut text = Vec::new();
    let _ = response
        .body_mut()
        .as_reader()
        .take(DETAIL)
        .read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    Err(match status {
        408 | 429 | 500 | 502 | 503 | 504 => Failed::Again {
            why: format!("status {status} {text}"),
            unclear: !matches!(status, 429 | 503),
        },
        401 | 403 => Failed::Final(HttpError::Refused(text)),
        404 | 410 => Failed::Final(HttpError::Missing),
        507 => Failed::Final(HttpError::Full(text)),
        _ => Failed::Final(HttpError::Status(status, text)),
    })
}

fn classify(e: &Error) -> Failed {
    match e {
        Error::Io(_) | Error::Timeout(_) | Error::Protocol(_) | Error::ConnectionFailed => Failed::Again {
            why: e.to_string(),
            unclear: true,
        },
        Error::Http(_) | Error::BadUri(_) | Error::HostNotFound => {
            Failed::Final(HttpError::BadUrl(e.to_string()))
        }
        // A wrong certificate does not get better, and says what is wrong.
        Error::Rustls(e) => Failed::Final(HttpError::Certificate(e.to_string())),
        other => Failed::Final(HttpError::Status(0, other.to_string())),
    }
}

/// The bytes asked for, fewer if the object ends earlier: what that means is the engine's to
/// say. A server that ignores ranges is understood.
/// Appends the answer's bytes to `out`, those before it breaks off included.
fn read(mut response: Response<Body>, range: Option<&Range<u64>>, out: &mut Vec<u8>) -> Result<(), Failed> {
    let partial = response.status().as_u16() == 206;
    let mut body = response.body_mut().as_reader();
    let broken = |e: io::Error| Failed::Again {
        why: format!("body: {e}"),
        unclear: false,
    };
    let Some(range) = range else {
        out.clear();
        body.take(MAX_BODY).read_to_end(out).map_err(broken)?;
        return Ok(());
    };
    let wanted = range.end.saturating_sub(range.start).min(MAX_BODY);
    if !partial {
        io::copy(&mut (&mut body).take(range.start), &mut io::sink()).map_err(broken)?;
    }
    out.reserve(wanted as usize);
    (&mut body).take(wanted).read_to_end(out).map_err(broken)?;
    if partial {
        // Reads to the end, so that the connection can be used again; there should be nothing.
        let _ = io::copy(&mut body.take(DETAIL), &mut io::sink());
    }
    Ok(())
}

/// Addresses that came with URLs, by host.
#[derive(Debug, Clone, Default)]
struct Names(Arc<Mutex<HashMap<String, Vec<IpAddr>>>>);

impl Names {
    fn note(&self, url: &str, addresses: &[IpAddr]) {
        let Ok(uri) = url.parse::<Uri>() else { return };
        if let (Some(host), false) = (uri.host(), addresses.is_empty()) {
            let mut known = lock(&self.0);
            if known.get(host).is_none_or(|k| k != addresses) {
                known.insert(host.to_owned(), addresses.to_vec());
            }
        }
    }

    /// The URL's own address, or those that came with it.
    fn of(&self, uri: &Uri) -> Vec<SocketAddr> {
        let Some(host) = uri.host() else {
            return Vec::new();
        };
        let default = if uri.scheme_str() == Some("https") {
            443
        } else {
            80
        };
        let port = uri.port_u16().unwrap_or(default);
        let ips = match host.trim_start_matches('[').trim_end_matches(']').parse() {
            Ok(ip) => vec![ip],
            Err(_) => lock(&self.0).get(host).cloned().unwrap_or_default(),
        };
        ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()
    }
}

/// Whatever would need a lookup is refused.
impl Resolver for Names {
    fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let mut out = self.empty();
        // Its type holds so many at most.
        for address in self.of(uri).into_iter().take(16) {
            out.push(address);
        }
        if out.is_empty() {
            let host = uri.host().unwrap_or("");
            return Err(Error::BadUri(format!(
                "no address came with host {host:?}, and the agent resolves no names"
            )));
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_came_along_are_used() {
        let names = Names::default();
        let at = |u: &str| {
            let found = names.of(&u.parse().unwrap());
            found
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(at("http://127.0.0.1:8080/x?y"), "127.0.0.1:8080");
        assert_eq!(at("https://[::1]/x"), "[::1]:443");
        assert_eq!(at("http://localhost/x"), "");
        assert_eq!(at("https://s3.example.com/x"), "");
        names.note(
            "https://s3.example.com/y?z",
            &["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        );
        assert_eq!(at("https://s3.example.com/x"), "192.0.2.1:443 [2001:db8::1]:443");
        assert_eq!(at("https://other.example.com/x"), "");
    }

    #[test]
    fn pauses_grow_and_differ() {
        assert!(
            (1..20).all(|i| pause(i) <= Duration::from_secs(4) && pause(i) >= Duration::from_millis(250))
        );
        let some: std::collections::BTreeSet<_> = (0..20).map(|_| pause(4)).collect();
        assert!(some.len() > 1);
    }
}
