//! Where the bucket is and what opens it, from the environment's usual names.
//!
//! `B2_*` wins over `AWS_*` where both are complete. AWS variables lie around in many
//! environments for other reasons, so it is the bucket's name that says "use this".

use rusty_s3::{Bucket, Credentials, UrlStyle};
use std::fmt;
use std::time::Duration;
use url::Url;

/// How the bucket's name goes into a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addressing {
    /// `https://endpoint/bucket/key`: works with every server.
    Path,
    /// `https://bucket.endpoint/key`: what AWS asks for.
    Virtual,
}

/// A setting that cannot be used, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BadSetting {
    pub message: String,
    pub hint: String,
}

/// An S3-compatible bucket.
#[derive(Clone)]
pub struct S3Config {
    pub endpoint: Url,
    pub region: String,
    pub bucket: String,
    pub key_id: String,
    pub secret: String,
    pub session_token: Option<String>,
    pub addressing: Addressing,
    /// A private certificate authority, PEM.
    pub ca_pem: Option<String>,
    /// How long a URL given to a machine works.
    pub url_lifetime: Duration,
    /// Bytes of one part of an upload; services want 5 MiB at least.
    pub part_size: u64,
}

impl fmt::Debug for S3Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Config")
            .field("endpoint", &self.endpoint.as_str())
            .field("region", &self.region)
            .field("bucket", &self.bucket)
            .field("key_id", &self.key_id)
            .field("addressing", &self.addressing)
            .finish_non_exhaustive()
    }
}

/// Longer than the transfer of one object takes on a slow line; the agent asks again for what
/// comes later.
const URL_LIFETIME: Duration = Duration::from_secs(3600);

/// Packs are smaller; only the indexes of huge workspaces have several parts.
const PART_SIZE: u64 = 64 << 20;

/// The variables that are read, in the order in which they are documented.
pub const VARIABLES: &[&str] = &[
    "B2_KEY_ID",
    "B2_APPLICATION_KEY",
    "B2_ENDPOINT",
    "B2_BUCKET",
    "B2_REGION",
    "S3_BUCKET",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "S3_ADDRESSING",
    "S3_CA_FILE",
];

impl S3Config {
    /// The bucket that the environment names; `None` where it names none.
    pub fn from_env() -> Result<Option<Self>, BadSetting> {
        Self::from_vars(&|name| std::env::var(name).ok())
    }

    /// The same from any source of settings. An empty value counts as none.
    pub fn from_vars(var: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>, BadSetting> {
        let get = |name: &str| var(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let any = |names: &[&str]| names.iter().find_map(|n| get(n));
        let config = if let Some(bucket) = get("B2_BUCKET") {
            let need = |name| needed(get(name), name, "B2_BUCKET");
            let endpoint = endpoint(&need("B2_ENDPOINT")?, "B2_ENDPOINT")?;
            Self {
                region: any(&["B2_REGION"]).unwrap_or_else(|| region_of(&endpoint)),
                addressing: Addressing::Path,
                endpoint,
                bucket,
                key_id: need("B2_KEY_ID")?,
                secret: need("B2_APPLICATION_KEY")?,
                session_token: None,
                ca_pem: None,
                url_lifetime: URL_LIFETIME,
                part_size: PART_SIZE,
            }
        } else if let Some(bucket) = get("S3_BUCKET") {
            let need = |name| needed(get(name), name, "S3_BUCKET");
            let region = any(&["AWS_REGION", "AWS_DEFAULT_REGION"]);
            let named = any(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]);
            let endpoint = match (&named, &region) {
                (Some(url), _) => endpoint(url, "AWS_ENDPOINT_URL")?,
                (None, Some(region)) => endpoint(&format!("s3.{region}.amazonaws.com"), "AWS_REGION")?,
                (None, None) => {
                    return Err(BadSetting {
                        message: "S3_BUCKET is set, but neither AWS_ENDPOINT_URL nor AWS_REGION is".into(),
                        hint: "set AWS_REGION for AWS, AWS_ENDPOINT_URL for another service".into(),
                    });
                }
            };
            let aws = endpoint.host_str().is_some_and(|h| h.ends_with(".amazonaws.com"));
            // A dot in the name does not match the service's certificate.
            let addressing = if aws && !bucket.contains('.') {
                Addressing::Virtual
            } else {
                Addressing::Path
            };
            Self {
                region: region.unwrap_or_else(|| region_of(&endpoint)),
                addressing,
                endpoint,
                bucket,
                key_id: need("AWS_ACCESS_KEY_ID")?,
                secret: need("AWS_SECRET_ACCESS_KEY")?,
                session_token: get("AWS_SESSION_TOKEN"),
                ca_pem: None,
                url_lifetime: URL_LIFETIME,
                part_size: PART_SIZE,
            }
        } else {
            return half_set(&get);
        };
        config.with_options(&get).map(Some)
    }

    fn with_options(mut self, get: &dyn Fn(&str) -> Option<String>) -> Result<Self, BadSetting> {
        match get("S3_ADDRESSING").as_deref() {
            None => {}
            Some("path") => self.addressing = Addressing::Path,
            Some("virtual") => self.addressing = Addressing::Virtual,
            Some(other) => {
                return Err(BadSetting {
                    message: format!("S3_ADDRESSING is {other:?}"),
                    hint: "write path or virtual".into(),
                });
            }
        }
        if let Some(file) = get("S3_CA_FILE") {
            let read = std::fs::read_to_string(&file).map_err(|e| e.to_string());
            let pem = read.and_then(
                |pem| match reqwest::Certificate::from_pem_bundle(pem.as_bytes()) {
                    Ok(certs) if !certs.is_empty() => Ok(pem),
                    _ => Err("it holds no certificate".into()),
                },
            );
            self.ca_pem = Some(pem.map_err(|why| BadSetting {
                message: format!("S3_CA_FILE {file}: {why}"),
                hint: "name a readable file with PEM certificates".into(),
            })?);
        }
        self.bucket_and_key()?;
        Ok(self)
    }

    /// What signs, or why the settings make no bucket.
    pub(super) fn bucket_and_key(&self) -> Result<(Bucket, Credentials), BadSetting> {
        let style = match self.addressing {
            Addressing::Path => UrlStyle::Path,
            Addressing::Virtual => UrlStyle::VirtualHost,
        };
        let bucket = Bucket::new(
            self.endpoint.clone(),
            style,
            self.bucket.clone(),
            self.region.clone(),
        )
        .map_err(|e| BadSetting {
            message: format!(
                "bucket {:?} at {} cannot be addressed: {e}",
                self.bucket, self.endpoint
            ),
            hint: "check the bucket's name and the endpoint; S3_ADDRESSING=path works with every server"
                .into(),
        })?;
        let credentials = match &self.session_token {
            Some(token) => Credentials::new_with_token(&*self.key_id, &*self.secret, &**token),
            None => Credentials::new(&*self.key_id, &*self.secret),
        };
        Ok((bucket, credentials))
    }
}

fn needed(value: Option<String>, name: &str, because: &str) -> Result<String, BadSetting> {
    value.ok_or_else(|| BadSetting {
        message: format!("{because} is set, but {name} is not"),
        hint: format!("set {name}, or unset {because} to keep objects in the data directory"),
    })
}

/// `B2_*` without a bucket is a mistake; `AWS_*` without one belongs to somebody else.
fn half_set(get: &dyn Fn(&str) -> Option<String>) -> Result<Option<S3Config>, BadSetting> {
    let found = ["B2_KEY_ID", "B2_APPLICATION_KEY", "B2_ENDPOINT"]
        .into_iter()
        .find(|name| get(name).is_some());
    match found {
        None => Ok(None),
        Some(name) => Err(BadSetting {
            message: format!("{name} is set, but B2_BUCKET is not"),
            hint: "set B2_BUCKET, or unset the others to keep objects in the data directory".into(),
        }),
    }
}

fn endpoint(text: &str, name: &str) -> Result<Url, BadSetting> {
    let whole = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    match Url::parse(&whole) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
        _ => Err(BadSetting {
            message: format!("{name} {text:?} is not an endpoint"),
            hint: "write it like https://s3.us-west-004.backblazeb2.com".into(),
        }),
    }
}

/// What the endpoint's own name says; servers without regions accept the customary word.
fn region_of(endpoint: &Url) -> String {
    let host = endpoint.host_str().unwrap_or("");
    let named = ["backblazeb2.com", "amazonaws.com", "wasabisys.com"]
        .iter()
        .find_map(|domain| {
            let rest = host.strip_suffix(domain)?.strip_suffix('.')?;
            rest.strip_prefix("s3.").or_else(|| rest.strip_prefix("s3-"))
        });
    match named {
        Some(region) if !region.is_empty() => region.to_owned(),
        _ if host.ends_with(".r2.cloudflarestorage.com") => "auto".into(),
        _ => "us-east-1".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn read(vars: &[(&str, &str)]) -> Result<Option<S3Config>, BadSetting> {
        let vars: HashMap<_, _> = vars
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        S3Config::from_vars(&|name| vars.get(name).cloned())
    }

    const B2: &[(&str, &str)] = &[
        ("B2_KEY_ID", "id"),
        ("B2_APPLICATION_KEY", "s3cr3t"),
        ("B2_ENDPOINT", "s3.us-west-004.backblazeb2.com"),
        ("B2_BUCKET", "snaps"),
    ];

    #[test]
    fn b2_names_its_region_and_needs_no_scheme() {
        let config = read(B2).unwrap().unwrap();
        assert_eq!(
            config.endpoint.as_str(),
            "https://s3.us-west-004.backblazeb2.com/"
        );
        assert_eq!(config.region, "us-west-004");
        assert_eq!(config.addressing, Addressing::Path);
        assert!(!format!("{config:?}").contains("s3cr3t"));
    }

    #[test]
    fn what_is_missing_is_named() {
        for missing in ["B2_KEY_ID", "B2_APPLICATION_KEY", "B2_ENDPOINT", "B2_BUCKET"] {
            let some: Vec<_> = B2.iter().copied().filter(|(k, _)| *k != missing).collect();
            let error = read(&some).unwrap_err();
            assert!(
                error.message.contains(missing) && !error.hint.is_empty(),
                "{error:?}"
            );
        }
    }

    #[test]
    fn aws_variables_alone_mean_nothing() {
        let key = [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")];
        assert!(read(&key).unwrap().is_none());
        assert!(read(&[]).unwrap().is_none());
        let mut whole = key.to_vec();
        whole.push(("S3_BUCKET", "snaps"));
        assert!(read(&whole).unwrap_err().message.contains("AWS_REGION"));
        whole.push(("AWS_REGION", "eu-west-1"));
        let config = read(&whole).unwrap().unwrap();
        assert_eq!(config.endpoint.as_str(), "https://s3.eu-west-1.amazonaws.com/");
        assert_eq!(config.addressing, Addressing::Virtual);
        whole.push(("AWS_ENDPOINT_URL", "http://127.0.0.1:9000"));
        let config = read(&whole).unwrap().unwrap();
        assert_eq!(
            (config.region.as_str(), config.addressing),
            ("eu-west-1", Addressing::Path)
        );
    }

    #[test]
    fn bad_values_are_refused_with_what_to_write() {
        for (name, value) in [
            ("S3_ADDRESSING", "dns"),
            ("B2_ENDPOINT", "ftp://x"),
            ("S3_CA_FILE", "/no/such/file"),
        ] {
            let mut vars: Vec<_> = B2.iter().copied().filter(|(k, _)| *k != name).collect();
            vars.push((name, value));
            let error = read(&vars).unwrap_err();
            assert!(
                error.message.contains(name) && !error.hint.is_empty(),
                "{error:?}"
            );
        }
    }
}
