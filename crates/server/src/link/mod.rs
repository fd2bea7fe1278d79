//! A live session with the agent on one machine.
//!
//! The controller drives: it starts the agent over SSH and the agent answers on stdio. What is
//! hard here is telling the ways of silence apart. A link therefore keeps three facts for the
//! detector: when it last heard a frame, whether and when the connection ended, and why. All
//! bulk goes through a second SSH connection, by URLs that a [`Granter`] hands out one object
//! at a time.

mod carry;
mod grant;
mod install;
mod pump;

pub use grant::{Fence, Granter, prefix};
pub use install::{AGENT_SESSION, AgentBinary};

use crate::objects::ObjectError;
use crate::providers::{Access, SshEndpoint};
use crate::ssh::{self, Connection, SshError};
use axum::Router;
use carry::Carrier;
use dumont_core::probe::Probe;
use dumont_core::snapshot::{ModelFiles, Progress, RestoreReport, SnapshotReport};
use dumont_core::time::Timestamp;
use dumont_wire::agent::{
    Event, Facts, Failure, ModelsRequest, Outcome, PROTOCOL, ProbeAnswer, Request, RestoreRequest,
    SnapshotRequest, ToAgent, Workload,
};
use pump::{Pending, Shared};
use russh::keys::PrivateKey;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

/// How long the agent may take to come up and say hello, its upload included.
const HELLO: Duration = Duration::from_secs(60);
/// Everything from the first packet to the agent's hello.
const OPEN: Duration = Duration::from_secs(90);
/// For requests that only look at something.
const SHORT: Duration = Duration::from_secs(15);
/// For stopping a workload that has to be killed.
const STOP: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_secs(1);

/// What it takes to reach a machine.
#[derive(Clone)]
pub struct Target {
    /// Tried in this order.
    pub endpoints: Vec<SshEndpoint>,
    pub key: Arc<PrivateKey>,
    /// With the host key that was seen on first contact, if there was one.
    pub access: Access,
    /// The workspace directory, as its specification has it.
    pub path: String,
    pub agent: AgentBinary,
    /// Answers the agent's transfers when the store is the embedded one.
    pub objects: Option<Router>,
    /// A certificate authority of the store's own.
    pub store_ca: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// The agent did not come up; what the machine printed instead.
    #[error("the agent did not start: {0}")]
    NoAgent(String),
    /// The session ended while we waited.
    #[error("the session with the machine ended: {0}")]
    Closed(String),
    #[error("the agent did not answer within {0:?}")]
    Timeout(Duration),
    #[error(transparent)]
    Failed(#[from] Failure),
    /// An answer of the wrong kind, or to nothing.
    #[error("the agent broke the protocol: {0}")]
    Protocol(String),
    /// Its report is not what we know.
    #[error("the machine's snapshot was refused: {0}")]
    Untrue(String),
    /// Ours, not the machine's.
    #[error(transparent)]
    Store(#[from] ObjectError),
}

/// What a running request tells on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    Progress(Progress),
    Line(String),
    /// A restore has brought what the workload needs, so many files.
    Ready(u64),
}

/// An open session. Dropping it ends the session; the workload lives on.
pub struct Link {
    shared: Arc<Shared>,
    control: Connection,
    bulk: Option<Connection>,
    /// Where the machine's sshd forwards nothing.
    _carrier: Option<Carrier>,
    endpoint: SshEndpoint,
    facts: Facts,
    base_url: String,
    access: Access,
    path: String,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Link({})", self.endpoint)
    }
}

impl Link {
    /// Connects, installs the agent if it is not there, and exchanges hello.
    pub async fn open(target: &Target) -> Result<Self, LinkError> {
        // A bound over all of it: single steps of SSH wait for ever on a machine that half lives.
        timeout(OPEN, Self::dial(target))
            .await
            .unwrap_or(Err(LinkError::Timeout(OPEN)))
    }

    async fn dial(target: &Target) -> Result<Self, LinkError> {
        let (endpoint, control) = reach(target).await?;
        // The second connection uses the key that the first one saw: both are the same machine.
        let pinned = control.host_key().to_owned();
        let bulk = bulk(target, &endpoint, &pinned);
        let agent = timeout(HELLO, install::start(&control, target));
        let (bulk, channel) = tokio::join!(bulk, agent);
        let (bulk, started) = (bulk?, channel.map_err(|_| LinkError::Timeout(HELLO))??);
        let (base_url, carrier) = match (&bulk, &target.objects) {
            (Some(bulk), Some(objects)) => lead_back(bulk, target, objects).await?,
            _ => (String::new(), None),
        };

        let shared = pump::run(started);
        let hello = Request::Hello {
            protocol: PROTOCOL,
            now: Timestamp::from_system(SystemTime::now()),
            path: target.access.path(&target.path),
            heartbeat_ms: HEARTBEAT.as_millis() as u64,
            store_ca: target.store_ca.clone(),
        };
        let facts = match shared.call(hello, SHORT).await? {
            Outcome::Hello(facts) if facts.protocol <= PROTOCOL => *facts,
            Outcome::Hello(facts) => {
                return Err(LinkError::Protocol(format!(
                    "it speaks version {}, newer than ours",
                    facts.protocol
                )));
            }
            other => return Err(LinkError::Protocol(format!("hello was answered with {other:?}"))),
        };
        Ok(Self {
            shared,
            control,
            bulk,
            _carrier: carrier,
            endpoint,
            facts,
            base_url,
            access: target.access.clone(),
            path: target.access.path(&target.path),
        })
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    pub fn host_key(&self) -> &str {
        self.control.host_key()
    }

    /// The endpoint that worked.
    pub fn endpoint(&self) -> &SshEndpoint {
        &self.endpoint
    }

    /// Where the machine is and how one gets in, to be kept with its instance.
    pub fn reached_at(&self) -> dumont_store::Endpoint<'_> {
        dumont_store::Endpoint {
            host: &self.endpoint.host,
            port: self.endpoint.port,
            host_key: Some(self.host_key()),
            user: self.access.user.as_deref(),
            home: self.access.home.as_deref(),
        }
    }

    /// Who was logged in as, and where.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// The workspace's directory on this machine.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// How the agent reaches the embedded store; empty where the store has its own address.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// When the last frame came.
    pub fn last_heard(&self) -> Timestamp {
        self.shared.last_heard()
    }

    /// When and why the session ended, if it did.
    pub fn ended(&self) -> Option<(Timestamp, String)> {
        self.shared.ended()
    }

    /// Resolves when the session has ended.
    pub async fn closed(&self) {
        self.shared.closed().await;
    }

    pub async fn snapshot(
        &self,
        request: SnapshotRequest,
        granter: &Granter,
        notes: &(dyn Fn(Note) + Send + Sync),
    ) -> Result<SnapshotReport, LinkError> {
        // Its commands move no bytes: what a dead session owed and `before` may come in a row.
        let quiet = request.hooks.as_ref().map_or(0, |h| 2 * h.timeout_ms);
        let limit = STALLED_TRANSFER + Duration::from_millis(quiet);
        match self
            .transfer(Request::Snapshot(request), granter, notes, limit)
            .await?
        {
            Outcome::Snapshot(mut report) => {
                granter.finish(&mut report).await?;
                Ok(*report)
            }
            other => Err(LinkError::Protocol(format!(
                "snapshot was answered with {other:?}"
            ))),
        }
    }

    pub async fn restore(
        &self,
        request: RestoreRequest,
        granter: &Granter,
        notes: &(dyn Fn(Note) + Send + Sync),
    ) -> Result<RestoreReport, LinkError> {
        match self
            .transfer(Request::Restore(request), granter, notes, STALLED_TRANSFER)
            .await?
        {
            Outcome::Restore(report) => Ok(*report),
            other => Err(LinkError::Protocol(format!(
                "restore was answered with {other:?}"
            ))),
        }
    }

    /// Compares the MD5 of model files with the snapshot's.
    pub async fn compare_models(
        &self,
        request: ModelsRequest,
        granter: &Granter,
    ) -> Result<ModelFiles, LinkError> {
        // It reads for as long as the disk takes, and says nothing meanwhile.
        let limit = COMPARED_MODELS;
        let compared = self.transfer(Request::CompareModels(request), granter, &|_| (), limit);
        match compared.await? {
            Outcome::Models(found) => Ok(*found),
            other => Err(LinkError::Protocol(format!(
                "a comparison was answered with {other:?}"
            ))),
        }
    }

    pub async fn start_workload(&self, workload: Workload) -> Result<(), LinkError> {
        match self.shared.call(Request::StartWorkload(workload), STOP).await? {
            Outcome::WorkloadStarted { .. } => Ok(()),
            other => Err(LinkError::Protocol(format!("start was answered with {other:?}"))),
        }
    }

    pub async fn stop_workload(&self) -> Result<(), LinkError> {
        match self.shared.call(Request::StopWorkload, STOP).await? {
            Outcome::WorkloadStopped => Ok(()),
            other => Err(LinkError::Protocol(format!("stop was answered with {other:?}"))),
        }
    }

    /// Tries a probe once.
    pub async fn probe(&self, probe: Probe, limit: Duration) -> Result<ProbeAnswer, LinkError> {
        let request = Request::Probe {
            probe,
            timeout_ms: limit.as_millis() as u64,
        };
        match self.shared.call(request, limit + SHORT).await? {
            Outcome::Probe(answer) => Ok(answer),
            other => Err(LinkError::Protocol(format!("probe was answered with {other:?}"))),
        }
    }

    /// Ends the session on purpose.
    pub async fn close(&self) {
        self.control.close().await;
        if let Some(bulk) = &self.bulk {
            bulk.close().await;
        }
    }

    /// A request that asks for URLs on its way. It has no time limit of its own: as long as it
    /// gets on, it works.
    async fn transfer(
        &self,
        request: Request,
        granter: &Granter,
        notes: &(dyn Fn(Note) + Send + Sync),
        limit: Duration,
    ) -> Result<Outcome, LinkError> {
        let mut call = self.shared.start(request).await?;
        let mut best = Progress::default();
        let mut stalled = Instant::now() + limit;
        loop {
            let event = match timeout_at(stalled, call.next(limit)).await {
                Ok(event) => event?,
                Err(_) => return Err(LinkError::Timeout(limit)),
            };
            match event {
                Event::Done(outcome) => {
                    call.finished();
                    return Ok(outcome);
                }
                Event::Failed(failure) => {
                    call.finished();
                    return Err(failure.into());
                }
                Event::Progress(progress) => {
                    if progress.done_bytes > best.done_bytes || progress.done_files > best.done_files {
                        best = progress;
                        stalled = Instant::now() + limit;
                    }
                    notes(Note::Progress(progress));
                }
                Event::Ready { files } => notes(Note::Ready(files)),
                Event::Log { line } => notes(Note::Line(printable(&line))),
                Event::UploadsWanted { objects } => {
                    let grants = granter.uploads(&objects).await?;
                    call.send(Request::Uploads { grants }).await?;
                }
                Event::DownloadsWanted { keys } => {
                    let grants = granter.downloads(&keys).await?;
                    call.send(Request::Downloads { grants }).await?;
                }
                Event::Uploaded { key, parts } => granter.uploaded(key, parts).await?,
                Event::Heartbeat { .. } => {}
            }
        }
    }
}

/// A terabyte of model files at 400 MB/s.
const COMPARED_MODELS: Duration = Duration::from_secs(2700);

/// A transfer whose bytes and files do not grow for so long hangs, whatever else it says.
const STALLED_TRANSFER: Duration = Duration::from_secs(300);

/// A loopback port of the machine's that leads to `objects`: forwarded by its sshd, or where
/// that refuses, carried by the agent.
async fn lead_back(
    bulk: &Connection,
    target: &Target,
    objects: &Router,
) -> Result<(String, Option<Carrier>), LinkError> {
    let (port, carrier) = match bulk.forward().await {
        Ok(port) => (port, None),
        Err(SshError::ForwardingRefused(_)) => {
            let carrier = carry::start(bulk, target, objects.clone()).await?;
            (carrier.port, Some(carrier))
        }
        Err(error) => return Err(error.into()),
    };
    Ok((format!("http://127.0.0.1:{port}"), carrier))
}

/// The connection that carries the embedded store's bytes; a bucket has its own address.
async fn bulk(
    target: &Target,
    endpoint: &SshEndpoint,
    pinned: &str,
) -> Result<Option<Connection>, LinkError> {
    let Some(objects) = target.objects.clone() else {
        return Ok(None);
    };
    let connection = ssh::connect(
        endpoint,
        target.access.user(),
        &target.key,
        Some(pinned),
        Some(objects),
    )
    .await?;
    Ok(Some(connection))
}

async fn reach(target: &Target) -> Result<(SshEndpoint, Connection), LinkError> {
    let mut last = SshError::Unreachable {
        endpoint: "-".into(),
        reason: "no SSH address is known".into(),
    };
    for endpoint in &target.endpoints {
        let (user, pinned) = (target.access.user(), target.access.host_key.as_deref());
        match ssh::connect(endpoint, user, &target.key, pinned, None).await {
            Ok(connection) => return Ok((endpoint.clone(), connection)),
            Err(error) => last = error,
        }
    }
    Err(last.into())
}

/// A line from an untrusted host, safe to print.
fn printable(line: &str) -> String {
    line.chars().filter(|c| !c.is_control()).take(500).collect()
}

/// One running request.
struct Call {
    shared: Arc<Shared>,
    id: u64,
    events: mpsc::Receiver<Event>,
    done: bool,
}

impl Call {
    async fn next(&mut self, limit: Duration) -> Result<Event, LinkError> {
        match timeout(limit, self.events.recv()).await {
            Err(_) => Err(LinkError::Timeout(limit)),
            Ok(Some(event)) => Ok(event),
            Ok(None) => Err(LinkError::Closed(self.shared.why_closed())),
        }
    }

    async fn send(&self, body: Request) -> Result<(), LinkError> {
        let message = ToAgent { id: self.id, body };
        // An agent that stops reading its input must not hold us.
        timeout(SHORT, self.shared.send(&message))
            .await
            .unwrap_or(Err(LinkError::Timeout(SHORT)))
    }

    fn finished(&mut self) {
        self.done = true;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.shared.forget(self.id);
        if !self.done {
            self.shared.send_soon(&ToAgent {
                id: self.id,
                body: Request::Cancel,
            });
        }
    }
}

impl Shared {
    async fn start(self: &Arc<Self>, body: Request) -> Result<Call, LinkError> {
        let (id, events): (u64, mpsc::Receiver<Event>) = self.register(Pending::CAPACITY);
        let call = Call {
            shared: self.clone(),
            id,
            events,
            done: false,
        };
        call.send(body).await?;
        Ok(call)
    }

    /// A request with one answer and nothing between.
    async fn call(self: &Arc<Self>, body: Request, limit: Duration) -> Result<Outcome, LinkError> {
        timeout(limit, self.answer(body, limit))
            .await
            .unwrap_or(Err(LinkError::Timeout(limit)))
    }

    async fn answer(self: &Arc<Self>, body: Request, limit: Duration) -> Result<Outcome, LinkError> {
        let mut call = self.start(body).await?;
        loop {
            match call.next(limit).await? {
                Event::Done(outcome) => {
                    call.finished();
                    return Ok(outcome);
                }
                Event::Failed(failure) => {
                    call.finished();
                    return Err(failure.into());
                }
                _ => {}
            }
        }
    }
}
