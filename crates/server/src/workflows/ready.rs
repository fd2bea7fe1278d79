//! From a rented instance to a ready one: booted, SSH open, agent up, GPU there.
//!
//! "Running" is the provider's word for a container; its sshd may need another minute and its
//! driver may be broken. Ready means that our own program answered from inside and saw the
//! GPUs that were promised. Every way to fail names its stage and reason, because the reason
//! decides whether the machine or we are to blame.

use crate::app::Market;
use crate::link::{Link, LinkError, Target};
use crate::providers::{ErrorClass, InstanceStatus, ProviderInstance, SshEndpoint};
use crate::ssh::SshError;
use dumont_core::history::{Reason, Stage};
use dumont_core::offer::Offer;
use dumont_wire::agent::Facts;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Between two tries of a port that is not open yet.
const REDIAL: Duration = Duration::from_millis(200);

/// A listing right after the rent shows a container that is not up for sure, and uses up the
/// one call that the provider allows in its second.
const FIRST_LOOK: Duration = Duration::from_millis(250);

/// Why a machine did not become ready.
#[derive(Debug, Clone, PartialEq)]
pub struct NotReady {
    pub stage: Stage,
    pub reason: Reason,
    pub message: String,
}

/// The stage a racer has reached; read by whoever gives it up.
#[derive(Debug, Clone)]
pub struct StageCell(Arc<Mutex<Stage>>);

impl Default for StageCell {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Stage::Rent)))
    }
}

impl StageCell {
    pub fn set(&self, stage: Stage) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    pub fn get(&self) -> Stage {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a machine must show.
#[derive(Debug, Clone)]
pub struct Promise {
    pub offer: Offer,
    /// Bytes the restore will need.
    pub disk_bytes: u64,
    /// How long sshd may take after the provider says running.
    pub ssh_grace: Duration,
    /// Our key, attached to the instance if it is not let in.
    pub public_key: String,
}

/// Waits until `instance_id` is ready. Has no time limit for the boot: the race has.
pub async fn make_ready(
    market: &Market,
    instance_id: &str,
    mut target: Target,
    promise: &Promise,
    stage: &StageCell,
) -> Result<Link, NotReady> {
    stage.set(Stage::Boot);
    target.endpoints = booted(market, instance_id).await?;
    stage.set(Stage::Ssh);
    let let_in = || async {
        // Account keys reach new instances after a while, sometimes never; attaching is quicker.
        let _ = market.provider.attach_key(instance_id, &promise.public_key).await;
    };
    let link = log_in(&target, promise.ssh_grace, stage, let_in).await?;
    stage.set(Stage::Gpu);
    check(link.facts(), promise)?;
    stage.set(Stage::Ready);
    Ok(link)
}

/// Waits until the provider says running, and gives the SSH endpoints.
async fn booted(market: &Market, instance_id: &str) -> Result<Vec<SshEndpoint>, NotReady> {
    let failed = |reason: Reason, message: String| NotReady {
        stage: Stage::Boot,
        reason,
        message,
    };
    let mut asked = Instant::now() + FIRST_LOOK;
    loop {
        let listed = market.listing.since(asked).await;
        asked = Instant::now();
        let instance = match listed {
            Ok(all) => all.iter().find(|i| i.instance_id == instance_id).cloned(),
            Err(e) if e.class == ErrorClass::Auth => {
                return Err(failed(Reason::ProviderError, e.to_string()));
            }
            // A failed listing says nothing about the machine.
            Err(_) => continue,
        };
        let instance = match instance {
            Some(instance) => instance,
            // Nor does its absence from one listing: only the provider's own "no such" does.
            None => match market.provider.get(instance_id).await {
                Ok(Some(instance)) => instance,
                Ok(None) => {
                    return Err(failed(
                        Reason::Other("instance_gone".into()),
                        "the provider no longer knows it".into(),
                    ));
                }
                Err(_) => continue,
            },
        };
        match instance.status {
            InstanceStatus::Running if !instance.ssh.is_empty() => return Ok(instance.ssh),
            InstanceStatus::Running | InstanceStatus::Starting | InstanceStatus::Unknown => {}
            InstanceStatus::Stopped => return Err(failed(stopped_reason(&instance), words(&instance))),
            InstanceStatus::Offline => {
                return Err(failed(Reason::Other("host_offline".into()), words(&instance)));
            }
        }
    }
}

/// A wrong image is ours, not the host's.
fn stopped_reason(instance: &ProviderInstance) -> Reason {
    let text = instance
        .status_message
        .as_deref()
        .unwrap_or_default()
        .to_ascii_lowercase();
    if ["manifest unknown", "pull access denied", "not found: manifest"]
        .iter()
        .any(|w| text.contains(w))
    {
        Reason::ImageError
    } else {
        Reason::Other("stopped_while_booting".into())
    }
}

fn words(instance: &ProviderInstance) -> String {
    match &instance.status_message {
        Some(words) => format!("the provider says: {words}"),
        None => format!("the provider says {:?}", instance.status).to_lowercase(),
    }
}

async fn log_in<F: Future<Output = ()>>(
    target: &Target,
    grace: Duration,
    stage: &StageCell,
    let_in: impl Fn() -> F,
) -> Result<Link, NotReady> {
    let deadline = Instant::now() + grace;
    let mut asked = false;
    loop {
        let error = match Link::open(target).await {
            Ok(link) => return Ok(link),
            Err(error) => error,
        };
        if matches!(error, LinkError::Ssh(SshError::Denied(_))) && !asked {
            asked = true;
            let_in().await;
        }
        let again = match &error {
            LinkError::Ssh(SshError::HostKeyChanged { .. } | SshError::ForwardingRefused(_)) => false,
            LinkError::Ssh(_) | LinkError::Closed(_) => true,
            _ => {
                stage.set(Stage::Hello);
                false
            }
        };
        if !again || Instant::now() >= deadline {
            let stage = stage.get();
            let reason = if stage == Stage::Ssh {
                Reason::SshFailed
            } else {
                Reason::HelloFailed
            };
            return Err(NotReady {
                stage,
                reason,
                message: error.to_string(),
            });
        }
        sleep(REDIAL).await;
    }
}

/// Pure: does the machine have what was rented?
fn check(facts: &Facts, promise: &Promise) -> Result<(), NotReady> {
    let failed = |reason: Reason, message: String| {
        Err(NotReady {
            stage: Stage::Gpu,
            reason,
            message,
        })
    };
    let offer = &promise.offer;
    if facts.gpus.is_empty() {
        let why = facts
            .gpu_error
            .clone()
            .unwrap_or_else(|| "nvidia-smi lists none".into());
        return failed(Reason::GpuNotReady, format!("no GPU: {why}"));
    }
    let alike = |name: &str| plain(name).contains(&plain(&offer.gpu_name));
    let found = facts.gpus.iter().filter(|g| alike(&g.name)).count();
    if found < offer.gpu_count as usize {
        return failed(
            Reason::GpuNotReady,
            format!(
                "{found} of {} promised {} are there",
                offer.gpu_count, offer.gpu_name
            ),
        );
    }
    if facts.disk_free_bytes < promise.disk_bytes {
        return failed(
            Reason::DiskTooSmall,
            format!(
                "{} bytes free, the workspace needs {}",
                facts.disk_free_bytes, promise.disk_bytes
            ),
        );
    }
    Ok(())
}

/// "NVIDIA GeForce RTX 4090" and "RTX 4090" are one GPU; "H100 SXM" shows as "H100 80GB HBM3".
fn plain(name: &str) -> String {
    let upper = name.to_ascii_uppercase().replace('_', " ");
    let dropped = [
        "NVIDIA", "GEFORCE", "TESLA", "SXM", "SXM2", "SXM4", "SXM5", "NVL", "PCIE", "PCI",
    ];
    let words = upper.split_whitespace().filter(|w| !dropped.contains(w));
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use dumont_core::time::Timestamp;
    use dumont_wire::agent::GpuFact;

    fn promise(name: &str, count: u32) -> Promise {
        Promise {
            offer: Offer {
                offer_id: "1".into(),
                machine: "vast:1".parse().unwrap(),
                host_id: None,
                gpu_name: name.into(),
                gpu_count: count,
                gpu_ram_mb: 24_000,
                price: 0.3,
                region: None,
                provider_reliability: 0.99,
                inet_down_mbps: 500.0,
                inet_up_mbps: 500.0,
                cuda_max: None,
                driver_version: None,
                disk_gb: 100.0,
                verified: true,
                datacenter: false,
            },
            disk_bytes: 1_000,
            ssh_grace: Duration::from_secs(1),
            public_key: String::new(),
        }
    }

    fn facts(gpus: &[&str], free: u64) -> Facts {
        Facts {
            protocol: 1,
            agent_version: "0".into(),
            now: Timestamp(0),
            clock_skew_ms: 0,
            hostname: String::new(),
            kernel: String::new(),
            cpus: 1,
            memory_total_bytes: 0,
            memory_available_bytes: 0,
            disk_total_bytes: free,
            disk_free_bytes: free,
            gpus: gpus
                .iter()
                .map(|name| GpuFact {
                    name: (*name).into(),
                    memory_mb: 1,
                    driver_version: "1".into(),
                })
                .collect(),
            gpu_error: None,
            workload: None,
        }
    }

    #[test]
    fn marketplace_and_driver_names_of_one_gpu_match() {
        for (rented, shown) in [
            ("RTX 4090", "NVIDIA GeForce RTX 4090"),
            ("H100 SXM", "NVIDIA H100 80GB HBM3"),
            ("A100 SXM4", "NVIDIA A100-SXM4-80GB"),
            ("RTX_3090", "NVIDIA GeForce RTX 3090"),
        ] {
            assert_eq!(
                check(&facts(&[shown], 2_000), &promise(rented, 1)),
                Ok(()),
                "{rented} / {shown}"
            );
        }
    }

    #[test]
    fn a_missing_or_wrong_gpu_and_a_small_disk_are_named() {
        let reason = |f: &Facts, p: &Promise| check(f, p).unwrap_err().reason;
        assert_eq!(
            reason(&facts(&[], 2_000), &promise("RTX 4090", 1)),
            Reason::GpuNotReady
        );
        assert_eq!(
            reason(&facts(&["RTX 3090"], 2_000), &promise("RTX 4090", 1)),
            Reason::GpuNotReady
        );
        assert_eq!(
            reason(&facts(&["RTX 4090"], 2_000), &promise("RTX 4090", 2)),
            Reason::GpuNotReady
        );
        assert_eq!(
            reason(&facts(&["RTX 4090"], 500), &promise("RTX 4090", 1)),
            Reason::DiskTooSmall
        );
    }
}
