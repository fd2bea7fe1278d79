//! Instances: the paged listing, single reads, destroying, and what a row means.
//!
//! A listing is whole or an error. What would make it a part in silence is refused: a page
//! that failed, a token that comes again, a row without an id, fewer rows than the server
//! itself says it found.

use super::super::{Access, ErrorClass, InstanceStatus, ProviderError, ProviderInstance, SshEndpoint};
use super::error::{during, error, is_no_instance};
use super::http::Call;
use super::{Vast, wire};
use dumont_core::budget::Endpoint;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::net::IpAddr;

/// The most the service gives at once.
const PAGE: &str = "25";
const PAGE_ROWS: usize = 25;
/// 25,000 instances; more is a server that never ends.
const MAX_PAGES: usize = 1000;

/// Of `storage_cost`, which is dollars per GB and month.
const HOURS_PER_MONTH: f64 = 720.0;

/// The rows of a complete listing.
pub(super) struct Listed {
    pub rows: Vec<ProviderInstance>,
    /// The account has no instances at all, says the provider: it said so in outages, too.
    pub nobody: bool,
}

impl Vast {
    pub(super) async fn list_instances(&self) -> Result<Vec<ProviderInstance>, ProviderError> {
        Ok(self.list_where(&json!({})).await?.rows)
    }

    /// Few of many instances for the price of a page.
    pub(super) async fn list_these(&self, ids: &[String]) -> Result<Vec<ProviderInstance>, ProviderError> {
        let mut all = Vec::new();
        for ids in ids.chunks(PAGE_ROWS) {
            let numbers: Vec<u64> = ids.iter().filter_map(|id| id.parse().ok()).collect();
            let found = self.list_some(&json!({"id": {"in": numbers}})).await?;
            // Filters are not always applied.
            all.extend(
                found
                    .rows
                    .into_iter()
                    .filter(|row| ids.contains(&row.instance_id)),
            );
        }
        Ok(all)
    }

    /// All that carry this label: one, if nothing went wrong.
    pub(super) async fn list_labelled(&self, label: &str) -> Result<Listed, ProviderError> {
        let mut listed = self.list_some(&json!({"label": {"eq": label}})).await?;
        listed.rows.retain(|row| row.label.as_deref() == Some(label));
        Ok(listed)
    }

    /// Filters on stored columns are documented; one that is refused costs the whole listing.
    async fn list_some(&self, filter: &Value) -> Result<Listed, ProviderError> {
        match self.list_where(filter).await {
            Err(e) if e.class == ErrorClass::Invalid => self.list_where(&json!({})).await,
            listed => listed,
        }
    }

    async fn list_where(&self, filter: &Value) -> Result<Listed, ProviderError> {
        let (mut all, mut ids, mut tokens) = (Vec::new(), HashSet::new(), HashSet::new());
        let mut after: Option<String> = None;
        let mut total = 0;
        loop {
            let mut call = Call::new(Method::GET, "/api/v1/instances/")
                .query("select_filters", filter.to_string())
                .query("order_by", r#"[{"col": "id", "dir": "asc"}]"#)
                .query("limit", PAGE)
                .query("select_cols", r#"["*"]"#)
                .at(Endpoint::List)
                .listing();
            if let Some(token) = &after {
                call = call.query("after_token", token);
            }
            let answer = self
                .http
                .success(call)
                .await
                .map_err(during("listing instances"))?;
            let page = read_page(&answer).map_err(during("listing instances"))?;
            total = page.total.unwrap_or(0).max(total).max(page.rows.len() as u64);
            // An instance may move between two pages while they are read.
            all.extend(
                page.rows
                    .into_iter()
                    .filter(|row| ids.insert(row.instance_id.clone())),
            );
            let Some(next) = page.next else {
                return match page.found {
                    Some(found) if (all.len() as u64) < found => Err(error(
                        ErrorClass::Protocol,
                        format!(
                            "listing instances: Vast.ai says it found {found} and showed {}",
                            all.len()
                        ),
                    )),
                    _ => Ok(Listed {
                        rows: all,
                        nobody: total == 0,
                    }),
                };
            };
            if tokens.len() >= MAX_PAGES || !tokens.insert(next.clone()) {
                let message = "listing instances: the pages of Vast.ai go round in circles";
                return Err(error(ErrorClass::Protocol, message));
            }
            after = Some(next);
        }
    }

    pub(super) async fn get_instance(&self, id: &str) -> Result<Option<ProviderInstance>, ProviderError> {
        let path = instance_path(id)?;
        let what = format!("reading instance {id}");
        let call = Call::new(Method::GET, &path)
            .query("owner", "me")
            .at(Endpoint::Show);
        let answer = self
            .http
            .answer(call)
            .await
            .map_err(|lost| during(&what)(lost.error))?;
        if let Some(json) = &answer.json
            && is_no_instance(answer.status, json, &["no_such_instance"])
        {
            return Ok(None);
        }
        let json = answer.into_success().map_err(during(&what))?;
        let row = match json.get("instances") {
            Some(Value::Null) => return Ok(None),
            Some(Value::Array(rows)) => rows.iter().find(|r| wire::id(r, "id").as_deref() == Some(id)),
            other => other,
        };
        match row.and_then(read_instance) {
            Some(instance) if instance.instance_id == id => Ok(Some(instance)),
            _ => Err(error(
                ErrorClass::Protocol,
                format!("{what}: Vast.ai answered something else"),
            )),
        }
    }

    pub(super) async fn change_bid(&self, id: &str, bid: f64) -> Result<(), ProviderError> {
        // Checks the id.
        instance_path(id)?;
        let path = format!("/api/v0/instances/bid_price/{id}/");
        let call = Call::new(Method::PUT, &path)
            .json(json!({"client_id": "me", "price": bid}))
            .at(Endpoint::Bid)
            .harmless();
        let what = format!("raising the bid for instance {id}");
        self.http.success(call).await.map(drop).map_err(during(&what))
    }

    pub(super) async fn start_instance(&self, id: &str) -> Result<(), ProviderError> {
        let path = instance_path(id)?;
        let call = Call::new(Method::PUT, &path)
            .json(json!({"state": "running"}))
            .at(Endpoint::Change)
            .harmless();
        let what = format!("starting instance {id}");
        self.http.success(call).await.map(drop).map_err(during(&what))
    }

    pub(super) async fn destroy_instance(&self, id: &str) -> Result<(), ProviderError> {
        let path = instance_path(id)?;
        let what = format!("destroying instance {id}");
        let call = Call::new(Method::DELETE, &path)
            .json(json!({}))
            .at(Endpoint::Destroy);
        let answer = self
            .http
            .answer(call)
            .await
            .map_err(|lost| during(&what)(lost.error))?;
        if let Some(json) = &answer.json
            && is_no_instance(answer.status, json, &["no_such_instance", "not_found"])
        {
            return Ok(());
        }
        answer.into_success().map(drop).map_err(during(&what))
    }
}

/// Ids go into paths, so they are numbers and nothing else.
pub(super) fn instance_path(id: &str) -> Result<String, ProviderError> {
    if id.is_empty() || id.len() > 20 || !id.bytes().all(|b| b.is_ascii_digit()) {
        let message = format!(
            "{:?} is not an instance id of Vast.ai: it is a number",
            wire::clean(id)
        );
        return Err(error(ErrorClass::Invalid, message));
    }
    Ok(format!("/api/v0/instances/{id}/"))
}

#[derive(Debug)]
struct Page {
    rows: Vec<ProviderInstance>,
    next: Option<String>,
    found: Option<u64>,
    total: Option<u64>,
}

fn read_page(answer: &Value) -> Result<Page, ProviderError> {
    let bad = |message: &str| error(ErrorClass::Protocol, message);
    let rows = answer.get("instances").and_then(Value::as_array);
    let rows = rows.ok_or_else(|| bad("Vast.ai answered without a list of instances"))?;
    let rows: Option<Vec<_>> = rows.iter().map(read_instance).collect();
    let next = match answer.get("next_token") {
        None | Some(Value::Null) => None,
        Some(Value::String(token)) if token.is_empty() => None,
        Some(Value::String(token)) => Some(token.clone()),
        Some(other) => Some(other.to_string()),
    };
    Ok(Page {
        rows: rows.ok_or_else(|| bad("Vast.ai showed an instance without an id"))?,
        next,
        found: wire::count(answer, "instances_found"),
        total: wire::count(answer, "total_instances"),
    })
}

/// `None` only without an id; a row that exists must not vanish over a lesser field.
fn read_instance(row: &Value) -> Option<ProviderInstance> {
    Some(ProviderInstance {
        instance_id: wire::id(row, "id")?,
        machine_id: wire::id(row, "machine_id").unwrap_or_default(),
        label: wire::text(row, "label"),
        status: read_status(row),
        status_message: wire::text(row, "status_msg"),
        ssh: read_ssh(row),
        access: Access::default(),
        price: wire::number(row, "dph_total")
            .filter(|p| *p >= 0.0)
            .unwrap_or(0.0),
        storage: wire::number(row, "storage_cost")
            .zip(wire::number(row, "disk_space"))
            .map(|(month, gb)| month * gb / HOURS_PER_MONTH)
            .filter(|p| *p >= 0.0),
        min_bid: wire::number(row, "min_bid")
            .filter(|bid| *bid > 0.0 && wire::truth(row, "is_bid") == Some(true)),
    })
}

fn read_status(row: &Value) -> InstanceStatus {
    let word = |field| wire::text(row, field).map(|w| w.to_lowercase());
    let (actual, intended, current) = (word("actual_status"), word("intended_status"), word("cur_state"));
    // No heartbeat beats what the machine was last wanted to do.
    if matches!(actual.as_deref(), Some("offline" | "unknown")) {
        return InstanceStatus::Offline;
    }
    // An interruptible one that lost its bid: the service itself wants it stopped, without a word.
    // So does a person who stops one, and nothing tells the two apart.
    let all = [&intended, &current, &word("next_state")];
    if wire::truth(row, "is_bid") == Some(true) && all.iter().all(|w| w.as_deref() == Some("stopped")) {
        return InstanceStatus::Outbid;
    }
    // Outbid while pulling, an instance still says `loading`. A new one that is stopped only
    // until its start, on the other hand, is wanted running.
    if intended.as_deref() == Some("stopped")
        || (current.as_deref() == Some("stopped") && intended.as_deref() != Some("running"))
    {
        return InstanceStatus::Stopped;
    }
    match actual.as_deref() {
        None | Some("created" | "loading" | "rebooting" | "recycling") => InstanceStatus::Starting,
        Some("running") => InstanceStatus::Running,
        Some("stopped" | "exited" | "frozen") => InstanceStatus::Stopped,
        Some(_) => InstanceStatus::Unknown,
    }
}

/// Direct first: the proxy is slower and shared.
fn read_ssh(row: &Value) -> Vec<SshEndpoint> {
    let direct = || {
        let host = wire::text(row, "public_ipaddr").filter(|h| h.parse::<IpAddr>().is_ok())?;
        let ports = row.get("ports")?.get("22/tcp")?.as_array()?;
        let port = ports.iter().find_map(|binding| port(binding, "HostPort"))?;
        Some(SshEndpoint { host, port })
    };
    let proxy = || {
        let host = wire::text(row, "ssh_host").filter(|h| is_host(h))?;
        let jupyter = wire::text(row, "image_runtype").is_some_and(|t| t.contains("jupyter"));
        Some(SshEndpoint {
            host,
            port: port(row, "ssh_port")?.checked_add(u16::from(jupyter))?,
        })
    };
    direct().into_iter().chain(proxy()).collect()
}

fn port(row: &Value, field: &str) -> Option<u16> {
    u16::try_from(wire::count(row, field)?).ok().filter(|p| *p > 0)
}

/// Hosts end up in messages and dials: names and addresses, nothing that could be an option.
fn is_host(host: &str) -> bool {
    let named = |b: u8| b.is_ascii_alphanumeric() || b".-_:".contains(&b);
    !host.starts_with('-') && host.len() <= 253 && host.bytes().all(named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row() -> Value {
        json!({"id": 7, "machine_id": 8, "actual_status": "running\n", "intended_status": "running",
            "cur_state": "running", "public_ipaddr": "203.0.113.42\n", "ssh_host": "ssh5.vast.ai", "ssh_port": 34320,
            "ports": {"22/tcp": [{"HostIp": "0.0.0.0", "HostPort": "41022"}]}, "image_runtype": "ssh ssh_direc ssh_proxy"})
    }

    fn with(changes: &[(&str, Value)]) -> Value {
        let mut row = row();
        for (field, value) in changes {
            row[*field] = value.clone();
        }
        row
    }

    #[test]
    fn statuses_fold() {
        use InstanceStatus::*;
        let stopped = json!("stopped");
        let cases = [
            (vec![], Running),
            (vec![("actual_status", Value::Null)], Starting),
            (vec![("actual_status", json!("created"))], Starting),
            (vec![("actual_status", json!("loading"))], Starting),
            (
                vec![
                    ("actual_status", json!("loading")),
                    ("cur_state", stopped.clone()),
                ],
                Starting,
            ),
            (
                vec![
                    ("actual_status", json!("loading")),
                    ("intended_status", stopped.clone()),
                ],
                Stopped,
            ),
            (
                vec![("cur_state", stopped.clone()), ("intended_status", Value::Null)],
                Stopped,
            ),
            (vec![("actual_status", json!("exited"))], Stopped),
            (vec![("actual_status", json!("frozen"))], Stopped),
            (
                vec![("actual_status", json!("offline")), ("intended_status", stopped)],
                Offline,
            ),
            (vec![("actual_status", json!("unknown"))], Offline),
            (
                ["intended_status", "cur_state", "next_state"]
                    .map(|field| (field, json!("stopped")))
                    .into_iter()
                    .chain([("is_bid", json!(true)), ("actual_status", json!("loading"))])
                    .collect(),
                Outbid,
            ),
            (
                vec![("is_bid", json!(true)), ("cur_state", json!("stopped"))],
                Running,
            ),
            (vec![("actual_status", json!("dancing"))], Unknown),
            (vec![("actual_status", json!(17))], Unknown),
        ];
        for (changes, expected) in cases {
            assert_eq!(read_status(&with(&changes)), expected, "{changes:?}");
        }
    }

    #[test]
    fn endpoints_are_direct_then_proxy_and_odd_ports_are_none() {
        let shown = |changes: &[(&str, Value)]| {
            read_ssh(&with(changes))
                .iter()
                .map(|e| format!("{}:{}", e.host, e.port))
                .collect::<Vec<_>>()
        };
        assert_eq!(shown(&[]), ["203.0.113.42:41022", "ssh5.vast.ai:34320"]);
        assert_eq!(
            shown(&[("image_runtype", json!("jupyter_direc"))])[1],
            "ssh5.vast.ai:34321"
        );
        for ports in [
            Value::Null,
            json!([8080]),
            json!({}),
            json!({"22/tcp": null}),
            json!({"22/tcp": [{"HostPort": "-1"}]}),
        ] {
            assert_eq!(
                shown(&[("ports", ports.clone())]),
                ["ssh5.vast.ai:34320"],
                "{ports}"
            );
        }
        for port in [json!(-1), json!(0), json!(70_000), json!("x"), Value::Null] {
            assert_eq!(
                shown(&[("ssh_port", port.clone())]),
                ["203.0.113.42:41022"],
                "{port}"
            );
        }
        assert_eq!(
            shown(&[("ssh_port", json!(65535)), ("image_runtype", json!("jupyter"))]).len(),
            1
        );
        assert_eq!(
            shown(&[
                ("ssh_host", json!("-oProxyCommand=x")),
                ("public_ipaddr", json!("a b"))
            ])
            .len(),
            0
        );
    }

    proptest! {
        #[test]
        fn odd_rows_never_panic(text in ".{0,40}", n in any::<f64>(), i in any::<i64>()) {
            for value in [json!(text), json!(n), json!(i), json!([n]), json!({"22/tcp": [{"HostPort": i}]}), json!([])] {
                let fields = ["id", "machine_id", "label", "actual_status", "ports", "ssh_port", "ssh_host",
                    "public_ipaddr", "dph_total", "image_runtype", "status_msg"];
                for field in fields {
                    let row = with(&[(field, value.clone())]);
                    let _ = read_instance(&row);
                    let _ = read_page(&json!({"instances": [row], "next_token": value.clone()}));
                }
            }
        }
    }
}
