//! Signed requests of the controller's own, repeated where repeating can help.
//!
//! Every try is signed anew. No checksum headers are sent: stores differ in which they know,
//! and every object carries its own digest.

use super::config::{BadSetting, S3Config};
use super::refusal::{explain, tag, unreached, worth_repeating};
use crate::objects::ObjectError;
use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use rusty_s3::{Bucket, Credentials, S3Action};
use std::time::Duration;

/// How long a signature of our own holds; it is used at once.
const OWN: Duration = Duration::from_secs(300);

pub struct Client {
    http: reqwest::Client,
    pub bucket: Bucket,
    pub credentials: Credentials,
    /// For messages.
    pub place: String,
    retry: ExponentialBuilder,
}

/// An answer that means something: a success, or one of the refusals that are part of a
/// protocol (404, 412, and 501 where a caller can do without).
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn ok(&self) -> bool {
        (200..300).contains(&self.status)
    }

    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The version this answer is about; stores without versions say `null` or nothing.
    pub fn version(&self) -> Option<String> {
        self.header("x-amz-version-id")
            .filter(|v| !v.is_empty() && *v != "null")
            .map(str::to_owned)
    }
}

impl Client {
    pub fn new(config: &S3Config) -> Result<Self, BadSetting> {
        let (bucket, credentials) = config.bucket_and_key()?;
        let failed = |e: reqwest::Error| BadSetting {
            message: format!("no HTTPS client: {e}"),
            hint: "check S3_CA_FILE and the system's certificates".into(),
        };
        // The build chose no TLS provider of reqwest's own; a second install is refused and harmless.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(Duration::from_secs(60))
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("dumont/", env!("CARGO_PKG_VERSION")));
        if let Some(pem) = &config.ca_pem {
            http =
                http.tls_certs_merge(reqwest::Certificate::from_pem_bundle(pem.as_bytes()).map_err(failed)?);
        }
        if is_loopback(config) {
            http = http.no_proxy();
        }
        Ok(Self {
            http: http.build().map_err(failed)?,
            bucket,
            credentials,
            place: format!(
                "bucket {} at {}",
                config.bucket,
                config.endpoint.as_str().trim_end_matches('/')
            ),
            retry: ExponentialBuilder::default()
                .with_jitter()
                .with_min_delay(Duration::from_millis(200))
                .with_max_delay(Duration::from_secs(4))
                .with_max_times(4),
        })
    }

    /// `what` names the act in errors, e.g. `put workspaces/…`.
    pub async fn send<'a, A: S3Action<'a> + Sync>(
        &self,
        what: &str,
        action: &A,
        headers: &[(&'static str, String)],
        body: Bytes,
    ) -> Result<Answer, ObjectError> {
        let once = || self.once(what, action, headers, body.clone());
        once.retry(self.retry)
            .when(|e: &Attempt| e.again)
            .notify(|e: &Attempt, pause| tracing::debug!(error = %e.error, ?pause, "trying again"))
            .await
            .map_err(|e| e.error)
    }

    async fn once<'a, A: S3Action<'a> + Sync>(
        &self,
        what: &str,
        action: &A,
        headers: &[(&'static str, String)],
        body: Bytes,
    ) -> Result<Answer, Attempt> {
        let method = match A::METHOD {
            rusty_s3::Method::Get => reqwest::Method::GET,
            rusty_s3::Method::Head => reqwest::Method::HEAD,
            rusty_s3::Method::Post => reqwest::Method::POST,
            rusty_s3::Method::Put => reqwest::Method::PUT,
            rusty_s3::Method::Delete => reqwest::Method::DELETE,
        };
        self.request(what, method, action.sign(OWN), headers, body).await
    }

    /// A URL that no action of the library makes, signed anew for each try.
    pub async fn send_signed(
        &self,
        what: &str,
        method: reqwest::Method,
        url: impl Fn() -> url::Url + Send + Sync,
    ) -> Result<Answer, ObjectError> {
        let once = || self.request(what, method.clone(), url(), &[], Bytes::new());
        once.retry(self.retry)
            .when(|e: &Attempt| e.again)
            .await
            .map_err(|e| e.error)
    }

    /// A signed URL, tried once.
    pub async fn send_url(
        &self,
        what: &str,
        method: reqwest::Method,
        url: url::Url,
    ) -> Result<Answer, ObjectError> {
        let answer = self.request(what, method, url, &[], Bytes::new()).await;
        answer.map_err(|e| e.error)
    }

    async fn request(
        &self,
        what: &str,
        method: reqwest::Method,
        url: url::Url,
        headers: &[(&'static str, String)],
        body: Bytes,
    ) -> Result<Answer, Attempt> {
        let mut request = self.http.request(method, url).body(body);
        for (name, value) in headers {
            if let Ok(value) = HeaderValue::from_str(value) {
                request = request.header(HeaderName::from_static(name), value);
            }
        }
        let broken = |e: reqwest::Error| {
            let error = unreached(&self.place, what, &e);
            let again = matches!(&error, ObjectError::Store(r) if r.transient);
            Attempt { again, error }
        };
        let response = request.send().await.map_err(broken)?;
        let answer = Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.bytes().await.map_err(broken)?,
        };
        self.judge(what, answer)
    }

    fn judge(&self, what: &str, answer: Answer) -> Result<Answer, Attempt> {
        let text = answer.text();
        let code = tag(&text, "Code").unwrap_or("");
        // A completion answers 200 before it knows, and puts an error into the body.
        let late = answer.ok() && text.contains("<Error>") && !code.is_empty();
        let part_of_the_protocol = matches!(answer.status, 404 | 409 | 412 | 416) && code != "NoSuchBucket";
        if !late && (answer.ok() || part_of_the_protocol) {
            drop(text);
            return Ok(answer);
        }
        let status = if late { 500 } else { answer.status };
        let region = answer.header("x-amz-bucket-region");
        Err(Attempt {
            again: worth_repeating(status, code),
            error: explain(&self.place, what, status, &text, region),
        })
    }
}

/// One try that failed.
struct Attempt {
    again: bool,
    error: ObjectError,
}

/// A proxy of the environment is not for a server on this very machine.
pub fn is_loopback(config: &S3Config) -> bool {
    match config.endpoint.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}
