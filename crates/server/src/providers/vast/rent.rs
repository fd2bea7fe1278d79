//! Renting, at most once per label.
//!
//! A create is sent once. What comes back is one of three things: the server says that it
//! did (a contract number), says in words that it did not, or nobody knows: the reply was
//! lost, a proxy answered 5xx, the body makes no sense. Only the third needs care: the
//! instance may exist, cost money and appear late in listings. So it is looked for by its
//! label, several times; found, the rent has succeeded after all; absent from the last of
//! several complete listings of an account that has instances, nothing was done and the caller may try again;
//! anything less stays uncertain, and the caller must look again before it repeats.
//!
//! An *empty* listing proves nothing (see `list`): an account's very first create that goes
//! unanswered therefore stays uncertain rather than be rented twice.
//!
//! Dropping the future of a rent leaves it as uncertain as a lost reply does.

use super::super::{ErrorClass, ProviderError, ProviderInstance, RentRequest};
use super::error::{during, error};
use super::http::{Answer, Call};
use super::{NAME, Vast, abandon, wire};
use dumont_core::budget::Endpoint;
use reqwest::Method;
use serde_json::{Map, Value, json};
use url::Url;

/// One page of the documentation says 4 KB, another 16: the smaller one holds everywhere.
const MAX_ONSTART: usize = 4096;
const MAX_IMAGE: usize = 1024;
const MAX_LABEL: usize = 256;
const MAX_ENV: usize = 256;
const MAX_ENV_TOTAL: usize = 32_768;
const MAX_PORTS: usize = 64;
const MIN_DISK_GB: u32 = 8;
/// Logins are put into tmux otherwise, which swallows what the agent says.
const NO_TMUX: &str = "touch ~/.no_auto_tmux\n";

/// What a create came to.
enum Created {
    Yes(String),
    /// Refused in words; `leftover` is a contract that the refusal made all the same.
    No {
        why: ProviderError,
        leftover: Option<String>,
    },
    Unclear(ProviderError),
}

impl Vast {
    pub(super) async fn rent_offer(&self, request: &RentRequest) -> Result<String, ProviderError> {
        let offer = &request.offer.offer_id;
        let what = format!("renting offer {}", wire::clean(offer));
        let body = create_body(request, &self.config.base_url).map_err(during(&what))?;
        let path = format!("/api/v0/asks/{offer}/");
        // Its turn was waited for by whoever decided on it.
        let call = Call::new(Method::PUT, &path)
            .json(body)
            .at(Endpoint::Create)
            .due()
            .unless(&request.withdrawn);
        let created = match self.http.answer(call).await {
            Ok(answer) => read_created(answer),
            Err(lost) if lost.sent => Created::Unclear(lost.error),
            Err(lost) => Created::No {
                why: lost.error,
                leftover: None,
            },
        };
        match created {
            Created::Yes(id) => Ok(id),
            Created::No { why, leftover: None } => Err(during(&what)(why)),
            Created::No {
                why,
                leftover: Some(id),
            } => Err(self.drop_leftover(&id, why).await).map_err(during(&what)),
            Created::Unclear(why) => self.settle(&request.label, why).await.map_err(during(&what)),
        }
    }

    /// A refusal may leave a stopped contract that costs its storage.
    async fn drop_leftover(&self, id: &str, why: ProviderError) -> ProviderError {
        tracing::warn!(instance = id, why = %why, "Vast.ai refused a rent and made a contract: destroying it");
        match self.destroy_instance(id).await {
            Ok(()) => why,
            Err(e) => error(
                ErrorClass::Uncertain,
                format!("{why}; it left instance {id} behind, which could not be destroyed ({e})"),
            ),
        }
    }

    /// Finds out what became of a create that nobody answered.
    async fn settle(&self, label: &str, why: ProviderError) -> Result<String, ProviderError> {
        tracing::warn!(label, why = %why, "a rent was not answered: looking for its label");
        let looks = tokio::time::timeout(self.config.lookup_limit, self.look_for(label));
        match looks
            .await
            .unwrap_or_else(|_| Looked::Unknown("the listings took too long".into()))
        {
            Looked::Found(found) => self.keep_one(label, found).await,
            Looked::Absent => {
                let message = format!("{why}; no instance carries the label {label}: nothing was rented");
                Err(error(ErrorClass::Transient, message))
            }
            Looked::Unknown(reason) => {
                let message = format!("{why}; whether {label} was rented is not known: {reason}");
                Err(error(ErrorClass::Uncertain, message))
            }
        }
    }

    async fn look_for(&self, label: &str) -> Looked {
        let mut last = Looked::Unknown("nobody looked".into());
        for wait in &self.config.lookup_waits {
            tokio::time::sleep(*wait).await;
            last = match self.list_labelled(label).await {
                Err(e) => Looked::Unknown(e.message),
                Ok(listed) if !listed.rows.is_empty() => return Looked::Found(listed.rows),
                Ok(listed) if listed.nobody => Looked::Unknown("an empty listing proves nothing".into()),
                Ok(_) => Looked::Absent,
            };
        }
        last
    }

    /// A label is unique to its rent; should a proxy have doubled the request, the oldest
    /// instance stays and the others go.
    async fn keep_one(&self, label: &str, mut found: Vec<ProviderInstance>) -> Result<String, ProviderError> {
        found.sort_by_key(|i| i.instance_id.parse::<u64>().unwrap_or(u64::MAX));
        let mut found = found.into_iter();
        let Some(kept) = found.next() else {
            return Err(error(ErrorClass::Uncertain, format!("{label} was lost again")));
        };
        for double in found {
            tracing::warn!(
                label,
                instance = double.instance_id,
                "rented twice under one label: destroying it"
            );
            if let Err(e) = self.destroy_instance(&double.instance_id).await {
                tracing::error!(label, instance = double.instance_id, why = %e, "a doubled instance stays rented");
            }
        }
        tracing::info!(
            label,
            instance = kept.instance_id,
            "the rent had succeeded after all"
        );
        Ok(kept.instance_id)
    }
}

enum Looked {
    Found(Vec<ProviderInstance>),
    Absent,
    Unknown(String),
}

fn read_created(answer: Answer) -> Created {
    let contract = answer.json.as_ref().and_then(|j| wire::id(j, "new_contract"));
    let agreed = answer.json.as_ref().and_then(|j| wire::truth(j, "success"));
    let (status, refused) = (answer.status, answer.refusal().is_some());
    match (answer.into_success(), contract) {
        (Ok(_), Some(id)) if agreed == Some(true) => Created::Yes(id),
        (Ok(_), _) => {
            let message = format!("Vast.ai answered {status} with no contract number that can be read");
            Created::Unclear(error(ErrorClass::Protocol, message))
        }
        // Only these were read and refused by the service itself; 3xx, 408 and 5xx may come
        // from anything on the way, after the service has acted.
        (Err(why), leftover) => match status {
            200..=299 if refused => Created::No { why, leftover },
            400..=407 | 409..=424 | 426..=499 => Created::No { why, leftover },
            _ => Created::Unclear(why),
        },
    }
}

/// The body as Vast.ai's own client sends it, after checking what the service would refuse
/// late or cut in silence.
fn create_body(request: &RentRequest, base: &Url) -> Result<Value, ProviderError> {
    let watch = request
        .lease
        .map_or_else(String::new, |lease| abandon::script(base, lease));
    let room = MAX_ONSTART.saturating_sub(NO_TMUX.len() + watch.len());
    let onstart = format!("{NO_TMUX}{watch}{}", request.onstart);
    check(request, room).map_err(|message| error(ErrorClass::Invalid, message))?;
    let mut env: Map<String, Value> = request.env.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    for port in &request.ports {
        env.insert(format!("-p {port}:{port}"), json!("1"));
    }
    Ok(json!({
        "client_id": "me",
        "image": request.image,
        "env": env,
        "price": request.bid,
        "disk": f64::from(request.disk_gb),
        "label": request.label,
        "extra": null,
        "onstart": onstart,
        "image_login": null,
        "python_utf8": false,
        "lang_utf8": false,
        "use_jupyter_lab": false,
        "jupyter_dir": null,
        "force": false,
        // Rather no contract than a stopped one that waits for its GPU and costs storage.
        "cancel_unavail": true,
        "template_hash_id": null,
        "user": null,
        // Sic: so the service spells it.
        "runtype": "ssh_direc ssh_proxy",
    }))
}

fn check(request: &RentRequest, room: usize) -> Result<(), String> {
    let refuse = |wrong: bool, message: String| if wrong { Err(message) } else { Ok(()) };
    let offer = &request.offer;
    refuse(
        offer.machine.provider != NAME,
        format!("{} is not a machine of Vast.ai", offer.machine),
    )?;
    // Ids go into paths.
    let number = !offer.offer_id.is_empty() && offer.offer_id.bytes().all(|b| b.is_ascii_digit());
    refuse(!number, "its id is not a number".into())?;
    let label = request.label.as_str();
    refuse(
        label.is_empty() || label.len() > MAX_LABEL,
        format!("a label has 1 to {MAX_LABEL} characters"),
    )?;
    refuse(
        label != wire::clean(label),
        "a label has no control characters and no white space at its ends".into(),
    )?;
    let image = request.image.as_str();
    refuse(
        image.is_empty() || image.len() > MAX_IMAGE,
        format!("an image has 1 to {MAX_IMAGE} characters"),
    )?;
    refuse(
        request.disk_gb < MIN_DISK_GB,
        format!("a disk has at least {MIN_DISK_GB} GB"),
    )?;
    refuse(
        request.onstart.len() > room,
        format!("the start script is longer than {room} bytes"),
    )?;
    refuse(
        request.ports.len() > MAX_PORTS,
        format!("at most {MAX_PORTS} ports can be opened"),
    )?;
    refuse(
        request.bid.is_some_and(|bid| !(0.001..=128.0).contains(&bid)),
        "a bid is 0.001 to 128 dollars per hour".into(),
    )?;
    refuse(request.ports.contains(&0), "port 0 cannot be opened".into())?;
    let mut total = 0;
    for (name, value) in &request.env {
        // A name like `-p 22:22` or `--privileged` would be read as an option of docker.
        let word = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let bad = !word || name.is_empty() || name.as_bytes()[0].is_ascii_digit();
        refuse(
            bad,
            format!(
                "{:?} is not a name for an environment variable",
                wire::clean(name)
            ),
        )?;
        let long = name.len() > MAX_ENV || value.len() > MAX_ENV;
        refuse(
            long,
            format!(
                "the environment variable {} is longer than {MAX_ENV} bytes",
                wire::clean(name)
            ),
        )?;
        total += name.len() + value.len();
    }
    refuse(
        total > MAX_ENV_TOTAL,
        format!("the environment is larger than {MAX_ENV_TOTAL} bytes"),
    )
}
