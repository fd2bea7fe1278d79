//! From a rented instance to a ready one: booted, SSH open, agent up, GPU there.
//!
//! "Running" is the provider's word for a container; its sshd may need another minute and its
//! driver may be broken. Ready means that our own program answered from inside and saw the
//! GPUs that were promised. Every way to fail names its stage and reason, because the reason
//! decides whether the machine or we are to blame.

use crate::app::Market;
use crate::link::{Link, LinkError, Target};
use crate::providers::listing::pause_after;
use crate::providers::{Access, ErrorClass, InstanceStatus, ProviderInstance, own};
use crate::ssh::SshError;
use dumont_core::blacklist::CudaVersion;
use dumont_core::driver::{is_too_old, serves};
use dumont_core::history::{Reason, Stage};
use dumont_core::offer::Offer;
use dumont_wire::agent::Facts;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::select;
use tokio::time::{Instant, sleep};

/// Between two tries of a port that is not open yet.
const REDIAL: Duration = Duration::from_millis(200);

/// A listing right after the rent shows a container that is not up for sure, and uses up the
/// one call that the provider allows in its second.
const FIRST_LOOK: Duration = Duration::from_millis(250);

/// Logins are mostly quicker than this; only a slow one costs more looks.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Why a machine did not become ready.
#[derive(Debug, Clone, PartialEq)]
pub struct NotReady {
    pub stage: Stage,
    pub reason: Reason,
    pub message: String,
}

impl NotReady {
    /// The provider had nothing to rent.
    pub fn was_refused(&self) -> bool {
        self.stage == Stage::Rent && matches!(self.reason, Reason::NoSuchAsk | Reason::Outbid)
    }

    /// Its owner says of it what is not so.
    pub fn is_misdescribed(&self) -> bool {
        self.reason == misdescribed()
    }

    /// The provider says that it is stopped, by whomever.
    pub fn is_stopped(&self) -> bool {
        self.reason == Reason::Outbid || self.reason == stopped_while_booting()
    }
}

fn stopped_while_booting() -> Reason {
    Reason::Other("stopped_while_booting".into())
}

fn misdescribed() -> Reason {
    Reason::Other("wrong_description".into())
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
    /// The CUDA version asked for.
    pub cuda: Option<CudaVersion>,
    /// How long sshd may take after the provider says running.
    pub ssh_grace: Duration,
    /// How long our key may be refused, if that is longer.
    pub key_grace: Duration,
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
    let instance = booted(market, instance_id).await?;
    target.endpoints = instance.ssh;
    // What we have seen ourselves stays pinned.
    let pinned = target.access.host_key.take();
    target.access = Access {
        host_key: pinned.or(instance.access.host_key),
        ..instance.access
    };
    stage.set(Stage::Ssh);
    let let_in = || async {
        // Account keys reach new instances after a while, sometimes never; attaching is quicker.
        let _ = market.provider.attach_key(instance_id, &promise.public_key).await;
    };
    let link = select! {
        link = log_in(&target, promise, stage, let_in) => link?,
        // A port that does not answer may be a machine that is gone: the provider knows.
        gone = ended(market, instance_id) => return Err(gone),
    };
    stage.set(Stage::Gpu);
    check(link.facts(), promise)?;
    stage.set(Stage::Ready);
    Ok(link)
}

/// Waits until the provider says running, and where.
async fn booted(market: &Market, instance_id: &str) -> Result<ProviderInstance, NotReady> {
    let begun = Instant::now();
    let mut since = begun + FIRST_LOOK;
    loop {
        let seen = look(market, instance_id, Stage::Boot, since).await?;
        // Who makes the call keeps the least distance; only a long wait adds to it.
        let more = pause_after(begun.elapsed()).saturating_sub(pause_after(Duration::ZERO));
        since = Instant::now() + more;
        if let Some(instance) = seen
            && instance.status == InstanceStatus::Running
            && !instance.ssh.is_empty()
        {
            return Ok(instance);
        }
    }
}

/// Resolves when the provider says that a machine which was running is not any more.
async fn ended(market: &Market, instance_id: &str) -> NotReady {
    let begun = Instant::now();
    loop {
        sleep(LOOK_AGAIN.max(pause_after(begun.elapsed()))).await;
        if let Err(gone) = look(market, instance_id, Stage::Ssh, Instant::now()).await {
            return gone;
        }
    }
}

/// What the provider says of it after `since`: nothing, that it lives, or why it will not come.
async fn look(
    market: &Market,
    instance_id: &str,
    stage: Stage,
    since: Instant,
) -> Result<Option<ProviderInstance>, NotReady> {
    let failed = |reason: Reason, message: String| NotReady {
        stage,
        reason,
        message,
    };
    let listed = match market.listing.look(instance_id, since).await {
        Ok(shown) => shown,
        Err(e) if e.class == ErrorClass::Auth => return Err(failed(Reason::ProviderError, e.to_string())),
        // A failed listing says nothing about the machine.
        Err(_) => return Ok(None),
    };
    let instance = match listed {
        Some(instance) => instance,
        // Nor does its absence from one listing: only the provider's own "no such" does.
        None => match market.provider.get(instance_id).await {
            Ok(Some(instance)) => instance,
            Ok(None) => {
                let reason = Reason::Other("instance_gone".into());
                return Err(failed(reason, "the provider no longer knows it".into()));
            }
            Err(_) => return Ok(None),
        },
    };
    // It says so itself, and stays in that state for ever.
    if instance.status == InstanceStatus::Starting
        && let Some(reason) = will_not_start(&instance)
    {
        return Err(failed(reason, words(&instance)));
    }
    match instance.status {
        InstanceStatus::Running | InstanceStatus::Starting | InstanceStatus::Unknown => Ok(Some(instance)),
        InstanceStatus::Stopped => Err(failed(stopped_reason(&instance), words(&instance))),
        InstanceStatus::Outbid => {
            let words = "a higher bid than ours took it".to_owned();
            Err(failed(Reason::Outbid, words))
        }
        InstanceStatus::Offline => Err(failed(Reason::HostOffline, words(&instance))),
    }
}

fn stopped_reason(instance: &ProviderInstance) -> Reason {
    will_not_start(instance).unwrap_or_else(stopped_while_booting)
}

/// Why its container cannot be made, where the provider says it. A wrong image is ours, not the
/// host's.
fn will_not_start(instance: &ProviderInstance) -> Option<Reason> {
    let text = instance.status_message.as_deref()?.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|w| text.contains(w));
    if says(&["manifest unknown", "pull access denied", "not found: manifest"]) {
        Some(Reason::ImageError)
    } else if says(&["oci runtime create failed"]) {
        Some(Reason::HardwareError)
    } else {
        None
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
    promise: &Promise,
    stage: &StageCell,
    let_in: impl Fn() -> F,
) -> Result<Link, NotReady> {
    let begin = Instant::now();
    let mut asked = false;
    loop {
        let error = match Link::open(target).await {
            Ok(link) => return Ok(link),
            Err(error) => error,
        };
        let denied = matches!(error, LinkError::Ssh(SshError::Denied(_)));
        if denied && !asked {
            asked = true;
            let_in().await;
        }
        // Something there speaks SSH: what is missing is our key, and keys take their time.
        let grace = if denied {
            promise.ssh_grace.max(promise.key_grace)
        } else {
            promise.ssh_grace
        };
        let again = match &error {
            LinkError::Ssh(SshError::HostKeyChanged { .. } | SshError::ForwardingRefused(_)) => false,
            LinkError::Ssh(_) | LinkError::Closed(_) => true,
            _ => {
                stage.set(Stage::Hello);
                false
            }
        };
        if !again || begin.elapsed() >= grace {
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
        // The machine's own words: they end in logs, terminals and pages.
        let plain = message.chars().filter(|c| !c.is_control()).take(500);
        Err(NotReady {
            stage: Stage::Gpu,
            reason,
            message: plain.collect(),
        })
    };
    let offer = &promise.offer;
    if facts.gpus.is_empty() {
        let why = facts
            .gpu_error
            .clone()
            .unwrap_or_else(|| "nvidia-smi lists none".into());
        let reason = if why.to_ascii_lowercase().contains("version mismatch") {
            Reason::DriverMismatch
        } else {
            Reason::GpuNotReady
        };
        return failed(reason, format!("no GPU: {why}"));
    }
    let alike = |name: &str| plain(name).contains(&plain(&offer.gpu_name));
    let found = facts.gpus.iter().filter(|g| alike(&g.name)).count();
    if found == 0 && offer.machine.provider == own::NAME {
        let mut shown: Vec<&str> = facts.gpus.iter().map(|g| g.name.as_str()).collect();
        shown.dedup();
        return failed(
            misdescribed(),
            format!(
                "nvidia-smi shows {}, the inventory says {}",
                shown.join(", "),
                offer.gpu_name
            ),
        );
    }
    if found < offer.gpu_count as usize {
        return failed(
            Reason::GpuNotReady,
            format!(
                "{found} of {} promised {} are there, it shows {}",
                offer.gpu_count,
                offer.gpu_name,
                facts
                    .gpus
                    .iter()
                    .map(|g| g.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        );
    }
    let too_old = |asked: CudaVersion| facts.gpus.iter().find(|g| is_too_old(&g.driver_version, asked));
    if let Some((asked, gpu)) = promise.cuda.and_then(|asked| Some((asked, too_old(asked)?))) {
        let newest = serves(&gpu.driver_version).map_or_else(String::new, |v| format!(" (CUDA {v})"));
        return failed(
            Reason::DriverMismatch,
            format!(
                "driver {}{newest} is too old for CUDA {asked}, though the offer promised it",
                gpu.driver_version
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

/// What became of a clock that was plainly wrong, for the workflow's log.
pub fn clock_line(facts: &Facts) -> Option<String> {
    let fix = facts.clock_fix?;
    Some(match fix.after {
        Some(after) => format!("Clock synced: before={} after={after}", fix.before),
        None => format!(
            "Clock skew: {:+} s, it shows {} (not settable)",
            facts.clock_skew_ms / 1_000,
            fix.before
        ),
    })
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
    use dumont_core::history::Outcome;
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
                bid: None,
            },
            disk_bytes: 1_000,
            cuda: None,
            ssh_grace: Duration::from_secs(1),
            key_grace: Duration::from_secs(1),
            public_key: String::new(),
        }
    }

    fn facts(gpus: &[&str], free: u64) -> Facts {
        Facts {
            protocol: 1,
            agent_version: "0".into(),
            now: Timestamp(0),
            clock_skew_ms: 0,
            clock_fix: None,
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
    fn a_wrong_clock_is_told_in_words() {
        let at = |seconds: i64| Timestamp(seconds * 1_000_000);
        let told = |after: Option<Timestamp>| {
            let mut facts = facts(&[], 0);
            facts.clock_skew_ms = -7_200_000;
            facts.clock_fix = Some(dumont_wire::agent::ClockFix { before: at(0), after });
            clock_line(&facts).unwrap()
        };
        assert_eq!(
            told(Some(at(7_200))),
            "Clock synced: before=1970-01-01T00:00:00Z after=1970-01-01T02:00:00Z"
        );
        assert_eq!(
            told(None),
            "Clock skew: -7200 s, it shows 1970-01-01T00:00:00Z (not settable)"
        );
        assert_eq!(clock_line(&facts(&[], 0)), None);
    }

    #[test]
    fn a_driver_that_does_not_fit_is_named() {
        let mut facts = facts(&[], 2_000);
        facts.gpu_error = Some("nvidia-smi: exit code 18: Driver/library version mismatch".into());
        let not_ready = check(&facts, &promise("RTX 4090", 1)).unwrap_err();
        assert_eq!(not_ready.reason, Reason::DriverMismatch);
    }

    #[test]
    fn a_driver_older_than_promised_is_named_where_it_matters() {
        let asked = |cuda: &str| Promise {
            cuda: Some(cuda.parse().unwrap()),
            ..promise("RTX 4090", 1)
        };
        let mut facts = facts(&["NVIDIA GeForce RTX 4090"], 2_000);
        facts.gpus[0].driver_version = "535.183.01".into();
        assert_eq!(
            check(&facts, &promise("RTX 4090", 1)),
            Ok(()),
            "nothing was asked for"
        );
        assert_eq!(check(&facts, &asked("12.2")), Ok(()));
        let not_ready = check(&facts, &asked("12.8")).unwrap_err();
        assert_eq!(
            (not_ready.reason, not_ready.stage),
            (Reason::DriverMismatch, Stage::Gpu)
        );
        assert_eq!(
            not_ready.message,
            "driver 535.183.01 (CUDA 12.2) is too old for CUDA 12.8, though the offer promised it"
        );
        facts.gpus[0].driver_version = "a driver of the future".into();
        assert_eq!(check(&facts, &asked("12.8")), Ok(()));
    }

    /// Its owner said what it has, so it cannot have promised anything else.
    #[test]
    fn a_machine_of_ones_own_is_not_blamed_for_what_was_said_of_it() {
        let mut told = promise("RTX 4090", 1);
        told.offer.machine = "ssh:a".parse().unwrap();
        let why = check(&facts(&["RTX 3090", "RTX 3090"], 2_000), &told).unwrap_err();
        assert!(why.is_misdescribed() && why.reason.outcome() == Outcome::NotHost);
        assert_eq!(
            why.message,
            "nvidia-smi shows RTX 3090, the inventory says RTX 4090"
        );
        // One of several is gone: that is no word of the owner's.
        told.offer.gpu_count = 2;
        let why = check(&facts(&["RTX 4090"], 2_000), &told).unwrap_err();
        assert_eq!(why.reason, Reason::GpuNotReady);
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
