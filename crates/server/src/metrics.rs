//! What is counted and timed, by name, and the state that is read when somebody looks.
//!
//! Labels are words of ours, never names of workspaces, machines or hosts: that bounds the
//! series, and a dashboard that many may see shows nobody's work. Counters begin at zero with
//! each process, as Prometheus expects; what must be right across restarts and replicas
//! (running work, rented machines) is read from the database instead of counted.

use crate::app::App;
use dumont_core::history::Reason;
use dumont_core::workflow::{Kind, Status};
use dumont_store::{FailoverEventRow, InstanceState, NewAttempt, NewSnapshot, WorkspaceState};
use metrics::{counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;

/// Bounds of waits that a person counts in seconds: boots, restores, failovers.
const SECONDS: [f64; 14] = [
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 90.0, 120.0, 300.0, 900.0,
];

static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// Starts counting, once per process.
pub fn install() {
    RECORDER.get_or_init(|| {
        let builder = PrometheusBuilder::new();
        let builder = match builder.set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS) {
            Ok(bounded) => bounded,
            // Only for an empty list of bounds.
            Err(_) => PrometheusBuilder::new(),
        };
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("another recorder has this process's metrics; /metrics stays empty");
        }
        describe();
        handle
    });
}

fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_counter!(
        "dumont_workflows_total",
        "Workflows that ended, by kind and status"
    );
    describe_gauge!("dumont_workflows_running", "Workflows under way now, by kind");
    describe_gauge!("dumont_workspaces", "Workspaces now, by state");
    describe_gauge!("dumont_instances", "Instances that cost money or may, by state");
    describe_gauge!("dumont_instances_dollars_per_hour", "What they cost together");
    describe_gauge!("dumont_spent_dollars", "What was spent in this period, UTC");
    describe_gauge!(
        "dumont_spending_cap_dollars",
        "What may be spent in it; 0: no cap"
    );
    describe_gauge!(
        "dumont_orphans",
        "Instances with our label that nobody knows, when last looked for"
    );
    describe_counter!(
        "dumont_attempts_total",
        "Attempts on machines, by outcome, stage and reason"
    );
    let seconds = |name, text| describe_histogram!(name, Unit::Seconds, text);
    seconds(
        "dumont_provider_wait_seconds",
        "How long requests waited for the account's budget, by endpoint",
    );
    seconds(
        "dumont_ssh_ready_seconds",
        "From rent to a ready machine: the SSH ready time distribution",
    );
    seconds(
        "dumont_failover_phase_seconds",
        "Phases of failovers that succeeded",
    );
    seconds(
        "dumont_failover_seconds",
        "From loss to a validated workload, by success",
    );
    seconds("dumont_snapshot_seconds", "From request to visibility, by type");
    describe_counter!(
        "dumont_snapshot_bytes_total",
        "Bytes of snapshots: in the tree, and uploaded"
    );
    describe_counter!(
        "dumont_provider_requests_total",
        "Requests to providers, by endpoint and status"
    );
    describe_gauge!(
        "process_resident_memory_bytes",
        Unit::Bytes,
        "Memory of this process"
    );
}

pub fn workflow_ended(kind: Kind, status: Status) {
    counter!("dumont_workflows_total", "kind" => kind.as_str(), "status" => status.as_str()).increment(1);
}

/// Once per attempt: the caller knows whether it was recorded before.
pub fn attempt(a: &NewAttempt) {
    // Words of later versions are open-ended; a label must not be.
    let reason = match &a.reason {
        Some(Reason::Other(_)) => "other".to_owned(),
        Some(known) => String::from(known.clone()),
        None => String::new(),
    };
    counter!(
        "dumont_attempts_total",
        "outcome" => a.outcome.as_str(), "stage" => a.stage.as_str(), "reason" => reason,
    )
    .increment(1);
    if let Some(seconds) = a.ready_seconds {
        histogram!("dumont_ssh_ready_seconds").record(seconds);
    }
}

pub fn failover(event: &FailoverEventRow) {
    let seconds = |ms: i64| ms.max(0) as f64 / 1000.0;
    histogram!("dumont_failover_seconds", "success" => event.success.to_string())
        .record(seconds(event.total_ms));
    if !event.success {
        return;
    }
    let phases = [
        ("detection", event.detection_ms),
        ("search", event.search_ms),
        ("provisioning", event.gpu_provisioning_time_ms),
        ("restore", event.restore_ms),
        ("validation", event.validation_ms),
        ("start", event.start_ms),
        ("probe", event.probe_ms),
        ("switch", event.switch_ms),
    ];
    for (phase, ms) in phases {
        histogram!("dumont_failover_phase_seconds", "phase" => phase).record(seconds(ms));
    }
}

pub fn snapshot(new: &NewSnapshot, elapsed_ms: u64) {
    let kind = new.snapshot_type.as_str();
    counter!("dumont_snapshot_bytes_total", "what" => "tree").increment(new.head.bytes);
    counter!("dumont_snapshot_bytes_total", "what" => "uploaded").increment(new.uploaded_bytes);
    histogram!("dumont_snapshot_seconds", "type" => kind).record(elapsed_ms as f64 / 1000.0);
}

/// `status` is the answer's, or why there was none.
pub fn provider_request(provider: &'static str, method: &str, path: &str, status: &str) {
    counter!(
        "dumont_provider_requests_total",
        "provider" => provider, "endpoint" => format!("{method} {}", template(path)), "status" => status.to_owned(),
    )
    .increment(1);
}

/// How long a request waited for the account's budget.
pub fn provider_waited(endpoint: &'static str, waited: std::time::Duration) {
    histogram!("dumont_provider_wait_seconds", "endpoint" => endpoint).record(waited.as_secs_f64());
}

/// A path without the ids in it.
fn template(path: &str) -> String {
    let parts = path
        .split('/')
        .map(|part| match part.bytes().any(|b| b.is_ascii_digit()) {
            // `v0` is a version.
            true if !part.starts_with('v') => "{id}",
            _ => part,
        });
    parts.collect::<Vec<_>>().join("/")
}

/// Everything in Prometheus' text format, the state read now.
pub async fn render(app: &App) -> Result<String, dumont_store::Error> {
    let running = app.store.count_running_workflows().await?;
    for kind in Kind::ALL {
        let n = running.get(kind.as_str()).copied().unwrap_or(0);
        gauge!("dumont_workflows_running", "kind" => kind.as_str()).set(n as f64);
    }
    let workspaces = app.store.count_workspaces().await?;
    for state in WorkspaceState::ALL {
        let n = workspaces.get(state.as_str()).copied().unwrap_or(0);
        gauge!("dumont_workspaces", "state" => state.as_str()).set(n as f64);
    }
    let open = app.store.list_open_instances().await?;
    for state in InstanceState::ALL
        .iter()
        .filter(|s| **s != InstanceState::Destroyed)
    {
        let n = open.iter().filter(|row| row.state == *state).count();
        gauge!("dumont_instances", "state" => state.as_str()).set(n as f64);
    }
    gauge!("dumont_instances_dollars_per_hour").set(open.iter().fold(0.0, |sum, row| sum + row.price));
    let (spent, caps) = (app.store.spent(app.now()).await?, app.config.caps);
    for (period, dollars, cap) in [
        ("day", spent.today, caps.per_day),
        ("month", spent.this_month, caps.per_month),
    ] {
        gauge!("dumont_spent_dollars", "period" => period).set(dollars);
        gauge!("dumont_spending_cap_dollars", "period" => period).set(cap);
    }
    gauge!("dumont_orphans").set(app.orphans.load(Relaxed) as f64);
    if let Some(bytes) = resident_bytes() {
        gauge!("process_resident_memory_bytes").set(bytes as f64);
    }
    Ok(RECORDER
        .get()
        .map(|handle| {
            handle.run_upkeep();
            handle.render()
        })
        .unwrap_or_default())
}

/// Memory of this process, as the kernel counts it.
pub fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}
