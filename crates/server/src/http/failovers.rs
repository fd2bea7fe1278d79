//! `/failovers`: what each move took, and how to ask for one.

use super::body::Body;
use super::error::{ApiError, ApiResult};
use super::params::{Params, Path, limit};
use super::workspaces::{named, started_or_busy};
use crate::app::App;
use crate::reconcilers::monitor::{loss, start_failover};
use crate::workflows::state::Loss;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use dumont_core::id::WorkspaceName;
use dumont_store::{AttemptRow, FailoverEventRow, WorkspaceState};
use dumont_wire::rest::{Attempt, ErrorBody, FailoverEvent, Page, PageQuery, RunFailover, Started};
use serde::Deserialize;
use std::sync::Arc;
use utoipa::IntoParams;

/// `?workspace=&limit=&after=`
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    /// Only those of this workspace.
    #[param(value_type = Option<WorkspaceName>)]
    workspace: Option<String>,
    /// 1 to 500, default 100.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
    /// `next` of the page before.
    after: Option<String>,
}

/// Moves a workspace to another machine.
#[utoipa::path(
    post,
    path = "/workspaces/{name}/failover",
    tag = "failovers",
    params(("name" = WorkspaceName, Path)),
    request_body = RunFailover,
    responses(
        (status = 202, description = "The workflow; its id is the id of the event", body = Started),
        (status = 409, description = "It is neither running nor failed, or another workflow works on it", body = ErrorBody),
    ),
)]
pub async fn run(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(wanted): Body<RunFailover>,
) -> ApiResult<(StatusCode, Json<Started>)> {
    let workspace = named(&app, &name).await?;
    if !matches!(workspace.state, WorkspaceState::Running | WorkspaceState::Failed) {
        return Err(ApiError::conflict(
            "not_running",
            format!("workspace {name:?} is {}", workspace.state),
            "a failover moves a running or failed workspace",
        ));
    }
    if let Some(id) = &wanted.snapshot_id {
        super::snapshots::check_owned(&app, &workspace.id, &name, Some(id)).await?;
    }
    let reason = wanted.reason.unwrap_or_else(|| "requested".into());
    let trigger: String = reason.chars().filter(|c| !c.is_control()).take(200).collect();
    let now = app.now();
    let instance = match &workspace.instance_key {
        Some(key) => app.store.instance(key).await?,
        None => None,
    };
    let left = match &instance {
        Some(row) => loss(row, &trigger, false, now, now),
        None => Loss {
            trigger,
            cause: None,
            dead: true,
            lost_at: now,
            detected_at: now,
            instance_key: None,
            instance_id: None,
            machine: None,
            ssh_host: None,
            ssh_port: None,
        },
    };
    let started = start_failover(&app, &workspace, Some(left), wanted.snapshot_id).await;
    let workflow_id = started_or_busy(&app, &workspace, started).await?;
    Ok((StatusCode::ACCEPTED, Json(Started { workflow_id })))
}

/// Failovers that have ended, newest first.
#[utoipa::path(
    get,
    path = "/failovers",
    tag = "failovers",
    params(ListQuery),
    responses(
        (status = 200, description = "One page", body = Page<FailoverEvent>),
        (status = 404, description = "There is no such workspace", body = ErrorBody),
    ),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    Params(query): Params<ListQuery>,
) -> ApiResult<Json<Page<FailoverEvent>>> {
    let workspace = match &query.workspace {
        Some(name) => Some(named(&app, name).await?.id),
        None => None,
    };
    let page = PageQuery {
        limit: query.limit,
        after: query.after,
    };
    let rows = app
        .store
        .list_failover_events(workspace.as_deref(), page.after.as_deref(), limit(&page)?)
        .await?;
    let mut items = Vec::with_capacity(rows.items.len());
    for row in rows.items {
        items.push(shown(&app, row).await?);
    }
    Ok(Json(Page {
        items,
        next: rows.next,
    }))
}

/// One failover: every phase in milliseconds, and every machine that was tried.
#[utoipa::path(
    get,
    path = "/failovers/{id}",
    tag = "failovers",
    params(("id" = String, Path)),
    responses((status = 200, description = "The event", body = FailoverEvent)),
)]
pub async fn show(State(app): State<Arc<App>>, Path(id): Path<String>) -> ApiResult<Json<FailoverEvent>> {
    let row = app.store.failover_event(&id).await?;
    let row = row.ok_or_else(|| {
        ApiError::not_found(
            "failover",
            &id,
            "`dumont failover list` shows those that have ended",
        )
    })?;
    Ok(Json(shown(&app, row).await?))
}

async fn shown(app: &App, row: FailoverEventRow) -> ApiResult<FailoverEvent> {
    let attempts = app.store.attempts_of_workflow(&row.workflow_id).await?;
    Ok(FailoverEvent {
        id: row.id,
        workspace: row.workspace_name,
        success: row.success,
        failure_reason: row.failure_reason,
        trigger: row.trigger,
        cause: row.cause.map(|c| c.as_str().to_owned()),
        lost_at: row.lost_at,
        detected_at: row.detected_at,
        finished_at: row.finished_at,
        detection_ms: row.detection_ms,
        search_ms: row.search_ms,
        gpu_provisioning_time_ms: row.gpu_provisioning_time_ms,
        restore_ms: row.restore_ms,
        validation_ms: row.validation_ms,
        start_ms: row.start_ms,
        probe_ms: row.probe_ms,
        switch_ms: row.switch_ms,
        total_ms: row.total_ms,
        complete_ms: row.complete_ms,
        original_instance_id: row.original_instance_id,
        original_ssh_host: row.original_ssh_host,
        original_ssh_port: row.original_ssh_port,
        new_instance_id: row.new_instance_id,
        new_ssh_host: row.new_ssh_host,
        new_ssh_port: row.new_ssh_port,
        snapshot_id: row.snapshot_id,
        snapshot_type: row.snapshot_type,
        base_snapshot_id: row.base_snapshot_id,
        files_changed: row.files_changed,
        validation: row.validation,
        model_files: row.model_files,
        bytes_restored: row.bytes_restored,
        bytes_downloaded: row.bytes_downloaded,
        data_loss_ms: row.data_loss_ms,
        attempts: attempts.into_iter().map(attempt).collect(),
    })
}

fn attempt(row: AttemptRow) -> Attempt {
    let a = row.attempt;
    Attempt {
        machine: a.machine,
        attempt_type: a.attempt_type,
        stage: a.stage.as_str().into(),
        outcome: a.outcome.as_str().into(),
        success: row.success,
        reason: a.reason.map(String::from),
        error_message: a.error_message,
        gpu_name: a.gpu_name,
        price: a.price,
        duration_seconds: a.duration_seconds,
        created_at: a.created_at,
    }
}
