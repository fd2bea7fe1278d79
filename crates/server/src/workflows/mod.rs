//! Long work as persisted steps; `engine` drives, one file per kind of step.
//!
//! The order of steps is data in `dumont_core::workflow`; what a step does is here. Every
//! step may be started twice and must find what its first start left behind.

pub mod abandoned;
pub mod capture;
mod detect;
pub mod dispose;
pub mod engine;
mod named;
mod part;
mod placement;
mod race;
mod racer;
pub mod ready;
mod regain;
pub mod search;
pub mod state;
mod steps;
mod switch;

use crate::app::{App, Market};
use crate::link::{Link, LinkError, Note};
use crate::workflows::search::NO_VAST;
use dumont_core::snapshot::RestoreReport;
use dumont_core::workflow::Kind;
use dumont_store::{Effect, Error as StoreError, WorkflowRow, WorkspaceRow};
use dumont_wire::rest::ErrorBody;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::sync::Arc;

/// Where to go after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// The next step of the kind.
    Next,
    /// Another step, e.g. back to the race when the winner died under us.
    Goto(dumont_core::workflow::Step),
}

/// Why a step ended badly.
#[derive(Debug)]
pub enum StepError {
    /// For good: the workflow fails, with this for the user.
    Failed(ErrorBody),
    /// The database: the workflow stays as it is and is taken up again.
    Store(StoreError),
}

impl From<StoreError> for StepError {
    fn from(e: StoreError) -> Self {
        Self::Store(e)
    }
}

impl StepError {
    pub fn failed(code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Failed(ErrorBody::new(code, message, hint))
    }
}

pub type StepResult = Result<Flow, StepError>;

/// One workflow being driven.
pub struct Run {
    pub app: Arc<App>,
    pub id: String,
    pub kind: Kind,
    pub fence: i64,
    pub workspace: WorkspaceRow,
    /// Saved with each step.
    pub state: Value,
    /// What the commit of this step, or of the end, does to the workspace.
    pub effects: Vec<Effect>,
    /// What the workflow made, for its finished row.
    pub result: Option<Value>,
    /// The link to the machine it works on; opened anew after a crash.
    pub link: Option<Arc<Link>>,
    /// A restore that goes on while the workload runs; it ends with us.
    pub restoring: Option<Restoring>,
}

/// The rest of a restore.
pub type Restoring = tokio_util::task::AbortOnDropHandle<Result<RestoreReport, LinkError>>;

impl Run {
    pub fn new(app: Arc<App>, row: &WorkflowRow, workspace: WorkspaceRow) -> Self {
        Self {
            app,
            id: row.id.clone(),
            kind: row.kind,
            fence: row.fence,
            workspace,
            state: row.state.clone(),
            effects: Vec::new(),
            result: None,
            link: None,
            restoring: None,
        }
    }

    /// Before an act that cannot be fenced: `Stale` if another owner has the workflow.
    pub async fn still_ours(&self) -> Result<(), StoreError> {
        let lease = self.app.config.timing.lease;
        self.app
            .store
            .heartbeat_workflow(&self.id, self.fence, lease)
            .await
    }

    /// The typed state; a fresh workflow's is empty.
    pub fn load<T: DeserializeOwned + Default>(&self) -> T {
        serde_json::from_value(self.state.clone()).unwrap_or_default()
    }

    /// Keeps the typed state for the commit of this step.
    pub fn keep<T: Serialize>(&mut self, state: &T) {
        self.state = serde_json::to_value(state).unwrap_or_default();
    }

    /// A line worth showing to whoever watches; losing one is no reason to stop.
    pub async fn say(&self, line: impl Into<String>) {
        let line = line.into();
        tracing::info!(workflow = %self.id, workspace = %self.workspace.name, "{line}");
        if let Err(error) = self.app.store.append_workflow_log(&self.id, &line).await {
            tracing::warn!(workflow = %self.id, %error, "a log line is lost");
        }
    }

    /// Shows what a transfer tells on its way: progress in memory, lines in the log.
    pub fn notes(&self) -> impl Fn(Note) + Send + Sync + use<> {
        let (app, id) = (self.app.clone(), self.id.clone());
        // A machine that talks faster than we write loses lines, not our memory.
        let (lines, mut said) = tokio::sync::mpsc::channel::<String>(64);
        let (logger, workflow) = (app.clone(), id.clone());
        tokio::spawn(async move {
            while let Some(line) = said.recv().await {
                tracing::info!(%workflow, "{line}");
                if let Err(error) = logger.store.append_workflow_log(&workflow, &line).await {
                    tracing::warn!(%workflow, %error, "a log line is lost");
                }
            }
        });
        move |note| match note {
            Note::Progress(progress) => app.progress.set(&id, progress),
            Note::Line(line) => drop(lines.try_send(line)),
            // Whoever waits for it listens by itself.
            Note::Ready(_) => {}
        }
    }

    pub fn market(&self, provider: &str) -> Result<&Market, StepError> {
        self.app.market(provider).ok_or_else(|| {
            let (code, message, hint) = NO_VAST;
            StepError::failed(code, format!("{provider}: {message}"), hint)
        })
    }
}

/// A link error in the API's words.
pub fn link_failure(error: &LinkError) -> ErrorBody {
    let (code, hint) = match error {
        LinkError::Ssh(_) => (
            "ssh_failed",
            "see whether the machine still runs: dumont instances".to_owned(),
        ),
        LinkError::NoAgent(_) | LinkError::Protocol(_) => (
            "agent_failed",
            "try again; if it repeats on other machines, report it with the server's log".to_owned(),
        ),
        LinkError::Store(error) => (error.code(), error.hint().to_owned()),
        LinkError::Untrue(_) => (
            "snapshot_refused",
            "nothing was changed; move the workspace to another machine with `dumont failover run`"
                .to_owned(),
        ),
        LinkError::Closed(_) | LinkError::Timeout(_) => (
            "machine_lost",
            "the machine went away; dumont fails over by itself if the policy allows".to_owned(),
        ),
        LinkError::Failed(failure) => {
            let code = serde_json::to_value(failure.code).ok();
            let code = code.as_ref().and_then(Value::as_str).unwrap_or("internal");
            return ErrorBody::new(code, &failure.message, &failure.hint);
        }
    };
    ErrorBody::new(code, error.to_string(), hint)
}
