//! `/workflows`: long work, its steps and its progress.

use super::error::{ApiError, ApiResult};
use super::params::{Params, limit};
use super::workspaces::named;
use crate::app::App;
use axum::Json;
use axum::extract::{Path, State};
use dumont_core::id::WorkspaceName;
use dumont_store::WorkflowRow;
use dumont_wire::rest::{Page, PageQuery, StepTime, Workflow};
use serde::Deserialize;
use std::sync::Arc;

/// `?workspace=&limit=&after=`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    workspace: String,
    limit: Option<u32>,
    after: Option<String>,
}

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
