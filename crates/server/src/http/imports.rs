//! Imports: local files become a draft workspace's first snapshot.
//!
//! The caller runs the snapshot engine on its own machine and gets its URLs here; the commit
//! is the same last act as that of any snapshot. An import lives in memory only: one that is
//! lost with the server is begun again, and what it uploaded is garbage.

use super::body::Body;
use super::error::{ApiError, ApiResult};
use super::params::Path;
use super::snapshots::shown;
use super::workspaces::named;
use crate::app::App;
use crate::link::{Fence, Granter, LinkError};
use crate::workflows::capture::{Origin, publish};
use crate::workflows::{StepError, link_failure};
use async_trait::async_trait;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use dumont_core::id::WorkspaceName;
use dumont_core::time::Timestamp;
use dumont_store::Store;
use dumont_wire::agent::{UploadGrant, UploadWanted};
use dumont_wire::rest::{CommitImport, ErrorBody, Import, ImportUpload, ImportUploaded, Snapshot};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use ulid::Ulid;

/// Imports under way.
#[derive(Default)]
pub struct Imports(Mutex<HashMap<String, Arc<Running>>>);

struct Running {
    workspace_id: String,
    stamp: String,
    began_at: Timestamp,
    fence: i64,
    granter: Granter,
}

/// Only while the workspace lives on no machine: a machine's files are newer.
struct DraftFence {
    store: Store,
    workspace_id: String,
}

#[async_trait]
impl Fence for DraftFence {
    async fn holds(&self) -> bool {
        matches!(self.store.workspace(&self.workspace_id).await,
            Ok(Some(w)) if w.instance_key.is_none() && w.deleted_at.is_none())
    }
}

/// Begins to put local files into a first snapshot, before anything is rented.
#[utoipa::path(
    post,
    path = "/workspaces/{name}/imports",
    tag = "imports",
    params(("name" = WorkspaceName, Path)),
    responses(
        (status = 201, description = "The import", body = Import),
        (status = 409, description = "It lives on a machine, or a workflow works on it", body = ErrorBody),
    ),
)]
pub async fn begin(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> ApiResult<(StatusCode, Json<Import>)> {
    let workspace = named(&app, &name).await?;
    if workspace.instance_key.is_some() {
        return Err(ApiError::conflict(
            "already_deployed",
            format!("workspace {name:?} lives on a machine"),
            "copy the files there with `dumont ssh`, or import into a new workspace",
        ));
    }
    if let Some(running) = app.store.running_workflow(&workspace.id).await? {
        let mut busy = ApiError::busy(&name, &running.id, running.kind);
        busy.body.hint =
            "import before the workspace is deployed: dumont workspace create NAME --from DIR".into();
        return Err(busy);
    }
    let now = app.now();
    let import_id = Ulid::generate().to_string();
    // The ULID keeps two imports of one second apart.
    let stamp = format!("import{}-{}", &import_id[16..].to_lowercase(), now.unix_seconds());
    let fence = DraftFence {
        store: app.store.clone(),
        workspace_id: workspace.id.clone(),
    };
    let granter = Granter::writing(
        app.objects.clone(),
        &app.public_url,
        &workspace.id,
        &stamp,
        // The caller's own files, under the caller's own token.
        u64::MAX,
        Arc::new(fence),
    );
    let running = Running {
        workspace_id: workspace.id,
        stamp: stamp.clone(),
        began_at: now,
        fence: workspace.fence,
        granter,
    };
    app.imports
        .0
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(import_id.clone(), Arc::new(running));
    Ok((StatusCode::CREATED, Json(Import { import_id, stamp })))
}

/// Asks for a URL to put one object to.
#[utoipa::path(
    post,
    path = "/imports/{id}/uploads",
    tag = "imports",
    params(("id" = String, Path)),
    request_body = ImportUpload,
    responses(
        (status = 200, description = "Where and with which headers to PUT it", body = UploadGrant),
        (status = 409, description = "The workspace was deployed meanwhile, or the object is not allowed", body = ErrorBody),
    ),
)]
pub async fn upload(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Body(wanted): Body<ImportUpload>,
) -> ApiResult<Json<UploadGrant>> {
    let import = running(&app, &id)?;
    let wanted = UploadWanted {
        kind: wanted.kind,
        size: wanted.size,
        digest: wanted.digest,
    };
    let grants = import.granter.uploads(&[wanted]).await.map_err(refused)?;
    grants
        .into_iter()
        .next()
        .map(Json)
        .ok_or_else(|| ApiError::internal("no URL was granted"))
}

/// Says that every part of an object was sent; it is completed in the background.
#[utoipa::path(
    post,
    path = "/imports/{id}/uploaded",
    tag = "imports",
    params(("id" = String, Path)),
    request_body = ImportUploaded,
    responses(
        (status = 204, description = "Noted; what cannot be completed refuses the commit"),
        (status = 409, description = "It was not granted so, or the workspace was deployed meanwhile", body = ErrorBody),
    ),
)]
pub async fn uploaded(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Body(ImportUploaded { key, parts }): Body<ImportUploaded>,
) -> ApiResult<StatusCode> {
    let import = running(&app, &id)?;
    import.granter.uploaded(key, parts).await.map_err(refused)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes the snapshot visible, if every object has arrived.
#[utoipa::path(
    post,
    path = "/imports/{id}/commit",
    tag = "imports",
    params(("id" = String, Path)),
    request_body = CommitImport,
    responses(
        (status = 201, description = "The snapshot", body = Snapshot),
        (status = 409, description = "An object is missing or wrong, or the workspace was deployed meanwhile", body = ErrorBody),
    ),
)]
pub async fn commit(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Body(CommitImport { mut report }): Body<CommitImport>,
) -> ApiResult<(StatusCode, Json<Snapshot>)> {
    let import = running(&app, &id)?;
    import.granter.finish(&mut report).await.map_err(refused)?;
    let origin = Origin {
        workspace_id: import.workspace_id.clone(),
        fence: import.fence,
        instance_key: None,
        parent: None,
        full_because: None,
        stamp: import.stamp.clone(),
        began_at: import.began_at,
    };
    let row = publish(&app, &origin, &report).await.map_err(|e| match e {
        StepError::Failed(body) => ApiError {
            status: StatusCode::CONFLICT,
            body,
        },
        StepError::Store(e) => e.into(),
    })?;
    app.imports
        .0
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .remove(&id);
    Ok((StatusCode::CREATED, Json(shown(&row))))
}

fn running(app: &App, id: &str) -> ApiResult<Arc<Running>> {
    let imports = app.imports.0.lock().unwrap_or_else(PoisonError::into_inner);
    imports
        .get(id)
        .cloned()
        .ok_or_else(|| ApiError::not_found("import", id, "imports do not outlive the server; begin it again"))
}

fn refused(error: LinkError) -> ApiError {
    ApiError {
        status: StatusCode::CONFLICT,
        body: link_failure(&error),
    }
}
