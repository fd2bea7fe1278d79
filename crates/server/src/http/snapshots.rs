//! `/workspaces/{name}/snapshots` and `…/restore`.

use super::body::Body;
use super::error::{ApiError, ApiResult};
use super::params::{Params, Path, limit};
use super::workspaces::{named, on_machine, start};
use crate::app::App;
use crate::workflows::state::{Capture, Placement};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use dumont_core::id::WorkspaceName;
use dumont_core::workflow::Kind;
use dumont_store::{SnapshotRow, SnapshotState};
use dumont_wire::rest::{CreateSnapshot, ErrorBody, Page, PageQuery, RestoreSnapshot, Snapshot, Started};
use std::sync::Arc;

/// Snapshots of a workspace, oldest first.
#[utoipa::path(
    get,
    path = "/workspaces/{name}/snapshots",
    tag = "snapshots",
    params(("name" = WorkspaceName, Path), PageQuery),
    responses((status = 200, description = "One page", body = Page<Snapshot>)),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Params(page): Params<PageQuery>,
) -> ApiResult<Json<Page<Snapshot>>> {
    let workspace = named(&app, &name).await?;
    let rows = app
        .store
        .list_snapshots(&workspace.id, page.after.as_deref(), limit(&page)?)
        .await?;
    Ok(Json(Page {
        items: rows.items.iter().map(shown).collect(),
        next: rows.next,
    }))
}

/// Takes a snapshot.
#[utoipa::path(
    post,
    path = "/workspaces/{name}/snapshots",
    tag = "snapshots",
    params(("name" = WorkspaceName, Path)),
    request_body = CreateSnapshot,
    responses(
        (status = 202, description = "The workflow; its result names the snapshot", body = Started),
        (status = 409, description = "It lives on no machine, or another workflow works on it", body = ErrorBody),
    ),
)]
pub async fn create(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(wanted): Body<CreateSnapshot>,
) -> ApiResult<(StatusCode, Json<Started>)> {
    let workspace = on_machine(&app, &name).await?;
    let state = Capture {
        full: wanted.full,
        ..Capture::default()
    };
    let state = serde_json::to_value(&state).unwrap_or_default();
    let workflow_id = start(&app, &workspace, Kind::Snapshot, state, Vec::new(), Vec::new()).await?;
    Ok((StatusCode::ACCEPTED, Json(Started { workflow_id })))
}

/// Puts the files of a snapshot back on the machine.
#[utoipa::path(
    post,
    path = "/workspaces/{name}/restore",
    tag = "snapshots",
    params(("name" = WorkspaceName, Path)),
    request_body = RestoreSnapshot,
    responses(
        (status = 202, description = "The workflow", body = Started),
        (status = 409, description = "It has no snapshot or no machine, or another workflow works on it", body = ErrorBody),
    ),
)]
pub async fn restore(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(wanted): Body<RestoreSnapshot>,
) -> ApiResult<(StatusCode, Json<Started>)> {
    let workspace = on_machine(&app, &name).await?;
    check_owned(&app, &workspace.id, &name, wanted.snapshot_id.as_deref()).await?;
    let state = Placement {
        snapshot_id: wanted.snapshot_id,
        delete: wanted.delete,
        ..Placement::default()
    };
    let state = serde_json::to_value(&state).unwrap_or_default();
    let workflow_id = start(&app, &workspace, Kind::Restore, state, Vec::new(), Vec::new()).await?;
    Ok((StatusCode::ACCEPTED, Json(Started { workflow_id })))
}

/// Before anything is stopped or rented: is there such a snapshot (or any)?
pub async fn check_owned(app: &App, workspace_id: &str, name: &str, id: Option<&str>) -> ApiResult<()> {
    let hint = format!("`dumont snapshot list {name}` shows those it has");
    match id {
        Some(id) => match app.store.snapshot(id).await? {
            Some(s) if s.workspace_id == workspace_id && s.state == SnapshotState::Visible => Ok(()),
            _ => Err(ApiError::not_found("snapshot", id, hint)),
        },
        None => match app.store.latest_snapshot(workspace_id).await? {
            Some(_) => Ok(()),
            None => Err(ApiError::conflict(
                "no_snapshot",
                format!("workspace {name:?} has no snapshot"),
                format!("take one first: dumont snapshot create {name}"),
            )),
        },
    }
}

/// A row as the API shows it.
pub fn shown(row: &SnapshotRow) -> Snapshot {
    Snapshot {
        snapshot_id: row.id.clone(),
        snapshot_type: row.snapshot_type,
        base_snapshot_id: row.base_snapshot_id.clone(),
        files_total: row.files_total,
        files_changed: row.files_changed,
        total_bytes: row.total_bytes,
        uploaded_bytes: row.uploaded_bytes,
        full_because: row.full_because.clone(),
        torn: row.torn.clone(),
        created_at: row.created_at,
        elapsed_ms: row.elapsed_ms,
    }
}
