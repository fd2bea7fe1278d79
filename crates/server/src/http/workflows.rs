//! `/workflows`: long work, its steps and its progress.

use super::error::{ApiError, ApiResult};
use super::params::{Params, Path, limit};
use super::workspaces::named;
use crate::app::App;
use axum::Json;
use axum::extract::State;
use dumont_core::id::WorkspaceName;
use dumont_store::WorkflowRow;
use dumont_wire::rest::{ErrorBody, Page, PageQuery, StepTime, Workflow};
use serde::Deserialize;
use std::sync::Arc;
use utoipa::IntoParams;

/// `?workspace=&limit=&after=`
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    #[param(value_type = WorkspaceName)]
    workspace: String,
    /// 1 to 500, default 100.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
    /// `next` of the page before.
    after: Option<String>,
}

/// Long work on a workspace, oldest first.
#[utoipa::path(
    get,
    path = "/workflows",
    tag = "workflows",
    params(ListQuery),
    responses(
        (status = 200, description = "One page", body = Page<Workflow>),
        (status = 404, description = "There is no such workspace", body = ErrorBody),
    ),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    Params(query): Params<ListQuery>,
) -> ApiResult<Json<Page<Workflow>>> {
    let workspace = named(&app, &query.workspace).await?;
    let page = PageQuery {
        limit: query.limit,
        after: query.after,
    };
    let rows = app
        .store
        .list_workflows(&workspace.id, page.after.as_deref(), limit(&page)?)
        .await?;
    let items = rows
        .items
        .into_iter()
        .map(|row| shown(&app, row, workspace.name.clone()))
        .collect();
    Ok(Json(Page {
        items,
        next: rows.next,
    }))
}

/// One workflow: its steps, its progress, its log. Poll it until `status` is not `running`.
#[utoipa::path(
    get,
    path = "/workflows/{id}",
    tag = "workflows",
    params(("id" = String, Path)),
    responses((status = 200, description = "The workflow", body = Workflow)),
)]
pub async fn show(State(app): State<Arc<App>>, Path(id): Path<String>) -> ApiResult<Json<Workflow>> {
    let missing = || ApiError::not_found("workflow", &id, "ids are in the answers that start long work");
    let row = app.store.workflow(&id).await?.ok_or_else(missing)?;
    let workspace = app
        .store
        .workspace(&row.workspace_id)
        .await?
        .ok_or_else(missing)?;
    Ok(Json(shown(&app, row, workspace.name)))
}

fn shown(app: &App, row: WorkflowRow, workspace: WorkspaceName) -> Workflow {
    let steps = row.steps.iter().map(|s| StepTime {
        step: s.step.as_str().to_owned(),
        started_at: s.started_at,
        elapsed_ms: s.elapsed_ms,
    });
    Workflow {
        steps: steps.collect(),
        progress: app.progress.get(&row.id),
        id: row.id,
        kind: row.kind,
        workspace,
        status: row.status,
        step: row.step.as_str().to_owned(),
        log: row.log,
        error: row.error.and_then(|e| serde_json::from_value(e).ok()),
        result: row.result,
        created_at: row.created_at,
        finished_at: row.finished_at,
    }
}
