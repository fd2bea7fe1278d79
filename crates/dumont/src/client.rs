//! The REST client: the only way the CLI reaches a server.

use crate::fail::{fail, usage};
use anyhow::Result;
use dumont_wire::rest::{ErrorBody, Page};
use reqwest::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::time::Duration;

/// A server and the token to speak to it with.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    token: String,
}

/// For what moves many bytes.
const LONG: Duration = Duration::from_secs(600);

/// A request without a body.
pub const NOTHING: Option<&()> = None;

impl Client {
    /// With `ca` only certificates of that authority are trusted, else those the system trusts.
    pub fn new(url: &str, token: &str, ca: Option<&Path>) -> Result<Self> {
        let base = url.trim_end_matches('/').to_owned();
        let parsed = reqwest::Url::parse(&base);
        if !parsed.is_ok_and(|u| matches!(u.scheme(), "http" | "https") && u.has_host()) {
            return Err(usage(
                format!("{url:?} is not a server's URL"),
                "write it like http://127.0.0.1:7070",
            ));
        }
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(usage(
                "the API token is empty or holds blanks",
                "set DUMONT_TOKEN to the token alone",
            ));
        }
        // The build chose no TLS provider of reqwest's own; a second install is refused and harmless.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // No proxy for loopback servers, whatever the environment says.
        let mut builder = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .timeout(Duration::from_secs(120))
            .user_agent(concat!("dumont/", env!("CARGO_PKG_VERSION")));
        if is_loopback(&base) {
            builder = builder.no_proxy();
        }
        if let Some(path) = ca {
            builder = builder.tls_certs_only(authorities(path)?);
        }
        Ok(Self {
            http: builder.build()?,
            base,
            token: token.into(),
        })
    }

    pub fn url(&self) -> &str {
        &self.base
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::GET, path, NOTHING).await
    }

    pub async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T> {
        self.call(Method::POST, path, Some(body)).await
    }

    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::DELETE, path, NOTHING).await
    }

    /// Every item of a paged list.
    pub async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>> {
        let mut items = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let join = if path.contains('?') { '&' } else { '?' };
            let mut page_path = format!("{path}{join}limit=500");
            if let Some(after) = &after {
                page_path.push_str("&after=");
                page_path.push_str(&encode(after));
            }
            let page: Page<T> = self.get(&page_path).await?;
            let came = page.items.len();
            items.extend(page.items);
            match page.next {
                // A server that repeats itself must not keep us for ever.
                Some(next) if came > 0 && after.as_ref() != Some(&next) => after = Some(next),
                _ => return Ok(items),
            }
        }
    }

    pub async fn put<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T> {
        self.call(Method::PUT, path, Some(body)).await
    }

    /// GET of one object, or a part of it, from the URL of a grant.
    pub async fn get_object(
        &self,
        url: &str,
        headers: &std::collections::BTreeMap<String, String>,
        range: Option<std::ops::Range<u64>>,
    ) -> Result<Got> {
        let absolute = if url.starts_with('/') {
            format!("{}{url}", self.base)
        } else {
            url.to_owned()
        };
        let mut request = self.http.get(&absolute).timeout(Duration::from_secs(600));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(r) = &range {
            let bytes = format!("bytes={}-{}", r.start, r.end.saturating_sub(1));
            request = request.header(reqwest::header::RANGE, bytes);
        }
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        let status = response.status();
        let body = response.bytes().await.map_err(|e| self.unreachable(&e))?;
        if !status.is_success() {
            return Ok(Got::Refused(status, refusal(status, &body)));
        }
        let whole = range.is_some() && status != StatusCode::PARTIAL_CONTENT;
        Ok(Got::Bytes(match range.filter(|_| whole) {
            Some(r) => {
                let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(body.len());
                body.slice(at(r.start)..at(r.end)).to_vec()
            }
            None => body.to_vec(),
        }))
    }

    /// PUT of one object, or of a part of one, to the URL of a grant; the store's tag for it.
    pub async fn put_object(
        &self,
        url: &str,
        headers: &std::collections::BTreeMap<String, String>,
        bytes: Vec<u8>,
    ) -> Result<Option<String>> {
        let absolute = if url.starts_with('/') {
            format!("{}{url}", self.base)
        } else {
            url.to_owned()
        };
        let mut request = self.http.put(&absolute);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let response = request
            .header(reqwest::header::CONTENT_LENGTH, bytes.len())
            .timeout(Duration::from_secs(600))
            .body(bytes)
            .send()
            .await
            .map_err(|e| self.unreachable(&e))?;
        if response.status().is_success() {
            let tag = response.headers().get(reqwest::header::ETAG);
            return Ok(tag.and_then(|t| t.to_str().ok()).map(str::to_owned));
        }
        let status = response.status();
        let body = response.bytes().await.unwrap_or_default();
        Err(refused(status, refusal(status, &body)))
    }

    /// Writes an answer of any length as it comes; how many bytes it was.
    pub async fn download(&self, path: &str, out: &mut impl std::io::Write) -> Result<u64> {
        let request = self
            .http
            .get(format!("{}/api/v1{path}", self.base))
            .bearer_auth(&self.token)
            .timeout(LONG);
        let mut response = request.send().await.map_err(|e| self.unreachable(&e))?;
        let status = response.status();
        if !status.is_success() {
            return Err(error_of(status, &response.bytes().await.unwrap_or_default()));
        }
        let mut written = 0;
        while let Some(chunk) = response.chunk().await.map_err(|e| self.unreachable(&e))? {
            out.write_all(&chunk)?;
            written += chunk.len() as u64;
        }
        Ok(written)
    }

    /// POST of JSON lines.
    pub async fn post_lines<T: DeserializeOwned>(&self, path: &str, lines: Vec<u8>) -> Result<T> {
        let request = self
            .http
            .post(format!("{}/api/v1{path}", self.base))
            .bearer_auth(&self.token)
            .header(reqwest::header::CONTENT_TYPE, "application/x-ndjson")
            .timeout(LONG)
            .body(lines);
        self.answer(&format!("POST {path}"), request).await
    }

    async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T> {
        let mut request = self
            .http
            .request(method.clone(), format!("{}/api/v1{path}", self.base))
            .bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        } else if method == Method::POST {
            request = request.json(&serde_json::json!({}));
        }
        self.answer(&format!("{method} {path}"), request).await
    }

    async fn answer<T: DeserializeOwned>(&self, what: &str, request: reqwest::RequestBuilder) -> Result<T> {
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(|e| self.unreachable(&e))?;
        if !status.is_success() {
            return Err(error_of(status, &bytes));
        }
        // "No content" is JSON's null.
        let bytes = if bytes.is_empty() { "null".into() } else { bytes };
        serde_json::from_slice(&bytes).map_err(|e| {
            fail(
                "unexpected_answer",
                format!("{what}: the server's answer is not understood: {e}"),
                "server and CLI may be of different versions: compare `dumont --version` on both sides",
            )
        })
    }

    fn unreachable(&self, e: &reqwest::Error) -> anyhow::Error {
        let mut cause: &dyn std::error::Error = e;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        if e.is_timeout() {
            return fail(
                UNREACHABLE,
                format!("the server at {} did not answer in time", self.base),
                "look at its log; the request may still have had its effect",
            );
        }
        let cause = cause.to_string();
        if cause.contains("certificate") {
            return fail(
                "untrusted_certificate",
                format!("the certificate of {} is not trusted: {cause}", self.base),
                "name its authority with --ca-file (DUMONT_CA_FILE), and use the host name that the certificate has",
            );
        }
        fail(
            UNREACHABLE,
            format!("the server at {} cannot be reached: {cause}", self.base),
            "is it running? `dumont serve` starts one; --url (DUMONT_URL) names another one",
        )
    }
}

/// The certificates of a PEM file, at least one.
fn authorities(path: &Path) -> Result<Vec<reqwest::Certificate>> {
    let refused = |why: String| {
        usage(
            format!("--ca-file {}: {why}", path.display()),
            "give a PEM file with the certificate of the authority that signed the server's",
        )
    };
    let pem = std::fs::read(path).map_err(|e| refused(e.to_string()))?;
    let found = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| refused(e.to_string()))?;
    if found.is_empty() {
        return Err(refused("there is no certificate in it".into()));
    }
    Ok(found)
}

/// The code of errors that say nothing about the request itself.
pub const UNREACHABLE: &str = "server_unreachable";

/// Whether the server could not be reached at all, so that trying again makes sense.
pub fn is_unreachable(e: &anyhow::Error) -> bool {
    e.downcast_ref::<ErrorBody>()
        .is_some_and(|b| b.code == UNREACHABLE)
}

/// What came from a URL that was granted.
pub enum Got {
    Bytes(Vec<u8>),
    /// The store says no, and why.
    Refused(StatusCode, String),
}

/// The store's no to a URL that was granted. "Later", or a URL whose time was over, is passing; what
/// a store lacks (501) it will lack the next time, too.
pub fn refused(status: StatusCode, why: String) -> anyhow::Error {
    match status.as_u16() {
        401 | 403 | 408 | 429 | 500 | 502..=504 => fail(
            STORE_UNAVAILABLE,
            why,
            "look at the store's status, then try again",
        ),
        507 => fail("store_full", why, "make room in the store, then try again"),
        _ => fail("store_refused", why, "`dumont doctor` looks at the store"),
    }
}

const STORE_UNAVAILABLE: &str = "store_unavailable";

/// Whether the same transfer, with a fresh URL, may go well in a moment.
pub fn is_passing(e: &anyhow::Error) -> bool {
    is_unreachable(e)
        || e.downcast_ref::<ErrorBody>()
            .is_some_and(|b| b.code == STORE_UNAVAILABLE)
}

fn refusal(status: StatusCode, body: &[u8]) -> String {
    let said: String = String::from_utf8_lossy(body).trim().chars().take(200).collect();
    format!("the store answered {status} {said}")
        .trim_end()
        .to_owned()
}

/// What an answer that is not a success means.
fn error_of(status: StatusCode, bytes: &[u8]) -> anyhow::Error {
    if let Ok(body) = serde_json::from_slice::<ErrorBody>(bytes) {
        return body.into();
    }
    let text: String = String::from_utf8_lossy(bytes).trim().chars().take(200).collect();
    let hint = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "check DUMONT_TOKEN",
        StatusCode::NOT_FOUND => "is this URL a dumont server, of this version?",
        _ => "look at the server's log",
    };
    fail(
        "unexpected_answer",
        format!("the server answered {status} {text}").trim_end(),
        hint,
    )
}

/// Whether the URL leads to this very machine.
pub fn is_loopback(url: &str) -> bool {
    reqwest::Url::parse(url).is_ok_and(|u| {
        u.host_str().is_some_and(|h| {
            h == "localhost"
                || h.trim_matches(['[', ']'])
                    .parse::<std::net::IpAddr>()
                    .is_ok_and(|ip| ip.is_loopback())
        })
    })
}

/// `?a=1&b=x`, of what a struct of options holds; empty where it holds nothing.
pub fn query_of<T: Serialize>(query: &T) -> String {
    let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(query) else {
        return String::new();
    };
    let sorted: std::collections::BTreeMap<_, _> = fields.into_iter().collect();
    let mut out = String::new();
    for (name, value) in sorted {
        let text = match value {
            serde_json::Value::Null => continue,
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        out.push(if out.is_empty() { '?' } else { '&' });
        out.push_str(&format!("{}={}", encode(&name), encode(&text)));
    }
    out
}

/// One path segment or query value, percent-encoded.
pub fn encode(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for b in value.bytes() {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

#[cfg(test)]
#[path = "client_tests.rs"]
pub mod tests;
