//! `/workspaces/{name}/snapshots` and `…/restore`.

use super::body::Body;
use super::error::{ApiError, ApiResult};
use super::params::{Params, Path, limit};
use super::workspaces::{named, on_machine, start};
use crate::app::App;
use crate::link::{Fence, Granter, LinkError};
use crate::reconcilers::retention::Pruner;
use crate::workflows::capture::half;
use crate::workflows::state::{Capture, Placement};
use async_trait::async_trait;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use dumont_core::id::WorkspaceName;
use dumont_core::workflow::Kind;
use dumont_store::{SnapshotRow, SnapshotState};
use dumont_wire::rest::{
    CreateSnapshot, ErrorBody, OpenedSnapshot, Page, PageQuery, Pin, Prune, Pruned, ReadSnapshot, Repaired,
    RestoreSnapshot, Snapshot, Started,
};
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
        (status = 409, description = "It lives on no machine, another workflow works on it, or its last restore broke off", body = ErrorBody),
    ),
)]
pub async fn create(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(wanted): Body<CreateSnapshot>,
) -> ApiResult<(StatusCode, Json<Started>)> {
    let workspace = on_machine(&app, &name).await?;
    if let Some(refused) = half(&workspace, wanted.as_it_is) {
        return Err(ApiError::conflict(&refused.code, refused.message, refused.hint));
    }
    let state = Capture {
        full: wanted.full,
        as_it_is: wanted.as_it_is,
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
    let part = !wanted.include.is_empty() || !wanted.exclude.is_empty();
    if part && wanted.delete {
        return Err(ApiError::invalid(
            "delete goes with neither include nor exclude: a part of a snapshot says nothing of the rest",
            "restore all of it, or leave delete out",
        ));
    }
    let odd = |g: &String| g.is_empty() || g.len() > 1024 || g.contains('\0') || g.starts_with('/');
    let globs = || wanted.include.iter().chain(&wanted.exclude);
    if globs().count() > 100 {
        return Err(ApiError::invalid(
            "include and exclude have more than 100 globs",
            "name folders: src/**",
        ));
    }
    if let Some(glob) = globs().find(|g| odd(g)) {
        return Err(ApiError::invalid(
            format!("{glob:?} is no glob of paths below the workspace's directory"),
            "write it without the directory and without a slash in front: src/**",
        ));
    }
    let state = Placement {
        snapshot_id: wanted.snapshot_id,
        delete: wanted.delete,
        include: wanted.include,
        exclude: wanted.exclude,
        ..Placement::default()
    };
    let state = serde_json::to_value(&state).unwrap_or_default();
    let workflow_id = start(&app, &workspace, Kind::Restore, state, Vec::new(), Vec::new()).await?;
    Ok((StatusCode::ACCEPTED, Json(Started { workflow_id })))
}

/// Keys in one request.
const MOST_KEYS: usize = 500;

/// Reading what is there hurts nobody.
struct Always;

#[async_trait]
impl Fence for Always {
    async fn holds(&self) -> bool {
        true
    }
}

/// What it takes to read a snapshot: its head, and URLs for objects of it.
#[utoipa::path(
    post,
    path = "/workspaces/{name}/snapshots/{id}/open",
    tag = "snapshots",
    params(("name" = WorkspaceName, Path), ("id" = String, Path)),
    request_body = ReadSnapshot,
    responses((status = 200, description = "Its head, and the URLs asked for", body = OpenedSnapshot)),
)]
pub async fn open(
    State(app): State<Arc<App>>,
    Path((name, id)): Path<(String, String)>,
    Body(wanted): Body<ReadSnapshot>,
) -> ApiResult<Json<OpenedSnapshot>> {
    let row = owned(&app, &name, &id).await?;
    if wanted.keys.len() > MOST_KEYS {
        return Err(ApiError::invalid(
            format!("{} keys in one request", wanted.keys.len()),
            "ask for at most 500 at once",
        ));
    }
    let granter = Granter::reading(
        app.objects.clone(),
        &app.public_url,
        &row.workspace_id,
        Arc::new(Always),
    );
    let grants = granter.downloads(&wanted.keys).await.map_err(|e| match e {
        LinkError::Protocol(what) => ApiError::invalid(what, "ask for keys that the snapshot's indexes name"),
        other => ApiError::internal(other.to_string()),
    })?;
    Ok(Json(OpenedSnapshot {
        head: row.head,
        grants,
    }))
}

/// Keeps a snapshot whatever the policy says, or no longer.
#[utoipa::path(
    put,
    path = "/workspaces/{name}/snapshots/{id}/pin",
    tag = "snapshots",
    params(("name" = WorkspaceName, Path), ("id" = String, Path)),
    request_body = Pin,
    responses((status = 200, description = "The snapshot", body = Snapshot)),
)]
pub async fn pin(
    State(app): State<Arc<App>>,
    Path((name, id)): Path<(String, String)>,
    Body(Pin { pinned }): Body<Pin>,
) -> ApiResult<Json<Snapshot>> {
    let mut row = owned(&app, &name, &id).await?;
    app.store.pin_snapshot(&row.id, pinned).await?;
    row.pinned = pinned;
    Ok(Json(shown(&row)))
}

/// Lets go what the workspace's policy does not keep, and what only that needed.
#[utoipa::path(
    post,
    path = "/workspaces/{name}/prune",
    tag = "snapshots",
    params(("name" = WorkspaceName, Path)),
    request_body = Prune,
    responses((status = 200, description = "What went", body = Pruned)),
)]
pub async fn prune(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(Prune { dry_run }): Body<Prune>,
) -> ApiResult<Json<Pruned>> {
    let workspace = named(&app, &name).await?;
    let pruned = Pruner::of(&app).prune(&workspace, app.now(), dry_run).await;
    pruned.map(Json).map_err(|e| {
        ApiError::conflict(
            "not_pruned",
            e.to_string(),
            format!("nothing that is needed was touched; `dumont snapshot check {name}` looks for damage"),
        )
    })
}

/// Reads all that the workspace has in the store, and points its snapshots to what is good.
#[utoipa::path(
    post,
    path = "/workspaces/{name}/repair",
    tag = "snapshots",
    params(("name" = WorkspaceName, Path)),
    responses(
        (status = 200, description = "What was found, and what is lost", body = Repaired),
        (status = 409, description = "A workflow works on the workspace, or the store cannot be read", body = ErrorBody),
    ),
)]
pub async fn repair(State(app): State<Arc<App>>, Path(name): Path<String>) -> ApiResult<Json<Repaired>> {
    let workspace = named(&app, &name).await?;
    if let Some(running) = app.store.running_workflow(&workspace.id).await? {
        return Err(ApiError::busy(&name, &running.id, running.kind));
    }
    let repaired = crate::repair::run(&app, &workspace).await;
    repaired.map(Json).map_err(|e| {
        ApiError::conflict(
            "not_repaired",
            e.to_string(),
            "nothing that is there was changed; `dumont doctor` looks at the store",
        )
    })
}

/// A visible snapshot of this workspace.
async fn owned(app: &App, name: &str, id: &str) -> ApiResult<SnapshotRow> {
    let workspace = named(app, name).await?;
    match app.store.snapshot(id).await? {
        Some(s) if s.workspace_id == workspace.id && s.state == SnapshotState::Visible => Ok(s),
        _ => Err(ApiError::not_found(
            "snapshot",
            id,
            format!("`dumont snapshot list {name}` shows those it has"),
        )),
    }
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
        pinned: row.pinned,
    }
}
