//! A server on loopback whose every answer a test decides, and that remembers what it was asked.

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode};
use dumont_core::budget::Limits;
use dumont_core::offer::Offer;
use dumont_server::providers::vast::{ApiKey, Vast, VastConfig};
use dumont_server::providers::{ErrorClass, OfferQuery, ProviderError, RentRequest};
use futures::stream;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

pub const KEY: &str = "testkey0123456789abcdef";
pub const LABEL: &str = "dumont/c1/w1/a1";

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub query: BTreeMap<String, String>,
    pub headers: BTreeMap<String, String>,
    pub body: Value,
    pub at: Instant,
    /// How many requests came before it.
    pub nth: usize,
}

impl Seen {
    pub fn is(&self, method: &str, path: &str) -> bool {
        self.method == method && self.path.starts_with(path)
    }
}

pub enum Reply {
    Json(u16, Value),
    Text(u16, String),
    Bytes(u16, Vec<u8>),
    Header(u16, &'static str, String, Value),
    /// Acts, and the connection ends before the answer does.
    Cut,
    /// This many bytes, by chunks, without a length.
    Flood(usize),
    /// Some bytes and then nothing for ever.
    Hang,
}

type Script = dyn Fn(&Seen) -> Reply + Send + Sync;

#[derive(Clone)]
struct Shared {
    script: Arc<Script>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

pub struct Fake {
    pub url: String,
    shared: Shared,
}

impl Fake {
    pub async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let shared = Shared {
            script: Arc::new(script),
            seen: Arc::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(shared.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, shared }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    pub fn count(&self, method: &str, path: &str) -> usize {
        self.seen().iter().filter(|s| s.is(method, path)).count()
    }

    /// A client that waits milliseconds where the real one waits seconds.
    pub fn client(&self) -> Vast {
        Vast::new(self.config()).unwrap()
    }

    pub fn config(&self) -> VastConfig {
        let mut config = VastConfig::new(&self.url, ApiKey::new(KEY).unwrap()).unwrap();
        let ms = |all: &[u64]| all.iter().map(|m| Duration::from_millis(*m)).collect();
        config.stagger = Duration::ZERO;
        config.limits = Limits::off();
        config.timeout = Duration::from_secs(2);
        config.rate_limit_backoff = ms(&[10, 20, 40]);
        config.lookup_waits = ms(&[0, 10, 20, 40]);
        config
    }
}

async fn answer(State(shared): State<Shared>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    let pairs = url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
    let mut seen = Seen {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: pairs.into_owned().collect(),
        headers: parts
            .headers
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_str().unwrap().to_owned()))
            .collect(),
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        at: Instant::now(),
        nth: 0,
    };
    {
        let mut all = shared.seen.lock().unwrap();
        seen.nth = all.len();
        all.push(seen.clone());
    }
    let with = |status: u16| Response::builder().status(StatusCode::from_u16(status).unwrap());
    match (shared.script)(&seen) {
        Reply::Json(status, json) => with(status)
            .header("content-type", "application/json")
            .body(Body::from(json.to_string()))
            .unwrap(),
        Reply::Bytes(status, bytes) => with(status).body(Body::from(bytes)).unwrap(),
        Reply::Text(status, text) => with(status).body(Body::from(text)).unwrap(),
        Reply::Header(status, name, value, json) => with(status)
            .header(name, value)
            .body(Body::from(json.to_string()))
            .unwrap(),
        Reply::Cut => {
            let cut = stream::once(async { Err::<Bytes, _>(io::Error::other("cut")) });
            with(200)
                .header("content-length", "99")
                .body(Body::from_stream(cut))
                .unwrap()
        }
        Reply::Flood(bytes) => {
            let chunk = Bytes::from(vec![b' '; 1 << 16]);
            let chunks = stream::iter((0..bytes >> 16).map(move |_| Ok::<_, io::Error>(chunk.clone())));
            with(200).body(Body::from_stream(chunks)).unwrap()
        }
        Reply::Hang => {
            let hang = stream::unfold(0, |n| async move {
                if n > 0 {
                    std::future::pending::<()>().await;
                }
                Some((Ok::<_, io::Error>(Bytes::from_static(b"{")), n + 1))
            });
            with(200).body(Body::from_stream(hang)).unwrap()
        }
    }
}

pub fn offer() -> Offer {
    Offer {
        offer_id: "12345678".into(),
        machine: "vast:88888".parse().unwrap(),
        host_id: None,
        gpu_name: "RTX 4090".into(),
        gpu_count: 1,
        gpu_ram_mb: 24_564,
        price: 0.33,
        region: None,
        provider_reliability: 0.99,
        inet_down_mbps: 0.0,
        inet_up_mbps: 0.0,
        cuda_max: None,
        driver_version: None,
        disk_gb: 512.0,
        verified: true,
        datacenter: false,
        bid: None,
    }
}

pub fn request() -> RentRequest {
    RentRequest {
        offer: offer(),
        label: LABEL.into(),
        image: "pytorch/pytorch:latest".into(),
        disk_gb: 40,
        env: BTreeMap::from([("A".into(), "b".into())]),
        ports: vec![8000],
        onstart: "echo up".into(),
        bid: None,
        lease: None,
        withdrawn: Default::default(),
    }
}

pub fn query() -> OfferQuery {
    OfferQuery {
        gpu_count: 1,
        disk_gb: 40,
        ..Default::default()
    }
}

/// A row of the listing as it was recorded from the real client's tests.
pub fn instance(id: u64, label: &str) -> Value {
    json!({
        "id": id, "start_date": 1_795_274_290.598, "machine_id": 88888, "host_id": 55555,
        "actual_status": "running", "intended_status": "running", "cur_state": "running", "next_state": "running",
        "status_msg": "success, running pytorch/pytorch_latest/ssh", "label": label, "num_gpus": 1,
        "ssh_host": "ssh5.vast.ai", "ssh_idx": "5", "ssh_port": 34320, "public_ipaddr": "203.0.113.42\n",
        "ports": {"22/tcp": [{"HostIp": "0.0.0.0", "HostPort": "41022"}, {"HostIp": "::", "HostPort": "41022"}]},
        "image_runtype": "ssh ssh_direc ssh_proxy", "dph_total": 0.3311, "is_bid": false,
    })
}

/// A whole listing on one page.
pub fn listing(rows: Vec<Value>) -> Reply {
    let found = rows.len();
    let body = json!({"success": true, "instances_found": found, "total_instances": found, "next_token": null, "instances": rows});
    Reply::Json(200, body)
}

#[track_caller]
pub fn class<T: std::fmt::Debug>(result: Result<T, ProviderError>) -> ErrorClass {
    let error = result.unwrap_err();
    assert!(
        !error.message.is_empty() && error.message.chars().count() < 1000,
        "{error}"
    );
    assert!(!error.message.chars().any(char::is_control), "{error}");
    assert!(!error.message.contains(KEY), "{error}");
    error.class
}
