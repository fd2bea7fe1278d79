//! Long work that survives whoever does it.
//!
//! An owner holds a workflow by a lease on the database's clock and by the fence that its
//! claim was given. The lease only decides who may *start*; a paused owner wakes with a lease
//! it believes in. So every commit names the fence, and the step it thinks it is in, and
//! touches nothing when either has changed: two owners may both begin a step, one of them
//! commits it. What the step does to its workspace is written in that same transaction.
//!
//! Progress and log lines are for people: they are not fenced, and a late line does no harm.

use crate::column::{args, derived, json, record};
use crate::engine::{Tx, statements, transact};
use crate::workspace::{Effect, apply, live_for_update};
use crate::{Error, Page, Result, Store};
use dumont_core::snapshot::Progress;
use dumont_core::time::Timestamp;
use dumont_core::workflow::{Kind, Status, Step};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;

statements! {
    INSERT: ["INSERT INTO workflows (id, kind, workspace_id, step, step_started_at, state_json, status, \
              fence, steps_json, log_json, created_at, updated_at) \
              VALUES ($1, $2, $3, $4, $5, $6, 'running', 0, '[]', '[]', $5, $5) ON CONFLICT DO NOTHING"];
    GET: ["SELECT * FROM workflows WHERE id = $1"];
    GET_FOR_UPDATE: ["SELECT * FROM workflows WHERE id = $1" FOR_UPDATE];
    LOCK_WORKSPACE: ["SELECT w.fence FROM workspaces w WHERE w.id = \
                      (SELECT f.workspace_id FROM workflows f WHERE f.id = $1)" FOR_UPDATE];
    RUNNING: ["SELECT * FROM workflows WHERE workspace_id = $1 AND status = 'running'"];
    LIST: ["SELECT * FROM workflows WHERE workspace_id = $1 AND id > $2 ORDER BY id LIMIT $3"];
    PREEMPT: ["UPDATE workflows SET status = 'failed', fence = fence + 1, owner = NULL, lease_until = NULL, \
               error_json = $3, finished_at = $4, updated_at = $4 \
               WHERE workspace_id = $1 AND status = 'running' \
               AND kind IN (SELECT each.value FROM " EACH_2 ") RETURNING *"];
    CLAIM_NEXT: ["UPDATE workflows SET owner = $1, lease_until = " NOW " + $2, fence = fence + 1 \
                  WHERE id = (SELECT id FROM workflows WHERE status = 'running' \
                  AND (owner IS NULL OR lease_until IS NULL OR lease_until <= " NOW ") \
                  ORDER BY created_at, id LIMIT 1" FOR_UPDATE SKIP_LOCKED ") RETURNING *"];
    CLAIM: ["UPDATE workflows SET owner = $2, lease_until = " NOW " + $3, fence = fence + 1 \
             WHERE id = $1 AND status = 'running' \
             AND (owner IS NULL OR lease_until IS NULL OR lease_until <= " NOW ") RETURNING *"];
    HEARTBEAT: ["UPDATE workflows SET lease_until = " NOW " + $3 \
                 WHERE id = $1 AND fence = $2 AND status = 'running' AND lease_until > " NOW];
    RELEASE: ["UPDATE workflows SET owner = NULL, lease_until = NULL \
               WHERE id = $1 AND fence = $2 AND status = 'running'"];
    FREE_OF: ["UPDATE workflows SET owner = NULL, lease_until = NULL \
               WHERE status = 'running' AND owner = $1"];
    ADVANCE: ["UPDATE workflows SET step = $4, state_json = $5, steps_json = $6, step_started_at = $7, \
               progress_json = NULL, updated_at = $7 \
               WHERE id = $1 AND fence = $2 AND step = $3 AND status = 'running'"];
    SAVE_STATE: ["UPDATE workflows SET state_json = $4, updated_at = $5 \
                  WHERE id = $1 AND fence = $2 AND step = $3 AND status = 'running'"];
    FINISH: ["UPDATE workflows SET status = $3, step = $4, steps_json = $5, error_json = $6, \
              result_json = $7, progress_json = NULL, owner = NULL, lease_until = NULL, \
              finished_at = $8, updated_at = $8 WHERE id = $1 AND fence = $2 AND status = 'running'"];
    SET_PROGRESS: ["UPDATE workflows SET progress_json = $2 WHERE id = $1 AND status = 'running'"];
    SET_LOG: ["UPDATE workflows SET log_json = $2 WHERE id = $1"];
}

/// Lines kept of a workflow's log; the oldest go.
const LOG_LINES: usize = 100;

/// How long a finished step took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTime {
    pub step: Step,
    pub started_at: Timestamp,
    pub elapsed_ms: u64,
}
derived! {
    Vec<StepTime>: String => |v| serde_json::from_str::<Vec<StepTime>>(&v);
}

#[derive(Debug, Clone, PartialEq)]
pub struct WorkflowRow {
    pub id: String,
    pub kind: Kind,
    pub workspace_id: String,
    pub step: Step,
    pub step_started_at: Timestamp,
    /// What its steps remember; the caller's shape.
    pub state: Value,
    pub status: Status,
    pub owner: Option<String>,
    /// On the database's clock.
    pub lease_until: Option<Timestamp>,
    pub fence: i64,
    /// Finished steps, in order. A step that was taken over counts from its first start.
    pub steps: Vec<StepTime>,
    pub log: Vec<String>,
    pub progress: Option<Progress>,
    pub error: Option<Value>,
    pub result: Option<Value>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub finished_at: Option<Timestamp>,
}
record!(WorkflowRow {
    id,
    kind,
    workspace_id,
    step,
    step_started_at,
    state = "state_json",
    status,
    owner,
    lease_until,
    fence,
    steps = "steps_json",
    log = "log_json",
    progress = "progress_json",
    error = "error_json",
    result = "result_json",
    created_at,
    updated_at,
    finished_at
});

impl WorkflowRow {
    /// The finished steps and the one that ends now.
    fn steps_until(&self, now: Timestamp) -> Result<String> {
        let mut steps = self.steps.clone();
        let elapsed_ms = u64::try_from(now.millis_since(self.step_started_at)).unwrap_or(0);
        steps.push(StepTime {
            step: self.step,
            started_at: self.step_started_at,
            elapsed_ms,
        });
        json(&steps)
    }
}

#[derive(Debug, Clone)]
pub struct NewWorkflow {
    pub id: String,
    pub kind: Kind,
    pub workspace_id: String,
    pub state: Value,
    /// Kinds that give way: a running workflow of one of them ends as failed with this error
    /// (a failover does not wait for a snapshot of the machine that is gone). What it rented
    /// or left pending is the new one's to clean.
    pub preempt: Vec<Kind>,
    pub preempt_error: Option<Value>,
    /// Only if the workspace still lives on this instance: whoever decided to start it looked
    /// some time ago.
    pub expects_instance: Option<String>,
    pub effects: Vec<Effect>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct StartedWorkflow {
    /// Not claimed yet.
    pub workflow: WorkflowRow,
    /// Ids of the workflows that gave way.
    pub preempted: Vec<String>,
}

/// The commit of one step.
#[derive(Debug, Clone)]
pub struct Advance<'a> {
    pub id: &'a str,
    pub fence: i64,
    pub from: Step,
    pub to: Step,
    pub state: &'a Value,
    pub effects: &'a [Effect],
}

/// The end of a workflow, good or bad.
#[derive(Debug, Clone)]
pub struct Finish<'a> {
    pub id: &'a str,
    pub fence: i64,
    /// `Done` or `Failed`.
    pub status: Status,
    pub error: Option<&'a Value>,
    pub result: Option<&'a Value>,
    pub effects: &'a [Effect],
}

/// `Stale` unless the workflow runs under this fence; locked until the transaction ends.
pub(crate) async fn check_fence(tx: &mut Tx, id: &str, fence: i64) -> Result<WorkflowRow> {
    let row = locked(tx, id).await?;
    if row.fence == fence && row.status == Status::Running {
        Ok(row)
    } else {
        Err(stale(id))
    }
}

async fn locked(tx: &mut Tx, id: &str) -> Result<WorkflowRow> {
    tx.first(GET_FOR_UPDATE, args![id])
        .await?
        .ok_or_else(|| Error::not_found("workflow", id))
}

/// The workspace comes before its workflow in the order of locks.
async fn lock_for_effects(tx: &mut Tx, id: &str, effects: &[Effect]) -> Result<()> {
    if !effects.is_empty() {
        tx.run(LOCK_WORKSPACE, args![id]).await?;
    }
    Ok(())
}

fn stale(id: &str) -> Error {
    Error::stale("workflow", id)
}

/// Zero rows touched by a fenced statement.
fn fenced(touched: u64, id: &str) -> Result<()> {
    if touched == 0 { Err(stale(id)) } else { Ok(()) }
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

/// The row of a new workflow, and whatever goes with it.
async fn start(tx: &mut Tx, new: &NewWorkflow, now: Timestamp) -> Result<StartedWorkflow> {
    let live = live_for_update(tx, &new.workspace_id).await?;
    if let Some(workflow) = tx.first(GET, args![&new.id]).await? {
        return Ok(StartedWorkflow {
            workflow,
            preempted: Vec::new(),
        });
    }
    if new.expects_instance.is_some() && live.instance_key != new.expects_instance {
        return Err(Error::stale("workspace", &new.workspace_id));
    }
    let mut preempted = Vec::new();
    if !new.preempt.is_empty() {
        let error = new.preempt_error.as_ref().map(json).transpose()?;
        let args = args![&new.workspace_id, json(&new.preempt)?, error, now];
        let gone: Vec<WorkflowRow> = tx.all(PREEMPT, args).await?;
        preempted.extend(gone.into_iter().map(|w| w.id));
    }
    let first = new.kind.first();
    let args = args![
        &new.id,
        new.kind,
        &new.workspace_id,
        first,
        now,
        json(&new.state)?
    ];
    if tx.run(INSERT, args).await? == 0 {
        let running: Option<WorkflowRow> = tx.first(RUNNING, args![&new.workspace_id]).await?;
        return Err(Error::conflict(
            "workflow",
            &running.map_or_else(|| new.id.clone(), |w| w.id),
        ));
    }
    apply(tx, &new.workspace_id, &new.effects, now).await?;
    let workflow = locked(tx, &new.id).await?;
    Ok(StartedWorkflow { workflow, preempted })
}

async fn finish(tx: &mut Tx, end: &Finish<'_>, now: Timestamp) -> Result<()> {
    lock_for_effects(tx, end.id, end.effects).await?;
    let row = locked(tx, end.id).await?;
    if row.fence != end.fence {
        return Err(stale(end.id));
    }
    if row.status != Status::Running {
        return if row.status == end.status {
            Ok(())
        } else {
            Err(stale(end.id))
        };
    }
    let last = if end.status == Status::Done {
        Step::Done
    } else {
        row.step
    };
    let steps = if row.step == Step::Done {
        json(&row.steps)?
    } else {
        row.steps_until(now)?
    };
    let error = end.error.map(json).transpose()?;
    let result = end.result.map(json).transpose()?;
    let args = args![end.id, end.fence, end.status, last, steps, error, result, now];
    fenced(tx.run(FINISH, args).await?, end.id)?;
    apply(tx, &row.workspace_id, end.effects, now).await
}

impl Store {
    /// `Conflict` with the id of the workflow that already runs for the workspace, unless its
    /// kind is among those that give way. `Stale` if it lives elsewhere than expected. Repeated
    /// with the same id: the row as it stands.
    pub async fn start_workflow(&self, new: &NewWorkflow, now: Timestamp) -> Result<StartedWorkflow> {
        transact!(self.db, |tx| start(tx, new, now).await)
    }

    /// Takes the oldest running workflow that nobody holds. `owner` must be new with every
    /// process, never a host's name.
    pub async fn claim_next_workflow(&self, owner: &str, lease: Duration) -> Result<Option<WorkflowRow>> {
        transact!(self.db, |tx| tx
            .first(CLAIM_NEXT, args![owner, micros(lease)])
            .await)
    }

    /// Takes this one; `Stale` if it is held or finished.
    pub async fn claim_workflow(&self, id: &str, owner: &str, lease: Duration) -> Result<WorkflowRow> {
        transact!(self.db, |tx| tx
            .first(CLAIM, args![id, owner, micros(lease)])
            .await)?
        .ok_or_else(|| stale(id))
    }

    /// Extends a lease that has not ended. `Stale`: stop at once.
    pub async fn heartbeat_workflow(&self, id: &str, fence: i64, lease: Duration) -> Result<()> {
        fenced(self.db.run(HEARTBEAT, args![id, fence, micros(lease)]).await?, id)
    }

    /// Ends every lease of an owner that is known to be dead, instead of waiting for them to run
    /// out. Should it live after all, its fences are of the past with the next claim.
    pub async fn free_workflows_of(&self, owner: &str) -> Result<u64> {
        self.db.run(FREE_OF, args![owner]).await
    }

    /// Gives it back for others to claim at once, e.g. on shutdown.
    pub async fn release_workflow(&self, id: &str, fence: i64) -> Result<()> {
        fenced(self.db.run(RELEASE, args![id, fence]).await?, id)
    }

    /// Commits a step: its time, the state, the effects and the next step, all or nothing.
    /// Repeated under the same fence (the first reply was lost): no change.
    pub async fn advance_workflow(&self, step: Advance<'_>, now: Timestamp) -> Result<()> {
        let state = json(step.state)?;
        transact!(self.db, |tx| {
            lock_for_effects(tx, step.id, step.effects).await?;
            let row = check_fence(tx, step.id, step.fence).await?;
            if row.step == step.to && step.from != step.to {
                return Ok(());
            }
            let steps = row.steps_until(now)?;
            let args = args![step.id, step.fence, step.from, step.to, &state, steps, now];
            fenced(tx.run(ADVANCE, args).await?, step.id)?;
            apply(tx, &row.workspace_id, step.effects, now).await
        })
    }

    /// Keeps the state in the middle of a step.
    pub async fn save_workflow_state(
        &self,
        id: &str,
        fence: i64,
        step: Step,
        state: &Value,
        now: Timestamp,
    ) -> Result<()> {
        fenced(
            self.db
                .run(SAVE_STATE, args![id, fence, step, json(state)?, now])
                .await?,
            id,
        )
    }

    /// Ends it; its last effects go with it. Done ends in step `done`, failed keeps the step
    /// it failed in. Repeated under the same fence: no change.
    pub async fn finish_workflow(&self, end: Finish<'_>, now: Timestamp) -> Result<()> {
        transact!(self.db, |tx| finish(tx, &end, now).await)
    }

    /// For people: not fenced. Each call is a synced write: a few a second at most.
    pub async fn set_workflow_progress(&self, id: &str, progress: Option<&Progress>) -> Result<()> {
        let progress = progress.map(json).transpose()?;
        self.db.run(SET_PROGRESS, args![id, progress]).await.map(drop)
    }

    /// For people: not fenced. The newest 100 lines are kept.
    pub async fn append_workflow_log(&self, id: &str, line: &str) -> Result<()> {
        transact!(self.db, |tx| {
            let mut log = locked(tx, id).await?.log;
            log.push(line.to_owned());
            let kept = &log[log.len().saturating_sub(LOG_LINES)..];
            tx.run(SET_LOG, args![id, json(&kept)?]).await.map(drop)
        })
    }

    pub async fn workflow(&self, id: &str) -> Result<Option<WorkflowRow>> {
        self.db.first(GET, args![id]).await
    }

    /// The one that works on the workspace now.
    pub async fn running_workflow(&self, workspace_id: &str) -> Result<Option<WorkflowRow>> {
        self.db.first(RUNNING, args![workspace_id]).await
    }

    /// In the order of ids; `after` is an id.
    pub async fn list_workflows(
        &self,
        workspace_id: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Page<WorkflowRow>> {
        let args = args![workspace_id, after.unwrap_or(""), u64::from(limit) + 1];
        let rows = self.db.all(LIST, args).await?;
        Ok(Page::cut(rows, limit, |w: &WorkflowRow| w.id.clone()))
    }
}
