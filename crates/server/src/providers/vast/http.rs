//! One request and its answer, bounded in time and memory.
//!
//! Callers must know whether a failed request can have acted, so failures say whether the
//! request ever left. Nothing is repeated here but what cannot have acted (a 429) and, once,
//! what may act twice without harm.

use super::super::budget::{Budget, used_up};
use super::super::{ErrorClass, ProviderError};
use super::config::{ConfigError, VastConfig, is_loopback};
use super::error::{classify, classify_json, error, is_refusal};
use super::wire;
use dumont_core::budget::{Endpoint, Refusal};
use reqwest::{Client, Method, Response, header};
use serde_json::Value;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;

/// Listings and searches; a page of 25 instances or 64 offers is some 200 KB.
const MAX_LISTING: usize = 8 * 1024 * 1024;
/// Everything else answers in a few lines.
const MAX_REPLY: usize = 512 * 1024;
/// A server that asks for more patience than this is left to the caller.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);
/// Before the one repetition of a harmless request.
const REPEAT_AFTER: Duration = Duration::from_millis(250);

/// One request to be made.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    method: Method,
    path: &'a str,
    query: Vec<(&'a str, String)>,
    body: Option<Value>,
    max_body: usize,
    harmless: bool,
    /// What it is limited with; none is not limited.
    endpoint: Option<Endpoint>,
    due: bool,
    /// Cancelled when nobody wants it any more.
    withdrawn: Option<CancellationToken>,
}

impl<'a> Call<'a> {
    pub fn new(method: Method, path: &'a str) -> Self {
        let harmless = method == Method::GET || method == Method::DELETE;
        Self {
            method,
            path,
            query: Vec::new(),
            body: None,
            max_body: MAX_REPLY,
            harmless,
            endpoint: None,
            due: false,
            withdrawn: None,
        }
    }

    /// Waits for its turn there.
    pub fn at(mut self, endpoint: Endpoint) -> Self {
        self.endpoint = Some(endpoint);
        self
    }

    /// Its turn was waited for.
    pub fn due(mut self) -> Self {
        self.due = true;
        self
    }

    /// It is not sent again once that is cancelled.
    pub fn unless(mut self, withdrawn: &CancellationToken) -> Self {
        self.withdrawn = Some(withdrawn.clone());
        self
    }

    async fn withdrawn(&self) {
        match &self.withdrawn {
            Some(withdrawn) => withdrawn.cancelled().await,
            None => std::future::pending().await,
        }
    }

    pub fn query(mut self, name: &'a str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    pub fn json(mut self, body: Value) -> Self {
        self.body = Some(body);
        self
    }

    pub fn listing(mut self) -> Self {
        self.max_body = MAX_LISTING;
        self
    }

    /// May be sent twice although its method does not say so.
    pub fn harmless(mut self) -> Self {
        self.harmless = true;
        self
    }
}

/// A whole answer, of whatever status.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// `None` when the body is not JSON.
    pub json: Option<Value>,
    /// The server's clock.
    pub date: Option<SystemTime>,
    refusal: Option<ProviderError>,
}

impl Answer {
    /// The JSON of a success, or what the refusal means.
    pub fn into_success(self) -> Result<Value, ProviderError> {
        match (self.refusal, self.json) {
            (None, Some(json)) => Ok(json),
            (Some(refusal), _) => Err(refusal),
            (None, None) => Err(error(
                ErrorClass::Protocol,
                format!("Vast.ai answered {} without JSON", self.status),
            )),
        }
    }

    pub fn refusal(&self) -> Option<&ProviderError> {
        self.refusal.as_ref()
    }
}

/// A request without a whole answer.
#[derive(Debug)]
pub struct Lost {
    /// Whether the server may have seen the request.
    pub sent: bool,
    pub timed_out: bool,
    pub error: ProviderError,
}

impl Lost {
    fn unsent(error: ProviderError) -> Self {
        Self {
            sent: false,
            timed_out: false,
            error,
        }
    }

    /// The connection broke: unlike a silent or a lying server, worth another try at once.
    fn is_broken(&self) -> bool {
        !self.timed_out && self.error.class == ErrorClass::Transient
    }
}

pub struct Http {
    client: Client,
    base: String,
    key: String,
    timeout: Duration,
    backoff: Vec<Duration>,
    budget: Arc<Budget>,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http")
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

impl Http {
    pub fn new(config: &VastConfig, budget: Arc<Budget>) -> Result<Self, ConfigError> {
        // Programs install a provider first thing; in one that did not, reqwest would panic.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let mut headers = header::HeaderMap::new();
        headers.insert(header::AUTHORIZATION, config.api_key.bearer()?);
        let mut builder = Client::builder()
            .user_agent(concat!("dumont/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .connect_timeout(config.connect_timeout)
            .timeout(config.timeout)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            // Idle connections that a middlebox forgot cost a failover its first request.
            .pool_idle_timeout(Duration::from_secs(20));
        if is_loopback(&config.base_url) {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|e| ConfigError {
            message: format!("the HTTP client cannot start ({e})"),
            hint: "check the TLS settings of this machine".into(),
        })?;
        Ok(Self {
            client,
            base: config.base_url.as_str().trim_end_matches('/').to_owned(),
            key: config.api_key.expose().to_owned(),
            timeout: config.timeout,
            backoff: config.rate_limit_backoff.clone(),
            budget,
        })
    }

    /// The JSON of a success; for callers to whom all failures are alike.
    pub async fn success(&self, call: Call<'_>) -> Result<Value, ProviderError> {
        self.answer(call).await.map_err(|lost| lost.error)?.into_success()
    }

    /// The answer, after waiting for its turn and waiting out rate limits.
    pub async fn answer(&self, call: Call<'_>) -> Result<Answer, Lost> {
        let mut waits = self.backoff.iter();
        let mut may_repeat = call.harmless;
        if !call.due {
            self.turn(&call).await?;
        }
        loop {
            let outcome = self.once(&call).await;
            count(&call, &outcome);
            self.learn(&call, &outcome).await;
            let wait = match &outcome {
                Ok(answer) => match answer.refusal().map(|e| e.class) {
                    Some(ErrorClass::RateLimited { retry_after }) => {
                        let asked = retry_after.unwrap_or_default();
                        waits
                            .next()
                            .filter(|_| asked <= MAX_RETRY_AFTER)
                            .map(|ours| asked.max(*ours))
                    }
                    _ if matches!(answer.status, 502..=504) => may_repeat.then_some(REPEAT_AFTER),
                    _ => None,
                },
                Err(lost) => (may_repeat && lost.is_broken()).then_some(REPEAT_AFTER),
            };
            let Some(wait) = wait else { return outcome };
            tracing::debug!(
                path = call.path,
                wait_ms = wait.as_millis() as u64,
                "repeating a request to Vast.ai"
            );
            may_repeat &= matches!(&outcome, Ok(answer) if answer.status < 500);
            let again = async {
                tokio::time::sleep(wait).await;
                self.turn(&call).await
            };
            tokio::select! {
                biased;
                () = call.withdrawn() => return outcome,
                turn = again => turn?,
            }
        }
    }

    async fn turn(&self, call: &Call<'_>) -> Result<(), Lost> {
        match call.endpoint {
            Some(endpoint) => self.budget.turn(endpoint).await.map_err(Lost::unsent),
            None => Ok(()),
        }
    }

    /// Lets all who use the account know of a refusal.
    async fn learn(&self, call: &Call<'_>, outcome: &Result<Answer, Lost>) {
        let class = outcome.as_ref().ok().and_then(Answer::refusal).map(|e| e.class);
        let refusal = match class {
            Some(ErrorClass::RateLimited { retry_after }) => Refusal::TooOften { retry_after },
            Some(ErrorClass::QuotaUsedUp { resets_in }) => Refusal::Quota {
                resets_in: Some(resets_in),
            },
            _ => return,
        };
        if let Some(endpoint) = call.endpoint {
            self.budget.refused(endpoint, refusal).await;
        }
    }

    async fn once(&self, call: &Call<'_>) -> Result<Answer, Lost> {
        let url = format!("{}{}", self.base, call.path);
        let mut request = self.client.request(call.method.clone(), url).query(&call.query);
        if let Some(body) = &call.body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|e| self.lost(&e))?;
        let status = response.status().as_u16();
        let retry_after = retry_after(&response);
        let date = date(&response);
        let resets_in = resets_in(&response, date);
        let body = self.read(response, call.max_body).await?;
        let json = wire::parse(&body);
        let refused = !(200..300).contains(&status) || json.as_ref().is_some_and(is_refusal);
        let refusal = refused.then(|| {
            let mut error = match &json {
                Some(json) => classify_json(status, json),
                None => classify(status, &body),
            };
            match error.class {
                ErrorClass::RateLimited { .. } => error.class = ErrorClass::RateLimited { retry_after },
                ErrorClass::QuotaUsedUp { resets_in: midnight } => {
                    error = used_up(resets_in.unwrap_or(midnight));
                }
                _ => {}
            }
            error.message = self.redact(&error.message);
            error
        });
        Ok(Answer {
            status,
            json,
            date,
            refusal,
        })
    }

    /// The body up to `max`; a server that sends more has broken the protocol.
    async fn read(&self, mut response: Response, max: usize) -> Result<Vec<u8>, Lost> {
        let too_long = || Lost {
            sent: true,
            timed_out: false,
            error: error(
                ErrorClass::Protocol,
                format!("Vast.ai answered with more than {max} bytes"),
            ),
        };
        if response.content_length().is_some_and(|n| n > max as u64) {
            return Err(too_long());
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| Lost {
            sent: true,
            ..self.lost(&e)
        })? {
            if body.len() + chunk.len() > max {
                return Err(too_long());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn lost(&self, e: &reqwest::Error) -> Lost {
        let message = if e.is_connect() {
            format!("Vast.ai cannot be reached at {}: {}", self.base, root_cause(e))
        } else if e.is_timeout() {
            format!("Vast.ai did not answer within {} s", self.timeout.as_secs_f32())
        } else {
            format!("the connection to Vast.ai broke: {}", root_cause(e))
        };
        Lost {
            // A request that could not even be built, or found nobody, was not sent.
            sent: !e.is_connect() && !e.is_builder(),
            timed_out: e.is_timeout(),
            error: error(ErrorClass::Transient, self.redact(&wire::clean(&message))),
        }
    }

    /// Servers repeat what they were sent; the key must not reach a log that way.
    fn redact(&self, message: &str) -> String {
        // A word this short is no key of Vast.ai, and would eat letters of the message.
        if self.key.len() < 8 {
            message.to_owned()
        } else {
            message.replace(&self.key, "[key]")
        }
    }
}

fn count(call: &Call<'_>, outcome: &Result<Answer, Lost>) {
    let status = match outcome {
        Ok(answer) => answer.status.to_string(),
        Err(lost) if lost.timed_out => "timeout".into(),
        Err(_) => "broken".into(),
    };
    crate::metrics::provider_request("vast", call.method.as_str(), call.path, &status);
}

fn seconds(response: &Response, name: &str) -> Option<f64> {
    response.headers().get(name)?.to_str().ok()?.trim().parse().ok()
}

fn retry_after(response: &Response) -> Option<Duration> {
    seconds(response, header::RETRY_AFTER.as_str())
        .filter(|s| (0.0..=86_400.0).contains(s))
        .map(Duration::from_secs_f64)
}

/// `X-RateLimit-Reset`: the Unix second of the server's clock at which a quota comes back.
fn resets_in(response: &Response, date: Option<SystemTime>) -> Option<Duration> {
    let reset = seconds(response, "x-ratelimit-reset")?;
    let now = date
        .unwrap_or_else(SystemTime::now)
        .duration_since(UNIX_EPOCH)
        .ok()?;
    let left = reset - now.as_secs_f64();
    (0.0..=90_000.0)
        .contains(&left)
        .then(|| Duration::from_secs_f64(left))
}

fn date(response: &Response) -> Option<SystemTime> {
    let text = response.headers().get(header::DATE)?.to_str().ok()?;
    httpdate::parse_http_date(text).ok()
}

fn root_cause(e: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = e;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
