//! Notifications, signed and sent as Vast.ai documents it (`guides/reference/notification-webhooks`).
//!
//! Which keys `data` has is not documented beyond one example, so a receiver must not need any.

use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use reqwest::redirect::Policy;
use serde_json::{Value, json};
use sha2::Sha256;

use crate::machine;
use crate::market::{Inner, now_ms, seconds};

/// How long a receiver may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between attempts; how often and how long Vast.ai tries is not documented.
const PAUSES: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
];

/// Where notifications go.
#[derive(Clone, PartialEq, Eq, serde::Deserialize)]
pub struct Webhook {
    pub url: String,
    /// What they are signed with.
    pub secret: String,
}

/// Without the secret.
impl std::fmt::Debug for Webhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Webhook({})", self.url)
    }
}

impl Webhook {
    /// The headers that a delivery of this body has at this second.
    pub fn headers(&self, body: &[u8], unix_seconds: i64) -> [(&'static str, String); 2] {
        // An HMAC takes a key of any length.
        let signature = Hmac::<Sha256>::new_from_slice(self.secret.as_bytes()).map(|mut mac| {
            mac.update(format!("{unix_seconds}.").as_bytes());
            mac.update(body);
            hex::encode(mac.finalize().into_bytes())
        });
        [
            ("x-vast-timestamp", unix_seconds.to_string()),
            (
                "x-vast-signature-256",
                format!("sha256={}", signature.unwrap_or_default()),
            ),
        ]
    }
}

impl Inner {
    /// Tells whoever wants to know, behind whatever goes on.
    pub fn notify(&self, event: &'static str, instance: u64) {
        let Some(hook) = machine::lock(&self.webhook).clone() else {
            return;
        };
        let now = now_ms();
        let event_id = format!("{now:016x}{instance:016x}");
        let body = body(&event_id, event, instance, now);
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = deliver(&hook, &event_id, &body) => {}
            }
        });
    }
}

fn body(event_id: &str, event: &str, instance: u64, now: i64) -> String {
    let data: Value = json!({ "instance_id": instance });
    json!({
        "event_id": event_id, "user_id": 1, "notif_type": event,
        "subject": format!("Instance {instance}: {event}"),
        "message": format!("Your instance {instance} reports {event}."),
        "data": data, "data_truncated": false, "timestamp": seconds(now),
    })
    .to_string()
}

/// At least once: until it is taken, refused for good, or nobody tries any more.
async fn deliver(hook: &Webhook, event_id: &str, body: &str) {
    // Somebody else's choice of cryptography stands.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = match reqwest::Client::builder()
        .no_proxy()
        .redirect(Policy::none())
        .build()
    {
        Ok(client) => client,
        Err(error) => return tracing::warn!(%error, "no notifications can be sent"),
    };
    for (attempt, pause) in PAUSES.iter().enumerate() {
        tokio::time::sleep(*pause).await;
        let mut request = client
            .post(&hook.url)
            .timeout(TIMEOUT)
            .header("content-type", "application/json")
            .header("x-vast-event-id", event_id)
            .header("x-vast-delivery-attempt", (attempt + 1).to_string())
            .body(body.to_owned());
        for (name, value) in hook.headers(body.as_bytes(), now_ms() / 1000) {
            request = request.header(name, value);
        }
        match request.send().await {
            Ok(answer) if answer.status().is_success() => return,
            Ok(answer) => {
                let status = answer.status();
                tracing::warn!(%status, attempt, "a notification was not taken");
                if !status.is_server_error() && !matches!(status.as_u16(), 408 | 429) {
                    return;
                }
            }
            Err(error) => tracing::warn!(%error, attempt, "a notification did not arrive"),
        }
    }
}
